"""Start: the docid rows that a document has before it is trained."""

from torch import Tensor

from continual.component import Component
from continual.stream.view import StageView


class Start(Component):
    """Random rows, as T5 initialises: what the model has where nothing else is written."""

    def begin(self, view: StageView, fresh: dict[str, Tensor]) -> None:
        """Write the new rows of ``view.model``, in place.

        ``fresh``: by the name of a parameter of the docid head, which rows are new (bool). In stage
        0, and where every stage starts from new weights, all are, and a member may write the whole
        of a from-scratch model. The queries of the stage are in ``view.pools``.
        """
