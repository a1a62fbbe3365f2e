"""L2 distance to the previous stage's weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn

from dsi.settings import Settings


class L2:
    """Adds ``weight / 2 * ||theta - theta*||^2`` once per update, theta* from the stage before.

    Source: Li, Grandvalet, Davoine (ICML 2018), L2-SP, with the last stage as starting point. Rows
    that are new in a stage have no anchor and are free.

    Relations: with ``weight: 0`` this is no regularizer, bit for bit; EWC with a constant Fisher.
    """

    @dataclass(frozen=True)
    class Config(Settings):
        """Settings."""

        weight: Annotated[float, Ge(0)] = 1.0
        """Strength of the pull, per squared unit of weight; 0 turns it off."""

    needs_previous = True
    touches_every_row = True

    def __init__(self, config: Config):
        self.config = config
        self.needs_previous = self.touches_every_row = config.weight > 0
        self.anchor: dict[str, Tensor] = {}

    def begin_stage(self, model: nn.Module, stage: int) -> None:
        """Remember the weights that the stage starts from."""
        if stage > 0 and self.config.weight > 0:
            self.anchor = {
                name: parameter.detach().clone()
                for name, parameter in model.named_parameters()
                if parameter.requires_grad
            }
            for name, fresh in getattr(model, "fresh_rows", {}).items():
                if name in self.anchor:
                    self.anchor[name][fresh] = float("nan")  # no older version to stay near

    def penalty(self, model: nn.Module) -> Tensor | None:
        """The penalty at the model's present weights, a scalar."""
        if not self.anchor or self.config.weight == 0:
            return None
        parts = [
            (parameter - self.anchor[name]).nan_to_num(0.0).square().sum()
            for name, parameter in model.named_parameters()
            if name in self.anchor
        ]
        return 0.5 * self.config.weight * torch.stack(parts).sum()

    def state_dict(self) -> dict[str, Tensor]:
        """The anchor."""
        return dict(self.anchor)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the anchor back."""
        self.anchor = dict(state)
