"""Retriever: what a baseline must be able to do to fill a row of the performance matrix."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


class Retriever(Protocol):
    """Documents in and out, queries answered. Documents are known by number.

    Shape legend: Q queries, K results.
    """

    seed: int
    """The run's: set before the first document comes."""

    def add(self, documents: np.ndarray, texts: Sequence[str]) -> None:
        """Index documents; one that is there already has a new text."""
        ...

    def remove(self, documents: np.ndarray) -> None:
        """Never find these again."""
        ...

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Document numbers int64 (Q, K) and scores float32 (Q, K), best first; -1 and -inf behind
        the last result of a query that has fewer than K."""
        ...


class Baseline:
    """No baseline: the run trains a model.

    A member is a :class:`Retriever`. It sees the texts of the documents as the model
    reads them (``data.title``, ``data.lowercase``).
    """

    @dataclass(frozen=True)
    class Config:
        """No settings."""

    seed: int = 0
    """See :class:`Retriever`."""

    def __init__(self, config: Any = None):
        self.config: Any = config if config is not None else self.Config()

    def add(self, documents: np.ndarray, texts: Sequence[str]) -> None:
        """See :class:`Retriever`."""
        raise NotImplementedError

    def remove(self, documents: np.ndarray) -> None:
        """See :class:`Retriever`."""
        raise NotImplementedError

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`Retriever`."""
        raise NotImplementedError
