"""Friendly SAM: ascend along what is particular to the batch."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Lt

from continual.sharpness._base import Displacement, SharpnessConfig, Step, along
from continual.sharpness._remember import Remembering
from dsi.settings import NotNegative


class FriendlySAM(Remembering):
    """``d = g - sigma m``, ``eps = rho * d / ||d||``; then ``m = decay m + (1 - decay) g``.

    m follows the gradient of all data, so d is this batch's noise. m takes in g itself, not d. In
    the first update of a stage nothing is taken off, and m becomes g, as in the authors' code.
    Source: Li et al. (CVPR 2024). Defaults: sigma 1, decay 0.9. Passes: 2 forward, 2 backward.
    Extra memory: three copies of the weights.

    Relations: with ``sigma: 0`` SAM, bit for bit, as is the first update of a stage; with
    ``rho: 0`` plain.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(SharpnessConfig):
        """Settings."""

        sigma: NotNegative = 1.0
        """How much of the moving average is taken off the gradient."""
        decay: Annotated[float, Ge(0), Lt(1)] = 0.9
        """What the moving average keeps of itself per update."""

    def perturbation(self, step: Step) -> Displacement:
        """Along the gradient without its moving average."""
        gradient, decay = step.gradients[-1], self.config.decay
        own, moved = [], []
        for name, g in zip(step.names, gradient, strict=True):
            average = self.state.get(name)
            # at first there is no average: nothing is taken off, and it starts as the gradient
            own.append(g if average is None else g - self.config.sigma * average)
            moved.append(g.clone() if average is None else decay * average + (1 - decay) * g)
        self.pending = {**self.state, **dict(zip(step.names, moved, strict=True))}
        return [*along(own, self.config.rho)]
