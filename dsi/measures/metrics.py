"""Retrieval metrics as pure functions of ranks.

A rank is the 1-based position of a query's best gold document, 0 when none was returned. Shapes:
Q queries, K returned documents, M judgements. Values are shares between 0 and 1; NaN, never 0,
when there is nothing to average. Indexing accuracy is ``hits(ranks, 1)`` where the queries are
the texts of the documents themselves.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dsi.seeding import numpy_rng

_CHUNK = 1 << 16  # judgements compared at once, and random draws held at once


class Gold(NamedTuple):
    """The gold documents of Q queries as flat arrays (compressed sparse rows).

    Query q has the documents ``documents[offsets[q] : offsets[q + 1]]``.
    """

    offsets: np.ndarray  # (Q + 1,) int64, from 0 to M
    documents: np.ndarray  # (M,) int64 document numbers


def gold_from_lists(lists: Sequence[Sequence[int] | np.ndarray]) -> Gold:
    """Gold documents given as one list of document numbers per query."""
    lengths = np.fromiter((len(entry) for entry in lists), np.int64, len(lists))
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    flat = [np.asarray(entry, np.int64) for entry in lists if len(entry)]
    return Gold(offsets, np.concatenate(flat) if flat else np.zeros(0, np.int64))


def gold_from_pairs(pairs: np.ndarray) -> tuple[np.ndarray, Gold]:
    """Gold documents given as judgements (M, 2): query number, document number, in any order.

    Returns the judged query numbers (Q,), ascending, and the gold documents in that order.
    """
    pairs = np.asarray(pairs, np.int64).reshape(-1, 2)
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    queries, starts = np.unique(pairs[:, 0], return_index=True)
    return queries, Gold(np.append(starts, len(pairs)).astype(np.int64), pairs[:, 1])


def gold_ranks(ranked: np.ndarray, gold: Gold | Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
    """The rank (Q,) of the best gold document of each query.

    ``ranked`` (Q, K) holds document numbers, best first; -1 is an empty place and matches nothing.
    Raises ValueError when ``ranked`` and ``gold`` disagree on the number of queries.
    """
    ranked = np.asarray(ranked)
    gold = gold if isinstance(gold, Gold) else gold_from_lists(gold)
    num_queries = len(gold.offsets) - 1
    if ranked.ndim != 2 or len(ranked) != num_queries:
        raise ValueError(f"ranked has shape {ranked.shape}, but gold has {num_queries} queries")
    query_of = np.repeat(np.arange(num_queries), np.diff(gold.offsets))
    not_found = ranked.shape[1] + 1
    ranks = np.full(num_queries, not_found, np.int64)
    for start in range(0, len(query_of) if ranked.shape[1] else 0, _CHUNK):
        part = slice(start, start + _CHUNK)
        rows = ranked[query_of[part]]
        matches = (rows == gold.documents[part, None]) & (rows >= 0)
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


def bootstrap_interval(
    values: np.ndarray, *, level: float = 0.95, samples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The percentile bootstrap confidence interval (low, high) of the mean of ``values``.

    Equal arguments give equal intervals. (NaN, NaN) for no values.
    """
    values = np.asarray(values, np.float64).ravel()
    if not 0 < level < 1 or samples < 1:
        raise ValueError(f"level={level} must lie between 0 and 1, samples={samples} above 0")
    if not len(values):
        return float("nan"), float("nan")
    # Drawing n values with replacement is a multinomial draw over the distinct values. Hits and
    # reciprocal ranks take few values, so the cost does not grow with the number of queries.
    distinct, counts = np.unique(values, return_counts=True)
    rng = numpy_rng(seed, "bootstrap")
    means = []
    step = max(1, _CHUNK * 16 // len(distinct))
    for start in range(0, samples, step):
        size = min(step, samples - start)
        draws = rng.multinomial(len(values), counts / len(values), size=size)
        means.append(draws @ distinct / len(values))
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def _within(ranks: np.ndarray, k: int) -> np.ndarray:
    if k < 1:
        raise ValueError(f"k={k} must be at least 1")
    ranks = np.asarray(ranks)
    return (ranks >= 1) & (ranks <= k)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")
