"""Every test runs on one thread, without a network, with a cache of its own and a fixed seed.

The variables are set before any library is imported: most read them once, at import.
"""

import os

os.environ.update(
    ACCELERATE_USE_CPU="true",  # bit-for-bit comparisons; a test marked gpu asks for its device
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_OFFLINE="1",
    MKL_NUM_THREADS="1",
    MPLBACKEND="agg",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    WANDB_MODE="disabled",
)

import random
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

hypothesis.settings.register_profile(
    "repository", derandomize=True, deadline=None, database=None, print_blob=True
)
hypothesis.settings.load_profile("repository")


_folder = tempfile.TemporaryDirectory(prefix="dsi-tests-")
os.environ.update(DSI_CACHE=f"{_folder.name}/dsi", HF_HOME=f"{_folder.name}/huggingface")


def pytest_unconfigure() -> None:
    """Remove the session's caches."""
    _folder.cleanup()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def tracked_files(repository: Path) -> list[Path]:
    """Paths, relative to the root, of the files that are or would be committed."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    names = {name for name in listed.stdout.split("\0") if name}
    return sorted(Path(name) for name in names if (repository / name).is_file())


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Code draws from its own generators; this is for tests that draw without one."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked gpu where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _local_only(method: Callable[..., Any]) -> Callable[..., Any]:
    """Ranks talk over the loopback; anything else is a mistake of the test."""

    def connect(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            host = str(address[0])
            if host not in ("localhost", "::1") and not host.startswith(("127.", "::ffff:127.")):
                raise RuntimeError(f"a test tried to reach {host}: tests run without a network")
        return method(self, address)

    return connect


socket.socket.connect = _local_only(socket.socket.connect)
socket.socket.connect_ex = _local_only(socket.socket.connect_ex)
