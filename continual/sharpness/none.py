"""Plain steps: one forward and backward pass per update."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from continual.sharpness._policy import Policy


class NoSharpness(Policy):
    """The gradient at the weights is the update's gradient.

    Relations: every sharpness policy with radius zero, bit for bit.
    """

    @dataclass(frozen=True)
    class Config:
        """No settings."""

    def active(self, stage: int) -> bool:
        """False: no second pass."""
        return False

    def begin_stage(self, stage: int, weights: Mapping[str, Tensor]) -> None:
        """Nothing is carried along."""
