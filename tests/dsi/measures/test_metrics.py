import math

import numpy as np
import pytest

from dsi.measures.metrics import (
    gold_ranks,
    hits,
    mrr,
    reciprocal_ranks,
)


def random_case(seed, queries=40, k=12, documents=60):
    """Ranked lists without repetition and with empty places at the end, and gold documents."""
    rng = np.random.default_rng(seed)
    ranked = np.stack([rng.permutation(documents)[:k] for _ in range(queries)])
    for row in ranked[::3]:
        row[rng.integers(1, k) :] = -1
    gold = [rng.permutation(documents)[: rng.integers(1, 8)] for _ in range(queries)]
    return ranked, gold


def test_golden_values():
    ranks = np.array([1, 2, 0, 4, 11])
    assert hits(ranks, 1) == pytest.approx(1 / 5)
    assert hits(ranks, 10) == pytest.approx(3 / 5)
    assert hits(ranks, 11) == pytest.approx(4 / 5)
    assert mrr(ranks, 10) == pytest.approx((1 + 1 / 2 + 1 / 4) / 5)
    np.testing.assert_allclose(reciprocal_ranks(ranks, 3), [1, 0.5, 0, 0, 0])


def test_nothing_to_average_is_nan_and_not_zero():
    empty = np.zeros(0, np.int64)
    assert math.isnan(hits(empty, 1))
    assert math.isnan(mrr(empty, 10))


@pytest.mark.parametrize("function", [hits, mrr, reciprocal_ranks])
def test_k_below_one_is_refused(function):
    with pytest.raises(ValueError, match="k=0"):
        function(np.array([1]), 0)


def test_ranks_take_the_best_of_several_gold_documents():
    ranked = np.array([[7, 3, 9], [7, 3, -1], [1, 2, 3], [-1, -1, -1]])
    gold = [[9, 3], [8], [3], [1]]
    assert gold_ranks(ranked, gold).tolist() == [2, 0, 3, 0]


def test_empty_places_match_nothing():
    """Not even a gold document that is unknown to the index and thus has number -1."""
    assert gold_ranks(np.array([[5, -1]]), [[-1]]).tolist() == [0]


def test_ranks_of_degenerate_shapes():
    assert gold_ranks(np.zeros((0, 3), np.int64), []).tolist() == []
    assert gold_ranks(np.zeros((2, 0), np.int64), [[1], []]).tolist() == [0, 0]
    with pytest.raises(ValueError, match="3 queries"):
        gold_ranks(np.zeros((2, 4), np.int64), [[1], [2], [3]])


def test_ranks_agree_with_a_plain_loop(monkeypatch):
    ranked, gold = random_case(seed=1)
    expected = [
        min((place + 1 for place, document in enumerate(row) if document in set(wanted)), default=0)
        for row, wanted in zip(ranked.tolist(), gold, strict=True)
    ]
    assert gold_ranks(ranked, gold).tolist() == expected
    monkeypatch.setattr("dsi.measures.metrics._CHUNK", 7)  # one query's judgements in two chunks
    assert gold_ranks(ranked, gold).tolist() == expected


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_ir_measures(seed):
    import ir_measures
    from ir_measures import RR, Success

    ranked, gold = random_case(seed)
    run = {
        f"q{q}": {f"d{d}": -float(place) for place, d in enumerate(row) if d >= 0}
        for q, row in enumerate(ranked)
    }
    qrels = {f"q{q}": {f"d{d}": 1 for d in wanted} for q, wanted in enumerate(gold)}
    ranks = gold_ranks(ranked, gold)
    measures = [Success @ 1, Success @ 5, Success @ 10, RR @ 5, RR @ 10]
    theirs = ir_measures.calc_aggregate(measures, qrels, run)
    for k in (1, 5, 10):
        assert hits(ranks, k) == pytest.approx(theirs[Success @ k])
    for k in (5, 10):
        assert mrr(ranks, k) == pytest.approx(theirs[RR @ k])
    assert 0 < theirs[RR @ 10] < 1
