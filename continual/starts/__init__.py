"""Where the rows of new documents begin. One member per file; ``random`` is the base class itself.

A member writes the new rows, or the whole of a from-scratch model, by ``begin``.
"""

from continual.starts._base import Start

__all__ = ["Start"]
