"""Deterministic, length-bucketed batches from a mixture of sources.

Everything here is a pure function of (seed, window): the examples of ``window`` updates are drawn
together, sorted by length so that a batch needs little padding, and the batches are shuffled. A run
resumes at any update by building that update's window again; nothing is stored.

Shape legend: E examples of a window, B batch, L longest input of a batch, W longest label.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import torch

from dsi.examples.sources import Examples, ExampleSource, allocate
from dsi.seeding import numpy_rng
from dsi.text.tokens import Tokens, padded


@dataclass(frozen=True)
class Batch:
    """One update's (or micro-batch's) tensors.

    ``input_ids``, ``attention_mask`` int64 (B, L); ``documents`` (B,); ``labels`` (B, W) with -100
    where padded, or None for text -> docid. ``multiple``: L and W are multiples of it. ``groups``
    (B,): examples of one group are of about one length, so they pass through the model together;
    None: all do. ``extras``: further tensors (B, ...) that came with the queries; NaN, or -1 where
    they are whole numbers, for examples that have none.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    documents: torch.Tensor
    labels: torch.Tensor | None
    multiple: int = 1
    groups: torch.Tensor | None = None
    extras: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def targets(self) -> int:
        """What the loss is normalised by: documents, or words written."""
        return len(self.documents) if self.labels is None else int((self.labels != -100).sum())

    def part(self, index: int, parts: int) -> "Batch":
        """Every ``parts``-th example from ``index`` on, without columns of needless padding."""
        return self.rows(torch.arange(len(self.documents))[index::parts])

    def rows(self, rows: torch.Tensor) -> "Batch":
        """The examples ``rows`` (int64 or bool), without columns of needless padding."""
        mask = self.attention_mask[rows]
        width = self._width(int(mask.sum(1).max())) if len(mask) else 1
        labels = None if self.labels is None else self.labels[rows]
        if labels is not None and len(labels):
            labels = labels[:, : self._width(int((labels != -100).sum(1).max()))]
        return replace(
            self,
            input_ids=self.input_ids[rows, :width],
            attention_mask=mask[:, :width],
            documents=self.documents[rows],
            labels=labels,
            groups=None if self.groups is None else self.groups[rows],
            extras={name: values[rows] for name, values in self.extras.items()},
        )

    def by_group(self) -> list["Batch"]:
        """The examples of each group."""
        if self.groups is None:
            return [self]
        return [self.rows(self.groups == group) for group in self.groups.unique()]

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        if device.type == "cpu":
            return self
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "Batch":
        """The same batch in memory from which a GPU copies while it computes."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        return replace(
            self,
            input_ids=change(self.input_ids),
            attention_mask=change(self.attention_mask),
            documents=change(self.documents),
            labels=None if self.labels is None else change(self.labels),
            groups=None if self.groups is None else change(self.groups),
            extras={name: change(values) for name, values in self.extras.items()},
        )

    def _width(self, longest: int) -> int:
        return -(-longest // self.multiple) * self.multiple


@dataclass(frozen=True)
class BatchShape:
    """What one update gets: ``size`` examples, padded with the id ``pad``.

    ``groups``: every batch has examples of so many quantiles of length, each a group of its own; 1:
    a batch is of one length. ``even``: the batches of a window have about equally many tokens
    instead of exactly ``size`` examples, which they have on average, and at least ``least``.
    ``multiple``: lengths are multiples of it, so that a compiled model meets few shapes.
    """

    size: int
    pad: int = 0
    groups: int = 1
    even: bool = False
    least: int = 1
    multiple: int = 1


def examples_for(sources: Sequence[ExampleSource], tokens: int, window: int, seed: int) -> int:
    """How many examples have ``tokens`` tokens, by the mean of the first 64 x ``window``."""
    docid = [s for s in sources if s.share > 0 and not s.writes_text]
    text = [s for s in sources if s.share > 0 and s.writes_text]
    total = sum(s.share for s in [*docid, *text])
    mean = 0.0
    for members in (docid, text):
        if members:
            lengths = _lengths(_draw(members, 0, 64 * window))
            mean += float(lengths.mean()) * sum(s.share for s in members) / total
    return max(1, round(tokens / mean))


def window_batches(
    sources: Sequence[ExampleSource],
    window: int,
    updates: int,
    shape: BatchShape,
    seed: int,
    first: int = 0,
) -> Iterator[Batch]:
    """The ``updates`` batches of one window, from number ``first`` on, each made when its turn is:
    padded, a window takes several times the memory of its examples."""
    text_share = sum(s.share for s in sources if s.writes_text)
    docid_share = sum(s.share for s in sources if not s.writes_text)
    shares = [docid_share, text_share]
    before = allocate(shares, window * updates)
    after = allocate(shares, (window + 1) * updates)
    rng = numpy_rng(seed, "window", window)
    chosen: list[tuple[Examples, tuple[np.ndarray, ...]]] = []
    for writes_text, low, high in zip((False, True), before, after, strict=True):
        members = [s for s in sources if s.writes_text is writes_text and s.share > 0]
        if high == low:
            continue
        count = int(high - low)
        examples = _draw(members, int(low) * shape.size, count * shape.size)
        lengths = _lengths(examples)
        shuffled = rng.permutation(len(lengths))
        order = shuffled[np.argsort(lengths[shuffled], kind="stable")]
        parts = [_parts(stratum, lengths, count, shape) for stratum in _strata(order, count, shape)]
        mixed = [[part[i] for i in rng.permutation(count)] for part in parts[1:]]
        chosen += [(examples, groups) for groups in zip(parts[0], *mixed, strict=True)]
    for i in rng.permutation(len(chosen))[first:]:
        examples, groups = chosen[i]
        yield _batch(examples, groups, shape)


def _strata(order: np.ndarray, count: int, shape: BatchShape) -> list[np.ndarray]:
    """Examples by length, cut into quantiles with something for each of ``count`` batches."""
    number = max(1, min(shape.groups, shape.size // shape.least))
    sizes = np.diff(np.arange(number + 1) * shape.size // number)
    return np.split(order, np.cumsum(sizes * count)[:-1])


def _parts(
    stratum: np.ndarray, lengths: np.ndarray, count: int, shape: BatchShape
) -> list[np.ndarray]:
    """A quantile's examples of each of ``count`` batches."""
    if shape.even:
        return np.split(stratum, even_cuts(lengths[stratum], count, shape.least))
    return np.split(stratum, count)


def _batch(examples: Examples, groups: Sequence[np.ndarray], shape: BatchShape) -> Batch:
    batch = collate(examples, np.concatenate(groups), shape.pad, shape.multiple)
    if len(groups) == 1:
        return batch
    sizes = torch.tensor([len(rows) for rows in groups])
    return replace(batch, groups=torch.arange(len(groups)).repeat_interleave(sizes))


def even_cuts(lengths: np.ndarray, parts: int, least: int) -> np.ndarray:
    """Where to cut sorted lengths into parts of about equal sums, ``least`` or more in each."""
    if len(lengths) < parts * least:
        raise ValueError(f"{len(lengths)} examples cannot be cut into {parts} parts of {least}")
    sums = np.cumsum(lengths, dtype=np.float64)
    inner = np.arange(1, parts)
    cuts = np.searchsorted(sums, sums[-1] * inner / parts, side="left") + 1
    # pushed apart: first to the right, then away from the end
    cuts = np.maximum.accumulate(cuts - inner * least) + inner * least
    cuts = np.maximum(cuts, inner * least)
    return np.minimum(cuts, len(lengths) - (parts - inner) * least)


def _lengths(examples: Examples) -> np.ndarray:
    written = 0 if examples.labels is None else examples.labels.lengths
    return examples.inputs.lengths + written


def batches_from(
    sources: Sequence[ExampleSource],
    start: int,
    stop: int,
    window: int,
    shape: BatchShape,
    seed: int,
) -> Iterator[Batch]:
    """The batches of updates start .. stop - 1."""
    update = start
    while update < stop:
        number, within = divmod(update, window)
        drawn = window_batches(sources, number, window, shape, seed, within)
        for batch in islice(drawn, stop - update):
            yield batch
            update += 1


def collate(examples: Examples, rows: np.ndarray, pad: int, multiple: int = 1) -> Batch:
    """Padded tensors of the given examples."""
    ids, mask = padded(examples.inputs, rows, pad, multiple)
    labels = None
    if examples.labels is not None:
        words, real = padded(examples.labels, rows, 0, multiple)
        labels = torch.from_numpy(np.where(real, words, -100))
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(mask.astype(np.int64)),
        torch.from_numpy(examples.documents[rows]),
        labels,
        multiple,
        extras={name: torch.from_numpy(values[rows]) for name, values in examples.extras.items()},
    )


def _draw(members: Sequence[ExampleSource], start: int, count: int) -> Examples:
    shares = [s.share for s in members]
    before, after = allocate(shares, start), allocate(shares, start + count)
    parts = [
        s.take(int(low), int(high - low))
        for s, low, high in zip(members, before, after, strict=True)
        if high > low
    ]
    labels = [part.labels for part in parts if part.labels is not None]
    return Examples(
        Tokens.concatenate([part.inputs for part in parts]),
        np.concatenate([part.documents for part in parts]),
        Tokens.concatenate(labels) if labels else None,
        _joined_extras(parts),
    )


def _joined_extras(parts: Sequence[Examples]) -> dict[str, np.ndarray]:
    """The extras of all parts, one array per name; nothing is filled in where no part has any."""
    joined = {}
    for name in dict.fromkeys(name for part in parts for name in part.extras):
        like = next(part.extras[name] for part in parts if name in part.extras)
        nothing = np.nan if np.issubdtype(like.dtype, np.floating) else -1
        joined[name] = np.concatenate(
            [
                part.extras[name]
                if name in part.extras
                else np.full((len(part.documents), *like.shape[1:]), nothing, like.dtype)
                for part in parts
            ]
        )
    return joined
