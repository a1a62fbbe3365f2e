"""The main job as a module, for launchers; the arguments are those of ``dsi train``.

python -m continual.train configs/quickstart.yaml seed=1
accelerate launch -m continual.train configs/quickstart.yaml
"""

import sys

from continual.cli import main

if __name__ == "__main__":
    status = main(["train", *sys.argv[1:]])
    if status == 0:
        from continual.devices.accelerator import part

        part()
    sys.exit(status)
