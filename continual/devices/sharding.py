"""FSDP2: weights, gradients and moments in pieces over the ranks, while updates are made.

By torch's ``fully_shard`` itself: Accelerate uses it on accelerators only, and here two processes
without a GPU test the code that many GPUs run. Between stages, and whenever the run
evaluates or saves, every rank holds the whole model, on one code path with everything else.
"""

import copy
import warnings

import torch
from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.models.t5.modeling_t5 import T5Block

from continual.config.schema import TrainingConfig
from continual.update.optimizer import make_optimizer
from dsi.model.dsi_model import DSIModel


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether the launcher asked for FSDP (``use_fsdp`` in Accelerate's configuration)."""
    return accelerator.num_processes > 1 and parse_flag_from_env("ACCELERATE_USE_FSDP")


def shard(
    model: DSIModel, optimizer: torch.optim.Optimizer, config: TrainingConfig
) -> tuple[DSIModel, torch.optim.Optimizer]:
    """A copy of both in pieces; every block of layers is gathered when it runs."""
    # T5's blocks return views of their position bias, which nothing changes in place
    warnings.filterwarnings("ignore", message=".*returned a view tensor")
    pieces = copy.deepcopy(model)
    # false: gathered weights stay until the backward pass, as in ZeRO-2
    again = parse_flag_from_env("FSDP_RESHARD_AFTER_FORWARD", True)
    for module in pieces.modules():
        if isinstance(module, T5Block):
            fully_shard(module, reshard_after_forward=again)
    fully_shard(pieces)
    theirs = make_optimizer(pieces, config)
    for whole, piece in _pairs(model, pieces):
        for key, value in optimizer.state.get(whole, {}).items():
            theirs.state[piece][key] = _cut(value, piece)
    return pieces, theirs


@torch.no_grad()
def gather(
    pieces: DSIModel,
    theirs: torch.optim.Optimizer,
    model: DSIModel,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Put the pieces' weights and moments into the whole ones, on every rank."""
    for whole, piece in _pairs(model, pieces):
        whole.copy_(_whole(piece))
        if piece in theirs.state:
            optimizer.state[whole] = {k: _whole(v) for k, v in theirs.state[piece].items()}


def _pairs(model: nn.Module, pieces: nn.Module) -> list[tuple[nn.Parameter, nn.Parameter]]:
    theirs = dict(pieces.named_parameters())
    return [(parameter, theirs[name]) for name, parameter in model.named_parameters()]


def _cut(value: Tensor, piece: nn.Parameter) -> Tensor:
    if not isinstance(piece, DTensor) or not torch.is_tensor(value) or value.dim() == 0:
        return value
    return distribute_tensor(value, piece.device_mesh, piece.placements)


def _whole(value: Tensor) -> Tensor:
    whole = value.full_tensor() if isinstance(value, DTensor) else value
    return whole.detach().clone() if torch.is_tensor(whole) else whole
