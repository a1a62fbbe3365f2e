"""TREC run and qrels files, the exchange format of every retrieval evaluation tool.

A run line is ``query Q0 document rank score tag``, a qrels line ``query 0 document relevance``.
Evaluation tools ignore the written rank: they sort by score and break ties each in their own way.
So scores on disk strictly decrease within a query, and the order of the caller is the only one.
"""

import codecs
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dsi.errors import UserError

DECIMALS = 6
_UNIT = 10**DECIMALS


class Run(NamedTuple):
    """Ranked documents of Q queries; ``write_run(path, *run)`` writes it."""

    query_ids: list[str]
    document_ids: list[list[str]]
    scores: list[list[float]]
    tag: str


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


def read_run(path: str | Path) -> Run:
    """Read a run written by any tool: queries in file order, documents by falling score.

    Raises UserError that names the broken line.
    """
    ranked: dict[str, dict[str, float]] = {}
    tag = ""
    for number, fields in _lines(path, 6, "query Q0 document rank score tag"):
        query, _, document, _, text, tag = fields
        score = _number(path, number, "score", text)
        if document in ranked.setdefault(query, {}):
            raise UserError(
                f"{path}:{number}: document {document!r} is listed twice for query {query!r}; "
                "keep one line"
            )
        ranked[query][document] = score
    rows = [sorted(row.items(), key=lambda item: -item[1]) for row in ranked.values()]
    documents = [[document for document, _ in row] for row in rows]
    return Run(list(ranked), documents, [[score for _, score in row] for row in rows], tag)


def write_qrels(path: str | Path, qrels: Mapping[str, Mapping[str, int]]) -> None:
    """Write judgements {query id: {document id: relevance}}.

    Raises UserError for an id that holds whitespace or is empty.
    """
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for query, judgements in qrels.items():
            _writable(path, "query id", query)
            for document, relevance in judgements.items():
                _writable(path, "document id", document)
                file.write(f"{query} 0 {document} {int(relevance)}\n")


def read_qrels(path: str | Path) -> dict[str, dict[str, int]]:
    """Read judgements {query id: {document id: relevance}}; UserError names the broken line."""
    qrels: dict[str, dict[str, int]] = {}
    for number, (query, _, document, text) in _lines(path, 4, "query 0 document relevance"):
        relevance = _number(path, number, "relevance", text)
        if relevance != int(relevance):
            raise UserError(f"{path}:{number}: relevance {text!r} is not a whole number; round it")
        qrels.setdefault(query, {})[document] = int(relevance)
    return qrels


def _lines(path: str | Path, count: int, expected: str) -> Iterator[tuple[int, list[str]]]:
    with open(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            if number == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            try:
                fields = raw.decode("utf-8").split()
            except UnicodeDecodeError:
                raise UserError(f"{path}:{number}: not UTF-8; convert the file") from None
            if not fields:
                continue
            if len(fields) != count:
                raise UserError(
                    f"{path}:{number}: {len(fields)} fields where {count} are expected; "
                    f"write '{expected}'"
                )
            yield number, fields


def _number(path: str | Path, number: int, what: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{path}:{number}: {what} {text!r} is not a number; correct it")
    return value


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
