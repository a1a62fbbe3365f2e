"""Merging: the weights that a stage leaves, made of those before and after it."""

from collections.abc import Mapping

from torch import Tensor

from continual.component import Component
from continual.stream.view import StageView


class Merging(Component):
    """No merging: a stage ends with the weights it has trained.

    A member that ``needs_previous`` gets them: this class keeps a copy from the start of every
    stage n > 0 to its end, and in checkpoints.
    """

    def begin_stage(self, view: StageView) -> None:
        """Keep the weights; rows that are new in the stage have no older version and are NaN."""
        self.state = {}
        if self.needs_previous and view.stage > 0:
            with view.folded():
                weights = view.model.state_dict()
                self.state = {name: value.detach().clone() for name, value in weights.items()}
            for name, is_new in view.fresh().items():
                self.state[name][is_new] = float("nan")

    def end_stage(self, view: StageView) -> None:
        """Merge."""
        if self.state:
            view.model.load_state_dict(self.merge(self.state, view.model.state_dict()))
            self.state = {}

    def merge(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Merged weights, by name; ``before`` is NaN in rows that the stage added."""
        return dict(after)
