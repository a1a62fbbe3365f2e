"""Atomic docids: one code per document (DSI section 3.2, "unstructured atomic identifiers")."""

from dataclasses import dataclass

import numpy as np


class Atomic:
    """Document number i (in order of arrival) has the one code i; one decoding step ranks all."""

    @dataclass(frozen=True)
    class Config:
        """Atomic docids have no settings."""

    def __init__(self, config: Config | None = None):
        self.config = config or self.Config()
        self.codes_NT = np.zeros((0, 1), np.int64)

    @property
    def code_sizes(self) -> list[int]:
        """Codes per position: one position, as many codes as documents."""
        return [len(self.codes_NT)]

    def extend(self, count: int) -> np.ndarray:
        """Assign the next ``count`` documents; returns their codes (count, 1)."""
        start = len(self.codes_NT)
        new = np.arange(start, start + count, dtype=np.int64)[:, None]
        self.codes_NT = np.concatenate([self.codes_NT, new])
        return new

    def restore(self, codes_NT: np.ndarray) -> None:
        """Take over an assignment that was written before."""
        self.codes_NT = codes_NT

    @staticmethod
    def to_text(codes_T: np.ndarray) -> str:
        """The docid as written to files: the number."""
        return str(int(codes_T[0]))

    @staticmethod
    def from_text(text: str) -> list[int]:
        """The inverse of :meth:`to_text`."""
        return [int(text)]
