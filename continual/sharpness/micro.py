"""SAM with the ascent on a part of the batch."""

from dataclasses import dataclass

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

        share: float = 0.25
        """Share of the batch that the first pass sees, above 0 to 1."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0 < self.share <= 1:
                raise ValueError("share: must be above 0 and at most 1; 1 is SAM")

    def ascent_share(self) -> float:
        """As configured."""
        return self.config.share
