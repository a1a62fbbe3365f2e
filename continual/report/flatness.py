"""The table of a run's sharpness.json files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def sharpness_table(folder: Path, matrix: Mapping[str, Any]) -> list[str]:
    """One line per measured stage, with F_n of Hits@10 in percent; no line when there is none.

    ``folder`` is a run directory, ``matrix`` its parsed matrix.json.
    """
    rows = []
    for n, forgetting in enumerate(matrix["forgetting"]["hits@10"]):
        path = folder / "stages" / f"{n:02d}" / "sharpness.json"
        if not path.exists():
            continue
        found = json.loads(path.read_text("utf-8"))
        row = [f"stage {n}", f"{found['examples']:,}", f"{found['rho']:g}"]
        row += [_number(found[key]) for key in ("loss", "rise", "rise_first")]
        row += [_number(found[key]) for key in ("eigenvalue", "eigenvalue_residual")]
        rows.append([*row, "-" if forgetting is None else f"{100 * forgetting:.1f}"])
    if not rows:
        return []
    head = ["Sharpness", "documents", "rho", "loss", "rise", "first step", "eigenvalue", "residual"]
    rows.insert(0, [*head, "F_n hits@10"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
