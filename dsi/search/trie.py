"""Trie: the set of valid docids as flat arrays (compressed sparse rows).

Shape legend: N documents, T docid length, M nodes.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsi.docids import codes_to_text
from dsi.errors import UserError
from dsi.files import replace_atomically

SCHEMA = 2
ARRAYS = ("codes", "start", "leaves", "documents")
Numbers = np.ndarray | Tensor | Sequence[int] | Sequence[Sequence[int]]

_LARGEST = 2**31 - 1  # of a code, a node and a document number: int32


class Trie:
    """A prefix-free set of code sequences. It never changes: other documents are another trie.

    Nodes are numbered breadth first, siblings by code, so the children of a node have successive
    numbers and the nodes of one depth are in the lexicographic order of their prefixes.

    * ``codes`` (M,) int16, or int32 when a code exceeds 32,767: the code that leads to a node, -1
      for the root, which is node 0.
    * ``start`` (M + 1,) int32: the children of node i are the nodes start[i] .. start[i + 1] - 1.
    * ``leaves`` (N,) int32: the nodes at which a docid ends, ascending.
    * ``documents`` (N,) int32: the document number of each of them.
    * ``depth_starts``: the first node of each depth, then M: T + 2 numbers. T, at least 1, is the
      length of the longest docid.
    * ``fan_out[d]``: the largest number of children of a node at depth d (T numbers).
    * ``ends[d]``: whether a code at position d ends a docid.
    * ``version``: which set this is (in a run, the stage).

    Bytes: 6 per node (codes 2, start 4; 8 with int32 codes) and 8 per document (leaves and
    documents 4 each). No document has more than T nodes of its own: 56 bytes for 8 positions.
    """

    def __init__(
        self,
        codes: Tensor,
        start: Tensor,
        leaves: Tensor,
        documents: Tensor,
        *,
        depth_starts: Sequence[int],
        version: int = 0,
        fan_out: Sequence[int] | None = None,
    ):
        """From arrays that :meth:`build` has made. What is not given is read from them."""
        self.codes, self.start, self.leaves, self.documents = codes, start, leaves, documents
        self.depth_starts, self.version = list(depth_starts), version
        if fan_out is None:
            ranges = zip(self.depth_starts[:-2], self.depth_starts[1:-1], strict=True)
            fan_out = [int(start[low : high + 1].diff().max()) for low, high in ranges]
        self.fan_out = list(fan_out)
        self.ends: list[bool] = (np.diff(self._leaf_bounds()) > 0).tolist()

    def __len__(self) -> int:
        return len(self.leaves)

    @property
    def num_nodes(self) -> int:
        """M, the root included."""
        return len(self.codes)

    @property
    def num_bytes(self) -> int:
        """Memory of the four arrays."""
        return sum(getattr(self, name).nbytes for name in ARRAYS)

    @classmethod
    def build(cls, codes_NT: Numbers, documents: Numbers | None = None, version: int = 0) -> "Trie":
        """From docids (N, T), -1 after the end; ``documents``: their numbers, by default 0, 1, ...,
        and then a row of -1 alone is a document that has been removed.

        Raises ValueError for an empty docid, one with a hole (a code after -1), and for two docids
        of which one is, or begins, the other; it names the documents. Also for numbers that are
        negative, repeated or beyond 32 bits.
        """
        codes_NT = _integers(codes_NT, "codes_NT")
        if documents is None and (gone := removed_rows(codes_NT)).any():
            documents = np.flatnonzero(~gone)
            codes_NT = codes_NT[documents]
        codes_NT, numbers = _assignment(codes_NT, documents)
        order = _order(codes_NT)
        sorted_TN = np.ascontiguousarray(codes_NT[order].T)
        arrays, depth_starts = _layout(sorted_TN, numbers[order])
        tensors = map(torch.from_numpy, arrays)
        return cls(*tensors, depth_starts=depth_starts, version=version)

    def restrict(self, documents: Numbers) -> "Trie":
        """These documents alone, of the same version: a search among them.

        Raises KeyError for one that is not there.
        """
        trie = Trie.build(*self._codes_at(self._places(documents)), self.version)
        return trie.to(self.codes.device)

    def _places(self, documents: Numbers) -> np.ndarray:
        """Where documents are in the order of leaves, ascending, each once."""
        wanted, first = np.unique(_integers(documents, "documents"), return_index=True)
        if not len(wanted):
            return np.zeros(0, np.int64)
        # sorting the few that are wanted, not the many there are
        held = self.documents.cpu().numpy()
        where = np.searchsorted(wanted, held).clip(max=len(wanted) - 1)
        places = np.flatnonzero(wanted[where] == held)
        if len(places) < len(wanted):
            missing = np.ones(len(wanted), bool)
            missing[where[places]] = False
            number = wanted[missing][first[missing].argmin()]
            raise KeyError(f"document {number} is not in the trie")
        return places

    def _codes_at(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Docids int32 (N, T), -1 after the end, and document numbers int64 (N,) of some leaves.

        ``places``: of the leaves, ascending. All are walked up from at once.
        """
        codes, start, leaves, documents = (getattr(self, name).cpu().numpy() for name in ARRAYS)
        nodes = leaves[places].astype(np.int64)
        codes_NT = np.full((len(nodes), len(self.fan_out)), -1, np.int32)
        depths = np.searchsorted(self.depth_starts, nodes, side="right") - 1
        for depth in range(len(self.fan_out), 0, -1):
            # leaves are ordered by depth: those of at least this depth are the last ones
            deep = slice(int(np.searchsorted(depths, depth)), None)
            codes_NT[deep, depth - 1] = codes[nodes[deep]]
            low, high = self.depth_starts[depth - 1 : depth + 1]
            parents = np.repeat(np.arange(low, high), np.diff(start[low : high + 1]))
            nodes[deep] = parents[nodes[deep] - high]
        return codes_NT, documents[places].astype(np.int64)

    def children(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """First child and number of children of nodes (any shape), int64."""
        first = self.start[nodes].long()
        return first, self.start[nodes + 1].long() - first

    def candidates(self, nodes_BK: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Children, their codes and which of them are real: int64, int64, bool (B, K, width).

        ``width``: at least the number of children of any of the nodes.
        """
        first, count = self.children(nodes_BK)
        step = torch.arange(width, device=nodes_BK.device)
        allowed = step < count[..., None]
        children = torch.where(allowed, first[..., None] + step, 0)
        codes = self.codes.index_select(0, children.flatten()).view(children.shape)
        return children, codes.long().clamp_(min=0), allowed

    def is_leaf(self, nodes: Tensor) -> Tensor:
        """Whether a docid ends at each node (any shape), bool."""
        return (self.start[nodes] == self.start[nodes + 1]) & (nodes > 0)

    def documents_of(self, nodes: Tensor) -> Tensor:
        """Document numbers of leaves (any shape), int64; -1 for other nodes."""
        if not len(self):
            return torch.full_like(nodes, -1, dtype=torch.long)
        place = torch.searchsorted(self.leaves, nodes.to(self.leaves.dtype).contiguous())
        place = place.clamp(max=len(self) - 1)
        return torch.where(self.leaves[place] == nodes, self.documents[place].long(), -1)

    def find(self, codes_NT: Numbers) -> Tensor:
        """Document numbers int64 (N,) of docids (N, any length); -1 for what is no docid.

        A descent of all docids at once, with a bisection among the children of each one's node.
        """
        codes = torch.as_tensor(codes_NT, dtype=torch.long).to(self.codes.device)
        nodes = torch.zeros(len(codes), dtype=torch.long, device=self.codes.device)
        alive = torch.ones_like(nodes, dtype=torch.bool)
        last = self.num_nodes - 1
        for position in range(codes.shape[1]):
            code = codes[:, position]
            low, count = self.children(nodes)
            high = end = low + count
            widest = self.fan_out[position] if position < len(self.fan_out) else 0
            for _ in range(widest.bit_length()):
                middle = (low + high) >> 1
                less = (self.codes.index_select(0, middle.clamp(max=last)) < code) & (low < high)
                low, high = torch.where(less, middle + 1, low), torch.where(less, high, middle)
            found = (low < end) & (self.codes.index_select(0, low.clamp(max=last)) == code)
            # after its end a docid stays at its leaf, and an end anywhere else is a docid's hole
            alive &= found | ((code == -1) & (count == 0))
            nodes = torch.where(found, low, nodes)
        return torch.where(alive, self.documents_of(nodes), -1)

    def end_codes(self, position: int, size: int) -> Tensor:
        """Which of the codes 0 .. size - 1 end some docid at a position: bool (size,)."""
        ends = torch.zeros(size, dtype=torch.bool, device=self.codes.device)
        if 0 <= position < len(self.fan_out):
            low, high = self._leaf_bounds()[position : position + 2]
            codes = self.codes[self.leaves[low:high].long()].long()
            ends[codes[codes < size]] = True
        return ends

    def widths(self) -> list[int]:
        """One more than the largest code of each position (T numbers)."""
        bounds = zip(self.depth_starts[1:-1], self.depth_starts[2:], strict=True)
        return [int(self.codes[low:high].max()) + 1 if low < high else 0 for low, high in bounds]

    def _leaf_bounds(self) -> list[int]:
        """How many leaves lie above the depths 1 .. T + 1 (T + 1 numbers)."""
        firsts = torch.tensor(self.depth_starts[1:], dtype=torch.int32, device=self.leaves.device)
        return torch.searchsorted(self.leaves, firsts).tolist()

    def to(self, device: torch.device | str) -> "Trie":
        """The same trie on a device; itself when it is there already."""
        arrays = [getattr(self, name).to(device) for name in ARRAYS]
        return self if arrays[0] is self.codes else Trie(*arrays, **self._about())

    def _about(self) -> dict[str, Any]:
        names = ("depth_starts", "version", "fan_out")
        return {name: getattr(self, name) for name in names}

    def save(self, folder: str | Path) -> None:
        """One .npy file per array and trie.json, all in one step."""

        def write(target: Path) -> None:
            for name in ARRAYS:
                array = getattr(self, name).cpu().numpy()
                np.save(target / f"{name}.npy", array, allow_pickle=False)
            about = {"schema": SCHEMA, **self._about()}
            (target / "trie.json").write_text(json.dumps(about) + "\n", "utf-8")

        replace_atomically(Path(folder), write)

    @classmethod
    def load(cls, folder: str | Path) -> "Trie":
        """The inverse of :meth:`save`, memory-mapped: only pages that a search reads are loaded.

        Raises UserError that names the file that is missing, broken or of another schema.
        """
        path = Path(folder) / "trie.json"
        try:
            about = json.loads(path.read_text("utf-8"))
            schema = about.pop("schema", None) if isinstance(about, dict) else None
            if schema == SCHEMA:
                starts = about["depth_starts"]
                if starts[:2] != [0, 1] or starts != sorted(starts):
                    raise ValueError("depth_starts must ascend from 0, 1")
                if len(about.get("fan_out", starts[2:])) != len(starts[2:]):
                    raise ValueError("fan_out must have a number for each depth")
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise _unreadable(path, error) from error
        if schema != SCHEMA:
            raise UserError(f"{path}: schema {schema!r}, this version reads {SCHEMA}; save it anew")
        arrays = [_load_array(path.with_name(f"{name}.npy")) for name in ARRAYS]
        sizes = (starts[-1], starts[-1] + 1, len(arrays[2]), len(arrays[2]))
        for name, array, size in zip(ARRAYS, arrays, sizes, strict=True):
            if len(array) != size:
                raise _unreadable(path.with_name(f"{name}.npy"), f"{len(array)} of {size} numbers")
        try:
            _check_arrays(arrays)
            return cls(*arrays, **about)
        except (ValueError, LookupError, TypeError, RuntimeError) as error:
            raise _unreadable(path, error) from error


def removed_rows(codes_NT: np.ndarray) -> np.ndarray:
    """Which documents have no docid any more, a row of -1 alone: bool (N,)."""
    if codes_NT.ndim != 2 or not codes_NT.shape[1]:
        return np.zeros(len(codes_NT), bool)
    gone = codes_NT[:, 0] == -1
    return gone & (codes_NT == -1).all(1) if gone.any() else gone


def _check_arrays(arrays: Sequence[Tensor]) -> None:
    """ValueError for numbers that would lead a search outside the arrays."""
    codes, start, leaves, documents = arrays
    if start[0] != 1 or start[-1] != len(codes) or (start.diff() < 0).any():
        raise ValueError("start must ascend from 1 to the number of nodes")
    if (codes[1:] < 0).any() or (len(leaves) and (leaves[0] < 1 or leaves[-1] >= len(codes))):
        raise ValueError("codes or leaves are out of range")
    if (leaves.diff() <= 0).any() or (documents < 0).any():
        raise ValueError("leaves must ascend, and documents not be negative")
    if len(documents.unique()) != len(documents):
        raise ValueError("a document number is there twice")


def _assignment(codes_NT: Numbers, documents: Numbers | None) -> tuple[np.ndarray, np.ndarray]:
    """Docids int32 (N, T) and numbers int64 (N,), checked but for docids that begin another."""
    codes_NT = _integers(codes_NT, "codes_NT")
    if codes_NT.ndim != 2:
        raise ValueError(f"codes_NT: must have two axes, not the shape {codes_NT.shape}")
    count = len(codes_NT)
    documents = np.arange(count) if documents is None else documents
    numbers = _integers(documents, "documents")
    if numbers.shape != (count,):
        raise ValueError(f"documents: {count} docids, but numbers of the shape {numbers.shape}")
    if not count:
        return np.zeros((0, 1), np.int32), np.zeros(0, np.int64)
    for name, values, least in (("codes_NT", codes_NT, -1), ("documents", numbers, 0)):
        for value in (int(values.min()), int(values.max())) if values.size else ():
            if not least <= value <= _LARGEST:
                raise ValueError(f"{name}: {value} is not between {least} and {_LARGEST}")
    ordered = np.sort(numbers)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(repeated):
        raise ValueError(f"documents: number {repeated[0]} is given twice")
    used_NT = codes_NT >= 0
    hole, empty = (used_NT[:, 1:] > used_NT[:, :-1]).any(1), ~used_NT.any(1)
    for rows, what in ((empty, "is empty"), (hole, "has a hole")):
        if rows.any():
            raise ValueError(f"the docid of document {numbers[rows.argmax()]} {what}")
    return codes_NT.astype(np.int32, copy=False), numbers.astype(np.int64, copy=False)


def _integers(values: Numbers, name: str) -> np.ndarray:
    values = values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if values.size and values.dtype.kind not in "iu":
        raise ValueError(f"{name}: must be integers, not {values.dtype}")
    return values if values.size else values.astype(np.int64)


def _order(codes_NT: np.ndarray) -> np.ndarray:
    """The rows in lexicographic order, -1 first.

    As many columns as fit make one 64-bit key. Another sort is needed only while keys are equal:
    its key is the place that a row has so far and as many of the next columns as fit.
    """
    order = np.arange(len(codes_NT))
    place, places, position = np.zeros(len(codes_NT), np.uint64), 1, 0
    while position < codes_NT.shape[1] and places < len(codes_NT):
        key, room = place, places
        while position < codes_NT.shape[1]:
            column = codes_NT[:, position]
            low = int(column.min())
            size = int(column.max()) - low + 1
            if room * size > 2**64:
                break
            digit = (column[order] if places > 1 else column).astype(np.int64) - low
            key = key * np.uint64(size) + digit.view(np.uint64)
            room, position = room * size, position + 1
        sort = np.argsort(key)
        order, key = order[sort], key[sort]
        place = np.zeros(len(key), np.uint64)
        np.cumsum(key[1:] != key[:-1], out=place[1:])
        places = int(place[-1]) + 1
    return order


def _layout(sorted_TN: np.ndarray, numbers: np.ndarray) -> tuple[list[np.ndarray], list[int]]:
    """The four arrays, and where each depth begins, from sorted docids and their documents."""
    count = len(numbers)
    lengths = (sorted_TN >= 0).sum(0)
    width = max(1, int(lengths.max(initial=0)))
    fresh = np.zeros(count, bool)  # whether a row's prefix differs from that of the row before
    fresh[:1] = True
    depth_starts, firsts = [0, 1], np.zeros(1, np.int64)
    codes, starts, leaves, rows = [np.array([-1], np.int32)], [], [], []
    for column in sorted_TN[:width]:
        differs = column[1:] != column[:-1]
        # ordered like this, what a docid begins comes right after it
        _check_shorter(differs & ~fresh[1:] & (column[:-1] < 0), sorted_TN, numbers)
        fresh[1:] |= differs
        nodes = fresh & (column >= 0)
        before = np.zeros(count + 1, np.int64)
        np.cumsum(nodes, out=before[1:])
        starts.append(depth_starts[-1] + before[firsts])
        firsts = np.flatnonzero(nodes)
        ending = np.flatnonzero(lengths == len(depth_starts) - 1)
        leaves.append(depth_starts[-1] + before[ending])
        rows.append(ending)
        codes.append(column[firsts])
        depth_starts.append(depth_starts[-1] + len(firsts))
    _check_shorter(~fresh[1:], sorted_TN, numbers)
    if depth_starts[-1] > _LARGEST:
        raise ValueError(f"codes_NT: {depth_starts[-1]} nodes, at most {_LARGEST} are possible")
    starts.append(np.full(len(firsts) + 1, depth_starts[-1]))  # the deepest have no children
    kind = np.int16 if sorted_TN.max(initial=-1) < 2**15 else np.int32
    arrays = [
        np.concatenate(codes).astype(kind),
        np.concatenate(starts).astype(np.int32),
        np.concatenate(leaves).astype(np.int32),
        numbers[np.concatenate(rows)].astype(np.int32),
    ]
    return arrays, depth_starts


def _check_shorter(begun: np.ndarray, sorted_TN: np.ndarray, numbers: np.ndarray) -> None:
    """ValueError if any row is, or begins, the next one: ``begun`` (N - 1,)."""
    if not begun.any():
        return
    row = int(begun.argmax())
    docid, longer = codes_to_text(sorted_TN[:, row : row + 2].T)
    one, other = numbers[row : row + 2].tolist()
    if docid == longer:
        one, other = sorted((one, other))
        raise ValueError(f"documents {one} and {other} have the same docid, {docid}")
    raise ValueError(f"the docid of document {one}, {docid}, begins that of {other}, {longer}")


def _load_array(path: Path) -> Tensor:
    try:
        # "c": pages become our own when written to; torch warns of arrays that cannot be
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind != "i":
        raise _unreadable(path, "not a row of integers")
    return torch.from_numpy(array)


def _unreadable(path: Path, why: Exception | str) -> UserError:
    return UserError(f"{path}: cannot be read ({' '.join(str(why).split())}); restore the file")
