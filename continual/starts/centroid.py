"""New rows point to where the model's states of their documents' pseudo-queries are.

Shape legend: Q pseudo-queries, M new documents, D width.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from continual.starts._base import Start
from continual.stream.view import StageView
from dsi.manifest import text_hash
from dsi.queries.lexical import LexicalQueries
from dsi.seeding import derive
from dsi.settings import Count, Positive, Settings
from dsi.text.tokens import LONGEST_QUERY, prompt_ids, slices, tokenize

AT_ONCE = 500  # documents whose states are in memory at a time


class Centroid(Start):
    """A new document's row begins at the mean state of its lexical pseudo-queries::

        row = scale * (mean norm of the old rows) * unit(sum_q h(q))

    h(q): the decoder's state before the first code, whose products with the rows are the scores.
    The queries are this member's own, whatever ``replay`` is: spans and salient terms, with the
    document frequencies of the documents that are there. A document without a word is its own
    query. A document whose text is replaced gets its row anew; no old row moves.

    Source: a measurement of this project. Related: IncDSI (Kishore et al., ICML 2023), which solves
    for the row by the mean query.

    Relations: in stage 0, and where every stage starts from new weights (``training.restart``),
    rows stay random, bit for bit: the model has learnt nothing that its states could tell.
    """

    atomic_only = True

    @dataclass(frozen=True)
    class Config(Settings):
        """Settings."""

        scale: Positive = 0.8
        """Norm of a new row, in mean norms of the old ones. The longer, the more queries of other
        documents it is found for."""
        queries: Count = 20
        """Pseudo-queries of a document."""

    @torch.no_grad()
    def begin(self, view: StageView, fresh: dict[str, Tensor]) -> None:
        """Write the rows of the documents that are new or have a new text."""
        if view.stage == 0 or view.config.training.restart:
            return
        new = np.intersect1d(view.stream.changed(view.stage), view.documents)
        old = np.setdiff1d(view.documents, new)
        if not (len(new) and len(old)):
            return
        table, codes = view.model.docids.rows, torch.from_numpy(view.codes_NT[:, 0]).long()
        norm = self.config.scale * table[codes[old].to(table.device)].norm(dim=1).mean()
        writer = LexicalQueries().fit(view.stream.texts_at(view.documents, view.stage))
        for start in range(0, len(new), AT_ONCE):
            documents = new[start : start + AT_ONCE]
            sums = self._sums(view, documents, writer)
            rows = norm * torch.nn.functional.normalize(sums.to(table))
            table[codes[documents].to(table.device)] = rows

    def _sums(self, view: StageView, documents: np.ndarray, writer: LexicalQueries) -> Tensor:
        """The sums (M, D) of the states of each document's pseudo-queries."""
        texts = list(view.stream.texts_at(documents, view.stage))
        seed = derive(view.seed, "centroid queries")
        made = writer.generate(texts, [text_hash(t) for t in texts], self.config.queries, seed)
        queries = [own or [text] for own, text in zip(made, texts, strict=True)]
        owners = np.repeat(np.arange(len(queries)), [len(own) for own in queries])
        flat = [query for own in queries for query in own]
        read = tokenize(view.tokenizer, flat).heads(LONGEST_QUERY)
        prompt = prompt_ids(view.tokenizer, view.config.prompts.retrieval)
        read = slices(read, read.offsets[:-1], read.lengths, prompt)
        order = np.argsort(read.lengths, kind="stable")
        with view.folded():
            states_QD = view.states(read, order)
        sums = states_QD.new_zeros(len(texts), states_QD.shape[1])
        return sums.index_add_(0, torch.from_numpy(owners[order]).to(sums.device), states_QD)
