"""SAM with the ascent on a part of the batch."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt, Le

from continual.sharpness.sam import SAM


class MicroSAM(SAM):
    """SAM whose perturbation comes from a ``share`` of the examples; all of them are descended.

    Source: Bahri et al. (ACL 2022), who use a quarter of the batch with T5. Defaults: share 0.25,
    radius 0.05 (theirs for T5-Base: 0.15). Passes: 1 + share, forward and backward. Extra memory:
    one copy of the weights.

    Relations: with ``share: 1`` SAM, bit for bit; with ``rho: 0`` plain.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(SAM.Config):
        """Settings."""

        share: Annotated[float, Gt(0), Le(1)] = 0.25
        """Share of the batch that the first pass sees."""

    def ascent_share(self) -> float:
        """As configured."""
        return self.config.share
