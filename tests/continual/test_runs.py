"""Whole runs: start, go on, add a corpus, evaluate, report."""

import json
import shutil
from contextlib import contextmanager

import pytest
import torch

from continual import cli, runs
from continual.config.loading import load_config
from continual.run.directory import replace
from dsi.corpus.corpus import write_corpus
from dsi.errors import UserError
from dsi.index import SearchIndex
from dsi.manifest import forget


def snapshot(folder):
    """Every file's bytes, by relative path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def two(lab, tmp_path_factory):
    """A finished run on D0 and D1, in a place of its own, and what comes later: D2."""
    place = tmp_path_factory.mktemp("two")
    corpus = lab.write_stream(place / "first", lab.sizes[:2])
    later = lab.write_stream(place / "later", lab.sizes[2:], first=sum(lab.sizes[:2]))
    run = lab.train(f"data.corpus={corpus}", output=place)
    return run, later


@pytest.fixture
def finished(two, tmp_path):
    """A copy of that run: a run that was moved is still the same run."""
    run, later = two
    return shutil.copytree(run, tmp_path / "moved"), later


def test_a_corpus_is_added_as_the_next_stage(lab, finished, capsys):
    run, later = finished
    before, matrix = snapshot(run), lab.matrix(run)
    assert lab.call(runs.add, run, str(later)) == run
    after = lab.matrix(run)
    assert after["corpora"] == ["D0", "D1", "D2"] and after["num_documents"] == list(lab.sizes)
    assert after["num_updates"] == [10, 8, 8]
    for metric, P in after["metrics"].items():
        assert [row[:2] for row in P[:2]] == matrix["metrics"][metric]
        assert all(value is not None for value in P[2])
    for n in (0, 1):
        old = {name: value for name, value in before.items() if name.startswith(f"stages/0{n}/")}
        assert old and old.items() <= snapshot(run).items()
    assert (run / "docids/D0.tsv").read_bytes() == before["docids/D0.tsv"]
    assert (run / "metrics.jsonl").read_bytes().startswith(before["metrics.jsonl"])
    events = json.loads((run / "forgetting_events.json").read_text())
    assert len(events["documents"]["id"]) == sum(lab.sizes)
    assert events["evaluated_at"] == [10, 18, 26]
    # what was added is searched, evaluated and extended like the rest
    index = SearchIndex.load(run)
    assert len(index) == sum(lab.sizes)
    assert {r.document_id for r in index.search(["anything"], k=30)[0]} == {
        f"d{i:02d}" for i in range(30)
    }
    # a stage knows the corpora up to its own, and the run names its last stage
    known = [json.loads((run / f"stages/0{n}/index.json").read_text())["corpora"] for n in range(3)]
    assert known[0] == known[1] == known[2][:1] and known[2][1:] == [str(later)]
    assert json.loads((run / "index.json").read_text()) == {"schema": 2, "index": "stages/02"}
    lines = (run / "stages/02/docids.tsv").read_text().splitlines()
    docids = "".join((run / f"docids/D{n}.tsv").read_text() for n in range(3)).splitlines()
    assert [line.rpartition("\t")[0] for line in lines] == docids
    names = [f"D{n}" for n, size in enumerate(lab.sizes) for _ in range(size)]
    assert [line.rpartition("\t")[2] for line in lines] == names
    more = lab.write_stream(later.parent / run.parent.name, (4,), first=30)
    lab.call(runs.add, run, str(more))
    assert lab.matrix(run)["num_documents"] == [*lab.sizes, 4]


def test_adding_later_is_the_same_as_having_it_from_the_start(lab, finished, tmp_path):
    run, later = finished
    lab.call(runs.add, run, str(later))
    whole = tmp_path / "whole"
    documents, queries, qrels, ids = [], [], {"train": [], "dev": [], "test": []}, []
    for folder in (run.parent.parent, later):
        source = json.loads((run / "stages/00/index.json").read_text())["corpora"][0]
        folder = later if folder == later else type(later)(source)
        part = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
        documents += part
        if folder == later:
            ids.append([document["_id"] for document in part])
        else:
            ids += list(json.loads((folder / "streams/three.json").read_text()).values())
        lines = (folder / "queries.jsonl").read_text().splitlines()
        queries += [json.loads(line) for line in lines]
        for split, judged in qrels.items():
            for line in (folder / f"qrels/{split}.tsv").read_text().splitlines()[1:]:
                query, document, score = line.split("\t")
                judged.append((query, document, int(score)))
    write_corpus(whole, documents, queries, qrels, {"three": ids})
    at_once = lab.train(f"data.corpus={whole}")
    assert lab.matrix(at_once)["metrics"] == lab.matrix(run)["metrics"]
    one, other = lab.weights(at_once, 2), lab.weights(run, 2)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_documents_alone_can_be_added(lab, finished, tmp_path):
    run, later = finished
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(later / "corpus.jsonl", bare)
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("accelerate.Accelerator.print", lambda self, *a, **k: printed.append(a[0]))
        lab.call(runs.add, run, str(bare))
    matrix = lab.matrix(run)
    for metric in ("hits@1", "hits@10", "mrr@10"):
        assert matrix["metrics"][metric][2][:2] != [None, None]
        assert matrix["metrics"][metric][2][2] is None
    assert matrix["metrics"]["indexing_accuracy"][2][2] is not None
    assert matrix["num_queries"][2] == 0
    assert [line for line in printed if "bare" in line and "column D2" in line]
    assert (run / "stages/02/run.D2.trec").read_text() == ""


def test_a_document_arrives_only_once(lab, finished, tmp_path):
    run, later = finished
    again = lab.write_stream(tmp_path / "again", (3,), first=22)  # d22 and d23 are in the run
    before = snapshot(run)
    with pytest.raises(UserError, match=r"'d22'.*already") as caught:
        lab.call(runs.add, run, str(again))
    assert "\n" not in str(caught.value)
    assert snapshot(run) == before
    lab.call(runs.add, run, str(later))
    before = snapshot(run)
    with pytest.raises(UserError, match=r"'d24'.*already"):
        lab.call(runs.add, run, str(later))
    assert snapshot(run) == before


def test_a_run_that_is_refused_has_no_new_corpus(lab, finished):
    run, later = finished
    metrics = run / "metrics.jsonl"
    content = metrics.read_bytes()
    metrics.write_bytes(content[:-9])
    before = snapshot(run)
    with pytest.raises(UserError, match=r"metrics\.jsonl: .* bytes, the checkpoint notes"):
        lab.call(runs.add, run, str(later))
    after = snapshot(run)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert changed <= {"environment.json", "manifest.json"}  # what tried
    metrics.write_bytes(content)
    lab.call(runs.add, run, str(later))
    assert lab.matrix(run)["num_documents"] == list(lab.sizes)


@pytest.mark.parametrize("corpus", ["nowhere", "."])
def test_a_folder_without_a_corpus_is_refused(lab, finished, tmp_path, monkeypatch, corpus):
    run, _ = finished
    monkeypatch.chdir(tmp_path)
    before = snapshot(run)
    with pytest.raises(UserError):
        lab.call(runs.add, run, corpus)
    assert snapshot(run) == before


def test_what_was_added_must_stay_as_it_was(lab, finished, tmp_path):
    run, later = finished
    own = shutil.copytree(later, tmp_path / "own")
    lab.call(runs.add, run, str(own))
    with open(own / "corpus.jsonl", "a", encoding="utf-8") as file:
        file.write('{"_id": "d99", "title": "", "text": "one more"}\n')
    with pytest.raises(UserError, match="changed since it was added"):
        lab.call(
            runs.train,
            load_config(run / "config.yaml", [f"output={run.parent}", "name=moved"]),
            resume=True,
        )


class Stop(Exception):
    """What interrupts a run here."""


def test_an_unfinished_run_takes_no_corpus(lab, two, tmp_path, monkeypatch):
    from continual.trainer import Trainer

    _, later = two
    for stage in (0, 1):

        def stop(self, state, number, stage=stage, original=Trainer._stage):
            if number == stage:
                raise Stop
            original(self, state, number)

        place = tmp_path / str(stage)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
            patch.setattr(Trainer, "_stage", stop)
            lab.train(f"data.corpus={two[0].parent / 'first'}", output=place)
        before = snapshot(place / "run")
        with pytest.raises(UserError, match=f"only {stage} of 2 stages.*--resume"):
            lab.call(runs.add, place / "run", str(later))
        assert snapshot(place / "run") == before


def test_an_addition_that_was_cut_off_goes_on(lab, finished, tmp_path):
    run, later = finished
    whole = shutil.copytree(run, tmp_path / "whole" / "moved")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr("continual.update.update.Update.take", raise_stop)
        lab.call(runs.add, run, str(later))
    lab.call(runs.add, whole, str(later))
    with pytest.raises(UserError, match="only 2 of 3"):
        lab.call(runs.add, run, str(later))
    config = load_config(run / "config.yaml", [f"output={run.parent}", f"name={run.name}"])
    lab.call(runs.train, config, resume=True)
    assert lab.results(run) == lab.results(whole)


def raise_stop(*arguments, **options):
    raise Stop


@pytest.mark.parametrize("name", ["add", "train", "evaluate"])
def test_a_folder_that_is_no_run_is_one_line(lab, tmp_path, name):
    calls = {
        "add": lambda: runs.add(tmp_path, str(lab.corpus)),
        "train": lambda: runs.train(lab.config(output=tmp_path), resume=True),
        "evaluate": lambda: runs.evaluate(tmp_path),
    }
    with pytest.raises(UserError, match="no run here"):
        lab.call(calls[name])


def test_nothing_is_written_when_the_corpus_is_wrong(lab, tmp_path):
    with pytest.raises(UserError, match="four"):
        lab.train("data.stream=four", output=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_not_overwritten_by_accident(lab, tmp_path):
    short = ("training.updates=1", "training.updates_per_stage=1")
    run = lab.train(*short, output=tmp_path)
    before = snapshot(run)
    with pytest.raises(UserError, match="--overwrite"):
        lab.train(*short, output=tmp_path)
    assert snapshot(run) == before
    lab.train(*short, "seed=1", output=tmp_path, overwrite=True)
    assert lab.matrix(run)["num_updates"] == [1, 1, 1]
    assert "seed: 1" in (run / "config.yaml").read_text()


@pytest.mark.parametrize("split", ["test", "dev"])
def test_a_row_is_computed_again(lab, split):
    run = lab.kept()
    matrix = lab.matrix(run)["metrics"]
    for stage in (None, 1):
        lines = lab.call(runs.evaluate, run, stage, split)
        n = 2 if stage is None else stage
        assert len(lines) == n + 3
        assert "0.0 % invalid" in lines[-1]
        for o, line in enumerate(lines[1:-1]):
            values = [float(cell) for cell in line.split()[1:]]
            written = [round(100 * P[n][o], 2) for P in matrix.values()]
            if split == "test":
                assert values == written
            else:
                assert values[-1] == written[-1]  # documents are the same for every split
    with pytest.raises(UserError, match="--stage"):
        lab.call(runs.evaluate, run, 7)


@contextmanager
def edited(path, old, new):
    """A file in which something is another for a while."""
    content = path.read_text("utf-8")
    assert old in content
    path.write_text(content.replace(old, new), "utf-8")
    try:
        yield
    finally:
        path.write_text(content, "utf-8")


# file, what is replaced by what, the splits that it concerns, how the line goes on
EDITS = {
    "a text": ("corpus.jsonl", "quick brown", "quick green", {"test", "dev", "train"}, "documents"),
    "a test query": ("queries.jsonl", "testqueryzero", "testqueryone", {"test"}, "test queries"),
    "a dev query": ("queries.jsonl", "devqueryone", "devqueryzero", {"dev"}, "dev queries"),
    "a judgement": ("qrels/test.tsv", "test-d03-0\td03", "test-d03-0\td04", {"test"}, "test queri"),
    "a dev judgement": ("qrels/dev.tsv", "dev-d03-0\td03", "dev-d03-0\td04", {"dev"}, "dev querie"),
    "a train judgement": ("qrels/train.tsv", "train-d03-0\td03\t1\n", "", {"train"}, "train quer"),
}


@pytest.mark.parametrize(("name", "old", "new", "splits", "what"), EDITS.values(), ids=EDITS)
def test_an_edited_corpus_is_not_evaluated(lab, finished, name, old, new, splits, what):
    run, later = finished
    corpus = later.parent / "first"
    for split in ("test", "dev", "train"):
        before = lab.call(runs.evaluate, run, None, split)
        with edited(corpus / name, old, new):
            if split not in splits:
                assert lab.call(runs.evaluate, run, None, split)[:-1] == before[:-1]
                continue
            with pytest.raises(UserError) as caught:
                lab.call(runs.evaluate, run, None, split)
            line = str(caught.value)
            assert line.startswith(f"{corpus}: other {what}")
            assert line.endswith("; restore them, or start a new run")


def test_a_split_that_came_later_is_evaluated(lab, finished):
    run, _ = finished
    stage = run / "stages" / "01"
    values = json.loads((stage / "index.json").read_text("utf-8"))
    values["part_hashes"][0]["dev"] = None
    replace(stage, "index.json", values)
    assert lab.call(runs.evaluate, run, None, "dev")[0].startswith("stage 1, dev queries")


def test_an_older_run_is_evaluated_with_a_warning(lab, finished):
    run, later = finished
    expected = lab.call(runs.evaluate, run)
    stage = run / "stages" / "01"
    forget(stage, "index.json")
    (stage / "index.json").unlink()
    with edited(later.parent / "first" / "corpus.jsonl", "quick brown", "quick green"):
        warning, *lines = lab.call(runs.evaluate, run)
    assert warning.startswith(f"warning: {stage / 'index.json'}: no checksums of the corpora")
    assert len(lines) == len(expected)


def test_a_search_says_that_texts_were_edited(lab, finished, monkeypatch, capsys):
    run, later = finished
    corpus, command = later.parent / "first", ["search", str(run), "testqueryzero"]
    assert cli.main(command) == 0
    assert capsys.readouterr().err == ""
    with edited(corpus / "qrels/test.tsv", "test-d03-0\td03", "test-d03-0\td04"):
        assert cli.main(command) == 0  # nobody searches judgements
        assert capsys.readouterr().err == ""
    with edited(corpus / "corpus.jsonl", "quick brown", "quick green"):
        assert cli.main(command) == 0
    out, err = capsys.readouterr()
    assert err == (
        f"dsi: warning: {corpus}: its documents have changed since they were indexed; results show "
        "what they are now\n"
    )
    assert len(out.splitlines()) == 20


def test_a_report_of_one_run_and_of_two(lab, tmp_path):
    run = lab.kept()
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(run / "matrix.json", other)
    lines = runs.report([run, other], tmp_path / "figures")
    assert (tmp_path / "figures" / "comparison.png").stat().st_size > 1000
    rows = [line.split() for line in lines]
    assert [row[0] for row in rows[:3]] == ["run", run.name, "other"]
    assert rows[1][1:-1] == rows[2][1:]  # the same matrix, and "other" does not know its seconds
    assert runs.report([run])[0] == run.name
    with pytest.raises(UserError, match=r"matrix\.json"):
        runs.report([tmp_path])


def test_the_end_of_a_run_shows_matrix_and_figures(lab, tmp_path, capsys):
    run = shutil.copytree(lab.kept(), tmp_path / "run")
    runs._show(run)
    out = capsys.readouterr().out
    assert "hits@10" in out and "indexing_accuracy" in out and str(run) in out
    assert [path for path in (run / "figures").iterdir() if path.stat().st_size > 1000]
