"""Product docids: each part of a vector quantised by itself (CLEVER, Chen et al., CIKM 2023).

Shape legend: N documents, M new documents, T docid length, D width of one group, K centroids.
"""

from dataclasses import dataclass, fields
from typing import Annotated

import numpy as np
from annotated_types import Ge

from dsi.docids._clustering import (
    SAME,
    fitting_codes,
    kmeans,
    nearest,
    one_thread,
    read_vectors,
    with_suffix,
)
from dsi.docids._scheme import NewDocuments, Scheme
from dsi.embeddings import EmbeddingConfig
from dsi.errors import UserError
from dsi.seeding import derive
from dsi.settings import Count, Settings


class Product(Scheme):
    """Incremental product quantisation: one code per group of dimensions, codebooks that follow.

    The dimensions are cut into ``groups`` runs of equal width (the first ones one wider where the
    number does not divide). In each group k-means on the first corpus gives at most ``codes``
    centroids, and a document's code is the nearest one. A last position, always there, tells
    documents with the same codes apart: 0 for the first one, j for the j-th further one.

    Each centroid has two thresholds, the mean a and the maximum m of the distances (Euclidean,
    within the group) between it and the documents it was made from. A centroid whose documents all
    lie on it has no spread to learn from and takes the group's means of a and of m over those that
    have one. Thresholds are learnt when a centroid is made and then kept. For a part of a new
    vector at distance d from its nearest centroid:

    * d <= a: it gets that code, and the centroid is kept;
    * a < d <= m: it gets that code, and the centroid moves to the mean of all its documents so far
      (where it was, with their number as its weight) and these new ones;
    * d > m: it is an outlier. The group's outliers of one extension are clustered into at most
      ``new_codes`` centroids, which get the next codes; each outlier takes the nearest of old and
      new ones. With ``new_codes: 0`` it takes the old one, which is kept.

    All distances of an extension are those to the centroids before it. Codes of old documents are
    data and stay, also where a moved or new centroid would now be nearer.

    Source: the paper's abstract and descriptions of its incremental product quantisation; what
    they leave open (centroids without spread, the number of new ones) is as said here.
    """

    @dataclass(frozen=True)
    class Config(Settings):
        """Incremental product quantisation."""

        groups: Count = 3
        """Groups of dimensions: positions, without the last one that tells equal codes apart."""
        codes: Annotated[int, Ge(2)] | None = None
        """Codes per group for the first corpus; null: a power of two near the square root of D_0,
        at most 256."""
        new_codes: Annotated[int, Ge(0)] = 16
        """Codes that one extension may add to a group."""
        embedding: EmbeddingConfig = EmbeddingConfig()
        """Where the vectors come from."""

    suffix = True

    def __init__(self, config: "Product.Config | None" = None):
        super().__init__(config)
        self._codebooks: list[_Codebook] = []

    @property
    def code_sizes(self) -> list[int]:
        sizes = super().code_sizes
        return [len(book.centroids) for book in self._codebooks] + sizes[len(self._codebooks) :]

    def assign(self, documents: NewDocuments) -> np.ndarray:
        assert bool(self._codebooks) == bool(len(self)), "codes were restored without their state"
        if not documents.count:
            return np.zeros((0, 1), np.int32)
        config, known, codebooks, columns = self.config, self._codebooks, [], []
        with one_thread():
            width = sum(book.centroids.shape[1] for book in known) if known else None
            vectors = read_vectors(documents, width)
            if vectors.shape[1] < config.groups:
                raise UserError(
                    f"docids.groups: must be at most {vectors.shape[1]}, the dimensions of the "
                    "vectors"
                )
            for group, part in enumerate(np.array_split(vectors, config.groups, axis=1)):
                part_MD = np.ascontiguousarray(part)
                seed = derive(documents.seed, "product docids", group, len(self))
                if known:
                    book, codes_M = _follow(known[group], part_MD, config.new_codes, seed)
                else:
                    book, codes_M = _found(
                        part_MD, config.codes or fitting_codes(documents.count), seed
                    )
                codebooks.append(book)
                columns.append(codes_M)
        self._codebooks = codebooks
        return with_suffix(self.codes_NT, np.stack(columns, axis=1))

    def state_dict(self) -> dict[str, np.ndarray]:
        """For each group: centroids (K, D); thresholds ``near``, ``far`` and documents, (K,)."""
        return {
            f"{field.name}.{group}": getattr(book, field.name)
            for group, book in enumerate(self._codebooks)
            for field in fields(book)
        }

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        names = [field.name for field in fields(_Codebook)]
        self._codebooks = [
            _Codebook(**{name: state[f"{name}.{group}"] for name in names})
            for group in range(len(state) // len(names))
        ]


@dataclass(frozen=True)
class _Codebook:
    centroids: np.ndarray  # (K, D) float32
    near: np.ndarray  # (K,) float32: up to here a centroid is kept
    far: np.ndarray  # (K,) float32: up to here it moves
    documents: np.ndarray  # (K,) int64: how many have the code


def _found(part_ND: np.ndarray, size: int, seed: int) -> tuple[_Codebook, np.ndarray]:
    """The codebook of the first corpus, and its codes (N,)."""
    centroids_KD = kmeans(part_ND, size, seed)
    codes_N, distances_N = nearest(part_ND, centroids_KD)
    used, codes_N = np.unique(codes_N, return_inverse=True)
    near_K, far_K = _thresholds(codes_N, distances_N)
    spread = far_K > SAME
    if spread.any():
        near_K[~spread], far_K[~spread] = near_K[spread].mean(), far_K[spread].mean()
    return _Codebook(centroids_KD[used], near_K, far_K, np.bincount(codes_N)), codes_N


def _follow(
    book: _Codebook, part_MD: np.ndarray, new_codes: int, seed: int
) -> tuple[_Codebook, np.ndarray]:
    """The codebook after new documents, and their codes (M,)."""
    size = len(book.centroids)
    codes_M, distances_M = nearest(part_MD, book.centroids)
    outlier_M = distances_M > book.far[codes_M]
    moves_M = (distances_M > book.near[codes_M]) & ~outlier_M

    centroids_KD, near_K, far_K = book.centroids.copy(), book.near, book.far
    if moves_M.any():
        moved, to = np.unique(codes_M[moves_M], return_inverse=True)
        sums = np.zeros((len(moved), part_MD.shape[1]))
        np.add.at(sums, to, part_MD[moves_M])
        weights = book.documents[moved, None]
        sums += weights * book.centroids[moved].astype(np.float64)
        centroids_KD[moved] = sums / (weights + np.bincount(to)[:, None])

    if new_codes and outlier_M.any():
        outliers = part_MD[outlier_M]
        fresh_KD = kmeans(outliers, new_codes, seed)
        found, distances = nearest(outliers, np.concatenate([book.centroids, fresh_KD]))
        is_new = found >= size
        used, members = np.unique(found[is_new] - size, return_inverse=True)
        found[is_new] = size + members
        codes_M[outlier_M] = found
        centroids_KD = np.concatenate([centroids_KD, fresh_KD[used]])
        near, far = _thresholds(members, distances[is_new])
        single = far <= SAME
        near[single], far[single] = book.near.mean(), book.far.mean()
        near_K, far_K = np.append(near_K, near), np.append(far_K, far)

    documents_K = np.bincount(codes_M, minlength=len(centroids_KD))
    documents_K[:size] += book.documents
    return _Codebook(centroids_KD, near_K, far_K, documents_K), codes_M


def _thresholds(codes_N: np.ndarray, distances_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and maximum distance, float32 (K,), of the members of each code; all have some."""
    counts_K = np.bincount(codes_N)
    mean_K = np.bincount(codes_N, weights=distances_N) / counts_K
    largest_K = np.zeros(len(counts_K), np.float32)
    np.maximum.at(largest_K, codes_N, distances_N)
    return mean_K.astype(np.float32), largest_K
