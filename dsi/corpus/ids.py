"""Ids to rows without a dictionary: sorted 64-bit hashes, hits verified on the real strings.

A dictionary of a million ids costs some 150 MB of Python objects; this costs 16 bytes per id and
the ids themselves as one Arrow array. N is the number of rows, M the number of ids asked for.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pyarrow as pa

BATCH = 65_536
FEW = 64

Hash = Callable[[str], int]


def hashes(strings: Iterable[str], function: Hash = hash) -> np.ndarray:
    """64-bit hashes, int64 (N,); ``hash`` differs between processes, so they are never stored."""
    return np.fromiter(map(function, strings), dtype=np.int64)


def first_occurrence(hashed: np.ndarray, value: Callable[[int], str]) -> np.ndarray:
    """For every row the smallest row that holds the same string, int64 (N,).

    ``value(row)`` gives a row's string; it is asked only for rows whose hash is not unique.
    """
    first = np.arange(len(hashed), dtype=np.int64)
    order = np.argsort(hashed, kind="stable")
    is_start = np.ones(len(hashed), dtype=bool)
    ascending = hashed[order]
    is_start[1:] = ascending[1:] != ascending[:-1]
    bounds = np.append(np.flatnonzero(is_start), len(hashed))
    for run in np.flatnonzero(np.diff(bounds) > 1):
        seen: dict[str, int] = {}
        for row in order[bounds[run] : bounds[run + 1]].tolist():
            first[row] = seen.setdefault(value(row), row)
    return first


class IdRows:
    """The row of every id of a string column; for a repeated id the first row."""

    def __init__(self, column: pa.ChunkedArray | pa.Array, function: Hash = hash):
        chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
        # one array in memory: looking up in hundreds of mapped chunks would concatenate each time
        self._ids = pa.concat_arrays(chunks) if chunks else pa.array([], pa.string())
        self._function = function
        parts = [
            hashes(self._ids.slice(start, BATCH).to_pylist(), function)
            for start in range(0, len(self._ids), BATCH)
        ]
        hashed = np.concatenate(parts) if parts else np.empty(0, np.int64)
        self._order = np.argsort(hashed, kind="stable")
        self._sorted = hashed[self._order]

    def __len__(self) -> int:
        return len(self._ids)

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        """The row of each id, int64 (M,); -1 where the id is unknown."""
        found = np.full(len(ids), -1, dtype=np.int64)
        for start in range(0, len(ids), BATCH):
            self._look_up(ids[start : start + BATCH], found[start : start + BATCH])
        return found

    def _look_up(self, ids: Sequence[str], found: np.ndarray) -> None:
        wanted = hashes(ids, self._function)
        pending = np.arange(len(ids))
        position = np.searchsorted(self._sorted, wanted)
        while pending.size:
            inside = position < len(self._sorted)
            pending, position = pending[inside], position[inside]
            hit = self._sorted[position] == wanted[pending]
            pending, position = pending[hit], position[hit]
            rows = self._order[position]
            stored = self._stored(rows)
            same = np.fromiter(
                (ids[i] == text for i, text in zip(pending.tolist(), stored, strict=True)),
                dtype=bool,
                count=len(stored),
            )
            found[pending[same]] = rows[same]
            pending, position = pending[~same], position[~same] + 1  # a collision: the next one

    def _stored(self, rows: np.ndarray) -> list[str]:
        if len(rows) < FEW:  # take imports pyarrow.compute, which a search would notice
            return [self._ids[row].as_py() for row in rows.tolist()]
        return self._ids.take(_indices(rows)).to_pylist()


def id_rows(column: pa.ChunkedArray | pa.Array) -> IdRows:
    """A lookup from ids to the rows of ``column``."""
    return IdRows(column)


def take(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """Rows of a table in the given order, copied into memory.

    Not ``table.take``: on a mapped table of many chunks that copies every chunk into memory first.
    """
    rows = np.asarray(rows, dtype=np.int64)
    if rows.size and not 0 <= rows.min() <= rows.max() < table.num_rows:
        raise IndexError(f"rows outside 0..{table.num_rows - 1}")
    order = np.argsort(rows, kind="stable")
    ascending = rows[order]
    parts, start = [], 0
    for batch in table.to_batches():
        low, high = np.searchsorted(ascending, (start, start + batch.num_rows))
        if low < high:
            parts.append(batch.take(_indices(ascending[low:high] - start)))
        start += batch.num_rows
    taken = pa.Table.from_batches(parts, schema=table.schema)
    if np.array_equal(ascending, rows):
        return taken
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return taken.take(_indices(inverse))


def _indices(rows: np.ndarray) -> pa.Array:
    # not pa.array, which imports pandas where it is installed: a tenth of the first search
    rows = np.ascontiguousarray(rows, np.int64)
    return pa.Array.from_buffers(pa.int64(), len(rows), [None, pa.py_buffer(rows)])
