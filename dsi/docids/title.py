"""Titles as docids: GENRE (De Cao et al. 2021, "Autoregressive Entity Retrieval")."""

from collections.abc import Iterable
from dataclasses import dataclass

from dsi.docids._scheme import NewDocuments
from dsi.docids._text import TextScheme
from dsi.settings import Count, Settings


class Title(TextScheme):
    """The tokens of the title, as it is given (lower-cased or not).

    The first document of a title has the plain docid; the others are told apart by their last
    code. A document without a title has the first words of its text instead.
    """

    @dataclass(frozen=True)
    class Config(Settings):
        """How much of a title is written."""

        max_length: Count = 12
        """Tokens at most, the end not counted."""

    def phrases(self, documents: NewDocuments) -> Iterable[str]:
        return documents.titles()
