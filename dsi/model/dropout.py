"""Dropout that takes an eighth of the random numbers on a processor."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

STEPS = 1 << 8  # values of the 8 random bits that decide on one activation


class Dropout(nn.Dropout):
    """``nn.Dropout``; on a processor from 8 random bits per value instead of a random float.

    A call drops with a rate of whole 256ths, the next below or above ``p`` at random, so that it is
    ``p`` on average, and scales what is kept by exactly what a call with this rate keeps. Drawing
    the floats takes most of dropout's time on a processor; other devices draw within the kernel
    that multiplies, and with ``fast`` off it is torch's own everywhere. Draws follow
    ``torch.manual_seed`` either way.
    """

    fast = True

    def forward(self, input: Tensor) -> Tensor:
        """Values of the same shape, some of them zero, while training."""
        if not self.draws(input):
            return functional.dropout(input, self.p, self.training)
        kept, scale = _kept(input, self.p)
        if input.dtype in (torch.bfloat16, torch.float16):  # which have too few digits for a scale
            return input * kept * scale
        return input * kept.mul_(scale)

    def draws(self, input: Tensor) -> bool:
        """Whether a call draws bits of its own; rates above 255/256 leave it nothing to scale."""
        wanted = self.fast and self.training and 0 < self.p <= 1 - 1 / STEPS
        return wanted and input.device.type == "cpu" and not torch.compiler.is_compiling()


def relu_dropped(dropout: nn.Module, values: Tensor) -> Tensor:
    """``dropout(relu(values))``, the same bit for bit; ``values`` may be overwritten.

    With a :class:`Dropout` in full precision one tensor is kept for the backward pass, not three.
    """
    exact = values.dtype in (torch.float32, torch.float64)
    if not (isinstance(dropout, Dropout) and exact and dropout.draws(values)):
        return dropout(functional.relu(values))
    return _ReluDropped.apply(values, *_kept(values, dropout.p))  # type: ignore[return-value]


class _ReluDropped(torch.autograd.Function):
    """What is positive and kept, scaled: the result says which values those were."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, kept: Tensor, scale: float) -> Tensor:
        found = values.relu_().mul_(kept.mul_(scale))
        ctx.mark_dirty(values)
        ctx.save_for_backward(found)
        ctx.scale = scale
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (found,) = ctx.saved_tensors
        positive = torch.ops.aten.threshold_backward(gradient, found, 0)
        return positive.mul_(ctx.scale), None, None


def use_fast_dropout(model: nn.Module, fast: bool) -> None:
    """Every dropout layer of a model becomes a :class:`Dropout`, in place."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout):
                own = Dropout(child.p)
                own.fast = fast
                setattr(module, name, own.train(child.training))


@torch.no_grad()
def _kept(values: Tensor, rate: float) -> tuple[Tensor, float]:
    """1 where a value is kept, else 0, in the values' type; and one over the share kept."""
    count = values.numel()
    # one draw is 64 bits, eight values'; the last one decides between the two rates
    draws = torch.empty(-(-count // 8) + 1, dtype=torch.int64).random_(-(2**63), None)
    dropped = math.floor(rate * STEPS + 0.5 + int(draws[-1]) / 2**64)
    dropped = min(dropped, STEPS - 1)  # the sum may be rounded up
    bits = draws[:-1].view(torch.int8)[:count].view(values.shape)
    # into the values' type at once: a mask of its own would be written and read once more
    kept = torch.ge(bits, dropped - STEPS // 2, out=torch.empty_like(values))
    return kept, STEPS / (STEPS - dropped)
