"""Options that most benchmarks have, where their numbers go, and the machine they are of."""

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any


def add_options(parser: argparse.ArgumentParser) -> None:
    """``--rounds``, ``--threads`` and ``--json``."""
    parser.add_argument("--rounds", type=int, default=5, help="a number is their median")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write all numbers to this file")


def require_device(name: str) -> None:
    """End with one line and status 2 where there is no such device."""
    import torch  # others measure what a process without it needs

    if name == "cuda" and not torch.cuda.is_available():
        print("--device cuda: torch finds no CUDA device here; use --device cpu", file=sys.stderr)
        raise SystemExit(2)


def keep(numbers: Any, path: Path | None) -> None:
    """Write them, if a file was named."""
    if path:
        path.write_text(json.dumps(numbers, indent=1) + "\n", "utf-8")


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    for text in info.read_text().splitlines() if info.exists() else []:
        if text.startswith("model name"):
            return text.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
