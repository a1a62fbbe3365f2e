"""What sharpness costs: every member's update as a ratio to a plain one, and its extra memory.

    python -m benchmarks.sharpness                        # 10M weights, batch 32, fp32 and bf16
    python -m benchmarks.sharpness --members sam micro look --rounds 9 --json out.json

A member and the plain update it is compared with run in one process, one thread, in turn; a number
is the median over the rounds of the ratio within a round, in processor time (on a GPU: wall time
with synchronisation). ``look`` and ``interval`` are means over whole intervals. AdamW, clipping at
1, docids of 7 codes; random weights and data: what is measured is the work.

Memory is the most that is allocated at a time during an update beyond a plain one, in copies of the
weights, as torch's profiler counts it (on a GPU: its allocator).
"""

import argparse
import platform
import statistics
from types import SimpleNamespace
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.allocation import most_allocated
from benchmarks.decoding import SHAPES, clock
from benchmarks.options import add_options, keep
from benchmarks.updates import SMALL, make_accelerator, update
from continual.config.registry import available, component_class
from continual.config.schema import TrainingConfig
from continual.update.optimizer import make_optimizer
from continual.update.passes import displaced
from dsi.examples.batches import Batch
from dsi.model.dsi_model import from_scratch

POSITIONS, CODES = 7, 64
EVERY = {"look": 5, "interval": 5}


class Contestant:
    """One model under one policy."""

    def __init__(
        self, name: str, shape: dict[str, int], precision: str, batch_size: int, tokens: int
    ):
        self.name, self.updates, self.size, self.tokens = name, 0, batch_size, tokens
        self.accelerator = make_accelerator(precision)
        device = self.accelerator.device
        self.model = from_scratch(
            0, vocab_size=4000, dropout_rate=0.0, code_sizes=[CODES] * POSITIONS, **shape
        ).to(device)
        self.model.train()
        self.optimizer = make_optimizer(self.model, TrainingConfig(learning_rate=1e-4))
        cls: Any = component_class("sharpness", name)
        self.policy = cls(cls.Config())
        view: Any = SimpleNamespace(stage=0, weights=dict(self.model.named_parameters()))
        self.policy.begin_stage(view)
        generator = torch.Generator().manual_seed(0)
        self.codes = torch.randint(0, CODES, (1000, POSITIONS), generator=generator).to(device)

    def update(self) -> None:
        """One optimizer step."""
        generator = torch.Generator().manual_seed(self.updates)
        ids = torch.randint(2, 4000, (self.size, self.tokens), generator=generator)
        documents = torch.randint(0, 1000, (self.size,), generator=generator)
        update(
            self.model,
            self.optimizer,
            Batch(ids, torch.ones_like(ids), documents, None),
            self.codes,
            self.accelerator,
            self.updates,
            self.policy,
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
        step: Any = SimpleNamespace(gradients=[gradients])
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
        return most_allocated(found)


def measure(
    name: str, precision: str, shape: dict[str, int], sizes: tuple[int, int], rounds: int
) -> dict[str, Any]:
    """One member beside a plain update of the same precision and one of fp32."""
    plain, base, one = (
        Contestant("none", shape, precision, *sizes),
        Contestant("none", shape, "no", *sizes),
        Contestant(name, shape, precision, *sizes),
    )
    own: list[float] = []
    ratios: dict[str, list[float]] = {"ratio": [], "ratio_to_fp32": [], "perturb_and_restore": []}
    for number in range(rounds + 1):
        plainly = plain.seconds()
        fully = base.seconds() if precision != "no" else plainly
        seconds = one.seconds()
        moved = one.perturb_and_restore() if name == "sam" else 0.0
        if number == 0:
            continue  # moments are made, memory is warm
        own.append(plainly)
        ratios["ratio"].append(seconds / plainly)
        ratios["ratio_to_fp32"].append(seconds / fully)
        ratios["perturb_and_restore"].append(moved / plainly)
    weights = sum(p.numel() * p.element_size() for p in plain.model.parameters())
    return {
        "member": name,
        "precision": precision,
        "plain_seconds": statistics.median(own),
        "weights_bytes": weights,
        **{key: statistics.median(values) for key, values in ratios.items()},
        "extra_copies": (one.peak() - plain.peak()) / weights,
    }


def line(row: dict[str, Any]) -> str:
    """A line of the table."""
    precision = row["precision"].replace("no", "fp32")
    text = (
        f"| `{row['member']}` | {precision} | {row['ratio']:.2f} | {row['ratio_to_fp32']:.2f} | "
        f"{row['extra_copies']:.1f} |"
    )
    if row["member"] == "sam":
        text += (
            f"  (plain {1000 * row['plain_seconds']:.0f} ms; perturbation and restoration "
            f"{100 * row['perturb_and_restore']:.1f} % of it)"
        )
    return text


def main() -> None:
    names = [name for name in available("sharpness") if name != "none"]
    parser = argparse.ArgumentParser(description="cost of sharpness-aware updates")
    parser.add_argument("--members", nargs="+", choices=names, default=names)
    parser.add_argument("--precisions", nargs="+", choices=["no", "bf16"], default=["no", "bf16"])
    parser.add_argument("--shape", choices=["small", *sorted(SHAPES)], default="small")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=32)
    add_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}")
    print("| member | precision | x plain | x plain fp32 | extra memory, copies of the weights |")
    print("|---|---|---|---|---|")
    sizes, rows = (options.batch_size, options.tokens), []
    for precision in options.precisions:
        for name in options.members:
            shape = {**SHAPES, "small": SMALL}[options.shape]
            rows.append(measure(name, precision, shape, sizes, options.rounds))
            print(line(rows[-1]), flush=True)
    keep(rows, options.json)


if __name__ == "__main__":
    main()
