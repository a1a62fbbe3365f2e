"""Naively structured docids: the document's number, digit by digit (DSI section 3.2)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
from annotated_types import Ge

from dsi.docids._scheme import NewDocuments, Scheme
from dsi.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Naive(Scheme):
    """Document 12 is "12": digit d is the code d + 1, most significant first, and 0 ends a docid.

    The digits mean nothing: neighbours in the tree arrived together. Without leading zeros the
    thousandth document needs one position more than the ones before it, which keep their codes.
    """

    @dataclass(frozen=True)
    class Config(Settings):
        """How a number is written."""

        base: Annotated[int, Ge(2)] = 10
        """Digits to choose from at each position."""

    @property
    def code_sizes(self) -> list[int]:
        return [self.config.base + 1] * self.codes_NT.shape[1]

    def assign(self, documents: NewDocuments) -> np.ndarray:
        base, start, stop = self.config.base, len(self), len(self) + documents.count
        width = 1
        while base**width < stop:
            width += 1
        codes_MT = np.full((documents.count, width + 1), -1, np.int32)
        for size in range(1, width + 1):  # all numbers of so many digits at once
            first = max(start, base ** (size - 1) if size > 1 else 0)
            numbers = np.arange(first, max(first, min(stop, base**size)))
            rows = codes_MT[first - start : first - start + len(numbers)]
            for place in range(size):
                rows[:, place] = numbers // base ** (size - 1 - place) % base + 1
            rows[:, size] = 0
        return codes_MT

    def readable(self, codes_T: np.ndarray, tokenizer: "PreTrainedTokenizerFast") -> str:
        """The digits; with hyphens between them above base 10."""
        digits = [str(code - 1) for code in codes_T.tolist() if code > 0]
        return ("" if self.config.base <= 10 else "-").join(digits)
