"""One row of the performance matrix: every corpus seen, after a stage.

Queries and documents are sharded over ranks by index and gathered in order, so each is counted once
whatever the number of ranks or the size of the last batch.

Shape legend: Q queries, N documents of U_n, K results, B batch.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from continual.config.schema import RunConfig
from continual.stream.stream import Judged, Stream
from dsi.measures.metrics import gold_ranks, hits, mrr
from dsi.model.dsi_model import DSIModel
from dsi.search.beam_search import Found
from dsi.search.ranker import Ranker
from dsi.text.tokens import Tokens, pad_id, padded_tensors, prompt_ids, slices

METRICS = ("hits@1", "hits@10", "mrr@10", "indexing_accuracy")


@dataclass(frozen=True)
class CorpusResult:
    """One corpus after one stage: a cell of every metric's matrix, and the results behind it.

    ``ranks`` (Q,): place of the best answer, 1-based, 0 when it is not among the K found. A
    query with fewer than K results has -1 in ``top_QK`` and -inf in ``scores_QK`` after the last.
    """

    corpus: int
    metrics: dict[str, float | None]
    queries: Judged
    ranks: np.ndarray
    top_QK: np.ndarray
    scores_QK: np.ndarray


@dataclass(frozen=True)
class Ranking:
    """Results of Q texts, best first: document numbers and log-probabilities (Q, K)."""

    numbers_QK: np.ndarray
    scores_QK: np.ndarray
    seconds: float = 0.0
    invalid: int = 0
    repeats: int = 0

    def speed_and_validity(self) -> dict[str, float | None]:
        """Queries per second of this process; shares of invalid and repeated docids."""
        queries, results = len(self.numbers_QK), int(np.isfinite(self.scores_QK).sum())
        return {
            "queries": queries,
            "queries_per_second": queries / self.seconds if self.seconds > 0 else None,
            "invalid_rate": self.invalid / results if results else None,
            "repeat_rate": self.repeats / results if results else None,
        }


class Evaluator:
    """Ranks with the weights that a model has at this moment.

    In the weights' own float32, whatever ``training.precision`` is: what it finds is what
    :class:`dsi.index.SearchIndex` finds in the same stage. Never draws a random number, so training
    is the same bit for bit whether or not it is called.
    """

    def __init__(
        self,
        config: RunConfig,
        stream: Stream,
        model: DSIModel,
        codes_NT: np.ndarray,
        accelerator: Accelerator,
        stage: int = 0,
    ):
        self.config, self.stream, self.accelerator = config, stream, accelerator
        self.pad = pad_id(stream.tokenizer)
        settings = config.evaluation
        self.ranker = Ranker(
            model,
            codes_NT,
            beams=settings.beams,
            length_penalty=settings.length_penalty,
            version=stage,
        )

    def documents_found(self, stage: int) -> np.ndarray:
        """Whether each document decodes to its own docid from its first tokens: bool (N,), False
        for those that have been removed.

        Greedy search: the one docid that the model writes, without the length penalty, which
        would choose between the docid where it ends and a longer one.
        """
        members, tokens = self.stream.members(stage), self.stream.tokens_at(stage)
        starts = tokens.offsets[members]
        lengths = np.minimum(tokens.lengths_of(members), self.config.evaluation.document_length)
        heads = slices(tokens, starts, lengths)
        prompt = prompt_ids(self.stream.tokenizer, self.config.prompts.indexing)
        greedy = partial(self.ranker.rank, k=1, beams=1, length_penalty=0.0)
        best = self.rank(heads, prompt, greedy)
        found = np.zeros(self.stream.count(stage), bool)
        found[members] = best.numbers_QK[:, 0] == members
        return found

    def evaluate(
        self, stage: int, queries: list[Judged], found: np.ndarray
    ) -> tuple[list[CorpusResult], dict[str, Any]]:
        """Results on D_0 .. D_n, and how the search went (see :meth:`Ranking.speed_and_validity`).

        ``queries[o]`` are those of D_o; ``found``: see documents_found. Only answers that are there
        in the stage count: a query without any is not asked. A corpus without queries has ``None``
        for the retrieval metrics, one without documents for indexing accuracy, too.
        """
        present = self.stream.present(stage)
        queries = [queries[o].among(present) for o in range(stage + 1)]
        settings = self.config.evaluation
        tokens = Tokens.concatenate([own.tokens for own in queries])
        prompt = prompt_ids(self.stream.tokenizer, self.config.prompts.retrieval)
        searches = [partial(self.ranker.rank, k=settings.depth)]
        if settings.unconstrained:
            searches.append(partial(self.ranker.unconstrained, k=settings.depth))
        ranking, *free = self.rank_each(tokens, prompt, searches)
        how: dict[str, Any] = {"beams": settings.beams, **ranking.speed_and_validity()}
        if free:
            how["unconstrained"] = free[0].speed_and_validity()
        ranges = (self.stream.range(o) for o in range(stage + 1))
        indexed = [found[low:high][present[low:high]] for low, high in ranges]
        return corpus_results(queries, ranking.numbers_QK, ranking.scores_QK, indexed), how

    def rank(self, tokens: Tokens, prompt: np.ndarray, search: Callable[..., Found]) -> Ranking:
        """What ``search`` finds for Q texts, over all processes."""
        return self.rank_each(tokens, prompt, [search])[0]

    def rank_each(
        self, tokens: Tokens, prompt: np.ndarray, searches: Sequence[Callable[..., Found]]
    ) -> list[Ranking]:
        """What each of the searches finds for Q texts; several share what the encoder says."""
        if len(tokens) == 0:
            nothing = Ranking(np.zeros((0, 1), np.int64), np.zeros((0, 1), np.float32))
            return [nothing] * len(searches)
        tokens = slices(tokens, tokens.offsets[:-1], tokens.lengths, prompt=prompt)
        order = np.argsort(tokens.lengths, kind="stable")
        size, accelerator = self.config.evaluation.batch_size, self.accelerator
        batches = [order[i : i + size] for i in range(0, len(order), size)]
        mine = batches[accelerator.process_index :: accelerator.num_processes]
        made = [_Made() for _ in searches]
        for rows in mine:
            started = time.perf_counter()
            inference = self.ranker.inference
            input_ids, seen = padded_tensors(tokens, rows, self.pad, inference.device)
            several = len(searches) > 1
            shared = {"encoded": inference.encode(input_ids, seen)} if several else {}
            before = (
                time.perf_counter() - started
            )  # counted for each search: alone it would need it, too
            for one, search in zip(made, searches, strict=True):
                started = time.perf_counter()
                found = search(input_ids, seen, **shared)
                one.parts.append((rows, found.documents.cpu().numpy(), found.scores.cpu().numpy()))
                one.invalid, one.repeats = one.invalid + found.invalid, one.repeats + found.repeats
                one.seconds += before + time.perf_counter() - started
        return [self._whole(one, len(order)) for one in made]

    def _whole(self, made: "_Made", count: int) -> Ranking:
        """The results of all processes in the order of the texts."""
        accelerator, parts = self.accelerator, made.parts
        invalid, repeats = made.invalid, made.repeats
        if accelerator.num_processes > 1:
            parts = gather_object(parts)
            invalid, repeats = (sum(gather_object([n])) for n in (invalid, repeats))
        width = parts[0][1].shape[1]
        numbers = np.full((count, width), -1, np.int64)
        scores = np.full((count, width), -np.inf, np.float32)
        for rows, number, score in parts:
            numbers[rows], scores[rows] = number, score
        return Ranking(numbers, scores, made.seconds, invalid, repeats)


@dataclass
class _Made:
    """What one process has found so far: text numbers, documents and scores of each batch."""

    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)
    invalid: int = 0
    repeats: int = 0
    seconds: float = 0.0


def corpus_results(
    queries: Sequence[Judged],
    numbers_QK: np.ndarray,
    scores_QK: np.ndarray,
    indexed: Sequence[np.ndarray] | None = None,
) -> list[CorpusResult]:
    """A row of the matrix: of D_0 .. D_n, from what was found for all their queries in this order.

    ``indexed``: of each corpus whether its documents decode to their own docids; None: there are no
    docids, and no indexing accuracy.
    """
    results, start = [], 0
    for o, own in enumerate(queries):
        rows = slice(start, start + len(own))
        given = np.zeros(0, bool) if indexed is None else indexed[o]
        results.append(_result(o, own, numbers_QK[rows], scores_QK[rows], given))
        start += len(own)
    return results


def _result(
    corpus: int, queries: Judged, top: np.ndarray, scores: np.ndarray, indexed: np.ndarray
) -> CorpusResult:
    values: dict[str, float | None] = dict.fromkeys(METRICS)
    ranks = gold_ranks(top, queries.gold) if len(queries) else np.zeros(0, np.int64)
    if len(queries):
        values["hits@1"] = float(hits(ranks, 1))
        values["hits@10"] = float(hits(ranks, 10))
        values["mrr@10"] = float(mrr(ranks, 10))
    if len(indexed):
        values["indexing_accuracy"] = float(indexed.mean())
    return CorpusResult(corpus, values, queries, ranks, top, scores)
