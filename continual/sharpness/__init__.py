"""How a step is taken. One member per file, a pure rule; ``none`` is the base class itself.

A member says where the next pass is made (``perturbation``) and which gradient the update descends
(``combine``); ``continual.update.descent`` makes the passes.
"""

from continual.sharpness._base import Policy

__all__ = ["Policy"]
