"""What every docid scheme has in common: the assignment so far, and how it is written.

Shape legend: N documents, T docid length, M documents of one extension, D width of an embedding.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dsi.errors import UserError
from dsi.files import whole_lines

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_DOCID = re.compile("[0-9]{1,9}(-[0-9]{1,9})*")  # nine digits fit int32


def _missing(what: str) -> Callable[[], Any]:
    def fail() -> Any:
        raise ValueError(f"this docid scheme reads the documents' {what}, but none were given")

    return fail


@dataclass(frozen=True)
class NewDocuments:
    """New documents for :meth:`Scheme.extend`, in order of arrival.

    What costs something is a function, called only by the schemes that read it. ``embeddings()``
    is float32 (M, D), unit length, from the same space at every call of a run.
    """

    count: int
    titles: Callable[[], list[str]] = _missing("titles")
    texts: Callable[[], Iterator[str]] = _missing("texts")
    embeddings: Callable[[], np.ndarray] = _missing("embeddings")
    tokenizer: "PreTrainedTokenizerFast | None" = None
    seed: int = 0


class Scheme:
    """Base of the schemes: keeps the codes of all documents and never changes one.

    A subclass gives :meth:`assign`, and :meth:`state_dict` / :meth:`load_state_dict` if it has
    more state than the codes (centroids, say).
    """

    atomic: ClassVar[bool] = False
    """Whether document number i has the one code i, so that one step ranks all documents."""
    shared: ClassVar[bool] = False
    """Whether all positions read and write one table of codes (text) instead of one each."""
    suffix: ClassVar[bool] = False
    """Whether the last code tells apart documents that would have the same docid (collisions)."""

    Config: ClassVar[Any]

    def __init__(self, config: Any = None):
        self.config = config or self.Config()
        self.codes_NT = np.zeros((0, 1), np.int32)

    def __len__(self) -> int:
        return len(self.codes_NT)

    @property
    def code_sizes(self) -> list[int]:
        """Codes per position so far; they only grow. A shared table: the same number everywhere."""
        if not len(self.codes_NT):
            return [1] * self.codes_NT.shape[1]
        return (self.codes_NT.max(0) + 1).tolist()

    def assign(self, documents: NewDocuments) -> np.ndarray:
        """Codes (M, T) of new documents, -1 after the end of a docid."""
        raise NotImplementedError

    def extend(self, documents: NewDocuments) -> np.ndarray:
        """Codes int32 (M, T) of new documents, appended; no code of an old one changes."""
        new = self.assign(documents).astype(np.int32)
        self.restore(stack_codes([self.codes_NT, new]))
        return new

    def restore(self, codes_NT: np.ndarray) -> None:
        """Take over an assignment that was written before."""
        self.codes_NT = codes_NT

    def state_dict(self) -> dict[str, np.ndarray]:
        """What extending needs beyond the codes, as arrays."""
        return {}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """The inverse of :meth:`state_dict`."""

    def readable(self, codes_T: np.ndarray, tokenizer: "PreTrainedTokenizerFast") -> str:
        """The docid as a person would write it."""
        return codes_to_text(codes_T[None])[0]


def stack_codes(parts: list[np.ndarray]) -> np.ndarray:
    """The rows of all parts, int32, padded with -1 to the longest docid; empty parts are left out.

    No column is all padding.
    """
    parts = [part for part in parts if len(part)] or parts[:1]
    width = max(part.shape[1] for part in parts)
    stacked = np.full((sum(len(part) for part in parts), width), -1, np.int32)
    start = 0
    for part in parts:
        stacked[start : start + len(part), : part.shape[1]] = part
        start += len(part)
    used = np.flatnonzero((stacked >= 0).any(0))
    return stacked[:, : int(used[-1]) + 1] if len(used) else stacked[:, :1]


def codes_to_text(codes_NT: np.ndarray) -> list[str]:
    """Docids as they are written to files: code numbers joined by hyphens."""
    return ["-".join(str(code) for code in row if code >= 0) for row in codes_NT.tolist()]


def read_docids(path: Path) -> tuple[list[str], list[str]]:
    """Document ids and docids of a file of lines "document id, tab, docid"; UserError otherwise."""
    try:
        lines = whole_lines(path, path.read_bytes())
    except FileNotFoundError as error:
        text = "missing, and docids are never made again; restore the file"
        raise UserError(f"{path}: {text}") from error
    except OSError as error:
        what = f"cannot be read ({error.strerror or error})"
        raise UserError(f"{path}: {what}; docids are never made again, restore the file") from error
    ids, docids = [], []
    for number, line in enumerate(lines, start=1):
        document, tab, docid = line.partition("\t")
        if not (document and tab):
            what = "not a document id, a tab and a docid"
            raise UserError(f"{path}:{number}: {what}; restore the file")
        if not _DOCID.fullmatch(docid):
            raise UserError(f"{path}: not a docid on line {number}; restore the file")
        ids.append(document)
        docids.append(docid)
    if not ids:
        raise UserError(f"{path}: no documents; restore the file")
    return ids, docids


def codes_from_text(lines: list[str]) -> np.ndarray:
    """The inverse of :func:`codes_to_text`: int32 (N, T), -1 after the end.

    ValueError, which quotes it, for a line that is not a docid.
    """
    for line in lines:
        if not _DOCID.fullmatch(line):
            raise ValueError(f"{line[:80]!r} is not a docid; write code numbers joined by hyphens")
    lengths = np.fromiter((line.count("-") + 1 for line in lines), np.int64, len(lines))
    codes_NT = np.full((len(lines), int(lengths.max(initial=1))), -1, np.int32)
    flat = np.fromstring(" ".join(lines).replace("-", " "), np.int32, sep=" ")
    codes_NT[np.arange(codes_NT.shape[1]) < lengths[:, None]] = flat
    return codes_NT
