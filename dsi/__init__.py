"""A differentiable search index: text in, ranked documents out. Knows nothing of time."""

__version__ = "0.1.0"
