"""metrics.jsonl is the truth; W&B mirrors it through Accelerate's tracker when asked."""

import json
import os
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from continual import run_directory as directory
from continual.components import to_plain
from continual.config import RunConfig
from dsi.errors import UserError


class Tracker:
    """One JSON object per event, flushed at once; only the main process writes.

    ``size``: bytes the file had at the checkpoint that the run resumes from; later lines are cut
    off, since the resumed run writes them again.
    """

    def __init__(self, folder: Path, config: RunConfig, accelerator: Accelerator, size: int = 0):
        self.path = folder / "metrics.jsonl"
        self.accelerator = accelerator
        self.wandb = config.tracking.wandb
        if self.wandb:
            os.environ.setdefault("WANDB_SILENT", "true")
            how = {"name": config.name, "dir": str(folder)}
            if (known := directory.read_environment(folder).get("wandb_run")) is not None:
                how |= {"id": known, "resume": "allow"}
            try:
                accelerator.init_trackers(
                    config.tracking.project, config=to_plain(config), init_kwargs={"wandb": how}
                )
                if accelerator.is_main_process:
                    run: Any = accelerator.get_tracker("wandb", unwrap=True)
                    directory.note_environment(folder, wandb_run=run.id)
            except Exception as error:  # wandb raises many kinds, all of them about its service
                raise UserError(
                    f"tracking.wandb: W&B did not start ({error}); log in with 'wandb login', set "
                    "WANDB_MODE=offline, or turn it off"
                ) from error
        self._file = None
        if accelerator.is_main_process:
            self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - closed in close()
            self._file.truncate(min(size, self.path.stat().st_size))
            self._file.seek(0, os.SEEK_END)

    def log(self, values: dict[str, Any], step: int) -> None:
        """Write one event; ``step`` counts all updates of the run (W&B's axis)."""
        if self._file is not None:
            self._file.write(json.dumps(values, allow_nan=False) + "\n")
            self._file.flush()
        if self.wandb:
            # W&B keeps one value per name and step: what an event is about becomes part of the name
            about = "".join(f"{v}/" for v in values.values() if isinstance(v, str))
            numbers = {
                k if k in ("stage", "update") else about + k: v
                for k, v in values.items()
                if isinstance(v, int | float)
            }
            self.accelerator.log(numbers, step=step)

    def size(self) -> int:
        """Bytes written so far."""
        return self._file.tell() if self._file is not None else 0

    def close(self) -> None:
        """Close the file and finish W&B's run."""
        if self._file is not None:
            self._file.close()
        if self.wandb:
            self.accelerator.end_training()
