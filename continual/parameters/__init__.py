"""What is trained, and how. One member per file; ``full`` is the base class itself.

A member shapes the model (adapters), selects parameters, or learns a stage without updates.
"""

from continual.parameters._base import Parameters

__all__ = ["Parameters"]
