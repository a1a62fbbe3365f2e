"""Experience replay of true train queries: DSI++'s cl(.)+epsmem(.)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge

from continual.replay._base import Replay
from continual.stream.view import QueryPool, StageView
from dsi.settings import Settings
from dsi.text.tokens import Tokens


class EpisodicReplay(Replay):
    """Stored queries that people wrote enter later stages at ``ratio``.

    Source: DSI++ section 4, epsmem. ``documents: initial`` rehearses D_0's train queries, the only
    ones a DSI++ stream has. ``new`` and ``seen`` use the queries of later corpora: an oracle, an
    upper bound that DSI++ itself may not use.

    Relations: with ``ratio: .inf`` this is no replay, bit for bit.
    """

    @dataclass(frozen=True)
    class Config(Settings):
        """Settings."""

        documents: Literal["initial", "new", "seen"] = "initial"
        """Whose queries: D_0, the new corpus (oracle), or every corpus so far (oracle)."""
        ratio: Annotated[float, Ge(0)] = 32.0
        """Indexing examples per replayed query (DSI++'s r: 32 sparse, 2 dense); .inf: no replay."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.ratio = config.ratio
        self.is_oracle = config.documents != "initial" and not math.isinf(config.ratio)

    def pools(self, view: StageView) -> list[QueryPool]:
        """The stored queries as one pool, each query drawn equally often."""
        n = view.stage
        if n == 0:
            return []
        corpora = {"initial": [0], "new": [n], "seen": list(range(n + 1))}[self.config.documents]
        return queries_of(view, corpora)


def queries_of(view: StageView, corpora: Sequence[int]) -> list[QueryPool]:
    """The train queries of some corpora on documents that are there, as one pool."""
    parts = [view.stream.train_queries(o, view.stage) for o in corpora]
    tokens = Tokens.concatenate([part[0] for part in parts])
    documents = np.concatenate([part[1] for part in parts])
    return [QueryPool("episodic", tokens, documents, 1.0)] if len(documents) else []
