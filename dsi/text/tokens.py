"""Text to token ids, once per corpus: a pretrained tokenizer, or a Unigram one trained on D_0.

Shape legend: N texts, V vocabulary size.
"""

import io
import json
import os
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dsi import hub
from dsi.errors import UserError
from dsi.files import cache_folder, replace_atomically
from dsi.manifest import text_hash

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

NUM_SENTINELS = 32  # <extra_id_0> ...: enough for span corruption of a passage of 256 tokens
LONGEST_QUERY = 512  # tokens that are read of one, and of a prompt: memory grows with the square
LONGEST_WORD = 1_000  # characters; the trainer's time grows with the square, pieces have 16 at most
BATCH = 2_000
BLOCK = 1 << 20  # tokens copied at once
MOST_IN_MEMORY = 1 << 24  # tokens of a corpus in another order; more are mapped from the disk


@dataclass(frozen=True)
class Tokens:
    """Token ids of N texts in one flat array: no Python object per text or token.

    ``values`` int32 (total,), ``offsets`` int64 (N + 1,); both may be memory-mapped.
    """

    values: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per text, int64 (N,)."""
        return np.diff(self.offsets)

    def lengths_of(self, rows: np.ndarray) -> np.ndarray:
        """Tokens of the texts at ``rows``, at a cost that does not grow with the other texts."""
        return self.offsets[rows + 1] - self.offsets[rows]

    def take(self, rows: np.ndarray) -> "Tokens":
        """The texts at ``rows``, in that order, as a new copy."""
        return Tokens.chosen([(self, rows)])

    @staticmethod
    def chosen(parts: Sequence[tuple["Tokens", np.ndarray]]) -> "Tokens":
        """The texts at the rows of each part, in this order, as one new copy and no second one."""
        lengths = [np.diff(tokens.offsets)[rows] for tokens, rows in parts]
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
        values = _room(int(offsets[-1]))
        first = 0
        for tokens, rows in parts:
            own = offsets[first : first + len(rows) + 1]
            # the indices of a token take four times its place, so not of all tokens at once
            begin, end = int(own[0]), int(own[-1])
            cuts = np.searchsorted(own, np.arange(begin, end, BLOCK))
            for low, high in pairwise(np.unique(np.append(cuts, len(rows))).tolist()):
                counts = np.diff(own[low : high + 1])
                # position of every token in the input: start of its text + place within it
                shifts = np.repeat(tokens.offsets[rows[low:high]] - own[low:high], counts)
                at = np.arange(int(own[low]), int(own[high])) + shifts
                values[own[low] : own[high]] = tokens.values[at]
            first += len(rows)
        return Tokens(values, offsets)

    def with_texts(self, rows: np.ndarray, texts: "Tokens") -> "Tokens":
        """A copy in which the texts at ``rows``, all different, are ``texts``."""
        order = np.argsort(rows)
        lengths = self.lengths
        lengths[rows] = texts.lengths
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        values = _room(int(offsets[-1]))
        start = 0
        for place in order.tolist():
            row = int(rows[place])
            self._copy(values, offsets, start, row)
            values[offsets[row] : offsets[row + 1]] = texts[place]
            start = row + 1
        self._copy(values, offsets, start, len(self))
        return Tokens(values, offsets)

    def _copy(self, values: np.ndarray, offsets: np.ndarray, start: int, stop: int) -> None:
        own = self.values[self.offsets[start] : self.offsets[stop]]
        values[offsets[start] : offsets[stop]] = own

    def heads(self, length: int) -> "Tokens":
        """The first ``length`` tokens of every text; itself where no text is longer."""
        lengths = np.minimum(self.lengths, length)
        if np.array_equal(lengths, self.lengths):
            return self
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        within = np.arange(offsets[-1], dtype=np.int64) - np.repeat(offsets[:-1], lengths)
        return Tokens(self.values[np.repeat(self.offsets[:-1], lengths) + within], offsets)

    @staticmethod
    def concatenate(parts: Sequence["Tokens"]) -> "Tokens":
        """The texts of all parts, in order."""
        lengths = [part.lengths for part in parts]
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
        return Tokens(np.concatenate([np.asarray(part.values) for part in parts]), offsets)

    @staticmethod
    def of_lengths(values: np.ndarray, lengths: np.ndarray) -> "Tokens":
        """Texts of the given lengths, one behind the other in ``values``."""
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return Tokens(values.astype(np.int32, copy=False), offsets)

    @staticmethod
    def from_lists(lists: Sequence[Sequence[int]]) -> "Tokens":
        """From one sequence of ids per text."""
        lengths = np.fromiter((len(ids) for ids in lists), np.int64, len(lists))
        values = np.fromiter((i for ids in lists for i in ids), np.int32, int(lengths.sum()))
        return Tokens.of_lengths(values, lengths)


def _room(count: int) -> np.ndarray:
    """Room for so many tokens, int32: in memory, or in a file that vanishes with the process."""
    if count <= MOST_IN_MEMORY:
        return np.empty(count, np.int32)
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):  # or a full disk would end the process at a write
            os.posix_fallocate(file.fileno(), 0, 4 * count)
        return np.memmap(file, np.int32, "w+", shape=count)


def train_tokenizer(
    texts: Iterable[str], vocabulary_size: int, drop_punctuation: bool = False
) -> "PreTrainedTokenizerFast":
    """A Unigram tokenizer (Kudo 2018, T5's kind) trained on ``texts``.

    Ids: 0 ``<pad>``, 1 ``</s>``, 2 ``<unk>``, then pieces, then the sentinels of span corruption.
    ``drop_punctuation``: all but letters and digits is read as a space.
    The pieces are found by sentencepiece with one thread: the trainer of ``tokenizers`` adds
    numbers in the order of a hash map, so two equal runs of it differ.
    """
    import sentencepiece
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # not by tokenizers, which knows another version of Unicode: the pieces would be others
    normalized = partial(unicodedata.normalize, "NFKC")
    normalizer: Any = normalizers.NFKC()
    if drop_punctuation:
        spaces = normalizers.Replace(Regex(r"[\W_]+"), " ")
        normalizer = normalizers.Sequence([normalizer, spaces, normalizers.Strip()])
        normalized = normalizer.normalize_str
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(_cut(normalized(text)) for text in texts),
            model_writer=written,
            model_type="unigram",
            vocab_size=vocabulary_size - NUM_SENTINELS,
            character_coverage=0.99995,  # in a small corpus every letter with an accent is rare
            hard_vocab_limit=False,  # a small text has fewer pieces
            num_threads=1,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            pad_piece="<pad>",
            eos_piece="</s>",
            normalization_rule_name="identity",
            max_sentence_length=1 << 20,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(
            "tokenizer.vocabulary_size: no tokenizer can be trained on D_0 with "
            f"{vocabulary_size} ({' '.join(str(error).split())[-120:]}); choose a larger one"
        ) from error
    pieces = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    ids = range(pieces.get_piece_size())
    vocabulary = [(pieces.id_to_piece(i), float(pieces.get_score(i))) for i in ids]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=[f"<extra_id_{i}>" for i in range(NUM_SENTINELS)],
    )


def _cut(text: str) -> str:
    """The text with very long words (base64, DNA) cut into pieces by white space."""
    words = text.split()
    if max(map(len, words), default=0) <= LONGEST_WORD:
        return text
    places = ((word, range(0, len(word), LONGEST_WORD)) for word in words)
    return " ".join(word[i : i + LONGEST_WORD] for word, starts in places for i in starts)


def load_tokenizer(source: str | Path) -> "PreTrainedTokenizerFast":
    """A pretrained fast tokenizer by name or local folder; it must know padding and end of text."""
    from transformers import AutoTokenizer

    try:
        with hub.asked(source):
            tokenizer = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
    except Exception as error:  # of several libraries, with no common base
        first = " ".join(str(error).split())[:300]
        raise UserError(
            f"tokenizer.source: cannot load a tokenizer from {str(source)!r} ({first}); "
            "give a local folder with tokenizer.json, a model name, or 'train'"
        ) from error
    ends = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    if not getattr(tokenizer, "is_fast", False) or None in ends:
        raise UserError(
            f"tokenizer.source: {str(source)!r} is not a fast tokenizer with padding and end-of-"
            "text tokens; use a T5-family tokenizer or 'train'"
        )
    # transformers makes a tokenizer of special tokens alone from a folder that has none
    if set(tokenizer.get_vocab()) <= {*tokenizer.all_special_tokens, "▁"}:
        raise UserError(
            f"tokenizer.source: {str(source)!r} has no vocabulary; add its tokenizer.json, or give "
            "another tokenizer or 'train'"
        )
    # saved with some: they would cut documents and pad prompts
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerFast") -> str:
    """A hash of everything that decides how text becomes ids."""
    return text_hash(tokenizer.backend_tokenizer.to_str())


def batches(items: Iterable[str], size: int = BATCH) -> Iterator[list[str]]:
    """Consecutive lists of at most ``size`` items."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def tokenize(tokenizer: "PreTrainedTokenizerFast", texts: Iterable[str]) -> Tokens:
    """Token ids of every text, without special tokens.

    Texts without any token (only characters that the normaliser drops) become one unknown token,
    so that no example is empty.
    """
    return Tokens.concatenate([Tokens.from_lists([]), *_tokenized(tokenizer, texts)])


def prompt_ids(
    tokenizer: "PreTrainedTokenizerFast", prompt: str, where: str = "prompt"
) -> np.ndarray:
    """A task prompt as token ids, int32; ``where``: what an error calls it."""
    ids = tokenizer.backend_tokenizer.encode(prompt, add_special_tokens=False).ids if prompt else []
    if len(ids) > LONGEST_QUERY:
        what = f"{len(ids)} tokens, at most {LONGEST_QUERY} are read"
        raise UserError(f"{where}: {what}; write a shorter one")
    return np.asarray(ids, np.int32)


def _tokenized(tokenizer: "PreTrainedTokenizerFast", texts: Iterable[str]) -> Iterator[Tokens]:
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    unknown = tokenizer.unk_token_id
    unknown = unknown if isinstance(unknown, int) else 0
    for batch in batches(texts):
        encoded = backend.encode_batch_fast(batch, add_special_tokens=False)
        ids: list[list[int]] = [e.ids or [unknown] for e in encoded]
        yield Tokens.from_lists(ids)


def cached_tokenize(
    tokenizer: "PreTrainedTokenizerFast",
    texts: Iterable[str],
    content: str,
    cache: Path | None = None,
) -> Tokens:
    """:func:`tokenize`, kept on disk and memory-mapped.

    ``content`` identifies the texts (content hash and text options); with the tokenizer's
    fingerprint it names the cache entry, so neither a changed corpus nor another tokenizer can
    be served stale ids.
    """
    name = text_hash(f"{content}:{tokenizer_fingerprint(tokenizer)}")
    folder = (cache or cache_folder()) / "tokens" / name
    kept = _kept_tokens(folder)
    if kept is None:

        def write(target: Path) -> None:
            lengths = _write_values(target / "values.npy", _tokenized(tokenizer, texts))
            offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
            np.save(target / "offsets.npy", offsets, allow_pickle=False)
            (target / "complete.json").write_text(json.dumps({"texts": len(lengths)}))

        replace_atomically(folder, write)
        kept = _kept_tokens(folder)
    if kept is None:
        raise UserError(f"{folder}: damaged and cannot be replaced; remove it or set DSI_CACHE")
    return kept


def _kept_tokens(folder: Path) -> Tokens | None:
    """An entry of the cache; None where it is absent or not what was written."""
    if not (folder / "complete.json").exists():
        return None
    try:
        values = np.load(folder / "values.npy", mmap_mode="r", allow_pickle=False)
        offsets = np.load(folder / "offsets.npy", allow_pickle=False)
        is_whole = values.dtype == np.int32 and offsets.dtype == np.int64
        is_whole = is_whole and offsets[0] == 0 and offsets[-1] == len(values)
        return Tokens(values, offsets) if is_whole and (np.diff(offsets) > 0).all() else None
    except (OSError, ValueError, EOFError, LookupError, AttributeError):
        return None


def _write_values(path: Path, parts: Iterable[Tokens]) -> np.ndarray:
    """The tokens of all parts as one .npy file, one part in memory at a time; lengths (N,)."""
    lengths, total = [np.zeros(0, np.int64)], 0
    header: dict[str, Any] = {"descr": "<i4", "fortran_order": False}
    with open(path, "wb") as file:
        # numpy leaves room in the header for a longer number: it is written twice, at equal length
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (total,)})
        for part in parts:
            file.write(part.values.astype("<i4", copy=False).tobytes())
            lengths.append(part.lengths)
            total += len(part.values)
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (total,)})
    return np.concatenate(lengths)


os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers fork; threads of ours suffice


def padded(
    tokens: Tokens, rows: np.ndarray, pad: int, multiple: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Ids int64 (B, L) and a boolean mask (B, L) of the texts at ``rows``."""
    lengths = tokens.lengths_of(rows)
    columns = np.arange(-(-int(lengths.max()) // multiple) * multiple)
    mask = columns < lengths[:, None]
    positions = np.where(mask, tokens.offsets[rows][:, None] + columns, 0)
    return np.where(mask, tokens.values[positions], pad).astype(np.int64), mask


def padded_tensors(
    tokens: Tokens,
    rows: np.ndarray,
    pad: int,
    device: "torch.device | str | None" = None,
    multiple: int = 1,
) -> "tuple[torch.Tensor, torch.Tensor]":
    """What a model reads of the texts at ``rows``: ids and attention mask, int64 (B, L)."""
    import torch  # only what runs a model needs it

    ids, mask = padded(tokens, rows, pad, multiple)
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask.astype(np.int64)).to(device)


def pad_id(tokenizer: Any) -> int:
    """The id of padding; 0 for a tokenizer that has none, since a mask hides padding anyway."""
    return tokenizer.pad_token_id or 0


def slices(
    tokens: Tokens,
    starts: np.ndarray,
    lengths: np.ndarray,
    prompt: np.ndarray | None = None,
) -> Tokens:
    """Spans of the flat token array as texts of their own, each behind ``prompt``."""
    extra = 0 if prompt is None else len(prompt)
    offsets = np.concatenate([[0], np.cumsum(lengths + extra)]).astype(np.int64)
    within = np.arange(offsets[-1], dtype=np.int64) - np.repeat(offsets[:-1], lengths + extra)
    body = np.maximum(within - extra, 0) + np.repeat(starts, lengths + extra)
    values = tokens.values[body]
    if prompt is not None and extra:
        values = np.where(within < extra, prompt[np.minimum(within, extra - 1)], values)
    return Tokens(values.astype(np.int32), offsets)
