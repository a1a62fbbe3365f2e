"""What the query generator learns from, batch by batch: pairs, and spans to copy.

Both streams are endless and depend on nothing but the seed. A document's queries share a batch, so
that it is encoded once for all of them.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dsi.seeding import numpy_rng

PER_DOCUMENT = 8  # queries of one document in one batch, at most
SPANS = 4  # spans per document in one copy batch
SHORTEST, LONGEST = 4, 16  # tokens of a span: as long as queries
WINDOW = 16  # batches that are sorted by length together


class PairBatch(NamedTuple):
    """Token ids of documents and queries; ``owner[p]`` is the document that query p asks for."""

    sources: list[np.ndarray]
    targets: list[np.ndarray]
    owner: np.ndarray


def pair_batches(
    sources: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    document_P: np.ndarray,
    batch_size: int,
    seed: int,
) -> Iterator[PairBatch]:
    """Batches of about ``batch_size`` pairs: target p belongs to source ``document_P[p]``.

    Every pair once per epoch. A window of batches is sorted by document length and the batches
    shuffled, so little is padded. A batch exceeds its size by at most 7 pairs.
    """
    assert len(targets) == len(document_P) > 0
    epoch = 0
    while True:
        rng = numpy_rng(seed, "query-generator", "pairs", epoch)
        order = rng.permutation(len(targets))
        order = order[np.argsort(document_P[order], kind="stable")]
        starts = np.flatnonzero(np.diff(document_P[order], prepend=-1))
        items = [
            group[i : i + PER_DOCUMENT]
            for group in np.split(order, starts[1:])
            for i in range(0, len(group), PER_DOCUMENT)
        ]
        items = [items[int(i)] for i in rng.permutation(len(items))]
        for window in _groups(items, WINDOW * batch_size):
            window.sort(key=lambda item: len(sources[int(document_P[item[0]])]))
            batches = list(_groups(window, batch_size))
            for b in map(int, rng.permutation(len(batches))):
                yield PairBatch(
                    [sources[int(document_P[item[0]])] for item in batches[b]],
                    [targets[int(p)] for item in batches[b] for p in item],
                    np.repeat(np.arange(len(batches[b])), [len(item) for item in batches[b]]),
                )
        epoch += 1


def copy_batches(
    sources: Sequence[np.ndarray], batch_size: int, longest: int, seed: int
) -> Iterator[PairBatch]:
    """Batches of document -> random span of it, at most ``longest`` tokens with the end token.

    The span's first tokens have to be guessed, all others can be read off the document: the
    cheapest task that teaches cross-attention to find its place and copy (inverse cloze, Lee et
    al. 2019, turned round).
    """
    documents = max(1, batch_size // SPANS)
    longest = min(LONGEST, longest - 1)
    epoch = 0
    while True:
        rng = numpy_rng(seed, "query-generator", "copy", epoch)
        order = rng.permutation(len(sources))
        for i in range(0, len(order), documents):
            rows = order[i : i + documents].tolist()
            targets = []
            for row in np.repeat(rows, SPANS).tolist():
                body, end = sources[row][:-1], sources[row][-1:]
                length = min(len(body), int(rng.integers(min(SHORTEST, longest), longest + 1)))
                start = int(rng.integers(0, len(body) - length + 1))
                targets.append(np.concatenate([body[start : start + length], end]))
            owner = np.repeat(np.arange(len(rows)), SPANS)
            yield PairBatch([sources[row] for row in rows], targets, owner)
        epoch += 1


def _groups(items: Sequence[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    """Consecutive items until they hold ``size`` pairs."""
    group, pairs = [], 0
    for item in items:
        group.append(item)
        pairs += len(item)
        if pairs >= size:
            yield group
            group, pairs = [], 0
    if group:
        yield group
