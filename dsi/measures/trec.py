"""TREC run files, the exchange format of every retrieval evaluation tool.

A line is ``query Q0 document rank score tag``.
Evaluation tools ignore the written rank: they sort by score and break ties each in their own way.
So scores on disk strictly decrease within a query, and the order of the caller is the only one.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dsi.errors import UserError

DECIMALS = 6
_UNIT = 10**DECIMALS


def decreasing_scores(scores: Sequence[float]) -> list[str]:
    """Scores, best first, as decimal texts that strictly decrease.

    A score that would print as large as its predecessor becomes the next smaller text, whose
    value is also smaller in single precision: trec_eval holds scores in 32 bits.
    Raises ValueError for scores that increase or are not finite.
    """
    texts, units, previous = [], 0, math.inf
    for score in map(float, scores):
        if not math.isfinite(score) or score > previous:
            raise ValueError(f"scores must be finite and never increase, found {score}")
        last, units, previous = units, round(score * _UNIT), score
        if texts and np.float32(units / _UNIT) >= np.float32(last / _UNIT):
            below = np.nextafter(np.float32(last / _UNIT), np.float32(-np.inf))
            units = math.floor(float(below) * _UNIT)
        # Formatted from the integer, so that no rounding of a float gets in between.
        whole, part = divmod(abs(units), _UNIT)
        texts.append(f"{'-' if units < 0 else ''}{whole}.{part:0{DECIMALS}d}")
    return texts


def write_run(
    path: str | Path,
    query_ids: Sequence[str],
    document_ids: Sequence[Sequence[str]],
    scores: Sequence[Sequence[float]],
    tag: str,
) -> None:
    """Write a run: for each query its documents, best first, and their scores.

    A query without documents leaves no line. Raises UserError for an id that holds whitespace or
    is empty, ValueError for lengths that differ, increasing scores or a repeated id.
    """
    _unique(query_ids, "query")
    _writable(path, "tag", tag)
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for query, documents, row in zip(query_ids, document_ids, scores, strict=True):
            _writable(path, "query id", query)
            _unique(documents, f"document of query {query!r}")
            texts = decreasing_scores(row)
            for rank, (document, text) in enumerate(zip(documents, texts, strict=True), start=1):
                _writable(path, "document id", document)
                file.write(f"{query} Q0 {document} {rank} {text} {tag}\n")


def _unique(ids: Sequence[str], what: str) -> None:
    if len(set(ids)) != len(ids):
        repeated = next(entry for entry in ids if list(ids).count(entry) > 1)
        raise ValueError(f"{what} {repeated!r} is repeated")


def _writable(path: str | Path, what: str, text: str) -> None:
    if text.split() != [text]:
        problem = "contains whitespace" if text else "is empty"
        raise UserError(
            f"{path}: {what} {text!r} {problem}, which the TREC format cannot hold; rename it"
        )
