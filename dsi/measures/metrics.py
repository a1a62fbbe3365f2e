"""Retrieval metrics as pure functions of ranks.

A rank is the 1-based position of a query's best gold document, 0 when none was returned. Shapes:
Q queries, K returned documents, M judgements. Values are shares between 0 and 1; NaN, never 0,
when there is nothing to average. Indexing accuracy is ``hits(ranks, 1)`` where the queries are
the texts of the documents themselves.
"""

from collections.abc import Sequence

import numpy as np

_CHUNK = 1 << 16  # judgements compared at once


def gold_ranks(ranked: np.ndarray, gold: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
    """The rank (Q,) of the best gold document of each query.

    ``ranked`` (Q, K) holds document numbers, best first; -1 is an empty place and matches nothing.
    ``gold``: the document numbers that answer each query.
    Raises ValueError when ``ranked`` and ``gold`` disagree on the number of queries.
    """
    ranked = np.asarray(ranked)
    num_queries = len(gold)
    if ranked.ndim != 2 or len(ranked) != num_queries:
        raise ValueError(f"ranked has shape {ranked.shape}, but gold has {num_queries} queries")
    # one row per judgement: its query and its document
    query_of = np.repeat(np.arange(num_queries), [len(entry) for entry in gold])
    answers = np.concatenate([np.zeros(0, np.int64), *(np.asarray(e, np.int64) for e in gold)])
    not_found = ranked.shape[1] + 1
    ranks = np.full(num_queries, not_found, np.int64)
    for start in range(0, len(query_of) if ranked.shape[1] else 0, _CHUNK):
        part = slice(start, start + _CHUNK)
        rows = ranked[query_of[part]]
        matches = (rows == answers[part, None]) & (rows >= 0)
        found = matches.any(axis=1)
        first = matches.argmax(axis=1) + 1
        np.minimum.at(ranks, query_of[part][found], first[found])
    ranks[ranks == not_found] = 0
    return ranks


def hits(ranks: np.ndarray, k: int) -> float:
    """Hits@k: the share of queries with a gold document among the first k."""
    return _mean(_within(ranks, k))


def mrr(ranks: np.ndarray, k: int) -> float:
    """MRR@k: the mean of 1/rank, counted as 0 beyond rank k."""
    return _mean(reciprocal_ranks(ranks, k))


def reciprocal_ranks(ranks: np.ndarray, k: int) -> np.ndarray:
    """1/rank of each query (Q,), 0 where the gold document is beyond rank k or was not found."""
    inside = _within(ranks, k)
    return np.where(inside, 1.0 / np.maximum(ranks, 1), 0.0)


def _within(ranks: np.ndarray, k: int) -> np.ndarray:
    if k < 1:
        raise ValueError(f"k={k} must be at least 1")
    ranks = np.asarray(ranks)
    return (ranks >= 1) & (ranks <= k)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")
