"""Processes that are one run: how many a launcher has started, and one line for all of them."""

import hashlib
import os
import sys
from datetime import timedelta
from typing import Any

# torchrun's and Accelerate's name, then those of MPICH and Intel MPI, Open MPI, MVAPICH
COUNTS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def world_size() -> int:
    """How many processes the launcher has started, by the environment; 1 without a launcher."""
    found = (os.environ.get(name, "") for name in COUNTS)
    return max(1, next((int(text) for text in found if text.isascii() and text.isdecimal()), 1))


def say_once(line: str) -> None:
    """Print ``line`` on standard error unless another process of the run has said the same.

    Most mistakes are met by all of them, some by one that is not the first.
    """
    name = hashlib.sha256(line.encode("utf-8", "replace")).hexdigest()
    if _added(name, 1) in (None, 1):  # better twice than not at all
        print(line, file=sys.stderr, flush=True)
        _added("any", 1)


def another_spoke() -> bool:
    """Whether a process of the run has already said what ended it."""
    return bool(_added("any", 0))


def _added(name: str, amount: int) -> int | None:
    """Add to a counter that all processes share; its new value, None where there is none."""
    if world_size() == 1:
        return None
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not agent and "torch.distributed" not in sys.modules:
        return None
    import torch

    distributed: Any = torch.distributed
    if not agent and not distributed.is_initialized():
        return None
    # torchrun may start all processes again: a new attempt has counters of its own
    key = f"dsi/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{name}"
    try:  # the launcher has the counters, or the first process, which may have ended
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = distributed.TCPStore(
            host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=5)
        )
        return store.add(key, amount)
    except (KeyError, ValueError, RuntimeError):
        return None
