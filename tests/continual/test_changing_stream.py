"""Whole runs on a stream in which documents go and change, to the bytes on disk.

The stream is CHANGES of tests/continual/conftest.py: stage 1 removes d01 and d05 and gives d02 a
new text, stage 2 only removes d03, stage 3 removes d18 and gives d02 and d19 new texts.
"""

import json
import shutil

import numpy as np
import pytest
import torch

from continual import runs
from continual.config.loading import load_config
from continual.run.directory import stage_folder
from continual.run.material import prepare
from continual.update.update import Update
from dsi.errors import UserError
from dsi.index import SearchIndex
from dsi.search.trie import Trie
from tests.continual.test_resume import interrupt, resume, timeless

GONE = [set(), {"d01", "d05"}, {"d01", "d05", "d03"}, {"d01", "d05", "d03", "d18"}]
LEFT = [18, 22, 21, 26]
REPLAY = ("replay.name=generative", "replay.ratio=1", "replay.queries_per_document=2")
METHODS = {
    "cl_seen": (),
    "cl_new": ("method=cl_new",),
    "replay": (*REPLAY, "replay.stored_queries=0.3", "evaluation.events_every=3"),
    "naive": ("docids=naive", "docids.base=4", *REPLAY),
    "scratch": ("method=scratch", "training.stages=all"),
    "members": (
        "parameters=lora",
        "parameters.r=2",
        "regularizer=ewc",
        "regularizer.samples=9",
        "merging=soup",
        "replay=dark",
        "replay.ratio=1",
        "starts=random",
    ),
    "solved": ("parameters=incremental_rows",),
}


@pytest.fixture(params=METHODS)
def run(request, lab, changing):
    return lab.kept(*changing, *METHODS[request.param])


def test_what_is_removed_is_nowhere_from_its_stage_on(lab, run):
    for stage, gone in enumerate(GONE):
        for o in range(stage + 1):
            lines = (stage_folder(run, stage) / f"run.D{o}.trec").read_text().splitlines()
            found = {line.split()[2] for line in lines}
            assert found.isdisjoint(gone), (stage, o)
            assert bool(found) == (o != 2)
        for line in lab.per_query(run, stage):
            assert gone.isdisjoint(line["gold"]) and gone.isdisjoint(line["top"])
            assert line["gold"], "a query without an answer is not asked"
    for stage in (0, 1, 3):
        path = stage_folder(run, stage) / "pseudo_queries.jsonl"
        for line in path.read_text("utf-8").splitlines() if path.exists() else []:
            assert json.loads(line)["document"] not in GONE[stage]


def test_the_matrix_is_over_what_is_there(lab, run):
    """Cells from the per-query lists, and the averages of one row worked out again."""
    matrix = lab.matrix(run)
    assert matrix["num_queries"] == [18, 7, 0, 6] and matrix["num_documents"] == [18, 6, 0, 6]
    assert matrix["num_queries_at"][3] == [15, 5, 0, 6]
    assert matrix["num_documents_at"][2] == [15, 6, 0, None]
    config = load_config(run / "config.yaml", [f"output={run.parent}"])
    later = [8, 0, 8] if config.parameters.build().makes_updates else [0, 0, 0]
    assert matrix["num_updates"] == ([10, 18, 26, 34] if config.training.restart else [10, *later])
    P = matrix["metrics"]["hits@10"]
    for stage in range(4):
        lines = lab.per_query(run, stage)
        for o in range(stage + 1):
            own = [0 < line["rank"] <= 10 for line in lines if line["corpus"] == f"D{o}"]
            assert len(own) == matrix["num_queries_at"][stage][o]
            assert P[stage][o] == (pytest.approx(np.mean(own)) if own else None)
    assert P[3][2] is None and matrix["metrics"]["indexing_accuracy"][3][2] is None
    assert matrix["average_performance"]["hits@10"][3] == pytest.approx(
        (P[3][0] + P[3][1] + P[3][3]) / 3
    )
    drops = [max(P[0][0], P[1][0], P[2][0]) - P[3][0], max(P[1][1], P[2][1]) - P[3][1]]
    assert matrix["forgetting"]["hits@10"][3] == pytest.approx(sum(drops) / 2)
    assert matrix["learning_performance"]["hits@10"][3] == pytest.approx((P[1][1] + P[3][3]) / 2)


def test_a_row_is_computed_again_from_the_files(lab, run):
    for stage in (1, 2, 3):
        lines = lab.call(runs.evaluate, run, stage)
        for o, line in enumerate(lines[1 : stage + 2]):
            written = [P[stage][o] for P in lab.matrix(run)["metrics"].values()]
            values = [round(100 * value, 2) for value in written if value is not None]
            assert [float(cell) for cell in line.split()[1:]] == values


def test_an_index_has_what_is_there_in_its_stage_with_its_texts(lab, changing, run):
    table = prepare(lab.config(*changing)).stream.parts[0].corpus.documents.to_pylist()
    texts = {row["id"]: row["text"] for row in table}
    new = [{}, {"d02": "t0"}, {"d02": "t0"}, {"d02": "t1", "d19": "t2"}]
    for stage, gone in enumerate(GONE):
        index = SearchIndex.load(stage_folder(run, stage))
        there = sorted({f"d{n:02d}" for n in range([18, 24, 24, 30][stage])} - gone)
        assert index.document_ids == there
        for line in lab.per_query(run, stage)[:3]:
            found = index.search(line["text"], LEFT[stage])
            assert sorted(result.document_id for result in found) == there
            for result in found:
                row = new[stage].get(result.document_id, result.document_id)
                assert result.text == texts[row]
            # the same as the evaluation of the stage found
            ten = index.search(line["text"], 10)  # beams are as many as results
            assert [result.document_id for result in ten] == line["top"][:10]


@pytest.mark.parametrize("method", ["cl_seen", "replay"])
def test_rows_of_removed_documents_leave_the_weights(lab, changing, method):
    run = lab.kept(*changing, *METHODS[method])
    rows = [lab.weights(run, stage)["docids.rows"] for stage in range(4)]
    assert [len(part) for part in rows] == LEFT
    # a stage that only removes changes nothing else: 22 documents of stage 1 without d03
    before, after = lab.weights(run, 1), lab.weights(run, 2)
    stream = prepare(lab.config(*changing)).stream
    stays = np.flatnonzero(stream.members(1) != 3)
    assert torch.equal(after.pop("docids.rows"), before.pop("docids.rows")[stays])
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_paths_of_removed_docids_leave_the_trie(lab, changing):
    run = lab.kept(*changing, *METHODS["naive"])
    docids = dict(
        line.split("\t")
        for n in range(4)
        for line in (run / f"docids/D{n}.tsv").read_text().splitlines()
    )
    assert len(docids) == 30, "what was assigned at arrival stays in the files"
    for stage, gone in enumerate(GONE):
        trie = Trie.load(stage_folder(run, stage) / "trie")
        assert len(trie) == LEFT[stage]
        for document, docid in list(docids.items())[: [18, 24, 24, 30][stage]]:
            found = trie.find([[int(code) for code in docid.split("-")]]).tolist()
            # the documents of a trie are the lines of the stage's docids.tsv
            there = sorted({*list(docids)[: [18, 24, 24, 30][stage]]} - gone)
            assert found == [-1 if document in gone else there.index(document)]


def test_replaced_documents_begin_anew_and_removed_ones_end(lab, changing):
    run = lab.kept(*changing, *METHODS["replay"])
    events = json.loads((run / "forgetting_events.json").read_text())
    rows = dict(zip(events["documents"]["id"], range(30), strict=True))
    # stages end after 10, 18, 18 and 26 updates; d02 and d19 have had their texts since 18
    for document in ("d02", "d19"):
        first = events["documents"]["first_learnt"][rows[document]]
        assert first is None or first > 18
    assert events["summary"]["num_documents"] == 30


@pytest.mark.parametrize("method", ["replay", "naive"])
@pytest.mark.parametrize("call", [14, 22])
def test_a_run_that_was_stopped_ends_with_the_same_bytes(lab, changing, tmp_path, method, call):
    settings = (*changing, *METHODS[method], "checkpoint.every=3")
    whole = lab.kept(*settings)
    run = interrupt(lab, tmp_path, Update, "take", call, settings=settings)
    resume(lab, run)
    assert timeless(run) == timeless(whole)


@pytest.fixture
def finished(lab, tmp_path):
    """A run on the plain corpus, and a folder that has d02 and d20 again and one new document."""
    run = shutil.copytree(lab.kept(*METHODS["replay"]), tmp_path / "moved")
    folder = tmp_path / "more"
    folder.mkdir()
    words = ["another text of the second", "and of the twentieth", "a new one"]
    rows = zip(("d02", "d20", "new"), words, strict=True)
    lines = (json.dumps({"_id": key, "text": text}) + "\n" for key, text in rows)
    (folder / "corpus.jsonl").write_text("".join(lines))
    return run, folder


def test_dsi_add_removes_and_replaces(lab, finished):
    run, folder = finished
    before = lab.weights(run, 2)["docids.rows"]
    lab.call(runs.add, run, None, remove={"d03": "ids:1", "d29": "ids:2"})
    assert lab.matrix(run)["num_updates"] == [10, 8, 8, 0]
    assert torch.equal(
        lab.weights(run, 3)["docids.rows"], before[[n for n in range(30) if n not in (3, 29)]]
    )
    with pytest.raises(UserError, match=r"'d02' is in corpus 'corpus' already.*--replace"):
        lab.call(runs.add, run, str(folder))
    lab.call(runs.add, run, str(folder), remove={"d04": "ids:1"}, replace=True)
    assert json.loads((run / "added.json").read_text()) == [
        {"remove": ["d03", "d29"]},
        {
            "corpus": str(folder),
            "remove": ["d04"],
            "replace": ["d02", "d20"],
            "content_hash": json.loads((run / "added.json").read_text())[1]["content_hash"],
        },
    ]
    index = json.loads((run / "stages/04/index.json").read_text())
    assert len(index["corpora"]) == len(index["part_hashes"]) == 2
    assert index["new_texts"] == {"d02": [1, "d02"], "d20": [1, "d20"]}
    (found,) = (r for r in SearchIndex.load(run).search("new", 50) if r.document_id == "d20")
    assert found.text == "and of the twentieth"
    (found,) = (
        r for r in SearchIndex.load(run / "stages/03").search("new", 50) if r.document_id == "d20"
    )
    assert found.text != "and of the twentieth"
    matrix = lab.matrix(run)
    assert matrix["num_documents"] == [18, 6, 6, 0, 1]
    assert matrix["num_documents_at"][4] == [16, 6, 5, 0, 1]
    assert len(lab.weights(run, 4)["docids.rows"]) == 28
    written = [
        json.loads(line)
        for line in (run / "stages/04/pseudo_queries.jsonl").read_text().splitlines()
    ]
    assert [line["document"] for line in written] == ["d02", "d20", "new"]
    assert "another" in " ".join(written[0]["queries"])
    # a document of the added corpus is removed again, and the next stage still knows it all
    lab.call(runs.add, run, None, remove={"new": "ids:1"})
    assert lab.matrix(run)["num_documents_at"][5] == [16, 6, 5, 0, 0, 0]
    assert lab.matrix(run)["metrics"]["indexing_accuracy"][5][4] is None
    lab.call(runs.evaluate, run, 5)


def test_an_addition_that_was_cut_off_goes_on(lab, finished, tmp_path):
    run, folder = finished
    whole = shutil.copytree(run, tmp_path / "whole" / "moved")
    remove = {"d03": "ids:1"}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(Update, "take", lambda *_: (_ for _ in ()).throw(RuntimeError))
        lab.call(runs.add, run, str(folder), remove=remove, replace=True)
    lab.call(runs.add, whole, str(folder), remove=remove, replace=True)
    config = load_config(run / "config.yaml", [f"output={run.parent}", f"name={run.name}"])
    lab.call(runs.train, config, resume=True)
    assert lab.results(run) == lab.results(whole)
