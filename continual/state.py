"""The state of a run between two updates, in memory and as a checkpoint."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from continual.config.schema import TrainingConfig
from continual.method import Method
from continual.run.checkpoint import Checkpoint
from continual.update.optimizer import make_optimizer, named_state, restore_state
from dsi.model.dsi_model import DSIConfig, DSIModel


@dataclass
class TrainState:
    """What a checkpoint holds, in memory."""

    model: DSIModel
    optimizer: torch.optim.Optimizer
    stage: int = 0
    update: int = 0
    finished: bool = False
    num_updates: list[int] = field(default_factory=list)
    rows: list[dict[str, list[float | None]] | None] = field(default_factory=list)
    recent: list[torch.Tensor] = field(default_factory=list)  # losses since the last training line
    skipped: int = 0  # updates of the stage that were not finite


def as_checkpoint(state: TrainState, method: Method, values: Mapping[str, Any]) -> Checkpoint:
    """The state as a checkpoint; ``values``: further plain data of the trainer."""
    weights = dict(state.model.state_dict())
    weights.pop("decoder.embed_tokens.weight", None)  # the encoder's, tied
    tensors = {
        "model": weights,
        "optimizer": named_state(state.optimizer, state.model),
        **{axis: component.state_dict() for axis, component in method},
    }
    own = {
        "rows": state.rows,
        "num_updates": state.num_updates,
        "recent": [float(loss) for loss in state.recent],
        "skipped": state.skipped,
        "model": json.loads(state.model.config.to_json_string(use_diff=False)),
    }
    return Checkpoint(state.stage, state.update, state.finished, tensors, {**own, **values})


def restored(
    found: Checkpoint, method: Method, training: TrainingConfig, device: torch.device
) -> TrainState:
    """The inverse of :func:`as_checkpoint`; components get their state back, too."""
    values, tensors, stage = found.values, found.tensors, found.stage
    # from its own configuration: the pretrained model that a run began with is not needed again
    model: Any = DSIModel(DSIConfig.from_dict(values["model"]))
    weights = tensors["model"]
    weights["decoder.embed_tokens.weight"] = weights["encoder.embed_tokens.weight"]
    model.to(weights["docids.rows"].dtype)  # of the run, which need not be PyTorch's default
    if not found.finished:  # at the end of a stage adapters are folded
        method.parameters.shape(model, stage)
    model.load_state_dict(weights)
    model.to(device)
    method.parameters.select(model, stage)
    optimizer = make_optimizer(model, training)
    restore_state(optimizer, model, tensors["optimizer"])
    for axis, component in method:
        component.load_state_dict({k: v.to(device) for k, v in tensors[axis].items()})
    return TrainState(
        model,
        optimizer,
        stage,
        found.update,
        found.finished,
        list(values["num_updates"]),
        list(values["rows"]),
        [torch.tensor(loss, device=device) for loss in values["recent"]],
        values["skipped"],
    )
