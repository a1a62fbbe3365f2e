"""Residual docids: a vector's quantisation from coarse to fine (RIPOR, Zeng et al., WWW 2024).

Shape legend: N documents, M new documents, T docid length, D width of a vector, K centroids.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge

from dsi.docids._clustering import (
    fitting_codes,
    kmeans,
    nearest,
    one_thread,
    read_vectors,
    with_suffix,
)
from dsi.docids._scheme import NewDocuments, Scheme
from dsi.embeddings import EmbeddingConfig
from dsi.seeding import derive
from dsi.settings import Count, Settings


class Residual(Scheme):
    """Residual quantisation: each code is the centroid nearest to the residual of those before it.

    k-means on the vectors gives the codes of position 0, k-means on the differences to their
    centroids those of position 1, and so on. A last position, always there, tells documents with
    the same codes apart: 0 for the first one, j for the j-th further one.

    The codebooks are made from the first corpus and kept; later documents are encoded greedily,
    the nearest centroid at each position. A codebook has fewer centroids than ``codes`` where the
    first corpus has fewer distinct residuals.

    Sources: RIPOR (Zeng et al. 2024); MixLoRA-DSI (2025) uses such docids for corpora that grow.
    """

    @dataclass(frozen=True)
    class Config(Settings):
        """Residual quantisation."""

        positions: Count = 3
        """Positions of codes, without the last one that tells equal sequences apart."""
        codes: Annotated[int, Ge(2)] | None = None
        """Codes per position; null: a power of two near the square root of D_0, at most 256."""
        embedding: EmbeddingConfig = EmbeddingConfig()
        """Where the vectors come from."""

    suffix = True

    def __init__(self, config: "Residual.Config | None" = None):
        super().__init__(config)
        self._codebooks: list[np.ndarray] = []  # float32 (K, D) for each position

    @property
    def code_sizes(self) -> list[int]:
        sizes = super().code_sizes
        return [len(book_KD) for book_KD in self._codebooks] + sizes[len(self._codebooks) :]

    def assign(self, documents: NewDocuments) -> np.ndarray:
        assert bool(self._codebooks) == bool(len(self)), "codes were restored without their state"
        if not documents.count:
            return np.zeros((0, 1), np.int32)
        known, size = self._codebooks, self.config.codes or fitting_codes(documents.count)
        with one_thread():
            rest_MD = read_vectors(documents, known[0].shape[1] if known else None)
            codebooks, columns = [], []
            for position in range(self.config.positions):
                seed = derive(documents.seed, "residual docids", position)
                book_KD = known[position] if known else kmeans(rest_MD, size, seed)
                codes_M, _ = nearest(rest_MD, book_KD)
                rest_MD = rest_MD - book_KD[codes_M]
                codebooks.append(book_KD)
                columns.append(codes_M)
        self._codebooks = codebooks
        return with_suffix(self.codes_NT, np.stack(columns, axis=1))

    def state_dict(self) -> dict[str, np.ndarray]:
        """The codebooks, one below the other, and the centroids of each."""
        if not self._codebooks:
            return {}
        return {
            "centroids": np.concatenate(self._codebooks),
            "sizes": np.array([len(book_KD) for book_KD in self._codebooks], np.int64),
        }

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        self._codebooks = (
            np.split(state["centroids"], np.cumsum(state["sizes"])[:-1]) if state else []
        )
