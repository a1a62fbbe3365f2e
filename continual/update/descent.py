"""The gradient of a sharpness-aware update: which passes are made, and where.

A policy (``continual.sharpness``) says where to look and what to keep. What is easily got wrong in
sharpness-aware code is done here, once for all of them: the same random state in every pass, one
perturbation per update over all micro-batches, in-place perturbation and bitwise restoration, and
one exchange between the ranks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from continual.regularizers import Regularizer
from continual.sharpness._base import DECODER, Policy, Step
from continual.update.passes import (
    MicroBatch,
    Passes,
    PassResult,
    among_largest,
    cut,
    displaced,
    noised,
    pieces_of,
)
from dsi.errors import UserError
from dsi.examples.batches import Batch


@dataclass
class Slope:
    """The gradient of an update, or of one shard of it."""

    loss: Tensor
    weights: list[nn.Parameter]
    gradient: list[Tensor]
    decoupled: list[Tensor] | None
    step: Step


class Descent:
    """Finds the gradient that a sharpness policy descends.

    ``regularizer``: its penalty is part of the perturbed loss; None: no penalty is.
    """

    def __init__(
        self,
        passes: Passes,
        policy: Policy,
        regularizer: Regularizer | None,
        optimizer: Any,
    ):
        self.passes, self.policy, self.regularizer = passes, policy, regularizer
        self.accelerator, self.raw = passes.accelerator, passes.raw
        self.moments = getattr(optimizer, "optimizer", optimizer).state
        self.sync = policy.config.sync == "global"

    def all_shards(self, batch: Batch, micro_batches: int, step: Step) -> Slope:
        """One perturbation for the whole update, or one for every shard (m-sharpness)."""
        if self.sync:
            ascent = self._some(batch)
            return self.shard(
                cut(batch, self.accelerator, micro_batches),
                batch.targets(),
                cut(ascent, self.accelerator, min(micro_batches, self._fits(ascent))),
                ascent.targets(),
                step,
            )
        size, world = len(batch.documents), self.accelerator.num_processes
        shards = size // (world * self.policy.config.m) if self.policy.config.m else 1
        pieces = math.ceil(micro_batches / shards)
        total: Slope | None = None
        for i in range(shards):
            # strided like micro-batches, so that every shard has texts of all lengths
            shard = self.accelerator.process_index * shards + i
            whole = batch.part(shard, world * shards)
            parts = pieces_of(whole, 0, pieces, pieces, shard * pieces)
            ascent = self._some(whole)
            number = min(pieces, len(ascent.documents))
            few = pieces_of(ascent, 0, number, number, shard * pieces)
            fresh = Step([], [], update=step.update, rate=step.rate, seed=step.seed)
            found = self.shard(parts, whole.targets(), few, ascent.targets(), fresh)
            found = _weighted(found, whole.targets() / batch.targets())
            total = found if total is None else _added(total, found)
        assert total is not None
        if world > 1:
            total.gradient = [self.passes.reduce(g) for g in total.gradient]
            if total.decoupled is not None:
                total.decoupled = [self.passes.reduce(g) for g in total.decoupled]
        return total

    def shard(
        self,
        parts: list[MicroBatch],
        targets: int,
        ascent: list[MicroBatch],
        ascent_targets: int,
        step: Step,
    ) -> Slope:
        """The gradient of ``parts``, perturbed by what ``ascent`` (a share of them) shows."""
        policy, number = self.policy, self.policy.passes(step.update)
        if policy.shares_encoder:
            return self._decoder(parts, targets, step)
        fully = number == 1 or policy.ascent_share() == 1
        wanted = "none"
        if number > 1:
            wanted = "gradients" if policy.functional else "logits" if policy.reference else "none"
        first = self._gradients(
            parts if fully else ascent,
            targets if fully else ascent_targets,
            scores=wanted,
        )
        named = {n: p for n, p in self.raw.named_parameters() if p.grad is not None}
        step.names, step.weights = list(named), list(named.values())
        weights: list[nn.Parameter] = list(named.values())
        step.gradients = [_taken(weights)]
        _require_float32(named)
        step.second_moments = [self.moments.get(p, {}).get("exp_avg_sq") for p in weights]
        if policy.reference:
            step.divergence = self._divergence(parts, targets, named, first.scores)
        done = 1
        with displaced(weights, overwrite=not policy.keeps_displacement) as move:
            while done < number:
                displacement = policy.perturbation(step)
                if policy.keeps_displacement:
                    step.displacement = list(displacement)
                if not policy.keeps:
                    step.gradients.clear()
                move(displacement)
                done += 1
                last = done == number
                rows, count = parts, targets
                if last and policy.descent_share() < 1:
                    rows, count = self._worst(parts, first)
                self._gradients(
                    rows, count, cotangents=first.scores if policy.functional and last else None
                )
                step.gradients.append(_taken(weights))
        return Slope(first.loss, weights, policy.combine(step), policy.decoupled(step), step)

    def _gradients(self, parts: Sequence[MicroBatch], targets: int, **options: Any) -> PassResult:
        found = self.passes.gradients(parts, targets, sync=self.sync, **options)
        self._penalise()
        return found

    def _penalise(self) -> None:
        penalty = None if self.regularizer is None else self.regularizer.penalty(self.raw)
        if penalty is not None:
            penalty.backward()

    def _with_penalty(self, sums: list[Tensor], weights: list[nn.Parameter]) -> list[Tensor]:
        penalty = None if self.regularizer is None else self.regularizer.penalty(self.raw)
        if penalty is None:
            return sums
        more = torch.autograd.grad(penalty, weights, allow_unused=True)
        return [a if b is None else a + b for a, b in zip(sums, more, strict=True)]

    def _some(self, batch: Batch) -> Batch:
        """The examples that the first pass sees: evenly spread over the batch."""
        share, size = self.policy.ascent_share(), len(batch.documents)
        if share == 1:
            return batch
        count = max(self.accelerator.num_processes if self.sync else 1, round(share * size))
        return batch.rows(torch.arange(count) * size // count)

    def _fits(self, batch: Batch) -> int:
        return max(1, len(batch.documents) // self.accelerator.num_processes)

    def _worst(
        self, parts: Sequence[MicroBatch], first: PassResult
    ) -> tuple[list[MicroBatch], int]:
        """The examples whose loss rose most, among all ranks, and how many targets they have."""
        now = self.passes.look(parts).losses
        rises = [after - before for after, before in zip(now, first.losses, strict=True)]
        size = sum(len(part.batch.documents) for part in parts)
        everyone = int(self.passes.reduce(torch.tensor(size, device=rises[0].device)))
        count = max(1, round(self.policy.descent_share() * everyone))
        chosen = among_largest(rises, count, self.accelerator)
        kept, targets = [], 0
        for part, mask in zip(parts, chosen, strict=True):
            some = bool(mask.any())
            rows = mask.cpu() if some else torch.zeros(1, dtype=torch.long)
            # ranks exchange gradients together, so one without examples runs one that counts zero
            piece = replace(part, batch=part.batch.rows(rows), factor=1.0 if some else 0.0)
            kept.append(piece)
            targets += piece.batch.targets() if some else 0
        everyones = int(self.passes.reduce(torch.tensor(targets, device=rises[0].device)))
        return kept, everyones if self.sync else targets

    def _divergence(
        self,
        parts: Sequence[MicroBatch],
        targets: int,
        named: dict[str, nn.Parameter],
        now: list[list[Tensor]],
    ) -> Tensor | None:
        """KL(reference || now) of the scores, summed over positions, per target."""
        config: Any = self.policy.config
        if config.reference == "noise":
            with noised(self.raw, config.noise):
                then = self.passes.look(parts, logits=True).scores
        else:
            held = {n: self.policy.state.get(f"reference/{n}") for n in named}
            if any(value is None for value in held.values()):
                return None
            with displaced(list(named.values())) as move:
                pairs = zip(held.values(), named.values(), strict=True)
                move([old - p.detach() for old, p in pairs if old is not None])
                then = self.passes.look(parts, logits=True).scores
        total = torch.zeros((), device=self.accelerator.device)
        for part, old, new in zip(parts, then, now, strict=True):
            batch = part.batch.to(self.accelerator.device)
            codes = self.passes.codes_NT[batch.documents]
            valid = [codes[:, t] >= 0 for t in range(len(new))]
            if batch.labels is not None:
                valid = [batch.labels != -100]
            for a, b, mask in zip(old, new, valid, strict=True):
                total += _kl(a, b)[mask].sum()
        return (self.passes.reduce(total) if self.sync else total) / targets

    def _decoder(self, parts: Sequence[MicroBatch], targets: int, step: Step) -> Slope:
        """As :meth:`shard`, where only the decoder is perturbed and the encoder runs once.

        The encoder's graphs of all micro-batches are held until the second pass.
        """
        passes, ranks = self.passes, self.accelerator.num_processes
        encoded = [passes.encode(part) for part in parts]
        every = {n: p for n, p in self.raw.named_parameters() if p.requires_grad}
        named = {n: p for n, p in every.items() if n.startswith(DECODER)}
        total = torch.zeros((), device=self.accelerator.device)
        sums: list[Tensor] = []
        smoothing = passes.label_smoothing
        plain = Passes(
            self.raw, self.accelerator, passes.codes_NT, passes.seed, smoothing, passes.readers
        )
        for part, (states, mask) in zip(parts, encoded, strict=True):
            losses, _ = plain.forward(part, encoded=(states.detach(), mask))
            loss = losses.sum() / targets
            found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
            given = [
                torch.zeros_like(p) if g is None else g
                for p, g in zip(named.values(), found, strict=True)
            ]
            sums = [a.add_(b) for a, b in zip(sums, given, strict=True)] if sums else given
            total += loss.detach()
        if self.sync and ranks > 1:
            sums = [passes.reduce(g) for g in sums]
        _require_float32(named)
        sums = self._with_penalty(sums, list(named.values()))
        step.names, step.weights, step.gradients = list(named), list(named.values()), [sums]
        with displaced(list(named.values())) as move:
            move(self.policy.perturbation(step))
            step.gradients.clear()
            self._gradients(parts, targets, encoded=encoded)
        weights = [p for p in every.values() if p.grad is not None]
        step.names = [n for n, p in every.items() if p.grad is not None]
        step.weights, step.gradients = list(weights), [_taken(weights)]
        return Slope(total, weights, self.policy.combine(step), None, step)


def _taken(weights: Sequence[nn.Parameter]) -> list[Tensor]:
    """The gradients, taken off the weights; zero where a pass did not reach one."""
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in weights]
    for p in weights:
        p.grad = None
    return found


def _require_float32(named: dict[str, nn.Parameter]) -> None:
    for name, weight in named.items():
        if weight.dtype in (torch.bfloat16, torch.float16):
            raise UserError(
                f"sharpness.name: {name} is {str(weight.dtype)[6:]}, in which a perturbation of "
                "every weight by a tiny amount is lost; keep float32 weights and set "
                "training.precision: bf16"
            )


def _weighted(found: Slope, weight: float) -> Slope:
    if weight != 1:
        found.loss = found.loss * weight
        for gradients in (found.gradient, found.decoupled or []):
            for i, gradient in enumerate(gradients):
                gradients[i] = gradient * weight
    return found


def _added(one: Slope, other: Slope) -> Slope:
    one.loss = one.loss + other.loss
    one.gradient = [a + b for a, b in zip(one.gradient, other.gradient, strict=True)]
    if one.decoupled is not None and other.decoupled is not None:
        one.decoupled = [a + b for a, b in zip(one.decoupled, other.decoupled, strict=True)]
    return one


def _kl(reference: Tensor, now: Tensor) -> Tensor:
    """KL(reference || now) over the last dimension of logits."""
    old, new = torch.log_softmax(reference, -1), torch.log_softmax(now, -1)
    return (old.exp() * (old - new)).sum(-1)
