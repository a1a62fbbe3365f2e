"""Residual docids: from coarse to fine, with a suffix."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from dsi.docids._clustering import with_suffix
from dsi.docids.residual import Residual
from dsi.errors import UserError
from tests.dsi.docids.vectors import blobs, new, unit, vectors

CONFIGS = st.builds(Residual.Config, positions=st.integers(1, 3), codes=st.integers(2, 6))


def made(vectors_ND: np.ndarray, positions: int = 4, codes: int = 256, seed: int = 0) -> Residual:
    scheme = Residual(Residual.Config(positions, codes))
    scheme.extend(new(vectors_ND, seed))
    return scheme


@settings(max_examples=25)
@given(vectors(), st.lists(vectors(), max_size=2), CONFIGS)
def test_old_docids_stay_and_later_cuts_do_not_matter(check_docids, first, chunks, config):
    scheme, whole = Residual(config), Residual(config)
    scheme.extend(new(first))
    check_docids(scheme)
    books = scheme.code_sizes[:-1]
    for chunk in chunks:
        before = scheme.codes_NT.copy()
        got = scheme.extend(new(chunk))
        assert (got.shape, got.dtype) == ((len(chunk), config.positions + 1), np.int32)
        assert np.array_equal(scheme.codes_NT[: len(before)], before)
    check_docids(scheme)
    assert scheme.code_sizes[:-1] == books
    whole.extend(new(first))
    whole.extend(new(np.concatenate([first[:0], *chunks])))
    assert np.array_equal(whole.codes_NT, scheme.codes_NT)


@settings(max_examples=15)
@given(vectors(), vectors(), CONFIGS)
def test_suffixes_count_the_documents_with_the_same_codes(first, more, config):
    scheme = made(first, config.positions, config.codes)
    scheme.extend(new(more))
    seen: dict[tuple[int, ...], int] = {}
    for *codes, suffix in scheme.codes_NT.tolist():
        assert suffix == seen.get(tuple(codes), 0)
        seen[tuple(codes)] = suffix + 1


@settings(max_examples=15)
@given(vectors(), vectors(), CONFIGS)
def test_a_restored_assignment_goes_on_as_the_original(first, more, config):
    scheme, again = made(first, config.positions, config.codes), Residual(config)
    again.restore(scheme.codes_NT)
    again.load_state_dict(load(save(scheme.state_dict())))
    assert again.code_sizes == scheme.code_sizes
    for _ in range(2):
        assert np.array_equal(again.extend(new(more)), scheme.extend(new(more)))


@settings(max_examples=12)
@given(vectors(), CONFIGS)
def test_a_document_seen_again_has_the_same_codes(first, config):
    scheme = made(first, config.positions, config.codes)
    again = scheme.extend(new(first[::-1]))[::-1]
    assert np.array_equal(again[:, :-1], scheme.codes_NT[: len(first), :-1])


@settings(max_examples=15)
@given(vectors(), CONFIGS)
def test_codes_are_the_nearest_centroids_of_what_is_left(first, config):
    scheme = made(first, config.positions, config.codes)
    state = scheme.state_dict()
    rest = first.astype(np.float64)
    books = np.split(state["centroids"].astype(np.float64), np.cumsum(state["sizes"])[:-1])
    assert len(books) == config.positions
    for book, codes in zip(books, scheme.codes_NT.T, strict=False):
        distances = np.linalg.norm(rest[:, None] - book, axis=-1)
        chosen = distances[np.arange(len(first)), codes]
        np.testing.assert_allclose(chosen, distances.min(1), atol=1e-3)
        rest = rest - book[codes]


def test_a_position_has_no_more_codes_than_there_are_distinct_residuals():
    """Three distinct vectors, each its own centroid: nothing is left for the other positions."""
    scheme = made(np.repeat(blobs(3, 1), [1, 2, 4], axis=0), positions=3, codes=8)
    assert scheme.code_sizes == [3, 1, 1, 4]
    assert scheme.codes_NT[:, -1].tolist() == [0, 0, 1, 0, 1, 2, 3]


def test_documents_of_one_blob_share_their_first_code():
    scheme = made(blobs(4, 30), positions=2, codes=4)
    firsts = scheme.codes_NT[:, 0].reshape(4, 30)
    assert (firsts == firsts[:, :1]).all()
    assert sorted(firsts[:, 0]) == [0, 1, 2, 3]
    later = scheme.extend(new(blobs(4, 7)[::-1]))
    assert np.array_equal(later[:, 0].reshape(4, 7)[::-1], firsts[:, :7])


def test_more_positions_come_nearer_to_the_vectors():
    corpus = unit(np.random.default_rng(0).normal(size=(400, 8)))
    scheme = made(corpus, positions=3, codes=16)
    state = scheme.state_dict()
    books = np.split(state["centroids"], np.cumsum(state["sizes"])[:-1])
    rest, errors = corpus, []
    for book, codes in zip(books, scheme.codes_NT.T, strict=False):
        rest = rest - book[codes]
        errors.append(float(np.square(rest).sum(1).mean()))
    assert 1 > errors[0] > 1.5 * errors[1] > 2 * errors[2]


def test_the_assignment_depends_on_the_seed_alone():
    corpus = unit(np.random.default_rng(0).normal(size=(300, 8)))
    one = made(corpus, codes=8, seed=1)
    np.random.seed(5)  # noqa: NPY002  (the global state must not matter)
    assert np.array_equal(one.codes_NT, made(corpus, codes=8, seed=1).codes_NT)
    assert not np.array_equal(one.codes_NT, made(corpus, codes=8, seed=2).codes_NT)


def test_long_docids_are_told_apart():
    """20 positions of 256 codes do not fit into 64 bits, and only the first one differs."""
    rows = np.full((5, 20), 255)
    rows[:, 0] = [255, 0, 255, 7, 0]
    assert with_suffix(rows[:0], rows)[:, -1].tolist() == [0, 0, 1, 0, 1]
    assert with_suffix(with_suffix(rows[:0], rows), rows)[:, -1].tolist() == [2, 2, 3, 1, 3]


def test_vectors_that_differ_by_rounding_are_one():
    noise = 1e-7 * np.random.default_rng(0).normal(size=(30, 2))
    corpus = (np.array([0.6, 0.8]) + noise).astype(np.float32)
    scheme = made(corpus, positions=2, codes=8)
    assert scheme.code_sizes == [1, 1, 30]


@pytest.mark.parametrize("documents,codes", [(1, 4), (20, 4), (64, 8), (300, 16), (1000, 32)])
def test_without_a_number_of_codes_it_fits_the_first_corpus(documents, codes):
    corpus = unit(np.random.default_rng(0).normal(size=(documents, 8)))
    scheme = Residual()
    scheme.extend(new(corpus))
    assert scheme.code_sizes[0] == min(codes, documents)
    scheme.extend(new(corpus))
    assert scheme.code_sizes[0] == min(codes, documents)


def test_a_state_that_was_handed_out_stays_as_it_was():
    scheme = made(blobs(3, 9), codes=4)
    state = scheme.state_dict()
    copies = {key: value.copy() for key, value in state.items()}
    scheme.extend(new(unit(np.random.default_rng(0).normal(size=(30, 24)))))
    assert all(np.array_equal(state[key], copies[key]) for key in copies)


def test_nothing_to_assign():
    scheme = Residual()
    scheme.extend(new(np.zeros((0, 4), np.float32)))
    assert scheme.state_dict() == {}
    scheme.load_state_dict({})
    scheme.extend(new(blobs(2, 3)))
    scheme.extend(new(np.zeros((0, 24), np.float32)))
    assert scheme.codes_NT.shape == (6, 4)


def test_vectors_of_another_space_are_refused():
    scheme = made(blobs(2, 3))
    with pytest.raises(UserError, match=r"^docids.embedding: vectors have 3 dimensions.* had 24"):
        scheme.extend(new(np.eye(3, dtype=np.float32)))


@pytest.mark.parametrize(
    "settings,field", [(dict(positions=0), "positions"), (dict(codes=1), "codes")]
)
def test_impossible_settings(settings, field):
    with pytest.raises(ValueError, match=f"^{field}: "):
        Residual.Config(**settings)
