"""How good pseudo-queries are, without training a retriever on them.

Round trip (Alberti et al. 2019; Dai et al. 2023, Promptagator): a query is of use if a plain
search engine, here BM25, returns the document that it was written for.

Legend: Q queries, N documents.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from dsi.queries.lexical import WORD
from dsi.seeding import numpy_rng
from dsi.text.views import STOP_WORDS, has_words

CONTENT_SHARE = 0.1  # a word in more of the documents than this is no content word
SNIPPET = 300  # characters of a document in an example


def bm25_ranks(
    queries: Sequence[str], gold: np.ndarray, texts: Iterable[str], k: int
) -> np.ndarray:
    """1-based rank of document ``gold[q]`` for query q, int64 (Q,); 0 if not among the first k.

    BM25 as in Lucene with k1 0.9, b 0.4 (Anserini's values), lower case, no stemming, no stop list.
    Texts without any word (see :func:`dsi.text.views.has_words`) are found by no query.
    """
    import bm25s

    gold = np.asarray(gold, dtype=np.int64)
    if len(queries) != len(gold):
        raise ValueError(f"{len(queries)} queries and {len(gold)} gold documents")
    texts = list(texts)
    ranks = np.zeros(len(queries), dtype=np.int64)
    if not has_words(texts):
        return ranks
    index = bm25s.BM25(method="lucene", k1=0.9, b=0.4)
    index.index(bm25s.tokenize(texts, stopwords=[], show_progress=False), show_progress=False)
    for start in range(0, len(queries), 1000):  # bounds the memory of one call
        batch = list(queries[start : start + 1000])
        words = bm25s.tokenize(batch, stopwords=[], return_ids=False, show_progress=False)
        found, scores = index.retrieve(words, k=min(k, len(texts)), show_progress=False)
        hit = (found == gold[start : start + 1000, None]) & (scores > 0)
        ranks[start : start + 1000] = np.where(hit.any(1), hit.argmax(1) + 1, 0)
    return ranks


def measure(
    queries: Sequence[Sequence[str]],
    texts: Sequence[str],
    rows: Sequence[int] | None = None,
    *,
    seed: int = 0,
    sample: int = 2000,
    examples: int = 20,
) -> dict[str, Any]:
    """Describes pseudo-queries: ``queries[i]`` were written for ``texts[rows[i]]`` (default i).

    - ``queries``, ``queries_per_document``, ``mean_words``;
    - ``bm25_at_1``, ``bm25_at_10``: share of the queries whose document BM25 returns at 1 and
      within 10 among all ``texts`` (of ``sample`` seeded queries if there are more);
    - ``distinct_1``, ``distinct_2``: different words (pairs) / words (pairs) within the queries of
      one document, mean over documents (Li et al. 2016): 1 = no word is used twice;
    - ``copied``: share of the queries' content words that occur in the document; a content word is
      no English stop word and in at most 10 % of the texts (or in a single one);
    - ``examples``: [{"document": snippet, "queries": [...]}] of seeded documents.

    None where there is nothing to average (or no text has a word that BM25 could find), so that the
    result is JSON.
    """
    rows = list(range(len(queries))) if rows is None else [int(row) for row in rows]
    assert len(rows) == len(queries)
    flat = [(query, row) for own, row in zip(queries, rows, strict=True) for query in own]
    rng = numpy_rng(seed, "memory-quality")
    asked = flat
    if len(flat) > sample:
        asked = [flat[int(i)] for i in np.sort(rng.choice(len(flat), sample, replace=False))]
    ranks = np.zeros(0, dtype=np.int64)
    if asked and has_words(texts):
        gold = np.array([row for _, row in asked])
        ranks = bm25_ranks([query for query, _ in asked], gold, texts, 10)
    shown = [int(i) for i in rng.permutation(len(queries))[:examples]]
    words = [[_words(query) for query in own] for own in queries]
    return {
        "queries": len(flat),
        "queries_per_document": len(flat) / len(queries) if queries else None,
        "mean_words": _mean([len(query) for own in words for query in own]),
        "bm25_at_1": _mean(ranks == 1),
        "bm25_at_10": _mean(ranks >= 1),
        "distinct_1": _mean([_distinct(own, 1) for own in words if any(own)]),
        "distinct_2": _mean([_distinct(own, 2) for own in words if any(len(q) > 1 for q in own)]),
        "copied": _copied(words, texts, rows),
        "examples": [
            {"document": texts[rows[i]][:SNIPPET], "queries": list(queries[i])} for i in shown
        ],
    }


def _copied(
    words: list[list[list[str]]], texts: Sequence[str], rows: Sequence[int]
) -> float | None:
    needed = {word for own in words for query in own for word in query}
    frequency: Counter[str] = Counter()
    for text in texts:
        frequency.update(needed.intersection(_words(text)))
    limit = max(1, CONTENT_SHARE * len(texts))

    def is_content(word: str) -> bool:
        return frequency[word] <= limit and word not in STOP_WORDS

    copied = total = 0
    for own, row in zip(words, rows, strict=True):
        vocabulary = set(_words(texts[row])) if own else set()
        content = [word for query in own for word in query if is_content(word)]
        total += len(content)
        copied += sum(word in vocabulary for word in content)
    return copied / total if total else None


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def _distinct(queries: list[list[str]], n: int) -> float:
    grams = [tuple(q[i : i + n]) for q in queries for i in range(len(q) - n + 1)]
    return len(set(grams)) / len(grams)


def _mean(values: Any) -> float | None:
    values = np.asarray(values, dtype=np.float64)
    return float(values.mean()) if values.size else None
