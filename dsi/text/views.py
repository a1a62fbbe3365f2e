"""Document views: which tokens of a document the model reads (DSI section 3.1.2).

Each view is vectorised over the examples of one batch window and draws from the generator given.
Shape legend: E examples of the window.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Le

from dsi.settings import Count, NotNegative, Settings
from dsi.text.tokens import Tokens

_STOP_WORDS = """
a about above after again all also am an and any are as at be because been before being below
between both but by can could did do does doing down during each few for from further had has
have having he her here hers him his how i if in into is it its itself just me more most my no
nor not now of off on once only or other our out over own same she should so some such than
that the their them then there these they this those through to too under until up very was we
were what when where which while who whom why will with would you your
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())

_WORD = re.compile(r"\b\w\w+\b")

Span = tuple[np.ndarray, np.ndarray]  # start within the document and length, int64 (E,) each


def first(lengths: np.ndarray, length: int, rng: np.random.Generator) -> Span:
    """The first ``length`` tokens: DSI's direct indexing."""
    return np.zeros_like(lengths), np.minimum(lengths, length)


def chunk(lengths: np.ndarray, shortest: int, longest: int, rng: np.random.Generator) -> Span:
    """A random contiguous window of ``shortest`` to ``longest`` tokens anywhere in the document.

    DSI's inverted index strategy with a random window length: short windows look like queries.
    """
    wanted = rng.integers(shortest, longest + 1, size=len(lengths))
    taken = np.minimum(wanted, lengths)
    starts = rng.integers(0, lengths - taken + 1)
    return starts, taken


def has_words(texts: Iterable[str]) -> bool:
    """Whether any text has a word of two letters, the least that BM25 and TF-IDF count here.

    bm25s and scikit-learn raise errors of their own for texts of emoji or single letters alone.
    """
    return any(_WORD.search(text) for text in texts)


def set_text(text: str) -> str:
    """The text without stop words and repeated words, order kept (DSI's set indexing)."""
    words = (word for word in text.split() if word.strip(".,;:!?()'\"").lower() not in STOP_WORDS)
    return " ".join(dict.fromkeys(words)) or text


@dataclass(frozen=True)
class View(Settings):
    """One way to read a document, with its share of the indexing examples."""

    name: Literal["first", "chunk", "set"]
    """The first tokens, a random window, or the first without stop words and repeats."""
    weight: NotNegative
    """Examples made of this view, in proportion to the other views' weights."""
    length: Annotated[int, Ge(1), Le(2**20)] = 32
    """Tokens, at most."""
    shortest: Count = 5
    """Tokens of the shortest window of a chunk."""

    def spans(self, tokens: Tokens, documents: np.ndarray, rng: np.random.Generator) -> Span:
        """Starts within the flat token array and lengths, for E documents."""
        lengths = tokens.lengths_of(documents)
        rule: dict[str, Callable[[], Span]] = {
            "first": lambda: first(lengths, self.length, rng),
            "set": lambda: first(lengths, self.length, rng),
            "chunk": lambda: chunk(lengths, min(self.shortest, self.length), self.length, rng),
        }
        starts, taken = rule[self.name]()
        return tokens.offsets[documents] + starts, taken
