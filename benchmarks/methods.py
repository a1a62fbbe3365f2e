"""The methods side by side, like for like: rows differ in what their name says and nothing else.

    python -m benchmarks.methods configs/squad-2k.yaml --out runs/methods data.corpus=FOLDER

A row is VIEWS.REPLAY.START, for instance mixed.lexical.random; restart.START trains once, on all
documents, with the updates of all stages; baseline.NAME trains nothing. All have one shape of
model, tokenizer, corpus and number of updates; rates and trained parts belong to the start. Runs
that are finished are read, not repeated: seed 0 of every row comes first, so a table that was cut
off is balanced. ``--rows 'mixed.*'`` takes some rows. The table goes to OUT/methods.md, with what
is behind it in OUT/methods.json.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

VIEWS = {
    "first": ["views=[{name: first, weight: 1, length: 32}]"],  # DSI's, with its length
    "mixed": [
        "views=[{name: first, weight: 0.3, length: 48}, "
        "{name: chunk, weight: 0.7, length: 24, shortest: 5}]"
    ],
}
# one query in two examples of a later stage, and of these 0.3 D_0's own where there are others
MEMORY = ["replay=generative", "replay.documents=seen", "replay.ratio=1.0"]
MEMORY += ["replay.stored_queries=0.3", "replay.first_stage=0.5"]
REPLAY = {
    "none": ["replay=none"],
    "lexical": [*MEMORY, "replay.memory=lexical", "replay.queries_per_document=20"],
    "learned": [*MEMORY, "replay.memory=learned", "replay.queries_per_document=10"],
    "oracle": ["replay=oracle", "replay.ratio=1.0"],
}
STARTS = ("random", "centroid", "lexical")
# of all rows that train: cl(U_n), how often documents are drawn, D_0's queries in stage 0
SHARED = [
    "method=cl_seen",
    "indexing=seen",
    "sampling.new=0.2",
    "sampling.balance=0.5",
    "training.ratio=0.8",
]
# how a start is trained belongs to it: a born index is lost where whole layers move (parameters:
# tables), a random one learns nothing where they do not
TRAINED = {"random": "full", "centroid": "full", "lexical": "tables"}
RESTART = ["training.restart=true", "training.stages=last"]
RESTART_RATE = "7e-4"  # of the random start: with so many documents at once 2e-3 is too much
COLUMNS = {
    "A_n Hits@10": ("average_performance", "hits@10"),
    "F_n": ("forgetting", "hits@10"),
    "LA_n": ("learning_performance", "hits@10"),
    "A_n Hits@1": ("average_performance", "hits@1"),
}
AMOUNTS = ("seconds", "kilobytes")
HEAD = ["views", "replay", "start", *COLUMNS, "D_0 Hits@10: stage 0, last", "updates"]
HEAD += ["seconds", "memory, KB", "seeds"]


def rows(rates: dict[str, str], width: int) -> dict[str, list[str]]:
    """By name, the settings of every row. ``rates``: by start, the peak rates of stage 0 and of
    later stages; ``width``: of the model, and of the baseline that learns nothing."""
    found = {}
    for views, seen in VIEWS.items():
        for replay, rehearsed in REPLAY.items():
            for start in STARTS:
                first, later = rates[start].split(",")
                pace = [f"training.learning_rate={first}", f"training.later_learning_rate={later}"]
                own = [*seen, *rehearsed, f"starts={start}", f"parameters={TRAINED[start]}", *pace]
                found[f"{views}.{replay}.{start}"] = own
    for start in ("random", "lexical"):
        rate = RESTART_RATE if start == "random" else rates[start].split(",")[0]
        own = [*RESTART, *VIEWS["mixed"], *REPLAY["lexical"], f"starts={start}"]
        own += [f"parameters={TRAINED[start]}"]
        found[f"restart.{start}"] = [*own, f"training.learning_rate={rate}"]
    found["baseline.bm25"] = ["baseline=bm25"]
    found["baseline.projection"] = ["baseline=projection", f"baseline.width={width}"]
    return found


def cells(name: str) -> list[str]:
    """Views, replay and start of a row."""
    kind, *rest = name.split(".")
    if kind == "baseline":
        return [rest[0], "", ""]
    if kind == "restart":
        return ["mixed", "from scratch on U_n, lexical", rest[0]]
    return [kind, *rest]


def finished(folder: Path) -> dict[str, Any] | None:
    """The matrix of a run that has gone through all its stages."""
    environment, matrix = folder / "environment.json", folder / "matrix.json"
    if not matrix.exists() or not json.loads(environment.read_text("utf-8"))["end"]:
        return None
    return json.loads(matrix.read_text("utf-8"))


def run(
    config: str, settings: list[str], out: Path, label: str, own: list[str], seed: int
) -> dict[str, Any] | None:
    """The matrix of a run with the settings ``own`` and one seed, which is made unless it is there.

    None where it failed: what it said is in OUT/LABEL-sSEED.log. A run that is there with other
    settings is a failure, too, and is left alone.
    """
    from continual.config.loading import differences, load_config, read_resolved
    from dsi.errors import UserError

    name = f"{label}-s{seed}"
    log = out / f"{name}.log"
    values = [*settings, *own, f"seed={seed}", f"output={out}", f"name={name}"]
    done = finished(out / name)
    if done is not None:
        try:
            wanted = load_config(config, values)
            changed = differences(read_resolved(out / name / "config.yaml"), wanted)
        except UserError as error:
            changed = [str(error)]
        if changed:
            log.write_text(f"{out / name}: made with other settings: {changed}\n", "utf-8")
        return None if changed else done
    command = [sys.executable, "-m", "continual.train", config, *values, "--overwrite"]
    out.mkdir(parents=True, exist_ok=True)
    with open(log, "w", encoding="utf-8") as file:
        ended = subprocess.run(command, check=False, stdout=file, stderr=file)
    return finished(out / name) if ended.returncode == 0 else None


def figures(folder: Path, matrix: dict[str, Any]) -> dict[str, Any]:
    """What a row of the table says of one run; shares in percent, None where there is none."""
    P = matrix["metrics"]["hits@10"]
    found: dict[str, Any] = {}
    for column, (key, metric) in COLUMNS.items():
        found[column] = percent(matrix[key][metric][-1])
    found["first"], found["last"] = percent(P[0][0]), percent(P[-1][0])
    found["updates"] = sum(matrix["num_updates"])
    timing = json.loads((folder / "timing.json").read_text("utf-8"))
    for part, name in (("train", "seconds"), ("prepare", "seconds_before")):  # pseudo-queries
        found[name] = sum(stage.get(part, 0.0) for stage in timing)
    found["kilobytes"] = kilobytes(folder)
    return found


def percent(value: float | None) -> float | None:
    """Of a share."""
    return None if value is None else 100 * value


def kilobytes(folder: Path) -> float:
    """What a run keeps for rehearsal beside documents and model: texts of queries, UTF-8, no names.

    Pseudo-queries are those of stages/NN/pseudo_queries.jsonl. True ones are the train queries, on
    documents of the stream, of D_0 where ``replay.stored_queries`` is above zero (``generative``)
    and of all corpora (``oracle``). The learned generator, which only later corpora need, is not
    counted. Each query once, whatever the number of its documents.
    """
    from continual.config.loading import read_resolved
    from continual.run.material import prepare

    config = read_resolved(folder / "config.yaml")
    replay = config.replay.build()
    if config.is_baseline or math.isinf(replay.ratio):
        return 0.0
    size = 0
    for path in folder.glob("stages/*/pseudo_queries.jsonl"):
        for line in path.read_text("utf-8").splitlines():
            size += sum(len(query.encode()) for query in json.loads(line)["queries"])
    stream = prepare(config, folder / "tokenizer").stream
    corpora = range(len(stream)) if replay.is_oracle else range(1)
    if replay.is_oracle or replay.config.stored_queries > 0:
        kept = {query for corpus in corpora for query in stream.train_pairs(corpus)[0]}
        size += sum(len(query.encode()) for query in kept)
    return size / 1000


def table(results: dict[str, list[dict[str, Any] | None]]) -> str:
    """Markdown: a line per row, over its seeds; None is a run that failed."""
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    for name, runs in results.items():
        done = [one for one in runs if one is not None]
        if not done:
            own = [*cells(name), "failed", *[""] * (len(HEAD) - 4)]
        else:
            own = cells(name) + [interval([one[column] for one in done]) for column in COLUMNS]
            first, after = (interval([one[key] for one in done]) for key in ("first", "last"))
            own += [f"{first} -> {after}".strip(), f"{done[0]['updates']:,}"]
            own += [f"{statistics.mean(one[key] for one in done):,.0f}" for key in AMOUNTS]
            failed = len(runs) - len(done)
            own += [f"{len(done)}, {failed} failed" if failed else str(len(done))]
        lines.append("| " + " | ".join(own) + " |")
    return "\n".join(lines) + "\n"


def interval(values: Sequence[float | None]) -> str:
    """Mean and 95 % interval over seeds, by Student's t with one degree of freedom less."""
    from scipy import stats

    known = [value for value in values if value is not None]
    if not known:
        return ""
    if len(known) == 1:
        return f"{known[0]:.1f}"
    error = statistics.stdev(known) / math.sqrt(len(known))
    half = float(stats.t.ppf(0.975, len(known) - 1)) * error
    return f"{statistics.mean(known):.1f} ± {half:.1f}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("config")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="of every row")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument(
        "--rows", action="append", metavar="PATTERN", help="of names; may be repeated"
    )
    both = "peak rates of stage 0 and of later stages"
    parser.add_argument("--rate-random", default="2e-3,9e-4", help=f"{both}; of centroid, too")
    parser.add_argument("--rate-lexical", default="1e-4,2e-5", help=both)
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run what is missing and print the table."""
    from continual.config.loading import load_config
    from dsi.errors import UserError

    options = parse(arguments)
    # what a user sets holds for every row, so it may not be what tells them apart
    shared = list({key_of(text): text for text in [*SHARED, *options.settings]}.values())
    try:
        model = load_config(options.config, shared).model
    except UserError as error:
        raise SystemExit(str(error)) from error
    if model.source != "scratch":
        raise SystemExit("model.source: the starts are those of a model from scratch; leave it out")
    random, lexical = options.rate_random, options.rate_lexical
    everything = rows({"random": random, "centroid": random, "lexical": lexical}, model.d_model)
    chosen = {
        name: own
        for name, own in everything.items()
        if any(fnmatchcase(name, pattern) for pattern in options.rows or ["*"])
    }
    if not chosen:
        raise SystemExit(f"--rows: none of them is meant; there are: {', '.join(everything)}")
    clash = {key_of(text) for own in chosen.values() for text in own} & {*map(key_of, shared)}
    if clash:
        raise SystemExit(f"{min(clash)}: belongs to the rows; leave it out, or see --help")
    found: dict[str, list[dict[str, Any] | None]] = {name: [] for name in chosen}

    def one(name: str, seed: int) -> dict[str, Any] | None:
        matrix = run(options.config, shared, options.out, name, chosen[name], seed)
        done = "failed, see its .log" if matrix is None else "done"
        print(f"{name}, seed {seed}: {done}", file=sys.stderr, flush=True)
        return None if matrix is None else figures(options.out / f"{name}-s{seed}", matrix)

    with ThreadPoolExecutor(options.jobs) as workers:
        ended = [
            (name, workers.submit(one, name, seed))
            for seed in range(options.seeds)
            for name in chosen
        ]
        try:
            for name, future in ended:
                found[name].append(future.result())
                write(options.out, {name: runs for name, runs in found.items() if runs})
        finally:
            workers.shutdown(cancel_futures=True)  # after Ctrl-C no further run begins
    print(table(found), end="")
    return found


def key_of(setting: str) -> str:
    """Of key=value."""
    return setting.partition("=")[0]


def write(out: Path, results: dict[str, Any]) -> None:
    """The table as far as it is."""
    (out / "methods.md").write_text(table(results), "utf-8")
    (out / "methods.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
