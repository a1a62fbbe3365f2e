from itertools import islice

import numpy as np
import pytest

from dsi.queries.batches import PER_DOCUMENT, SPANS, copy_batches, pair_batches

END = 1
SOURCES = [np.append(np.arange(100 * d, 100 * d + 5 + d), END) for d in range(2, 32)]
DOCUMENT = np.repeat(np.arange(30), np.arange(30) % 4 + 1)
DOCUMENT = np.concatenate([DOCUMENT, np.full(20, 3)])  # one document with many queries
TARGETS = [np.array([p, END]) for p in range(len(DOCUMENT))]


def an_epoch(seed: int) -> list:
    batches, seen = [], 0
    for batch in pair_batches(SOURCES, TARGETS, DOCUMENT, 8, seed):
        batches.append(batch)
        seen += len(batch.targets)
        if seen >= len(TARGETS):
            return batches
    raise AssertionError


def test_an_epoch_has_every_pair_once_with_its_document():
    batches = an_epoch(0)
    pairs = [int(target[0]) for batch in batches for target in batch.targets]
    assert sorted(pairs) == list(range(len(TARGETS)))
    for batch in batches:
        assert len(batch.targets) < 8 + PER_DOCUMENT
        for target, owner in zip(batch.targets, batch.owner, strict=True):
            assert batch.sources[owner] is SOURCES[DOCUMENT[target[0]]]


def test_the_seed_decides():
    first, again, other = an_epoch(0), an_epoch(0), an_epoch(1)

    def ids(batches):
        return [[int(target[0]) for target in batch.targets] for batch in batches]

    assert ids(first) == ids(again) != ids(other)
    two = list(islice(pair_batches(SOURCES, TARGETS, DOCUMENT, 8, 0), 2 * len(first)))
    assert ids(two)[: len(first)] == ids(first) != ids(two)[len(first) :]


@pytest.mark.parametrize("longest", [6, 32])
def test_copies_are_spans_of_their_document(longest):
    batches = list(islice(copy_batches(SOURCES, 8, longest, seed=0), 30))
    lengths = set()
    for batch in batches:
        assert len(batch.targets) == SPANS * len(batch.sources)
        for target, owner in zip(batch.targets, batch.owner, strict=True):
            source = batch.sources[owner].tolist()
            span = target[:-1].tolist()
            assert target[-1] == END and END not in span and len(target) <= longest
            start = source.index(span[0])
            assert source[start : start + len(span)] == span
            lengths.add(len(span))
    assert min(lengths) == 4 and max(lengths) == (5 if longest == 6 else 16)
