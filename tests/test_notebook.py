import json
from pathlib import Path

import numpy as np
import pytest

from continual.measure.performance import ForgettingEvents, summary

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "forgetting.ipynb"


def make_run(folder, stages, per_corpus=12):
    """A run directory with what the notebook reads; query q0 of D0 goes from rank 1 to nowhere."""
    rng = np.random.default_rng(0)
    P = []
    for n in range(stages):
        lines, row = [], []
        for o in range(n + 1):
            ranks = rng.integers(0, 4, per_corpus).tolist()
            if o == 0:
                ranks[0] = 1 if n < stages - 1 or n == 0 else 0
            row.append(sum(rank > 0 for rank in ranks) / per_corpus)
            for q, rank in enumerate(ranks):
                lines.append(
                    {
                        "corpus": f"D{o}",
                        "query": f"q{q}",
                        "text": f"question {q} about D{o}",
                        "gold": [f"D{o}-{q}"],
                        "rank": rank,
                        "top": ["elsewhere", "nowhere"],
                    }
                )
        stage = folder / "stages" / f"{n:02d}"
        stage.mkdir(parents=True)
        (stage / "per_query.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        P.append(row + [None] * (stages - n - 1))
    metrics = {"hits@10": P, "indexing_accuracy": P}
    corpora = [f"D{o}" for o in range(stages)]
    matrix = {"schema": 1, "corpora": corpora, "metrics": metrics, **summary(metrics)}
    (folder / "matrix.json").write_text(json.dumps(matrix))
    events = ForgettingEvents(30, "every 10 updates")
    for update in range(10, 100, 10):
        events.update(np.arange(30), rng.random(30) < 0.3, update)
    (folder / "forgetting_events.json").write_text(
        json.dumps(events.to_json([f"d{i}" for i in range(30)]))
    )


def execute(run, monkeypatch):
    """All outputs of the notebook; raises CellExecutionError when a cell does."""
    monkeypatch.setenv("DSI_RUN", str(run))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=120, resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    )
    client.execute()
    return [
        output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    ]


def of_kind(outputs, kind):
    return [output.data[kind] for output in outputs if kind in output.get("data", {})]


def test_the_notebook_is_stored_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


def test_the_notebook_goes_from_a_run_to_figures_and_tables(tmp_path, monkeypatch):
    make_run(tmp_path / "run", stages=3)
    outputs = execute(tmp_path / "run", monkeypatch)
    assert len(of_kind(outputs, "image/png")) == 3
    tables = of_kind(outputs, "text/html")
    assert len(tables) == 4
    # The query that went from rank 1 to not found leads the table of the worst forgotten.
    assert "question 0 about D0" in tables[-1]
    assert not [output for output in outputs if output.get("name") == "stderr"]


def test_one_stage_and_no_events_are_no_error(tmp_path, monkeypatch):
    make_run(tmp_path / "run", stages=1)
    (tmp_path / "run" / "forgetting_events.json").unlink()
    outputs = execute(tmp_path / "run", monkeypatch)
    assert len(of_kind(outputs, "image/png")) == 2
    printed = "".join(output.text for output in outputs if output.get("name") == "stdout")
    assert "did not record forgetting events" in printed
    assert "0 of 0 queries" in printed
