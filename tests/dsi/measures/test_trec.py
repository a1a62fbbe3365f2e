import random

import numpy as np
import pytest

from dsi.errors import UserError
from dsi.measures.metrics import gold_ranks, hits, mrr
from dsi.measures.trec import decreasing_scores, write_run


def assert_strict(texts):
    """Strictly decreasing as decimals, and still so in the 32 bits of trec_eval."""
    assert (np.diff([float(text) for text in texts]) < 0).all()
    assert (np.diff(np.array([float(text) for text in texts], np.float32)) < 0).all()


def test_distinct_scores_are_written_as_they_are():
    assert decreasing_scores([1.5, 0.25, 0.0, -0.5]) == [
        "1.500000",
        "0.250000",
        "0.000000",
        "-0.500000",
    ]


def test_ties_become_one_step_smaller():
    assert decreasing_scores([0.5, 0.5, 0.5, 0.4]) == [
        "0.500000",
        "0.499999",
        "0.499998",
        "0.400000",
    ]
    assert decreasing_scores([0.0, 0.0]) == ["0.000000", "-0.000001"]


def test_a_broken_tie_pushes_its_close_followers():
    assert decreasing_scores([0.5, 0.5, 0.4999995]) == ["0.500000", "0.499999", "0.499998"]


@pytest.mark.parametrize("start", [0.0, 1e-9, 1.0, -1e-7, 25.123456, -310.5, 4095.999999, 1e7])
def test_long_ties_stay_strict_at_every_magnitude(start):
    texts = decreasing_scores([start] * 200)
    assert_strict(texts)
    assert float(texts[0]) == pytest.approx(start, abs=1e-6)


def test_random_scores_stay_strict_and_close():
    generator = random.Random(0)
    for scale in (1e-6, 1e-3, 1.0, 50.0):
        scores = sorted((generator.gauss(0, scale) for _ in range(300)), reverse=True)
        texts = decreasing_scores(scores)
        assert_strict(texts)
        np.testing.assert_allclose([float(text) for text in texts], scores, atol=1e-3)


@pytest.mark.parametrize("scores", [[1.0, 2.0], [float("nan")], [1.0, float("-inf")]])
def test_scores_that_are_no_ranking_are_refused(scores):
    with pytest.raises(ValueError, match="never increase"):
        decreasing_scores(scores)


def test_a_run_keeps_the_order_of_ties(tmp_path):
    path = tmp_path / "run.trec"
    documents = [["z", "a", "m"], ["é→日本", "b"]]
    write_run(path, ["q2", "q1"], documents, [[1.0, 1.0, 1.0], [2.5, -1.0]], "cl(U_n)")
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "q2 Q0 z 1 1.000000 cl(U_n)"
    assert lines[4] == "q1 Q0 b 2 -1.000000 cl(U_n)"
    assert [line.split()[2] for line in lines] == [d for row in documents for d in row]
    scores = [float(line.split()[4]) for line in lines]
    assert scores[0] > scores[1] > scores[2]


@pytest.mark.parametrize("bad", ["two words", "tab\tbed", "no\u00a0break", "", " lead", "end\n"])
def test_ids_with_whitespace_are_refused(tmp_path, bad):
    path = tmp_path / "out"
    with pytest.raises(UserError, match=r"out: document id .*rename"):
        write_run(path, ["q"], [[bad]], [[1.0]], "t")
    with pytest.raises(UserError, match=r"out: query id"):
        write_run(path, [bad], [["d"]], [[1.0]], "t")
    with pytest.raises(UserError, match=r"out: tag"):
        write_run(path, ["q"], [["d"]], [[1.0]], bad)


def test_inconsistent_arguments_are_refused(tmp_path):
    path = tmp_path / "run.trec"
    with pytest.raises(ValueError, match="'d' is repeated"):
        write_run(path, ["q"], [["d", "d"]], [[2.0, 1.0]], "t")
    with pytest.raises(ValueError, match="'q' is repeated"):
        write_run(path, ["q", "q"], [["d"], ["e"]], [[1.0], [1.0]], "t")
    with pytest.raises(ValueError, match="zip"):
        write_run(path, ["q"], [["d", "e"]], [[1.0]], "t")


def test_ir_measures_reads_the_files_and_agrees(tmp_path):
    """Coarse scores make many ties: tools would break them by id, the files must prevent that."""
    import ir_measures
    from ir_measures import RR, Success

    rng = np.random.default_rng(3)
    queries, k = 60, 10
    ranked = np.stack([rng.permutation(40)[:k] for _ in range(queries)])
    ranked[7, 4:] = -1
    ranked[8] = -1  # a query that found nothing leaves no line, and still counts as a miss
    scores = np.sort(rng.integers(0, 3, (queries, k)), axis=1)[:, ::-1] * 17.3
    gold = [rng.permutation(40)[:2] for _ in range(queries)]

    ids = [f"q{q}" for q in range(queries)]
    documents = [[f"d{d}" for d in row if d >= 0] for row in ranked]
    rows = [row[: len(found)].tolist() for row, found in zip(scores, documents, strict=True)]
    write_run(tmp_path / "run.trec", ids, documents, rows, "test")
    qrels = {query: {f"d{d}": 1 for d in wanted} for query, wanted in zip(ids, gold, strict=True)}
    ranks = gold_ranks(ranked, gold)
    theirs = ir_measures.calc_aggregate(
        [Success @ 1, Success @ 5, RR @ 10],
        qrels,
        ir_measures.read_trec_run(str(tmp_path / "run.trec")),
    )
    assert hits(ranks, 1) == pytest.approx(theirs[Success @ 1])
    assert hits(ranks, 5) == pytest.approx(theirs[Success @ 5])
    assert mrr(ranks, 10) == pytest.approx(theirs[RR @ 10])
