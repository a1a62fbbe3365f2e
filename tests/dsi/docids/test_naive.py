"""Naively structured docids: numbers, digit by digit."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsi.docids import NewDocuments
from dsi.docids.naive import Naive


def naive(count: int, base: int = 10) -> Naive:
    scheme = Naive(Naive.Config(base))
    scheme.extend(NewDocuments(count=count))
    return scheme


def number(codes: list[int], base: int) -> int:
    """What the digits before the end say."""
    end = codes.index(0)
    assert set(codes[end + 1 :]) <= {-1}
    value = 0
    for code in codes[:end]:
        value = value * base + code - 1
    return value


@settings(max_examples=60)
@given(st.integers(2, 12), st.lists(st.integers(0, 40), max_size=6))
def test_documents_spell_their_number_however_they_arrive(check_docids, base, counts):
    scheme = naive(0, base)
    for count in counts:
        before = scheme.codes_NT.copy()
        new = scheme.extend(NewDocuments(count=count))
        assert (len(new), new.dtype) == (count, np.int32)
        old = scheme.codes_NT[: len(before)]
        assert np.array_equal(old[:, : before.shape[1]], before)
        assert (old[:, before.shape[1] :] == -1).all()
    read = [number(row, base) for row in scheme.codes_NT.tolist()]
    assert read == list(range(sum(counts)))
    assert np.array_equal(scheme.codes_NT, naive(sum(counts), base).codes_NT)
    leading = scheme.codes_NT[1:][scheme.codes_NT[1:, 0] == 1]
    assert len(leading) == 0, "only document 0 begins with the digit 0"
    check_docids(scheme)


def test_a_number_and_a_longer_one():
    scheme = naive(999)
    assert scheme.codes_NT[[0, 12, 998]].tolist() == [[1, 0, -1, -1], [2, 3, 0, -1], [10, 10, 9, 0]]
    assert scheme.code_sizes == [11] * 4
    assert scheme.extend(NewDocuments(count=2)).tolist() == [
        [10, 10, 10, 0, -1],
        [2, 1, 1, 1, 0],
    ]
    assert scheme.code_sizes == [11] * 5


@given(st.integers(1, 60), st.integers(1, 60), st.integers(2, 11))
@settings(max_examples=30)
def test_a_restored_assignment_goes_on_as_the_original(first, more, base):
    scheme, again = naive(first, base), Naive(Naive.Config(base))
    again.restore(scheme.codes_NT)
    again.load_state_dict(scheme.state_dict())
    assert again.code_sizes == scheme.code_sizes
    assert np.array_equal(
        again.extend(NewDocuments(count=more)), scheme.extend(NewDocuments(count=more))
    )


@pytest.mark.parametrize("base,written", [(10, "12"), (2, "1100"), (3, "110"), (16, "12")])
def test_readable_is_the_number_in_its_base(tokenizer, base, written):
    scheme = naive(20, base)
    assert scheme.readable(scheme.codes_NT[12], tokenizer) == written


def test_readable_digits_above_ten_are_kept_apart(tokenizer):
    scheme = naive(200, 16)
    assert scheme.readable(scheme.codes_NT[0x9B], tokenizer) == "9-11"


@pytest.mark.parametrize("base", [1, 0, -10])
def test_bases_that_cannot_count(base):
    with pytest.raises(ValueError, match=r"^base: .* at least 2"):
        Naive.Config(base)


def test_a_million_documents():
    started = time.process_time()
    codes_NT = naive(1_000_000).codes_NT
    assert time.process_time() - started < 5  # a tenth of that, with nothing beside it
    assert codes_NT.shape == (1_000_000, 7)
    assert codes_NT[123_456].tolist() == [2, 3, 4, 5, 6, 7, 0]
    assert codes_NT[-1].tolist() == [10] * 6 + [0]


def test_it_has_a_table_per_position():
    assert not Naive.shared
    assert naive(5).state_dict() == {}
