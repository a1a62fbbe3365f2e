"""Trust-region aware minimisation: the radius is how far the outputs have moved."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from continual.sharpness._base import Displacement, SharpnessConfig, Step, along
from continual.sharpness._remember import Remembering
from continual.sharpness.asam import adaptive
from dsi.settings import NotNegative, Positive

if TYPE_CHECKING:
    from continual.stream.view import StageView


class TRAM(Remembering):
    """``eps = min(d, rho) * g / ||g||``, d the divergence of the outputs from a reference's.

    d is KL(reference || now) per target. The reference is the model an update ago, that at the
    stage's start, or the model now with noise on its input embeddings. Without one (the first
    update of a stage under ``previous_step``) nothing is perturbed. ``adaptive`` is ASAM's
    ``d T^2 g / ||T g||`` with ``T = |w|``. Source: Sherborne et al. (ICLR 2024), equation 7, which
    takes d to be below rho. Defaults: rho 0.5, not adaptive, the model an update ago; noise 0.1.
    Passes: 3 forward, 2 backward. Extra memory: one copy of the weights; ``previous_stage`` two,
    ``previous_step`` three.

    Relations: SAM where d is rho or more, bit for bit (``adaptive``: ASAM with ``eta: 0``); plain
    where it is zero, and with ``rho: 0``.
    """

    reference = True

    @dataclass(frozen=True, kw_only=True)
    class Config(SharpnessConfig):
        """Settings."""

        rho: NotNegative = 0.5
        """Largest radius; 0: plain training."""
        reference: Literal["previous_step", "previous_stage", "noise"] = "previous_step"
        """What the outputs are compared with."""
        noise: Positive = 0.1
        """Standard deviation of the noise under ``reference: noise``."""
        adaptive: bool = False
        """Whether a weight's radius is in proportion to its size."""

    def begin_stage(self, view: "StageView") -> None:
        """Keep the stage's start, if that is the reference."""
        super().begin_stage(view)
        if self.config.reference == "previous_stage" and self.active(view.stage):
            self.state = _reference(view.weights)

    def perturbation(self, step: Step) -> Displacement:
        """Along the gradient, as far as the outputs have moved."""
        if self.config.reference == "previous_step":
            self.pending = _reference(dict(zip(step.names, step.weights, strict=True)))
        rho, moved = self.config.rho, step.divergence
        # a divergence is never negative but for rounding
        radius = 0.0 if moved is None else moved.detach().double().clamp(0, rho)
        if self.config.adaptive:
            return adaptive(step.weights, step.gradients[-1], 0.0, radius)
        return [*along(step.gradients[-1], radius)]


def _reference(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"reference/{name}": weight.detach().clone() for name, weight in weights.items()}
