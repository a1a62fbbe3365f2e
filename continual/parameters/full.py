"""Every parameter may move."""

from dataclasses import dataclass

from torch import nn


class Full:
    """Full fine-tuning in every stage."""

    @dataclass(frozen=True)
    class Config:
        """No settings."""

    trains_all = True

    def __init__(self, config: Config):
        self.config = config

    def select(self, model: nn.Module, stage: int) -> None:
        """Mark what is trained in a stage: everything."""
        model.requires_grad_(True)
