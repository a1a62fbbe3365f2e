"""Options that most benchmarks have, and where their numbers go."""

import argparse
import json
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
