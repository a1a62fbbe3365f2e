"""Dropout that takes a quarter of the random numbers on a processor."""

import torch
from torch import Tensor, nn
from torch.nn import functional

STEPS = 1 << 16  # values of the 16 random bits that decide on one activation


class Dropout(nn.Dropout):
    """``nn.Dropout``; on a processor from 16 random bits per value instead of a random float.

    The rate is rounded to 1/65536 and what is kept is scaled by exactly what is kept on average.
    There drawing the floats takes most of dropout's time; other devices draw within the kernel that
    multiplies, and with ``fast`` off it is torch's own everywhere. Draws follow
    ``torch.manual_seed`` either way.
    """

    fast = True

    def forward(self, input: Tensor) -> Tensor:
        """Values of the same shape, some of them zero, while training."""
        slow = not self.fast or input.device.type != "cpu" or torch.compiler.is_compiling()
        if not self.training or slow:
            return functional.dropout(input, self.p, self.training)
        dropped = round(self.p * STEPS)
        if dropped == 0:
            return input
        scale = STEPS / (STEPS - dropped) if dropped < STEPS else 0.0
        if input.dtype in (torch.bfloat16, torch.float16):  # which have too few digits for a scale
            return input * _factors(input, dropped, 1.0) * scale
        return input * _factors(input, dropped, scale)


def use_fast_dropout(model: nn.Module, fast: bool) -> None:
    """Every dropout layer of a model becomes a :class:`Dropout`, in place."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout):
                own = Dropout(child.p)
                own.fast = fast
                setattr(module, name, own.train(child.training))


@torch.no_grad()
def _factors(values: Tensor, dropped: int, scale: float) -> Tensor:
    """``scale`` where a value is kept, else 0, in the values' type."""
    count = values.numel()
    # one draw is 64 bits: four values'
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = bits.view(torch.int16)[:count].view(values.shape)
    # into the values' type at once: a mask of its own would be written and read once more
    kept = torch.ge(bits, dropped - STEPS // 2, out=torch.empty_like(values))
    return kept if scale == 1.0 else kept.mul_(scale)
