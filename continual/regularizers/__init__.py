"""What holds weights or outputs in place. One member per file; ``none`` is the base class itself.

A member gives a ``penalty`` once per update, or an ``example_loss`` per example.
"""

from continual.regularizers._base import Regularizer

__all__ = ["Regularizer"]
