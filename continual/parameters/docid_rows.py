"""Only the rows of the docid codes are trained after D_0."""

from continual.parameters._base import Parameters
from dsi.model.dsi_model import DSIModel

ROWS = ("docids.rows", "docids.inputs")  # what the decoder writes, and reads, for a code


class DocidRows(Parameters):
    """Stage 0 trains everything, later stages the docid rows alone (an ablation in DSI++).

    Source: DSI++ (cl with docid parameters only), IncDSI's premise.

    Relations: in stage 0 this is ``full``, bit for bit.
    """

    trains_all = False

    def select(self, model: DSIModel, stage: int) -> None:
        """Everything in stage 0, the rows of docid codes after it."""
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(stage == 0 or name in ROWS)
