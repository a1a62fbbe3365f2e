"""Options that most benchmarks have, where their numbers go, and the machine they are of."""

import argparse
import json
import platform
from pathlib import Path
from typing import Any


def add_options(parser: argparse.ArgumentParser) -> None:
    """``--rounds``, ``--threads`` and ``--json``."""
    parser.add_argument("--rounds", type=int, default=5, help="a number is their median")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write all numbers to this file")


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
