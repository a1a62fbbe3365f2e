"""The methods side by side: several seeds at equal updates, means and standard deviations.

    python -m benchmarks.methods configs/squad-2k.yaml --out runs/methods data.corpus=FOLDER

Runs that are finished already are read, not repeated. ``--seeds 3`` gives seeds 0, 1, 2. Prints a
table in Markdown and writes it, with the numbers behind it, to OUT/methods.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

BOTH = ["replay.memory=both", "replay.queries_per_document=10"]
SCRATCH = [
    "training.restart=true",
    "training.stages=last",
    "sampling.new=null",
    "training.learning_rate=7e-4",
]
METHODS: dict[str, list[str]] = {
    "cl_new": ["method=cl_new", "training.later_learning_rate=7e-4"],
    "cl_seen": ["method=cl_seen", "training.later_learning_rate=7e-4"],
    "default": ["method=default"],
    "learned": ["replay.memory=learned", "replay.queries_per_document=10"],
    "both": BOTH,
    "scratch": SCRATCH,
    "scratch_both": [*SCRATCH, *BOTH],
}
LABELS = {
    "cl_new": "cl(D_n), DSI++",
    "cl_seen": "cl(U_n), DSI++",
    "default": "`default`: lexical pseudo-queries",
    "learned": "`default` with the learned generator instead",
    "both": "`default` with both",
    "scratch": "from scratch on U_5, same views, memory and total of updates as `default`",
    "scratch_both": "the same as `default` with both",
}
COLUMNS = {
    "A_5 Hits@10": ("average_performance", "hits@10"),
    "F_5": ("forgetting", "hits@10"),
    "LA_5": ("learning_performance", "hits@10"),
    "A_5 Hits@1": ("average_performance", "hits@1"),
    "A_5 MRR@10": ("average_performance", "mrr@10"),
    "A_5 indexing": ("average_performance", "indexing_accuracy"),
}


def finished(folder: Path) -> dict[str, Any] | None:
    """The matrix of a run that has gone through all its stages."""
    environment, matrix = folder / "environment.json", folder / "matrix.json"
    if not matrix.exists() or not json.loads(environment.read_text("utf-8"))["end"]:
        return None
    return json.loads(matrix.read_text("utf-8"))


def run(
    config: str, settings: list[str], out: Path, label: str, own: list[str], seed: int
) -> dict[str, Any]:
    """Train with the settings ``own`` and one seed, unless that was done before."""
    name = f"{label}-s{seed}"
    done = finished(out / name)
    if done is not None:
        return done
    command = [sys.executable, "-m", "continual.train", config, *settings, *own]
    command += [f"seed={seed}", f"output={out}", f"name={name}", "--overwrite"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    matrix = finished(out / name)
    assert matrix is not None
    return matrix


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: one row per method, means and standard deviations over seeds, in percent."""
    head = ["method", *COLUMNS, "D_0 Hits@10: stage 0, last stage", "updates", "seeds"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for method, matrices in results.items():
        cells = [LABELS[method]]
        for key, metric in COLUMNS.values():
            cells.append(mean([m[key][metric][-1] for m in matrices]))
        P = [m["metrics"]["hits@10"] for m in matrices]
        cells.append(f"{mean([p[0][0] for p in P])}, {mean([p[-1][0] for p in P])}")
        cells += [f"{sum(matrices[0]['num_updates']):,}", str(len(matrices))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def mean(values: list[float | None]) -> str:
    """Mean and standard deviation in percent."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return ""
    spread = f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.1f}{spread}"


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("config")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    options = parser.parse_intermixed_args()
    results = {
        method: [
            run(options.config, options.settings, options.out, method, METHODS[method], seed)
            for seed in range(options.seeds)
        ]
        for method in options.methods
    }
    text = table(results)
    (options.out / "methods.json").write_text(json.dumps(results), "utf-8")
    print(text)


if __name__ == "__main__":
    main()
