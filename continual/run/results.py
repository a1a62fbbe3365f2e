"""What is logged of a row of the performance matrix."""

from collections.abc import Iterator, Mapping
from typing import Any

from continual.measure.evaluation import METRICS

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
