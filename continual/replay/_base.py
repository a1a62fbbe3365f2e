"""Replay: the queries that later stages rehearse."""

from continual.component import Component
from continual.stream.view import QueryPool, StageView


class Replay(Component):
    """Nothing is rehearsed: later stages train on documents alone.

    Relations: what every member with ``ratio: .inf`` is, bit for bit.
    """

    ratio: float = float("inf")
    """Indexing examples per rehearsed query in stages n > 0; inf: nothing is rehearsed."""
    is_oracle: bool = False
    """Rehearses queries that DSI++ does not let a method see, those of later corpora: what it
    reaches is an upper bound, not a method's result."""

    def pools(self, view: StageView) -> list[QueryPool]:
        """The queries of the stage: the same at every call, also in a run that is resumed.

        ``begin_stage`` has made and written whatever they are read from.
        """
        return []
