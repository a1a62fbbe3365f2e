import numpy as np
import pytest

from dsi.queries.quality import bm25_ranks, measure

TEXTS = [
    "the heron catches silver fish",
    "the mill grinds barley",
    "the clock strikes seven",
    "the ferry crosses water",
]


def test_ranks_on_a_corpus_made_by_hand():
    queries = ["silver heron", "barley", "clock", "the zeppelin", "unknown", ""]
    ranks = bm25_ranks(queries, np.array([0, 1, 0, 3, 3, 3]), TEXTS, k=10)
    assert ranks[:3].tolist() == [1, 1, 0]  # "clock" does not match document 0 at all
    assert ranks[3] > 0  # every document has "the"
    assert ranks[4:].tolist() == [0, 0]


def test_ranks_are_by_score_and_cut_at_k():
    texts = ["heron heron fish", "heron mill mill mill", "clock tower", "fish fish"]
    both = bm25_ranks(["heron fish"] * 4, np.arange(4), texts, k=4)
    assert both[0] == 1 and both[2] == 0 and sorted(both[[1, 3]]) == [2, 3]
    first = bm25_ranks(["heron fish"] * 4, np.arange(4), texts, k=1)
    assert first.tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("texts", [["🐋 🎻", "🏔"], ["a b", "c"], ["...", "?!"]])
def test_texts_without_words_are_found_by_nothing(texts):
    queries = [*texts, "whale"]
    assert bm25_ranks(queries, np.array([0, 1, 0]), texts, k=10).tolist() == [0, 0, 0]
    result = measure([["whale"], [texts[1]]], texts)
    assert (result["queries"], result["bm25_at_1"], result["bm25_at_10"]) == (2, None, None)
    # beside a text with words they are measured as before
    assert measure([["whale"], [texts[1]]], ["a whale", texts[1]])["bm25_at_10"] == 0.5


def test_measure_by_hand():
    queries = [["silver heron", "silver boat boat"], ["barley"], [], ["clock"]]
    result = measure(queries, TEXTS)
    assert result["queries"] == 4 and result["queries_per_document"] == 1.0
    assert result["mean_words"] == pytest.approx((2 + 3 + 1 + 1) / 4)
    assert result["bm25_at_1"] == result["bm25_at_10"] == 0.75  # "clock" was written for the ferry
    assert result["distinct_1"] == pytest.approx((3 / 5 + 1 + 1) / 3)
    assert result["distinct_2"] == pytest.approx(1.0)  # 3 different pairs of 3; one document counts
    assert result["copied"] == pytest.approx(4 / 7)  # silver heron silver barley; boat boat clock
    assert len(result["examples"]) == 4
    by_text = {e["document"]: e["queries"] for e in result["examples"]}
    assert by_text == dict(zip(TEXTS, queries, strict=True))


def test_common_words_are_no_content():
    texts = [f"mill number{i} the" for i in range(40)]  # "mill" is everywhere, "the" a stop word
    result = measure([["the mill number3"]], texts, rows=[3])
    assert result["copied"] == 1.0
    assert measure([["the mill number3"]], texts, rows=[4])["copied"] == 0.0
    assert measure([["the mill"]], texts, rows=[4])["copied"] is None


def test_rows_samples_and_examples_are_seeded():
    texts = [f"word{i} other{i % 7}" for i in range(50)]
    queries = [[f"word{i}", f"other{i % 7}"] for i in range(50)]
    first = measure(queries, texts, sample=20, examples=5, seed=3)
    assert first == measure(queries, texts, sample=20, examples=5, seed=3)
    assert len(first["examples"]) == 5 and first["queries"] == 100
    assert first["examples"] != measure(queries, texts, examples=5, seed=4)["examples"]
    moved = measure(queries[10:12], texts, rows=[10, 11])
    assert moved["bm25_at_10"] == 1.0 and moved["copied"] == 1.0


def test_nothing_to_measure():
    result = measure([[], []], TEXTS[:2])
    assert result["queries"] == 0 and result["bm25_at_1"] is None
    assert result["copied"] is None and result["distinct_1"] is None
