"""Stream: the ordered corpora D_0 .. D_n, as flat arrays in order of arrival.

A document's *number* is its place in that order, so U_n is always a prefix. Shape legend: N
documents of the stream, Q queries.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from dsi.corpus.corpus import Corpus, document_texts
from dsi.corpus.ids import take
from dsi.text.tokens import LONGEST_QUERY, Tokens, cached_tokenize, tokenize
from dsi.text.views import set_text

TAKEN = 10_000  # documents whose texts are in memory at a time


@dataclass(frozen=True)
class Part:
    """One corpus of the stream: rows of a :class:`Corpus`, and where its source is."""

    corpus: Corpus
    rows: np.ndarray


@dataclass(frozen=True)
class Judged:
    """Queries with the documents that answer them.

    ``tokens`` of Q queries, ``ids`` (Q,), ``gold``: one int64 array of document numbers per query.
    """

    ids: list[str]
    texts: list[str]
    tokens: Tokens
    gold: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.ids)


class Stream:
    """Corpora in sequence with their tokens; queries are given out corpus by corpus.

    The train queries of D_n are reached through :meth:`train_queries` alone, so what a method may
    see is visible where it asks.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        tokenizer: PreTrainedTokenizerFast,
        title: bool = True,
        lowercase: bool = True,
        cache: Path | None = None,
        with_set_view: bool = False,
    ):
        self.parts = list(parts)
        self.tokenizer = tokenizer
        self.title, self.lowercase, self.cache = title, lowercase, cache
        sizes = [len(part.rows) for part in self.parts]
        self.offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.tokens = self._tokenize_documents("text")
        self.set_tokens = self._tokenize_documents("set") if with_set_view else None
        self._numbers = self._number_lookup()

    def __len__(self) -> int:
        return len(self.parts)

    @property
    def corpora(self) -> list[Corpus]:
        """The corpora that the parts are of, each once: the run's own, then those added to it."""
        return list({id(part.corpus): part.corpus for part in self.parts}.values())

    def count(self, stage: int) -> int:
        """Documents of U_stage."""
        return int(self.offsets[stage + 1])

    def corpus_of(self, documents: np.ndarray) -> np.ndarray:
        """The corpus n that each document number belongs to."""
        return np.searchsorted(self.offsets, documents, side="right") - 1

    def document_ids(self, start: int, stop: int) -> list[str]:
        """The user's keys of the documents numbered start..stop-1."""
        return self._column("id", start, stop)

    def titles(self, start: int, stop: int) -> list[str]:
        """Titles of the documents numbered start..stop-1."""
        return self._column("title", start, stop)

    def texts(self, start: int, stop: int) -> Iterator[str]:
        """Texts, as the model reads them, of the documents numbered start..stop-1."""
        for part, low, high in self._ranges(start, stop):
            for first in range(low, high, TAKEN):
                rows = part.rows[first : min(first + TAKEN, high)]
                table = take(part.corpus.documents, rows)
                yield from document_texts(table, title=self.title, lowercase=self.lowercase)

    def train_queries(self, corpus: int) -> tuple[Tokens, np.ndarray]:
        """Train pairs of D_corpus: query tokens and document numbers, one entry per judgement.

        DSI++ gives a method those of D_0 only; asking for a later corpus is asking the oracle.
        """
        texts, documents = self.train_pairs(corpus)
        return tokenize(self.tokenizer, texts).heads(LONGEST_QUERY), documents

    def train_pairs(self, corpus: int) -> tuple[list[str], np.ndarray]:
        """The same as text."""
        part = self.parts[corpus]
        pairs, numbers = self._judged("train", corpus)
        texts = take(part.corpus.queries, pairs[:, 0])["text"].to_pylist()
        return [self._clean(text) for text in texts], numbers

    def judged_queries(self, split: str, corpus: int) -> Judged:
        """The queries of a split that some document of D_corpus answers."""
        part = self.parts[corpus]
        pairs, numbers = self._judged(split, corpus)
        order = np.argsort(pairs[:, 0], kind="stable")
        rows, starts = np.unique(pairs[order, 0], return_index=True)
        gold = np.split(numbers[order], starts[1:]) if len(rows) else []
        table = take(part.corpus.queries, rows)
        texts = [self._clean(text) for text in table["text"].to_pylist()]
        tokens = tokenize(self.tokenizer, texts).heads(LONGEST_QUERY)
        return Judged(table["id"].to_pylist(), texts, tokens, gold)

    def fingerprint(self, corpora: int | None = None) -> str:
        """A hash of which documents arrive when (first ``corpora`` of them)."""
        digest = hashlib.sha256()
        for part in self.parts[:corpora]:
            digest.update(part.corpus.content_hash.encode())
            digest.update(np.ascontiguousarray(part.rows, dtype="<i8").tobytes())
        return digest.hexdigest()

    def _clean(self, text: str) -> str:
        text = " ".join(text.split())
        return text.lower() if self.lowercase else text

    def _tokenize_documents(self, kind: str) -> Tokens:
        # once per source corpus and cached there; the stream then takes its rows
        by_corpus: dict[str, Tokens] = {}
        taken: list[tuple[Tokens, np.ndarray]] = []
        for part in self.parts:
            key = part.corpus.content_hash
            if key not in by_corpus:
                texts = document_texts(
                    part.corpus.documents, title=self.title, lowercase=self.lowercase
                )
                texts = map(set_text, texts) if kind == "set" else texts
                content = f"{key}:{kind}:title={self.title}:lowercase={self.lowercase}"
                by_corpus[key] = cached_tokenize(self.tokenizer, texts, content, self.cache)
            taken.append((by_corpus[key], part.rows))
        if len(by_corpus) == 1:
            tokens, rows = taken[0][0], np.concatenate([rows for _, rows in taken])
            if np.array_equal(rows, np.arange(len(tokens))):
                return tokens  # mapped: nothing is copied
        return Tokens.chosen(taken)

    def _number_lookup(self) -> dict[int, np.ndarray]:
        """Row -> document number by table, -1 for rows in no corpus: one however many corpora."""
        found: dict[int, np.ndarray] = {}
        for part, start in zip(self.parts, self.offsets.tolist(), strict=False):
            rows = part.corpus.documents.num_rows
            numbers = found.setdefault(id(part.corpus), np.full(rows, -1, np.int64))
            numbers[part.rows] = np.arange(start, start + len(part.rows))
        return found

    def _judged(self, split: str, corpus: int) -> tuple[np.ndarray, np.ndarray]:
        """Judgements (query row, document row) on documents of D_corpus, and their numbers."""
        source = self.parts[corpus].corpus
        pairs = source.qrels[split]
        numbers = self._numbers[id(source)][pairs[:, 1]]
        inside = (numbers >= self.offsets[corpus]) & (numbers < self.offsets[corpus + 1])
        return pairs[inside], numbers[inside]

    def _column(self, name: str, start: int, stop: int) -> list[str]:
        values: list[str] = []
        for part, low, high in self._ranges(start, stop):
            # the column alone: what is taken is copied, and texts are most of a table
            values += take(part.corpus.documents.select([name]), part.rows[low:high])[
                name
            ].to_pylist()
        return values

    def _ranges(self, start: int, stop: int) -> Iterator[tuple[Part, int, int]]:
        for n, part in enumerate(self.parts):
            low = max(start, int(self.offsets[n])) - int(self.offsets[n])
            high = min(stop, int(self.offsets[n + 1])) - int(self.offsets[n])
            if low < high:
                yield part, low, high
