"""LookSAM: SAM now and then, and its direction in between."""

from dataclasses import dataclass

import torch
from torch import Tensor

from continual.sharpness._base import (
    Displacement,
    SharpnessConfig,
    Step,
    along,
    dot,
    norm,
    plus,
    ratio,
)
from continual.sharpness._remember import Remembering
from dsi.settings import Count, NotNegative


class LookSAM(Remembering):
    """SAM every ``interval`` updates; in between ``g + alpha * ||g|| / ||g_v|| * g_v``.

    ``g_v = g_s - <g_s, g> / ||g||^2 g`` is the part of the last SAM gradient that plain descent
    lacks; it changes slowly. Norms and products are over all weights together. Source: Liu et al.
    (CVPR 2022). Defaults: interval 5, alpha 0.7. Passes: 1 + 1 / interval, forward and backward.
    Extra memory: two copies of the weights, every interval two more of the gradient and one of the
    perturbation.

    Relations: with ``interval: 1`` SAM, with ``alpha: 0`` interval SAM, both bit for bit; with
    ``rho: 0`` plain.
    """

    keeps = True

    @dataclass(frozen=True, kw_only=True)
    class Config(SharpnessConfig):
        """Settings."""

        interval: Count = 5
        """Updates from one SAM update to the next."""
        alpha: NotNegative = 0.7
        """Length of what is added in between, as a share of the gradient's."""

    def passes(self, update: int) -> int:
        """Two at every interval, and while there is nothing to reuse."""
        return 2 if update % self.config.interval == 0 or not self.state else 1

    def perturbation(self, step: Step) -> Displacement:
        """SAM's."""
        return [*along(step.gradients[0], self.config.rho)]

    def combine(self, step: Step) -> list[Tensor]:
        """SAM's gradient, or the plain one with what is remembered of it."""
        clean, found = step.gradients[0], step.gradients[-1]
        self.pending = None
        if len(step.gradients) > 1:
            share = ratio(dot(found, clean), dot(clean, clean))
            self.pending = dict(zip(step.names, plus(found, clean, -share), strict=True))
            return found
        kept = [
            self.state[name] if name in self.state else torch.zeros_like(g)
            for name, g in zip(step.names, clean, strict=True)
        ]
        return plus(clean, kept, self.config.alpha * ratio(norm(clean), norm(kept)))
