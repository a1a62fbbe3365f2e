"""No replay: later stages train on documents alone."""

from dataclasses import dataclass

from continual.stream.view import QueryPool, StageContext


class NoReplay:
    """Nothing is rehearsed.

    Relations: what every replay with ``ratio: .inf`` is, bit for bit.
    """

    @dataclass(frozen=True)
    class Config:
        """No settings."""

    ratio = float("inf")

    def __init__(self, config: Config):
        self.config = config

    def begin_stage(self, context: StageContext) -> list[QueryPool]:
        """No queries."""
        return []
