"""What all schemes share: stacking assignments, writing them, and growing by whole extensions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsi.docids import NewDocuments, Scheme, codes_from_text, codes_to_text, stack_codes

DOCIDS = st.lists(st.lists(st.integers(0, 10**9 - 1), min_size=1, max_size=5), max_size=8)


def padded(docids: list[list[int]], extra: int = 0) -> np.ndarray:
    """Rows of codes, with ``extra`` columns more than the longest needs."""
    codes = np.full((len(docids), max(map(len, docids), default=1) + extra), -1, np.int32)
    for row, docid in zip(codes, docids, strict=True):
        row[: len(docid)] = docid
    return codes


def lists(codes: np.ndarray) -> list[list[int]]:
    return [[code for code in row if code >= 0] for row in codes.tolist()]


@given(st.lists(st.tuples(DOCIDS, st.integers(0, 2)), min_size=1, max_size=4))
def test_stacked_codes_are_the_docids_in_order_without_empty_columns(parts):
    stacked = stack_codes([padded(docids, extra) for docids, extra in parts])
    docids = [docid for part, _ in parts for docid in part]
    assert lists(stacked) == docids
    assert stacked.dtype == np.int32
    assert stacked.shape == (len(docids), max(map(len, docids), default=1))


def test_stacking_copies():
    part = padded([[1, 2], [3]])
    stack_codes([part])[0, 0] = 9
    assert part[0, 0] == 1


@given(DOCIDS)
def test_docids_survive_their_text(docids):
    lines = codes_to_text(padded(docids))
    assert lines == ["-".join(map(str, docid)) for docid in docids]
    read = codes_from_text(lines)
    assert np.array_equal(read, padded(docids))
    assert read.dtype == np.int32
    assert read.shape[1] >= 1


@pytest.mark.parametrize(
    "line",
    ["", "-", "1-", "-1", "1--2", "x", "1-x", " 1", "1 ", "1\n", "1_0", "+1", "1.0", "٣", "9" * 10],
    ids=ascii,
)
def test_lines_that_are_no_docid_are_quoted(line):
    with pytest.raises(ValueError) as refused:
        codes_from_text(["3-4", line])
    assert repr(line) in str(refused.value)


class Pairs(Scheme):
    """Document i: (i // 3, i % 3), in 64-bit codes."""

    Config = dict

    def assign(self, documents: NewDocuments) -> np.ndarray:
        numbers = np.arange(len(self), len(self) + documents.count)
        return np.stack([numbers // 3, numbers % 3], axis=1)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 9), max_size=5))
def test_extensions_are_appended_and_code_sizes_only_grow(check_docids, counts):
    scheme = Pairs()
    assert scheme.code_sizes == [1] and len(scheme) == 0
    for count in counts:
        before, sizes = scheme.codes_NT.copy(), scheme.code_sizes
        new = scheme.extend(NewDocuments(count=count))
        assert (new.dtype, new.shape) == (np.int32, (count, 2))
        assert np.array_equal(scheme.codes_NT, stack_codes([before, new]))
        assert all(new >= old for new, old in zip(scheme.code_sizes, sizes, strict=False))
    total = sum(counts)
    assert len(scheme) == total
    if total:
        assert scheme.code_sizes == [(total + 2) // 3, min(total, 3)]
        check_docids(scheme)


def test_defaults_of_a_scheme_without_more_memory_than_its_codes(tokenizer):
    scheme = Pairs()
    assert scheme.state_dict() == {}
    scheme.load_state_dict({})
    scheme.restore(padded([[4, 1], [4, 2]]))
    assert scheme.readable(scheme.codes_NT[1], tokenizer) == "4-2"
    assert scheme.extend(NewDocuments(count=1)).tolist() == [[0, 2]]
    with pytest.raises(NotImplementedError):
        Scheme(config=object()).extend(NewDocuments(count=1))


@pytest.mark.parametrize("what", ["titles", "texts", "embeddings"])
def test_what_was_not_given_is_named_when_it_is_read(what):
    with pytest.raises(ValueError, match=what):
        getattr(NewDocuments(count=1), what)()
