"""SAM on the decoder alone, so that the encoder runs once."""

from dataclasses import dataclass

from continual.sharpness._base import DECODER, Displacement, Step, along
from continual.sharpness.sam import SAM


class DecoderOnlySAM(SAM):
    """``eps = rho * g / ||g||`` over the weights of the decoder and of what scores the docids.

    The encoder's outputs are the same in both passes and are computed once; an embedding that both
    halves share counts as the encoder's and stays where it is. Source: this project. Default:
    radius 0.05. Passes: 1 forward, 1 backward through the encoder, 2 of each through the decoder.
    Extra memory: one copy of the decoder's weights, and the encoder's graph until the second pass.

    Relations: SAM where everything else is frozen; with ``rho: 0`` plain.
    """

    shares_encoder = True

    @dataclass(frozen=True, kw_only=True)
    class Config(SAM.Config):
        """Settings: the common ones."""

    def perturbation(self, step: Step) -> Displacement:
        """SAM's over the decoder's weights."""
        gradient = step.gradients[-1]
        inside = [name.startswith(DECODER) for name in step.names]
        if not any(inside):
            return [None] * len(gradient)
        chosen = [g for g, is_inside in zip(gradient, inside, strict=True) if is_inside]
        moves = iter(along(chosen, self.config.rho))
        return [next(moves) if is_inside else None for is_inside in inside]
