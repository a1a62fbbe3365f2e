"""The rows of the performance matrix, as matrix.json has them and as they are logged."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from continual.measure.evaluation import METRICS
from continual.run import directory
from continual.stream.stream import Judged, Stream

AVERAGES = (
    ("A", "average_performance"),
    ("F", "forgetting"),
    ("LA", "learning_performance"),
)


def row_events(
    stage: int, update: int, row: Mapping[str, Any], matrix: Mapping[str, Any], flat: Any = None
) -> Iterator[dict[str, Any]]:
    """Lines of metrics.jsonl at the end of a stage: every cell, the sharpness, the averages.

    ``row``: by metric, one value per corpus; ``flat``: content of sharpness.json, if measured.
    """
    where = {"stage": stage, "update": update}
    for o in range(stage + 1):
        yield {**where, "corpus": f"D{o}", **{metric: row[metric][o] for metric in METRICS}}
    if flat is not None:
        yield {**where, **{f"sharpness/{key}": flat[key] for key in ("rise", "eigenvalue")}}
    averages = {
        f"{short}/{metric}": matrix[key][metric][stage]
        for short, key in AVERAGES
        for metric in METRICS
    }
    yield {**where, **averages}


def stream_matrix(
    stream: Stream,
    queries: Sequence[Judged],
    rows: list[dict[str, list[float | None]] | None],
    num_updates: list[int],
) -> dict[str, Any]:
    """matrix.json's content after the stages done of a stream; ``queries[o]`` are those of D_o."""
    return directory.make_matrix(
        rows,
        [len(own) for own in queries],
        np.diff(stream.offsets).tolist(),
        num_updates,
        directory.counts_at(stream, queries, len(rows)),
    )
