"""Semantic docids: the path in a tree of clusters (DSI, Tay et al. 2022, section 3.2, Algorithm 1).

Shape legend: N documents, M new documents, T docid length, D width of a vector, P nodes of the
tree, K children of a node.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge

from dsi.docids._clustering import kmeans, numbers_within, one_thread, read_vectors
from dsi.docids._scheme import NewDocuments, Scheme
from dsi.embeddings import EmbeddingConfig
from dsi.seeding import derive
from dsi.settings import Count, Settings

_MAX_DEPTH = 32  # vectors of exponentially growing distance lose one outlier per level
_BLOCK = 1 << 20  # differences held at once


class Semantic(Scheme):
    """Hierarchical k-means: documents with similar vectors share the beginning of their docids.

    A node with more than ``c`` documents is split into at most ``k`` clusters, and so on. Codes
    0..k-1 lead from a node to its clusters; k + j is document j of a leaf, so a docid ends with the
    only code of at least k. A node that cannot be split (equal vectors) is a leaf of any size, and
    up to ``c`` documents in all have docids of one code.

    The tree is made from the first corpus and kept. Later documents descend to the nearest
    centroid at each level and get the next free codes of their leaf, which may outgrow ``c``.
    """

    @dataclass(frozen=True)
    class Config(Settings):
        """A tree of clusters."""

        k: Annotated[int, Ge(2)] = 10
        """Clusters per node."""
        c: Count = 100
        """Documents of a leaf, at most, when the tree is made."""
        embedding: EmbeddingConfig = EmbeddingConfig()
        """Where the vectors come from."""

    def __init__(self, config: "Semantic.Config | None" = None):
        super().__init__(config)
        self._tree: _Tree | None = None
        self._counts_P = np.zeros(0, np.int64)

    @property
    def code_sizes(self) -> list[int]:
        sizes = super().code_sizes
        clusters = 0 if self._tree is None else self._tree.paths_PT.shape[1]
        return [max(size, self.config.k) if d < clusters else size for d, size in enumerate(sizes)]

    def assign(self, documents: NewDocuments) -> np.ndarray:
        assert len(self) == self._counts_P.sum(), "codes were restored without their state"
        if not documents.count:
            return np.zeros((0, 1), np.int32)
        tree = self._tree
        with one_thread():
            vectors_MD = read_vectors(documents, tree and tree.centroids_PD.shape[1])
            if tree is None:
                tree, leaves_M = _grow(
                    vectors_MD, self.config, derive(documents.seed, "semantic docids")
                )
                self._tree, self._counts_P = tree, np.zeros(len(tree.centroids_PD), np.int64)
            else:
                leaves_M = tree.descend(vectors_MD)
        depths_M = tree.depths_P[leaves_M]
        codes_MT = np.full((len(leaves_M), int(depths_M.max()) + 1), -1, np.int32)
        codes_MT[:, :-1] = tree.paths_PT[leaves_M, : codes_MT.shape[1] - 1]
        numbers_M = self._counts_P[leaves_M] + numbers_within(leaves_M)
        codes_MT[np.arange(len(leaves_M)), depths_M] = self.config.k + numbers_M
        # A new array: a state that was handed out stays as it was.
        self._counts_P = self._counts_P + np.bincount(leaves_M, minlength=len(self._counts_P))
        return codes_MT

    def state_dict(self) -> dict[str, np.ndarray]:
        """Centroids (P, D), first child of each node (P + 1,), documents of each leaf (P,)."""
        if self._tree is None:
            return {}
        return {
            "centroids": self._tree.centroids_PD,
            "children": self._tree.children,
            "documents": self._counts_P,
        }

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        if state:
            children, nodes = state["children"], len(state["centroids"])
            # a tree of other numbers would be walked without end
            if len(children) != nodes + 1 or children[0] != 1 or children[-1] != nodes:
                raise ValueError("children: must begin with 1 and end with the number of nodes")
            if (np.diff(children) < 0).any() or (children[:-1] <= np.arange(nodes)).any():
                raise ValueError("children: must ascend, each after its parent")
            if len(state["documents"]) != nodes:
                raise ValueError(f"documents: {len(state['documents'])} of {nodes} numbers")
        self._tree = _Tree(state["centroids"], state["children"]) if state else None
        self._counts_P = state["documents"] if state else np.zeros(0, np.int64)


class _Tree:
    """Nodes numbered level by level from the root, 0; siblings have successive numbers.

    The children of node i are the nodes ``children[i] .. children[i + 1] - 1``, with codes from 0.
    """

    def __init__(self, centroids_PD: np.ndarray, children: np.ndarray):
        self.centroids_PD = centroids_PD  # float32; the root's is not used
        self.children = children  # (P + 1,) int64
        nodes = len(centroids_PD)
        parents = np.repeat(np.arange(nodes), np.diff(children))
        levels = [0, 1]
        while levels[-1] < nodes:
            levels.append(int(children[levels[-1]]))
        self.depths_P = np.repeat(np.arange(len(levels) - 1), np.diff(levels))
        self.paths_PT = np.full((nodes, len(levels) - 2), -1, np.int32)
        for depth in range(1, len(levels) - 1):
            level = np.arange(levels[depth], levels[depth + 1])
            above = parents[level - 1]
            self.paths_PT[level, : depth - 1] = self.paths_PT[above, : depth - 1]
            self.paths_PT[level, depth - 1] = level - children[above]

    def descend(self, vectors_MD: np.ndarray) -> np.ndarray:
        """The leaf of each vector, int64 (M,): at every level the nearest centroid."""
        nodes_M = np.zeros(len(vectors_MD), np.int64)
        inner = np.arange(len(vectors_MD) if len(self.centroids_PD) > 1 else 0)
        while len(inner):
            first, end = self.children[nodes_M[inner]], self.children[nodes_M[inner] + 1]
            nodes_M[inner] = first + self._nearest(vectors_MD[inner], first, end)
            below = nodes_M[inner]
            inner = inner[self.children[below + 1] > self.children[below]]
        return nodes_M

    def _nearest(self, vectors_MD: np.ndarray, first: np.ndarray, end: np.ndarray) -> np.ndarray:
        places_K = np.arange(int((end - first).max()))
        codes_M = np.zeros(len(vectors_MD), np.int64)
        step = max(1, _BLOCK // (len(places_K) * vectors_MD.shape[1]))
        for start in range(0, len(vectors_MD), step):
            rows = slice(start, start + step)
            children_MK = first[rows, None] + places_K
            missing_MK = children_MK >= end[rows, None]
            centroids_MKD = self.centroids_PD[np.where(missing_MK, 0, children_MK)]
            squares_MK = _squares(vectors_MD[rows], centroids_MKD)
            squares_MK[missing_MK] = np.inf
            codes_M[rows] = squares_MK.argmin(axis=1)
        return codes_M


def _squares(vectors_MD: np.ndarray, centroids_MKD: np.ndarray) -> np.ndarray:
    # From differences, row by row, both when the tree grows and when documents descend: equal
    # vectors take the same path whatever batch they come in, which matrix products do not promise.
    offset = vectors_MD[:, None] - centroids_MKD
    return np.einsum("mkd,mkd->mk", offset, offset)


def _grow(vectors_ND: np.ndarray, config: Semantic.Config, seed: int) -> tuple[_Tree, np.ndarray]:
    """The tree of the first corpus, and the leaf of each of its documents, int64 (N,)."""
    width = vectors_ND.shape[1]
    step = max(1, _BLOCK // (config.k * width))
    leaves_N = np.zeros(len(vectors_ND), np.int64)
    centroids, children = [np.zeros(width, np.float32)], [1]
    queue: list[tuple[np.ndarray, tuple[int, ...]]] = [(np.arange(len(vectors_ND)), ())]
    node = 0
    while queue:
        below: list[tuple[np.ndarray, tuple[int, ...]]] = []
        for rows, path in queue:
            clusters: list[np.ndarray] = []
            if len(rows) > config.c and len(path) < _MAX_DEPTH:
                inside_ND = vectors_ND[rows]
                centroids_KD = kmeans(inside_ND, config.k, derive(seed, *path))
                labels_N = np.concatenate(
                    [
                        _squares(inside_ND[start : start + step], centroids_KD[None]).argmin(axis=1)
                        for start in range(0, len(rows), step)
                    ]
                )
                used_K, labels_N = np.unique(labels_N, return_inverse=True)
                if len(used_K) > 1:
                    order = np.argsort(labels_N, kind="stable")
                    clusters = np.split(rows[order], np.cumsum(np.bincount(labels_N))[:-1])
                    centroids.extend(centroids_KD[used_K])
            if not clusters:
                leaves_N[rows] = node
            below.extend((cluster, (*path, code)) for code, cluster in enumerate(clusters))
            children.append(children[-1] + len(clusters))
            node += 1
        queue = below
    return _Tree(np.stack(centroids), np.array(children, np.int64)), leaves_N
