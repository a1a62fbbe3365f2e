"""What several benchmarks of training share: sizes, an accelerator, the product's plain update."""

from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from continual.config.registry import component_class
from continual.update.steps import take_step
from dsi.examples.batches import Batch

# 9.4M weights with 8,192 words
SMALL = dict(d_model=256, d_kv=64, d_ff=1024, num_layers=4, num_decoder_layers=4, num_heads=4)


def make_accelerator(precision: str, cpu: bool = False) -> Accelerator:
    """An accelerator of its own precision: accelerate keeps the first of a process."""
    accelerator = Accelerator(cpu=cpu)
    accelerator.state._mixed_precision = precision
    accelerator.native_amp = precision != "no"
    return accelerator


def no_sharpness() -> Any:
    """The absent rule."""
    cls: Any = component_class("sharpness", "none")
    return cls(cls.Config())


def update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    codes_NT: torch.Tensor,
    accelerator: Accelerator,
    number: int,
    sharpness: Any,
    sharp: bool = False,
) -> None:
    """One update as the trainer makes it: clipped at 1, no penalty; ``number`` seeds dropout."""
    take_step(
        model,
        optimizer,
        batch,
        codes_NT,
        accelerator,
        micro_batches=1,
        seed=number,
        clip=1.0,
        label_smoothing=0.0,
        regularizer=SimpleNamespace(penalty=lambda model: None),
        sharpness=sharpness,
        sharp=sharp,
        update=number,
    )
