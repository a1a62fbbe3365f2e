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

from dsi.errors import UserError
from dsi.files import replace_atomically

SCHEMA = 1
ARRAYS = ("codes", "start", "leaves", "documents")


class Trie:
    """A prefix-free set of code sequences; never changed, a change makes a new one.

    Nodes are numbered breadth first, siblings by code, so the children of a node have successive
    numbers and the nodes of one depth are in the order of their prefixes. ``codes`` (M,) int16, or
    int32 for codes above 32,767: the code that leads to a node, -1 for the root (node 0).
    ``start`` (M + 1,) int32: the children of node i are start[i] .. start[i + 1] - 1. ``leaves``
    and ``documents`` (N,) int32: node and document number of every docid, by node. That is 6 (8)
    bytes per node and 8 per document. ``fan_out[d]``: most children of a node at depth d;
    ``ends[d]``: whether a docid ends with the code at position d.
    """

    def __init__(
        self,
        codes: Tensor,
        start: Tensor,
        leaves: Tensor,
        documents: Tensor,
        depth_starts: Sequence[int],
        version: int = 0,
    ):
        self.codes, self.start, self.leaves, self.documents = codes, start, leaves, documents
        self.depth_starts, self.version = list(depth_starts), version
        self.fan_out, self.ends = [], []
        for low, high in zip(self.depth_starts[:-2], self.depth_starts[1:-1], strict=True):
            self.fan_out.append(int((start[low + 1 : high + 1] - start[low:high]).max()))
        bounds = torch.tensor(self.depth_starts[1:], dtype=leaves.dtype, device=leaves.device)
        counts = torch.searchsorted(leaves, bounds).diff().tolist()
        self.ends = [count > 0 for count in counts]

    def __len__(self) -> int:
        return len(self.leaves)

    @property
    def num_nodes(self) -> int:
        """M, the root included."""
        return len(self.codes)

    @property
    def num_bytes(self) -> int:
        """Memory of the arrays."""
        return sum(getattr(self, n).numel() * getattr(self, n).element_size() for n in ARRAYS)

    @classmethod
    def build(
        cls,
        codes_NT: np.ndarray | Tensor,
        documents: np.ndarray | None = None,
        version: int = 0,
    ) -> "Trie":
        """From docids, -1 after the end; ``documents``: their numbers, by default 0, 1, ...

        Raises ValueError for an empty docid, one with a gap, and one that begins another.
        """
        codes_NT = np.asarray(codes_NT)
        count, width = codes_NT.shape
        numbers = np.arange(count) if documents is None else np.asarray(documents)
        if count != len(numbers):
            raise ValueError(f"{count} docids for {len(numbers)} documents")
        order = _order(codes_NT)
        sorted_NT = codes_NT[order]
        used_NT = sorted_NT >= 0
        lengths = used_NT.sum(1)
        wrong = (lengths == 0) | (used_NT[:, 1:] > used_NT[:, :-1]).any(1)
        if wrong.any():
            number = numbers[order[np.flatnonzero(wrong)[0]]]
            raise ValueError(f"the docid of document {number} is empty or has a gap")
        width = int(lengths.max(initial=0))
        codes, firsts = [np.array([-1])], [np.zeros(min(count, 1), np.int64)]
        fresh = np.zeros(count, bool)  # whether a row's prefix differs from the row before
        fresh[:1] = True
        depth_starts, starts = [0, 1], []
        leaves, leaf_rows = [], []
        for depth in range(width):
            column = sorted_NT[:, depth]
            fresh[1:] |= column[1:] != column[:-1]
            flag = fresh & (column >= 0)
            before = np.cumsum(flag)
            starts.append(depth_starts[-1] + before[firsts[-1]] - flag[firsts[-1]])
            rows = np.flatnonzero(flag)
            ending = np.flatnonzero(lengths == depth + 1)
            leaves.append(depth_starts[-1] + before[ending] - 1)
            leaf_rows.append(ending)
            codes.append(column[rows])
            firsts.append(rows)
            depth_starts.append(depth_starts[-1] + len(rows))
        total = depth_starts[-1]
        # the last level has no children; neither has the root of an empty trie
        starts.append(np.full(len(firsts[-1]) if width else 1, total))
        start = np.append(np.concatenate(starts), total)
        leaf = np.concatenate([*leaves, np.zeros(0, np.int64)])
        row = np.concatenate([*leaf_rows, np.zeros(0, np.int64)])
        _check_prefix_free(leaf, start, numbers[order], row)
        if total >= 2**31:
            raise ValueError(f"{total} nodes: more than 2^31 are not supported")
        largest = int(codes_NT.max(initial=0))
        kind = np.int16 if largest < 2**15 else np.int32
        return cls(
            torch.from_numpy(np.concatenate(codes).astype(kind)),
            torch.from_numpy(start.astype(np.int32)),
            torch.from_numpy(leaf.astype(np.int32)),
            torch.from_numpy(numbers[order][row].astype(np.int32)),
            depth_starts,
            version,
        )

    def append(self, codes_NT: np.ndarray, documents: np.ndarray | None = None) -> "Trie":
        """With more docids; built anew (under a microsecond per document)."""
        old_NT, old = self.to_codes()
        if documents is None:
            start = int(old.max(initial=-1)) + 1
            documents = np.arange(start, start + len(codes_NT))
        from dsi.docids import stack_codes

        both = stack_codes([old_NT, np.asarray(codes_NT, np.int32)])
        return Trie.build(both, np.concatenate([old, documents]), self.version + 1)

    def remove(self, documents: np.ndarray | Sequence[int]) -> "Trie":
        """Without these documents. Raises KeyError for one that is not there."""
        codes_NT, numbers = self.to_codes()
        gone = self._present(numbers, documents)
        return Trie.build(codes_NT[~gone], numbers[~gone], self.version + 1)

    def restrict(self, documents: np.ndarray | Sequence[int]) -> "Trie":
        """These documents alone. Raises KeyError for one that is not there."""
        codes_NT, numbers = self.to_codes()
        kept = self._present(numbers, documents)
        return Trie.build(codes_NT[kept], numbers[kept], self.version)

    @staticmethod
    def _present(numbers: np.ndarray, documents: np.ndarray | Sequence[int]) -> np.ndarray:
        wanted = np.asarray(documents, np.int64)
        missing = wanted[~np.isin(wanted, numbers)]
        if len(missing):
            raise KeyError(f"document {missing[0]} is not in the trie")
        return np.isin(numbers, wanted)

    def to_codes(self) -> tuple[np.ndarray, np.ndarray]:
        """Docids (N, T), -1 after the end, and document numbers (N,), in the order of leaves."""
        start = self.start.cpu().numpy().astype(np.int64)
        codes = self.codes.cpu().numpy()
        parents = np.repeat(np.arange(len(codes)), np.diff(start))  # of nodes 1, 2, ...
        nodes = self.leaves.cpu().numpy().astype(np.int64)
        depths = np.searchsorted(self.depth_starts, nodes, side="right") - 1
        codes_NT = np.full((len(nodes), max(1, len(self.fan_out))), -1, np.int32)
        for depth in range(len(self.fan_out), 0, -1):
            here = depths >= depth
            codes_NT[here, depth - 1] = codes[nodes[here]]
            nodes[here] = parents[nodes[here] - 1]
        return codes_NT, self.documents.cpu().numpy().astype(np.int64)

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
        codes = self.codes.take(children).long().clamp_(min=0)
        return children, codes, allowed

    def is_leaf(self, nodes: Tensor) -> Tensor:
        """Whether a docid ends at each node (any shape)."""
        return (self.start[nodes] == self.start[nodes + 1]) & (nodes > 0)

    def documents_of(self, nodes: Tensor) -> Tensor:
        """Document numbers of leaves (any shape), int64; -1 for other nodes."""
        if not len(self):
            return torch.full_like(nodes, -1)
        place = torch.searchsorted(self.leaves, nodes.to(self.leaves.dtype).contiguous())
        place = place.clamp(max=len(self) - 1)
        found = self.leaves[place] == nodes
        return torch.where(found, self.documents[place].long(), -1)

    def find(self, codes_NT: np.ndarray | Tensor) -> Tensor:
        """Document numbers (N,) of docids, int64; -1 where it is no docid of this set."""
        codes = torch.as_tensor(codes_NT).to(self.codes.device).long()
        node = torch.zeros(len(codes), dtype=torch.long, device=codes.device)
        alive = torch.ones(len(codes), dtype=torch.bool, device=codes.device)
        for column in codes.T:
            going = column >= 0
            low, count = self.children(node)
            high, end = low + count, low + count
            for _ in range(max(self.fan_out, default=1).bit_length()):
                middle = (low + high) // 2
                less = self.codes[middle.clamp(max=self.num_nodes - 1)].long() < column
                less &= low < high
                low, high = torch.where(less, middle + 1, low), torch.where(less, high, middle)
            inside = low < end
            found = inside & (self.codes[low.clamp(max=self.num_nodes - 1)].long() == column)
            alive &= found | ~going
            node = torch.where(going & found, low, node)
        return torch.where(alive, self.documents_of(node), -1)

    def end_codes(self, position: int, size: int) -> Tensor:
        """Which of ``size`` codes end some docid at a position: bool (size,)."""
        low, high = self.depth_starts[position + 1], self.depth_starts[position + 2]
        nodes = self.leaves[(self.leaves >= low) & (self.leaves < high)].long()
        ends = torch.zeros(size, dtype=torch.bool, device=self.codes.device)
        ends[self.codes[nodes].long()] = True
        return ends

    def to(self, device: torch.device | str) -> "Trie":
        """The same on a device."""
        arrays = {name: getattr(self, name).to(device) for name in ARRAYS}
        return Trie(**arrays, depth_starts=self.depth_starts, version=self.version)

    def save(self, folder: Path) -> None:
        """One .npy file per array and trie.json, in one step."""

        def write(target: Path) -> None:
            for name in ARRAYS:
                array = getattr(self, name).cpu().numpy()
                np.save(target / f"{name}.npy", array, allow_pickle=False)
            about = {"schema": SCHEMA, "version": self.version, "depth_starts": self.depth_starts}
            (target / "trie.json").write_text(json.dumps(about) + "\n", "utf-8")

        replace_atomically(folder, write)

    @classmethod
    def load(cls, folder: Path, mmap: bool = True) -> "Trie":
        """The inverse of :meth:`save`; memory-mapped, so only what a search reads is loaded."""
        about = _read_about(folder / "trie.json")
        arrays: dict[str, Tensor] = {}
        for name in ARRAYS:
            path = folder / f"{name}.npy"
            try:
                # "c": pages of our own if written to, which torch demands of an array
                array = np.load(path, mmap_mode="c" if mmap else None, allow_pickle=False)
            except (OSError, ValueError) as error:
                raise UserError(f"{path}: cannot be read ({error}); restore the file") from error
            arrays[name] = torch.from_numpy(array)
        return cls(**arrays, depth_starts=about["depth_starts"], version=about["version"])


def _read_about(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); restore the file") from error
    if not isinstance(about, dict) or about.get("schema") != SCHEMA:
        raise UserError(f"{path}: not a trie of schema {SCHEMA}; make it again")
    return about


def _order(codes_NT: np.ndarray) -> np.ndarray:
    """Row order by code sequence: columns packed into few 64-bit keys, then one sort."""
    keys: list[np.ndarray] = []
    used = 64
    for column in codes_NT.T:
        bits = (int(column.max(initial=-1)) + 1).bit_length()
        if used + bits > 63:
            keys.append(np.zeros(len(codes_NT), np.int64))
            used = 0
        keys[-1] <<= bits
        keys[-1] |= column.astype(np.int64) + 1
        used += bits
    if len(keys) == 1:
        return np.argsort(keys[0], kind="stable")
    return np.lexsort(keys[::-1])


def _check_prefix_free(
    leaf: np.ndarray, start: np.ndarray, numbers: np.ndarray, row: np.ndarray
) -> None:
    equal = np.flatnonzero(leaf[1:] == leaf[:-1])
    longer = np.flatnonzero(start[leaf + 1] > start[leaf])
    for places in (equal, longer):
        if len(places):
            first = row[places[0]]
            raise ValueError(
                f"the docid of document {numbers[first]} begins that of {numbers[first + 1]}"
            )
