"""A baseline's run: the same matrix and the same files as any other, without a model."""

import json

import pytest
from accelerate.state import AcceleratorState

from continual import cli, runs
from continual.config.loading import load_config
from continual.stream.stream import Stream
from dsi.baselines.bm25 import BM25
from dsi.errors import UserError
from dsi.queries.quality import bm25_ranks


@pytest.fixture(scope="module")
def run(lab):
    return lab.kept("method=bm25")


def test_it_gives_a_run_like_any_other(lab, run):
    model = lab.kept()
    ours = {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()}
    theirs = {p.relative_to(model).as_posix() for p in model.rglob("*") if p.is_file()}
    only = {p for p in theirs - ours if not p.startswith(("docids/", "checkpoints/", "figures/"))}
    of_a_model = ("model/", "tokenizer/", "docids.tsv", "trie/", "index.json")
    assert {p for p in only if not any(part in p for part in of_a_model)} == {
        "forgetting_events.json"
    }
    assert ours <= theirs
    matrix, other = lab.matrix(run), lab.matrix(model)
    assert matrix.keys() == other.keys()
    for key in ("corpora", "num_queries", "num_documents"):
        assert matrix[key] == other[key]
    assert matrix["num_updates"] == [0, 0, 0]
    assert matrix["metrics"]["indexing_accuracy"][2] == [None] * 3
    lines = [line for line in lab.metrics(model) if "loss" not in line]
    assert [sorted(line) for line in lab.metrics(run)] == [sorted(line) for line in lines]


def test_the_matrix_is_that_of_bm25(lab, run):
    from continual.run.material import prepare

    stream = prepare(lab.config()).stream
    texts = list(stream.texts(0, 30))
    queries = stream.judged_queries("test", 2)
    ranks = bm25_ranks(queries.texts, [own[0] for own in queries.gold], texts, 10)
    assert lab.matrix(run)["metrics"]["hits@10"][2][2] == pytest.approx((ranks > 0).mean())
    assert lab.matrix(run)["metrics"]["hits@1"][2][2] == pytest.approx((ranks == 1).mean())


def test_it_is_the_same_again_and_on_resume(lab, run, tmp_path):
    again = lab.train("method=bm25", output=tmp_path)
    names = ("matrix.json", "metrics.jsonl", "stages/02/run.D1.trec", "stages/02/per_query.jsonl")
    before = {name: (again / name).read_bytes() for name in names}
    assert before == {name: (run / name).read_bytes() for name in names}
    (again / "matrix.json").unlink()
    config = load_config(again / "config.yaml", [f"output={tmp_path}"])
    lab.call(runs.train, config, resume=True)
    assert before == {name: (again / name).read_bytes() for name in names}


def test_a_random_baseline_has_the_runs_seed(lab, tmp_path):
    def found(name, *settings):
        run = lab.train(
            "baseline=projection", "baseline.width=4", *settings, output=tmp_path / name
        )
        return (run / "stages/02/run.D1.trec").read_text()

    assert found("a") == found("b") != found("c", "seed=1")


def test_corpora_are_added_and_documents_removed(lab, tmp_path):
    run = lab.train("method=bm25", output=tmp_path)
    later = lab.write_stream(tmp_path / "later", (4,), first=60)
    lab.call(runs.add, run, str(later), remove={"d00": "ids:1"})
    matrix = lab.matrix(run)
    assert matrix["num_documents"] == [18, 6, 6, 4]
    found = {
        line.split()[2]
        for path in (run / "stages" / "03").glob("*.trec")
        for line in path.read_text().splitlines()
    }
    assert "d60" in found and "d00" not in found
    with pytest.raises(UserError, match="a baseline has no model"):
        runs.evaluate(run)


def test_what_needs_a_model_says_so(run, capsys):
    AcceleratorState._reset_state(True)
    assert cli.main(["search", str(run), "word"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "a baseline never has one" in line
    assert json.loads((run / "stages/02/decoding.json").read_text())["baseline"] == "bm25"


def test_a_baseline_sees_the_documents_of_its_stage_and_no_train_query(lab, tmp_path, monkeypatch):
    seen = []
    add = BM25.add

    def noted(self, documents, texts):
        seen.append(documents.tolist())
        add(self, documents, texts)

    monkeypatch.setattr(BM25, "add", noted)
    monkeypatch.setattr(Stream, "train_queries", lambda *arguments: 1 / 0)
    lab.train("method=bm25", output=tmp_path)
    assert seen == [[*range(18)], [*range(18, 24)], [*range(24, 30)]]
