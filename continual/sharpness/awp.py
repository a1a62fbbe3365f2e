"""Adversarial weight perturbation: every matrix moves by a share of its own norm."""

from dataclasses import dataclass

from continual.sharpness._base import Displacement, Policy, SharpnessConfig, Step, along, norm
from dsi.settings import NotNegative


class AWP(Policy):
    """``eps = rho * ||w|| g / ||g||`` for every weight of at least two dimensions, on its own.

    Vectors (norms) stay where they are. Source: Wu et al. (NeurIPS 2020), one step up on the
    training examples themselves. Default: rho 0.005, the paper's gamma. Passes: 2 forward, 2
    backward. Extra memory: one copy of the weights (the authors' code: a second model).

    Relations: for a single matrix SAM of radius ``rho ||w||``; with ``rho: 0`` plain.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(SharpnessConfig):
        """Settings."""

        rho: NotNegative = 0.005
        """Norm of a matrix' perturbation as a share of the matrix' own; 0: plain training."""

    def perturbation(self, step: Step) -> Displacement:
        """Along the gradient of each matrix."""
        found: Displacement = []
        for weight, gradient in zip(step.weights, step.gradients[-1], strict=True):
            if weight.dim() < 2:
                found.append(None)
            else:
                found += along([gradient], self.config.rho * norm([weight.detach()]))
        return found
