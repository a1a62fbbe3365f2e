"""What weights a stage leaves. One member per file; ``none`` is the base class itself.

A member merges the weights before and after a stage.
"""

from continual.merging._base import Merging

__all__ = ["Merging"]
