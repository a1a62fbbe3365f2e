"""Gradient-norm aware minimisation: also shrink the largest gradient nearby."""

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


def climb(step: Step, inner: float, outer: float) -> Displacement:
    """Where the next of three further passes is made, for a first-order flatness.

    ``e0 = inner g0 / ||g0||``; ``e1 = outer (g1 - g0) / ||g1 - g0||``, up the gradient of the
    gradient's norm; ``e1 + inner g2 / ||g2||``.
    """
    gradients = step.gradients
    if len(gradients) == 1:
        return [*along(gradients[0], inner)]
    if len(gradients) == 2:
        return [*along(plus(gradients[1], gradients[0], -1.0), outer)]
    before = [e for e in step.displacement or [] if e is not None]
    return [*plus(before, along(gradients[2], inner), 1.0)]


class GAM(Policy):
    """Descend ``D - gamma * (P - <P, D> / ||D||^2 D)``, D two ascents' gradients, P two plain ones.

    ``g0`` at w, ``g1`` at ``w + inner g0 / ||g0||``, ``g2`` at ``w + e1`` with
    ``e1 = rho (g1 - g0) / ||g1 - g0||``, ``g3`` at ``w + e1 + inner g2 / ||g2||``;
    ``D = b1 g1 + b3 g3``, ``P = g0 + b2 g2``. The differences of gradients stand for products with
    the Hessian. Source: Zhang et al. (CVPR 2023), the accelerated version. Defaults: rho 0.2,
    inner 0.02, b1 = b2 = b3 = 1, gamma 0.03. Passes: 4 forward, 4 backward. Extra memory: one copy
    of the weights, three of the gradient, one of the perturbation.

    Relations: with ``b1: 1, b3: 0, gamma: 0`` SAM of radius ``inner``, bit for bit, at twice the
    cost; with ``rho: 0`` plain. C-Flat looks at the same points.
    """

    keeps = True
    keeps_displacement = True

    @dataclass(frozen=True, kw_only=True)
    class Config(SharpnessConfig):
        """Settings."""

        rho: NotNegative = 0.2
        """Radius of the ascent on the gradient's norm; 0: plain training."""
        inner: NotNegative = 0.02
        """Radius of the ascents on the loss."""
        b1: NotNegative = 1.0
        """Weight of ``g1``, the ascent from the weights."""
        b2: NotNegative = 1.0
        """Weight of ``g2``, where the gradient is largest."""
        b3: NotNegative = 1.0
        """Weight of ``g3``, the ascent from there."""
        gamma: NotNegative = 0.03
        """How much of P's part orthogonal to D is taken off."""

    def passes(self, update: int) -> int:
        """Four."""
        return 4

    def perturbation(self, step: Step) -> Displacement:
        """See :func:`climb`."""
        return climb(step, self.config.inner, self.config.rho)

    def combine(self, step: Step) -> list[Tensor]:
        """D, less what is orthogonal to it in P."""
        g0, g1, g2, g3 = step.gradients
        ascents = plus([self.config.b1 * g for g in g1], g3, self.config.b3)
        plain = plus(g0, g2, self.config.b2)
        share = ratio(dot(plain, ascents), dot(ascents, ascents))
        orthogonal = plus(plain, times(ascents, share), -1.0)
        return plus(ascents, orthogonal, -self.config.gamma)
