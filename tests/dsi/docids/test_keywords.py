"""Keywords as docids: the words of highest TF-IDF under the frequencies of D_0."""

from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsi.docids.keywords import Keyword, words

WORDS = st.sampled_from(["heron", "Mill", "clock", "the", "river", "of", "glacier", "née"])
TEXTS = st.lists(WORDS, max_size=6).map(" ".join)
PAIRS = st.tuples(st.just(""), TEXTS)
SOME = st.lists(PAIRS, min_size=1, max_size=8)


def test_words_are_lower_cased_and_without_stop_words():
    assert words("The Heron's mill, of 1790; née_x!") == ["heron", "s", "mill", "1790", "née_x"]


@settings(max_examples=40)
@given(SOME, st.lists(st.lists(PAIRS, max_size=6), max_size=3), st.integers(1, 3))
def test_old_docids_stay_and_later_cuts_do_not_matter(
    check_docids, documents, first, chunks, keywords
):
    scheme, whole = (Keyword(Keyword.Config(keywords, max_length=4)) for _ in range(2))
    scheme.extend(documents(first))
    for chunk in chunks:
        before = scheme.codes_NT.copy()
        new = scheme.extend(documents(chunk))
        assert (len(new), new.dtype) == (len(chunk), np.int32)
        old = scheme.codes_NT[: len(before)]
        assert np.array_equal(old[:, : before.shape[1]], before)
        assert (old[:, before.shape[1] :] == -1).all()
    check_docids(scheme)
    whole.extend(documents(first))
    whole.extend(documents([pair for chunk in chunks for pair in chunk]))
    assert np.array_equal(whole.codes_NT, scheme.codes_NT)


@settings(max_examples=40)
@given(SOME, TEXTS, st.integers(1, 4))
def test_keywords_are_those_of_highest_tf_idf_in_d0(documents, first, text, keywords):
    scheme = Keyword(Keyword.Config(keywords))
    scheme.extend(documents(first))
    found = words(text)

    def weight(word: str) -> float:
        having = sum(word in words(other) for _, other in first)
        return found.count(word) * log((len(first) + 1) / (having + 1))

    expected = sorted(sorted(set(found)), key=weight, reverse=True)[:keywords]
    assert scheme.keywords(text) == expected


def test_counts_and_frequencies_are_weighed_against_each_other(documents):
    scheme = Keyword()
    scheme.extend(documents([("", "mill heron"), ("", "mill clock"), ("", "town")]))
    # of three documents two have mill, one has heron: 2 ln(4/3) < ln(4/2) < 3 ln(4/3)
    assert scheme.keywords("mill mill heron") == ["heron", "mill"]
    assert scheme.keywords("mill mill mill heron") == ["mill", "heron"]


def test_a_docid_is_its_keywords_in_order_of_weight(documents, tokenizer):
    scheme = Keyword(Keyword.Config(keywords=3))
    common = ("", "the river town")
    rare = ("", "the town, the river, the stone bridge and a winter bridge of stone: a bridge")
    scheme.extend(documents([common, common, rare, rare, ("", "")]))
    written = [scheme.readable(codes_T, tokenizer) for codes_T in scheme.codes_NT]
    # ln(6/3) for the words of two documents, three and two times; ln(6/5) for town and river
    assert written[2:4] == ["bridge stone winter", "bridge stone winter#1"]
    assert written[:2] == ["river town", "river town#1"]  # equal weights: alphabetical
    # the frequencies stay those of D_0, where winter was rarer than river
    scheme.extend(documents([("", "winter")] * 9 + [("", "winter river")]))
    assert scheme.readable(scheme.codes_NT[-1], tokenizer) == "winter river"


def test_a_document_of_stop_words_has_its_first_words(documents, tokenizer):
    scheme = Keyword(Keyword.Config(keywords=2, max_length=3))
    scheme.extend(documents([("", "the the the the"), ("", "")]))
    the = tokenizer.encode("the", add_special_tokens=False)
    assert scheme.codes_NT[0].tolist() == [*(the * 3)[:3], tokenizer.eos_token_id]
    assert scheme.codes_NT[1, :2].tolist() == [tokenizer.unk_token_id, tokenizer.eos_token_id]


@settings(max_examples=20)
@given(SOME, st.lists(PAIRS, max_size=8))
def test_a_restored_assignment_goes_on_as_the_original(documents, first, more):
    scheme, again = Keyword(), Keyword()
    scheme.extend(documents(first))
    again.restore(scheme.codes_NT.copy())
    state = scheme.state_dict()
    again.load_state_dict(state)
    assert again.code_sizes == scheme.code_sizes
    assert np.array_equal(again.extend(documents(more)), scheme.extend(documents(more)))
    assert again.code_sizes == scheme.code_sizes
    for name, array in state.items():
        assert array.flags.c_contiguous and array.dtype != object
        assert np.array_equal(array, again.state_dict()[name]), "only D_0 counts"


def test_state_survives_a_file(documents, tmp_path):
    from safetensors.numpy import load_file, save_file

    for pairs in ([("", "heron née mill"), ("", "mill")], [("", "")]):
        scheme, again = Keyword(), Keyword()
        scheme.extend(documents(pairs))
        save_file(scheme.state_dict(), tmp_path / "state.safetensors")
        again.load_state_dict(load_file(tmp_path / "state.safetensors"))
        assert (again.frequency, again.documents) == (scheme.frequency, len(pairs))


def test_docids_without_their_word_frequencies_cannot_grow(documents):
    scheme, again = Keyword(), Keyword()
    scheme.extend(documents([]))
    assert scheme.documents == 0, "D_0 is the first extension that has documents"
    scheme.extend(documents([("", "heron")]))
    again.restore(scheme.codes_NT)
    with pytest.raises(ValueError, match="state"):
        again.extend(documents([("", "mill")]))


def test_settings_that_cannot_work():
    with pytest.raises(ValueError, match=r"^keywords: .* at least 1"):
        Keyword.Config(keywords=0)
    with pytest.raises(ValueError, match=r"^max_length: .* at least 1"):
        Keyword.Config(max_length=0)


def test_it_shares_one_table():
    assert Keyword.shared and Keyword.suffix
