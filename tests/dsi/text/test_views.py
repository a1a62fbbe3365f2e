"""Which tokens of a document are read."""

import numpy as np
import pytest

from dsi.text.tokens import Tokens
from dsi.text.views import STOP_WORDS, View, chunk, first, set_text


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_first_is_the_beginning():
    starts, taken = first(np.array([1, 5, 6, 40]), 6, rng())
    assert starts.tolist() == [0, 0, 0, 0]
    assert taken.tolist() == [1, 5, 6, 6]


def test_chunk_stays_inside_for_every_length():
    lengths = np.arange(1, 60).repeat(50)
    starts, taken = chunk(lengths, 5, 24, rng())
    assert (starts >= 0).all()
    assert (starts + taken <= lengths).all()
    assert (taken >= np.minimum(lengths, 5)).all()
    assert (taken <= np.minimum(lengths, 24)).all()
    short = lengths <= 5
    assert (starts[short] == 0).all()
    assert np.array_equal(taken[short], lengths[short])


def test_chunk_lengths_and_positions_are_uniform():
    draws = 40_000
    starts, taken = chunk(np.full(draws, 12), 3, 6, rng(1))
    for length in range(3, 7):
        counts = np.bincount(starts[taken == length], minlength=13 - length)
        assert len(counts) == 13 - length  # every window and no other
        expected = draws / 4 / len(counts)
        # chi-square: mean = degrees of freedom f, standard deviation sqrt(2 f)
        freedom = len(counts) - 1
        statistic = ((counts - expected) ** 2 / expected).sum()
        assert statistic < freedom + 5 * (2 * freedom) ** 0.5


def test_set_text_drops_stop_words_and_repetitions_in_order():
    text = "The cat, and the dog: a cat ran. The dog ran. WITH dog"
    assert set_text(text) == "cat, dog: cat ran. dog"
    assert set_text("whale whale Whale") == "whale Whale"


def test_set_text_of_stop_words_alone_is_the_text():
    assert set_text("to be or not to be") == "to be or not to be"
    assert set_text("") == ""
    assert {"the", "of", "your"} <= STOP_WORDS
    assert "whale" not in STOP_WORDS


@pytest.mark.parametrize("name", ["first", "set", "chunk"])
def test_spans_lie_within_their_documents(name):
    lists = [list(range(10 * i, 10 * i + size)) for i, size in enumerate([1, 4, 9, 2])]
    tokens, documents = Tokens.from_lists(lists), np.array([2, 0, 3, 2, 1] * 20)
    starts, taken = View(name, 1.0, length=4, shortest=2).spans(tokens, documents, rng())
    for document, start, length in zip(documents, starts, taken, strict=True):
        read = tokens.values[start : start + length].tolist()
        own = lists[document]
        assert own[read[0] - own[0] :][:length] == read
        assert min(2, len(own)) <= len(read) <= 4
    if name != "chunk":
        assert np.array_equal(starts, tokens.offsets[documents])


def test_a_window_shorter_than_the_shortest_is_allowed():
    tokens = Tokens.from_lists([list(range(30))])
    _, taken = View("chunk", 1.0, length=3, shortest=5).spans(tokens, np.zeros(50, int), rng())
    assert (taken == 3).all()


def test_the_generator_decides():
    tokens, documents = Tokens.from_lists([list(range(99))]), np.zeros(30, int)
    view = View("chunk", 1.0)
    one, same = (view.spans(tokens, documents, rng(3)) for _ in range(2))
    other = view.spans(tokens, documents, rng(4))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
