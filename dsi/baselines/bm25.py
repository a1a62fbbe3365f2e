"""BM25: the standard ranking by words, without training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsi.baselines._base import Baseline
from dsi.settings import NotNegative, Settings, Share
from dsi.text.views import has_words

BATCH = 1000  # queries answered at once, which bounds the memory of a call


class BM25(Baseline):
    """Okapi BM25 as in Lucene, by bm25s; the whole index is made anew when documents have changed.

    Source: Robertson and Zaragoza (2009); the constants are Anserini's. Words are lower-cased runs
    of letters and digits, without stemming or a stop list. Documents without any word of a query
    are no results of it; equal scores are in the order of arrival.
    """

    @dataclass(frozen=True)
    class Config(Settings):
        """Settings."""

        k1: NotNegative = 0.9
        """How much repeated occurrences of a word add; 0: nothing."""
        b: Share = 0.4
        """How far scores are normalised by the length of a document; 0: not at all, 1: fully."""

    def __init__(self, config: Any = None):
        super().__init__(config)
        self._texts: dict[int, str] = {}
        self._index: Any = None

    def add(self, documents: np.ndarray, texts: Sequence[str]) -> None:
        """Take in texts, or new ones of documents that are there."""
        self._texts.update(zip(documents.tolist(), texts, strict=True))
        self._index = None

    def remove(self, documents: np.ndarray) -> None:
        """Forget texts."""
        for number in documents.tolist():
            del self._texts[number]
        self._index = None

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best documents of each query."""
        import bm25s

        numbers_QK = np.full((len(queries), k), -1, np.int64)
        scores_QK = np.full((len(queries), k), -np.inf, np.float32)
        numbers_N, texts = np.array([*self._texts], np.int64), [*self._texts.values()]
        if not has_words(texts):
            return numbers_QK, scores_QK
        if self._index is None:
            self._index = bm25s.BM25(method="lucene", k1=self.config.k1, b=self.config.b)
            words = bm25s.tokenize(texts, stopwords=[], show_progress=False)
            self._index.index(words, show_progress=False)
        width = min(k, len(texts))
        for start in range(0, len(queries), BATCH):
            asked = list(queries[start : start + BATCH])
            words = bm25s.tokenize(asked, stopwords=[], return_ids=False, show_progress=False)
            found, scores = self._index.retrieve(words, k=width, show_progress=False)
            numbers = np.where(scores > 0, numbers_N[found], -1)
            scores = np.where(scores > 0, scores, -np.inf)
            order = np.lexsort((numbers, -scores), axis=1)
            rows = slice(start, start + len(asked))
            numbers_QK[rows, :width] = np.take_along_axis(numbers, order, 1)
            scores_QK[rows, :width] = np.take_along_axis(scores, order, 1)
        return numbers_QK, scores_QK
