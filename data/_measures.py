"""What the checker measures: near-duplicates, word overlap, and how far BM25 gets."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

_STOP_WORDS = """
a about after all also an and any are as at be because been before being between but by can could
did do does during each for from get got had has have he her him his how i if in into is it its many
may me might more most much must my no not of off on one only or other our out over own same shall
she should so some such than that the their them then there these they this those through to two
under up us use used very was we were what when where which while who whom whose why will with would
you your
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
_ENDINGS = ("edly", "ing", "ed", "ies", "es", "ly", "s")


def words(text: str) -> list[str]:
    """The words of a text in lower case; an apostrophe belongs to its word."""
    return re.findall(r"[^\W_]+(?:['’][^\W_]+)*", text.lower())


def content_words(text: str) -> set[str]:
    """The words that carry meaning, without stop words and common English endings."""
    return {_stem(word) for word in words(text) if word not in STOP_WORDS}


def overlap(question: str, passage: str) -> float:
    """The share of the question's content words that stand in the passage; 0 without any."""
    asked = content_words(question)
    return len(asked & content_words(passage)) / len(asked) if asked else 0.0


def shingles(text: str, size: int = 5) -> set[str]:
    """The runs of ``size`` words of a text; a shorter text is one shingle."""
    found = words(text)
    return {" ".join(found[n : n + size]) for n in range(max(1, len(found) - size + 1))}


def near_duplicates(texts: Sequence[str], threshold: float) -> list[tuple[float, int, int]]:
    """Jaccard similarity and rows of the pairs that share at least ``threshold`` of their shingles.

    Most similar first. An inverted index compares only texts with a shingle in common.
    """
    sets = [shingles(text) for text in texts]
    rows: dict[str, list[int]] = defaultdict(list)
    found = []
    for row, own in enumerate(sets):
        shared = Counter(other for shingle in own for other in rows[shingle])
        for other, count in shared.items():
            jaccard = count / (len(own) + len(sets[other]) - count)
            if jaccard >= threshold:
                found.append((jaccard, other, row))
        for shingle in own:
            rows[shingle].append(row)
    return sorted(found, reverse=True)


def bm25_hits(
    texts: Sequence[str], questions: Sequence[str], gold: Sequence[set[int]]
) -> tuple[float, float]:
    """Hits@1 and Hits@10 of BM25 (k1 0.9, b 0.4), without stop words or stemming.

    ``gold`` holds the rows of the right texts for each question.
    """
    import bm25s

    found = [words(text) for text in texts]
    if not any(found):  # which bm25s cannot index
        return 0.0, 0.0
    index = bm25s.BM25(k1=0.9, b=0.4)
    index.index(found, show_progress=False)
    depth = min(10, len(texts))
    known = set(index.vocab_dict)
    hits = {1: 0, 10: 0}
    for question, right in zip(questions, gold, strict=True):
        asked = [word for word in words(question) if word in known]
        if not asked:
            continue
        rows, scores = index.retrieve([asked], k=depth, show_progress=False)
        ranked = [int(row) for row, score in zip(rows[0], scores[0], strict=True) if score > 0]
        for k in hits:
            hits[k] += bool(right & set(ranked[:k]))
    return hits[1] / len(questions), hits[10] / len(questions)


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)]
            break
    return word.removesuffix("e")  # so that "waves" and "wave" meet
