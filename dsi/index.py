"""SearchIndex: what an application imports to ask a trained index."""

import copy
import operator
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from dsi.corpus.corpus import Corpus, read_corpus
from dsi.corpus.ids import id_rows
from dsi.corpus.records import show
from dsi.docids import codes_from_text
from dsi.errors import UserError, printable
from dsi.files import as_written
from dsi.index_folder import FILES, Documents, IndexSettings, find_index, read_documents
from dsi.manifest import verify
from dsi.model.dsi_model import DSIModel, load_model
from dsi.search.ranker import Ranker
from dsi.search.trie import Trie
from dsi.text.tokens import (
    LONGEST_QUERY,
    load_tokenizer,
    pad_id,
    padded_tensors,
    prompt_ids,
    slices,
    tokenize,
)

BATCH = 256  # queries ranked at once


@dataclass(frozen=True)
class Result:
    """One document found; ``score`` is its natural-log probability."""

    document_id: str
    score: float
    title: str
    text: str

    def snippet(self, characters: int) -> str:
        """The beginning of the text."""
        if len(self.text) <= characters:
            return self.text
        return self.text[: characters - 1].rsplit(" ", 1)[0] + "…"


class SearchIndex:
    """A trained model, its docids and the texts they stand for.

    ``document_ids``: the user's keys; ``corpus_names``: what the corpora are called; ``warnings``:
    one line each, what is not as it was when the documents were indexed.
    """

    def __init__(
        self,
        ranker: Ranker,
        tokenizer: PreTrainedTokenizerFast,
        documents: Documents,
        corpora: list[Corpus],
        settings: IndexSettings,
        warnings: tuple[str, ...] = (),
        numbers: np.ndarray | None = None,
    ):
        self.ranker, self.tokenizer, self.warnings = ranker, tokenizer, warnings
        self.document_ids, self.corpus_names = documents.ids, documents.names
        self._corpus_N = documents.corpus_N
        # the ranker's number of each document, ascending
        self._number_N = np.arange(len(documents.ids)) if numbers is None else numbers
        self._corpora = [(corpus, id_rows(corpus.documents["id"])) for corpus in corpora]
        self._new_texts = settings.new_texts
        self._lowercase = settings.lowercase
        self._allowed: np.ndarray | None = None
        self._prompt = prompt_ids(tokenizer, settings.prompt)
        special = [tokenizer.unk_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id]
        # "▁" is where a word begins: it stands before an unknown one, too
        meaningless = [*special, tokenizer.backend_tokenizer.token_to_id("▁")]
        self._meaningless = [token for token in meaningless if isinstance(token, int)]
        if len(self._number_N) < len(ranker):
            self.ranker = ranker.among(self._number_N)

    def __len__(self) -> int:
        return len(self.ranker)

    @classmethod
    def load(cls, folder: str | Path) -> "SearchIndex":
        """Open an index: its own folder, or one whose index.json names it (a run directory)."""
        folder, settings = find_index(Path(folder))
        verify(folder, *FILES)
        with _no_bar():
            model = load_model(folder / "model")
        documents = read_documents(folder / "docids.tsv")
        trie = Trie.load(folder / "trie") if (folder / "trie").is_dir() else None
        tokenizer = load_tokenizer(folder / "tokenizer")
        corpora = [read_corpus(c, deduplicate=settings.deduplicate) for c in settings.corpora]
        count, numbers = len(documents.ids), None
        with as_written(folder / "docids.tsv"):
            if count != settings.documents:
                raise ValueError(f"{count} documents, index.json says {settings.documents}")
            codes_NT = codes_from_text(documents.docids if trie is None else [])
            check_fit(model, tokenizer, trie, codes_NT, count)
            if trie is None and len(model.code_sizes) == 1 and (np.diff(codes_NT[:, 0]) > 0).all():
                # one code each, the row of the document; a row may belong to no document
                numbers, codes_NT = codes_NT[:, 0], np.arange(model.code_sizes[0])[:, None]
            ranker = Ranker(model, codes_NT, trie, settings.beams, settings.length_penalty)
        warnings = tuple(
            f"{corpus.folder or corpus.name}: its documents have changed since they were indexed; "
            "results show what they are now"
            for corpus, hashes in zip(corpora, settings.part_hashes, strict=True)
            if corpus.part_hashes["documents"] != hashes["documents"]
        )
        return cls(ranker, tokenizer, documents, corpora, settings, warnings, numbers)

    def among(
        self, documents: Iterable[str] | None = None, corpora: Iterable[str] | None = None
    ) -> "SearchIndex":
        """The same index, restricted to some documents (by id) or to whole corpora (by name, "D0").

        Scores stay what they were. Both given: the documents that are in both.
        """
        allowed = np.ones(len(self.document_ids), bool)
        if corpora is not None:
            if isinstance(corpora, str):  # its letters may be names
                raise UserError(f"corpora: expected a list of names, got {show(corpora)}")
            chosen = list(corpora)
            for name in chosen:
                if name not in self.corpus_names:
                    known = ", ".join(map(show, self.corpus_names[:20]))
                    raise UserError(f"corpora: no {show(name)} in this index; it has {known}")
            places = [self.corpus_names.index(name) for name in chosen]
            allowed &= np.isin(self._corpus_N, places)
        if documents is not None:
            allowed &= self._marked(documents)
        return self._restricted(allowed)

    def without(self, documents: Iterable[str]) -> "SearchIndex":
        """The same index after removal of some documents: they are never found again."""
        return self._restricted(~self._marked(documents))

    def _marked(self, documents: Iterable[str]) -> np.ndarray:
        if isinstance(documents, str):  # its letters may be ids
            raise UserError(f"documents: expected a list of ids, got {show(documents)}")
        number_of = {document: i for i, document in enumerate(self.document_ids)}
        marked = np.zeros(len(self.document_ids), bool)
        for document in documents:
            if document not in number_of:
                raise UserError(f"documents: no document {show(document)} in this index")
            marked[number_of[document]] = True
        return marked

    def _restricted(self, allowed: np.ndarray) -> "SearchIndex":
        part = copy.copy(self)
        part._allowed = allowed if self._allowed is None else allowed & self._allowed
        if not part._allowed.any():
            raise UserError("documents: none is left to search; choose others")
        part.ranker = self.ranker.among(self._number_N[part._allowed])
        return part

    @overload
    def search(self, queries: str, k: int = 10) -> list[Result]: ...

    @overload
    def search(self, queries: Iterable[str], k: int = 10) -> list[list[Result]]: ...

    def search(
        self, queries: str | Iterable[str], k: int = 10
    ) -> list[Result] | list[list[Result]]:
        """The k best documents, best first (fewer when there are fewer): of one query a list, of
        several a list of lists.

        Nothing is found for a query without any word that the tokenizer knows (an empty one, one in
        an unknown script): any ranking would be the same for all of them.
        """
        listed = [queries] if isinstance(queries, str) else _strings(queries)
        # more than there are: all of them
        k = min(_count(k), len(self))
        # bytes on the command line that are not UTF-8 arrive as half surrogate pairs
        whole = (query.encode("utf-8", "replace").decode() for query in listed)
        texts = [" ".join(query.split()) for query in whole]
        parts = (texts[start : start + BATCH] for start in range(0, len(texts), BATCH))
        found = [results for part in parts for results in self._search(part, k)]
        return found[0] if isinstance(queries, str) else found

    def _search(self, texts: list[str], k: int) -> list[list[Result]]:
        tokens = tokenize(self.tokenizer, [t.lower() if self._lowercase else t for t in texts])
        tokens = tokens.heads(LONGEST_QUERY)
        is_known = ~np.isin(tokens.values, self._meaningless)
        known = np.flatnonzero(np.logical_or.reduceat(is_known, tokens.offsets[:-1]))
        results: list[list[Result]] = [[] for _ in texts]
        if not len(known):
            return results
        tokens = slices(tokens, tokens.offsets[:-1], tokens.lengths, prompt=self._prompt)
        device = self.ranker.inference.device
        ids, mask = padded_tensors(tokens, known, pad_id(self.tokenizer), device)
        found = self.ranker.rank(ids, mask, k)
        lines = zip(found.documents.tolist(), found.scores.tolist(), strict=True)
        for query, (row, line) in zip(known.tolist(), lines, strict=True):
            results[query] = [
                self._result(number, score)
                for number, score in zip(row, line, strict=True)
                if number >= 0
            ]
        return results

    def _result(self, number: int, score: float) -> Result:
        document_id = self.document_ids[int(np.searchsorted(self._number_N, number))]
        place, key = self._new_texts.get(document_id, (None, document_id))
        for corpus, lookup in self._corpora if place is None else [self._corpora[place]]:
            row = int(lookup.rows([key])[0])
            if row >= 0:
                found = corpus.documents.slice(row, 1)
                return Result(
                    document_id, score, found["title"][0].as_py(), found["text"][0].as_py()
                )
        return Result(document_id, score, "", "")


def _strings(queries: Iterable[str]) -> list[str]:
    """The queries as a list; UserError for what would be read otherwise than it is meant."""
    # a mapping gives its keys, a data frame the names of its columns, a set no order
    is_other = isinstance(queries, Mapping | Set | bytes | bytearray)
    if is_other or not isinstance(queries, Iterable) or getattr(queries, "ndim", 1) != 1:
        what = f"expected a string or a list of strings, got {type(queries).__name__}"
        raise UserError(f"queries: {what}; give a list")
    listed = list(queries)
    for place, query in enumerate(listed):
        if not isinstance(query, str):
            raise UserError(f"queries[{place}]: expected a string, got {printable(show(query))}")
    return listed


def _count(k: int) -> int:
    try:
        count = 0 if isinstance(k, bool | np.bool_) else operator.index(k)
    except TypeError:
        count = 0
    if count < 1:
        raise UserError(f"k: must be a whole number, at least 1, got {printable(show(k))}")
    return count


@contextmanager
def _no_bar() -> Iterator[None]:
    """transformers shows a bar while it reads weights; an application that searches wants none."""
    is_shown = logging.is_progress_bar_enabled()
    if is_shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if is_shown:
            logging.enable_progress_bar()


def check_fit(
    model: DSIModel,
    tokenizer: PreTrainedTokenizerFast,
    trie: Trie | None,
    codes_NT: np.ndarray,
    count: int,
) -> None:
    """ValueError where model, tokenizer and docids do not belong together."""
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(f"{len(tokenizer)} tokens, the model has {model.config.vocab_size}")
    if trie is not None and (len(trie) != count or count <= int(trie.documents.max())):
        raise ValueError(f"{count} documents, the trie has {len(trie)}")
    sizes = trie.widths() if trie is not None else (codes_NT.max(0) + 1).tolist()
    room = model.code_sizes
    if len(sizes) > len(room) or any(n > m for n, m in zip(sizes, room, strict=False)):
        raise ValueError(f"{count} documents with codes {sizes}, the model has {room}")
