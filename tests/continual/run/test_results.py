"""Lines of metrics.jsonl at the end of a stage."""

from continual.measure.evaluation import METRICS
from continual.run.directory import make_matrix
from continual.run.results import row_events


def test_every_cell_the_sharpness_and_the_averages():
    rows = [{m: [0.5] for m in METRICS}, {m: [0.25, 1.0] for m in METRICS}]
    matrix = make_matrix(rows, [4, 2], [3, 3], [7, 5])
    events = list(row_events(1, 5, rows[1], matrix, {"rise": 0.1, "eigenvalue": 2.0, "loss": 3}))
    assert all((event.pop("stage"), event.pop("update")) == (1, 5) for event in events)
    assert events[:2] == [
        {"corpus": "D0", **dict.fromkeys(METRICS, 0.25)},
        {"corpus": "D1", **dict.fromkeys(METRICS, 1.0)},
    ]
    assert events[2] == {"sharpness/rise": 0.1, "sharpness/eigenvalue": 2.0}
    assert (events[3]["A/hits@10"], events[3]["F/hits@10"]) == (0.625, 0.25)
    assert len(list(row_events(1, 5, rows[1], matrix))) == 3
