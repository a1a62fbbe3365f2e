"""A continual method: one component on each axis."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from continual.component import Component
from continual.merging import Merging
from continual.parameters import Parameters
from continual.regularizers import Regularizer
from continual.replay import Replay
from continual.sharpness._base import Policy
from continual.starts import Start

if TYPE_CHECKING:
    from continual.config.schema import RunConfig


@dataclass(frozen=True)
class Method:
    """The components of a run; the default of each axis is its base class, which does nothing.

    Stages begin and end the components in the order of these fields: adapters are in place before
    anything reads the weights, and are folded before the weights are merged.
    """

    parameters: Parameters = field(default_factory=Parameters)
    replay: Replay = field(default_factory=Replay)
    starts: Start = field(default_factory=Start)
    regularizer: Regularizer = field(default_factory=Regularizer)
    sharpness: Policy = field(default_factory=Policy)
    merging: Merging = field(default_factory=Merging)

    @classmethod
    def of(cls, config: "RunConfig") -> "Method":
        """The components that a configuration names, fresh."""
        return cls(**{axis.name: getattr(config, axis.name).build() for axis in fields(cls)})

    def __iter__(self) -> Iterator[tuple[str, Component]]:
        for axis in fields(self):
            yield axis.name, getattr(self, axis.name)

    @property
    def readers(self) -> list[Component]:
        """The components that add a loss of their own to every example."""
        return [component for _, component in self if component.reads_outputs]
