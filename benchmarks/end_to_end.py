"""One whole stage: what each part of it costs, from a folder of documents to a checkpoint.

    python -m benchmarks.end_to_end                              # the embedded sample as one corpus
    python -m benchmarks.end_to_end data.corpus=FOLDER replay.memory=both docids=semantic
    python -m benchmarks.end_to_end --json out.json training.updates=300

``key=value`` are settings of the run, on top of the preset ``windows`` and pseudo-queries of spans;
``data.stream`` is null unless given, so all documents are D_0. Nothing is read from a cache: it is
a new one. The stage is the trainer's own; the parts are timed where it calls them, in processor
time of this process and in wall time; batches are made in the loop, not ahead of it by a thread, so
that their time can be told:

* ``read and tokenize``: corpus, tokenizer (trained, unless a name is given), token ids;
* ``docids``: made, written and reported; ``write pseudo-queries``: by all writers of the memory,
  of which ``train generator`` is the learned one's training, and ``memory quality`` its measures;
* ``make batches``, ``updates``: the loop; ``find documents``, ``answer queries``: the two halves of
  evaluation; ``write results``: runs, per-query files, model; ``checkpoint``; ``rest``.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.options import keep, processor

BASE = ("method=windows", "replay=generative")  # so that every part has something to do


class Stopwatch:
    """Processor and wall seconds by part, each second counted in the innermost part alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.calls: dict[str, int] = {}
        self._open: list[str] = []
        self._last = self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.process_time(), time.perf_counter()

    def _count(self) -> None:
        now = self._now()
        if self._open:
            spent = self.seconds.setdefault(self._open[-1], [0.0, 0.0])
            for i in range(2):
                spent[i] += now[i] - self._last[i]
        self._last = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time until the end belongs to ``name``."""
        self._count()
        self._open.append(name)
        self.calls[name] = self.calls.get(name, 0) + 1
        try:
            yield
        finally:
            self._count()
            self._open.pop()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def call(*args: Any, **options: Any) -> Any:
            with self.part(name):
                return function(*args, **options)

        return call

    def drawn(self, name: str, function: Callable[..., Iterator[Any]]) -> Callable[..., Any]:
        """The generator function, timed while it makes its items."""

        def call(*args: Any, **options: Any) -> Iterator[Any]:
            items = iter(function(*args, **options))
            while True:
                with self.part(name):
                    item = next(items, None)
                if item is None:
                    return
                yield item

        return call


@contextmanager
def watched(watch: Stopwatch) -> Iterator[None]:
    """The trainer's parts, timed where it calls them."""
    from continual import stage, trainer
    from continual.measure import evaluation
    from continual.replay import generative
    from continual.run import directory
    from continual.run import docids as assignment
    from continual.update.update import Update
    from dsi.queries.generator import QueryGenerator

    places: list[tuple[Any, str, str]] = [
        (assignment.Assignment, "extend", "docids"),
        (generative, "cached_generate", "write pseudo-queries"),
        (generative, "measure", "memory quality"),
        (QueryGenerator, "train", "train generator"),
        (Update, "take", "updates"),
        (evaluation.Evaluator, "documents_found", "find documents"),
        (evaluation.Evaluator, "evaluate", "answer queries"),
        (directory, "write_results", "write results"),
        (trainer, "write_index", "write results"),
        (trainer.checkpoints, "save", "checkpoint"),
    ]
    with ExitStack() as stack:
        for owner, name, part in places:
            timed = watch.timed(part, getattr(owner, name))
            if owner is QueryGenerator:
                timed = staticmethod(timed)
            stack.enter_context(mock.patch.object(owner, name, timed))
        drawn = watch.drawn("make batches", stage.batches_from)
        stack.enter_context(mock.patch.object(stage, "batches_from", drawn))
        yield


def run_stages(settings: Sequence[str], folder: Path, watch: Stopwatch) -> tuple[Any, Any, Path]:
    """Train a run of ``settings`` on top of BASE; configuration, stream, folder.

    The cache is ``folder``'s own, so that nothing is found made.
    """
    from continual.config.loading import load_config
    from continual.run.material import prepare
    from continual.trainer import Trainer

    config = load_config(
        None, [*BASE, f"output={folder / 'runs'}", "name=stage", "training.prefetch=0", *settings]
    )
    with (
        mock.patch.dict(os.environ, DSI_CACHE=str(folder / "cache")),
        watched(watch),
        watch.part("rest"),
    ):
        with watch.part("read and tokenize"):
            material = prepare(config)
        trainer = Trainer(config, material, config.folder)
        state = trainer.load()
        with closing(trainer.tracker):
            trainer.run(state)
    return config, material.stream, config.folder


def measure(settings: Sequence[str]) -> dict[str, Any]:
    """Run one stage; seconds and rates."""
    stream_given = any(setting.startswith("data.stream=") for setting in settings)
    given = [*([] if stream_given else ["data.stream=null"]), *settings]
    watch = Stopwatch()
    with tempfile.TemporaryDirectory(prefix="dsi-stage-") as name:
        config, stream, folder = run_stages(given, Path(name), watch)
        written = 0
        for path in sorted(folder.glob("stages/*/pseudo_queries.jsonl")):
            lines = path.read_text("utf-8").splitlines()
            written += sum(len(json.loads(text)["queries"]) for text in lines)
        asked = sum(
            len(stream.judged_queries("test", corpus))
            for stage in range(len(stream))
            for corpus in range(stage + 1)
        )
        looked = sum(stream.count(stage) for stage in range(len(stream)))
        timing = json.loads((folder / "timing.json").read_text())
        matrix = json.loads((folder / "matrix.json").read_text())
    total = [sum(values[i] for values in watch.seconds.values()) for i in range(2)]
    parts = [
        {"part": part, "seconds": cpu, "wall": wall, "share": cpu / total[0]}
        for part, (cpu, wall) in watch.seconds.items()
    ]
    cpu = {part["part"]: part["seconds"] for part in parts}
    updates = watch.calls["updates"]
    rates = {
        "pseudo-queries written": _rate(written, cpu.get("write pseudo-queries", 0.0)),
        "queries answered": _rate(asked, cpu["answer queries"]),
        "documents found again": _rate(looked, cpu["find documents"]),
        "updates": _rate(updates, cpu["updates"]),
        "examples trained": _rate(updates * config.training.batch_size, cpu["updates"]),
    }
    return {
        "documents": stream.count(len(stream) - 1),
        "corpora": len(stream),
        "docids": config.docids.name,
        "memory": getattr(config.replay.settings, "memory", None),
        "updates": updates,
        "batch_size": config.training.batch_size,
        "pseudo_queries": written,
        "test_queries": asked,
        "seconds": total[0],
        "wall": total[1],
        "parts": parts,
        "per_second": rates,
        "timing": timing,
        "hits@10": matrix["metrics"]["hits@10"],
        "settings": list(settings),
    }


def _rate(count: int, seconds: float) -> float | None:
    return count / seconds if seconds > 0 and count else None


def show(result: dict[str, Any]) -> None:
    """The tables."""
    corpora = f" in {result['corpora']} corpora" if result["corpora"] > 1 else ""
    print(
        f"{result['documents']:,} documents{corpora}, {result['docids']} docids, "
        f"{result['updates']:,} updates of {result['batch_size']} examples, "
        f"{result['pseudo_queries']:,} pseudo-queries, {result['test_queries']:,} test queries: "
        f"{result['seconds']:.1f} s of processor, {result['wall']:.1f} s of wall time"
    )
    print("| part | seconds | wall | share |\n|---|---|---|---|")
    for part in sorted(result["parts"], key=lambda part: -part["seconds"]):
        print(
            f"| {part['part']} | {part['seconds']:.2f} | {part['wall']:.2f} | "
            f"{100 * part['share']:.1f} % |"
        )
    print("| per second | |\n|---|---|")
    for name, rate in result["per_second"].items():
        print(f"| {name} | {rate:,.1f} |" if rate else f"| {name} | none |")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run one stage and print its parts."""
    parser = argparse.ArgumentParser(description="what the parts of one whole stage cost")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="of the run")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    print(f"{processor()}, torch {torch.__version__}")
    result = measure(options.settings)
    show(result)
    keep(result, options.json)
    return result


if __name__ == "__main__":
    main()
