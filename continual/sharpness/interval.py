"""SAM now and then, plain steps in between."""

from dataclasses import dataclass

from continual.sharpness.sam import SAM
from dsi.settings import Count


class IntervalSAM(SAM):
    """SAM every ``interval`` updates of a stage, from its first on; plain steps in between.

    Source: an option of MosaicML's Composer, whose advice is to raise the radius with the interval
    (0.5 at 10). Defaults: interval 5, radius 0.05. Passes: 1 + 1 / interval, forward and backward.
    Extra memory: one copy of the weights.

    Relations: with ``interval: 1`` SAM, bit for bit; with ``rho: 0`` plain.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(SAM.Config):
        """Settings."""

        interval: Count = 5
        """Updates from one SAM update to the next."""

    def passes(self, update: int) -> int:
        """Two at every interval."""
        return 2 if update % self.config.interval == 0 else 1
