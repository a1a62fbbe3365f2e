"""What baselines that rank texts by their words have in common.

Shape legend: Q queries, K results, N documents.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dsi.baselines._base import Baseline
from dsi.text.views import has_words

BATCH = 1000  # queries answered at once, which bounds the memory of a call


class TextBaseline(Baseline):
    """Keeps the texts; its whole index is made anew when documents have changed.

    A member is ``_index`` and ``_best``. Scores of 0 and below are no results; equal scores are in
    the order of arrival.
    """

    def __init__(self, config: Any = None):
        super().__init__(config)
        self._texts: dict[int, str] = {}
        self._is_current = False

    def add(self, documents: np.ndarray, texts: Sequence[str]) -> None:
        """Take in texts, or new ones of documents that are there."""
        self._texts.update(zip(documents.tolist(), texts, strict=True))
        self._is_current = False

    def remove(self, documents: np.ndarray) -> None:
        """Forget texts."""
        for number in documents.tolist():
            del self._texts[number]
        self._is_current = False

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best documents of each query."""
        numbers_QK = np.full((len(queries), k), -1, np.int64)
        scores_QK = np.full((len(queries), k), -np.inf, np.float32)
        numbers_N, texts = np.array([*self._texts], np.int64), [*self._texts.values()]
        if not has_words(texts):
            return numbers_QK, scores_QK
        if not self._is_current:
            self._index(texts)
            self._is_current = True
        width = min(k, len(texts))
        for start in range(0, len(queries), BATCH):
            asked = list(queries[start : start + BATCH])
            found, scores = self._best(asked, width)
            numbers = np.where(scores > 0, numbers_N[found], -1)
            scores = np.where(scores > 0, scores, -np.inf)
            order = np.lexsort((numbers, -scores), axis=1)
            rows = slice(start, start + len(asked))
            numbers_QK[rows, :width] = np.take_along_axis(numbers, order, 1)
            scores_QK[rows, :width] = np.take_along_axis(scores, order, 1)
        return numbers_QK, scores_QK

    def _index(self, texts: list[str]) -> None:
        """Make the index of all texts there are; one of them has a word."""
        raise NotImplementedError

    def _best(self, queries: list[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Places of the k best in the texts of the index, (Q, K), and their scores (Q, K)."""
        raise NotImplementedError
