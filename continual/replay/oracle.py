"""The oracle: what rehearsal would give if people had written queries for every corpus."""

import math
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from continual.replay._base import Replay
from continual.replay.episodic import queries_of
from continual.stream.view import QueryPool, StageView
from dsi.settings import Settings


class Oracle(Replay):
    """An upper bound, not a method: the true train queries of every corpus so far come back.

    DSI++ gives a method D_0's queries alone. This one also reads those of D_1 .. D_n, each query
    drawn equally often, so its run says how much any memory could give: pseudo-queries stand in for
    what is rehearsed here. A corpus without train queries of its own adds nothing.

    Relations: with ``ratio: .inf`` this is no replay, and at any ratio it is ``episodic`` with
    ``documents: seen``, bit for bit.
    """

    @dataclass(frozen=True)
    class Config(Settings):
        """Settings."""

        ratio: Annotated[float, Ge(0)] = 1.0
        """Indexing examples per replayed query, as in ``generative``; .inf: no replay."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.ratio = config.ratio
        self.is_oracle = not math.isinf(config.ratio)

    def pools(self, view: StageView) -> list[QueryPool]:
        """The train queries of D_0 .. D_n as one pool; stage 0 trains on D_0's without it."""
        return queries_of(view, range(view.stage + 1)) if view.stage > 0 else []
