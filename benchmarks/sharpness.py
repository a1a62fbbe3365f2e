"""What sharpness costs: every member's update as a ratio to a plain one, and its extra memory.

    python -m benchmarks.sharpness                        # T5-small shape, batch 32, fp32 and bf16
    python -m benchmarks.sharpness --members sam micro look --rounds 9 --json out.json

All contestants run in one process, one thread, interleaved; a number is the median over the rounds
of the ratio to the plain update of the same round, in processor time (on a GPU: wall time with
synchronisation). ``look`` and ``interval`` are means over whole intervals. AdamW, clipping at 1,
11 tokens in, docids of 7 codes; random weights and data: what is measured is the work.

Memory is the most that is allocated at a time during an update beyond a plain one, in copies of the
weights, as torch's profiler counts it (on a GPU: its allocator).
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from torch.profiler import ProfilerActivity, profile

from benchmarks.decoding import SHAPES, clock
from continual.components import available, component_class
from continual.config import TrainingConfig
from continual.optimization import make_optimizer
from continual.passes import displaced
from continual.steps import take_step
from dsi.batching import Batch
from dsi.model import from_scratch

POSITIONS, CODES = 7, 64
NO_PENALTY = SimpleNamespace(penalty=lambda model: None)
EVERY = {"look": 5, "interval": 5}


class Contestant:
    """One model under one policy."""

    def __init__(self, name: str, shape: dict[str, int], precision: str, batch_size: int):
        self.name, self.updates, self.size = name, 0, batch_size
        self.accelerator = Accelerator(mixed_precision=precision)
        # accelerate keeps the first precision of a process
        self.accelerator.state._mixed_precision = precision
        self.accelerator.native_amp = precision != "no"
        device = self.accelerator.device
        self.model = from_scratch(
            0, vocab_size=4000, dropout_rate=0.0, code_sizes=[CODES] * POSITIONS, **shape
        ).to(device)
        self.model.train()
        self.optimizer = make_optimizer(self.model, TrainingConfig(learning_rate=1e-4))
        cls: Any = component_class("sharpness", name)
        self.policy = cls(cls.Config())
        self.policy.begin_stage(0, dict(self.model.named_parameters()))
        generator = torch.Generator().manual_seed(0)
        self.codes = torch.randint(0, CODES, (1000, POSITIONS), generator=generator).to(device)

    def update(self) -> None:
        """One optimizer step."""
        generator = torch.Generator().manual_seed(self.updates)
        ids = torch.randint(2, 4000, (self.size, 11), generator=generator)
        documents = torch.randint(0, 1000, (self.size,), generator=generator)
        take_step(
            self.model,
            self.optimizer,
            Batch(ids, torch.ones_like(ids), documents, None),
            self.codes,
            self.accelerator,
            micro_batches=1,
            seed=self.updates,
            clip=1.0,
            label_smoothing=0.0,
            regularizer=NO_PENALTY,
            sharpness=self.policy,
            sharp=self.name != "none",
            update=self.updates,
        )
        self.updates += 1

    def seconds(self) -> float:
        """Of one update, the mean over an interval where updates differ."""
        count = EVERY.get(self.name, 1)
        started = clock()
        for _ in range(count):
            self.update()
        return (clock() - started) / count

    def perturb_and_restore(self) -> float:
        """Seconds of SAM's perturbation, norm included, and of putting the weights back."""
        weights = [p for p in self.model.parameters() if p.requires_grad]
        generator = torch.Generator().manual_seed(1)
        gradients = [torch.randn(p.shape, generator=generator).to(p.device) for p in weights]
        step = SimpleNamespace(gradients=[gradients])
        started = clock()
        with displaced(weights) as move:
            move(self.policy.perturbation(step))
        return clock() - started

    def peak(self) -> int:
        """Bytes allocated at the worst moment of an update (one that perturbs)."""
        self.updates = 0
        device = self.accelerator.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.update()
            return torch.cuda.max_memory_allocated(device)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
            self.update()
        now = most = 0
        # an allocation event's bytes are negative when it frees
        events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
        for event in sorted(events, key=lambda e: e.start_ns()):
            now += event.nbytes()
            most = max(most, now)
        return most


def measure(
    members: list[str], precision: str, shape: dict[str, int], batch_size: int, rounds: int
) -> dict[str, Any]:
    """Ratios and memory of every member under one precision."""
    plain = Contestant("none", shape, precision, batch_size)
    base = Contestant("none", shape, "no", batch_size)
    contestants = [Contestant(name, shape, precision, batch_size) for name in members]
    for one in (plain, base, *contestants):
        one.seconds()  # moments are made, memory is warm
    times: dict[str, list[float]] = {name: [] for name in ("none", "fp32", *members)}
    parts = []
    for _ in range(rounds):
        times["none"].append(plain.seconds())
        times["fp32"].append(base.seconds())
        for one in contestants:
            times[one.name].append(one.seconds())
            if one.name == "sam":
                parts.append(one.perturb_and_restore())
    weights = sum(p.numel() * p.element_size() for p in plain.model.parameters())
    least = plain.peak()
    found: dict[str, Any] = {
        "precision": precision,
        "plain_seconds": statistics.median(times["none"]),
        "weights_bytes": weights,
        "members": {},
    }
    if parts:
        shares = [a / b for a, b in zip(parts, times["none"], strict=True)]
        found["perturb_and_restore"] = statistics.median(shares)
    for one in contestants:
        own = times[one.name]
        found["members"][one.name] = {
            "ratio": statistics.median(a / b for a, b in zip(own, times["none"], strict=True)),
            "ratio_to_fp32": statistics.median(
                a / b for a, b in zip(own, times["fp32"], strict=True)
            ),
            "extra_copies": (one.peak() - least) / weights,
        }
    return found


def table(results: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| member | precision | x plain | x fp32 plain | extra memory (copies of weights) |"]
    lines.append("|---|---|---|---|---|")
    for found in results:
        for name, row in found["members"].items():
            lines.append(
                f"| {name} | {found['precision'].replace('no', 'fp32')} | {row['ratio']:.2f} | "
                f"{row['ratio_to_fp32']:.2f} | {row['extra_copies']:.2f} |"
            )
        if "perturb_and_restore" in found:
            lines.append(
                f"\nplain update {found['plain_seconds']:.3f} s; SAM's perturbation and "
                f"restoration: {100 * found['perturb_and_restore']:.1f} % of it\n"
            )
    return "\n".join(lines)


def main() -> None:
    names = [name for name in available("sharpness") if name != "none"]
    parser = argparse.ArgumentParser(description="cost of sharpness-aware updates")
    parser.add_argument("--members", nargs="+", choices=names, default=names)
    parser.add_argument("--precisions", nargs="+", choices=["no", "bf16"], default=["no", "bf16"])
    parser.add_argument("--shape", choices=sorted(SHAPES), default="t5-small")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    started = time.time()
    results = [
        measure(
            options.members, precision, SHAPES[options.shape], options.batch_size, options.rounds
        )
        for precision in options.precisions
    ]
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}")
    print(table(results))
    print(f"{time.time() - started:.0f} s")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), "utf-8")


if __name__ == "__main__":
    main()
