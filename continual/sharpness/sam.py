"""Sharpness-aware minimisation: the gradient is taken where the loss is highest nearby."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


class SAM:
    """Perturbs by ``rho * g / ||g||`` and descends with the gradient found there.

    Source: Foret et al. (ICLR 2021), equation 2; DSI++ section 3 uses it with T5. Two forward and
    backward passes per update, one copy of the weights. The trainer owns passes, synchronisation,
    random state and restoration; this is the rule alone.

    Relations: with ``rho: 0`` this is plain training, bit for bit.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        rho: float = 0.05
        """Radius in weight space, global L2 norm (T5-Base in Bahri et al. 2022: 0.15)."""
        phase: Literal["all", "first", "later"] = "all"
        """Stages in which it is used: every one, only D_0, or only after D_0."""

        def __post_init__(self):
            if self.rho < 0:
                raise ValueError("rho: must not be negative; 0 turns it off")

    def __init__(self, config: Config):
        self.config = config

    def active(self, stage: int) -> bool:
        """Whether a stage takes sharpness-aware steps."""
        phase = self.config.phase
        in_phase = phase == "all" or (phase == "first") == (stage == 0)
        return self.config.rho > 0 and in_phase

    def perturbation(self, weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
        """What is added to each weight; zero when the gradient is zero."""
        norms = torch.stack([gradient.double().norm() for gradient in gradients])
        norm = norms.norm()
        scale = torch.where(norm > 0, self.config.rho / norm, torch.zeros_like(norm))
        return [gradient * scale.to(gradient.dtype) for gradient in gradients]

    def combine(self, clean: Sequence[Tensor], perturbed: Sequence[Tensor]) -> list[Tensor]:
        """The gradient to descend: the one found at the perturbed weights."""
        return list(perturbed)
