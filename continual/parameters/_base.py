"""Parameters: what is trained in a stage, and whether it is trained at all."""

from collections.abc import Iterator
from contextlib import contextmanager

from continual.component import Component
from continual.stream.view import StageView
from dsi.model.dsi_model import DSIModel


class Parameters(Component):
    """Full fine-tuning: every parameter is trained in every stage."""

    trains_all: bool = True
    """Every parameter has a gradient in every stage; otherwise DDP looks for those without."""
    makes_updates: bool = True
    """Stages n > 0 make updates; otherwise :meth:`learn` does all the work there."""

    def shape(self, model: DSIModel, stage: int) -> None:
        """Put in what the stage trains besides the model's own weights (adapters), in place.

        Called when a stage begins, and before a checkpoint of the stage is loaded: names and sizes
        must follow from the settings, the model and the stage. ``end_stage`` folds it
        into the weights again, so that what a stage leaves is a plain model.
        """

    def select(self, model: DSIModel, stage: int) -> None:
        """Set ``requires_grad`` of every parameter, before the optimizer is made."""
        model.requires_grad_(True)

    def learn(self, view: StageView) -> bool:
        """Learn the stage in another way than by updates; True: done, no update is made."""
        return False

    @contextmanager
    def folded(self, model: DSIModel) -> Iterator[None]:
        """Within: a plain model, whose weights include what adapters add; afterwards as before."""
        yield
