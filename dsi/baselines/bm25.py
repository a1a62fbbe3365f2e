"""BM25: the standard ranking by words, without training."""

from dataclasses import dataclass

import numpy as np

from dsi.baselines._texts import TextBaseline
from dsi.settings import NotNegative, Settings, Share


class BM25(TextBaseline):
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

    def _index(self, texts: list[str]) -> None:
        import bm25s

        self._scorer = bm25s.BM25(method="lucene", k1=self.config.k1, b=self.config.b)
        words = bm25s.tokenize(texts, stopwords=[], show_progress=False)
        self._scorer.index(words, show_progress=False)

    def _best(self, queries: list[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        import bm25s

        words = bm25s.tokenize(queries, stopwords=[], return_ids=False, show_progress=False)
        found, scores = self._scorer.retrieve(words, k=k, show_progress=False)
        return found, scores
