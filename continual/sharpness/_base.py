"""What the members of sharpness share: the view of an update, common settings, exact sums."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from continual.component import Component
from dsi.errors import UserError
from dsi.settings import Count, NotNegative, Settings

if TYPE_CHECKING:
    from continual.stream.view import StageView

DECODER = ("decoder.", "docids.", "lm_head.")
"""How the names of the decoder's weights, and of what scores docids and words, begin."""

Displacement = list[Tensor | None]
"""One entry per weight: what is added to it for a pass; None leaves the weight alone."""


@dataclass
class Step:
    """One update as a policy sees it.

    ``names``, ``weights``: the weights that have a gradient, at the point where the update began.
    ``gradients``: of the passes done so far, the first at the weights themselves; a policy that
    does not set ``keeps`` finds only the last one, and may overwrite it. ``displacement``: where
    the last pass was made (``keeps_displacement`` only). ``update`` counts the updates of the
    stage, ``rate`` is the learning rate as a share of its peak (0..1), ``divergence`` what a policy
    with a ``reference`` asked for, ``second_moments`` the optimizer's running squares of gradients
    (None where it has none). ``seed`` belongs to the update and is the same on every rank.
    """

    names: list[str]
    weights: list[Tensor]
    gradients: list[list[Tensor]] = field(default_factory=list)
    displacement: Displacement | None = None
    update: int = 0
    rate: float = 1.0
    divergence: Tensor | None = None
    second_moments: list[Tensor | None] | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class SharpnessConfig(Settings):
    """Settings that every member has."""

    rho: NotNegative = 0.05
    """Radius of the perturbation in weight space; 0: plain training, bit for bit."""
    phase: Literal["off", "first", "later", "all"] = "all"
    """Stages in which it is used: none, only D_0, only after D_0, every one."""
    sync: Literal["global", "local"] = "global"
    """global: one perturbation per update, from the gradient of all ranks. local: each rank's (or
    each ``m`` examples') own perturbation, the descent gradients averaged (m-sharpness)."""
    m: Count | None = None
    """Examples per perturbation under ``sync: local``; null: a rank's share of the update. With a
    number the result does not depend on how many devices there are."""
    ascent_penalty: bool = False
    """Whether a regularizer's penalty is part of the loss that is perturbed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.m is not None and self.sync != "local":
            raise UserError("m: is for sync: local; set that, or leave m out")


class Policy(Component):
    """Plain steps; a member is a rule: where the next pass is made, which gradient is descended.

    Pure: no model, no optimizer, no passes of its own. ``continual.update.descent`` asks
    :meth:`passes`, makes the first pass at the weights, asks :meth:`perturbation` before every
    further one, puts the weights back, and gives what :meth:`combine` returns to the base
    optimizer. Class attributes say what the passes need. A member's ``Config`` is a
    :class:`SharpnessConfig`.

    Relations: with ``rho: 0`` every member is this one, bit for bit.
    """

    keeps: ClassVar[bool] = False
    """Every gradient is held until the update is done."""
    keeps_displacement: ClassVar[bool] = False
    """So is the last displacement."""
    remembers: ClassVar[bool] = False
    """Something is carried from update to update, so ranks cannot go separate ways."""
    reference: ClassVar[bool] = False
    """Wants the divergence of the outputs from a reference's (``Step.divergence``)."""
    functional: ClassVar[bool] = False
    """The second pass takes the first pass's gradient of the outputs."""
    shares_encoder: ClassVar[bool] = False
    """Only the decoder is perturbed, so the encoder runs once."""

    def active(self, stage: int) -> bool:
        """Whether a stage takes sharpness-aware steps."""
        if not isinstance(self.config, SharpnessConfig):
            return False
        phase = self.config.phase
        in_phase = phase == "all" or (phase != "off" and (phase == "first") == (stage == 0))
        return self.config.rho > 0 and in_phase

    def begin_stage(self, view: "StageView") -> None:
        """Start the state anew, at ``view.weights``.

        Called a second time in stage 0 where D_0 gets its docids after the first updates.
        """
        self.state = {}

    def passes(self, update: int) -> int:
        """Forward and backward passes of an update; 1: a plain one."""
        return 2

    def ascent_share(self) -> float:
        """The share of the batch, 0..1, that the first of several passes sees."""
        return 1.0

    def descent_share(self) -> float:
        """The share of the batch, 0..1, with the largest loss rise, that the last pass sees."""
        return 1.0

    def perturbation(self, step: Step) -> Displacement:
        """What is added to the weights (as they were at the start) for the next pass."""
        raise NotImplementedError

    def combine(self, step: Step) -> list[Tensor]:
        """The gradient to descend; by default that of the last pass."""
        return step.gradients[-1]

    def decoupled(self, step: Step) -> list[Tensor] | None:
        """A direction taken by the learning rate alone, past the base optimizer."""
        return None

    def after_update(self, step: Step) -> None:
        """The update was made (not skipped): remember what the next one needs."""


def norm(tensors: Sequence[Tensor]) -> Tensor:
    """The L2 norm over all tensors, float64; the same number on every rank of sharded ones.

    In rows: one float32 norm over millions of numbers is off by some 1e-4, one in float64 takes
    seventeen times as long.
    """
    rows = [torch.linalg.vector_norm(t, dim=-1) if t.dim() else t.abs() for t in tensors]
    found = _norm_of(rows)
    # squares of numbers below 1e-19 are zero in float32
    return _norm_of(tensors) if bool(found < 1e-12) else found


def _norm_of(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([_whole(t.double().square().sum()) for t in tensors]).sum().sqrt()


def dot(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """The inner product over all tensors, float64."""
    rows = [(a * b).sum(-1) if a.dim() else a * b for a, b in zip(ours, theirs, strict=True)]
    return torch.stack([_whole(row.double().sum()) for row in rows]).sum()


def ratio(above: Tensor | float, below: Tensor) -> Tensor:
    """``above / below``, and 0 where ``below`` is 0; what is not finite stays so."""
    return torch.where(below == 0, torch.zeros_like(below), above / below)


def times(tensors: Sequence[Tensor], factor: Tensor) -> list[Tensor]:
    """Every tensor times a float64 scalar, in the tensor's own precision."""
    return [tensor * _like(factor, tensor) for tensor in tensors]


def plus(ours: Sequence[Tensor], theirs: Sequence[Tensor], factor: Tensor | float) -> list[Tensor]:
    """``ours + factor * theirs``, tensor by tensor."""
    if isinstance(factor, Tensor):
        return [a + b * _like(factor, b) for a, b in zip(ours, theirs, strict=True)]
    return [torch.add(a, b, alpha=factor) for a, b in zip(ours, theirs, strict=True)]


def along_(direction: Sequence[Tensor], length: float | Tensor) -> list[Tensor]:
    """:func:`along` in place: fresh memory would cost more than the arithmetic."""
    factor = ratio(length, norm(direction))
    return [tensor.mul_(_like(factor, tensor)) for tensor in direction]


def along(direction: Sequence[Tensor], length: float | Tensor) -> list[Tensor]:
    """``length * direction / ||direction||``; zero where the direction is zero."""
    return times(direction, ratio(length, norm(direction)))


def _like(factor: Tensor, tensor: Tensor) -> Tensor:
    return factor.to(tensor.dtype)


def _whole(value: Tensor) -> Tensor:
    # a sum over a sharded tensor is a sharded tensor of partial sums
    whole = getattr(value, "full_tensor", None)
    return whole() if whole is not None else value
