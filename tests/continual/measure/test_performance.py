import json
import math

import numpy as np
import pytest

from continual.measure.performance import (
    ForgettingEvents,
    average_performance,
    forgetting,
    learning_performance,
    summary,
)

GOLDEN = [[0.60, 0.10, 0.05], [0.70, 0.50, 0.08], [0.65, 0.40, 0.55]]
IMPROVING = [[0.5, 0.1], [0.7, 0.6]]


def random_triangle(seed, stages=6):
    rng = np.random.default_rng(seed)
    return [rng.random(n + 1).tolist() for n in range(stages)]


def close(values, expected):
    assert len(values) == len(expected)
    for value, wanted in zip(values, expected, strict=True):
        assert value is None if wanted is None else value == pytest.approx(wanted)


def test_golden_matrix():
    close(average_performance(GOLDEN), [0.6, 0.6, 1.6 / 3])
    close(forgetting(GOLDEN), [None, -0.1, 0.075])
    close(learning_performance(GOLDEN), [None, 0.5, 0.525])


def test_improving_matrix_has_negative_forgetting():
    close(forgetting(IMPROVING), [None, -0.2])


@pytest.mark.parametrize("seed", range(3))
def test_the_upper_triangle_is_ignored(seed):
    lower = random_triangle(seed)
    full = [row + [9.0] * (len(lower) - len(row)) for row in lower]
    padded = [row + [None] * (len(lower) - len(row)) for row in lower]
    for function in (average_performance, forgetting, learning_performance):
        assert function(full) == function(lower) == function(padded)


# A_n, LA_n and F_n (percent) as read off the DSI++ authors' figure; stages 0..5.
FIGURE = {
    "indexing accuracy cl(D_n)": (
        [81.7, 74.6, 65.8, 56.7, 35.8, 30.8],
        [96.2, 96.2, 96.2, 96.2, 96.2],
        {5: (75.58, 75.8)},
    ),
    "Hits@10 cl(D_n)": (
        [67.0, 49.6, 33.0, 23.6, 13.0, 10.1],
        [55.8, 58.0, 56.2, 53.6, 51.4],
        {1: (23.6, 23.2), 5: (52.68, 52.5)},
    ),
    "Hits@10 cl(U_n)": (
        [67.0, 59.8, 54.3, 50.4, 45.3, 39.9],
        [60.1, 60.5, 58.0, 55.1, 52.9],
        {5: (18.42, 18.8)},
    ),
    "Hits@10 genmem(U_n)": ([67.0, 60.5], [73.9], {1: (19.9, 19.6)}),
}


@pytest.mark.parametrize("name", FIGURE)
def test_published_forgetting_follows_from_published_averages(name):
    """A matrix with the published A_n and LA_n, every corpus at its best when first indexed."""
    A, LA, published = FIGURE[name]
    diagonal = [A[0]] + [
        n * LA[n - 1] - (n - 1) * (LA[n - 2] if n > 1 else 0) for n in range(1, len(A))
    ]
    P = []
    for n in range(len(A)):
        rest = (n + 1) * A[n] - diagonal[n]  # what is left for the older corpora together
        kept = rest / sum(diagonal[:n]) if n else 0.0
        P.append([best * kept for best in diagonal[:n]] + [diagonal[n]])
    assert average_performance(P) == pytest.approx(A)
    assert learning_performance(P)[1:] == pytest.approx(LA)
    for n, (derived, figure) in published.items():
        assert forgetting(P)[n] == pytest.approx(derived, abs=0.01)
        assert forgetting(P)[n] == pytest.approx(figure, abs=0.5)


@pytest.mark.parametrize("missing", [None, math.nan])
def test_a_corpus_without_queries_is_left_out(missing):
    P = [[0.6], [0.5, missing], [0.4, missing, 0.8], [0.3, missing, 0.6, 0.7]]
    without = [[0.6], [0.4, 0.8], [0.3, 0.6, 0.7]]
    close(average_performance(P), [0.6, 0.5, 0.6, 1.6 / 3])
    close(forgetting(P), [None, 0.1, 0.2, forgetting(without)[2]])
    close(learning_performance(P), [None, None, 0.8, 0.75])


def test_undefined_is_none_and_never_zero():
    for function in (forgetting, learning_performance):
        assert function([[0.5]]) == [None]
        assert function([]) == []
        assert function([[None], [None, None]]) == [None, None]
    assert average_performance([[None], [None, None]]) == [None, None]


def test_summary_has_the_keys_of_matrix_json():
    tables = summary({"hits@1": GOLDEN, "mrr@10": IMPROVING})
    assert list(tables) == ["average_performance", "forgetting", "learning_performance"]
    assert tables["forgetting"]["mrr@10"] == forgetting(IMPROVING)
    json.dumps(tables, allow_nan=False)


HISTORY = np.array(
    [  # learnt and kept, forgotten twice, never learnt, learnt late, forgotten at the end
        [1, 1, 0, 0, 0],
        [1, 0, 0, 0, 1],
        [1, 1, 0, 0, 1],
        [1, 0, 0, 1, 0],
    ],
    bool,
)


def events_in(history):
    """Events, first evaluation found and last state of each document, from the whole history."""
    events = (history[:-1] & ~history[1:]).sum(axis=0)
    return events, np.where(history.any(axis=0), history.argmax(axis=0), -1), history[-1]


@pytest.mark.parametrize("seed", range(3))
def test_counting_on_the_way_equals_the_whole_history(seed):
    """Also when an evaluation arrives in shuffled parts and the state is saved in between."""
    rng = np.random.default_rng(seed)
    history = rng.random((9, 30)) < 0.4
    counter = ForgettingEvents(30, "every update")
    for step, correct in enumerate(history):
        for part in np.array_split(rng.permutation(30), 3):
            counter.update(part, correct[part], step)
        if step == 4:
            state = counter.state_dict()
            counter.update(np.arange(30), ~correct, 99)  # must not reach the saved copy
            counter = ForgettingEvents(0, "")
            counter.load_state_dict(state)
    for ours, expected in zip(counter.counts, events_in(history), strict=True):
        np.testing.assert_array_equal(ours, expected)
    assert counter.evaluated_at == list(range(9))
    assert counter.cadence == "every update"


def test_only_evaluated_documents_change_and_new_ones_can_come():
    counter = ForgettingEvents(2, "when asked")
    counter.update(np.array([0, 1]), np.array([True, True]), 10)
    counter.extend(3)
    counter.update(np.array([1, 2]), np.array([False, True]), 20)
    assert counter.counts.events.tolist() == [0, 1, 0]
    assert counter.counts.first_learnt.tolist() == [10, 10, 20]
    with pytest.raises(ValueError, match="not removed"):
        counter.extend(2)
    with pytest.raises(IndexError):
        counter.update(np.array([3]), np.array([True]), 30)
    with pytest.raises(ValueError, match="distinct"):
        counter.update(np.array([1, 1]), np.array([True, False]), 30)
    with pytest.raises(ValueError, match="distinct"):
        counter.update(np.array([-1]), np.array([True]), 30)


def test_forgetting_events_json():
    counter = ForgettingEvents(6, "every 5 updates")  # the last document is never evaluated
    for step, correct in enumerate(HISTORY):
        counter.update(np.arange(5), correct, 5 * (step + 1))
    content = json.loads(json.dumps(counter.to_json(list("abcdef")), allow_nan=False))
    assert content["schema"] == 1
    assert content["cadence"] == "every 5 updates"
    assert content["evaluated_at"] == [5, 10, 15, 20]
    assert content["documents"] == {
        "id": list("abcdef"),
        "events": [0, 2, 0, 0, 1, 0],
        "first_learnt": [5, 5, None, 20, 10, None],
        "final_state": [True, False, False, True, False, None],
    }
    assert content["summary"] == {
        "num_documents": 5,
        "ever_learnt": 0.8,
        "never_learnt": 0.2,
        "learnt_with_zero_events": 0.4,
        "forgotten_at_least_once": 0.4,
        "mean_events_of_learnt": 0.75,
    }
    with pytest.raises(ValueError, match="2 ids"):
        counter.to_json(["a", "b"])


def test_summary_of_nothing_is_none():
    shares = ForgettingEvents(3, "never").summary()
    assert shares.pop("num_documents") == 0
    assert set(shares.values()) == {None}


def test_a_replaced_document_begins_anew_and_a_removed_one_ends():
    events = ForgettingEvents(4, "at the end of stages")
    events.update(np.arange(4), np.array([1, 1, 1, 0], bool), 10)
    events.update(np.arange(4), np.array([0, 1, 1, 0], bool), 20)
    # the next stage replaces 1 and removes 2, and a fifth document arrives
    events.extend(5, [1])
    assert events.counts.first_learnt.tolist() == [10, -1, 10, -1, -1]
    events.update(np.array([0, 1, 3, 4]), np.array([1, 0, 0, 1], bool), 30)
    # not finding the new text is no forgetting of the old one
    assert events.counts.events.tolist() == [1, 0, 0, 0, 0]
    assert events.counts.state.tolist() == [1, 0, 1, 0, 1]
    events.update(np.array([0, 1, 3, 4]), np.array([1, 1, 0, 0], bool), 40)
    assert events.counts.events.tolist() == [1, 0, 0, 0, 1]
    assert events.counts.first_learnt.tolist() == [10, 40, 10, -1, 30]
    assert events.summary()["num_documents"] == 5


def test_a_corpus_that_has_gone_leaves_the_averages():
    """D_1 is removed before stage 3: worked by hand."""
    P = [[0.8], [0.6, 0.5], [0.6, 0.3, 0.9], [0.4, None, 0.7, 0.2]]
    close(average_performance(P), [0.8, 0.55, 0.6, (0.4 + 0.7 + 0.2) / 3])
    close(forgetting(P), [None, 0.2, 0.2, (0.4 + 0.2) / 2])
    # what was learnt when it arrived stays
    close(learning_performance(P), [None, 0.5, 0.7, (0.5 + 0.9 + 0.2) / 3])
