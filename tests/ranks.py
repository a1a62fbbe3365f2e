"""Two ranks in processes of this machine; when one fails, all say what they met, earliest first."""

import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from accelerate.state import AcceleratorState
from torch.multiprocessing import (
    ProcessExitedException,
    ProcessRaisedException,
    start_processes,
)


def on_two_ranks(function: Callable[..., Any], *arguments: Any) -> None:
    """Call ``function(*arguments)`` on rank 0 and on rank 1, as torchrun would start them."""
    AcceleratorState._reset_state(True)
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        # not the address of the host's name, which may be anything and may change
        patch.setenv("GLOO_SOCKET_IFNAME", _loopback())
        patch.setenv("MASTER_ADDR", "127.0.0.1")
        patch.setenv("MASTER_PORT", str(_free_port()))
        patch.setenv("WORLD_SIZE", "2")
        patch.setenv("LOCAL_WORLD_SIZE", "2")
        patch.setenv("ACCELERATE_USE_CPU", "true")
        failed = ""
        try:
            start_processes(_rank, (Path(folder), function, arguments), 2, start_method="fork")
        except (ProcessExitedException, ProcessRaisedException) as error:
            # it only tells of one rank, often of the one that lost the other
            notes = sorted(Path(folder).iterdir(), key=lambda path: path.stat().st_mtime_ns)
            texts = [f"{note.name}\n{note.read_text('utf-8')}" for note in notes]
            failed = "\n".join(texts) or str(error)
    if failed:
        pytest.fail(failed, pytrace=False)


def _rank(rank: int, folder: Path, function: Callable[..., Any], arguments: tuple) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    try:
        function(*arguments)
    except BaseException:
        (folder / f"rank {rank}").write_text(traceback.format_exc(), "utf-8")
        raise


def _loopback() -> str:
    return next(name for _, name in socket.if_nameindex() if name.startswith("lo"))


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
