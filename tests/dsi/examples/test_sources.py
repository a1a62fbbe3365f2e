"""Examples come in their shares, in turn, the same whatever was asked before."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dsi.examples.sources import (
    Cycle,
    DocumentSampler,
    allocate,
    corrupt,
)
from dsi.text.tokens import Tokens

SENTINELS = np.arange(800, 832, dtype=np.int32)
END = 1
SHARES = st.lists(st.sampled_from([0.0, 0.01, 0.1, 0.2, 1 / 3, 1, 7]), min_size=1, max_size=9)


@given(SHARES.filter(any), st.integers(0, 10_000))
def test_allocate_adds_up_and_stays_near_the_shares(shares, total):
    counts = allocate(shares, total)
    assert counts.sum() == total
    exact = np.array(shares) / sum(shares) * total
    assert (np.abs(counts - exact) < 1 + len(shares) / 2).all()
    assert (counts[np.array(shares) == 0] == 0).all()


@given(SHARES.filter(any), st.integers(0, 300))
def test_allocate_never_takes_back(shares, start):
    counts = np.array([allocate(shares, total) for total in range(start, start + 40)])
    steps = np.diff(counts, axis=0)
    assert (steps >= 0).all()
    assert (steps.sum(1) == 1).all()


@given(st.floats(0.01, 0.99), st.integers(0, 10**9))
def test_allocate_to_two_is_rounding(share, total):
    counts = allocate([share, 1 - share], total)
    assert abs(counts[0] - share * total) <= 0.5 + 1e-6


def test_cycle_visits_everything_once_per_epoch_in_new_orders():
    items = np.array([3, 1, 4, 15, 9])
    taken = Cycle(items, 7).take(0, 20).reshape(4, 5)
    assert (np.sort(taken) == np.sort(items)).all()
    assert len({tuple(epoch) for epoch in taken.tolist()}) > 1


@given(st.integers(1, 9), st.lists(st.integers(0, 25), min_size=1, max_size=6), st.integers(0, 40))
def test_cycle_does_not_depend_on_how_it_is_asked(size, counts, start):
    whole = Cycle(np.arange(size) + 50, 3).take(0, start + sum(counts))
    cycle, position, parts = Cycle(np.arange(size) + 50, 3), start, []
    for count in counts:
        parts.append(cycle.take(position, count))
        position += count
    assert np.array_equal(np.concatenate(parts), whole[start:])
    assert np.array_equal(cycle.take(start, counts[0]), whole[start : start + counts[0]])


@given(st.integers(0, 60), st.integers(0, 60))
def test_sampler_meets_shares_over_any_positions(start, count):
    groups = [(np.arange(4), 1.0), (np.arange(4, 9), 1.0), (np.arange(9, 10), 1.0)]
    groups += [(np.arange(0), 5.0), (np.arange(99, 105), 0.0)]  # empty or unwanted: left out
    taken = DocumentSampler(groups, 3).take(start, count)
    assert len(taken) == count
    parts = [
        int(((taken >= low) & (taken < high)).sum()) for low, high in ((0, 4), (4, 9), (9, 10))
    ]
    assert max(parts) - min(parts) <= 2
    assert taken.max(initial=0) < 10


def test_sampler_with_one_group_passes_over_all_documents():
    assert Counter(
        DocumentSampler([(np.arange(12), 1.0)], seed=1).take(12, 24).tolist()
    ) == dict.fromkeys(range(12), 2)


@given(
    st.lists(st.lists(st.integers(3, 700), max_size=200), min_size=1, max_size=5),
    st.integers(0, 99),
    st.sampled_from([0.15, 0.5, 0.9]),
)
def test_corruption_loses_nothing(texts, seed, share):
    rng = np.random.default_rng(seed)
    sources, targets = corrupt(Tokens.from_lists(texts), SENTINELS, END, rng, share)
    assert len(sources) == len(targets) == len(texts)
    for i, text in enumerate(texts):
        source, target = sources[i].tolist(), targets[i].tolist()
        assert target[-1] == END
        marks = [token for token in source if token >= 800]
        assert marks == [token for token in target if token >= 800]
        wanted = min(max(1, round(len(text) * share / 3)), len(SENTINELS) - 1, len(text))
        assert marks == SENTINELS[:wanted].tolist()
        spans: dict[int, list[int]] = {}
        for token in target[:-1]:
            if token >= 800:
                spans[token] = []
            else:
                spans[marks[len(spans) - 1]].append(token)
        assert [word for token in source for word in spans.get(token, [token])] == text
        assert all(1 <= len(span) <= 3 for span in spans.values())


def test_corruption_takes_its_share_anywhere():
    texts = Tokens.from_lists([range(100)] * 3000)
    sources, targets = corrupt(texts, SENTINELS + 100, END, np.random.default_rng(0))
    removed = targets.lengths - 6
    assert 13 < np.mean(removed) <= 15  # five spans of up to three; neighbours cut some short
    left = np.bincount(sources.values[sources.values < 100], minlength=100)
    # the first two places have fewer starts before them that reach so far
    assert np.ptp(left[2:]) < 6 * np.sqrt(3000 * 0.14 * 0.86)
    assert len(np.unique(removed)) > 1
