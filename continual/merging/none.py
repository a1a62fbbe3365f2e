"""No merging: a stage ends with the weights it trained."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


class NoMerging:
    """Weights stay as they are.

    Relations: ``average`` with ``new: 1``, bit for bit.
    """

    @dataclass(frozen=True)
    class Config:
        """No settings."""

    needs_previous = False

    def __init__(self, config: Config):
        self.config = config

    def merge(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights after the stage."""
        return dict(after)
