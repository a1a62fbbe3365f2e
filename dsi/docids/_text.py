"""Docids that are text: token sequences, made unique by what stands in the place of the end.

Shape legend: N documents, M documents of one extension, L tokens at most, T docid length,
V tokens of the vocabulary.
"""

from collections.abc import Iterable, Iterator
from itertools import compress
from typing import Any, ClassVar

import numpy as np
from transformers import PreTrainedTokenizerFast

from dsi.docids._scheme import NewDocuments, Scheme, stack_codes
from dsi.errors import UserError
from dsi.text.tokens import Tokens, batches


class TextScheme(Scheme):
    """Base of the schemes that write a phrase for each document; a code is a token.

    A docid is at most ``config.max_length`` tokens and the end-of-text token. Further documents of
    the same tokens have, in place of the end, the codes V, V + 1, ... in order of arrival. Tokens
    are below V and none is the end, so no docid is the beginning of another.
    """

    shared = True
    suffix: ClassVar[bool] = True
    """The last code tells documents of equal text apart; see dsi.docid_report."""

    def __init__(self, config: Any = None):
        super().__init__(config)
        self.vocabulary_size = 0  # V, taken from the tokenizer of the first extension

    @property
    def code_sizes(self) -> list[int]:
        used = int(self.codes_NT.max(initial=0)) + 1
        return [max(self.vocabulary_size, used)] * self.codes_NT.shape[1]

    def phrases(self, documents: NewDocuments) -> Iterable[str]:
        """What to call each new document; where that has no token, its first words are taken."""
        raise NotImplementedError

    def assign(self, documents: NewDocuments) -> np.ndarray:
        if not documents.count:
            return np.zeros((0, 1), np.int32)
        tokenizer, length = self._tokenizer(documents), self.config.max_length
        tokens_ML = token_rows(tokenizer, self.phrases(documents), length)
        if len(tokens_ML) != documents.count:
            raise ValueError(f"{len(tokens_ML)} titles or texts for {documents.count} documents")
        nameless = tokens_ML[:, 0] < 0
        if nameless.any():
            texts = compress(documents.texts(), nameless.tolist())
            tokens_ML[nameless] = token_rows(tokenizer, _beginnings(texts, length), length)
            tokens_ML[tokens_ML[:, 0] < 0, 0] = _unknown(tokenizer)
        if tokens_ML.max() >= self.vocabulary_size:
            raise UserError(
                f"tokenizer.source: token {tokens_ML.max()} of {self.vocabulary_size}: the "
                "vocabulary has gaps, which docids of text cannot have; use another tokenizer"
            )
        return self._ended(tokens_ML, _end(tokenizer))

    def _ended(self, tokens_ML: np.ndarray, end: int) -> np.ndarray:
        """The token sequences with the end or, for the j-th further holder, code V + j - 1."""
        old_NT = self.codes_NT.copy()
        old_NT[np.arange(len(old_NT)), (old_NT >= 0).sum(1) - 1] = -1  # ends and suffixes
        earlier = places_in_group(stack_codes([old_NT, tokens_ML]))[len(old_NT) :]
        codes_MT = np.pad(tokens_ML, ((0, 0), (0, 1)), constant_values=-1)
        ends = np.where(earlier == 0, end, self.vocabulary_size + earlier - 1)
        codes_MT[np.arange(len(codes_MT)), (tokens_ML >= 0).sum(1)] = ends
        return stack_codes([codes_MT])

    def state_dict(self) -> dict[str, np.ndarray]:
        """``vocabulary_size`` int64 (1,): V."""
        return {"vocabulary_size": np.array([self.vocabulary_size], np.int64)}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        self.vocabulary_size = int(state["vocabulary_size"][0])

    def readable(self, codes_T: np.ndarray, tokenizer: PreTrainedTokenizerFast) -> str:
        """The text, and ``#j`` for the j-th further document of the same text."""
        *tokens, last = codes_T[codes_T >= 0].tolist()
        further = last - (self.vocabulary_size or len(tokenizer)) + 1
        return str(tokenizer.decode(tokens)) + (f"#{further}" if further > 0 else "")

    def _tokenizer(self, documents: NewDocuments) -> PreTrainedTokenizerFast:
        if documents.tokenizer is None:
            raise ValueError("this docid scheme reads the documents' tokenizer, but none was given")
        size = len(documents.tokenizer)
        self.vocabulary_size = self.vocabulary_size or size
        if size != self.vocabulary_size:
            raise UserError(
                f"tokenizer.source: {size} tokens, but the docids so far were written with "
                f"{self.vocabulary_size}; use the same tokenizer"
            )
        return documents.tokenizer


def token_rows(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], length: int) -> np.ndarray:
    """The first ``length`` tokens of each text, int32 (M, L), -1 after the last.

    An end-of-text token that is written out in a text is left out.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    parts = [np.zeros((0, length), np.int32)]
    for batch in batches(texts):
        encoded = backend.encode_batch_fast(batch, add_special_tokens=False)
        tokens = Tokens.from_lists([encoding.ids for encoding in encoded])
        keep = tokens.values != _end(tokenizer)
        values, rows = tokens.values[keep], np.repeat(np.arange(len(tokens)), tokens.lengths)[keep]
        counts = np.bincount(rows, minlength=len(tokens))
        places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        part = np.full((len(tokens), length), -1, np.int32)
        inside = places < length
        part[rows[inside], places[inside]] = values[inside]
        parts.append(part)
    return np.concatenate(parts)


def packed_rows(codes_NT: np.ndarray) -> list[np.ndarray]:
    """A few int64 keys (N,) instead of T columns; sorted by them, rows are in code order.

    Each column takes the bits that its largest code needs; -1 comes first.
    """
    keys: list[np.ndarray] = []
    used = 64
    for column in codes_NT.T:
        bits = (int(column.max(initial=-1)) + 1).bit_length()
        if used + bits > 63:
            keys.append(np.zeros(len(codes_NT), np.int64))
            used = 0
        keys[-1] <<= bits
        keys[-1] |= column.astype(np.int64) + 1
        used += bits
    return keys


def places_in_group(codes_NT: np.ndarray) -> np.ndarray:
    """How many equal rows come before each row, int64 (N,)."""
    keys = packed_rows(codes_NT)
    order = np.lexsort(keys[::-1])  # stable: equal rows stay in order of arrival
    starts = np.zeros(len(order), bool)
    starts[:1] = True
    for key in keys:
        starts[1:] |= np.diff(key[order]) != 0
    rows = np.arange(len(order))
    places = np.empty(len(order), np.int64)
    places[order] = rows - np.maximum.accumulate(np.where(starts, rows, 0))
    return places


def _beginnings(texts: Iterable[str], length: int) -> Iterator[str]:
    """As many words as tokens are wanted: the rest of a long text need not be tokenized."""
    return (" ".join(text.split(maxsplit=length)[:length]) for text in texts)


def _end(tokenizer: PreTrainedTokenizerFast) -> int:
    end = tokenizer.eos_token_id
    assert isinstance(end, int), "dsi.text.tokens.load_tokenizer refuses tokenizers without"
    return end


def _unknown(tokenizer: PreTrainedTokenizerFast) -> int:
    """What stands for a document without any token; some vocabularies have no unknown token."""
    end, unknown = _end(tokenizer), tokenizer.unk_token_id
    return unknown if isinstance(unknown, int) and unknown != end else int(end == 0)
