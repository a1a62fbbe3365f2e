"""What the tests of all schemes check, and text to name documents by."""

from collections.abc import Callable

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from dsi.docids import NewDocuments, Scheme
from dsi.text.tokens import train_tokenizer

WORDS = ["heron", "mill", "clock", "river", "the", "stone", "bridge", "winter", "barley", "town"]


@pytest.fixture(scope="session")
def check_docids() -> Callable[[Scheme], None]:
    """Fails unless a scheme's docids are whole, within its code sizes, unique and prefix-free."""

    def check(scheme: Scheme) -> None:
        codes_NT, sizes = scheme.codes_NT, scheme.code_sizes
        assert codes_NT.dtype == np.int32
        assert codes_NT.shape == (len(scheme), len(sizes))
        docids = []
        for row in codes_NT.tolist():
            length = row.index(-1) if -1 in row else len(row)
            assert length > 0 and set(row[length:]) <= {-1}
            assert all(0 <= code < size for code, size in zip(row[:length], sizes, strict=False))
            docids.append(tuple(row[:length]))
        known = set(docids)
        assert len(known) == len(docids)
        assert not any(docid[:cut] in known for docid in docids for cut in range(len(docid)))
        assert len(docids) == 0 or max(map(len, docids)) == len(sizes)
        if scheme.shared:
            assert len(set(sizes)) == 1

    return check


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A small Unigram tokenizer of the words of :func:`documents`."""
    rng = np.random.default_rng(0)
    return train_tokenizer([" ".join(rng.choice(WORDS, 8)) for _ in range(60)], 110)


@pytest.fixture(scope="session")
def documents(tokenizer) -> Callable[[list[tuple[str, str]]], NewDocuments]:
    """(title, text) pairs as new documents."""

    def make(pairs: list[tuple[str, str]]) -> NewDocuments:
        return NewDocuments(
            count=len(pairs),
            titles=lambda: [title for title, _ in pairs],
            texts=lambda: iter([text for _, text in pairs]),
            tokenizer=tokenizer,
        )

    return make
