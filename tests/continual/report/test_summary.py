"""Several runs in one table."""

import json

import pytest

from continual import cli, runs
from continual.report.summary import READING, summary
from dsi.errors import UserError


def matrix(hits, updates, forgetting=0.0):
    return {
        "average_performance": {"hits@10": hits, "hits@1": [0.125 for _ in hits]},
        "forgetting": {"hits@10": [None, *(forgetting for _ in hits[1:])]},
        "learning_performance": {"hits@10": [None, *(1.0 for _ in hits[1:])]},
        "num_updates": updates,
    }


@pytest.fixture
def folder(tmp_path):
    """Make the folder of a run with a timing.json of (prepare, train) seconds."""

    def make(name, stages=None, **more):
        path = tmp_path / name
        path.mkdir()
        if stages is not None:
            keys = ("prepare", "train")
            values = [
                {"stage": n, "evaluate": 100.0, **dict(zip(keys, seconds, strict=False))}
                for n, seconds in enumerate(stages)
            ]
            (path / "timing.json").write_text(json.dumps(values))
        return path

    return make


def test_a_row_per_run_of_what_is_there_after_the_last_stage(folder):
    folders = [folder("one", [(1.2, 30.0), (0.5, 9.0)]), folder("a_longer_name", [(1.0,), (0.6,)])]
    matrices = {
        "one": matrix([0.9, 0.75], [1200, 300], 0.051),
        "a_longer_name": matrix([0.5, 1.0], [0, 0], -0.01),
    }
    assert summary(folders, matrices) == [
        "run              A_n   F_n   LA_n  A_n Hits@1  updates  seconds",
        "one             75.0   5.1  100.0        12.5    1,500       41",
        "a_longer_name  100.0  -1.0  100.0        12.5        0        2",
        "",
        READING,
    ]


def test_what_is_not_known_is_empty(folder):
    """One stage has no F_n and no LA_n, and a run of before no timing."""
    matrices = {"new": matrix([0.5], [10]), "old": matrix([0.5], [10])}
    head, new, old, *_ = summary([folder("new", [(0.0, 1.0)]), folder("old")], matrices)
    assert new.split() == ["new", "50.0", "12.5", "10", "1"]
    assert old.split() == ["old", "50.0", "12.5", "10"]
    assert len(head) == len(new) == len(old), "columns are under their titles"


@pytest.mark.parametrize("content", ['[{"stage": 0}]', "[1]", '[{"prepare": "x", "train": 1}]'])
def test_a_damaged_timing_is_one_line(folder, content):
    path = folder("run")
    (path / "timing.json").write_text(content)
    with pytest.raises(UserError, match=r"timing\.json: not what was written .* restore the file"):
        summary([path], {"run": matrix([0.5], [10])})


def test_models_a_baseline_and_an_oracle_side_by_side(lab, tmp_path, capsys):
    plain, bm25 = lab.kept(), lab.kept("method=bm25")
    oracle = lab.kept("replay=oracle", "replay.ratio=0.5")
    folders = [str(path) for path in (plain, bm25, oracle)]
    assert cli.main(["report", *folders, "--out", str(tmp_path / "figures")]) == 0
    lines = capsys.readouterr().out.splitlines()
    remarks = [line for line in lines if runs.ORACLE in line]
    assert remarks == [f"{oracle}: {runs.ORACLE}"], "whose name is taken is called by its folder"
    start = next(i for i, line in enumerate(lines) if line.startswith("run "))
    assert lines.index(remarks[0]) < start
    rows = [line.split() for line in lines[start + 1 : start + 4]]
    assert [row[0] for row in rows] == [plain.name, str(bm25), str(oracle)]
    assert [row[-2] for row in rows] == ["26", "0", "26"]
    for row, run in zip(rows, (plain, bm25, oracle), strict=True):
        average = lab.matrix(run)["average_performance"]
        assert row[1] == f"{100 * average['hits@10'][-1]:.1f}"
        assert row[4] == f"{100 * average['hits@1'][-1]:.1f}"
    assert lines[-1].startswith("figure: ")
