"""What the clustered docid schemes share: k-means, the nearest centroid, numbers within groups.

Shape legend: N vectors, M new vectors, D width of a vector, K centroids, T docid length.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from dsi.docids._scheme import NewDocuments, stack_codes
from dsi.docids._text import places_in_group
from dsi.errors import UserError
from dsi.seeding import derive, numpy_rng

SAME = 1e-4
"""Vectors that agree to about this in every dimension count as one when centroids are fitted.
Absolute, because embeddings have unit length."""

_SAMPLE = 20_000
_ROUNDS = 100
_BLOCK = 1024


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit BLAS and OpenMP to one thread: sums in another order would give other clusters.

    Raises UserError if scikit-learn is missing.
    """
    with _threads().limit(limits=1):
        yield


@cache
def _threads() -> Any:
    # Looking for the libraries takes milliseconds, and finds only those that are loaded.
    try:
        import sklearn.cluster  # noqa: F401
        from threadpoolctl import ThreadpoolController
    except ImportError:
        raise UserError(
            "docids: clustered docids need scikit-learn; pip install scikit-learn"
        ) from None
    return ThreadpoolController()


def fitting_codes(documents: int) -> int:
    """Codes per position for a first corpus: a power of two near its square root, 4 to 256.

    Two positions then are about as many sequences as documents, and the others room to grow.
    """
    return int(2 ** np.clip(np.round(np.log2(max(1, documents)) / 2), 2, 8))


def read_vectors(documents: NewDocuments, width: int | None) -> np.ndarray:
    """The documents' embeddings, float32 (M, D), checked; ``width`` is that of earlier ones.

    Raises UserError for another width or a value that is not finite.
    """
    vectors_MD = np.ascontiguousarray(documents.embeddings(), dtype=np.float32)
    assert vectors_MD.ndim == 2 and len(vectors_MD) == documents.count, vectors_MD.shape
    if width is not None and vectors_MD.shape[1] != width:
        raise UserError(
            f"docids.embedding: vectors have {vectors_MD.shape[1]} dimensions, those of the first "
            f"corpus had {width}; use the embedding that the docids were made with"
        )
    finite_M = np.isfinite(vectors_MD).all(axis=1)
    if not finite_M.all():
        raise UserError(
            f"docids.embedding: the vector of new document {int(finite_M.argmin())} is not finite; "
            "choose another embedding"
        )
    return vectors_MD


def kmeans(vectors_ND: np.ndarray, k: int, seed: int) -> np.ndarray:
    """At most k centroids, float32 (K, D): k-means++ and Lloyd's iterations, one start.

    No centroid is without members, so fewer distinct vectors than k give fewer centroids. Above
    20,000 vectors (or 64 per centroid) a random sample is clustered: the error of a centroid falls
    with the root of its members, and 2,000 of them leave about 2 % of the cluster's spread. That
    costs less accuracy than mini-batches, and the result still is a k-means optimum.
    """
    from sklearn.cluster import KMeans

    sample = max(_SAMPLE, 64 * k)
    if len(vectors_ND) > sample:
        rows = numpy_rng(seed, "sample").choice(len(vectors_ND), sample, replace=False)
        vectors_ND = vectors_ND[np.sort(rows)]
    # Each distinct vector once, weighted: repeated ones would leave clusters without members.
    grid_ND = np.rint(vectors_ND / SAME)
    multipliers_D = numpy_rng(0, "hash").integers(2**62, size=grid_ND.shape[1]) * 2 + 1
    _, first, labels, weights = np.unique(
        grid_ND.astype(np.int64) @ multipliers_D,
        return_index=True,
        return_inverse=True,
        return_counts=True,
    )
    if k < len(first):
        state = derive(seed, "centroids") % 2**32
        # "auto" with k-means++ is one start.
        fit = KMeans(k, init="k-means++", n_init="auto", max_iter=_ROUNDS, random_state=state)
        clusters = fit.fit_predict(grid_ND[first].astype(np.float64) * SAME, sample_weight=weights)
        labels = np.unique(clusters, return_inverse=True)[1][labels]  # numbered without gaps
    return means(vectors_ND, labels)


def means(vectors_ND: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """The mean of each cluster, float32 (K, D); every label below the largest has members."""
    order = np.argsort(labels_N, kind="stable")
    counts = np.bincount(labels_N)
    starts = np.cumsum(counts) - counts
    sums = np.add.reduceat(vectors_ND[order].astype(np.float64), starts, axis=0)
    return (sums / counts[:, None]).astype(np.float32)


def nearest(vectors_ND: np.ndarray, centroids_KD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest centroid of each vector, int64 (N,), and its distance, float32 (N,).

    A vector's result does not depend on what else is in the batch: the products are taken in
    blocks of one shape, since libraries round differently for other shapes.
    """
    # Around the centroids' mean, rounding errors are relative to their spread.
    mean_D = centroids_KD.mean(axis=0)
    centred_KD = centroids_KD - mean_D
    squares_K = np.einsum("kd,kd->k", centred_KD, centred_KD)
    block = np.zeros((_BLOCK, vectors_ND.shape[1]), np.float32)
    labels_N = np.zeros(len(vectors_ND), np.int64)
    distances_N = np.zeros(len(vectors_ND), np.float32)
    for start in range(0, len(vectors_ND), _BLOCK):
        rows = slice(start, start + _BLOCK)
        part = vectors_ND[rows]
        np.subtract(part, mean_D, out=block[: len(part)])
        labels_N[rows] = (squares_K - 2 * (block @ centred_KD.T))[: len(part)].argmin(axis=1)
        offset = part - centroids_KD[labels_N[rows]]
        distances_N[rows] = np.sqrt(np.einsum("nd,nd->n", offset, offset))
    return labels_N, distances_N


def numbers_within(groups_N: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... for the members of each group in their order, int64 (N,)."""
    order = np.argsort(groups_N, kind="stable")
    in_order = groups_N[order]
    fresh = np.append(True, in_order[1:] != in_order[:-1])[: len(order)]
    place = np.arange(len(order))
    numbers = np.empty(len(order), np.int64)
    numbers[order] = place - np.maximum.accumulate(np.where(fresh, place, 0))
    return numbers


def with_suffix(old_NT: np.ndarray, new_MT: np.ndarray) -> np.ndarray:
    """Docids (M, T): code sequences (M, T-1) followed by the number of earlier documents with it.

    ``old_NT`` are all docids so far, made the same way.
    """
    sequences = stack_codes([old_NT[:, : new_MT.shape[1]], new_MT])
    return np.column_stack([new_MT, places_in_group(sequences)[len(old_NT) :]])
