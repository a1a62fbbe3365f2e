"""Dark experience replay: D_0's true queries, and what the model answered when it had learnt them.

Shape legend: B examples, Q stored queries, T docid positions, K stored codes of a position.
"""

import math
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from continual.replay._base import Replay
from continual.stream.view import QueryPool, StageView, true_queries
from dsi.errors import UserError
from dsi.examples.batches import Batch
from dsi.settings import Count, NotNegative, Settings

AT_ONCE = 64  # queries that are answered together


class DarkReplay(Replay):
    """DER++: stored queries enter later stages at ``ratio``, and their scores are held, too.

    To the loss of a rehearsed query is added ``alpha`` times the mean squared difference between
    the scores (logits) of its ``top_k`` codes then and now, summed over docid positions.

    Source: Buzzega et al. (NeurIPS 2020), equation 6. The queries are all of D_0's train queries,
    as in DSI++'s epsmem; their scores are stored once, when stage 0 ends, as DER++ stores them when
    a query is put into its buffer, and are never refreshed.

    Relations: with ``alpha: 0`` and ``beta: 1`` this is ``episodic``, with ``ratio: .inf`` no
    replay, bit for bit.
    """

    @dataclass(frozen=True)
    class Config(Settings):
        """Settings."""

        ratio: Annotated[float, Ge(0)] = 32.0
        """Indexing examples per replayed query (DSI++'s r: 32 sparse, 2 dense)."""
        alpha: NotNegative = 0.5
        """Strength of the pull to the stored scores; 0 turns it off."""
        beta: NotNegative = 1.0
        """What the cross-entropy of a rehearsed query counts; 0: the scores alone (DER)."""
        top_k: Count = 32
        """Codes, those of the highest scores, that are stored per docid position."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.ratio = config.ratio
        self.reads_outputs = config.alpha > 0 and not math.isinf(config.ratio)

    def begin_stage(self, view: StageView) -> None:
        """Renumber stored codes where a docid is one code: rows move when documents are removed."""
        origin, codes = view.origins.get("docids.rows"), self.state.get("codes")
        if origin is not None and codes is not None and codes.shape[1] == 1:
            origin = origin.to(codes.device)
            rows = max(int(origin.max()), int(codes.max())) + 1
            now = codes.new_full(
                (rows + 1,), -1
            )  # the last entry is for -1: no code, or a removed one
            now[origin[origin >= 0]] = torch.arange(len(origin)).to(codes)[origin >= 0]
            self.state["codes"] = now[codes.long()]

    def pools(self, view: StageView) -> list[QueryPool]:
        """The stored queries as one pool, each query drawn equally often."""
        found = true_queries(view.stream) if view.stage > 0 else None
        if found is None:
            return []
        extras: dict[str, np.ndarray] = {}
        if self.reads_outputs:
            if len(self.state.get("scores", ())) != len(found.documents):
                raise UserError(
                    "replay.alpha: there are no scores of these queries from stage 0; set "
                    "training.stages: all, or alpha: 0"
                )
            extras["dark"] = np.arange(len(found.documents))
        if self.config.beta != 1:
            extras["weight"] = np.full(len(found.documents), self.config.beta, np.float32)
        # the name is part of the seed of its draws: the same as in episodic replay
        return [replace(found, name="episodic", extras=extras)]

    @torch.no_grad()
    def end_stage(self, view: StageView) -> None:
        """Store the scores of D_0's queries."""
        queries = true_queries(view.stream) if view.stage == 0 and self.reads_outputs else None
        if queries is None:
            return
        k = min(self.config.top_k, max(view.model.code_sizes))
        parts: list[tuple[Tensor, Tensor]] = []
        prompt = view.config.prompts.retrieval
        for batch in view.examples(queries.tokens, queries.documents, AT_ONCE, prompt):
            inputs = view.inputs(batch)
            _, scores = view.model(**inputs, return_logits=True)
            best = [score.topk(min(k, score.shape[1])) for score in scores]
            more = [(0, k - found.values.shape[1]) for found in best]
            pad = torch.nn.functional.pad
            values = [pad(b.values, m) for b, m in zip(best, more, strict=True)]
            codes = [pad(b.indices, m, value=-1) for b, m in zip(best, more, strict=True)]
            ended = (inputs["codes"] < 0)[..., None]  # the docid ends before these positions
            parts.append((torch.stack(values, 1), torch.stack(codes, 1).masked_fill(ended, -1)))
        self.state = {
            "scores": torch.cat([values for values, _ in parts]),
            "codes": torch.cat([codes for _, codes in parts]).int(),
        }

    def example_loss(self, batch: Batch, scores: list[Tensor]) -> Tensor:
        """``alpha`` times the mean squared difference, (B,); 0 where nothing is stored."""
        rows = batch.extras.get("dark")
        if rows is None:
            return scores[0].new_zeros(len(batch.documents))
        then, codes_BTK = self.state["scores"][rows], self.state["codes"][rows].long()
        known = (codes_BTK >= 0) & (rows >= 0)[:, None, None]
        places = codes_BTK.clamp(min=0)
        # docids may have got longer since
        now = [scores[t].gather(1, places[:, t]) for t in range(places.shape[1])]
        gaps = (torch.stack(now, 1) - then).square() * known
        return self.config.alpha * (gaps.sum(-1) / known.sum(-1).clamp(min=1)).sum(-1)
