"""Surrogate-gap guided SAM: also shrink the gap between the perturbed and the plain loss."""

from dataclasses import dataclass

from torch import Tensor

from continual.sharpness._base import (
    Displacement,
    Policy,
    SharpnessConfig,
    Step,
    along,
    dot,
    plus,
    ratio,
    times,
)
from dsi.settings import NotNegative


class GSAM(Policy):
    """SAM's gradient ``g_s`` minus ``alpha`` times the part of ``g`` orthogonal to it.

    ``g_perp = g - <g, g_s> / ||g_s||^2 g_s``; descend ``g_s - alpha g_perp``. The radius follows
    the learning rate from ``rho`` at its peak to ``rho_min`` at zero. Source: Zhuang et al. (ICLR
    2022), algorithm 1. Defaults: alpha 0.4, constant radius. Passes: 2 forward, 2 backward. Extra
    memory: one copy of the weights, and two of the gradient at the end.

    Relations: with ``alpha: 0`` and a constant radius SAM, bit for bit; with ``rho: 0`` plain.
    """

    keeps = True

    @dataclass(frozen=True, kw_only=True)
    class Config(SharpnessConfig):
        """Settings."""

        alpha: NotNegative = 0.4
        """Weight of the orthogonal part."""
        rho_min: NotNegative | None = None
        """Radius at learning rate zero; null: ``rho`` throughout."""

    def perturbation(self, step: Step) -> Displacement:
        """Along the gradient, by the radius of this learning rate."""
        low = self.config.rho if self.config.rho_min is None else self.config.rho_min
        return [*along(step.gradients[0], low + (self.config.rho - low) * step.rate)]

    def combine(self, step: Step) -> list[Tensor]:
        """``g_s - alpha g_perp``."""
        clean, perturbed = step.gradients[0], step.gradients[-1]
        if self.config.alpha == 0:
            return perturbed
        share = ratio(dot(clean, perturbed), dot(perturbed, perturbed))
        # g_s - alpha (g - share g_s), in one sum
        alpha = self.config.alpha
        return plus(times(perturbed, 1 + alpha * share), clean, -alpha)
