"""Titles as docids: tokens of the text vocabulary, equal titles told apart by their last code."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from dsi.docids import NewDocuments
from dsi.docids._text import packed_rows, places_in_group
from dsi.docids.title import Title
from dsi.errors import UserError

# few and short, so that titles are often equal or the beginning of another one
TITLES = st.lists(st.sampled_from(["heron", "mill", "clock", "</s>", "Ω"]), max_size=4).map(
    " ".join
)
PAIRS = st.tuples(TITLES, st.sampled_from(["", "stone bridge", "heron", "the </s> town"]))
CHUNKS = st.lists(st.lists(PAIRS, max_size=8), max_size=4)


def tokens(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    ids = tokenizer.encode(text, add_special_tokens=False)
    return [i for i in ids if i != tokenizer.eos_token_id]


@settings(max_examples=60)
@given(CHUNKS, st.integers(1, 5))
@example([[("", "")], [("", ""), ("</s>", "</s>")]], 1)
def test_docids_are_titles_and_their_rank_however_they_arrive(
    check_docids, documents, tokenizer, chunks, max_length
):
    scheme = Title(Title.Config(max_length))
    for chunk in chunks:
        before = scheme.codes_NT.copy()
        new = scheme.extend(documents(chunk))
        assert (len(new), new.dtype) == (len(chunk), np.int32)
        old = scheme.codes_NT[: len(before)]
        assert np.array_equal(old[:, : before.shape[1]], before)
        assert (old[:, before.shape[1] :] == -1).all()
    pairs = [pair for chunk in chunks for pair in chunk]
    holders: Counter[tuple[int, ...]] = Counter()
    for (title, text), row in zip(pairs, scheme.codes_NT.tolist(), strict=True):
        name = tokens(tokenizer, title) or tokens(tokenizer, text) or [tokenizer.unk_token_id]
        name = name[:max_length]
        further = holders[tuple(name)]
        holders[tuple(name)] += 1
        last = len(tokenizer) + further - 1 if further else tokenizer.eos_token_id
        assert [code for code in row if code >= 0] == [*name, last]
    check_docids(scheme)
    if pairs:
        largest = max(holders.values()) - 1
        assert scheme.code_sizes == [len(tokenizer) + largest] * scheme.codes_NT.shape[1]
    whole = Title(Title.Config(max_length))
    whole.extend(documents(pairs))
    assert np.array_equal(whole.codes_NT, scheme.codes_NT)


@settings(max_examples=20)
@given(st.lists(PAIRS, min_size=1, max_size=8), st.lists(PAIRS, max_size=8))
def test_a_restored_assignment_goes_on_as_the_original(documents, first, more):
    scheme, again = Title(), Title()
    scheme.extend(documents(first))
    again.restore(scheme.codes_NT.copy())
    again.load_state_dict(scheme.state_dict())
    assert again.code_sizes == scheme.code_sizes
    assert np.array_equal(again.extend(documents(more)), scheme.extend(documents(more)))
    assert np.array_equal(again.codes_NT, scheme.codes_NT)
    assert again.code_sizes == scheme.code_sizes


def test_readable_is_the_title_and_a_number_for_its_further_holders(documents, tokenizer):
    scheme = Title()
    scheme.extend(documents([("winter heron", "")] * 3 + [("winter", "")]))
    written = [scheme.readable(codes_T, tokenizer) for codes_T in scheme.codes_NT]
    assert written == ["winter heron", "winter heron#1", "winter heron#2", "winter"]


def test_code_sizes_are_those_of_the_vocabulary_before_any_title_repeats(documents, tokenizer):
    scheme = Title()
    scheme.extend(documents([("heron", ""), ("mill", "")]))
    assert set(scheme.code_sizes) == {len(tokenizer)}
    again = Title()
    again.load_state_dict(scheme.state_dict())
    again.restore(scheme.codes_NT)
    assert again.code_sizes == scheme.code_sizes


def test_texts_are_read_only_where_a_title_is_missing(tokenizer):
    def never():
        raise AssertionError("texts were read")

    given_titles = NewDocuments(count=1, titles=lambda: ["mill"], texts=never, tokenizer=tokenizer)
    Title().extend(given_titles)
    without = NewDocuments(count=1, titles=lambda: [""], texts=never, tokenizer=tokenizer)
    with pytest.raises(AssertionError, match="texts were read"):
        Title().extend(without)


def test_truncation_that_was_left_on_does_not_shorten_titles(documents, tokenizer):
    scheme = Title()
    scheme.extend(documents([("heron mill clock", "")]))
    tokenizer(["heron"], max_length=2, truncation=True, padding="max_length")
    again = Title()
    again.extend(documents([("heron mill clock", "")]))
    assert np.array_equal(again.codes_NT, scheme.codes_NT)


def test_mistakes_are_named(documents, tokenizer):
    with pytest.raises(ValueError, match=r"^max_length: .* at least 1"):
        Title.Config(max_length=0)
    with pytest.raises(ValueError, match="tokenizer"):
        Title().extend(NewDocuments(count=1, titles=lambda: ["mill"]))
    with pytest.raises(ValueError, match="2 titles or texts for 1 documents"):
        Title().extend(NewDocuments(count=1, titles=lambda: ["a", "b"], tokenizer=tokenizer))
    scheme = Title()
    scheme.extend(documents([("heron", "")]))
    scheme.load_state_dict({"vocabulary_size": np.array([len(tokenizer) + 1])})
    with pytest.raises(UserError, match="use the same tokenizer"):
        scheme.extend(documents([("heron", "")]))


ROWS = st.integers(1, 7).flatmap(
    lambda width: st.lists(
        st.lists(st.sampled_from([-1, 0, 1, 40, 2**31 - 1]), min_size=width, max_size=width),
        min_size=1,
        max_size=20,
    )
)


@given(ROWS)
def test_rows_are_sorted_and_counted_by_few_keys(rows):
    codes = np.array(rows, np.int32)
    keys = packed_rows(codes)
    assert codes[np.lexsort(keys[::-1])].tolist() == sorted(rows)
    assert places_in_group(codes).tolist() == [rows[:i].count(row) for i, row in enumerate(rows)]


def test_short_codes_share_a_key():
    assert len(packed_rows(np.full((1, 15), 14, np.int32))) == 1  # four bits each
    assert len(packed_rows(np.full((1, 16), 14, np.int32))) == 2


class Altered:
    """A tokenizer with some attributes and, perhaps, the length changed."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, size: int | None = None, **changes):
        self.tokenizer, self.size = tokenizer, size or len(tokenizer)
        self.__dict__.update(changes)

    def __len__(self) -> int:
        return self.size

    def __getattr__(self, name: str):
        return getattr(self.tokenizer, name)


def extended(tokenizer: Any, title: str) -> list[list[int]]:
    return (
        Title()
        .extend(
            NewDocuments(
                count=1, titles=lambda: [title], texts=lambda: iter([""]), tokenizer=tokenizer
            )
        )
        .tolist()
    )


def test_a_vocabulary_with_gaps_is_refused(tokenizer):
    with pytest.raises(UserError, match="gaps"):
        extended(Altered(tokenizer, size=3), "mill")


@pytest.mark.parametrize("unknown", [None, 1], ids=["no unknown token", "unknown is the end"])
def test_a_document_without_a_token_never_is_an_end_alone(tokenizer, unknown):
    assert tokenizer.eos_token_id == 1
    assert extended(Altered(tokenizer, unk_token_id=unknown), "") == [[0, 1]]
    assert extended(Altered(tokenizer, unk_token_id=None, eos_token_id=0), "") == [[1, 0]]


def test_it_shares_one_table():
    assert Title.shared and Title.suffix
