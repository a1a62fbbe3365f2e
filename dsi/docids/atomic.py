"""Atomic docids: one code per document (DSI section 3.2, "unstructured atomic identifiers")."""

from dataclasses import dataclass

import numpy as np

from dsi.docids._scheme import NewDocuments, Scheme


class Atomic(Scheme):
    """Document number i (in order of arrival) has the one code i; one decoding step ranks all."""

    atomic = True

    @dataclass(frozen=True)
    class Config:
        """Atomic docids have no settings."""

    def assign(self, documents: NewDocuments) -> np.ndarray:
        start = len(self)
        return np.arange(start, start + documents.count, dtype=np.int32)[:, None]
