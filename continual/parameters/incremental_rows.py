"""After D_0 the rows of new documents are solved for, and nothing else changes.

Shape legend: Q texts of new documents, M new documents, N old ones, D width.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from continual.parameters.docid_rows import DocidRows
from continual.stream.view import StageView
from dsi.settings import FINITE, Count, NotNegative, Settings, Share
from dsi.text.tokens import Tokens, prompt_ids, slices

ROWS, MEANS = "docids.rows", "queries/docids.rows"
AT_ONCE = 256  # documents that are solved for together; the next ones find them among the old


class IncrementalRows(DocidRows):
    """Stage 0 trains everything; later ones make no update but solve for the rows of new documents.

    For each new row x the minimum of::

        new * mean_q relu(max_i w_i.q - x.q + new_margin)^2
        + (1 - new) * sum_i relu(x.z_i - w_i.z_i + old_margin)^2 + l2 / 2 * |x|^2 * mean |q|^2

    q: decoder states of the document's texts (its first tokens, as indexing accuracy reads them,
    and its queries in ``view.pools``); w_i: the other rows; z_i: the mean state of an old
    document's own texts, which is kept (``state``), so a stage reads new documents alone.

    Source: IncDSI (Kishore et al., ICML 2023), which has the mean of q inside and adds one document
    after the other; here those of a stage are solved for together (L-BFGS, 256 at a time).

    Relations: in stage 0 this is ``full``, bit for bit. Stages n > 0 have 0 updates.
    """

    needs_previous = True
    atomic_only = True
    makes_updates = False

    @dataclass(frozen=True)
    class Config(Settings):
        """Settings."""

        new: Share = 0.5
        """Weight of new documents being found against old ones staying where they are."""
        new_margin: Annotated[float, FINITE] = 1.0
        """By how much a new document's score (logit) is to be above all others on its texts."""
        old_margin: Annotated[float, FINITE] = 1.0
        """By how much it is to be below an old one's on the old one's texts."""
        l2: NotNegative = 0.05
        """Pull of a row towards zero. It matters most: a longer row is found for more of its own
        queries, and for more that other documents answer."""
        queries: Count = 20
        """Texts of a document that count, at most; the first is its own beginning."""
        iterations: Count = 30
        """Of L-BFGS, at most."""

    def begin_stage(self, view: StageView) -> None:
        """Keep the means of old documents with their rows, which may have moved."""
        self.state = view.followed(self.state)

    def end_stage(self, view: StageView) -> None:
        """Keep the mean states of D_0; the model that gives them is never trained again."""
        if view.stage == 0:
            queries, owners = self._states(view, view.documents)
            own = self._rows(view, owners.cpu().numpy())
            self.state = {MEANS: _means(queries, own, len(view.documents))}

    def learn(self, view: StageView) -> bool:
        """Solve for the rows of D_n."""
        if view.stage == 0:
            return False
        rows, means = view.model.docids.rows.detach(), self.state[MEANS]
        fresh = np.sort(view.stream.changed(view.stage))  # a replaced document is learnt anew
        known = np.setdiff1d(view.documents, fresh)
        for start in range(0, len(fresh), AT_ONCE):
            documents = fresh[start : start + AT_ONCE]
            place, before = (self._rows(view, numbers) for numbers in (documents, known))
            queries, owners = self._states(view, documents)
            own = torch.searchsorted(torch.from_numpy(documents).to(owners.device), owners)
            means[place] = _means(queries, own, len(documents))
            old = rows[before].to(queries.dtype)
            rows[place] = solve(self.config, queries, own, old, means[before])
            known = np.union1d(known, documents)
        return True

    @staticmethod
    def _rows(view: StageView, documents: np.ndarray) -> Tensor:
        """The rows of the head that stand for documents."""
        codes = torch.from_numpy(view.codes_NT[documents, 0])
        return codes.long().to(view.model.docids.rows.device)

    def _states(self, view: StageView, documents: np.ndarray) -> tuple[Tensor, Tensor]:
        """Decoder states (Q, D) of documents' texts and whose they are (Q,)."""
        config, own = view.config, view.stream.tokens_at(view.stage)
        prompts = [
            prompt_ids(view.tokenizer, prompt)
            for prompt in (config.prompts.indexing, config.prompts.retrieval)
        ]
        lengths = np.minimum(own.lengths_of(documents), config.evaluation.document_length)
        texts = [slices(own, own.offsets[documents], lengths, prompts[0])]
        owners = [documents]
        for pool in view.pools:
            rows = np.flatnonzero(np.isin(pool.documents, documents))
            starts, lengths = pool.tokens.offsets[rows], pool.tokens.lengths_of(rows)
            texts.append(slices(pool.tokens, starts, lengths, prompts[1]))
            owners.append(pool.documents[rows])
        tokens, numbers = Tokens.concatenate(texts), np.concatenate(owners)
        order = np.argsort(numbers, kind="stable")
        place = np.arange(len(order)) - np.searchsorted(numbers[order], numbers[order])
        chosen = order[place < self.config.queries]
        chosen = chosen[np.argsort(tokens.lengths_of(chosen), kind="stable")]
        states = view.states(tokens, chosen)
        return states, torch.from_numpy(numbers[chosen]).to(states.device)


def solve(
    config: IncrementalRows.Config, queries: Tensor, owners: Tensor, rows: Tensor, means: Tensor
) -> Tensor:
    """New rows (M, D) for ``queries`` (Q, D) of the new documents 0 .. M - 1 = ``owners`` (Q,).

    ``rows`` and ``means`` (N, D) are the old documents'. The first guess beats the old rows at the
    document's mean state by ``new_margin``, with the least norm.
    """
    count = int(owners.max()) + 1
    own_means = _means(queries, owners, count)
    share = 1.0 / torch.bincount(owners, minlength=count)[owners]
    best, right = (queries @ rows.T).amax(1), (means * rows).sum(1) - config.old_margin
    wanted = (own_means @ rows.T).amax(1) + config.new_margin
    start = own_means * (wanted / own_means.square().sum(1))[:, None]
    found = start.clone().requires_grad_()
    each = torch.arange(len(queries), device=queries.device)
    pull = 0.5 * config.l2 * queries.square().sum(1).mean()

    def loss() -> Tensor:
        scores = queries @ found.T
        own = scores[each, owners]
        others = scores.index_put((each, owners), scores.new_tensor(-torch.inf))
        rival = torch.maximum(best, others.amax(1))
        missed = (rival - own + config.new_margin).relu().square() * share
        taken = (means @ found.T - right[:, None]).relu().square()
        both = config.new * missed.sum() + (1 - config.new) * taken.sum()
        return both + pull * found.square().sum()

    steps, search = config.iterations, "strong_wolfe"
    optimizer = torch.optim.LBFGS([found], max_iter=steps, line_search_fn=search)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    return found.detach()


def _means(states: Tensor, owners: Tensor, count: int) -> Tensor:
    """Mean state (``count``, D) of each owner's."""
    sums = states.new_zeros(count, states.shape[1]).index_add_(0, owners, states)
    return sums / torch.bincount(owners, minlength=count)[:, None]
