"""The processes and devices of a run; what cannot work on them is refused before training."""

import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import is_initialized
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    broadcast,
    get_cpu_distributed_information,
    parse_flag_from_env,
)

from continual.config.schema import RunConfig
from continual.devices.ranks import COUNTS, world_size
from continual.devices.sharding import is_sharded
from dsi.errors import UserError

# How long a rank waits for another. The first one assigns docids and trains the query generator
# alone, for hours on a large corpus, and the libraries' own limits are 10 (NCCL) and 30 minutes
# (gloo). A rank that has died is noticed by the launcher, not by this.
PATIENCE = timedelta(days=1)
LONGEST_LINE = 4096  # bytes of an error that one process tells the others


def make_accelerator(config: RunConfig) -> Accelerator:
    """Accelerate as the configuration asks; batches are cut up by our own code."""
    _refuse_launch()
    on_processors = world_size() > 1 and not _has_accelerator()
    if on_processors:
        _join_processors(config.threads)
    unused = DistributedDataParallelKwargs(
        find_unused_parameters=not config.parameters.build().trains_all
        or config.model.source != "scratch"
        or config.direction != "inputs_to_targets"  # writing text leaves out the docid decoder's
    )
    accelerator = Accelerator(
        cpu=on_processors,  # unless told, Accelerate makes every rank a run of its own there
        mixed_precision=precision(config, _device_to_come()),
        log_with="wandb" if config.tracking.wandb else None,
        kwargs_handlers=[unused, InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    if config.threads:
        torch.set_num_threads(config.threads)
    if accelerator.num_processes != world_size():
        raise UserError(
            f"WORLD_SIZE: the launcher started {world_size()} processes and Accelerate joins "
            f"{accelerator.num_processes} of them, so each would train alone; start them with "
            "torchrun or accelerate launch, which also set LOCAL_RANK"
        )
    refuse(config, accelerator)
    return accelerator


def part() -> None:
    """Leave the process group together, when the run has ended as it should.

    Without this a process may abort at its very end because another one has gone first. After a
    failure the other processes may wait for ever: ending those is left to the launcher.
    """
    if is_initialized():
        state = PartialState()
        state.wait_for_everyone()
        state.destroy_process_group()


def on_main(accelerator: Accelerator, work: Callable[[], object]) -> None:
    """Call ``work`` on the first process alone; a UserError there is raised on every process."""
    line = ""
    if accelerator.is_main_process:
        try:
            work()
        except UserError as error:
            line = str(error)
    if accelerator.num_processes > 1:
        told = line.encode("utf-8", "surrogateescape")[:LONGEST_LINE]
        text = torch.zeros(LONGEST_LINE, dtype=torch.uint8)
        text[: len(told)] = torch.frombuffer(bytearray(told), dtype=torch.uint8) if told else 0
        heard: Any = broadcast(text.to(accelerator.device))
        line = bytes(heard.tolist()).rstrip(b"\0").decode("utf-8", "surrogateescape")
    if line:
        raise UserError(line)


def _has_accelerator() -> bool:
    """Whether there is a device that ranks can share; those of one Mac cannot."""
    device = torch.accelerator.current_accelerator(check_available=True)
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU")
    return device is not None and device.type != "mps" and not cpu


def _join_processors(threads: int) -> None:
    """What gloo needs to know and not every launcher says (torchrun does, MPI does not)."""
    group = get_cpu_distributed_information()
    is_one_machine = group.local_world_size == group.world_size
    if not is_one_machine and "MASTER_ADDR" not in os.environ:
        raise UserError(
            "MASTER_ADDR: not set, and the processes may be on several machines; export the name "
            "or address of the first one's, as torchrun and accelerate launch do"
        )
    if is_one_machine:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        # not the address of the host's name, which may be any and may change
        loopback = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
        if loopback:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback[0])
    if threads:  # else Accelerate shares the processor out, with a warning
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))


def _refuse_launch() -> None:
    """UserError where ``accelerate launch`` has left processes out: it notes an address for them
    alone, and starts one."""
    by_accelerate = "ACCELERATE_DYNAMO_BACKEND" in os.environ and "MASTER_PORT" in os.environ
    if by_accelerate and not any(name in os.environ for name in COUNTS):
        raise UserError(
            "--num_processes: accelerate launch has started one process, which is all that it does "
            "with --cpu; for N processes on a processor use torchrun --nproc-per-node N -m "
            "continual.train ..., on GPUs accelerate launch --multi_gpu --num_processes N ..."
        )


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
    # Accelerate's own state cannot be asked: that would fix the number of processes too early
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
    regularizer = config.regularizer.build()
    if is_sharded(accelerator) and regularizer.needs_previous:
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
