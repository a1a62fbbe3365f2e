"""SAM on the weights with the largest squared gradient alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt, Le
from torch import Tensor

from continual.sharpness._base import (
    Displacement,
    SharpnessConfig,
    Step,
    along,
    norm,
    ratio,
    times,
)
from continual.sharpness._remember import Remembering
from dsi.settings import Count


class FisherMaskSAM(Remembering):
    """``eps = rho * (g m) / ||g m||``, m: which ``keep`` of all weights have the largest ``g^2``.

    The mask is drawn over all weights together, from the update's own gradient, every ``refresh``
    updates; what it leaves out stays where it is. Source: Zhong et al. (Findings of EMNLP 2022),
    where ``eps`` is divided by the norm of all of g and so is shorter than rho, and embeddings,
    biases and norms are outside the mask and move fully. Defaults: keep 0.1, refresh 100. Passes:
    2 forward, 2 backward, and a selection at every refresh. Extra memory: one copy of the weights,
    and a byte per weight.

    Relations: with ``keep: 1`` SAM, bit for bit; with ``rho: 0`` plain.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(SharpnessConfig):
        """Settings."""

        keep: Annotated[float, Gt(0), Le(1)] = 0.1
        """Share of all weights in the mask; at least one weight."""
        refresh: Count = 100
        """Updates that a mask is used for; the first one of a stage draws anew."""
        renormalise: bool = True
        """Whether the length is rho; false: divided by the norm of the whole gradient."""

    def perturbation(self, step: Step) -> Displacement:
        """Along the gradient within the mask."""
        gradient = step.gradients[-1]
        self.pending = None
        if not self.state or step.update % self.config.refresh == 0:
            drawn = top_share(gradient, self.config.keep)
            self.pending = dict(zip(step.names, drawn, strict=True))
        masks = self.state if self.pending is None else self.pending
        # by multiplication: what is not finite stays so, in the mask or not
        masked = [
            g * masks[name] if name in masks else g * 0
            for name, g in zip(step.names, gradient, strict=True)
        ]
        if self.config.renormalise:
            return [*along(masked, self.config.rho)]
        return [*times(masked, ratio(self.config.rho, norm(gradient)))]


def top_share(tensors: Sequence[Tensor], share: float) -> list[Tensor]:
    """Masks of the ``share`` of all entries that are largest in size, exactly that many.

    Of equal ones at the threshold the first are taken, so the masks do not depend on the device.
    """
    sizes = [tensor.abs().flatten() for tensor in tensors]
    everything = torch.cat(sizes)
    count = max(1, round(share * everything.numel()))
    least = torch.topk(everything, count, sorted=False).values.min()
    masks = [size > least for size in sizes]
    missing = count - sum(int(mask.sum()) for mask in masks)
    for mask, size in zip(masks, sizes, strict=True):
        if missing <= 0:
            break
        equal = (size == least).nonzero().flatten()[:missing]
        mask[equal] = True
        missing -= len(equal)
    return [mask.view(tensor.shape) for mask, tensor in zip(masks, tensors, strict=True)]
