"""Regularizer: what holds the weights, or the outputs, where they were."""

from torch import Tensor

from continual.component import Component
from dsi.model.dsi_model import DSIModel


class Regularizer(Component):
    """No penalty: what was learnt is held by nothing but the data.

    Relations: every member with weight zero, bit for bit.
    """

    touches_every_row: bool = False
    """The penalty has a gradient at every docid row: not with ``docid_update: touched``."""

    def penalty(self, model: DSIModel) -> Tensor | None:
        """A scalar that is added to the loss once per update, whatever the micro-batches and ranks;
        None: nothing. ``model``: with the present weights, not wrapped by any device."""
        return None
