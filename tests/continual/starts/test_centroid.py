"""Rows at the mean state of pseudo-queries: worked out one query at a time, with numpy."""

import json
import shutil

import numpy as np
import pytest
import torch

from continual import runs, trainer
from continual.cli import main
from continual.run.directory import stage_folder
from continual.run.material import prepare
from continual.starts import centroid
from continual.starts.centroid import Centroid
from dsi.manifest import text_hash
from dsi.model.dsi_model import load_model
from dsi.queries.lexical import LexicalQueries
from dsi.search.forward import Inference
from dsi.seeding import derive
from tests.continual.test_resume import interrupt, resume

ROWS = "docids.rows"
START = ("starts=centroid", "starts.queries=4")
STILL = (*START, "training.updates_per_stage=0")  # a stage leaves what it began with


def by_hand(lab, run, config, stage):
    """{document number: its row} of what is new in a stage, and how many queries each had."""
    stream, settings = prepare(config).stream, config.starts.settings
    encode = stream.tokenizer.backend_tokenizer.encode
    members, changed = stream.members(stage), stream.changed(stage)
    before = lab.weights(run, stage - 1)[ROWS].double().numpy()
    is_old = np.isin(stream.members(stage - 1), np.setdiff1d(members, changed))
    norm = settings.scale * np.mean(np.sqrt(np.sum(before[is_old] ** 2, axis=1)))
    writer = LexicalQueries().fit(stream.texts_at(members, stage))
    inference = Inference(load_model(stage_folder(run, stage - 1) / "model"))
    rows, counts = {}, {}
    for document in np.intersect1d(changed, members).tolist():
        (text,) = stream.texts_at(np.array([document]), stage)
        seed = derive(config.seed, "centroid queries")
        (queries,) = writer.generate([text], [text_hash(text)], settings.queries, seed)
        counts[document] = len(queries)
        states = []
        for query in queries or [text]:
            ids = encode(query).ids or [stream.tokenizer.unk_token_id]
            ids = torch.tensor([encode(config.prompts.retrieval).ids + ids])
            states.append(inference.query_states(ids, torch.ones_like(ids))[0].double().numpy())
        mean = np.mean(states, axis=0)
        rows[document] = norm * mean / np.sqrt(np.sum(mean**2))
    return rows, counts


def check(lab, *settings, stages=(1, 2)):
    """New rows are those worked out, all others are what they were, bit for bit."""
    run, config = lab.kept(*settings), lab.config(*settings)
    stream, all_counts = prepare(config).stream, {}
    for stage in stages:
        rows, counts = by_hand(lab, run, config, stage)
        assert rows
        before, after = lab.weights(run, stage - 1), lab.weights(run, stage)
        place = {document: i for i, document in enumerate(stream.members(stage - 1).tolist())}
        for row, document in zip(after[ROWS], stream.members(stage).tolist(), strict=True):
            if document in rows:
                np.testing.assert_allclose(row, rows[document], rtol=1e-4, atol=1e-6)
            else:
                assert torch.equal(row, before[ROWS][place[document]])
        assert all(torch.equal(value, before[n]) for n, value in after.items() if n != ROWS)
        all_counts |= counts
    return all_counts


def test_a_new_row_is_the_scaled_mean_state_of_its_queries(lab):
    assert set(check(lab, *STILL).values()) == {4}


def test_its_length_is_a_share_of_the_mean_old_one(lab):
    check(lab, *STILL, "starts.scale=1.5")
    run = lab.kept(*STILL, "starts.scale=1.5")
    lengths = lab.weights(run, 1)[ROWS].norm(dim=1)
    torch.testing.assert_close(lengths[18:], (1.5 * lengths[:18].mean()).expand(6))


def test_queries_are_read_behind_their_prompt(lab):
    prompts = ("prompts.retrieval=the quick", "prompts.indexing=fox")
    check(lab, *STILL, *prompts)
    plain, prompted = (lab.weights(lab.kept(*STILL, *p), 1)[ROWS][18:] for p in ((), prompts))
    assert not torch.allclose(plain, prompted, atol=1e-3)


def test_documents_that_go_and_change(lab, changing):
    """Stage 1 replaces d02, stage 3 d02 and d19, and both bring six documents."""
    counts = check(lab, *STILL, *changing, stages=(1, 3))
    assert sorted(counts) == [2, *range(18, 30)]


def test_a_stage_that_only_removes_leaves_the_rows(lab, changing):
    run = lab.kept(*STILL, *changing)
    before, after = (lab.weights(run, stage)[ROWS] for stage in (1, 2))
    gone = 3 - 1  # d03 is at the third place, since d01 has gone
    assert torch.equal(after, torch.cat([before[:gone], before[gone + 1 :]]))


def test_without_an_old_document_rows_stay_random(lab, tmp_path):
    """There is no norm to go by."""
    shutil.copytree(lab.corpus, tmp_path / "corpus")
    ids = [f"d{n:02d}" for n in range(30)]
    stages = {"D0": {"add": ids[:18]}, "D1": {"add": ids[18:], "remove": ids[:18]}}
    (tmp_path / "corpus" / "streams" / "turn.json").write_text(json.dumps(stages), "utf-8")
    where = (f"data.corpus={tmp_path / 'corpus'}", "data.stream=turn")
    still = (*where, "training.updates_per_stage=0")
    with_it, without = lab.train(*START, *still), lab.train(*still)
    assert lab.results(with_it) == lab.results(without)


def test_a_document_without_a_word_is_its_own_query(lab, tmp_path):
    shutil.copytree(lab.corpus, tmp_path / "corpus")
    path = tmp_path / "corpus" / "corpus.jsonl"
    documents = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    documents[20] = {"_id": "d20", "title": "", "text": "!!! ... ???"}
    path.write_text("".join(json.dumps(document) + "\n" for document in documents), "utf-8")
    counts = check(lab, *STILL, f"data.corpus={tmp_path / 'corpus'}", stages=(1,))
    assert counts[20] == 0 and counts[21] == 4


def test_what_the_replay_is_does_not_matter(lab):
    """Its queries are its own: the same rows with pseudo-queries to rehearse and with none."""
    replay = ("replay=generative", "replay.ratio=1", "replay.first_stage=0")
    without, rehearsed = lab.kept(*STILL), lab.kept(*STILL, *replay)
    for stage in range(3):
        both = [lab.weights(run, stage)[ROWS] for run in (without, rehearsed)]
        assert torch.equal(*both)


def test_documents_a_few_at_a_time_are_documents_at_once(lab, monkeypatch):
    monkeypatch.setattr(centroid, "AT_ONCE", 4)
    parts, whole = lab.train(*STILL), lab.kept(*STILL)
    for stage in (1, 2):
        torch.testing.assert_close(lab.weights(parts, stage), lab.weights(whole, stage))


def test_adapters_do_not_stand_in_its_way(lab):
    """The state before a stage is that of the plain model, whose adapters add nothing yet."""
    pytest.importorskip("peft")
    lora, full = lab.kept(*STILL, "parameters=lora"), lab.kept(*STILL)
    for stage in range(3):
        assert torch.equal(lab.weights(lora, stage)[ROWS], lab.weights(full, stage)[ROWS])


def test_where_every_stage_starts_anew_it_changes_nothing(lab):
    restart = ("method=scratch", "training.stages=all")
    assert lab.results(lab.train(*START, *restart)) == lab.results(lab.kept(*restart))


WHERE = {
    "while new rows are written": (Centroid, "begin", 2, False),
    "after the checkpoint of stage 1": (trainer.checkpoints, "save", 2, False),
}


@pytest.mark.parametrize("where", WHERE)
def test_going_on_is_never_having_stopped(lab, tmp_path, where):
    run = interrupt(lab, tmp_path, *WHERE[where], settings=START)
    resume(lab, run)
    assert lab.results(run) == lab.results(lab.kept(*START))


def test_a_corpus_that_is_added_begins_there(lab, tmp_path):
    run = lab.train(*STILL, output=tmp_path)
    lab.call(runs.add, run, str(lab.write_stream(tmp_path / "more", (5,), first=60)))
    before, after = (lab.weights(run, stage)[ROWS] for stage in (2, 3))
    assert len(after) == sum(lab.sizes) + 5 and torch.equal(after[:-5], before)
    torch.testing.assert_close(after[-5:].norm(dim=1), 0.8 * before.norm(dim=1).mean().expand(5))


def test_new_documents_are_found_before_any_update(lab):
    """By a model that has learnt to tell documents by their queries; random rows by chance."""
    learnt = ("training.updates=200", "replay=generative", "replay.ratio=1")
    found = {}
    for start in ("centroid", "random"):
        run = lab.kept(*learnt, f"starts={start}", "training.updates_per_stage=0")
        metric = lab.matrix(run)["metrics"]["hits@10"]
        found[start] = metric[1][1] + metric[2][2]
    print(f"Hits@10 of new documents, stages 1 and 2 together: {found}")
    assert found["centroid"] > found["random"] + 0.3


@pytest.mark.parametrize(
    "settings, line",
    [
        (("docids=naive",), "docids.name: starts: centroid needs one row per document"),
        (("starts.scale=0",), "starts.scale: must be above 0"),
        (("starts.queries=0",), "starts.queries: must be at least 1"),
    ],
)
def test_what_it_does_not_go_with_is_one_line(lab, capsys, settings, line):
    assert main(["train", *lab.settings(*START, *settings)]) == 2
    assert line in capsys.readouterr().err
