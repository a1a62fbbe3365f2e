"""What is rehearsed in later stages. One member per file; ``none`` is the base class itself.

A member writes what it needs in ``begin_stage`` and gives queries by ``pools``.
"""

from continual.replay._base import Replay

__all__ = ["Replay"]
