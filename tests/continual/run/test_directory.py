"""The run directory is a contract: names, contents, and what is never overwritten."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from continual import runs
from continual.config.loading import dump, read_resolved
from continual.measure.evaluation import METRICS
from continual.run import directory
from continual.run.material import prepare
from dsi.docids import NewDocuments
from dsi.docids.atomic import Atomic
from dsi.errors import UserError

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"


class Documents:
    """A stream of two corpora with the given ids."""

    def __init__(self, *corpora):
        self.ids = [key for ids in corpora for key in ids]
        self.offsets = np.cumsum([0, *map(len, corpora)])

    def range(self, corpus):
        return int(self.offsets[corpus]), int(self.offsets[corpus + 1])

    def document_ids(self, start, stop):
        return self.ids[start:stop]


def test_the_files_of_a_finished_run(lab):
    run = lab.kept("replay.name=generative", "replay.ratio=1", "replay.queries_per_document=2")
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    expected = {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "matrix.json",
        "forgetting_events.json",
        "index.json",
        "timing.json",
        "tokenizer/tokenizer.json",
        "manifest.json",
    }
    for n in range(3):
        expected |= {f"docids/D{n}.tsv", f"stages/0{n}/per_query.jsonl"}
        expected |= {f"stages/0{n}/manifest.json"}
        expected |= {f"stages/0{n}/run.D{o}.trec" for o in range(n + 1)}
        expected |= {f"stages/0{n}/pseudo_queries.jsonl", f"stages/0{n}/memory_quality.json"}
        expected |= {f"stages/0{n}/model/model.safetensors", f"stages/0{n}/model/config.json"}
        expected |= {
            f"stages/0{n}/{x}" for x in ("index.json", "docids.tsv", "tokenizer/tokenizer.json")
        }
    assert expected <= names
    assert {name.split("/")[1] for name in names if name.startswith("checkpoints/")} == {
        "01-00000008-end",
        "02-00000008-end",
    }
    left = [name for name in names if "/." in f"/{name}" or name.endswith(".tmp")]
    assert left == []


def test_the_configuration_is_complete_and_reads_back(lab):
    run = lab.kept()
    config = lab.config(output=run.parent)
    assert read_resolved(run / "config.yaml") == config
    assert (run / "config.yaml").read_text("utf-8") == dump(config)
    text = dump(config)
    for key in ("later_learning_rate: null", "events_every: 0", "keep: 2"):
        assert key in text  # what nobody has set is there, too


def test_the_environment_says_what_ran_and_when(lab):
    found = json.loads((lab.kept() / "environment.json").read_text())
    assert set(found) >= {"argv", "git_commit", "packages", "device", "start", "end", "wandb_run"}
    assert re.fullmatch(TIME, found["start"]) and re.fullmatch(TIME, found["end"])
    assert found["start"] <= found["end"]
    assert found["packages"]["torch"] and found["device"] == "cpu" and found["world_size"] == 1


def test_going_on_keeps_the_start_and_the_wandb_run(tmp_path):
    directory.write_environment(tmp_path, "cpu", 1)
    directory.note_environment(tmp_path, start="2020-01-01T00:00:00Z", wandb_run="abc")
    directory.write_environment(tmp_path, "cpu", 2)
    found = directory.read_environment(tmp_path)
    assert found["start"] == "2020-01-01T00:00:00Z" and found["wandb_run"] == "abc"
    assert found["end"] is None and found["world_size"] == 2
    directory.finish_environment(tmp_path)
    assert re.fullmatch(TIME, directory.read_environment(tmp_path)["end"])


def test_a_run_is_replaced_only_when_asked(lab, tmp_path):
    config = lab.config(output=tmp_path)
    folder = directory.create(config, overwrite=False)
    (folder / "matrix.json").write_text("{}")
    with pytest.raises(UserError, match="--overwrite"):
        directory.create(config, overwrite=False)
    assert (folder / "matrix.json").exists()
    directory.create(config, overwrite=True)
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "manifest.json"}


EVERY_FILE = (
    (),
    ("replay=generative", "replay.memory=learned", "replay.generator.updates=2"),
    ("docids=semantic", "docids.k=3", "docids.c=4", "docids.embedding.source=tfidf"),
    (
        "docids=product",
        "docids.groups=2",
        "docids.codes=4",
        "docids.embedding.source=model",
        "docids.embedding.updates=4",
        "evaluation.sharpness.examples=4",
        "merging.name=average",
    ),
)


@pytest.mark.parametrize("settings", EVERY_FILE, ids=["plain", "learned", "tree", "codebooks"])
def test_whatever_a_run_writes_is_known_to_be_its_own(lab, tmp_path, settings):
    run = shutil.copytree(lab.kept(*settings), tmp_path / "run")
    if not settings:  # drawing takes seconds
        runs.report([run, lab.kept()], None)
        assert (run / "figures" / "comparison.png").exists()
    for name in (".metrics.jsonl.tmp", "stages/01/.model.a_1bcdef/model.safetensors"):
        (run / name).parent.mkdir(exist_ok=True)  # what is left of a run that was killed
        (run / name).touch()
    directory.create(lab.config(output=tmp_path), overwrite=True)
    assert {path.name for path in run.iterdir()} == {"config.yaml", "manifest.json"}


def test_what_is_left_of_a_replacement_that_was_stopped_can_be_replaced(lab, tmp_path):
    run = shutil.copytree(lab.kept(), tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(directory, "write_text", lambda *_: 1 / 0)
        patch.setattr(type(run), "unlink", lambda path: path.name == "timing.json" and 1 / 0)
        directory.create(lab.config(output=tmp_path), overwrite=True)
    assert (run / "config.yaml").exists()
    directory.create(lab.config(output=tmp_path), overwrite=True)
    assert {path.name for path in run.iterdir()} == {"config.yaml", "manifest.json"}


def test_what_is_no_run_is_never_replaced(lab, tmp_path):
    config = lab.config(output=tmp_path)
    precious = config.folder / "thesis.txt"
    precious.parent.mkdir()
    directory.create(config, overwrite=False).joinpath("config.yaml").unlink()  # empty: free
    precious.write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=str(config.folder)):
            directory.create(config, overwrite)
    assert precious.read_text() == "years of work"
    file = replace(config, name="thesis.txt", output=str(config.folder))
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"thesis\.txt.*output="):
            directory.create(file, overwrite)
    assert precious.read_text() == "years of work"


def test_docids_are_written_and_taken_over(tmp_path):
    stream, scheme, other = Documents(["a", "b\x85c", "ü"], ["d"]), Atomic(), Atomic()
    scheme.extend(NewDocuments(3))
    directory.write_docids(tmp_path, stream, 0, scheme)  # type: ignore[arg-type]
    assert (tmp_path / "docids/D0.tsv").read_bytes() == "a\t0\nb\x85c\t1\nü\t2\n".encode()
    scheme.extend(NewDocuments(1))
    directory.write_docids(tmp_path, stream, 1, scheme)  # type: ignore[arg-type]
    directory.restore_docids(tmp_path, stream, 2, other)  # type: ignore[arg-type]
    assert other.codes_NT.tolist() == [[0], [1], [2], [3]]
    with pytest.raises(UserError, match=r"D0\.tsv.*D0"):
        directory.restore_docids(tmp_path, Documents(["a", "x", "ü"]), 1, Atomic())  # type: ignore[arg-type]
    (tmp_path / "docids/D1.tsv").write_text("d\tthree\n")
    with pytest.raises(UserError, match=r"D1\.tsv: not a docid"):
        directory.restore_docids(tmp_path, stream, 2, Atomic())  # type: ignore[arg-type]
    (tmp_path / "docids/D1.tsv").unlink()
    with pytest.raises(UserError, match=r"D1\.tsv: missing"):
        directory.restore_docids(tmp_path, stream, 2, Atomic())  # type: ignore[arg-type]


def test_the_tag_of_a_run_file_has_no_blanks(lab):
    run = lab.train("name=my run", "training.updates=1", "training.updates_per_stage=0")
    assert run.name == "my run"
    lines = (run / "stages/02/run.D1.trec").read_text().splitlines()
    assert {line.split()[5] for line in lines} == {"my_run"}


def test_a_matrix_of_stages_that_were_left_out():
    row = {name: [0.5, 0.25] for name in METRICS}
    matrix = directory.make_matrix([None, row], [3, 4, 5], [6, 7, 8], [0, 9])  # type: ignore[list-item]
    assert matrix["schema"] == 1 and matrix["corpora"] == ["D0", "D1"]
    assert matrix["metrics"]["hits@1"] == [[None, None], [0.5, 0.25]]
    assert matrix["num_queries"] == [3, 4] and matrix["num_documents"] == [6, 7]
    assert matrix["num_updates"] == [0, 9]
    assert matrix["average_performance"]["hits@1"] == [None, 0.375]
    table = directory.format_matrix(matrix, "hits@1").splitlines()
    assert len(table) == 3 and table[0].startswith("hits@1")
    assert table[1].split() == ["stage", "0", "0"]
    assert table[2].split()[:5] == ["stage", "1", "50.0", "25.0", "37.5"]
    assert table[2].split()[-1] == "9"


def test_the_matrix_has_the_keys_of_the_contract(lab):
    matrix = lab.matrix(lab.kept())
    assert list(matrix) == [
        "schema",
        "corpora",
        "num_queries",
        "num_documents",
        "metrics",
        "average_performance",
        "forgetting",
        "learning_performance",
        "num_updates",
    ]
    assert matrix["num_documents"] == list(lab.sizes) and matrix["num_updates"] == [10, 8, 8]
    assert matrix["forgetting"]["hits@1"][0] is None
    assert matrix["learning_performance"]["hits@1"][0] is None


def test_events_of_every_document(lab):
    events = json.loads((lab.kept() / "forgetting_events.json").read_text())
    assert events["documents"]["id"] == [f"d{i:02d}" for i in range(sum(lab.sizes))]
    assert events["evaluated_at"] == [10, 18, 26]
    every = lab.kept("evaluation.events_every=4")
    events = json.loads((every / "forgetting_events.json").read_text())
    assert events["evaluated_at"] == [4, 8, 10, 14, 18, 22, 26]
    assert "every 4 updates" in events["cadence"]


def test_counts_of_what_is_left(lab, changing):
    stream = prepare(lab.config(*changing)).stream
    queries = [stream.judged_queries("test", n) for n in range(4)]
    assert directory.counts_at(stream, queries, 0) == {}
    assert directory.counts_at(stream, queries, 1) == {}, "nothing was removed so far"
    # d01 and d05, then d03, then d18, which also was an answer to d00's query
    assert directory.counts_at(stream, queries, 4) == {
        "num_queries_at": [
            [18, None, None, None],
            [16, 7, None, None],
            [15, 7, 0, None],
            [15, 5, 0, 6],
        ],
        "num_documents_at": [
            [18, None, None, None],
            [16, 6, None, None],
            [15, 6, 0, None],
            [15, 5, 0, 6],
        ],
    }


@pytest.mark.parametrize(
    "value",
    [5, [[1]], [[1, None]], [[1, 2], [1, 2]], [[1, None], [1, "2"]], [[1, None], [1, None]]],
)
def test_counts_that_are_none_are_refused(tmp_path, value):
    row = {key: [0.5] for key in METRICS}
    rows = [row, {key: [0.5, 0.5] for key in METRICS}]
    counts = {"num_queries_at": [[1, None], [1, 2]], "num_documents_at": [[3, None], [2, 1]]}
    path = tmp_path / "matrix.json"
    path.write_text(json.dumps(directory.make_matrix(rows, [1, 2], [3, 1], [5, 5], counts)))
    assert directory.read_matrix(path)["num_queries_at"] == counts["num_queries_at"]
    matrix = directory.make_matrix(rows, [1, 2], [3, 1], [5, 5], {"num_documents_at": value})
    path.write_text(json.dumps(matrix))
    with pytest.raises(UserError, match=r"matrix\.json: not what was written.*restore the file"):
        directory.read_matrix(path)
