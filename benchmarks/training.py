"""The training step against a plain loop: useful tokens per second and share of the matrix peak.

    python -m benchmarks.training                              # 10M weights, mixtures A and B
    python -m benchmarks.training --precision no bf16 --rounds 7 --json training.json
    python -m benchmarks.training --corpus FOLDER --mixtures B
    python -m benchmarks.training --device cuda --size base --batch-size 128 --mixtures fixed \
        --length 32 --precision no bf16 --peak 790

All contestants run in one process, one thread, in turn: per round the plain ones a few updates,
ours a whole window of batches, since only that has texts of all lengths. A number is the median
over the rounds, in processor time (on a GPU: wall time with synchronisation), a ratio that of the
ratios within a round. Making batches is part of the time. Random weights: what is compared is work.

* ``plain``: ``T5ForConditionalGeneration`` that writes docids as words of its one vocabulary, every
  input padded to the longest a text may be, fp32, dropout 0.1, torch's default AdamW, gradients
  clipped: what public DSI code does. ``plain, longest``: padded to the longest of its random batch;
* ``ours``: ``DSIModel``, ``Update``, ``make_optimizer`` and length-bucketed windows, as the
  trainer uses them (its dropout included), with the same sizes, texts, dropout and clipping.

Mixtures: ``A`` documents of 32 to 64 tokens; ``B`` one quarter the first 64 tokens of documents of
32 to 100, three quarters queries (lognormal, mean 10); ``fixed`` ``--length`` tokens each. Docids
are 7 codes, or 1 (atomic). With ``--corpus`` texts and mixture are those of a run's stage 0.

Useful tokens are the tokens of the inputs that are no padding. Share of the peak: 3 x the forward
pass's floating-point operations for them, over what a large matrix product reaches in the same
round and type. Forward, per example of l tokens, T positions and C output rows in all: encoder
layers x l x 2 x (4 d i + m d f + 2 l i) + decoder layers x (T x 2 x (6 d i + m d f + 2 T i + 2 l i)
+ l x 2 x 2 d i) + T x 2 d C / (positions that share the rows), with d the width, i = heads x width
of a head, f the feed-forward width, m its matrices. Ours has C / T rows a position, plain the whole
vocabulary. Norms, softmax, dropout, padding and the optimizer count as no operations.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import T5Config, T5ForConditionalGeneration

from benchmarks.decoding import BASE
from benchmarks.options import add_options, keep, processor, require_device
from benchmarks.updates import SMALL, make_accelerator, update
from continual.config.loading import load_config
from continual.config.schema import TrainingConfig
from continual.run.material import prepare, prepare_layers
from continual.stream.mixture import stage_sources
from continual.stream.view import true_queries
from continual.update.optimizer import make_optimizer
from dsi.examples.batches import Batch, BatchShape, batches_from
from dsi.examples.prefetch import ahead
from dsi.examples.sources import DocumentSampler, DocumentSource, ExampleSource, QuerySource
from dsi.model.dsi_model import from_scratch
from dsi.text.tokens import Tokens
from dsi.text.views import View

SIZES: dict[str, dict[str, int]] = {
    "tiny": dict(
        vocab_size=512, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_decoder_layers=1, num_heads=4
    ),
    "small": dict(vocab_size=8192, **SMALL),
    "base": dict(vocab_size=32_128, **BASE),
}
CODES, LONGEST = 64, 64
FOREVER = 1 << 30  # updates
FIRST_WORD = 3  # after padding, end and unknown
NO_TOKENS = np.zeros(0, np.int32)
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Texts:
    """What is trained on: ``sources`` makes them anew for a seed."""

    name: str
    sources: Callable[[int], list[ExampleSource]]
    documents: int
    vocabulary: int
    longest: int
    codes_NT: np.ndarray | None = None
    """Docids; None: random codes, or one for every document."""


@dataclass
class Work:
    """What one contestant did in one round."""

    seconds: float
    examples: int
    tokens: int
    squares: int
    cells: int

    @property
    def rate(self) -> float:
        """Useful tokens per second."""
        return self.tokens / self.seconds


class Clock:
    """Processor seconds of this process; wall seconds after synchronisation on a GPU."""

    def __init__(self, device: str):
        self.device = device

    def __call__(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()


# --- texts ----------------------------------------------------------------------------------------


def random_texts(lengths: np.ndarray, vocabulary: int, rng: np.random.Generator) -> Tokens:
    """Texts of the given lengths, without special tokens."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    values = rng.integers(FIRST_WORD, vocabulary, int(offsets[-1]), dtype=np.int32)
    return Tokens(values, offsets)


def synthetic(name: str, documents: int, vocabulary: int, length: int) -> Texts:
    """One of the mixtures."""
    rng = np.random.default_rng(0)
    low, high = {"A": (32, 64), "B": (32, 100), "fixed": (length, length)}[name]
    texts = random_texts(rng.integers(low, high + 1, documents), vocabulary, rng)
    answers = np.repeat(np.arange(documents), 4)
    drawn = rng.lognormal(np.log(10) - 0.125, 0.5, len(answers))
    queries = random_texts(drawn.round().clip(3, LONGEST).astype(int), vocabulary, rng)
    longest = length if name == "fixed" else LONGEST

    def sources(seed: int) -> list[ExampleSource]:
        sampler = DocumentSampler([(np.arange(documents), 1.0)], seed)
        view = View("first", 1.0, longest)
        share = 0.25 if name == "B" else 1.0
        made: list[ExampleSource] = [DocumentSource(texts, view, sampler, share, seed, NO_TOKENS)]
        if name == "B":
            made.append(QuerySource(queries, answers, 0.75, seed, NO_TOKENS))
        return made

    return Texts(name, sources, documents, vocabulary, longest)


def of_corpus(folder: str, vocabulary: int) -> Texts:
    """The mixture of stage 0 of a run on a corpus, all of whose documents are D_0."""
    material, config, mixture = stage_zero(folder, vocabulary)
    longest = max(
        int(material.stream.train_queries(0)[0].lengths.max(initial=1)),
        *(view.length for view in config.views),
    )
    size = max(vocabulary, len(material.tokenizer))
    return Texts(
        Path(folder).name, lambda seed: mixture(seed), material.stream.count(0), size, longest
    )


def stage_zero(folder: str, vocabulary: int, overrides: Sequence[str] = ()) -> tuple:
    """Material and configuration of a corpus as one stage, and its mixture for a seed."""
    given = ["method=windows", f"data.corpus={folder}", "data.stream=null"]
    given += [f"tokenizer.vocabulary_size={vocabulary}", *overrides]
    config = load_config(None, given)
    material = prepare(config)
    queries = true_queries(material.stream)
    pools = [queries] if queries else []

    def mixture(seed: int) -> list[ExampleSource]:
        seeded = replace(config, seed=seed)
        ratio = config.training.ratio
        return stage_sources(seeded, material.stream, 0, pools, ratio, material.tokenizer)

    return material, config, mixture


# --- contestants ----------------------------------------------------------------------------------


def bf16_missing(device: str) -> str | None:
    """Why bf16 is not worth timing here; None where it is."""
    if device == "cuda":
        return None if torch.cuda.is_bf16_supported() else "this GPU has no bf16 units"
    flags = torch.cpu.get_capabilities()
    if any(flags.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")):
        return None
    return "this processor has no bf16 units (neither avx512_bf16 nor amx_bf16)"


class Contestant:
    """A model, its optimizer and an endless sequence of batches."""

    name = ""
    updates_per_round = 4

    def __init__(
        self, texts: Texts, shape: dict[str, int], positions: int, size: int, device: str,
        precision: str,
    ):  # fmt: skip
        self.texts, self.shape, self.positions, self.size = texts, shape, positions, size
        self.device, self.precision = device, precision
        self.clock = Clock(device)
        self.updates = 0
        self.sequence: Iterator[Batch] | None = None
        codes = texts.codes_NT
        if codes is None and positions == 1:
            codes = np.arange(texts.documents)[:, None]
        elif codes is None:
            codes = np.random.default_rng(1).integers(0, CODES, (texts.documents, positions))
        self.codes = torch.from_numpy(codes).long().to(device)

    def batches(self) -> Iterator[Batch]:
        """From the next update on, without an end in sight."""
        raise NotImplementedError

    def step(self, batch: Batch) -> int:
        """One update; returns the padded size of its inputs."""
        raise NotImplementedError

    def round(self, updates: int | None = None) -> Work:
        """Some updates, timed with the making of their batches."""
        count = updates or self.updates_per_round
        masks, cells, examples = [], 0, 0
        started = self.clock()
        self.sequence = self.sequence or self.batches()
        for _ in range(count):
            batch = next(self.sequence)
            cells += self.step(batch)
            examples += len(batch.documents)
            masks.append(batch.attention_mask)
            self.updates += 1
        seconds = self.clock() - started
        lengths = torch.cat([mask.sum(1) for mask in masks])
        return Work(
            seconds, examples, int(lengths.sum()), int((lengths * lengths).sum()), cells
        )  # fmt: skip

    def operations(self, work: Work) -> int:
        """Useful floating-point operations of a round, by the formula above."""
        return 3 * forward_operations(
            self.shape, work.examples, work.tokens, work.squares, self.positions, self.rows()
        )

    def rows(self) -> int:
        """Output rows that one docid position is scored against."""
        raise NotImplementedError


class Plain(Contestant):
    """A loop as public DSI code has it."""

    def __init__(
        self, *args: Any, longest: bool = False, attention: str = "eager", dropout: float = 0.1
    ):
        super().__init__(*args)
        self.longest = longest
        self.name = "plain, longest" if longest else "plain"
        atomic = self.texts.documents if self.positions == 1 else 0
        words = max(self.texts.vocabulary, FIRST_WORD + (atomic or CODES * self.positions))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            values: dict[str, Any] = {
                **self.shape,
                "vocab_size": words,
                "dropout_rate": dropout,
                "decoder_start_token_id": 0,
                "attn_implementation": attention,
            }
            config = T5Config(**values)
            self.words = words
            self.model = T5ForConditionalGeneration(config).to(self.device)  # pyright: ignore
        self.model.train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        # a docid's codes are words of the one vocabulary
        shift = torch.arange(self.positions, device=self.device) * (CODES if not atomic else 0)
        self.labels = self.codes + shift + FIRST_WORD

    def rows(self) -> int:
        return self.words

    def batches(self) -> Iterator[Batch]:
        # windows of one update are random batches
        sources = self.texts.sources(0)
        return batches_from(sources, self.updates, FOREVER, 1, BatchShape(self.size), seed=0)

    def step(self, batch: Batch) -> int:
        ids, mask = batch.input_ids, batch.attention_mask
        if not self.longest:
            missing = self.texts.longest - ids.shape[1]
            ids, mask = (torch.nn.functional.pad(x, (0, missing)) for x in (ids, mask))
        ids, mask = ids.to(self.device), mask.to(self.device)
        labels = self.labels[batch.documents.to(self.device)]
        self.optimizer.zero_grad()
        with torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16"):
            loss = self.model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return ids.numel()


class Ours(Contestant):
    """The product's own update."""

    def __init__(
        self, *args: Any, dropout: float = 0.1, window: int = 0, **settings: Any
    ):  # fmt: skip
        super().__init__(*args)
        self.name = "ours" if dropout else "ours, dropout 0"
        self.settings = TrainingConfig(learning_rate=1e-4, **settings)
        self.window = window or self.settings.window
        self.updates_per_round = self.window
        self.accelerator = make_accelerator(self.precision, cpu=self.device == "cpu")
        self.sizes = [self.texts.documents] if self.positions == 1 else [CODES] * self.positions
        if self.texts.codes_NT is not None:
            self.sizes = (self.texts.codes_NT.max(0) + 1).clip(1).tolist()
        model = from_scratch(
            0,
            **{**self.shape, "vocab_size": self.texts.vocabulary},
            dropout_rate=dropout,
            code_sizes=self.sizes,
        )
        model = model.to(self.device)  # pyright: ignore[reportArgumentType]
        model.train()
        prepare_layers(model, self.settings)
        self.optimizer = make_optimizer(model, self.settings)
        self.model = self.accelerator.prepare_model(model)

    def rows(self) -> int:
        return round(sum(self.sizes) / self.positions)

    def batches(self) -> Iterator[Batch]:
        sources = self.texts.sources(0)
        groups, multiple = self.settings.length_groups, self.settings.pad_to_multiple
        shape = BatchShape(self.size, groups=groups, multiple=multiple)
        made = batches_from(sources, self.updates, FOREVER, self.window, shape, seed=0)
        if self.device != "cuda":
            return made  # a thread that makes them ahead would use the same processor
        return ahead(map(Batch.pinned, made), self.settings.prefetch)

    def step(self, batch: Batch) -> int:
        update(
            self.model,
            self.optimizer,
            batch,
            self.codes,
            self.accelerator,
            self.updates,
        )
        return sum(group.input_ids.numel() for group in batch.by_group())


def forward_operations(
    shape: dict[str, int], examples: int, tokens: int, squares: int, positions: int, rows: int
) -> int:
    """Of a forward pass over examples with ``tokens`` tokens in all, ``squares`` the sum of their
    squared lengths: the formula of this module's docstring."""
    width, feed, inner = shape["d_model"], shape["d_ff"], shape["d_kv"] * shape["num_heads"]
    layer = 4 * width * inner + 2 * width * feed
    encoder = 2 * tokens * layer + 4 * squares * inner
    written = examples * positions
    cross = 2 * written * 2 * width * inner + 2 * tokens * 2 * width * inner
    attention = 4 * written * positions * inner + 4 * tokens * positions * inner
    decoder = 2 * written * layer + cross + attention
    layers, later = shape["num_layers"], shape["num_decoder_layers"]
    return layers * encoder + later * decoder + 2 * written * width * rows


class MatrixPeak:
    """Operations per second of a large matrix product."""

    def __init__(self, device: str, precision: str, side: int = 0, repeats: int = 0):
        self.clock = Clock(device)
        self.side = side or (8192 if device == "cuda" else 2048)
        self.repeats = repeats or (50 if device == "cuda" else 2)
        shape = (self.side, self.side)
        self.left = torch.randn(shape, device=device, dtype=torch.float32).to(DTYPES[precision])
        self.right = torch.randn(shape, device=device, dtype=torch.float32).to(DTYPES[precision])

    def __call__(self) -> float:
        with torch.no_grad():
            started = self.clock()
            for _ in range(self.repeats):
                torch.mm(self.left, self.right)
            return self.repeats * 2 * self.side**3 / (self.clock() - started)


# --- the table ------------------------------------------------------------------------------------


def contestants(
    options: argparse.Namespace, texts: Texts, positions: int, precisions: Sequence[str]
) -> list[Contestant]:
    """The rows of a table, the plain one that all are compared with first."""
    shape = SIZES[options.size]
    made: list[Contestant] = []
    for precision in dict.fromkeys(["no", *precisions]):
        args = (texts, shape, positions, options.batch_size, options.device, precision)
        made.append(Plain(*args, attention=options.attention))
        if precision == "no" and "longest" in options.rows and texts.name != "fixed":
            made.append(Plain(*args, longest=True, attention=options.attention))
        if precision in precisions:
            settings = {"window": options.window, "compile": options.compile}
            settings["pad_to_multiple"] = options.multiple
            made.append(Ours(*args, **settings))
            if "dropout" in options.rows:
                made.append(Ours(*args, dropout=0.0, **settings))
    return made


def measure(
    options: argparse.Namespace, texts: Texts, positions: int, precisions: Sequence[str]
) -> list[dict[str, Any]]:
    """One table: all contestants in turn."""
    entered = contestants(options, texts, positions, precisions)
    peaks = {
        precision: MatrixPeak(options.device, precision, options.side)
        for precision in dict.fromkeys(c.precision for c in entered)
    }
    for one in entered:
        one.round(options.updates or None)  # moments and orders are made, memory is warm
    reached: dict[str, list[float]] = {precision: [] for precision in peaks}
    works: list[list[Work]] = [[] for _ in entered]
    for _ in range(options.rounds):
        for precision, peak in peaks.items():
            reached[precision].append(options.peak * 1e12 if options.peak else peak())
        for one, done in zip(entered, works, strict=True):
            done.append(one.round(options.updates or None))
    rows = []
    for one, done in zip(entered, works, strict=True):
        shares = [
            one.operations(work) / work.seconds / peak
            for work, peak in zip(done, reached[one.precision], strict=True)
        ]
        rows.append(
            {
                "texts": texts.name,
                "positions": positions,
                "name": one.name,
                "precision": one.precision,
                "tokens_per_second": statistics.median(w.rate for w in done),
                "examples_per_second": statistics.median(w.examples / w.seconds for w in done),
                "ratio": statistics.median(
                    w.rate / plain.rate for w, plain in zip(done, works[0], strict=True)
                ),
                "share_of_peak": statistics.median(shares),
                "peak": statistics.median(reached[one.precision]),
                "tokens_per_example": sum(w.tokens for w in done) / sum(w.examples for w in done),
                "padding": 1 - sum(w.tokens for w in done) / sum(w.cells for w in done),
                "milliseconds_per_update": 1e3
                * statistics.median(w.seconds / w.examples * one.size for w in done),
                "weights": sum(p.numel() for p in one.model.parameters()),  # type: ignore[attr-defined]
            }
        )
        print(line(rows[-1]), flush=True)
    return rows


HEADER = (
    "| texts | codes | contestant | tokens/s | x plain | share of peak | examples/s | padding |\n"
    "|---|---|---|---|---|---|---|---|"
)


def line(row: dict[str, Any]) -> str:
    """A line of the table."""
    precision = row["precision"].replace("no", "fp32")
    return (
        f"| {row['texts']} | {row['positions']} | {row['name']}, {precision} | "
        f"{row['tokens_per_second']:,.0f} | {row['ratio']:.2f} | "
        f"{100 * row['share_of_peak']:.0f} % | {row['examples_per_second']:,.1f} | "
        f"{100 * row['padding']:.0f} % |"
    )


def profile_shares(one: Contestant, limit: int = 15) -> list[tuple[str, float]]:
    """Where the time of one round goes: operators by their share of self time."""
    kinds = [ProfilerActivity.CPU]
    if one.device == "cuda":
        kinds.append(ProfilerActivity.CUDA)
    one.round()
    with profile(activities=kinds) as found:
        one.round()
    key = "self_device_time_total" if one.device == "cuda" else "self_cpu_time_total"
    events = sorted(found.key_averages(), key=lambda e: -getattr(e, key))
    total = sum(getattr(e, key) for e in events)
    return [(e.key[:70], getattr(e, key) / total) for e in events[:limit]]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="speed of the training step against a plain loop")
    parser.add_argument("--mixtures", nargs="+", choices=["A", "B", "fixed"], default=["B", "A"])
    parser.add_argument("--positions", type=int, nargs="+", default=[7, 1], help="codes of a docid")
    parser.add_argument("--corpus", help="a corpus instead of the mixtures")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--documents", type=int, default=4000)
    parser.add_argument("--length", type=int, default=32, help="tokens of mixture fixed")
    parser.add_argument("--precision", nargs="+", choices=["no", "bf16"], default=["no"])
    parser.add_argument("--attention", choices=["eager", "sdpa"], default="eager", help="of plain")
    parser.add_argument(
        "--rows", nargs="*", choices=["longest", "dropout"], default=["longest", "dropout"]
    )
    parser.add_argument("--window", type=int, default=0, help="updates; 0: the trainer's default")
    parser.add_argument("--compile", default="no", help="mode of torch.compile, of ours")
    parser.add_argument("--multiple", type=int, default=1, help="of lengths, of ours")
    parser.add_argument("--updates", type=int, default=0, help="of a round; 0: 4, ours a window")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--peak", type=float, default=0.0, help="TFLOP/s; 0: measured")
    parser.add_argument("--side", type=int, default=0, help="of the matrices of the peak")
    parser.add_argument("--profile", action="store_true", help="where the time of ours goes")
    add_options(parser)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the tables."""
    options = parse(arguments)
    require_device(options.device)
    torch.set_num_threads(options.threads)
    machine = torch.cuda.get_device_name() if options.device == "cuda" else processor()
    result: dict[str, Any] = {
        "machine": machine,
        "torch": torch.__version__,
        "size": options.size,
        "batch_size": options.batch_size,
        "threads": options.threads,
    }
    print(f"{machine}, torch {torch.__version__}, {options.size}, batch {options.batch_size}")
    precisions = list(options.precision)
    reason = bf16_missing(options.device) if "bf16" in precisions else None
    if reason:
        print(f"bf16 is skipped: {reason}")
        result["bf16_skipped"] = reason
        precisions.remove("bf16")
    vocabulary = SIZES[options.size]["vocab_size"]
    if options.corpus:
        entered = [of_corpus(options.corpus, vocabulary)]
    else:
        number, length = options.documents, options.length
        entered = [synthetic(n, number, vocabulary, length) for n in options.mixtures]
    result["rows"], result["profiles"] = [], []
    if precisions:
        print(HEADER)
    for positions in options.positions if precisions else []:
        for texts in entered:
            result["rows"] += measure(options, texts, positions, precisions)
    peaks = {row["precision"]: row["peak"] for row in result["rows"]}
    for precision, peak in peaks.items():
        print(f"matrix products, {precision.replace('no', 'fp32')}: {peak / 1e9:,.0f} GFLOP/s")
    if options.profile and precisions:
        args = (entered[0], SIZES[options.size], options.positions[0], options.batch_size)
        one = Ours(*args, options.device, precisions[-1], window=options.window)
        result["profiles"] = profile_shares(one)
        for name, share in result["profiles"]:
            print(f"{100 * share:5.1f} %  {name}")
    keep(result, options.json)
    return result


if __name__ == "__main__":
    main()
