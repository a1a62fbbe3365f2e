"""Several runs in one table: pure text of parsed matrix.json files and timings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsi.files import as_written, read_json

READING = (
    "A_n: Hits@10 over all corpora after the last stage, in percent (higher is better). F_n: how "
    "far earlier corpora have fallen from their best (lower is better). LA_n: Hits@10 of each new "
    "corpus right after it was indexed. A run with a low F_n has kept what it had, which may be "
    "little: read it beside LA_n. bm25 trains nothing: what a search engine gives without a model."
)
COLUMNS = (
    ("A_n", "average_performance", "hits@10"),
    ("F_n", "forgetting", "hits@10"),
    ("LA_n", "learning_performance", "hits@10"),
    ("A_n Hits@1", "average_performance", "hits@1"),
)


def summary(folders: list[Path], matrices: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A row per run: the averages after its last stage, updates and seconds of training.

    ``matrices``: by the name that is shown, in the order of ``folders``.
    """
    rows = [["run", *(title for title, _, _ in COLUMNS), "updates", "seconds"]]
    for folder, (name, matrix) in zip(folders, matrices.items(), strict=True):
        values = [matrix[key][metric][-1] for _, key, metric in COLUMNS]
        shown = ["" if value is None else f"{100 * value:.1f}" for value in values]
        rows.append([name, *shown, f"{sum(matrix['num_updates']):,}", _seconds(folder)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return [*lines, "", READING]


def _seconds(folder: Path) -> str:
    """Of getting ready and training, without evaluation; empty for a run of before."""
    path = folder / "timing.json"
    if not path.exists():
        return ""
    stages = read_json(path, list)
    with as_written(path):  # a baseline trains nothing
        return f"{sum(stage['prepare'] + stage.get('train', 0) for stage in stages):.0f}"
