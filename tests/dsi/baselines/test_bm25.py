"""BM25 by hand, and documents that come, go and change."""

import math

import numpy as np
import pytest

from dsi.baselines.bm25 import BM25
from dsi.errors import UserError

TEXTS = ["red apple", "green apple apple pie", "blue sky", "..."]


def index(texts=TEXTS, **settings) -> BM25:
    made = BM25(BM25.Config(**settings))
    made.add(np.arange(len(texts)) + 10, texts)
    return made


def test_scores_are_lucenes_formula():
    numbers, scores = index(k1=1.2, b=0.75).search(["apple"], 3)
    lengths = [2, 4, 2, 0]
    mean = sum(lengths) / 4
    inverse = math.log(1 + (4 - 2 + 0.5) / (2 + 0.5))

    def score(count, length):
        return inverse * count / (count + 1.2 * (1 - 0.75 + 0.75 * length / mean))

    expected = {10: score(1, 2), 11: score(2, 4)}
    order = sorted(expected, key=lambda number: -expected[number])
    assert numbers.tolist() == [[*order, -1]]
    assert scores[0, :2].tolist() == pytest.approx([expected[n] for n in order], rel=1e-5)
    assert scores[0, 2] == -np.inf


def test_what_has_no_word_of_a_query_is_no_result():
    numbers, scores = index().search(["apple sky", "unknown", ""], 4)
    assert sorted(numbers[0].tolist()) == [-1, 10, 11, 12]
    assert (numbers[1:] == -1).all() and np.isneginf(scores[1:]).all()


def test_equal_scores_are_in_order_of_arrival():
    numbers, _ = index(["one word"] * 5).search(["word"], 3)
    assert numbers.shape == (1, 3)
    assert numbers[0].tolist() == sorted(numbers[0].tolist())


def test_documents_go_change_and_come():
    made = index()
    made.remove(np.array([10]))
    assert made.search(["apple"], 2)[0].tolist() == [[11, -1]]
    made.add(np.array([12, 20]), ["an apple", "red"])
    numbers, _ = made.search(["apple", "sky", "red"], 2)
    assert sorted(numbers[0].tolist()) == [11, 12]
    assert numbers[1].tolist() == [-1, -1], "the old text is gone"
    assert numbers[2].tolist() == [20, -1]


def test_many_queries_are_answered_as_one(monkeypatch):
    queries = ["apple", "sky", "red apple pie", "blue"]
    whole = index().search(queries, 2)
    monkeypatch.setattr("dsi.baselines._texts.BATCH", 3)
    parts = index().search(queries, 2)
    assert all(np.array_equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_nothing_is_found_among_nothing():
    numbers, scores = index(["", "..."]).search(["apple"], 2)
    assert (numbers == -1).all() and np.isneginf(scores).all()


@pytest.mark.parametrize("settings", [{"k1": -1}, {"b": 1.5}])
def test_settings_out_of_range(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        BM25.Config(**settings)
