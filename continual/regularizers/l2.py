"""L2 distance to the previous stage's weights."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from continual.regularizers._base import Regularizer
from continual.stream.view import StageView
from dsi.model.dsi_model import DSIModel
from dsi.settings import Settings


class L2(Regularizer):
    """Adds ``weight / 2 * ||theta - theta*||^2`` once per update, theta* from the stage before.

    Source: Li, Grandvalet, Davoine (ICML 2018), L2-SP, with the last stage as starting point. Rows
    that are new in a stage have no anchor and are free.

    Relations: with ``weight: 0`` this is no regularizer, bit for bit; EWC with F = 1.
    """

    @dataclass(frozen=True)
    class Config(Settings):
        """Settings."""

        weight: Annotated[float, Ge(0)] = 1.0
        """Strength of the pull, per squared unit of weight; 0 turns it off."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.needs_previous = self.touches_every_row = config.weight > 0

    def begin_stage(self, view: StageView) -> None:
        """Remember the weights that the stage starts from."""
        if view.stage > 0 and self.config.weight > 0:
            self.state = {name: weight.detach().clone() for name, weight in view.weights.items()}
            for name, is_new in view.fresh().items():
                if name in self.state:
                    self.state[name][is_new] = float("nan")  # no older version to stay near

    def penalty(self, model: DSIModel) -> Tensor | None:
        """The penalty at the model's present weights, a scalar."""
        if not self.state or self.config.weight == 0:
            return None
        parts = [
            (parameter - self.state[name]).nan_to_num(0.0).square().sum()
            for name, parameter in model.named_parameters()
            if name in self.state
        ]
        return 0.5 * self.config.weight * torch.stack(parts).sum()
