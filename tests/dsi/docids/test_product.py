"""Product docids: codebooks that follow the corpus, and codes that do not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from dsi.docids.product import Product
from dsi.errors import UserError
from tests.dsi.docids.vectors import blobs, new, unit, vectors

CONFIGS = st.builds(
    Product.Config,
    groups=st.integers(1, 4),
    codes=st.integers(2, 6),
    new_codes=st.integers(0, 3),
)


def made(vectors_ND: np.ndarray, seed: int = 0, **config) -> Product:
    scheme = Product(Product.Config(**config))
    scheme.extend(new(vectors_ND, seed))
    return scheme


@settings(max_examples=25)
@given(vectors(), st.lists(vectors(), max_size=2), CONFIGS)
def test_old_docids_stay_and_codebooks_grow_within_bounds(check_docids, first, chunks, config):
    scheme = Product(config)
    scheme.extend(new(first))
    check_docids(scheme)
    assert max(scheme.code_sizes[:-1]) <= config.codes
    for chunk in chunks:
        before, sizes = scheme.codes_NT.copy(), np.array(scheme.code_sizes)
        got = scheme.extend(new(chunk))
        assert (got.shape, got.dtype) == ((len(chunk), config.groups + 1), np.int32)
        assert np.array_equal(scheme.codes_NT[: len(before)], before)
        grown = np.array(scheme.code_sizes) - sizes
        assert (grown >= 0).all()
        assert (grown[:-1] <= config.new_codes).all()
    check_docids(scheme)
    for group in range(config.groups):
        counted = np.bincount(scheme.codes_NT[:, group])
        assert np.array_equal(counted, scheme.state_dict()[f"documents.{group}"])
        assert counted.min() > 0


@settings(max_examples=15)
@given(vectors(), vectors(), CONFIGS)
def test_suffixes_count_the_documents_with_the_same_codes(first, more, config):
    scheme = Product(config)
    scheme.extend(new(first))
    scheme.extend(new(more))
    seen: dict[tuple[int, ...], int] = {}
    for *codes, suffix in scheme.codes_NT.tolist():
        assert suffix == seen.get(tuple(codes), 0)
        seen[tuple(codes)] = suffix + 1


@settings(max_examples=15)
@given(vectors(), vectors(), CONFIGS)
def test_a_restored_assignment_goes_on_as_the_original(first, more, config):
    scheme, again = Product(config), Product(config)
    scheme.extend(new(first))
    again.restore(scheme.codes_NT)
    again.load_state_dict(load(save(scheme.state_dict())))
    assert again.code_sizes == scheme.code_sizes
    for part in (more, more[::-1]):
        assert np.array_equal(again.extend(new(part)), scheme.extend(new(part)))
    assert again.code_sizes == scheme.code_sizes
    states = again.state_dict(), scheme.state_dict()
    assert all(np.array_equal(states[0][key], states[1][key]) for key in states[1])


@settings(max_examples=12)
@given(vectors(), CONFIGS)
def test_a_document_seen_again_has_the_same_codes(first, config):
    """It is within the largest distance, being one of those that the distance was learnt from."""
    scheme = Product(config)
    scheme.extend(new(first))
    sizes = scheme.code_sizes[:-1]
    again = scheme.extend(new(first[::-1]))[::-1]
    assert np.array_equal(again[:, :-1], scheme.codes_NT[: len(first), :-1])
    assert scheme.code_sizes[:-1] == sizes


def square(at: float) -> np.ndarray:
    """Four points around (at, 0), at distances 0.01 twice and 0.03 twice: a = 0.02, m = 0.03."""
    return np.array(
        [[at - 0.01, 0], [at + 0.01, 0], [at, -0.03], [at, 0.03]],
        np.float32,
    )


@pytest.fixture
def two() -> Product:
    """One group, centroids at (0, 0) and (1, 0)."""
    return made(np.concatenate([square(0), square(1)]), groups=1, codes=2, new_codes=2)


def test_thresholds_are_the_mean_and_the_largest_distance(two):
    state = two.state_dict()
    np.testing.assert_allclose(state["near.0"], 0.02, rtol=1e-4)
    np.testing.assert_allclose(state["far.0"], 0.03, rtol=1e-4)
    assert sorted(state["centroids.0"][:, 0].round(5)) == [0, 1]
    assert state["documents.0"].tolist() == [4, 4]


def test_within_the_mean_distance_the_centroid_is_kept(two):
    before = two.state_dict()["centroids.0"].copy()
    codes = two.extend(new(np.array([[0.019, 0], [1, 0.019]], np.float32)))
    assert codes.tolist() == [[two.codes_NT[0, 0], 4], [two.codes_NT[4, 0], 4]]
    assert np.array_equal(two.state_dict()["centroids.0"], before)
    assert two.state_dict()["documents.0"].tolist() == [5, 5]


def test_between_the_thresholds_the_centroid_moves_to_the_mean(two):
    """The document within the mean distance is not in the sum, but counts from then on."""
    code = two.codes_NT[0, 0]
    corpus = np.array([[0.025, 0], [0, 0.028], [0.01, 0]], np.float32)
    assert two.extend(new(corpus))[:, 0].tolist() == [code] * 3
    centroids = two.state_dict()["centroids.0"]
    np.testing.assert_allclose(centroids[code], [0.025 / 6, 0.028 / 6], atol=1e-6)
    np.testing.assert_allclose(centroids[1 - code], [1, 0], atol=1e-6)
    two.extend(new(np.array([[0.025, 0.0]], np.float32)))
    moved = two.state_dict()["centroids.0"][code]
    np.testing.assert_allclose(moved, [(7 * 0.025 / 6 + 0.025) / 8, 7 * 0.028 / 6 / 8], atol=1e-6)
    assert two.code_sizes[0] == 2


def test_beyond_the_largest_distance_there_are_new_codes(two):
    before = two.state_dict()["centroids.0"].copy()
    far = np.array([[0.5, 0.5], [0.52, 0.5], [0.5, -0.5], [0.5, -0.52]], np.float32)
    codes = two.extend(new(far))[:, 0]
    assert (codes[0], codes[2]) == (codes[1], codes[3])
    assert sorted(codes) == [2, 2, 3, 3]
    state = two.state_dict()
    assert np.array_equal(state["centroids.0"][:2], before)
    np.testing.assert_allclose(state["centroids.0"][codes[0]], [0.51, 0.5], atol=1e-5)
    np.testing.assert_allclose(state["far.0"][2:], 0.01, atol=1e-5)
    near_new = two.extend(new(np.array([[0.505, 0.5], [0.5, -0.505]], np.float32)))
    assert near_new[:, 0].tolist() == [codes[0], codes[2]]
    assert two.code_sizes[0] == 4


def test_a_single_outlier_takes_over_the_usual_thresholds(two):
    two.extend(new(np.array([[0.5, 0.5]], np.float32)))
    state = two.state_dict()
    np.testing.assert_allclose(state["near.0"], 0.02, rtol=1e-4)
    np.testing.assert_allclose(state["far.0"], 0.03, rtol=1e-4)
    assert two.extend(new(np.array([[0.5, 0.515]], np.float32))).tolist() == [[2, 1]]


def test_without_new_codes_outliers_take_old_ones_and_move_nothing():
    corpus = np.concatenate([square(0), square(1)])
    scheme = made(corpus, groups=1, codes=2, new_codes=0)
    before = scheme.state_dict()["centroids.0"].copy()
    far = scheme.extend(new(np.array([[-3, 0], [4, 1]], np.float32)))
    assert far[:, 0].tolist() == scheme.codes_NT[[0, 4], 0].tolist()
    assert np.array_equal(scheme.state_dict()["centroids.0"], before)
    assert scheme.code_sizes[0] == 2


def test_groups_are_quantised_by_themselves():
    """A new document made of the halves of two old ones has a code of each."""
    left, right = blobs(3, 1, seed=1, width=4), blobs(3, 1, seed=2, width=4)
    corpus = np.concatenate([left, right], axis=1)
    scheme = made(corpus, groups=2, codes=3)
    mixed = scheme.extend(new(np.concatenate([left[:1], right[2:]], axis=1)))
    assert mixed.tolist() == [[scheme.codes_NT[0, 0], scheme.codes_NT[2, 1], 0]]


def test_dimensions_that_do_not_divide():
    scheme = made(unit(np.random.default_rng(0).normal(size=(20, 7))), groups=3, codes=4)
    widths = [scheme.state_dict()[f"centroids.{group}"].shape[1] for group in range(3)]
    assert widths == [3, 2, 2]


def test_documents_of_one_blob_share_their_codes():
    scheme = made(blobs(4, 30), groups=2, codes=4)
    codes = scheme.codes_NT[:, :2].reshape(4, 30, 2)
    assert (codes == codes[:, :1]).all()
    assert len(np.unique(codes[:, 0], axis=0)) == 4


def test_the_assignment_depends_on_the_seed_alone():
    corpus = unit(np.random.default_rng(0).normal(size=(300, 8)))
    one = made(corpus, codes=8, seed=1)
    np.random.seed(5)  # noqa: NPY002  (the global state must not matter)
    assert np.array_equal(one.codes_NT, made(corpus, codes=8, seed=1).codes_NT)
    assert not np.array_equal(one.codes_NT, made(corpus, codes=8, seed=2).codes_NT)


def test_a_state_that_was_handed_out_stays_as_it_was():
    scheme = made(blobs(3, 9), codes=4)
    state = scheme.state_dict()
    copies = {key: value.copy() for key, value in state.items()}
    scheme.extend(new(unit(np.random.default_rng(0).normal(size=(30, 24)))))
    assert all(np.array_equal(state[key], copies[key]) for key in copies)


def test_nothing_to_assign():
    scheme = Product()
    scheme.extend(new(np.zeros((0, 4), np.float32)))
    assert scheme.state_dict() == {}
    scheme.load_state_dict({})
    scheme.extend(new(blobs(2, 3)))
    scheme.extend(new(np.zeros((0, 24), np.float32)))
    assert scheme.codes_NT.shape == (6, 4)


def test_vectors_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"^docids.groups: must be at most 3"):
        made(np.eye(3, dtype=np.float32), groups=4)
    scheme = made(blobs(2, 3))
    with pytest.raises(UserError, match=r"^docids.embedding: vectors have 3 dimensions.* had 24"):
        scheme.extend(new(np.eye(3, dtype=np.float32)))


@pytest.mark.parametrize(
    "settings,field",
    [(dict(groups=0), "groups"), (dict(codes=1), "codes"), (dict(new_codes=-1), "new_codes")],
)
def test_impossible_settings(settings, field):
    with pytest.raises(ValueError, match=f"^{field}: "):
        Product.Config(**settings)
