"""metrics.jsonl is the truth; W&B mirrors it through Accelerate's tracker when asked."""

import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from continual.config.parsing import to_plain
from continual.config.schema import RunConfig
from continual.run import directory
from dsi.errors import UserError, printable
from dsi.files import refuse_special

START_SECONDS = 120  # longer than W&B's own limit, 90, whose message says more
AXIS = "total_updates"  # of the whole run, on W&B
FINISH_SECONDS = 600  # it has the whole run to send when the network was away


class Tracker:
    """One JSON object per event, flushed at once; only the main process writes.

    W&B joins what is logged at one of its steps into one row, and the end of a stage has as many
    updates as the beginning of the next: its step is the number of the line here, and the updates
    are a value, the axis of every chart. A resumed run repeats only steps that W&B has.

    ``size``: bytes the file had at the checkpoint that the run resumes from; later lines are cut
    off, since the resumed run writes them again. ``checksum``: sha256 of these bytes.

    W&B is a mirror: when it cannot be reached, or fails later, a warning says so once and the run
    goes on without it. Only what the user has to do first (logging in) ends it.
    """

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        accelerator: Accelerator,
        size: int = 0,
        checksum: str | None = None,
    ):
        self.path = folder / "metrics.jsonl"
        self.accelerator = accelerator
        self._file, self._sum = None, hashlib.sha256()
        self._lines, self._lost = 0, False
        if accelerator.is_main_process:
            refuse_special(self.path, "restore the file, or delete it")
            kept = self._kept(size, checksum)
            self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - closed in close()
            self._file.truncate(kept)
            self._file.seek(0, os.SEEK_END)
        self.wandb = config.tracking.wandb and accelerator.is_main_process
        if self.wandb:
            try:
                self._start(folder, config)
            except BaseException:
                if self._file is not None:
                    self._file.close()
                raise

    def _kept(self, size: int, checksum: str | None) -> int:
        """Bytes to keep, which must be those that the file had at the checkpoint."""
        if size == 0:
            return 0
        if not self.path.exists():
            print(f"warning: {self.path} is missing: the run goes on without its former lines")
            self._lost = True
            return 0
        left = size
        with open(self.path, "rb") as file:
            while part := file.read(min(left, 1 << 20)):
                self._sum.update(part)
                self._lines += part.count(b"\n")
                left -= len(part)
        fix = "restore the file, or delete it to go on without its former lines"
        if left:
            raise UserError(f"{self.path}: {size - left} bytes, the checkpoint notes {size}; {fix}")
        if checksum is not None and self.checksum() != checksum:
            raise UserError(f"{self.path}: not what was written before the checkpoint; {fix}")
        return size

    def _start(self, folder: Path, config: RunConfig) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        how: dict[str, Any] = {"name": config.name, "dir": str(folder)}
        if (known := directory.read_environment(folder).get("wandb_run")) is not None:
            how |= {"id": known, "resume": "allow"}

        def start() -> None:
            self.accelerator.init_trackers(
                config.tracking.project, config=to_plain(config), init_kwargs={"wandb": how}
            )

        try:
            _within(START_SECONDS, start)
            run: Any = self.accelerator.get_tracker("wandb", unwrap=True)
            run_id = run.id
            run.define_metric(AXIS, hidden=True)
            run.define_metric("*", step_metric=AXIS)
            if self._lost:  # W&B takes no step below those that it has
                self._lines = run.step
        except Exception as error:  # wandb raises many kinds, all of them about its service
            # by name: wandb is not imported where it is not asked for
            if isinstance(error, ImportError) or type(error).__name__ == "UsageError":
                raise UserError(
                    f"tracking.wandb: W&B did not start ({error}); log in with 'wandb login', set "
                    "WANDB_MODE=offline, or turn it off"
                ) from error
            self._without_wandb("did not start", error)
        else:
            directory.note_environment(folder, wandb_run=run_id)

    def _without_wandb(self, what: str, error: Exception) -> None:
        self.wandb = False
        why = printable(f"{type(error).__name__}: {error}")[:200]
        print(f"warning: W&B {what} ({why}); the run goes on, {self.path} has everything")

    def log(self, values: dict[str, Any], step: int) -> None:
        """Write one event; ``step`` counts all updates of the run (W&B's ``total_updates``)."""
        if self._file is not None:
            line = json.dumps(values, allow_nan=False) + "\n"
            self._file.write(line)
            self._file.flush()
            self._sum.update(line.encode())
        if self.wandb:
            # W&B keeps one value per name and step: what an event is about becomes part of the name
            about = "".join(f"{v}/" for v in values.values() if isinstance(v, str))
            numbers = {
                k if k in ("stage", "update") else about + k: v
                for k, v in values.items()
                if isinstance(v, int | float)
            }
            try:
                self.accelerator.log({**numbers, AXIS: step}, step=self._lines)
            except Exception as error:
                self._without_wandb("failed", error)
        self._lines += 1

    def size(self) -> int:
        """Bytes written so far."""
        return self._file.tell() if self._file is not None else 0

    def checksum(self) -> str:
        """sha256 of the bytes written so far."""
        return self._sum.hexdigest()

    def close(self) -> None:
        """Close the file and finish W&B's run."""
        if self._file is not None:
            self._file.close()
        if self.wandb:
            # not Accelerate's end_training: it would end the group of processes as well
            try:
                _within(FINISH_SECONDS, self.accelerator.get_tracker("wandb").finish)
            except Exception as error:
                self._without_wandb("did not finish; 'wandb sync' sends the rest", error)


def _within(seconds: float, work: Callable[[], Any]) -> None:
    """Call ``work``, which may never return; TimeoutError when it has not after ``seconds``."""
    errors: list[Exception] = []

    def run() -> None:
        try:
            work()
        except Exception as error:
            errors.append(error)
        except BaseException as error:  # a service that calls sys.exit must not end the run
            errors.append(RuntimeError(f"{type(error).__name__}: {error}"))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {seconds:g} s")
    if errors:
        raise errors[0]
