"""A from-scratch model that is born a lexical index; new documents join it by the same formula.

Shape legend: V tokens of the vocabulary, D width, N documents, M new documents.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Le
from scipy import sparse
from torch import Tensor

from continual.starts._base import Start
from continual.stream.view import StageView
from dsi.model import lexical
from dsi.search.forward import Inference
from dsi.seeding import derive
from dsi.settings import NotNegative, Settings, Share
from dsi.text.tokens import Tokens, pad_id, padded_tensors, prompt_ids, slices

MOST = 200  # old documents by which the size of rows is judged
SCORES = 20_000_000  # that are computed to fit a temperature


class Lexical(Start):
    """Stage 0 begins as BM25-like retrieval by relevance weights, packed into the model's width.

    A token's weight in a query is its relevance weight (Robertson and Sparck Jones 1976) by D_0's
    documents and train queries; in a document it is BM25's saturated count times the square root of
    relevance weight times inverse document frequency. Directions of tokens are random ones that are
    spread by how much each is used (:func:`dsi.model.lexical.tight_frame`). A new document's row is
    the same sum over the *present* model's states for each token alone, in the scale of the old
    rows: microseconds, no update, and no old row moves.

    Relations: a stage of 0 updates leaves what this wrote. From random weights of more layers the
    added layers begin as the identity.
    """

    atomic_only = True
    scratch_only = True

    @dataclass(frozen=True)
    class Config(Settings):
        """Settings."""

        k1: NotNegative = 0.9
        """How much repeated occurrences in a document add (BM25); 0: nothing."""
        b: Share = 0.4
        """How far counts are normalised by the length of a document (BM25)."""
        norm: Share = 0.5
        """A row r is divided by |r| to this power. 1: unit rows (TF-IDF's cosine); 0: BM25's, where
        long documents gather what the projection confuses."""
        prior: Annotated[float, Ge(0.02), Le(0.98)] = 0.5
        """Chance that an answer has a word of its question, where no question is known; 0.5: words
        weigh their inverse document frequency."""
        strength: NotNegative = 10.0
        """Queries that ``prior`` counts for against D_0's own; .inf is not needed: 1e9 is D_0's
        documents alone."""
        rounds: Annotated[int, Ge(0), Le(100)] = 3
        """In which the directions of tokens are spread; 0: they stay random."""

    def begin(self, view: StageView, fresh: dict[str, Tensor]) -> None:
        """Write the model and every row (at birth), or the rows of documents that are new."""
        if view.stage == 0 or view.config.training.restart:
            self._born(view)
        else:
            self._grown(view)

    def _born(self, view: StageView) -> None:
        model, config = view.model, self.config
        statistics, queries, answers = self._statistics(view, view.stage)
        asked = statistics.relevance(config.prior, config.strength)
        written = self._document_weights(statistics)
        weights_NV = self._weighted(view, view.documents, statistics)
        energy = lexical.energies(lexical.term_counts(queries, len(asked)), asked)
        energy += lexical.energies(weights_NV, np.ones_like(written))
        generator = torch.Generator().manual_seed(derive(view.seed, "lexical", view.stage))
        width = model.config.d_model - 2
        directions = lexical.tight_frame(energy, width, config.rounds, generator)
        lexical.write_index(model, directions, asked)
        rows = lexical.document_vectors(weights_NV, self._states(view), config.norm)
        self._write(view, view.documents, rows)
        scale = self._temperature(view, queries, answers)
        with torch.no_grad():
            model.docids.rows.mul_(scale)

    def _grown(self, view: StageView) -> None:
        stream, stage = view.stream, view.stage
        statistics, _, _ = self._statistics(view, 0)
        new = np.intersect1d(stream.changed(stage), view.documents)
        old = np.setdiff1d(view.documents, new)
        old = old[np.linspace(0, len(old) - 1, min(MOST, len(old))).astype(int)]
        states = self._states(view)
        now, then = (
            lexical.document_vectors(
                self._weighted(view, documents, statistics), states, self.config.norm
            )
            for documents in (new, old)
        )
        rows = view.model.docids.rows.detach()
        kept = rows[self._places(view, old)].to(then)
        along = (kept * then).sum() / then.square().sum().clamp(min=1e-12)
        self._write(view, new, now * float(along) if len(old) else now)

    def _statistics(
        self, view: StageView, stage: int
    ) -> tuple[lexical.TermStatistics, Tokens, np.ndarray]:
        """Of the documents of a stage, with D_0's train queries and the places of their answers."""
        stream = view.stream
        documents = stream.members(stage)
        queries, numbers = stream.train_queries(0, stage)
        tokens = stream.tokens_at(stage).take(documents)
        places = np.searchsorted(documents, numbers)
        found = lexical.TermStatistics.of(tokens, queries, places, len(view.tokenizer))
        return found, queries, places

    def _document_weights(self, statistics: lexical.TermStatistics) -> np.ndarray:
        asked = statistics.relevance(self.config.prior, self.config.strength)
        return np.sqrt(statistics.inverse_frequency() * asked).astype(np.float32)

    def _weighted(
        self, view: StageView, documents: np.ndarray, statistics: lexical.TermStatistics
    ) -> sparse.csr_matrix:
        tokens = view.stream.tokens_at(view.stage).take(documents)
        counts = lexical.term_counts(tokens, len(view.tokenizer))
        config = self.config
        counts = lexical.saturated(counts, config.k1, config.b, statistics.length)
        return counts.multiply(self._document_weights(statistics)[None]).tocsr()

    @staticmethod
    def _states(view: StageView) -> np.ndarray:
        return lexical.token_states(view.model, len(view.tokenizer))

    @staticmethod
    def _places(view: StageView, documents: np.ndarray) -> Tensor:
        codes = torch.from_numpy(view.codes_NT[documents, 0])
        return codes.long().to(view.model.docids.rows.device)

    @torch.no_grad()
    def _write(self, view: StageView, documents: np.ndarray, rows: Tensor) -> None:
        table = view.model.docids.rows
        table[self._places(view, documents)] = rows.to(table)

    @torch.no_grad()
    def _temperature(self, view: StageView, queries: Tokens, answers: np.ndarray) -> float:
        """The scale of rows at which D_0's train queries are least surprised; without queries, the
        first tokens of documents."""
        prompt = prompt_ids(view.tokenizer, view.config.prompts.retrieval)
        if len(queries):
            read = slices(queries, queries.offsets[:-1], queries.lengths, prompt)
        else:
            own = view.stream.tokens_at(view.stage)
            numbers, answers = view.documents, np.arange(len(view.documents))
            lengths = np.minimum(own.lengths_of(numbers), view.config.evaluation.document_length)
            read = slices(own, own.offsets[numbers], lengths, prompt)
        most = max(64, SCORES // max(len(view.documents), 1))
        chosen = np.linspace(0, len(read) - 1, min(len(read), most)).astype(int)
        inference, size = Inference(view.model), view.config.evaluation.batch_size
        rows = inference.rows[self._places(view, view.documents)]
        scores = []
        for start in range(0, len(chosen), size):
            batch = chosen[start : start + size]
            found = padded_tensors(read, batch, pad_id(view.tokenizer), inference.device)
            scores.append(inference.query_states(*found) @ rows.T)
        wanted = torch.from_numpy(answers[chosen]).to(inference.device)
        return lexical.fitted_scale(torch.cat(scores), wanted)
