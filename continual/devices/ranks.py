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
    if world_size() == 1 or _is_first(line):
        print(line, file=sys.stderr, flush=True)


def another_spoke() -> bool:
    """Whether a process of the run has said what ended it: what follows from that is no news."""
    store = _store() if world_size() > 1 else None
    return store is not None and store.add(_key("any"), 0) > 0


def _is_first(line: str) -> bool:
    store = _store()
    if store is None:
        return True  # better twice than not at all
    first = store.add(_key(hashlib.sha256(line.encode("utf-8", "replace")).hexdigest()), 1) == 1
    store.add(_key("any"), 1)
    return first


def _key(name: str) -> str:
    # torchrun may start all processes again, and they have a word of their own
    return f"dsi/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{name}"


def _store() -> Any:
    """The table that the processes share, the launcher's or the first one's; None without one."""
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not agent and "torch.distributed" not in sys.modules:
        return None
    import torch

    distributed: Any = torch.distributed
    if not agent and not distributed.is_initialized():
        return None
    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return distributed.TCPStore(
            host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=5)
        )
    except (KeyError, ValueError, RuntimeError):  # whoever held it has ended
        return None
