"""Component: what every part of a continual method is, whatever its family.

A method is a choice on independent axes (``continual.method``), one component on each. Every method
of the base classes has a default that does nothing, so the base class of a family is itself the
member that is absent: ``none``, ``full``, ``random``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from continual.stream.view import StageView
    from dsi.examples.batches import Batch


class Component:
    """Called at the start and the end of every stage, and saved with every checkpoint.

    What a component needs it declares by the attributes below, in the class or, where it depends on
    the settings, in ``__init__``. The loop, the checks of configurations and devices, and the tests
    read these attributes and never ask for a component's name.

    ``state``: all that it carries from update to update and from stage to stage, tensors by name.
    One that goes with a parameter has the parameter's name, after a prefix of its own if need be
    (``fisher/docids.rows``): its sizes are then checked when a checkpoint is loaded.
    """

    @dataclass(frozen=True)
    class Config:
        """No settings."""

    needs_previous: bool = False
    """Uses copies of older weights: not possible where every stage starts from new weights
    (``training.restart``) nor, for a regularizer, under FSDP2, which keeps weights in pieces while
    updates are made."""
    atomic_only: bool = False
    """Needs one code, and so one row, per document (``docids: atomic``)."""
    scratch_only: bool = False
    """Writes the whole model, so there is none to read (``model.source: scratch``)."""
    reads_outputs: bool = False
    """Has an :meth:`example_loss`, so every pass computes the scores of all docid codes."""

    def __init__(self, config: Any = None):
        self.config: Any = config if config is not None else self.Config()
        self.state: dict[str, Tensor] = {}

    def begin_stage(self, view: "StageView") -> None:
        """A stage begins: docids and model follow the stream, nothing is trained yet.

        Called once per stage; a run that is resumed within a stage restores ``state`` instead.
        """

    def end_stage(self, view: "StageView") -> None:
        """The updates of a stage are made, its evaluation comes next; the model is in evaluation
        mode. Every rank calls this. What it keeps for a loss must be the same on all ranks."""

    def example_loss(self, batch: "Batch", scores: list[Tensor]) -> Tensor:
        """A loss per example (B,), added to the cross-entropy of every pass before its gradient.

        ``scores``: unnormalised, one (B, C) per docid position, or one (B, W, V) where the model
        writes text, with their graph. Divided, as the cross-entropy is, by the targets of the whole
        update, so micro-batches and ranks add up. Called where ``reads_outputs`` is set.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return dict(self.state)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.state = dict(state)
