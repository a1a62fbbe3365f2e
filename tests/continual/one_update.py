"""One update as a stage makes it, with settings of a test's own."""

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from continual.config.schema import TrainingConfig
from continual.method import Method
from continual.regularizers import Regularizer
from continual.sharpness._base import Policy
from continual.update.update import Taken, Update
from dsi.examples.batches import Batch

PLAIN = TrainingConfig(clip=0.0)


class Penalty(Regularizer):
    """Whatever a function of the model says."""

    def __init__(self, function: Any):
        super().__init__()
        self.penalty = function


def take(
    model: nn.Module,
    optimizer: Any,
    batch: Batch,
    codes_NT: Tensor,
    accelerator: Accelerator,
    *,
    sharpness: Policy | None = None,
    sharp: bool = True,
    micro_batches: int = 1,
    regularizer: Regularizer | None = None,
    is_careful: bool = False,
    seed: int = 5,
    update: int = 0,
    rate: float = 1.0,
    **training: Any,
) -> Taken:
    """Stage 0 under ``training``, without clipping but for what is given; ``sharp``: with the
    policy, otherwise a plain one."""
    policy = sharpness if sharpness is not None and sharp else Policy()
    method = Method(sharpness=policy, regularizer=regularizer or Regularizer())
    nonfinite = "skip" if is_careful else "stop"
    how = replace(PLAIN, accumulation=micro_batches, nonfinite=nonfinite, **training)
    made = Update(model, optimizer, codes_NT, accelerator, how, method, 0)
    return made.take(batch, seed, update, rate)


def begun(stage: int, weights: Mapping[str, Tensor]) -> Any:
    """What a sharpness policy asks of the view of a stage."""
    trained = {name: weight for name, weight in weights.items() if weight.requires_grad}
    return SimpleNamespace(stage=stage, weights=trained)
