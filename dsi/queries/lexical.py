"""LexicalQueries: pseudo-queries cut out of the document itself, with nothing to train.

Spans of consecutive words are the queries of the inverse cloze task (ICT; Lee et al. 2019, "Latent
Retrieval for Weakly Supervised Open Domain Question Answering"; Chang et al. 2020), salient terms
imitate keyword queries.
"""

import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dsi.errors import UserError
from dsi.seeding import numpy_rng
from dsi.settings import Count, Settings, Share

BUCKETS = (
    2**20
)  # of the document frequency table: 4 MB whatever the corpus; collisions are harmless
ROUNDS = 3  # a document that repeats itself is asked again, at most so often
LONGEST = 2_000  # characters of a query, for words without end (base64, text without spaces)
MIN_IDF = 1e-3  # a word of every document is drawn only when nothing else is left
WORD = re.compile(r"\w+(?:['\u2019\-]\w+)*")
EDGES = re.compile(r"^[^\w]+|[^\w]+$")


class LexicalQueries:
    """document -> spans and keyword lists of it.

    Words are what white space separates: segment Chinese, Japanese or Thai text first.
    """

    @dataclass(frozen=True)
    class Config(Settings):
        """Lengths in words, both ends included; a length is uniform between them."""

        share_terms: Share = 0.3
        """Probability that a query is a list of terms rather than a span."""
        span_min: Count = 3
        """Shortest span; a shorter document is taken whole."""
        span_max: Count = 16
        """Longest span."""
        terms_min: Count = 3
        """Fewest terms."""
        terms_max: Count = 8
        """Most terms."""

        def __post_init__(self) -> None:
            super().__post_init__()
            for kind in ("span", "terms"):
                least, most = getattr(self, f"{kind}_min"), getattr(self, f"{kind}_max")
                if least > most:
                    raise UserError(f"{kind}_min: must be at most {kind}_max={most}, got {least}")

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or self.Config()
        self.documents = 0
        self.frequency = np.zeros(BUCKETS, dtype=np.uint32)

    def fit(self, texts: Iterable[str]) -> "LexicalQueries":
        """Counts in how many documents each word occurs; call again to add another corpus."""
        for text in texts:
            buckets = {_bucket(word) for word in WORD.findall(text.lower())}
            self.frequency[np.fromiter(buckets, np.int64, len(buckets))] += 1
            self.documents += 1
        return self

    def generate(
        self,
        texts: Sequence[str],
        keys: Sequence[str],
        count: int,
        seed: int,
        *,
        accelerator: Any = None,
        progress: bool = False,
    ) -> list[list[str]]:
        """Up to ``count`` different queries per document, drawn from (seed, key) alone.

        A repeat is drawn again a bounded number of times: a document of a few words has fewer.
        """
        if len(texts) != len(keys):
            raise ValueError(f"{len(texts)} texts and {len(keys)} keys")
        if self.documents == 0 and self.config.share_terms > 0:
            raise ValueError("call fit(texts) first: salient terms need document frequencies")
        return [
            self._one(text, count, numpy_rng(seed, "lexical-queries", key))
            for text, key in zip(texts, keys, strict=True)
        ]

    def fingerprint(self) -> str:
        """sha256 over configuration and document frequencies."""
        digest = hashlib.sha256(json.dumps(asdict(self.config), sort_keys=True).encode())
        digest.update(f"{self.documents}".encode())
        digest.update(self.frequency.astype("<u4").tobytes())
        return digest.hexdigest()

    def _one(self, text: str, count: int, rng: np.random.Generator) -> list[str]:
        config = self.config
        words = text.split()
        if not words or count < 1:
            return []
        terms, weights = self._terms(text) if config.share_terms > 0 else ([], np.zeros(0))
        found: dict[str, str] = {}  # lower case -> query
        for _ in range(ROUNDS):
            are_terms = rng.random(count) < config.share_terms
            lengths = rng.integers(config.span_min, config.span_max + 1, size=count)
            starts = rng.random(count)
            sizes = rng.integers(config.terms_min, config.terms_max + 1, size=count)
            if len(terms):
                # the smallest of independent exponential times with these rates are a weighted
                # draw without replacement (Efraimidis & Spirakis 2006)
                times = rng.exponential(size=(count, len(terms))) / weights
                ranking = times.argsort(axis=1)
            for i in range(count):
                if are_terms[i] and len(terms):
                    query = " ".join(terms[j] for j in np.sort(ranking[i, : sizes[i]]))[:LONGEST]
                else:
                    length = min(int(lengths[i]), len(words))
                    start = int(starts[i] * (len(words) - length + 1))
                    query = EDGES.sub("", " ".join(words[start : start + length])[:LONGEST])
                if query:
                    found.setdefault(query.lower(), query)
                if len(found) == count:
                    return list(found.values())
        return list(found.values())

    def _terms(self, text: str) -> tuple[list[str], np.ndarray]:
        """The distinct words in document order, as first written, and their tf-idf."""
        first: dict[str, str] = {}
        counts: dict[str, int] = {}
        for word in WORD.findall(text):
            lower = word.lower()
            first.setdefault(lower, word)
            counts[lower] = counts.get(lower, 0) + 1
        buckets = np.fromiter(map(_bucket, first), np.int64, len(first))
        idf = np.log((self.documents + 1) / (self.frequency[buckets] + 1.0))
        tf = np.fromiter((counts[word] for word in first), np.float64, len(first))
        return list(first.values()), tf * np.maximum(idf, MIN_IDF)


def _bucket(word: str) -> int:
    return zlib.crc32(word.encode("utf-8", "surrogatepass")) % BUCKETS
