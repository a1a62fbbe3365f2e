"""C-Flat: a flat loss and a flat gradient norm, for continual learning."""

from dataclasses import dataclass

from torch import Tensor

from continual.sharpness._base import Displacement, Policy, SharpnessConfig, Step, plus
from continual.sharpness.gam import climb
from dsi.settings import NotNegative


class CFlat(Policy):
    """Descend ``g1 + lam * (g3 - g2)``: SAM's gradient and that of the largest gradient norm.

    ``g0`` at w, ``g1`` at ``w + rho g0 / ||g0||``, ``g2`` at ``w + e1`` with
    ``e1 = rho (g1 - g0) / ||g1 - g0||``, ``g3`` at ``w + e1 + rho g2 / ||g2||``. Source: Bian et
    al. (NeurIPS 2024). Defaults: rho 0.2, lam 0.2. Passes: 4 forward, 4 backward. Extra memory: one
    copy of the weights, three of the gradient, one of the perturbation.

    Relations: with ``lam: 0`` SAM, bit for bit, at twice the cost; with ``rho: 0`` plain. The
    points are GAM's with ``inner`` equal to ``rho``.
    """

    keeps = True
    keeps_displacement = True

    @dataclass(frozen=True, kw_only=True)
    class Config(SharpnessConfig):
        """Settings."""

        rho: NotNegative = 0.2
        """Radius of every ascent; 0: plain training."""
        lam: NotNegative = 0.2
        """Weight of the gradient norm."""

    def passes(self, update: int) -> int:
        """Four."""
        return 4

    def perturbation(self, step: Step) -> Displacement:
        """GAM's points."""
        return climb(step, self.config.rho, self.config.rho)

    def combine(self, step: Step) -> list[Tensor]:
        """``g1 + lam (g3 - g2)``."""
        _, ascended, steepest, beyond = step.gradients
        return plus(ascended, plus(beyond, steepest, -1.0), self.config.lam)
