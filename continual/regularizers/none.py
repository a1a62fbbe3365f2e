"""No regularizer: old knowledge is held by nothing but the data."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn


class NoRegularizer:
    """No penalty.

    Relations: every regularizer with weight zero, bit for bit.
    """

    @dataclass(frozen=True)
    class Config:
        """No settings."""

    needs_previous = False
    touches_every_row = False

    def __init__(self, config: Config):
        self.config = config

    def begin_stage(self, model: nn.Module, stage: int) -> None:
        """Nothing to remember."""

    def penalty(self, model: nn.Module) -> Tensor | None:
        """None: nothing is added to the loss."""
        return None

    def state_dict(self) -> dict[str, Tensor]:
        """No memory."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """No memory."""
