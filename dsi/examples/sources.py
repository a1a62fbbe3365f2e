"""Where examples come from: endless sequences of documents and queries, the same for a seed.

Position t of a sequence is always the same example, whatever was asked before, so that a run
resumes anywhere without stored state.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from dsi.seeding import numpy_rng
from dsi.text.tokens import Tokens, slices
from dsi.text.views import View


def allocate(shares: Sequence[float], total: int) -> np.ndarray:
    """Whole numbers that add up to ``total``, as close to ``shares`` as rounding allows.

    Webster's method: one seat after the other goes to the largest share / (2 * seats + 1), equal
    ones to the first. So for growing totals no number shrinks (rounding each share does not
    promise that), and the difference of two calls says how many examples of a source lie between
    two positions.
    """
    weights = np.asarray(shares, float) / float(np.sum(shares))
    # rounding at this total gives at most `total` seats, all of which the method gives, too
    low = max(total - len(weights) / 2 - 1, 0.0)
    counts = np.floor(weights * low + 0.5).astype(np.int64)
    for _ in range(total - int(counts.sum())):
        counts[np.argmax(weights / (2 * counts + 1))] += 1
    return counts


class Cycle:
    """Endless passes over ``items``, each in a new random order: position t is always the same."""

    def __init__(self, items: np.ndarray, seed: int):
        self.items, self.seed = items, seed
        self._epoch, self._order = -1, items

    def take(self, start: int, count: int) -> np.ndarray:
        """The items at positions start .. start + count - 1."""
        size, parts = len(self.items), []
        while count > 0:
            epoch, within = divmod(start, size)
            if epoch != self._epoch:
                rng = numpy_rng(self.seed, "cycle", epoch)
                self._epoch, self._order = epoch, rng.permutation(self.items)
            piece = self._order[within : within + count]
            parts.append(piece)
            start, count = start + len(piece), count - len(piece)
        return np.concatenate(parts) if parts else self.items[:0]


class DocumentSampler:
    """Documents in given proportions: groups of documents, each with a share.

    With one group this is a plain shuffled pass over all documents.
    """

    def __init__(self, groups: Sequence[tuple[np.ndarray, float]], seed: int):
        kept = [(items, share) for items, share in groups if len(items) and share > 0]
        self.shares = [share for _, share in kept]
        self.cycles = [Cycle(items, seed * 31 + i) for i, (items, _) in enumerate(kept)]

    def take(self, start: int, count: int) -> np.ndarray:
        """Documents at positions start .. start + count - 1, grouped, not mixed."""
        before, after = allocate(self.shares, start), allocate(self.shares, start + count)
        parts = [
            cycle.take(int(low), int(high - low))
            for cycle, low, high in zip(self.cycles, before, after, strict=True)
        ]
        return np.concatenate(parts)


@dataclass(frozen=True)
class Examples:
    """Inputs and the documents they belong to; ``labels`` where the model writes text.

    ``extras``: further arrays with a row per example.
    """

    inputs: Tokens
    documents: np.ndarray
    labels: Tokens | None = None
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)


class ExampleSource(Protocol):
    """Gives the examples at positions start .. start + count - 1 of its own endless sequence."""

    share: float
    writes_text: bool

    def take(self, start: int, count: int) -> Examples: ...


@dataclass
class DocumentSource:
    """Documents seen through one view: text -> docid."""

    tokens: Tokens
    view: View
    sampler: DocumentSampler
    share: float
    seed: int
    prompt: np.ndarray
    writes_text: bool = False

    def take(self, start: int, count: int) -> Examples:
        documents = self.sampler.take(start, count)
        spans = self.view.spans(self.tokens, documents, numpy_rng(self.seed, "view", start))
        return Examples(slices(self.tokens, *spans, prompt=self.prompt), documents)


@dataclass
class TextSource:
    """Docid -> text: targets to inputs, or span corruption with the docid in front.

    ``sentinels``: ids of the span markers; empty for targets to inputs.
    """

    tokens: Tokens
    view: View
    sampler: DocumentSampler
    share: float
    seed: int
    prompt: np.ndarray
    sentinels: np.ndarray
    end: int
    writes_text: bool = True

    def take(self, start: int, count: int) -> Examples:
        documents = self.sampler.take(start, count)
        rng = numpy_rng(self.seed, "view", start)
        spans = self.view.spans(self.tokens, documents, rng)
        text = slices(self.tokens, *spans)
        if len(self.sentinels) == 0:
            # the docid vector goes in front of the prompt; an empty prompt still needs one token
            prompt = self.prompt if len(self.prompt) else np.array([self.end])
            inputs = Tokens.of_lengths(np.tile(prompt, count), np.full(count, len(prompt)))
            return Examples(inputs, documents, _ended(text, self.end))
        source, target = corrupt(text, self.sentinels, self.end, rng)
        inputs = slices(source, source.offsets[:-1], source.lengths, prompt=self.prompt)
        return Examples(inputs, documents, target)


@dataclass
class QuerySource:
    """Queries -> docid, every query equally often."""

    tokens: Tokens
    documents: np.ndarray
    share: float
    seed: int
    prompt: np.ndarray
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)
    writes_text: bool = False
    _cycle: Cycle = field(init=False)

    def __post_init__(self) -> None:
        self._cycle = Cycle(np.arange(len(self.documents)), self.seed)

    def take(self, start: int, count: int) -> Examples:
        rows = self._cycle.take(start, count)
        starts, lengths = self.tokens.offsets[rows], self.tokens.lengths_of(rows)
        inputs = slices(self.tokens, starts, lengths, prompt=self.prompt)
        return Examples(inputs, self.documents[rows], extras=_rows(self.extras, rows))


@dataclass
class QueriesOfDocuments:
    """Queries -> docid: a document by the sampler, then one of its queries."""

    tokens: Tokens
    documents: np.ndarray
    sampler: DocumentSampler
    share: float
    seed: int
    prompt: np.ndarray
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)
    writes_text: bool = False

    def __post_init__(self) -> None:
        self._order = np.argsort(self.documents, kind="stable")
        self._sorted = self.documents[self._order]

    def take(self, start: int, count: int) -> Examples:
        documents = self.sampler.take(start, count)
        low = np.searchsorted(self._sorted, documents, side="left")
        high = np.searchsorted(self._sorted, documents, side="right")
        rng = numpy_rng(self.seed, "query of document", start)
        rows = self._order[rng.integers(low, high)]
        starts, lengths = self.tokens.offsets[rows], self.tokens.lengths_of(rows)
        inputs = slices(self.tokens, starts, lengths, prompt=self.prompt)
        return Examples(inputs, documents, extras=_rows(self.extras, rows))


def _rows(extras: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    return {name: values[rows] for name, values in extras.items()}


def corrupt(
    texts: Tokens,
    sentinels: np.ndarray,
    end: int,
    rng: np.random.Generator,
    share: float = 0.15,
    span: int = 3,
) -> tuple[Tokens, Tokens]:
    """T5's span corruption: what is read and what is written, text by text.

    ``share`` of the tokens in spans of about ``span`` become a sentinel each; written are each
    sentinel and the tokens that it stands for, and ``end``.
    """
    lengths, places = texts.lengths, np.arange(len(texts.values))
    counts = np.round(lengths * share / span).astype(np.int64).clip(1, len(sentinels) - 1)
    counts = np.minimum(counts, lengths)
    owners, firsts = (
        np.repeat(np.arange(len(texts)), lengths),
        np.repeat(texts.offsets[:-1], lengths),
    )
    # spans begin where the smallest random numbers of the text are, so nowhere twice
    shuffled = np.lexsort((rng.random(len(places)), owners))
    begins = np.zeros(len(places), bool)
    begins[shuffled[places - firsts < counts[owners]]] = True
    latest = np.maximum.accumulate(np.where(begins, places, -span))
    hidden = (latest >= firsts) & (places - latest < span)
    numbers = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    read = texts.values.copy()
    read[begins] = sentinels[numbers]
    kept = ~hidden | begins
    copies = hidden.astype(np.int64) + begins  # the sentinel and the token behind it
    written = np.repeat(texts.values, copies)
    written[(np.cumsum(copies) - copies)[begins]] = sentinels[numbers]
    source = Tokens.of_lengths(read[kept], np.bincount(owners[kept], minlength=len(texts)))
    target = Tokens.of_lengths(written, np.bincount(owners, copies, len(texts)))
    return source, _ended(target, end)


def _ended(texts: Tokens, end: int) -> Tokens:
    """The texts with ``end`` behind each."""
    return Tokens.of_lengths(np.insert(texts.values, texts.offsets[1:], end), texts.lengths + 1)
