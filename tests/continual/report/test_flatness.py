"""The table of what was measured after each stage."""

import json

from continual.report.flatness import sharpness_table

MEASURED = {
    "examples": 1200,
    "rho": 0.05,
    "loss": 0.25,
    "rise": 0.5,
    "rise_first": 0.125,
    "eigenvalue": -1234.56,
    "eigenvalue_residual": None,
}


def matrix(*forgetting):
    return {"forgetting": {"hits@10": list(forgetting)}}


def test_a_run_without_measurements_has_no_table(tmp_path):
    (tmp_path / "stages" / "00").mkdir(parents=True)
    assert sharpness_table(tmp_path, matrix(None)) == []


def test_one_line_per_measured_stage(tmp_path):
    for n in (0, 2):
        folder = tmp_path / "stages" / f"{n:02d}"
        folder.mkdir(parents=True)
        (folder / "sharpness.json").write_text(json.dumps(MEASURED))
    head, first, last = sharpness_table(tmp_path, matrix(None, 0.5, 0.1234))
    assert head.split()[0] == "Sharpness" and head.endswith("F_n hits@10")
    values = ["1,200", "0.05", "0.25", "0.5", "0.125", "-1235", "-"]
    assert first.split() == ["stage", "0", *values, "-"]
    assert last.split() == ["stage", "2", *values, "12.3"]
    assert len(head) == len(first) == len(last)
