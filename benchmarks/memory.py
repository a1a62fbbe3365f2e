"""Peak memory and throughput of everything between a folder of documents and the first update.

    python -m benchmarks.memory                             # 1M documents of 100 words
    python -m benchmarks.memory --documents 50000 --json out.json

Writes a synthetic corpus in BEIR layout with queries and a stream of six corpora, then runs each
part in a process of its own, one after the other, on what the parts before have left in the cache:

* ``read``: JSON lines, qrels and stream to checked Arrow tables; ``open``: the same from the cache;
* ``tokenizer``: a Unigram vocabulary from D_0; ``tokenize``: the stream with its token ids;
* ``atomic``, ``naive``, ``semantic``: docids of every corpus made, written and read again;
* ``batch``: a mixture of views and queries drawn (:mod:`dsi.examples.batches`) as in training;
* ``all``: read, tokenize, assign (naive) and batch in one process, with an empty cache.

Peak memory is ``ru_maxrss`` of that process: Python, the libraries (``import`` says how much of it)
and mapped pages count in; ``own`` is the part that is no mapped file, which the system cannot take
back. Documents per second are stated per second of wall time and of the
process's processor time (a loaded machine distorts the first).
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

WORDS, VOCABULARY = 100, 50_000
CORPORA = (0.5, 0.1, 0.1, 0.1, 0.1, 0.1)
BATCHES, BATCH_SIZE = 300, 128
SEMANTIC = 20_000  # documents: clustering is not part of the bound
PARTS = ("import", "read", "open", "tokenizer", "tokenize", "atomic", "naive", "batch", "all")
LIMIT = 2_000  # MB


def write_synthetic(folder: Path, documents: int, seed: int = 0) -> None:
    """``documents`` of 100 words, Zipf-distributed; a train and a test query for every hundredth.

    The stream "six" is a random order of all of them.
    """
    from dsi.corpus.corpus import write_corpus

    rng = np.random.default_rng(seed)
    consonants, vowels = np.array(list("bcdfghjklmnprstvz")), np.array(list("aeiou"))
    syllables = np.char.add(consonants[:, None], vowels).ravel()
    lengths = rng.integers(1, 5, VOCABULARY)
    words = np.array(["".join(rng.choice(syllables, n)) for n in lengths], dtype=object)
    chances = 1.0 / np.arange(10, VOCABULARY + 10)
    cumulated = np.cumsum(chances / chances.sum())

    def texts() -> Iterator[list[str]]:
        for start in range(0, documents, 10_000):
            count = min(10_000, documents - start)
            drawn = np.searchsorted(cumulated, rng.random((count, WORDS)))
            yield from words[np.minimum(drawn, VOCABULARY - 1)].tolist()

    queries = [("train", 0), ("test", 1)]
    asked: list[dict[str, str]] = []

    def rows() -> Iterator[dict[str, str]]:
        for number, text in enumerate(texts()):
            yield {"_id": f"d{number}", "title": " ".join(text[:3]), "text": " ".join(text)}
            if number % 100 == 0:
                for split, place in queries:
                    query = " ".join(text[10 + 20 * place : 18 + 20 * place])
                    asked.append({"_id": f"{split}{number}", "text": query})

    ids = np.array([f"d{number}" for number in range(documents)], dtype=object)
    bounds = (np.cumsum(CORPORA)[:-1] * documents).astype(int)
    stream = [part.tolist() for part in np.split(rng.permutation(ids), bounds)]
    qrels = {
        split: ((f"{split}{n}", f"d{n}", 1) for n in range(0, documents, 100))
        for split, _ in queries
    }
    write_corpus(folder, rows(), asked, qrels, {"six": stream})


def run_part(part: str, folder: Path, scratch: Path) -> dict[str, Any]:
    """Do one part in this process; seconds of it and documents read."""
    work: dict[str, Callable[[], int]] = {
        "import": lambda: 0,
        "read": lambda: _read(folder),
        "open": lambda: _read(folder),
        "tokenizer": lambda: _tokenizer(folder),
        "tokenize": lambda: len(_material(folder).stream.tokens),
        "atomic": lambda: _assign(folder, scratch, "atomic"),
        "naive": lambda: _assign(folder, scratch, "naive"),
        "semantic": lambda: _assign(folder, scratch, "semantic"),
        "batch": lambda: _batch(folder),
        "all": lambda: _assign(folder, scratch, "naive", with_batches=True),
    }
    import continual.run.docids  # the libraries are loaded before the clock runs

    assert continual.run.docids
    own = Own()
    own.start()
    wall, processor = time.perf_counter(), time.process_time()
    count = work[part]()
    return {
        "documents": count,
        "wall_s": time.perf_counter() - wall,
        "processor_s": time.process_time() - processor,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
        "own_mb": own.most,
    }


class Own(threading.Thread):
    """Watches the memory of this process that is no mapped file."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0.0

    def run(self) -> None:
        """Look twenty times a second."""
        while True:
            with open("/proc/self/status") as status:
                kilobytes = next(line for line in status if line.startswith("RssAnon")).split()[1]
            self.most = max(self.most, int(kilobytes) * 1024 / 1e6)
            time.sleep(0.05)


def _config(folder: Path, *settings: str) -> Any:
    from continual.config.loading import load_config

    shape = ["name=memory", f"data.corpus={folder}", "data.stream=six"]
    return load_config(
        None, ["method=windows", *shape, "tokenizer.vocabulary_size=8000", *settings]
    )


def _read(folder: Path) -> int:
    from continual.run.material import read_parts

    parts, _ = read_parts(_config(folder))
    return sum(len(part.rows) for part in parts)


def _tokenizer(folder: Path) -> int:
    from continual.run.material import _trained, read_parts

    config = _config(folder)
    parts, _ = read_parts(config)
    _trained(config, parts[0])
    return len(parts[0].rows)


def _material(folder: Path) -> Any:
    from continual.run.material import prepare

    return prepare(_config(folder))


def _assign(folder: Path, scratch: Path, scheme: str, with_batches: bool = False) -> int:
    from continual.run.docids import Assignment

    config, material = _config(folder, f"docids={scheme}"), _material(folder)
    stream, target = material.stream, scratch / scheme
    alone: Any = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None)
    made = Assignment(config, stream, target, alone)
    made.extend(len(stream) - 1)
    again = Assignment(config, stream, target, alone)
    again.read(len(stream))
    assert np.array_equal(made.scheme.codes_NT, again.scheme.codes_NT)
    if with_batches:
        _draw(config, material)
    return len(made.scheme)


def _batch(folder: Path) -> int:
    return _draw(_config(folder), _material(folder))


def _draw(config: Any, material: Any) -> int:
    """Batches of the last stage: indexing by two views, and the train queries of D_0."""
    from continual.stream.mixture import stage_sources
    from continual.stream.view import true_queries
    from dsi.examples.batches import BatchShape, batches_from

    stream, stage = material.stream, len(material.stream) - 1
    pool = true_queries(stream)
    assert pool is not None
    sources = stage_sources(config, stream, stage, [pool], 1.0, material.tokenizer)
    started = time.perf_counter(), time.process_time()
    drawn = 0
    window = config.training.window
    for batch in batches_from(sources, 0, BATCHES, window, BatchShape(BATCH_SIZE), seed=0):
        drawn += len(batch.documents)
    wall, processor = time.perf_counter() - started[0], time.process_time() - started[1]
    print(f"{drawn} examples drawn in {wall:.1f} s, {processor:.1f} s of a processor", flush=True)
    return drawn


def _spawn(part: str, folder: Path, scratch: Path, cache: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.memory", "--part", part]
    environment = {**os.environ, "DSI_CACHE": str(cache)}
    done = subprocess.run(
        [*command, "--folder", str(folder), "--scratch", str(scratch)],
        env=environment, stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{part}: exit status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def line(part: str, row: dict[str, Any]) -> str:
    """One row of the table."""
    speed = [row["documents"] / max(row[key], 1e-9) for key in ("wall_s", "processor_s")]
    seconds = f"{row['wall_s']:8.1f} {row['processor_s']:8.1f}"
    counts = f"{row['documents']:>10,d} {seconds} {speed[0]:>10,.0f} {speed[1]:>10,.0f}"
    return f"{part:<10}{counts} {row['peak_mb']:>8,.0f} {row['own_mb']:>8,.0f}"


def main() -> None:
    """Write the corpus, run every part, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--keep", type=Path, help="use this folder, and leave it there")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    for hidden in ("--part", "--folder", "--scratch"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        found = run_part(options.part, Path(options.folder), Path(options.scratch))
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as temporary:
        place = options.keep or Path(temporary)
        rows = measure(options.documents, options.parts, place)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    worst, own = (max(row[key] for row in rows.values()) for key in ("peak_mb", "own_mb"))
    print(f"largest: {own:,.0f} MB of its own of {LIMIT:,d}, {worst:,.0f} MB with mapped files")


def measure(documents: int, parts: list[str], place: Path) -> dict[str, dict[str, Any]]:
    """The numbers of every part, printed as they come."""
    folder = place / f"synthetic-{documents}"
    if not (folder / "corpus.jsonl").exists():
        write_synthetic(folder, documents)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{documents:,d} documents of {WORDS} words, {size / 1e6:,.0f} MB of files")
    heads = f"{'documents':>10} {'wall s':>8} {'cpu s':>8} {'doc/wall s':>10} {'doc/cpu s':>10}"
    print(f"{'part':<10}{heads} {'peak MB':>8} {'own MB':>8}")
    rows = {}
    for part in parts:
        cache = place / ("cache-all" if part == "all" else "cache")
        rows[part] = _spawn(part, folder, place / f"scratch-{documents}", cache)
        print(line(part, rows[part]), flush=True)
    if "atomic" in parts:
        small = place / f"synthetic-{min(documents, SEMANTIC)}"
        if not (small / "corpus.jsonl").exists():
            write_synthetic(small, min(documents, SEMANTIC))
        rows["semantic"] = _spawn("semantic", small, place / "scratch-semantic", place / "cache")
        print(line("semantic", rows["semantic"]), flush=True)
    return rows


if __name__ == "__main__":
    main()
