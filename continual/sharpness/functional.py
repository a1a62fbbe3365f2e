"""Functional SAM: sharpness of the function, not of the loss on top of it."""

from dataclasses import dataclass

from continual.sharpness._base import Displacement, Policy, SharpnessConfig, Step, along


class FunctionalSAM(Policy):
    """SAM's perturbation; the second pass takes the gradient of the outputs from the first.

    Descends ``J(w + eps)' dL/df(w)``: the Jacobian of the outputs f where the loss is high, the
    loss' gradient by the outputs where the weights are. So the update cannot shrink sharpness by
    changing the outputs' own statistics, which is most of what SAM does to language models.
    ``preconditioned`` ascends along ``g / (sqrt(v) + 1e-8)``, v being the optimizer's running
    square of the gradient, to a global norm of rho; along g where it has none (before the first
    update, and under Adafactor, which factors it). Source: Singh et al. (ICML 2025). Defaults:
    radius 0.05, not preconditioned. Passes: 2 forward, 2 backward. Extra memory: one copy of the
    weights, and the gradient of the outputs.

    Relations: SAM for a loss that is linear in the outputs; with ``rho: 0`` plain.
    """

    functional = True

    @dataclass(frozen=True, kw_only=True)
    class Config(SharpnessConfig):
        """Settings."""

        preconditioned: bool = False
        """Whether the ascent divides by the optimizer's root mean square, as its descent does."""

    def perturbation(self, step: Step) -> Displacement:
        """Along the gradient, or the preconditioned one."""
        direction, moments = step.gradients[-1], step.second_moments
        found = [v for v in moments or [] if v is not None]
        # all or none: next to a gradient divided by its size, a plain one is of no size at all
        if self.config.preconditioned and len(found) == len(direction):
            pairs = zip(direction, found, strict=True)
            direction = [g / (v.sqrt() + 1e-8) for g, v in pairs]
        return [*along(direction, self.config.rho)]
