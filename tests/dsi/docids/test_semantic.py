"""Semantic docids: paths in a tree of clusters."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from dsi.docids import semantic
from dsi.docids.semantic import Semantic
from dsi.errors import UserError
from tests.dsi.docids.vectors import blobs, new, unit, vectors

CONFIGS = st.builds(Semantic.Config, k=st.integers(2, 4), c=st.integers(1, 6))


def made(vectors_ND: np.ndarray, k: int = 10, c: int = 100, seed: int = 0) -> Semantic:
    scheme = Semantic(Semantic.Config(k, c))
    scheme.extend(new(vectors_ND, seed))
    return scheme


@settings(max_examples=25)
@given(vectors(), st.lists(vectors(), max_size=2), CONFIGS)
def test_old_docids_stay_and_later_cuts_do_not_matter(check_docids, first, chunks, config):
    scheme, whole = Semantic(config), Semantic(config)
    scheme.extend(new(first))
    check_docids(scheme)
    for chunk in chunks:
        before = scheme.codes_NT.copy()
        got = scheme.extend(new(chunk))
        assert (len(got), got.dtype) == (len(chunk), np.int32)
        assert np.array_equal(scheme.codes_NT[: len(before)], before)
    check_docids(scheme)
    whole.extend(new(first))
    whole.extend(new(np.concatenate([first[:0], *chunks])))
    assert np.array_equal(whole.codes_NT, scheme.codes_NT)


@settings(max_examples=25)
@given(vectors(), CONFIGS)
def test_cluster_codes_come_before_one_leaf_code(first, config):
    """And leaves within c where the vectors are far enough apart to be split."""
    codes_NT = made(first, config.k, config.c).codes_NT
    ends = (codes_NT >= 0).sum(1) - 1
    is_leaf = codes_NT >= config.k
    assert (is_leaf.sum(1) == 1).all()
    assert is_leaf[np.arange(len(codes_NT)), ends].all()
    gaps = np.linalg.norm(first[:, None] - first, axis=-1)[~np.eye(len(first), dtype=bool)]
    if gaps.min(initial=1) > 1e-2:
        assert codes_NT.max() < config.k + config.c


@settings(max_examples=15)
@given(vectors(), vectors(), CONFIGS)
def test_a_restored_assignment_goes_on_as_the_original(first, more, config):
    scheme, again = made(first, config.k, config.c), Semantic(config)
    again.restore(scheme.codes_NT)
    again.load_state_dict(load(save(scheme.state_dict())))
    assert again.code_sizes == scheme.code_sizes
    for _ in range(2):
        assert np.array_equal(again.extend(new(more)), scheme.extend(new(more)))
    assert again.code_sizes == scheme.code_sizes


@settings(max_examples=12)
@given(vectors(), CONFIGS)
def test_a_document_seen_again_goes_to_the_same_leaf(first, config):
    scheme = made(first, config.k, config.c)
    again = scheme.extend(new(first[::-1]))[::-1]
    old = scheme.codes_NT[: len(first)]
    width = again.shape[1]
    inner = old[:, :width] < config.k
    assert np.array_equal(np.where(inner, old[:, :width], -1), np.where(inner, again, -1))
    assert np.array_equal((old >= 0).sum(1), (again >= 0).sum(1))


def test_small_corpora_have_docids_of_one_code():
    scheme = made(blobs(3, 4), k=10, c=12)
    assert scheme.codes_NT.tolist() == [[10 + j] for j in range(12)]
    assert scheme.extend(new(blobs(3, 1, seed=1))).tolist() == [[22], [23], [24]]
    assert scheme.code_sizes == [25]


def test_documents_of_one_blob_share_their_first_code():
    """Also later ones, and a leaf grows beyond c without touching what is there."""
    scheme = made(blobs(4, 30), k=4, c=30)
    firsts = scheme.codes_NT[:, 0].reshape(4, 30)
    assert (firsts == firsts[:, :1]).all()
    assert sorted(firsts[:, 0]) == [0, 1, 2, 3]
    later = scheme.extend(new(blobs(4, 7, seed=0)[::-1]))
    assert np.array_equal(later[:, 0].reshape(4, 7)[::-1], firsts[:, :7])
    assert sorted(later[:7, 1]) == list(range(34, 41))
    assert scheme.code_sizes == [4, 4 + 37]


def test_alike_documents_share_more_codes_than_far_ones():
    rng = np.random.default_rng(0)
    tops = np.repeat(np.eye(8)[:3], 90, axis=0)
    subs = np.tile(np.repeat(0.2 * np.eye(8)[3:6], 30, axis=0), (3, 1))
    codes_NT = made(unit(tops + subs + 0.01 * rng.normal(size=(270, 8))), k=3, c=30).codes_NT
    prefixes = codes_NT[:, :2].reshape(3, 3, 30, 2)
    assert (prefixes == prefixes[:, :, :1]).all()
    assert len(np.unique(prefixes[:, 0, 0, 0])) == 3
    for top in prefixes[:, :, 0]:
        assert len(set(top[:, 0])) == 1
        assert sorted(top[:, 1]) == [0, 1, 2]


def test_equal_vectors_are_one_leaf_of_any_size():
    scheme = made(np.repeat(blobs(2, 1), 50, axis=0), k=10, c=5)
    assert sorted(scheme.codes_NT[:, 0]) == [0] * 50 + [1] * 50
    assert scheme.codes_NT[:50, 1].tolist() == list(range(10, 60))
    assert scheme.code_sizes == [10, 60]


def test_clusters_without_documents_are_left_out(monkeypatch):
    fit = semantic.kmeans
    far = np.full((1, 24), 9, np.float32)
    monkeypatch.setattr(
        semantic, "kmeans", lambda part, k, seed: np.concatenate([far, fit(part, k - 1, seed)])
    )
    scheme = made(blobs(3, 10), k=4, c=10)
    assert sorted(set(scheme.codes_NT[:, 0])) == [0, 1, 2]
    again = scheme.extend(new(blobs(3, 10)))
    assert np.array_equal(again[:, 0], scheme.codes_NT[:30, 0])


def test_the_depth_is_bounded(check_docids, monkeypatch):
    """Each split takes only the farthest of vectors at exponentially growing distances."""
    line = np.zeros((14, 2), np.float32)
    line[:, 0] = 4.0 ** np.arange(14)
    free = made(line, k=2, c=1)
    monkeypatch.setattr(semantic, "_MAX_DEPTH", 3)
    bounded = made(line, k=2, c=1)
    assert free.codes_NT.shape[1] > 6
    assert bounded.codes_NT.shape[1] == 4
    check_docids(free)
    check_docids(bounded)


def test_the_assignment_depends_on_the_seed_alone():
    corpus = unit(np.random.default_rng(0).normal(size=(300, 8)))
    one = made(corpus, k=4, c=10, seed=1)
    np.random.seed(5)  # noqa: NPY002  (the global state must not matter)
    assert np.array_equal(one.codes_NT, made(corpus, k=4, c=10, seed=1).codes_NT)
    assert not np.array_equal(one.codes_NT, made(corpus, k=4, c=10, seed=2).codes_NT)


def test_a_large_node_is_clustered_from_a_sample(check_docids, monkeypatch):
    monkeypatch.setattr("dsi.docids._clustering._SAMPLE", 50)
    scheme = made(blobs(3, 200), k=3, c=300)
    firsts = scheme.codes_NT[:, 0].reshape(3, 200)
    assert (firsts == firsts[:, :1]).all()
    check_docids(scheme)


def test_a_state_that_was_handed_out_stays_as_it_was():
    scheme = made(blobs(3, 9), k=2, c=5)
    state = scheme.state_dict()
    copies = {key: value.copy() for key, value in state.items()}
    scheme.extend(new(unit(np.random.default_rng(0).normal(size=(30, 24)))))
    assert all(np.array_equal(state[key], copies[key]) for key in copies)


def test_nothing_to_assign():
    scheme = Semantic()
    assert scheme.extend(new(np.zeros((0, 4), np.float32))).shape == (0, 1)
    assert scheme.state_dict() == {}
    scheme.load_state_dict({})
    scheme.extend(new(blobs(2, 3)))
    assert scheme.extend(new(np.zeros((0, 24), np.float32))).shape == (0, 1)
    assert len(scheme) == 6


def test_vectors_of_another_space_are_refused():
    scheme = made(blobs(2, 3))
    with pytest.raises(UserError, match=r"^docids.embedding: vectors have 3 dimensions.* had 24"):
        scheme.extend(new(np.eye(3, dtype=np.float32)))
    broken = np.full((2, 24), 0.1, np.float32)
    broken[1, 3] = np.nan
    with pytest.raises(UserError, match=r"^docids.embedding: .* document 1 is not finite"):
        scheme.extend(new(broken))
    assert len(scheme) == 6


@pytest.mark.parametrize("settings,field", [(dict(k=1), "k"), (dict(c=0), "c")])
def test_impossible_settings(settings, field):
    with pytest.raises(ValueError, match=f"^{field}: "):
        Semantic.Config(**settings)
