"""How long ``dsi --help`` and the first answer of ``dsi search`` take, process start included.

    python -m benchmarks.startup RUN "a question"

Median of the rounds: wall time, and processor time of the process, which a loaded machine changes
less. The goals are 0.4 s and 3 s.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

GOALS = {"help": 0.4, "search": 3.0}


def seconds(command: list[str]) -> tuple[float, float]:
    """Wall and processor seconds of one process from start to end."""
    before, started = os.times(), time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    wall, after = time.perf_counter() - started, os.times()
    user = after.children_user - before.children_user
    return wall, user + after.children_system - before.children_system


def main() -> None:
    """Run both commands several times and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("run", metavar="RUN", help="run directory")
    parser.add_argument("query", metavar="QUERY")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    dsi = [sys.executable, "-m", "continual.cli"]
    commands = {
        "help": [*dsi, "--help"],
        "search": [*dsi, "search", options.run, options.query],
    }
    for name, command in commands.items():
        rounds = [seconds(command) for _ in range(options.rounds)]
        wall, processor = (statistics.median(column) for column in zip(*rounds, strict=True))
        figures = f"{wall:.2f} s wall, {processor:.2f} s of a processor"
        print(f"dsi {name:<6} {figures} (goal {GOALS[name]} s)")


if __name__ == "__main__":
    main()
