"""Weighted SAM: sharpness as a term with a weight of its own."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from continual.sharpness._base import Displacement, Policy, SharpnessConfig, Step, along


class WSAM(Policy):
    """Descend ``g + gamma / (1 - gamma) * (g_s - g)``, g_s being SAM's gradient.

    The loss is ``L + gamma / (1 - gamma) * (L_s - L)``: above 0.5 sharpness weighs more than in
    SAM. ``decoupled`` keeps the second term out of the base optimizer, whose moments then see g
    alone: it is taken by the learning rate, after the optimizer's step, as decoupled weight decay
    is. Source: Yue et al. (KDD 2023). Defaults: gamma 0.9, coupled. Passes: 2 forward, 2 backward.
    Extra memory: one copy of the weights, of the gradient and of the perturbation.

    Relations: with ``gamma: 0.5`` SAM, with ``gamma: 0`` plain, both bit for bit, as with
    ``rho: 0``.
    """

    keeps = True

    @dataclass(frozen=True, kw_only=True)
    class Config(SharpnessConfig):
        """Settings."""

        gamma: Annotated[float, Ge(0), Lt(1)] = 0.9
        """Weight of sharpness."""
        decoupled: bool = False
        """Whether the sharpness term goes past the base optimizer."""

    def perturbation(self, step: Step) -> Displacement:
        """SAM's."""
        return [*along(step.gradients[0], self.config.rho)]

    def combine(self, step: Step) -> list[Tensor]:
        """The weighted gradient; decoupled: the one at the weights."""
        # exact at both ends: g at weight 0, g_s at weight 1; what is not finite stays so at 0, too
        weight = 0.0 if self.config.decoupled else self._weight()
        pairs = zip(step.gradients[0], step.gradients[-1], strict=True)
        return [torch.lerp(clean, perturbed, weight) for clean, perturbed in pairs]

    def decoupled(self, step: Step) -> list[Tensor] | None:
        """The sharpness term, if it is decoupled."""
        if not self.config.decoupled:
            return None
        pairs = zip(step.gradients[0], step.gradients[-1], strict=True)
        return [self._weight() * (perturbed - clean) for clean, perturbed in pairs]

    def _weight(self) -> float:
        return self.config.gamma / (1 - self.config.gamma)
