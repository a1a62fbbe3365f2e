import time

import numpy as np
import pytest

from dsi.errors import UserError
from dsi.queries.lexical import LexicalQueries

TEXTS = [
    "The heron stands in the shallow river and waits for a small silver fish to come near it.",
    "The old mill on the river grinds barley, wheat and rye for three villages of the valley.",
    "The clock of the town hall has two faces; the northern face is four minutes slow in winter.",
]
KEYS = ["a", "b", "c"]


def lexical(**settings) -> LexicalQueries:
    return LexicalQueries(LexicalQueries.Config(**settings)).fit(TEXTS)


def test_same_queries_whatever_the_batch_and_other_queries_for_another_seed():
    whole = lexical().generate(TEXTS, KEYS, 8, seed=3)
    alone = [lexical().generate([t], [k], 8, seed=3)[0] for t, k in zip(TEXTS, KEYS, strict=True)]
    assert whole == alone
    assert whole[::-1] == lexical().generate(TEXTS[::-1], KEYS[::-1], 8, seed=3)
    assert whole != lexical().generate(TEXTS, KEYS, 8, seed=4)
    assert whole[0] != lexical().generate(TEXTS[:1], ["z"], 8, seed=3)[0]


def test_spans_are_consecutive_words_of_the_document_of_the_lengths_asked_for():
    queries = lexical(share_terms=0.0, span_min=3, span_max=5).generate(TEXTS, KEYS, 12, seed=0)
    lengths = set()
    for text, own in zip(TEXTS, queries, strict=True):
        assert len(own) == len({query.lower() for query in own}) == 12
        assert all(query in text for query in own)
        lengths |= {len(query.split()) for query in own}
    assert lengths == {3, 4, 5}


def test_spans_reach_both_ends_of_the_document():
    own = lexical(share_terms=0.0, span_min=3, span_max=3).generate(TEXTS[:1], ["a"], 100, seed=0)[
        0
    ]
    assert "The heron stands" in own and "come near it" in own


def test_terms_are_distinct_words_in_document_order_without_common_words():
    queries = lexical(share_terms=1.0, terms_min=3, terms_max=4).generate(TEXTS, KEYS, 10, seed=0)
    for text, own in zip(TEXTS, queries, strict=True):
        words = text.replace(",", "").replace(";", "").replace(".", "").split()
        for query in own:
            terms = query.split()
            assert 3 <= len(terms) <= 4 and len(set(terms)) == len(terms)
            places = [words.index(term) for term in terms]
            assert places == sorted(places)
            assert "the" not in query.lower().split()  # in every text: idf 0


def test_terms_are_drawn_by_tf_idf():
    memory = LexicalQueries(LexicalQueries.Config(share_terms=1.0, terms_min=1, terms_max=1))
    memory.fit(["heron heron heron river"] + ["river bank"] * 3 + ["pond"] * 12)
    # heron: 3 ln(17/2) = 6.420; river: ln(17/5) = 1.224: heron first in .840 of the draws
    keys = [str(i) for i in range(2000)]
    first = memory.generate(["heron heron heron river"] * 2000, keys, 1, seed=0)
    assert np.mean([own == ["heron"] for own in first]) == pytest.approx(0.840, abs=0.03)


def test_tiny_and_empty_documents_give_what_they_have():
    queries = lexical(share_terms=0.0).generate(["Two words.", "", "   "], KEYS, 5, seed=0)
    assert queries == [["Two words"], [], []]
    assert lexical().generate(TEXTS, KEYS, 0, seed=0) == [[], [], []]


def test_fit_adds_up():
    parts = LexicalQueries().fit(TEXTS[:1]).fit(TEXTS[1:])
    whole = LexicalQueries().fit(TEXTS)
    assert parts.fingerprint() == whole.fingerprint()
    assert parts.fingerprint() != LexicalQueries().fit(TEXTS[:2]).fingerprint()
    assert parts.fingerprint() != lexical(share_terms=0.5).fingerprint()
    assert parts.generate(TEXTS, KEYS, 5, 1) == whole.generate(TEXTS, KEYS, 5, 1)


def test_settings_that_cannot_work():
    with pytest.raises(UserError, match=r"^share_terms: must be at most 1, got 2"):
        LexicalQueries.Config(share_terms=2)
    with pytest.raises(UserError, match=r"^span_min: must be at most span_max=4, got 5"):
        LexicalQueries.Config(span_min=5, span_max=4)
    with pytest.raises(UserError, match=r"^terms_min: must be at least 1"):
        LexicalQueries.Config(terms_min=0)
    with pytest.raises(ValueError, match="fit"):
        LexicalQueries().generate(TEXTS, KEYS, 1, seed=0)


ENDLESS = {
    "letters": "x" * 200_000,
    "Chinese": "\u9be8" * 20_000,
    "emoji within letters": f"a{chr(0x1F40B) * 20_000}b",
    "many of them": " ".join(letter * 20_000 for letter in "abcdefghij"),
}


@pytest.mark.parametrize("text", ENDLESS.values(), ids=ENDLESS)
def test_a_word_without_end_gives_queries_of_a_length_to_read(text):
    started = time.process_time()
    (own,) = lexical().generate([text], ["a"], 10, seed=0)
    assert own and all(0 < len(query) <= 2_000 for query in own)
    assert time.process_time() - started < 2  # not the square of its length
