"""Only the rows of the docid codes move after D_0."""

from dataclasses import dataclass

from torch import nn

ROWS = ("docids.rows", "docids.inputs")  # what the decoder writes, and reads, for a code


class DocidRows:
    """Stage 0 trains everything, later stages the docid rows alone (an ablation in DSI++).

    Source: DSI++ (cl with docid parameters only), IncDSI's premise.

    Relations: in stage 0 this is ``full``, bit for bit.
    """

    @dataclass(frozen=True)
    class Config:
        """No settings."""

    trains_all = False

    def __init__(self, config: Config):
        self.config = config

    def select(self, model: nn.Module, stage: int) -> None:
        """Mark what is trained in a stage."""
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(stage == 0 or name in ROWS)
