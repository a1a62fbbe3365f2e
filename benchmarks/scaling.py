"""Cost of an update against documents, stages and parameters; what should stay flat and what grows.

    python -m benchmarks.scaling                                # documents, stages, parameters
    python -m benchmarks.scaling --parts documents --documents 1000 1000000 --rounds 3
    python -m benchmarks.scaling --parts stages --stages 20 --json scaling.json

One process, one thread, processor time.

* ``documents``: the product's own update (``benchmarks.training``) with 1,000 to 1,000,000 random
  documents of 32 to 100 tokens, with docids of 7 codes out of 64, ``naive`` ones (digits: one
  position more for every factor of ten) and atomic ones (a row for every document). All in turn, a
  whole window of batches a round; ratios are medians of those within a round, to the first row of
  the same docids. Bytes per document: docids and trie, or of an atomic one its row, its gradient
  and AdamW's moments; texts not counted.
* ``stages``: a stream of small corpora of equal size through the trainer, with string or atomic
  docids. Ratios to stage 1 (stage 0 has another mixture), of updates and of updates per token of
  their inputs: which texts are drawn changes a little from stage to stage. Evaluation reads all
  documents and queries seen, so its cost is stated per document, too.
* ``parameters``: models of several shapes in turn, same texts; ratios of time and of
  floating-point operations to the smallest, and the share of the matrix peak.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.decoding import POSITIONS, SMALL, random_docids
from benchmarks.end_to_end import Stopwatch, run_stages
from benchmarks.options import add_options, keep, processor
from benchmarks.training import SIZES, MatrixPeak, Ours, Texts, Work, synthetic
from dsi.docids import NewDocuments
from dsi.docids.naive import Naive
from dsi.search.trie import Trie

SHAPES: dict[str, dict[str, int]] = {
    "d128": dict(
        vocab_size=8192,
        d_model=128,
        d_kv=32,
        d_ff=512,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
    ),
    "d256": SIZES["small"],
    "d512": dict(vocab_size=8192, **SMALL),
    "tiny": SIZES["tiny"],
}
ROW_COPIES = 4  # weight, gradient, two moments
WINDOW = 16  # a quarter of the default, for shorter rounds


# --- documents ------------------------------------------------------------------------------------


def docids_of(kind: str, count: int) -> np.ndarray | None:
    """Codes (N, T) of ``count`` documents; None for atomic ones."""
    if kind == "naive":
        return Naive(Naive.Config()).extend(NewDocuments(count))
    if kind == "codes":
        return random_docids(count)
    return None


def against_documents(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All kinds of docids at all sizes, in turn."""
    shape = SHAPES[options.shape]
    entered: list[tuple[str, int, Ours]] = []
    for count in options.documents:
        texts = synthetic("B", count, shape["vocab_size"], 0)
        for kind in options.docids:
            if kind == "atomic" and count > options.atomic_limit:
                continue
            codes = docids_of(kind, count)
            own = Texts(kind, texts.sources, count, texts.vocabulary, texts.longest, codes)
            positions = 1 if codes is None else codes.shape[1]
            one = Ours(
                own, shape, positions, options.batch_size, "cpu", "no", dropout=0.0, window=WINDOW
            )
            one.round(options.updates or None)  # moments and orders are made, memory is warm
            entered.append((kind, count, one))
    works: list[list[Work]] = [[] for _ in entered]
    for _ in range(options.rounds):
        for (_, _, one), done in zip(entered, works, strict=True):
            done.append(one.round(options.updates or None))
    print("| docids | documents | codes | ms/update | ratio | bytes/document | trie, s |")
    print("|---|---|---|---|---|---|---|")
    rows, first = [], {}
    for (kind, count, one), done in zip(entered, works, strict=True):
        base = first.setdefault(kind, done)
        built = Trie.build(one.texts.codes_NT) if one.texts.codes_NT is not None else None
        stored = 0.0 if one.texts.codes_NT is None else one.texts.codes_NT.nbytes
        seconds = None
        if built is not None:
            started = one.clock()
            Trie.build(one.texts.codes_NT)  # pyright: ignore[reportArgumentType]
            seconds = one.clock() - started
            stored += built.num_bytes
        else:
            stored += 4 * ROW_COPIES * count * shape["d_model"]
        row = {
            "docids": kind,
            "documents": count,
            "codes": one.positions,
            "milliseconds": 1e3 * statistics.median(_per_update(w, one) for w in done),
            "ratio": _ratio(done, base, one),
            "weights": _weights(one),
            "bytes_per_document": stored / count,
            "trie_seconds": seconds,
        }
        rows.append(row)
        print(
            f"| {kind} | {count:,} | {one.positions} | {row['milliseconds']:.0f} | "
            f"{row['ratio']:.2f} | {row['bytes_per_document']:,.0f} | "
            f"{'' if seconds is None else f'{seconds:.3f}'} |",
            flush=True,
        )
    return rows


def _weights(one: Ours) -> int:
    return sum(p.numel() for p in one.model.parameters())


def _per_update(work: Work, one: Ours) -> float:
    return work.seconds / work.examples * one.size


def _ratio(done: Sequence[Work], base: Sequence[Work], one: Ours) -> float:
    return statistics.median(
        _per_update(work, one) / _per_update(other, one)
        for work, other in zip(done, base, strict=True)
    )


# --- stages ---------------------------------------------------------------------------------------


def write_stream(folder: Path, stages: int, documents: int, seed: int = 0) -> None:
    """A stream ``equal``: a corpus of ``documents`` documents of 40 to 80 words per stage; every
    document has a train and a test query."""
    from dsi.corpus.corpus import write_corpus

    rng = np.random.default_rng(seed)
    syllables = np.array([c + v for c in "bcdfghklmnprstvz" for v in "aeiou"], dtype=object)
    words = sorted({"".join(rng.choice(syllables, rng.integers(1, 4))) for _ in range(3000)})
    texts = [rng.choice(words, rng.integers(40, 81)).tolist() for _ in range(stages * documents)]
    rows = (
        {"_id": f"d{i}", "title": " ".join(text[:2]), "text": " ".join(text)}
        for i, text in enumerate(texts)
    )
    queries, qrels = [], {"train": [], "test": []}
    for i, text in enumerate(texts):
        for split in qrels:
            start = int(rng.integers(0, len(text) - 8))
            queries.append({"_id": f"{split}{i}", "text": " ".join(text[start : start + 8])})
            qrels[split].append((f"{split}{i}", f"d{i}", 1))
    ids = [f"d{i}" for i in range(len(texts))]
    stream = [ids[i : i + documents] for i in range(0, len(ids), documents)]
    write_corpus(folder, rows, queries, qrels, {"equal": stream})


def against_stages(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One run per kind of docids; every stage's updates and evaluation."""
    rows = []
    print(
        "| docids | stage | documents | ms/update | ratio | ratio per token | evaluation, s | "
        "ms/document |\n|---|---|---|---|---|---|---|---|"
    )
    for kind in options.stage_docids:
        with tempfile.TemporaryDirectory(prefix="dsi-scaling-") as name:
            folder = Path(name)
            write_stream(folder / "corpus", options.stages, options.stage_documents)
            updates = options.stage_updates
            settings = [
                f"data.corpus={folder / 'corpus'}",
                "data.stream=equal",
                "tokenizer.vocabulary_size=2000",
                f"docids={kind}",
                f"training.updates={updates}",
                f"training.updates_per_stage={updates}",
                "training.warmup=0.1",
                "checkpoint.keep=1",
                *options.override,
            ]
            watch = Laps()
            run_stages(settings, folder, watch)
        evaluated = [
            found + answered
            for found, answered in zip(
                watch.laps["find documents"], watch.laps["answer queries"], strict=True
            )
        ]
        steps = np.asarray(watch.laps["updates"]).reshape(len(evaluated), updates)
        tokens = np.asarray(watch.cells).reshape(steps.shape).sum(1)
        middle = np.median(steps, 1)
        per_token = steps.sum(1) / tokens
        first = min(1, len(steps) - 1)
        for stage, seconds in enumerate(evaluated):
            count = (stage + 1) * options.stage_documents
            row = {
                "docids": kind,
                "stage": stage,
                "documents": count,
                "milliseconds": 1e3 * float(middle[stage]),
                "ratio": float(middle[stage] / middle[first]),
                "ratio_per_token": float(per_token[stage] / per_token[first]),
                "evaluation_seconds": seconds,
                "evaluation_milliseconds_per_document": 1e3 * seconds / count,
            }
            rows.append(row)
            print(
                f"| {kind} | {stage} | {count:,} | {row['milliseconds']:.1f} | "
                f"{row['ratio']:.2f} | {row['ratio_per_token']:.2f} | {seconds:.2f} | "
                f"{row['evaluation_milliseconds_per_document']:.2f} |",
                flush=True,
            )
        half = len(steps) // 2
        if half > 1:
            early, late = np.median(middle[1 : half + 1]), np.median(middle[half + 1 :])
            print(f"{kind}: an update of the later half of stages {late / early:.2f}x the earlier")
    return rows


class Laps(Stopwatch):
    """Keeps every call's processor seconds, too, and the padded size of every update's inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.laps: dict[str, list[float]] = {}
        self.cells: list[int] = []

    def timed(self, name: str, function: Any) -> Any:
        """The function, timed."""
        inner = super().timed(name, function)

        def call(*args: Any, **options: Any) -> Any:
            before = self._now()[0]
            found = inner(*args, **options)
            self.laps.setdefault(name, []).append(self._now()[0] - before)
            if name == "updates":
                self.cells.append(args[1].input_ids.numel())
            return found

        return call


# --- parameters -----------------------------------------------------------------------------------


def against_parameters(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Models of several shapes in turn."""
    texts = synthetic("B", 4000, min(SHAPES[name]["vocab_size"] for name in options.shapes), 0)
    entered = [
        Ours(
            texts,
            SHAPES[name],
            POSITIONS,
            options.batch_size,
            "cpu",
            "no",
            dropout=0.0,
            window=WINDOW,
        )
        for name in options.shapes
    ]
    peak = MatrixPeak("cpu", "no", options.side)
    for one in entered:
        one.round(options.updates or None)
    works: list[list[Work]] = [[] for _ in entered]
    reached = []
    for _ in range(options.rounds):
        reached.append(peak())
        for one, done in zip(entered, works, strict=True):
            done.append(one.round(options.updates or None))
    rows = []
    print("| shape | parameters | ms/update | ratio | operations, ratio | share of peak |")
    print("|---|---|---|---|---|---|")
    flops = [
        statistics.mean(one.operations(w) / w.examples for w in done)
        for one, done in zip(entered, works, strict=True)
    ]
    for name, one, done, own in zip(options.shapes, entered, works, flops, strict=True):
        row = {
            "shape": name,
            "parameters": _weights(one),
            "milliseconds": 1e3 * statistics.median(_per_update(w, one) for w in done),
            "ratio": _ratio(done, works[0], one),
            "operations_ratio": own / flops[0],
            "operations_per_example": own,
            "share_of_peak": statistics.median(
                one.operations(w) / w.seconds / p for w, p in zip(done, reached, strict=True)
            ),
        }
        rows.append(row)
        print(
            f"| {name} | {row['parameters'] / 1e6:.1f}M | {row['milliseconds']:.0f} | "
            f"{row['ratio']:.2f} | {row['operations_ratio']:.2f} | "
            f"{100 * row['share_of_peak']:.0f} % |",
            flush=True,
        )
    return rows


PARTS = {
    "documents": against_documents,
    "stages": against_stages,
    "parameters": against_parameters,
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="cost of an update as things grow")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument(
        "--documents", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000]
    )
    kinds = ["codes", "naive", "atomic"]
    parser.add_argument("--docids", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--atomic-limit", type=int, default=1_000_000)
    parser.add_argument("--shape", choices=SHAPES, default="d128", help="of part documents")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--stages", type=int, default=21)
    parser.add_argument("--stage-documents", type=int, default=50)
    parser.add_argument("--stage-updates", type=int, default=32)
    parser.add_argument("--stage-docids", nargs="+", default=["naive", "atomic"])
    parser.add_argument("--override", nargs="*", default=[], help="settings of part stages")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["d128", "d256", "d512"])
    parser.add_argument("--updates", type=int, default=0, help="of a round; 0: a window")
    parser.add_argument("--side", type=int, default=0, help="of the matrices of the peak")
    add_options(parser)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the parts."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    result: dict[str, Any] = {"machine": processor(), "torch": torch.__version__}
    print(f"{result['machine']}, torch {torch.__version__}")
    for part in options.parts:
        result[part] = PARTS[part](options)
    keep(result, options.json)
    return result


if __name__ == "__main__":
    main()
