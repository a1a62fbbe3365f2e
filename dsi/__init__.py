"""A differentiable search index: text in, ranked documents out. ``continual`` trains it."""

__version__ = "0.1.0"
