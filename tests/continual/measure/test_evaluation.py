"""A row of the matrix against ir_measures, against itself, and without a trace."""

import random
from functools import partial

import numpy as np
import pytest
import torch

from continual import runs
from continual.measure import performance
from continual.measure.evaluation import METRICS, Evaluator
from continual.run.directory import stage_folder
from continual.run.docids import codes_at
from continual.run.material import prepare
from dsi.docids import NewDocuments
from dsi.index import SearchIndex
from dsi.model.dsi_model import DSIModel, from_scratch
from dsi.search.beam_search import Found
from dsi.search.ranker import Ranker
from dsi.text.tokens import Tokens

STAGE = 2
NO_PROMPT = np.zeros(0, np.int32)


@pytest.fixture(scope="module")
def stream(lab):
    run = lab.kept()
    return prepare(lab.config(), run / "tokenizer").stream


@pytest.fixture
def model(lab):
    return DSIModel.from_pretrained(stage_folder(lab.kept(), STAGE) / "model")


def evaluator(lab, model, stream, accelerator, *settings):
    codes = np.arange(stream.count(STAGE))[:, None]
    return Evaluator(lab.config(*settings), stream, model, codes, accelerator)


@pytest.fixture
def row(lab, stream, accelerator):
    """Makes row STAGE of the matrix, recomputed with other settings."""

    def make(model, *settings):
        ours = evaluator(lab, model, stream, accelerator, *settings)
        queries = [stream.judged_queries("test", corpus) for corpus in range(STAGE + 1)]
        return ours.evaluate(STAGE, queries, ours.documents_found(STAGE))[0]

    return make


@pytest.mark.parametrize("stage", range(STAGE + 1))
def test_metrics_are_those_of_ir_measures(lab, stage):
    ir_measures = pytest.importorskip("ir_measures")
    run, matrix = lab.kept(), lab.matrix(lab.kept())
    qrels = (lab.corpus / "qrels" / "test.tsv").read_text().splitlines()[1:]
    judged = [line.split("\t") for line in qrels]
    success, reciprocal = ir_measures.Success, ir_measures.RR
    measures = {"hits@1": success @ 1, "hits@10": success @ 10, "mrr@10": reciprocal @ 10}
    for o in range(stage + 1):
        lines = (run / "docids" / f"D{o}.tsv").read_text().splitlines()
        ours = {line.split("\t")[0] for line in lines}
        of_corpus: dict[str, dict[str, int]] = {}
        for query, document, _ in judged:
            if document in ours:
                of_corpus.setdefault(query, {})[document] = 1
        found = ir_measures.calc_aggregate(
            measures.values(),
            of_corpus,
            list(ir_measures.read_trec_run(str(stage_folder(run, stage) / f"run.D{o}.trec"))),
        )
        for metric, measure in measures.items():
            value = matrix["metrics"][metric][stage][o]
            assert value == pytest.approx(found[measure], abs=1e-12)
        assert matrix["num_queries"][o] == len(of_corpus)


@pytest.mark.parametrize("stage", range(STAGE + 1))
def test_the_per_query_file_agrees_with_runs_and_matrix(lab, stage):
    run, matrix = lab.kept(), lab.matrix(lab.kept())
    lines = lab.per_query(run, stage)
    for o in range(stage + 1):
        own = [line for line in lines if line["corpus"] == f"D{o}"]
        trec = (stage_folder(run, stage) / f"run.D{o}.trec").read_text().splitlines()
        top: dict[str, list[str]] = {}
        for fields in map(str.split, trec):
            top.setdefault(fields[0], []).append(fields[2])
        assert {line["query"]: line["top"] for line in own} == top
        for line in own:
            places = [i + 1 for i, key in enumerate(line["top"]) if key in line["gold"]]
            assert line["rank"] == (places[0] if places else 0)
            assert lab.marker("test", o) in line["text"] or len(line["gold"]) < 3
        ranks = np.array([line["rank"] for line in own])
        row_ = {metric: matrix["metrics"][metric][stage][o] for metric in METRICS}
        assert row_["hits@1"] == pytest.approx(np.mean(ranks == 1))
        assert row_["hits@10"] == pytest.approx(np.mean(ranks > 0))
        assert row_["mrr@10"] == pytest.approx(np.mean([1 / r if r else 0 for r in ranks]))
    shared = [line for line in lines if line["query"] == "test-d00-0"]
    gold = {line["corpus"]: line["gold"] for line in shared}
    assert gold["D0"] == ["d00", "d01"]  # each corpus counts its own answers
    assert gold.get("D1", ["d18"]) == ["d18"]


def test_averages_are_those_of_performance(lab):
    matrix = lab.matrix(lab.kept())
    for metric, P in matrix["metrics"].items():
        assert [len(cells) for cells in P] == [3, 3, 3]
        assert all(P[n][o] is None for n in range(3) for o in range(n + 1, 3))
        assert matrix["average_performance"][metric] == performance.average_performance(P)
        assert matrix["forgetting"][metric] == performance.forgetting(P)
        assert matrix["learning_performance"][metric] == performance.learning_performance(P)


@pytest.mark.parametrize("batch_size", [1, 5, 7, 256])
def test_the_last_batch_may_be_odd(model, row, batch_size):
    expected = row(model)
    results = row(model, f"evaluation.batch_size={batch_size}")
    for one, other in zip(results, expected, strict=True):
        assert one.metrics == other.metrics
        assert np.array_equal(one.ranks, other.ranks)
        np.testing.assert_allclose(one.scores_QK, other.scores_QK, rtol=1e-4, atol=1e-4)


def test_it_recomputes_what_the_run_wrote(lab, model, row):
    for o, result in enumerate(row(model)):
        written = lab.matrix(lab.kept())["metrics"]
        assert result.metrics == {metric: written[metric][STAGE][o] for metric in METRICS}
        assert np.all(np.diff(result.scores_QK, axis=1) <= 0)
        assert np.all(result.scores_QK <= 0)  # log-probabilities


@pytest.mark.parametrize("docids", ["atomic", "naive"])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_search_evaluation_and_runs_of_a_stage_agree(lab, precision, docids):
    run = lab.kept(f"training.precision={precision}", f"docids={docids}")
    index, matrix = SearchIndex.load(run), lab.matrix(run)
    for o in range(STAGE + 1):
        written: dict[str, list[list[str]]] = {}
        for line in (stage_folder(run, STAGE) / f"run.D{o}.trec").read_text().splitlines():
            written.setdefault(line.split()[0], []).append(line.split())
        texts = {line["query"]: line["text"] for line in lab.per_query(run, STAGE)}
        found = index.search([texts[query] for query in written], 10)
        for results, rows in zip(found, written.values(), strict=True):
            assert [result.document_id for result in results] == [row[2] for row in rows]
            scores = [float(row[4]) for row in rows]
            assert [result.score for result in results] == pytest.approx(scores, rel=1e-4)
    lines = lab.call(runs.evaluate, run)
    shown = [[float(cell) for cell in line.split()[1:]] for line in lines[1 : STAGE + 2]]
    for o, cells in enumerate(shown):
        whole = [100 * matrix["metrics"][metric][STAGE][o] for metric in METRICS]
        assert cells == pytest.approx(whole, abs=0.006)


def test_scores_are_log_probabilities_over_all_documents(model, stream, row):
    count = stream.count(STAGE)
    for result in row(model, f"evaluation.depth={count}", f"evaluation.beams={count}"):
        total = np.exp(result.scores_QK).sum(1)
        np.testing.assert_allclose(total, np.ones_like(total), rtol=1e-4)
        assert all(sorted(numbers) == list(range(count)) for numbers in result.top_QK.tolist())


def test_it_draws_no_random_number_and_leaves_the_mode(model, row):
    model.train()
    model.encoder.dropout.p = 0.5
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    first = row(model)
    assert random.getstate() == states[0]
    assert str(np.random.get_state()) == str(states[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
    assert model.training
    second = row(model.eval())
    assert not model.training
    assert all(np.array_equal(a.scores_QK, b.scores_QK) for a, b in zip(first, second, strict=True))


def test_an_index_that_is_right_is_measured_as_right(lab, model, stream, accelerator):
    """A search that answers with the first document that begins alike."""
    count = stream.count(STAGE)
    firsts = np.array([stream.tokens[i][0] for i in range(count)])
    ours = evaluator(lab, model, stream, accelerator, "evaluation.batch_size=4")

    class Oracle:
        inference = ours.ranker.inference

        @staticmethod
        def rank(input_ids, attention_mask, k, beams, length_penalty):
            assert (k, beams, length_penalty) == (1, 1, 0)  # greedy
            best = [[int(np.flatnonzero(firsts == first)[0])] for first in input_ids[:, 0]]
            return Found(torch.tensor(best), torch.zeros(len(best), 1))

    ours.ranker = Oracle()  # type: ignore[assignment]
    found = ours.documents_found(STAGE)
    expected = [i == int(np.flatnonzero(firsts == firsts[i])[0]) for i in range(count)]
    assert found.tolist() == expected and any(expected)


def test_a_length_penalty_does_not_change_what_greedy_search_finds(
    lab, model, stream, accelerator, monkeypatch
):
    """Docids 0, 2, 4, ... have one code; 1 0, 3 0, 5 0, ... two, and the penalty lifts these."""
    count, shape = stream.count(STAGE), {"vocab_size": len(stream.tokenizer), "num_layers": 1}
    first, second = np.arange(count), np.where(np.arange(count) % 2, 0, -1)
    strings = from_scratch(0, code_sizes=[count, 1], num_decoder_layers=1, **shape).eval()
    ours, found = evaluator(lab, model, stream, accelerator), []
    rank = ours.rank

    def noted(tokens, prompt, search):
        found.append(rank(tokens, prompt, search).numbers_QK)
        with_penalty = partial(ours.ranker.rank, k=1, beams=1)
        found.append(rank(tokens, prompt, with_penalty).numbers_QK)
        return rank(tokens, prompt, search)

    monkeypatch.setattr(ours, "rank", noted)
    for penalty in (0.0, 3.0):
        codes = np.stack([first, second], 1).astype(np.int32)
        ours.ranker = Ranker(strings, codes, length_penalty=penalty)
        ours.documents_found(STAGE)
    plain, same, greedy, changed = found
    assert np.array_equal(plain, same) and np.array_equal(plain, greedy)
    assert not np.array_equal(plain, changed)


def test_a_prompt_is_read_in_front(lab, model, stream, accelerator):
    tokens = stream.judged_queries("test", 0).tokens
    prompt = stream.tokens[3][:2].astype(np.int32)
    joined = [[*prompt.tolist(), *tokens[i].tolist()] for i in range(len(tokens))]
    ours = evaluator(lab, model, stream, accelerator, "evaluation.batch_size=8")
    search = partial(ours.ranker.rank, k=5)
    one = ours.rank(tokens, prompt, search)
    other = ours.rank(Tokens.from_lists(joined), NO_PROMPT, search)
    assert np.array_equal(one.numbers_QK, other.numbers_QK)
    assert np.array_equal(one.scores_QK, other.scores_QK)


def test_speed_and_validity(lab, model, stream, accelerator):
    ours = evaluator(lab, model, stream, accelerator, "evaluation.unconstrained=true")
    queries = [stream.judged_queries("test", corpus) for corpus in range(STAGE + 1)]
    _, how = ours.evaluate(STAGE, queries, ours.documents_found(STAGE))
    for part in (how, how["unconstrained"]):
        assert part["queries"] == sum(map(len, queries))
        assert part["queries_per_second"] > 0
        assert part["invalid_rate"] == part["repeat_rate"] == 0.0
    some = Found(torch.tensor([[1, -1, 1], [2, -1, -1]]), torch.tensor([[0.0] * 3] * 2))
    some.scores[1, 2] = -torch.inf  # a missing result is not an invalid one
    tokens = Tokens.from_lists([[5], [6]])
    ranking = ours.rank(tokens, NO_PROMPT, lambda ids, mask: some)
    assert ranking.speed_and_validity()["invalid_rate"] == pytest.approx(2 / 5)
    assert ranking.speed_and_validity()["repeat_rate"] == pytest.approx(1 / 5)


@pytest.mark.parametrize("docids", ["atomic", "string"])
def test_two_searches_read_every_query_once(lab, model, stream, accelerator, docids, monkeypatch):
    ours = evaluator(lab, model, stream, accelerator, "evaluation.batch_size=4")
    if docids == "string":
        count = stream.count(STAGE)
        codes = np.stack([np.arange(count) // 10, np.arange(count) % 10], 1).astype(np.int32)
        torch.manual_seed(0)
        strings = from_scratch(
            0, vocab_size=len(stream.tokenizer), code_sizes=[count // 10 + 1, 10]
        )
        ours.ranker = Ranker(strings.eval(), codes)
    tokens = stream.judged_queries("test", 0).tokens
    searches = [partial(ours.ranker.rank, k=3), partial(ours.ranker.unconstrained, k=3)]
    apart = [ours.rank(tokens, NO_PROMPT, search) for search in searches]
    read, encode = [], ours.ranker.inference.encode
    monkeypatch.setattr(
        ours.ranker.inference,
        "encode",
        lambda ids, mask: read.append(len(ids)) or encode(ids, mask),
    )
    together = ours.rank_each(tokens, NO_PROMPT, searches)
    assert sum(read) == len(tokens)
    for one, other in zip(together, apart, strict=True):
        assert np.array_equal(one.numbers_QK, other.numbers_QK)
        assert np.array_equal(one.scores_QK, other.scores_QK)


def test_a_corpus_without_queries_has_no_retrieval_metric(lab, model, stream, accelerator):
    queries = [stream.judged_queries("test", corpus) for corpus in range(STAGE + 1)]
    empty = stream.judged_queries("test", 0)
    empty = type(empty)([], [], Tokens.from_lists([]), [])
    found = np.ones(stream.count(STAGE), bool)
    ours = evaluator(lab, model, stream, accelerator)
    full, _ = ours.evaluate(STAGE, queries, found)
    results, _ = ours.evaluate(STAGE, [queries[0], empty, queries[2]], found)
    assert results[1].metrics == {
        "hits@1": None,
        "hits@10": None,
        "mrr@10": None,
        "indexing_accuracy": 1.0,
    }
    assert results[0].metrics == full[0].metrics and results[2].metrics == full[2].metrics
    nothing, how = ours.evaluate(STAGE, [empty] * 3, found)
    assert all(result.metrics["hits@1"] is None for result in nothing)
    assert how["queries_per_second"] is None


@pytest.mark.parametrize("docids", ["atomic", "naive"])
def test_only_what_is_there_is_found_and_counts(lab, changing, accelerator, docids):
    """Stage 3 of CHANGES in tests/continual/conftest.py, every cell worked out from the lists."""
    stage, gone = 3, {1, 3, 5, 18}
    config = lab.config(*changing, f"docids={docids}", "evaluation.depth=26", "evaluation.beams=26")
    stream, scheme = prepare(config).stream, config.docids.build()
    scheme.extend(NewDocuments(stream.count(stage)))
    codes = codes_at(scheme, stream, stage)
    sizes = [26] if docids == "atomic" else scheme.code_sizes
    shape = {"vocab_size": len(stream.tokenizer), "d_model": 16, "d_kv": 8, "d_ff": 16}
    ours = from_scratch(1, **shape, num_heads=2, num_layers=1, code_sizes=sizes)
    evaluator = Evaluator(config, stream, ours.eval(), codes, accelerator)
    found = evaluator.documents_found(stage)
    assert found.shape == (30,) and not found[sorted(gone)].any()
    every = [stream.judged_queries("test", corpus) for corpus in range(4)]
    results, how = evaluator.evaluate(stage, every, found)
    assert how["queries"] == sum(len(result.queries) for result in results) == 15 + 5 + 0 + 6
    assert [len(result.queries) for result in results] == [15, 5, 0, 6]
    for o, result in enumerate(results):
        for top, gold, rank in zip(result.top_QK, result.queries.gold, result.ranks, strict=True):
            assert sorted(top.tolist()) == stream.members(stage).tolist()
            place = min(top.tolist().index(number) for number in gold) + 1
            assert rank == place and gone.isdisjoint(gold.tolist())
        first, stop = stream.range(o)
        there = [n for n in range(first, stop) if n not in gone]
        share = found[there].mean() if there else None
        assert result.metrics["indexing_accuracy"] == share
        if o == 2:  # a stage that only removes
            assert set(result.metrics.values()) == {None}
            continue
        assert result.metrics["hits@10"] == pytest.approx(np.mean(result.ranks <= 10))
