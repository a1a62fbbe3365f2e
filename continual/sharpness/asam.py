"""Adaptive SAM: the radius of a weight is in proportion to its size."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from continual.sharpness._base import (
    Displacement,
    Policy,
    SharpnessConfig,
    Step,
    norm,
    ratio,
    times,
)
from dsi.settings import NotNegative


def adaptive(
    weights: Sequence[Tensor], gradient: Sequence[Tensor], eta: float, radius: float | Tensor
) -> Displacement:
    """``radius * T^2 g / ||T g||`` with ``T = |w| + eta``."""
    scales = [weight.detach().abs() + eta for weight in weights]
    scaled = [scale * g for scale, g in zip(scales, gradient, strict=True)]
    factor = ratio(radius, norm(scaled))
    return [*times([t * g for t, g in zip(scales, scaled, strict=True)], factor)]


class ASAM(Policy):
    """``eps = rho * T^2 g / ||T g||`` with ``T = |w| + eta``; descend the gradient at ``w + eps``.

    Multiplying a layer by a number and dividing the next one by it changes nothing at ``eta: 0``.
    Every weight is scaled by its size, vectors included; the authors' code leaves those whose name
    lacks "weight" (biases; T5 has none) at ``T = 1``. A weight of exactly zero moves only with
    ``eta``. Source: Kwon et al. (ICML 2021). Defaults: rho 0.5 (about ten times SAM's), eta 0.01.
    Passes: 2 forward, 2 backward. Extra memory: one copy of the weights.

    Relations: SAM where all weights have size 1 and ``eta: 0``, and in the limit of a large eta;
    with ``rho: 0`` plain, bit for bit.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(SharpnessConfig):
        """Settings."""

        rho: NotNegative = 0.5
        """Radius in units of the weights' own size; 0: plain training."""
        eta: NotNegative = 0.01
        """Added to every size, so that weights near zero move too."""

    def perturbation(self, step: Step) -> Displacement:
        """Along the gradient, every weight by its size squared."""
        return adaptive(step.weights, step.gradients[-1], self.config.eta, self.config.rho)
