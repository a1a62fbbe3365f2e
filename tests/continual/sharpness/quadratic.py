"""A policy on L(w) = 1/2 sum a w^2, taken through its protocol as the engine does, with SGD."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from continual.config.registry import component_class
from continual.sharpness._base import Displacement, Policy, Step


def tensor(*values: Any) -> Tensor:
    """In float64."""
    return torch.tensor(values, dtype=torch.float64)


START = {"decoder.weight": tensor([2.0, -1.0])}
CURVATURE = {"decoder.weight": tensor([1.0, 10.0])}
WIDE = {
    "decoder.block.weight": tensor([2.0, -1.0, 0.4], [0.5, 3.0, -0.2]),
    "docids.weight": tensor([-0.3, 0.9]),
    "encoder.norm.weight": tensor(1.5, -0.7),
    "encoder.block.weight": tensor([1.1], [-2.2]),
}
STEEP = {
    "decoder.block.weight": tensor([1.0, 5.0, 2.0], [3.0, 0.5, 4.0]),
    "docids.weight": tensor([2.5, 1.5]),
    "encoder.norm.weight": tensor(0.8, 3.5),
    "encoder.block.weight": tensor([1.2], [4.5]),
}


def member(name: str, **settings: Any) -> Policy:
    """A policy by the name of its module."""
    cls: Any = component_class("sharpness", name)
    return cls(cls.Config(**settings))


class Quadratic:
    """``moves`` and ``descents``: every displacement and every gradient descended so far."""

    def __init__(
        self,
        policy: Policy,
        start: Mapping[str, Tensor] = START,
        curvature: Mapping[str, Tensor] = CURVATURE,
        *,
        rate: float = 0.1,
        scale: float = 1.0,
        divergence: float | None = 0.3,
        dtype: torch.dtype = torch.float64,
    ):
        self.policy, self.rate = policy, rate
        # weights require gradients, as a model's do
        self.weights = {
            n: torch.nn.Parameter(w.detach().clone().to(dtype)) for n, w in start.items()
        }
        self.curvature = {n: scale * a.to(dtype) for n, a in curvature.items()}
        self.divergence = None if divergence is None else torch.tensor(divergence, dtype=dtype)
        self.moves: list[Displacement] = []
        self.descents: list[list[Tensor]] = []
        self.number = 0

    @torch.no_grad()
    def gradient(self) -> list[Tensor]:
        """Where the weights are now."""
        return [a * w for a, w in zip(self.curvature.values(), self.weights.values(), strict=True)]

    @torch.no_grad()
    def loss(self) -> float:
        """Where the weights are now."""
        pairs = zip(self.curvature.values(), self.weights.values(), strict=True)
        return float(torch.stack([(a * w * w).sum() / 2 for a, w in pairs]).sum())

    def step(self) -> Step:
        """The view of the next update, after its first pass."""
        moments = [a.square() for a in self.curvature.values()]
        return Step(
            list(self.weights),
            list(self.weights.values()),
            [self.gradient()],
            update=self.number,
            divergence=self.divergence,
            second_moments=[*moments],
            seed=100 + self.number,
        )

    def update(
        self,
        *,
        poison: tuple[int, float] | None = None,
        spoil: Callable[[list[Tensor]], None] | None = None,
        skip: bool = False,
    ) -> None:
        """One update.

        ``poison``: a value put into the gradient of a pass. ``spoil``: what happens to the gradient
        that is descended before the optimizer sees it, in place. ``skip``: nothing is changed, as
        when a gradient is not finite.
        """
        policy, step = self.policy, self.step()
        live = list(self.weights.values())
        kept = [w.detach().clone() for w in live]
        for done in range(policy.passes(self.number) if policy.active(0) else 1):
            if done:
                moves = policy.perturbation(step)
                self.moves.append([None if e is None else e.clone() for e in moves])
                if policy.keeps_displacement:
                    step.displacement = list(moves)
                if not policy.keeps:
                    step.gradients.clear()
                with torch.no_grad():
                    for weight, before, move in zip(live, kept, moves, strict=True):
                        weight.copy_(before if move is None else before + move)
                moves.clear()
                step.gradients.append(self.gradient())
            if poison and poison[0] == done:
                step.gradients[-1][0].view(-1)[0] = poison[1]
        final, past = policy.combine(step), policy.decoupled(step)
        self.descents.append([g.clone() for g in final])
        if past is not None:
            self.descents.append([g.clone() for g in past])
        if spoil:
            spoil(final)
        with torch.no_grad():
            for i, (weight, before) in enumerate(zip(live, kept, strict=True)):
                weight.copy_(before)
                if not skip:
                    weight.sub_(self.rate * (final[i] if past is None else final[i] + past[i]))
        if not skip:
            policy.after_update(step)
        self.number += 1

    def updates(self, count: int) -> "Quadratic":
        """Several."""
        for _ in range(count):
            self.update()
        return self
