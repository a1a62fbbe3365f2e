"""The processes and devices of a run; what cannot work on them is refused before training."""

import os
from datetime import timedelta
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    parse_flag_from_env,
)

from continual.config import RunConfig
from continual.sharding import is_sharded
from dsi.errors import UserError

# How long a rank waits for another. The first one assigns docids and trains the query generator
# alone, for hours on a large corpus, and the libraries' own limits are 10 (NCCL) and 30 minutes
# (gloo). A rank that has died is noticed by the launcher, not by this.
PATIENCE = timedelta(days=1)


def make_accelerator(config: RunConfig) -> Accelerator:
    """Accelerate as the configuration asks; batches are cut up by our own code."""
    if config.threads:
        torch.set_num_threads(config.threads)
    unused = DistributedDataParallelKwargs(
        find_unused_parameters=not config.parameters.build().trains_all
        or config.model.source != "scratch"
        or config.direction != "inputs_to_targets"  # writing text leaves out the docid decoder's
    )
    accelerator = Accelerator(
        mixed_precision=precision(config, _device_to_come()),
        log_with="wandb" if config.tracking.wandb else None,
        kwargs_handlers=[unused, InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    refuse(config, accelerator)
    return accelerator


def precision(config: RunConfig, device: torch.device) -> Literal["no", "bf16"]:
    """What ``training.precision`` means on a device.

    ``auto`` is bf16 on GPUs with units for it and fp32 everywhere else: some processors have such
    units, too, and a run is to give the same numbers on those and on the others.
    """
    asked = config.training.precision
    if asked != "auto":
        return asked
    able = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if able else "no"


def _device_to_come() -> torch.device:
    # asking Accelerate's state before there is an Accelerator would fix the number of processes
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
    return torch.device("cpu" if cpu else "cuda")


def refuse(config: RunConfig, accelerator: Accelerator) -> None:
    """Raises UserError for a configuration that these processes cannot train as it says."""
    world = accelerator.num_processes
    parts = world * config.training.accumulation
    if config.training.batch_size < parts:
        raise UserError(
            f"training.batch_size: {config.training.batch_size} examples cannot be cut into "
            f"{parts} parts (processes x training.accumulation); use at least {parts}"
        )
    if world > 1 and config.training.docid_update == "touched":
        raise UserError(
            "training.docid_update: touched is for one process; DDP and FSDP2 exchange whole "
            "gradients, so use all"
        )
    if accelerator.distributed_type is DistributedType.DEEPSPEED:
        raise UserError(
            "distributed_type: DeepSpeed takes the optimizer's step away from the loop, so neither "
            "checkpoints nor sharpness would be right; use FSDP2 (configs/accelerate/"
            "fsdp2-8-gpus.yaml; fsdp_reshard_after_forward: false is ZeRO-2)"
        )
    if is_sharded(accelerator) and os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError(
            "fsdp_version: 1 shards flat copies of the weights, which no component can name; set "
            "fsdp_version: 2 in accelerate's configuration"
        )
    if is_sharded(accelerator) and config.training.compile != "no":
        raise UserError(
            "training.compile: FSDP2 gathers each layer when it runs, which a compiled whole cannot"
            " wait for; use compile: no, or DDP"
        )
    if is_sharded(accelerator) and config.regularizer.build().needs_previous:
        raise UserError(
            f"regularizer.name: {config.regularizer.name!r} compares the weights with copies, and "
            "FSDP2 keeps them in pieces; use DDP"
        )
    _refuse_sharpness(config, accelerator, world)


def _refuse_sharpness(config: RunConfig, accelerator: Accelerator, world: int) -> None:
    policy = config.sharpness.build()
    if not (policy.active(0) or policy.active(1)):
        return
    settings, name = policy.config, config.sharpness.name
    if settings.m is not None and config.training.batch_size % (settings.m * world):
        raise UserError(
            f"sharpness.m: {world} processes cannot share {config.training.batch_size} examples "
            f"out in groups of {settings.m}; training.batch_size must be a multiple of "
            f"{settings.m * world}"
        )
    if not is_sharded(accelerator):
        return
    if settings.sync == "local":
        raise UserError(
            "sharpness.sync: local needs a gradient of each process's own, which FSDP2 never "
            "makes; use global, or DDP"
        )
    if policy.shares_encoder or policy.remembers:
        raise UserError(
            f"sharpness.name: {name!r} runs parts of the model or carries copies of it from update "
            "to update, which FSDP2 keeps in pieces; use DDP"
        )
