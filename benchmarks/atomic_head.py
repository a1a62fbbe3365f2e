"""What an update of atomic docids costs, for 1k to 1M documents and every way to train their rows.

    python -m benchmarks.atomic_head                      # 1k, 10k and 100k documents
    python -m benchmarks.atomic_head --documents 1000000 --rounds 3 --json out.json

``tied``: documents are words of one T5 vocabulary (8,192 words and N documents), whose matrix is
tied to the embedding. ``dense``: rows of their own, the whole (B, N) scores. ``pieces``: the same
loss piece by piece. ``sampled``: an estimate from ``--samples`` documents. ``touched``: that, and
only the rows in it are updated. 11 tokens, AdamW, clipping at 1; random weights and data:
what is measured is the work.

All are in one process, one thread, in turn; a number is the median over the rounds, in processor
time (on a GPU: wall time with synchronisation). Memory is the most that is allocated at a time
during an update beyond weights and moments, as torch's profiler counts it (on a GPU: its
allocator).
"""

import argparse
import math
import platform
import statistics
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import T5Config, T5ForConditionalGeneration

from benchmarks.allocation import most_allocated
from benchmarks.decoding import clock
from benchmarks.options import add_options, keep
from benchmarks.updates import SMALL, make_accelerator
from continual.config.schema import TrainingConfig
from continual.update.optimizer import clip_gradient, make_optimizer
from dsi.model import docid_loss
from dsi.model.dsi_model import from_scratch

WORDS, TOKENS = 8192, 11
KINDS = ("tied", "dense", "pieces", "sampled", "touched")


class Contestant:
    """One model and its optimizer."""

    def __init__(self, kind: str, documents: int, size: int, samples: int, precision: str):
        self.kind, self.documents, self.size, self.updates = kind, documents, size, 0
        self.accelerator = make_accelerator(precision)
        self.shape = {**SMALL, "dropout_rate": 0.0}
        sampled = kind in ("sampled", "touched")
        config = TrainingConfig(
            learning_rate=1e-4,
            docid_softmax="sampled" if sampled else "exact",
            docid_samples=samples if sampled else 0,
            docid_update="touched" if kind == "touched" else "all",
        )
        self.model: Any
        if kind == "tied":
            sizes: Any = dict(self.shape, decoder_start_token_id=0, tie_word_embeddings=True)
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(0)
                self.model = T5ForConditionalGeneration(
                    T5Config(vocab_size=WORDS + documents, **sizes)
                )
        else:
            self.model = from_scratch(0, vocab_size=WORDS, code_sizes=[documents], **self.shape)
        self.model.to(self.accelerator.device).train()
        self.optimizer = make_optimizer(self.model, config)

    def update(self) -> None:
        """One optimizer step."""
        generator = torch.Generator().manual_seed(self.updates)
        torch.manual_seed(self.updates)
        device = self.accelerator.device
        ids = torch.randint(2, WORDS, (self.size, TOKENS), generator=generator).to(device)
        codes = torch.randint(self.documents, (self.size, 1), generator=generator).to(device)
        mask = torch.ones_like(ids)
        self.optimizer.zero_grad(set_to_none=True)
        with self.accelerator.autocast():
            if self.kind == "tied":
                loss = self.model(ids, mask, labels=WORDS + codes).loss
            else:
                loss = self.model(ids, mask, codes).mean()
        loss.backward()
        clip_gradient(self.accelerator, self.model.parameters(), 1.0)
        self.optimizer.step()
        self.updates += 1

    def seconds(self) -> float:
        """Of one update."""
        with pieces(self.kind == "pieces"):
            started = clock()
            self.update()
            return clock() - started

    def peak(self) -> int:
        """Bytes allocated at the worst moment of an update beyond weights and moments."""
        self.optimizer.zero_grad(set_to_none=True)
        device = self.accelerator.device
        with pieces(self.kind == "pieces"):
            if device.type == "cuda":
                before = torch.cuda.memory_allocated(device)
                torch.cuda.reset_peak_memory_stats(device)
                self.update()
                return torch.cuda.max_memory_allocated(device) - before
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
                self.update()
        return most_allocated(found)

    def bytes_per_document(self) -> dict[str, float]:
        """Of weights, moments and gradients after an update; a gradient of touched rows is shared
        out over all documents."""
        rows = self.model.shared.weight if self.kind == "tied" else self.model.docids.rows
        state = [v for v in self.optimizer.state[rows].values() if torch.is_tensor(v) and v.dim()]
        gradient = rows.grad
        held = gradient._values().nbytes if gradient.is_sparse else gradient.nbytes
        return {
            "weights": rows.nbytes / len(rows),
            "moments": sum(v.nbytes for v in state) / len(rows),
            "gradient": held / len(rows),
        }


@contextmanager
def pieces(wanted: bool):
    """The exact loss in pieces, or from the whole scores, whatever the number of documents."""
    before = docid_loss.MOST_AT_ONCE
    docid_loss.MOST_AT_ONCE = 0 if wanted else 1 << 62
    try:
        yield
    finally:
        docid_loss.MOST_AT_ONCE = before


def measure(
    documents: int, kinds: list[str], size: int, samples: int, precision: str, rounds: int
) -> list[dict[str, Any]]:
    """Every kind at one number of documents."""
    contestants = {kind: Contestant(kind, documents, size, samples, precision) for kind in kinds}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(rounds + 1):
        for kind, contestant in contestants.items():
            spent = contestant.seconds()
            if number:  # moments are made, memory is warm
                seconds[kind].append(spent)
    return [
        {
            "documents": documents,
            "kind": kind,
            "batch_size": size,
            "precision": precision,
            "samples": samples,
            "seconds": statistics.median(seconds[kind]),
            "peak_bytes": contestant.peak(),
            "bytes_per_document": contestant.bytes_per_document(),
        }
        for kind, contestant in contestants.items()
    ]


def line(row: dict[str, Any], base: float) -> str:
    """A line of the table."""
    each = row["bytes_per_document"]
    return (
        f"| {row['documents']:,} | `{row['kind']}` | {1000 * row['seconds']:.0f} | "
        f"{row['seconds'] / base:.2f} | {row['peak_bytes'] / 1e6:.0f} | {each['weights']:.0f} + "
        f"{each['moments']:.0f} + {each['gradient']:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="cost of an update of atomic docids")
    parser.add_argument("--documents", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--precision", choices=["no", "bf16"], default="no")
    add_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}")
    print(
        "| documents | way | ms per update | x `dense` | MB at the peak | "
        "bytes per document: weights + moments + gradient |"
    )
    print("|---|---|---|---|---|---|")
    rows = []
    for documents in options.documents:
        found = measure(
            documents,
            options.kinds,
            options.batch_size,
            options.samples,
            options.precision,
            options.rounds,
        )
        base = next((r["seconds"] for r in found if r["kind"] == "dense"), math.nan)
        for row in found:
            print(line(row, base), flush=True)
        rows += found
    keep(rows, options.json)


if __name__ == "__main__":
    main()
