"""Fisher SAM: a ball of outputs, not of weights."""

from dataclasses import dataclass

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


class FisherSAM(Policy):
    """``eps = rho * F^-1 g / sqrt(g' F^-1 g)`` with the diagonal ``F^-1 = 1 / (1 + eta g^2)``.

    The largest linear rise where ``eps' F eps <= rho^2``: weights that the loss depends on strongly
    move less. F is the square of the batch's mean gradient, so, unlike SAM's, the direction depends
    on the scale of the loss. Source: Kim et al. (ICML 2022). Defaults: rho 0.1, eta 0.1
    (Sherborne et al., ICLR 2024). Passes: 2 forward, 2 backward. Extra memory: one copy of the
    weights.

    Relations: with ``eta: 0`` SAM, bit for bit; with ``rho: 0`` plain.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(SharpnessConfig):
        """Settings."""

        rho: NotNegative = 0.1
        """Radius of the ball; 0: plain training."""
        eta: NotNegative = 0.1
        """Weight of the Fisher information against a constant 1."""

    def perturbation(self, step: Step) -> Displacement:
        """Along the natural gradient."""
        gradient = step.gradients[-1]
        fisher = [1 + self.config.eta * g * g for g in gradient]
        # g' F^-1 g as a norm: squares of small gradients would vanish in float32
        halfway = [g * f.rsqrt() for g, f in zip(gradient, fisher, strict=True)]
        natural = [g / f for g, f in zip(gradient, fisher, strict=True)]
        return [*times(natural, ratio(self.config.rho, norm(halfway)))]
