"""The main job as a module, for launchers.

python -m continual.train configs/quickstart.yaml seed=1
accelerate launch -m continual.train configs/quickstart.yaml
"""

import argparse
import sys

from continual.cli import add_train_arguments, main


def arguments(argv: list[str]) -> list[str]:
    """Check the arguments under this module's name, and hand them to ``dsi train``."""
    parser = argparse.ArgumentParser(prog="python -m continual.train", description=__doc__)
    add_train_arguments(parser)
    parser.parse_args(argv)
    return ["train", *argv]


if __name__ == "__main__":
    sys.exit(main(arguments(sys.argv[1:])))
