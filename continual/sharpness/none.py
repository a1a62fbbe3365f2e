"""Plain steps: one forward and backward pass per update."""

from dataclasses import dataclass


class NoSharpness:
    """The gradient at the weights is the update's gradient.

    Relations: every sharpness policy with radius zero, bit for bit.
    """

    @dataclass(frozen=True)
    class Config:
        """No settings."""

    def __init__(self, config: Config):
        self.config = config

    def active(self, stage: int) -> bool:
        """False: no second pass."""
        return False
