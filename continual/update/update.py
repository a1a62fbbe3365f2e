"""One update: passes over micro-batches, sharpness, a penalty, clipping, the optimizer's step."""

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from continual.config.schema import TrainingConfig
from continual.method import Method
from continual.sharpness._base import Step, norm
from continual.update.descent import Descent, Slope
from continual.update.optimizer import clip_gradient, gradient_values
from continual.update.passes import Passes, cut
from dsi.examples.batches import Batch


@dataclass(frozen=True)
class Taken:
    """``loss``: summed over this rank's examples, divided by the targets of all, detached.
    ``made``: False when a gradient was not finite and nothing was changed."""

    loss: Tensor
    made: bool = True


class Update:
    """What the updates of a stage have in common; :meth:`take` makes one of them.

    ``model`` and ``optimizer``: as wrapped for the devices, or in pieces. ``codes_NT``: docids by
    document number, on the device.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        codes_NT: Tensor,
        accelerator: Accelerator,
        training: TrainingConfig,
        method: Method,
        stage: int,
    ):
        self.model, self.optimizer, self.codes_NT = model, optimizer, codes_NT
        self.accelerator, self.training = accelerator, training
        self.regularizer, self.sharpness = method.regularizer, method.sharpness
        self.readers = method.readers
        self.is_sharp = method.sharpness.active(stage)
        # whether the gradient is checked: a sharp update is never made if it is not finite
        self.is_careful = self.is_sharp or training.nonfinite == "skip"

    def take(self, batch: Batch, seed: int, number: int = 0, rate: float = 1.0) -> Taken:
        """Train on one batch.

        ``seed`` belongs to this update; ``number`` counts those of the stage; ``rate`` is the
        learning rate as a share of its peak.
        """
        training = self.training
        passes = Passes(
            self.model,
            self.accelerator,
            self.codes_NT,
            seed,
            training.label_smoothing,
            self.readers,
        )
        self.optimizer.zero_grad(set_to_none=True)
        slope, has_penalty = None, False
        if self.is_sharp:
            has_penalty = self.sharpness.config.ascent_penalty
            inside = self.regularizer if has_penalty else None
            step = Step([], [], update=number, rate=rate, seed=seed)
            descent = Descent(passes, self.sharpness, inside, self.optimizer)
            slope = descent.all_shards(batch, training.accumulation, step)
            for weight, gradient in zip(slope.weights, slope.gradient, strict=True):
                weight.grad = gradient
            loss = slope.loss
        else:
            parts = cut(batch, self.accelerator, training.accumulation)
            loss = passes.gradients(parts, batch.targets()).loss
        penalty = None if has_penalty else self.regularizer.penalty(passes.raw)
        if penalty is not None:
            # once per update, whatever the number of micro-batches and ranks; on the unwrapped
            # model, so no synchronisation is due: every rank adds the same gradient
            penalty.backward()
        if not self._clip(passes.raw):
            self.optimizer.zero_grad(set_to_none=True)
            return Taken(loss, made=False)
        self.optimizer.step()
        if slope is not None:
            if slope.decoupled is not None:
                _take_decoupled(self.optimizer, slope)
            self.sharpness.after_update(slope.step)
        return Taken(loss)

    def _clip(self, model: nn.Module) -> bool:
        """Clip the gradient; False where it is checked and not finite."""
        size, most = None, self.training.clip
        if most > 0:
            size = clip_gradient(self.accelerator, model.parameters(), most)
        if not self.is_careful:
            return True
        # the gradient is the same on every rank, so all of them come to the same decision
        if size is None:
            size = norm(gradient_values(model.parameters()))
        return bool(torch.isfinite(size))


@torch.no_grad()
def _take_decoupled(optimizer: Any, slope: Slope) -> None:
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for weight, direction in zip(slope.weights, slope.decoupled or [], strict=True):
        weight.add_(direction, alpha=-float(rates[weight]))
