"""Forward and backward passes over the parts of one update."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from continual.component import Component
from dsi.examples.batches import Batch
from dsi.seeding import derive


@dataclass(frozen=True)
class MicroBatch:
    """A piece of an update: ``index`` (among those of all ranks) and ``group`` decide its dropout,
    ``factor`` scales its loss."""

    batch: Batch
    index: int
    group: int = 0
    factor: float = 1.0


@dataclass
class PassResult:
    """What a pass found: ``loss`` summed over examples and divided by the targets (this rank's
    share of it), ``losses`` (B,) of each part, and of each part the scores asked for."""

    loss: Tensor
    losses: list[Tensor]
    scores: list[list[Tensor]]


class Passes:
    """The passes of one update on this rank.

    Every pass over a part draws the same dropout, which depends on ``seed`` and the part: not on
    what ran before (an evaluation, say), and not on the rank that has the part. ``readers`` add
    losses of their own to every example's.
    """

    def __init__(
        self,
        model: nn.Module,
        accelerator: Accelerator,
        codes_NT: Tensor,
        seed: int,
        label_smoothing: float,
        readers: Sequence[Component] = (),
    ):
        self.model, self.accelerator, self.codes_NT = model, accelerator, codes_NT
        self.seed, self.label_smoothing, self.readers = seed, label_smoothing, readers
        self.raw: Any = accelerator.unwrap_model(model)

    def gradients(
        self,
        parts: Sequence[MicroBatch],
        targets: int,
        *,
        sync: bool = True,
        scores: Literal["none", "logits", "gradients"] = "none",
        cotangents: Sequence[Sequence[Tensor]] | None = None,
        encoded: Sequence[tuple[Tensor, Tensor]] | None = None,
    ) -> PassResult:
        """One forward and backward pass: adds to ``.grad`` the gradient of losses / targets.

        ``sync``: averaged over the ranks, so ``targets`` are those of all ranks; otherwise nothing
        is exchanged. ``scores``: return each part's logits, or the loss's gradient at them, which a
        later pass may take as ``cotangents`` in place of its own. ``encoded``: what :meth:`encode`
        gave for each part.
        """
        # normalised by the targets of the whole update, so that ranks and micro-batches of
        # unequal size add up to the gradient of one big batch; DDP averages over the ranks
        ranks = self.accelerator.num_processes if sync else 1
        found = PassResult(self._zero(), [], [])
        for i, part in enumerate(parts):
            exchange = sync and i == len(parts) - 1
            with torch.enable_grad() if exchange else self.accelerator.no_sync(self.model):
                wanted = scores != "none" or cotangents is not None
                states = None if encoded is None else encoded[i]
                losses, logits = self.forward(part, logits=wanted, encoded=states)
                total = losses.sum() * part.factor / targets
                if cotangents is None:
                    loss = total * ranks
                    if scores == "gradients":
                        for score in logits:
                            score.retain_grad()
                else:
                    pairs = zip(logits, cotangents[i], strict=True)
                    loss = torch.stack([(ours * given).sum() for ours, given in pairs]).sum()
                self.accelerator.backward(loss)
            found.loss += total.detach()
            found.losses.append(losses.detach())
            if scores == "gradients":
                found.scores.append([s.grad for s in logits if s.grad is not None])
            elif scores == "logits":
                found.scores.append([s.detach() for s in logits])
        return found

    @torch.no_grad()
    def look(self, parts: Sequence[MicroBatch], *, logits: bool = False) -> PassResult:
        """A forward pass alone: ``losses`` and, if asked, ``scores`` (the logits)."""
        found = PassResult(self._zero(), [], [])
        for part in parts:
            losses, scores = self.forward(part, logits=logits)
            found.losses.append(losses)
            found.scores.append(scores)
        return found

    def forward(
        self,
        part: MicroBatch,
        *,
        logits: bool = False,
        encoded: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Losses (B,) of a part, and its logits if asked."""
        self.reseed(part, decoder=encoded is not None)
        batch = part.batch.to(self.accelerator.device)
        more: dict[str, Any] = {"return_logits": True} if logits or self.readers else {}
        if encoded is not None:
            more["encoded"] = encoded
        # a region of its own per pass: autocast keeps its casts of the weights within a region,
        # and the next pass may be made at other weights
        with self.accelerator.autocast():
            out = self.model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                codes=self.codes_NT[batch.documents],
                labels=batch.labels,
                label_smoothing=self.label_smoothing,
                **more,
            )
        losses, scores = out if more.get("return_logits") else (out, [])
        if "weight" in batch.extras:
            losses = losses * batch.extras["weight"].nan_to_num(1.0)
        for reader in self.readers:
            losses = losses + reader.example_loss(batch, scores)
        return losses, scores if logits else []

    def encode(self, part: MicroBatch) -> tuple[Tensor, Tensor]:
        """The encoder's states of a part and their mask, with their graph."""
        self.reseed(part)
        batch = part.batch.to(self.accelerator.device)
        with self.accelerator.autocast():
            return self.raw.encode_example(
                batch.input_ids,
                batch.attention_mask,
                self.codes_NT[batch.documents],
                batch.labels,
            )

    def reseed(self, part: MicroBatch, decoder: bool = False) -> None:
        """The dropout of a part; ``decoder``: of its decoder alone."""
        # 0 in the place of the rank: several processes draw what one does
        torch.manual_seed(derive(self.seed, 0, part.index, part.group, *([1] * decoder)))

    def reduce(self, value: Tensor) -> Tensor:
        """The sum over the ranks."""
        return self.accelerator.reduce(value, reduction="sum")  # type: ignore[return-value]

    def _zero(self) -> Tensor:
        return torch.zeros((), device=self.accelerator.device)


def cut(batch: Batch, accelerator: Accelerator, micro_batches: int) -> list[MicroBatch]:
    """The micro-batches of this rank, numbered among those of all ranks: N ranks compute what one
    rank does with N times as many."""
    first = accelerator.process_index * micro_batches
    every = accelerator.num_processes * micro_batches
    return pieces_of(batch, first, micro_batches, every, first)


def pieces_of(batch: Batch, first: int, count: int, of: int, index: int = 0) -> list[MicroBatch]:
    """``count`` of ``of`` equal pieces from number ``first`` on, numbered from ``index`` on; each
    in its groups of about one length."""
    whole = of == 1
    return [
        MicroBatch(group, index + i, number)
        for i in range(count)
        for number, group in enumerate((batch if whole else batch.part(first + i, of)).by_group())
    ]


def among_largest(values: Sequence[Tensor], count: int, accelerator: Accelerator) -> list[Tensor]:
    """Per part, which (bool) of its values are among the ``count`` largest of all ranks."""
    mine = torch.cat(list(values))
    if accelerator.num_processes > 1:
        sizes = accelerator.gather(torch.tensor([len(mine)], device=mine.device))
        padded = mine.new_full((int(sizes.max()),), -torch.inf)  # type: ignore[union-attr]
        padded[: len(mine)] = mine
        everyones = accelerator.gather(padded)
    else:
        everyones = mine
    least = torch.topk(everyones, count).values[-1]  # type: ignore[arg-type]
    return [part >= least for part in values]


@contextmanager
def noised(model: nn.Module, spread: float) -> Iterator[None]:
    """Normal noise of standard deviation ``spread`` on what the encoder's embedding gives."""

    def add(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output + spread * torch.randn_like(output)

    handle = model.get_input_embeddings().register_forward_hook(add)  # type: ignore[operator]
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def displaced(
    weights: Sequence[Tensor], overwrite: bool = True
) -> Iterator[Callable[[list[Tensor | None]], None]]:
    """Gives a function that sets weights to their old values plus a displacement (a list that it
    empties).

    Afterwards every weight has its old value, bit for bit, also when something raises in between:
    the old numbers themselves come back, since subtracting what was added is not exact. A
    processor's weights get other storage for the time being, the displacement's own
    (``overwrite``), which takes a third of the memory traffic of copying there and back. Sharded
    models and CUDA graphs read from the weights' storage, so there the old values are copied.
    """
    kept: list[Tensor | None] = [None] * len(weights)

    def put(weight: Tensor, before: Tensor, change: Tensor | None) -> None:
        if not _exchangeable(weight):
            weight.copy_(before)
            if change is not None:
                weight.add_(change)
        elif change is None:
            weight.data = before
        else:
            own = overwrite and change.stride() == before.stride()
            weight.data = torch.add(before, change, out=change if own else None)

    @torch.no_grad()
    def move(displacement: list[Tensor | None]) -> None:
        for i, weight in enumerate(weights):
            # taken off the list, so that there is one more copy of the weights at a time, not two
            change, displacement[i] = displacement[i], None
            before = kept[i]
            if before is None and change is not None:
                before = weight.detach()
                kept[i] = before = before if _exchangeable(weight) else before.clone()
            if before is not None:
                put(weight, before, change)

    try:
        yield move
    finally:
        with torch.no_grad():
            for weight, before in zip(weights, kept, strict=True):
                if before is not None:
                    put(weight, before, None)


def _exchangeable(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and not hasattr(weight, "full_tensor")
