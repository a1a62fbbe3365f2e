"""Efficient SAM: some tensors go up, some examples go down."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt, Le

from continual.sharpness._base import (
    Displacement,
    Policy,
    SharpnessConfig,
    Step,
    norm,
    ratio,
    times,
)
from dsi.seeding import numpy_rng


class EfficientSAM(Policy):
    """SAM with a random share of the tensors perturbed, and the most affected examples descended.

    ``eps = rho / weights * g / ||g||`` on each tensor with probability ``weights`` (at least one),
    0 elsewhere: SAM's on average over the draws. The gradient to descend is that of the
    ``examples`` share of the batch whose loss rose most. Source: Du et al. (ICLR 2022; ESAM).
    Defaults: weights 0.6, examples 0.5. Passes: 2 forward and ``examples`` more of them, 1 +
    ``examples`` backward. Extra memory: one copy of the perturbed weights.

    Relations: with ``weights: 1, examples: 1`` SAM, bit for bit; with ``rho: 0`` plain.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(SharpnessConfig):
        """Settings."""

        weights: Annotated[float, Gt(0), Le(1)] = 0.6
        """Probability that a tensor is perturbed."""
        examples: Annotated[float, Gt(0), Le(1)] = 0.5
        """Share of the batch that the update descends."""

    def descent_share(self) -> float:
        """As configured."""
        return self.config.examples

    def perturbation(self, step: Step) -> Displacement:
        """SAM's on some tensors, divided by the probability of being chosen."""
        gradient, share = step.gradients[-1], self.config.weights
        draws = numpy_rng(step.seed, "sharpness").random(len(gradient))
        chosen = draws <= max(share, draws.min(initial=1.0))
        # the norm of all, so that the draw decides where the weights move and not how far
        size = norm(gradient)
        # an infinite gradient must show, also where only tensors that stay have it
        factor = ratio(self.config.rho / share, size) + 0 * size
        found: Displacement = []
        for g, is_chosen in zip(gradient, chosen, strict=True):
            found += times([g], factor) if is_chosen else [None]
        return found
