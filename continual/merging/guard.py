"""A stage ends between the weights that it began with and those it trained, wherever is best.

Shape legend: Q queries, N documents, D width.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Le
from torch import Tensor

from continual.merging._base import Merging
from continual.stream.view import StageView
from dsi.search.forward import Inference
from dsi.seeding import derive
from dsi.settings import Count, Settings, Share
from dsi.text.tokens import pad_id, padded_tensors, prompt_ids, slices

ROWS = "docids.rows"


class Guard(Merging):
    """``share * trained + (1 - share) * begun``, with the share that ranks D_0's dev queries best.

    Tried are 0, 1 / ``steps``, ..., 1; of equals the smallest share counts. So on what it
    looks at, a stage never ends below where it was born: with new rows as the start wrote them
    and everything else as it was.

    Training on D_0's queries favours D_0, whose documents answer them, over documents that come
    later and have none. So that this counts too, a share of the documents (``newcomers``)
    keeps in every trial the rows that it began with, as if training had never seen it.

    Source: interpolated weights chosen on held-out data are WiSE-FT's (Wortsman et al., CVPR 2022).

    Relations: with ``steps: 0`` the trained weights stay, as without merging, bit for bit.
    """

    atomic_only = True

    @dataclass(frozen=True)
    class Config(Settings):
        """Settings."""

        steps: Annotated[int, Ge(0), Le(100)] = 4
        """Shares that are tried beside none of the training."""
        newcomers: Share = 0.5
        """Documents whose rows are, in a trial, as they began; 0: the trained index is judged as
        it is, which says nothing of what comes."""
        queries: Count = 2000
        """Dev queries that are asked, at most."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.needs_previous = config.steps > 0

    def begin_stage(self, view: StageView) -> None:
        """Keep the weights with the new rows that the start has written."""
        self.state = {}
        if self.needs_previous:
            with view.folded():
                weights = view.model.state_dict()
                self.state = {name: value.detach().clone() for name, value in weights.items()}

    def end_stage(self, view: StageView) -> None:
        """Leave the best of the trials, and say which."""
        if not self.state:
            return
        begun, trained = self.state, view.model.state_dict()
        trained = {name: value.clone() for name, value in trained.items()}
        self.state = {}
        queries = list(self._queries(view))
        if not queries or all(torch.equal(begun[n], trained[n]) for n in begun):
            return
        found = {}
        for step in range(self.config.steps + 1):
            view.model.load_state_dict(between(begun, trained, step / self.config.steps))
            found[step / self.config.steps] = self._rank(view, begun[ROWS], queries)
        best = max(found, key=lambda share: (found[share], -share))
        view.model.load_state_dict(between(begun, trained, best))
        view.log({"guard/share": best, "guard/mrr_begun": found[0.0], "guard/mrr": found[best]})

    def _queries(self, view: StageView) -> Iterator[tuple[Tensor, Tensor, list[np.ndarray]]]:
        """Batches: ids, mask and the places of the answers among the documents that are there."""
        judged = view.stream.judged_queries("dev", 0).among(view.stream.present(view.stage))
        prompt = prompt_ids(view.tokenizer, view.config.prompts.retrieval)
        tokens = judged.tokens
        read = slices(tokens, tokens.offsets[:-1], tokens.lengths, prompt)
        count, size = len(judged), view.config.evaluation.batch_size
        chosen = np.linspace(0, count - 1, min(count, self.config.queries)).astype(int)
        for start in range(0, len(chosen), size):
            rows = chosen[start : start + size]
            gold = [np.searchsorted(view.documents, judged.gold[row]) for row in rows]
            yield (*padded_tensors(read, rows, pad_id(view.tokenizer)), gold)

    def _rank(
        self, view: StageView, begun: Tensor, queries: list[tuple[Tensor, Tensor, list[np.ndarray]]]
    ) -> float:
        """Mean reciprocal rank, in two halves of the documents so that each is once a newcomer."""
        inference = Inference(view.model)
        places = torch.from_numpy(view.codes_NT[view.documents, 0]).long().to(inference.device)
        rows, old = inference.rows[places], begun[places].to(inference.rows)
        generator = torch.Generator().manual_seed(derive(view.seed, "newcomers", view.stage))
        draw = torch.rand(len(places), generator=generator).to(inference.device)
        share = self.config.newcomers
        total, count = 0.0, 0
        for is_new in (draw < share, draw >= 1 - share):
            table = torch.where(is_new[:, None], old, rows)
            for ids, mask, gold in queries:
                states = inference.query_states(ids.to(table.device), mask.to(table.device))
                scores = states @ table.T
                for own, answers in zip(scores, gold, strict=True):
                    best = own[torch.from_numpy(answers).to(own.device)].amax()
                    # of equals, and of what has no score, the answer is the last
                    total += 1 / int((~(own < best)).sum())
                count += len(gold)
        return total / count


def between(
    begun: Mapping[str, Tensor], trained: Mapping[str, Tensor], share: float
) -> dict[str, Tensor]:
    """``share`` of the way from one to the other; at 0 and 1 they themselves, bit for bit."""
    if share in (0.0, 1.0):
        return dict(trained if share else begun)
    return {
        name: begun[name].lerp(value, share) if value.is_floating_point() else value
        for name, value in trained.items()
    }
