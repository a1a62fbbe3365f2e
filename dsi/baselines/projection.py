"""TF-IDF in a model's width: what as many numbers per document can hold without learning.

Shape legend: Q queries, K results, N documents, V words of their texts, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Le

from dsi.baselines._texts import TextBaseline
from dsi.seeding import numpy_rng
from dsi.settings import Settings
from dsi.text.views import has_words

WORDS = 8192  # whose directions are multiplied at once, and
KEPT = 65_536  # are kept: beyond that they are drawn again
SCORES = 20_000_000  # that are in memory at a time
WEIGHTS: dict[str, Any] = {"sublinear_tf": True, "dtype": np.float32}


class Projection(TextBaseline):
    """Cosine of TF-IDF vectors of words, each projected at random to ``width`` numbers.

    Words are those of BM25, lower-cased runs of letters and digits; weights are scikit-learn's, (1
    + log of the count) times a smoothed inverse document frequency, and every text has unit length.
    A random projection keeps angles to about 1 / sqrt(width) (Johnson and Lindenstrauss 1984;
    Dasgupta and Gupta 2003). Document frequencies are those of D_0, the first documents that are
    added, and a word's direction follows from the word and the run's seed: nothing that comes later
    moves an old document. A word that D_0 has not has the largest weight. Words of a query that no
    document has count for nothing.
    """

    @dataclass(frozen=True)
    class Config(Settings):
        """Settings."""

        width: Annotated[int, Ge(1), Le(2**16)] | None = 1024
        """Numbers per document; null: no projection, TF-IDF itself."""

    def __init__(self, config: Any = None):
        super().__init__(config)
        self._first: tuple[int, dict[str, int]] | None = None

    def add(self, documents: np.ndarray, texts: Sequence[str]) -> None:
        """Take in texts; the first ones say how frequent words are."""
        super().add(documents, texts)
        if self._first is None and len(texts):
            self._first = len(texts), _document_frequencies(texts)

    def _index(self, texts: list[str]) -> None:
        from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

        assert self._first is not None
        count, frequencies = self._first
        words = CountVectorizer().fit(texts).get_feature_names_out().tolist()
        found = np.array([frequencies.get(word, 0) for word in words])
        self._words = np.array(words, dtype=object)
        self._weights = TfidfVectorizer(vocabulary=words, **WEIGHTS)
        self._weights.idf_ = np.log((1 + count) / (1 + found)) + 1
        self._vectors_ND = self._vectors(texts)

    def _best(self, queries: list[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        vectors_QD, parts = self._vectors(queries), []
        size = max(1, SCORES // self._vectors_ND.shape[0])
        for start in range(0, len(queries), size):
            scores = vectors_QD[start : start + size] @ self._vectors_ND.T
            scores = scores if self.config.width else scores.toarray()
            found = np.argpartition(-scores, k - 1, axis=1)[:, :k]
            parts.append((found, np.take_along_axis(scores, found, 1)))
        places, scores = zip(*parts, strict=True)
        return np.concatenate(places), np.concatenate(scores)

    def _vectors(self, texts: list[str]) -> Any:
        """Of unit length, or zero where a text has no known word: (N, D), or sparse (N, V)."""
        from sklearn.preprocessing import normalize

        weights_NV: Any = self._weights.transform(texts)
        width = self.config.width
        if width is None:
            return weights_NV
        used, columns = np.unique(weights_NV.indices), weights_NV.tocsc()
        vectors_ND = np.zeros((len(texts), width), np.float32)
        for start in range(0, len(used), WORDS):
            own = used[start : start + WORDS]
            directions = [_direction(self.seed, word, width) for word in self._words[own]]
            vectors_ND += columns[:, own] @ np.stack(directions)
        return normalize(vectors_ND, copy=False)


def _document_frequencies(texts: Sequence[str]) -> dict[str, int]:
    """In how many texts each word is."""
    from sklearn.feature_extraction.text import CountVectorizer

    if not has_words(texts):
        return {}
    counter = CountVectorizer(binary=True)
    counts_NV: Any = counter.fit_transform(texts)
    found = np.asarray(counts_NV.sum(0)).ravel().tolist()
    return dict(zip(counter.get_feature_names_out().tolist(), found, strict=True))


@lru_cache(KEPT)
def _direction(seed: int, word: str, width: int) -> np.ndarray:
    """Of a word, (D,): normal numbers that depend on nothing else."""
    return numpy_rng(seed, "projection", word).standard_normal(width, np.float32)
