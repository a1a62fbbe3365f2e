"""Stream: the ordered corpora D_0 .. D_n, as flat arrays in order of arrival.

A document's *number* is its place in that order and never changes, so the numbers of D_n are a
range. What there is in stage n is a set of them (:meth:`Stream.members`): a stage may also remove
documents and give others a new text. Shape legend: N documents of the stream, Q queries.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerFast

from dsi.corpus.corpus import Corpus, document_texts
from dsi.corpus.ids import take
from dsi.text.tokens import LONGEST_QUERY, Tokens, cached_tokenize, tokenize
from dsi.text.views import set_text

TAKEN = 10_000  # documents whose texts are in memory at a time
NONE = np.zeros(0, np.int64)


@dataclass(frozen=True)
class CorpusRows:
    """What a stage brings: rows of a :class:`Corpus`, and what becomes of earlier documents.

    ``rows`` (M,): the documents of D_n. ``removed`` (R,): the numbers of those that go.
    ``replaced`` (P,): the numbers of those whose text changes, to that of the rows ``texts`` (P,)
    of this corpus. All of them are earlier documents that are there.
    """

    corpus: Corpus
    rows: np.ndarray
    removed: np.ndarray = field(default_factory=NONE.copy)
    replaced: np.ndarray = field(default_factory=NONE.copy)
    texts: np.ndarray = field(default_factory=NONE.copy)

    def __post_init__(self) -> None:
        order = np.argsort(self.replaced)
        object.__setattr__(self, "removed", np.sort(self.removed))
        object.__setattr__(self, "replaced", self.replaced[order])
        object.__setattr__(self, "texts", self.texts[order])


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

    def among(self, present: np.ndarray) -> "Judged":
        """With the answers that are there (``present``: bool by document number), without queries
        that have none of them; itself where all answers are."""
        gold = [numbers[present[numbers]] for numbers in self.gold]
        left = [len(numbers) for numbers in gold]
        if left == [len(numbers) for numbers in self.gold]:
            return self
        rows = np.flatnonzero(left)
        ids, texts = ([column[row] for row in rows] for column in (self.ids, self.texts))
        return Judged(ids, texts, self.tokens.take(rows), [gold[row] for row in rows])


class Stream:
    """Corpora in sequence with their tokens; queries are given out corpus by corpus.

    ``tokens``, ``set_tokens``: of every document as it arrived; :meth:`tokens_at` knows what has
    been replaced since. The train queries of D_n are reached through :meth:`train_queries` alone,
    so what a method may see is visible where it asks.
    """

    def __init__(
        self,
        parts: Sequence[CorpusRows],
        tokenizer: PreTrainedTokenizerFast,
        title: bool = True,
        lowercase: bool = True,
        with_set_view: bool = False,
    ):
        self.parts = list(parts)
        self.tokenizer = tokenizer
        self.title, self.lowercase = title, lowercase
        sizes = [len(part.rows) for part in self.parts]
        self.offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.tokens = self._tokenize_documents("text")
        self.set_tokens = self._tokenize_documents("set") if with_set_view else None
        self._latest: dict[str, tuple[int, Tokens]] = {}
        self._numbers = self._number_lookup()

    def __len__(self) -> int:
        return len(self.parts)

    @property
    def corpora(self) -> list[Corpus]:
        """The corpora that the parts are of, each once: the run's own, then those added to it."""
        return list({id(part.corpus): part.corpus for part in self.parts}.values())

    def count(self, stage: int) -> int:
        """How many documents have arrived up to a stage; those of U_stage if none was removed."""
        return int(self.offsets[stage + 1])

    def range(self, corpus: int) -> tuple[int, int]:
        """The first number of D_corpus, and one more than its last."""
        return int(self.offsets[corpus]), int(self.offsets[corpus + 1])

    def corpus_of(self, documents: np.ndarray) -> np.ndarray:
        """The corpus n that each document number belongs to."""
        return np.searchsorted(self.offsets, documents, side="right") - 1

    def added(self, stage: int) -> np.ndarray:
        """Numbers of the documents that arrive in a stage: D_stage."""
        return np.arange(*self.range(stage))

    def removed(self, stage: int) -> np.ndarray:
        """Numbers of the documents that go in a stage, ascending."""
        return self.parts[stage].removed

    def replaced(self, stage: int) -> np.ndarray:
        """Numbers of the documents whose text changes in a stage, ascending."""
        return self.parts[stage].replaced

    def changed(self, stage: int) -> np.ndarray:
        """Numbers of the documents that are new in a stage, or whose text is, ascending."""
        return np.concatenate([self.replaced(stage), self.added(stage)])

    def is_whole(self, stage: int) -> bool:
        """Whether no document has been removed up to a stage."""
        return not any(len(part.removed) for part in self.parts[: stage + 1])

    def present(self, stage: int) -> np.ndarray:
        """Whether each document that has arrived is there in a stage: bool (count,)."""
        found = np.ones(self.count(stage), bool)
        for part in self.parts[: stage + 1]:
            found[part.removed] = False
        return found

    def members(self, stage: int) -> np.ndarray:
        """Numbers of the documents that are there in a stage, U_stage, ascending."""
        if self.is_whole(stage):
            return np.arange(self.count(stage))
        return np.flatnonzero(self.present(stage))

    def text_stages(self, documents: np.ndarray, stage: int) -> np.ndarray:
        """The stage in which each document got the text that it has in ``stage``: that in which it
        arrived, or was last replaced."""
        since = self.corpus_of(documents)
        for n, part in enumerate(self.parts[: stage + 1]):
            if len(part.replaced):
                since[np.isin(documents, part.replaced)] = n
        return since

    def tokens_at(self, stage: int) -> Tokens:
        """Tokens of every document in a stage, by number; ``tokens`` where nothing was replaced."""
        return self._tokens_at("text", self.tokens, stage)

    def set_tokens_at(self, stage: int) -> Tokens:
        """As :meth:`tokens_at`, of the set view."""
        assert self.set_tokens is not None, "the stream was made without the set view"
        return self._tokens_at("set", self.set_tokens, stage)

    def document_ids(self, start: int, stop: int) -> list[str]:
        """The user's keys of the documents numbered start..stop-1."""
        return self.ids_of(np.arange(start, stop))

    def ids_of(self, documents: np.ndarray) -> list[str]:
        """The user's keys of documents by number."""
        return self._column("id", documents)

    def titles(self, start: int, stop: int) -> list[str]:
        """Titles, as they arrived, of the documents numbered start..stop-1."""
        return self._column("title", np.arange(start, stop))

    def texts(self, start: int, stop: int) -> Iterator[str]:
        """Texts, as they arrived and as the model reads them, of start..stop-1."""
        return self._texts(np.arange(start, stop), None)

    def texts_at(self, documents: np.ndarray, stage: int) -> Iterator[str]:
        """Texts, as the model reads them, that documents have in a stage."""
        return self._texts(documents, stage)

    def train_queries(self, corpus: int, stage: int | None = None) -> tuple[Tokens, np.ndarray]:
        """Train pairs of D_corpus: query tokens and document numbers, one entry per judgement.

        ``stage``: only of documents that are there then. DSI++ gives a method those of D_0 only;
        asking for a later corpus is asking the oracle.
        """
        texts, documents = self.train_pairs(corpus)
        if stage is not None and not self.is_whole(stage):
            there = self.present(stage)[documents]
            texts = [text for text, is_there in zip(texts, there, strict=True) if is_there]
            documents = documents[there]
        return tokenize(self.tokenizer, texts).heads(LONGEST_QUERY), documents

    def train_pairs(self, corpus: int) -> tuple[list[str], np.ndarray]:
        """As :meth:`train_queries`: the queries as texts, and document numbers."""
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
        """A hash of which documents arrive, go and change when (in the first ``corpora``)."""
        digest = hashlib.sha256()
        for part in self.parts[:corpora]:
            digest.update(part.corpus.content_hash.encode())
            digest.update(np.ascontiguousarray(part.rows, dtype="<i8").tobytes())
            for name in ("removed", "replaced", "texts"):
                rows = getattr(part, name)
                if len(rows):
                    digest.update(f"{name} {len(rows)}".encode())
                    digest.update(np.ascontiguousarray(rows, dtype="<i8").tobytes())
        return digest.hexdigest()

    def _clean(self, text: str) -> str:
        text = " ".join(text.split())
        return text.lower() if self.lowercase else text

    def _tokenize_documents(self, kind: str) -> Tokens:
        by_corpus: dict[str, Tokens] = {}
        taken: list[tuple[Tokens, np.ndarray]] = []
        for part in self.parts:
            key = part.corpus.content_hash
            if key not in by_corpus:
                by_corpus[key] = self._corpus_tokens(part.corpus, kind)
            taken.append((by_corpus[key], part.rows))
        if len(by_corpus) == 1:
            tokens, rows = taken[0][0], np.concatenate([rows for _, rows in taken])
            if np.array_equal(rows, np.arange(len(tokens))):
                return tokens  # mapped: nothing is copied
        return Tokens.chosen(taken)

    def _corpus_tokens(self, corpus: Corpus, kind: str) -> Tokens:
        """Of all rows of a corpus: made once and cached there, for every stream that takes some."""
        texts = document_texts(corpus.documents, title=self.title, lowercase=self.lowercase)
        texts = map(set_text, texts) if kind == "set" else texts
        about = f"{kind}:title={self.title}:lowercase={self.lowercase}"
        content = f"{corpus.content_hash}:{about}"
        return cached_tokenize(self.tokenizer, texts, content)

    def _tokens_at(self, kind: str, tokens: Tokens, stage: int) -> Tokens:
        replaced = [n for n in range(stage + 1) if len(self.parts[n].replaced)]
        if not replaced:
            return tokens
        last = replaced[-1]
        if self._latest.get(kind, (-1, tokens))[0] != last:
            numbers = np.unique(np.concatenate([self.parts[n].replaced for n in replaced]))
            since = self.text_stages(numbers, stage)
            order, taken = np.argsort(since, kind="stable"), []
            for n in np.unique(since).tolist():
                rows = self._text_rows(numbers[since == n], n)
                taken.append((self._corpus_tokens(self.parts[n].corpus, kind), rows))
            # a copy of all tokens: kept for the stage at hand alone
            changed = tokens.with_texts(numbers[order], Tokens.chosen(taken))
            self._latest[kind] = (last, changed)
        return self._latest[kind][1]

    def _text_rows(self, documents: np.ndarray, n: int) -> np.ndarray:
        """The rows, in the corpus of part n, of documents that have their text from there."""
        part, start = self.parts[n], int(self.offsets[n])
        rows = np.empty(len(documents), np.int64)
        arrived = documents >= start
        rows[arrived] = part.rows[documents[arrived] - start]
        rows[~arrived] = part.texts[np.searchsorted(part.replaced, documents[~arrived])]
        return rows

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

    def _column(self, name: str, documents: np.ndarray) -> list[str]:
        values: list[str] = []
        for corpus, rows in self._runs(documents, None):
            # the column alone: what is taken is copied, and texts are most of a table
            values += take(corpus.documents.select([name]), rows)[name].to_pylist()
        return values

    def _texts(self, documents: np.ndarray, stage: int | None) -> Iterator[str]:
        for corpus, rows in self._runs(documents, stage):
            for first in range(0, len(rows), TAKEN):
                table = take(corpus.documents, rows[first : first + TAKEN])
                yield from document_texts(table, title=self.title, lowercase=self.lowercase)

    def _runs(
        self, documents: np.ndarray, stage: int | None
    ) -> Iterator[tuple[Corpus, np.ndarray]]:
        """Where documents stand, as they arrived or in a stage, part by part in their order."""
        since = self.corpus_of(documents)
        since = since if stage is None else self.text_stages(documents, stage)
        cuts = np.flatnonzero(np.diff(since)) + 1
        for run in np.split(np.arange(len(documents)), cuts) if len(documents) else []:
            n = int(since[run[0]])
            yield self.parts[n].corpus, self._text_rows(documents[run], n)
