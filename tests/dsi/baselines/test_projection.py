"""TF-IDF in so many numbers: scikit-learn's weights, angles that are kept, old documents too."""

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from dsi.baselines import _texts, projection
from dsi.baselines.projection import Projection
from dsi.errors import UserError

TEXTS = ["red apple", "green apple apple pie", "blue sky", "..."]
QUERIES = ["apple", "green sky", "a red apple pie", "unknown", ""]


def index(texts=TEXTS, seed=0, **settings) -> Projection:
    made = Projection(Projection.Config(**settings))
    made.seed = seed
    made.add(np.arange(len(texts)) + 10, texts)
    return made


def scores_of(made, query, count):
    """By document number."""
    numbers, scores = made.search([query], count)
    return dict(zip(numbers[0].tolist(), scores[0].tolist(), strict=True))


def many(count=300, words=2000, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(f"w{i}" for i in rng.zipf(1.3, 60) % words) for _ in range(count)]


def test_without_a_width_it_is_scikit_learns_cosine():
    theirs = TfidfVectorizer(sublinear_tf=True)
    documents = theirs.fit_transform(TEXTS)
    expected = (theirs.transform(QUERIES) @ documents.T).toarray()
    numbers, scores = index(width=None).search(QUERIES, 4)
    for row, own, found in zip(expected, numbers, scores, strict=True):
        assert sorted(own[own >= 0]) == (np.flatnonzero(row > 0) + 10).tolist()
        assert found[own >= 0] == pytest.approx(row[own[own >= 0] - 10], rel=1e-5)
        assert found.tolist() == sorted(found, reverse=True)
        assert np.isneginf(found[own < 0]).all()


def test_a_width_keeps_angles_to_its_root():
    texts, width = many(), 1024
    queries = [" ".join(text.split()[:20]) for text in texts[:50]]
    vectorizer = TfidfVectorizer(sublinear_tf=True)
    documents = vectorizer.fit_transform(texts)
    exact = (vectorizer.transform(queries) @ documents.T).toarray()

    def found_and_error(width):
        numbers, scores = index(texts, width=width).search(queries, 300)
        error = scores - np.take_along_axis(exact, np.maximum(numbers - 10, 0), 1)
        return (numbers[:, 0] == np.arange(50) + 10).mean(), error[numbers >= 0].std()

    found, error = found_and_error(width)
    assert found > 0.9 and 0.5 < error * width**0.5 < 1.5
    found, error = found_and_error(4)
    assert found < 0.5 and error > 0.2, "few numbers are too few"


def test_what_comes_later_moves_no_old_document():
    """Frequencies are D_0's, a direction is the word's own, whatever else is there."""
    for width in (None, 64):
        made = index(width=width)
        before = scores_of(made, "red apple pie", 3)
        made.add(np.array([20, 21]), ["apple cake apple", "zebra apple"])
        after = scores_of(made, "red apple pie", 6)
        kept = {number: score for number, score in after.items() if number in before}
        assert kept == pytest.approx({n: s for n, s in before.items() if n in after})
        assert before.keys() - {-1} <= after.keys()
        made.remove(np.array([20, 21]))
        assert scores_of(made, "red apple pie", 3) == before


def test_a_word_that_the_first_documents_have_not_weighs_most():
    made = index(["apple sky", "apple pie"], width=None)
    made.add(np.array([20]), ["apple zebra"])
    rare, common = np.log(3 / 1) + 1, np.log(3 / 3) + 1
    expected = rare / np.hypot(rare, common)
    assert scores_of(made, "zebra", 3)[20] == pytest.approx(expected, rel=1e-5)


def test_documents_go_and_change():
    made = index()
    made.remove(np.array([10]))
    made.add(np.array([12, 20]), ["an apple", "red"])
    numbers, _ = made.search(["sky", "red"], 2)
    assert numbers[:, 0].tolist() == [-1, 20], "the old text is gone, and its words"


def test_directions_are_of_the_seed():
    assert scores_of(index(width=8), "apple pie", 2) == scores_of(index(width=8), "apple pie", 2)
    assert scores_of(index(width=8), "apple pie", 2) != scores_of(
        index(width=8, seed=1), "apple pie", 2
    )


@pytest.mark.parametrize("width", [None, 64])
def test_parts_of_the_work_are_the_whole(monkeypatch, width):
    texts = many(30)
    numbers, scores = index(texts, width=width).search(texts, 5)
    monkeypatch.setattr(_texts, "BATCH", 7)
    monkeypatch.setattr(projection, "WORDS", 11)
    monkeypatch.setattr(projection, "SCORES", 60)
    again, close = index(texts, width=width).search(texts, 5)
    assert scores == pytest.approx(close, rel=1e-4)
    assert np.array_equal(numbers[:, 0], again[:, 0])


def test_nothing_is_found_among_nothing():
    made = index(["", "..."])
    assert (made.search(["apple"], 2)[0] == -1).all()
    made.add(np.array([20]), ["an apple"])
    assert made.search(["apple"], 2)[0].tolist() == [[20, -1]]


@pytest.mark.parametrize("width", [0, -1, 2**17])
def test_widths_out_of_range(width):
    with pytest.raises(UserError, match="width"):
        Projection.Config(width=width)
