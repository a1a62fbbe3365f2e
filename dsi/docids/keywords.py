"""Keywords as docids: the salient words of a document (Ultron, Zhou et al. 2022)."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from heapq import nsmallest
from math import log
from typing import Any

import numpy as np

from dsi.docids._scheme import NewDocuments
from dsi.docids._text import TextScheme
from dsi.settings import Count, Settings
from dsi.text.views import STOP_WORDS

WORD = re.compile(r"\w+")


class Keyword(TextScheme):
    """The words of highest TF-IDF, the most important first: a hierarchy of topics, roughly.

    The weight is tf ln((|D_0| + 1) / (df + 1)); equal weights are in the order of the words.
    Document frequencies are those of D_0 for all later documents, too, so that a docid does not
    depend on what arrives with it. A word that D_0 does not have counts as the rarest.
    """

    @dataclass(frozen=True)
    class Config(Settings):
        """How many words, and how much of them is written."""

        keywords: Count = 4
        """Words at most."""
        max_length: Count = 12
        """Tokens at most, the end not counted."""

    def __init__(self, config: Any = None):
        super().__init__(config)
        self.frequency: dict[str, int] = {}  # word -> documents of D_0 that have it
        self.documents = 0  # of D_0

    def assign(self, documents: NewDocuments) -> np.ndarray:
        if documents.count and not self.documents:
            if len(self):
                raise ValueError("docids were restored, but not their state (word frequencies)")
            self.documents = documents.count
            counts = Counter(word for text in documents.texts() for word in set(words(text)))
            self.frequency = dict(sorted(counts.items()))
        return super().assign(documents)

    def phrases(self, documents: NewDocuments) -> Iterable[str]:
        return (" ".join(self.keywords(text)) for text in documents.texts())

    def keywords(self, text: str) -> list[str]:
        """The most salient words of ``text``, best first."""

        def rank(item: tuple[str, int]) -> tuple[float, str]:
            word, count = item
            return -count * log((self.documents + 1) / (self.frequency.get(word, 0) + 1)), word

        chosen = nsmallest(self.config.keywords, Counter(words(text)).items(), key=rank)
        return [word for word, _ in chosen]

    def state_dict(self) -> dict[str, np.ndarray]:
        """Of D_0: ``documents`` int64 (1,); ``words`` uint8, one word a line; ``counts`` int64."""
        joined = "\n".join(self.frequency).encode("utf-8", "surrogatepass")
        return super().state_dict() | {
            "documents": np.array([self.documents], np.int64),
            "words": np.frombuffer(joined, np.uint8).copy(),
            "counts": np.array(list(self.frequency.values()), np.int64),
        }

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        super().load_state_dict(state)
        self.documents = int(state["documents"][0])
        known = state["words"].tobytes().decode("utf-8", "surrogatepass").split("\n")
        counts = state["counts"].tolist()
        self.frequency = dict(zip(known, counts, strict=True)) if counts else {}


def words(text: str) -> list[str]:
    """The words of a text, lower-cased, without stop words."""
    return [word for word in WORD.findall(text.lower()) if word not in STOP_WORDS]
