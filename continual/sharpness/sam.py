"""Sharpness-aware minimisation: the gradient is taken where the loss is highest nearby."""

from dataclasses import dataclass

from continual.sharpness._base import Displacement, Policy, SharpnessConfig, Step, along_


class SAM(Policy):
    """``eps = rho * g / ||g||``; descend with the gradient at ``w + eps``.

    Source: Foret et al. (ICLR 2021), equation 2; DSI++ section 3 uses it with T5. Default radius
    0.05 (T5-Base in Bahri et al. 2022: 0.15). Passes: 2 forward, 2 backward. Extra memory: one copy
    of the weights.

    Relations: plain training with ``rho: 0``, bit for bit.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(SharpnessConfig):
        """Settings: the common ones."""

    def perturbation(self, step: Step) -> Displacement:
        """Along the gradient, one global norm."""
        return [*along_(step.gradients[-1], self.config.rho)]
