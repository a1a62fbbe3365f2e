"""The docid schemes side by side: several seeds at equal updates, one method.

    python -m benchmarks.schemes configs/squad-2k.yaml --out runs/schemes data.corpus=FOLDER

Like ``benchmarks.methods``: finished runs are read, not repeated. Milliseconds per query are wall
time of the evaluation after the last stage, so let nothing else run, or read them as a bound.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.methods import run

SCHEMES: dict[str, list[str]] = {
    "atomic": ["docids=atomic"],
    "naive": ["docids=naive"],
    "semantic": ["docids=semantic"],
    "residual": ["docids=residual"],
    "product": ["docids=product"],
    "title": ["docids=title", "docids.max_length=8"],
    "keywords": ["docids=keywords", "docids.max_length=8"],
}
COLUMNS = {
    "A_5 indexing": ("average_performance", "indexing_accuracy"),
    "A_5 Hits@1": ("average_performance", "hits@1"),
    "A_5 Hits@10": ("average_performance", "hits@10"),
    "F_5": ("forgetting", "hits@10"),
    "LA_5": ("learning_performance", "hits@10"),
}


def table(results: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]]) -> str:
    """Markdown: one row per scheme, means and standard deviations over seeds, in percent."""
    head = ["docids", *COLUMNS, "D_0 Hits@10: stage 0, last stage", "ms per query", "seeds"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for scheme, runs in results.items():
        matrices = [matrix for matrix, _ in runs]
        P = [matrix["metrics"]["hits@10"] for matrix in matrices]
        speed = statistics.median(how["queries_per_second"] for _, how in runs)
        cells = [f"`{scheme}`"]
        cells += [mean([m[key][metric][-1] for m in matrices]) for key, metric in COLUMNS.values()]
        cells += [f"{mean([p[0][0] for p in P])}, {mean([p[-1][0] for p in P])}"]
        lines.append("| " + " | ".join([*cells, f"{1e3 / speed:.2f}", str(len(runs))]) + " |")
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
    parser.add_argument("--schemes", nargs="+", choices=SCHEMES, default=list(SCHEMES))
    options = parser.parse_intermixed_args()
    results: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    for scheme in options.schemes:
        for seed in range(options.seeds):
            settings = list(options.settings)
            matrix = run(options.config, settings, options.out, scheme, SCHEMES[scheme], seed)
            if matrix is None:
                raise SystemExit(f"{scheme}, seed {seed}: failed, see {scheme}-s{seed}.log in OUT")
            stages = sorted((options.out / f"{scheme}-s{seed}" / "stages").iterdir())
            how = json.loads((stages[-1] / "decoding.json").read_text("utf-8"))
            results.setdefault(scheme, []).append((matrix, how))
    text = table(results)
    (options.out / "schemes.json").write_text(json.dumps(results), "utf-8")
    print(text)


if __name__ == "__main__":
    main()
