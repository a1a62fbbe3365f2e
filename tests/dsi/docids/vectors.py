"""Random vectors of documents, for the tests of clustered docids."""

import numpy as np
from hypothesis import strategies as st

from dsi.docids import NewDocuments


def unit(vectors_ND) -> np.ndarray:
    """Unit length, float32; zero vectors stay."""
    vectors_ND = np.asarray(vectors_ND, np.float64)
    lengths = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return (vectors_ND / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def blobs(count: int, each: int, seed: int = 0, width: int = 24) -> np.ndarray:
    """``each`` vectors around each of ``count`` far centres, blob after blob."""
    rng = np.random.default_rng(seed)
    centres = np.linalg.qr(rng.normal(size=(width, width)))[0][:count]
    return unit(np.repeat(centres, each, axis=0) + 0.02 * rng.normal(size=(count * each, width)))


@st.composite
def vectors(draw, width: int = 5) -> np.ndarray:
    """Corpora with everything that k-means dislikes: equal, nearly equal, zero and few vectors."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(1, 40))
    found = rng.normal(size=(count, width))
    kind = draw(st.sampled_from(["normal", "equal", "few", "lattice", "close", "zeros"]))
    if kind == "equal":
        found[:] = found[0]
    elif kind == "few":
        found = found[rng.integers(0, min(3, count), count)]
    elif kind == "lattice":
        found = rng.integers(-1, 2, size=found.shape)
    elif kind == "close":
        found = found[0] + 1e-7 * found
    elif kind == "zeros":
        found[rng.random(count) < 0.7] = 0
    return unit(found)


def new(vectors_MD: np.ndarray, seed: int = 0) -> NewDocuments:
    return NewDocuments(count=len(vectors_MD), embeddings=lambda: vectors_MD, seed=seed)
