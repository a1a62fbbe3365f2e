"""Random streams that depend on what they are for, never on global state or call order."""

import hashlib
import operator

import numpy as np


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, e.g. ``derive(seed, "batches", stage, window)``.

    Equal arguments give equal seeds on every platform and in every process (unlike ``hash``),
    so a run can be resumed at any point without storing generator states.
    """
    parts = (part if isinstance(part, str) else operator.index(part) for part in (seed, *purpose))
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def numpy_rng(seed: int, *purpose: str | int) -> np.random.Generator:
    """A fresh numpy generator for one purpose (see :func:`derive`)."""
    return np.random.Generator(np.random.Philox(derive(seed, *purpose)))
