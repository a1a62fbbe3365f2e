"""What several benchmarks of training share: sizes, an accelerator, the product's plain update."""

import torch
from accelerate import Accelerator
from torch import nn

from continual.config.schema import TrainingConfig
from continual.method import Method
from continual.sharpness import Policy
from continual.update.update import Update
from dsi.examples.batches import Batch

# 9.4M weights with 8,192 words
SMALL = dict(d_model=256, d_kv=64, d_ff=1024, num_layers=4, num_decoder_layers=4, num_heads=4)


def make_accelerator(precision: str, cpu: bool = False) -> Accelerator:
    """An accelerator of this precision; Accelerate keeps the first one that a process asks for."""
    accelerator = Accelerator(cpu=cpu)
    accelerator.state._mixed_precision = precision
    accelerator.native_amp = precision != "no"
    return accelerator


def update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    codes_NT: torch.Tensor,
    accelerator: Accelerator,
    number: int,
    sharpness: Policy | None = None,
) -> None:
    """One update as the trainer makes it: clipped at 1, no penalty; ``number`` seeds dropout."""
    method = Method(sharpness=sharpness or Policy())
    made = Update(model, optimizer, codes_NT, accelerator, TrainingConfig(), method, 0)
    made.take(batch, number, number)
