"""The base optimizer, its schedule, and its state under growing parameters."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from continual.config import TrainingConfig


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters; vectors (norms) are not decayed."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=config.learning_rate, fused=True
    )


def learning_rate(config: TrainingConfig, stage: int, update: int, updates: int) -> float:
    """The rate of update 0 .. updates - 1 of a stage: linear warm-up, then the decay."""
    peak = config.learning_rate
    # a model that starts from new weights is no later stage
    if stage > 0 and not config.restart and config.later_learning_rate is not None:
        peak = config.later_learning_rate
    warmup = config.warmup * updates if config.warmup < 1 else config.warmup
    if update < warmup:
        return peak * (update + 1) / (math.floor(warmup) + 1)
    left = (updates - update) / max(1.0, updates - warmup)
    decay = {"constant": 1.0, "linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left)}
    return peak * min(1.0, decay[config.schedule])


def named_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's tensors by parameter name: ``docids.rows/exp_avg`` and so on.

    By name, not by position, so that it survives another grouping and can be stored as safetensors.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}/{key}": value if torch.is_tensor(value) else torch.tensor(value)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def restore_state(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    state: Mapping[str, Tensor],
    grown: Mapping[str, Tensor] | None = None,
) -> None:
    """Put :func:`named_state` into an optimizer over ``model``.

    ``grown``: for a parameter that has grown since, where its old rows are now; their state is kept
    bit for bit and new rows start at zero.
    """
    by_name = dict(model.named_parameters())
    for key, value in state.items():
        name, entry = key.rsplit("/", 1)
        parameter = by_name.get(name)
        if parameter is None or not parameter.requires_grad:
            continue
        if value.dim() and value.shape != parameter.shape:
            rows = (grown or {})[name].to(parameter.device)
            full = torch.zeros_like(parameter, requires_grad=False)
            full[rows] = value.to(parameter.device)
            value = full
        # fused AdamW keeps its step counter beside the parameter
        device = parameter.device
        optimizer.state[parameter][entry] = value.detach().clone().to(device)
