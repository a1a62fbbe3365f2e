"""Adversarial model perturbation: small steps up, each tensor within its own ball."""

from dataclasses import dataclass

import torch

from continual.sharpness._base import (
    Displacement,
    Policy,
    SharpnessConfig,
    Step,
    norm,
    plus,
    ratio,
    times,
)
from dsi.settings import Count, NotNegative, Positive


class AMP(Policy):
    """``delta <- clip(delta + zeta g)``, every tensor to norm ``rho``, ``ascents`` times over.

    g is the gradient at ``w + delta``, with delta 0 at first. Gradients below ``rho / zeta`` are
    not brought to a common length, so, unlike SAM's, the perturbation fades as the loss does, and
    depends on its scale. Source: Zheng et al. (CVPR 2021). Defaults: rho 0.5, zeta 1, 1 ascent.
    Passes: 1 + ascents, forward and backward. Extra memory: one copy of the weights, of the
    perturbation, and of the gradient per ascent.

    Relations: with one ascent and a large ``zeta`` SAM with a norm per tensor; with ``rho: 0``
    plain.
    """

    keeps_displacement = True

    @dataclass(frozen=True, kw_only=True)
    class Config(SharpnessConfig):
        """Settings."""

        rho: NotNegative = 0.5
        """Largest norm of a tensor's perturbation; 0: plain training."""
        zeta: Positive = 1.0
        """Step up, per gradient."""
        ascents: Count = 1
        """Steps up."""

    def passes(self, update: int) -> int:
        """One per ascent, and the descent."""
        return 1 + self.config.ascents

    def perturbation(self, step: Step) -> Displacement:
        """One step further up."""
        gradient = step.gradients[-1]
        held = step.displacement or [None] * len(gradient)
        before = [
            torch.zeros_like(g) if e is None else e for e, g in zip(held, gradient, strict=True)
        ]
        found: Displacement = []
        for delta in plus(before, gradient, self.config.zeta):
            found += times([delta], ratio(self.config.rho, norm([delta])).clamp(max=1))
        return found
