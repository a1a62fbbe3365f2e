"""A weighted average of the weights before and after a stage."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from continual.merging._base import Merging
from dsi.settings import Settings, Share


class Average(Merging):
    """``new * theta_n + (1 - new) * theta_{n-1}`` after every stage n > 0.

    Source: WiSE-FT (Wortsman et al., CVPR 2022) along the stream. Rows that are new in the stage
    have no older version and stay.

    Relations: with ``new: 1`` this is no merging, bit for bit.
    """

    @dataclass(frozen=True)
    class Config(Settings):
        """Settings."""

        new: Share = 0.5
        """Weight of the new stage."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.needs_previous = config.new < 1

    def merge(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Merged weights; where ``before`` is NaN (rows new in the stage), those after it."""
        if not self.needs_previous:
            return dict(after)
        return {
            name: value.where(before[name].isnan(), before[name].lerp(value, self.config.new))
            if name in before and value.is_floating_point()
            else value
            for name, value in after.items()
        }
