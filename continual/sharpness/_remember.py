"""What members that carry something from update to update share."""

from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from continual.sharpness._base import Policy, Step

if TYPE_CHECKING:
    from continual.stream.view import StageView


class Remembering(Policy):
    """Its ``pending`` becomes its state once the update was made; a skipped one leaves no trace.

    A member sets ``pending`` in every update (None: as it was). It does so before the passes are
    over: afterwards the weights have moved, and the gradient to descend may have been clipped.
    """

    remembers: ClassVar[bool] = True

    def __init__(self, config: Any = None):
        super().__init__(config)
        self.pending: dict[str, Tensor] | None = None

    def begin_stage(self, view: "StageView") -> None:
        """Nothing is remembered at first."""
        super().begin_stage(view)
        self.pending = None

    def after_update(self, step: Step) -> None:
        """What this update left is what the next one finds."""
        if self.pending is not None:
            self.state, self.pending = self.pending, None
