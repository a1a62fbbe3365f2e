"""Elastic weight consolidation: what mattered to earlier stages is held firmly, the rest is free.

Shape legend: B examples, T docid positions, C codes of a position, W words, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from continual.regularizers._base import Regularizer
from continual.stream.view import StageView
from dsi.examples.batches import Batch
from dsi.model.dsi_model import DSIModel
from dsi.seeding import derive
from dsi.settings import Count, NotNegative, Settings

MOST_EXAMPLES, MOST_NUMBERS = 16, 2**26
"""Examples whose gradients are made at once, and the numbers (256 MB) that these may be."""


class EWC(Regularizer):
    """Adds ``weight / 2 * sum_i F_i (theta_i - theta*_i)^2`` once per update.

    Source: Kirkpatrick et al. (PNAS 2017), equation 3. F is the diagonal of the Fisher information,
    measured when a stage ends, without dropout: the mean over examples of the *squared gradient of
    one example's loss*. The square of a batch's mean gradient, which is less work, is another
    quantity: it shrinks with the batch and soon has nothing to do with F.

    Several past stages: their F are added up, and theta* is where the stage starts, that is the
    newest weights, after merging (Huszar, PNAS 2018: an anchor per stage would count old stages
    twice). Docid rows that are new have F = 0 and are free.

    Relations: with ``weight: 0`` this is no regularizer, bit for bit; with F = 1 it is L2.
    """

    @dataclass(frozen=True)
    class Config(Settings):
        """Settings."""

        weight: NotNegative = 1000.0
        """Strength; 0 turns it off. F is small where examples are learnt well: try powers of 10."""
        samples: Count = 500
        """Examples of a stage's own mixture that F is the mean over."""
        fisher: Literal["empirical", "model"] = "empirical"
        """Which codes the loss is of: the true ones, or codes drawn from the model's own answer, at
        each docid position after the true ones before it (the Fisher information proper)."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.needs_previous = self.touches_every_row = config.weight > 0

    def begin_stage(self, view: StageView) -> None:
        """Remember the weights that the stage starts from."""
        self.state = view.followed(self.state)
        for name, weight in view.weights.items():
            if f"fisher/{name}" in self.state:
                self.state[f"anchor/{name}"] = weight.detach().clone()

    def end_stage(self, view: StageView) -> None:
        """Add the Fisher information of the stage."""
        if self.config.weight > 0:
            kept = {k: value for k, value in self.state.items() if k.startswith("fisher/")}
            for name, found in self.fisher(view).items():
                key = f"fisher/{name}"
                kept[key] = kept[key] + found if key in kept else found
            self.state = kept

    def penalty(self, model: DSIModel) -> Tensor | None:
        """The penalty at the model's present weights, a scalar."""
        parts = [
            (self.state[f"fisher/{name}"] * (weight - self.state[f"anchor/{name}"]).square()).sum()
            for name, weight in model.named_parameters()
            if f"anchor/{name}" in self.state and weight.requires_grad
        ]
        return 0.5 * self.config.weight * torch.stack(parts).sum() if parts else None

    def fisher(self, view: StageView) -> dict[str, Tensor]:
        """By parameter name, the mean over examples of squared gradients.

        Ranks have a part of the examples each; the sum is one for all, to the last bit, since what
        ranks add to their gradients is not exchanged and would let their weights drift apart.
        """
        weights = {name: weight.detach() for name, weight in view.weights.items()}
        total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        at_once = MOST_NUMBERS // max(1, sum(weight.numel() for weight in weights.values()))
        generator = torch.Generator().manual_seed(derive(view.seed, "fisher", view.stage))
        draws, everyone, count = self.config.fisher == "model", view.accelerator, 0
        rank, ranks = (everyone.process_index, everyone.num_processes) if everyone else (0, 1)

        def loss(weights: dict[str, Tensor], inputs: dict[str, Tensor], chances: Tensor) -> Tensor:
            one: dict[str, Any] = {name: value[None] for name, value in inputs.items()}
            one["return_logits"] = True
            # encoder and decoder share a module, not a weight: with both names of it torch would
            # put the second one's substitute back for good
            found = functional_call(view.model, weights, (), one, tie_weights=False)
            return _loss_of_drawn(found[1], one, chances[None]) if draws else found[0].sum()

        gradients = vmap(grad(loss), in_dims=(None, 0, 0))
        for batch in self._sample(view):
            longest = view.codes_NT.shape[1] if batch.labels is None else batch.labels.shape[1]
            chances = torch.rand(len(batch.documents), longest, generator=generator)
            count += len(chances)
            mine = torch.arange(len(chances))[rank::ranks]  # none of a very small batch
            for rows in mine.split(min(MOST_EXAMPLES, max(1, at_once))) if len(mine) else ():
                given = {k: v for k, v in view.inputs(batch.rows(rows)).items() if v is not None}
                found = gradients(weights, given, chances[rows].to(given["codes"].device))
                for name, gradient in found.items():
                    for one in gradient:  # one by one, to spare a copy of them all
                        total[name].addcmul_(one, one)
        if everyone:
            total = everyone.reduce(total, "sum")
        return {name: value / count for name, value in total.items()}

    def _sample(self, view: StageView) -> Iterator[Batch]:
        left, training = self.config.samples, view.config.training
        # a batch that is measured in tokens may be one example
        batches = left if training.batch_tokens else -(-left // training.batch_size)
        for batch in view.batches(batches, "fisher"):
            yield batch.rows(torch.arange(min(left, len(batch.documents))))
            left -= len(batch.documents)
            if left <= 0:
                return


def _loss_of_drawn(scores: list[Tensor], inputs: dict[str, Any], chances_BT: Tensor) -> Tensor:
    """Cross-entropy of what ``chances`` (0..1) draw from the scores, (B, C) each or (B, W, V)."""
    labels = inputs.get("labels")
    true = inputs["codes"].unbind(1) if labels is None else [labels]
    chances = chances_BT.unbind(1) if labels is None else [chances_BT[:, : labels.shape[1]]]
    total = scores[0].new_zeros(())
    for logits, real, chance in zip(scores, true, chances, strict=True):
        shares = torch.softmax(logits.detach(), -1).cumsum(-1)
        drawn = (shares < chance[..., None]).sum(-1).clamp(max=logits.shape[-1] - 1)
        drawn = drawn.where(real >= 0, -1)  # beyond the end of the docid or text
        total = total + cross_entropy(
            logits.flatten(0, -2), drawn.flatten(), reduction="sum", ignore_index=-1
        )
    return total
