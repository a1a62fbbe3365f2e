"""Checkpoints: everything a run needs to go on, as safetensors and JSON, whole or not there."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from dsi.errors import UserError
from dsi.files import replace_atomically

SCHEMA = 2
MANIFEST = "manifest.json"


@dataclass
class Checkpoint:
    """The state after ``update`` updates of ``stage`` (all of them: the stage is finished).

    Batches, schedules and dropout are functions of (seed, stage, update), so no generator state is
    needed. ``tensors``: groups such as model, optimizer, regularizer. ``values``: plain data.
    """

    stage: int
    update: int
    finished: bool
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


def save(folder: Path, checkpoint: Checkpoint, keep: int) -> None:
    """Write ``folder/SS-UUUUUU`` and remove all but the newest ``keep``."""
    name = f"{checkpoint.stage:02d}-{checkpoint.update:08d}{'-end' if checkpoint.finished else ''}"

    def write(target: Path) -> None:
        for group, tensors in checkpoint.tensors.items():
            plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
            save_file(plain, target / f"{group}.safetensors")
        state = {
            "schema": SCHEMA,
            "stage": checkpoint.stage,
            "update": checkpoint.update,
            "finished": checkpoint.finished,
            "groups": sorted(checkpoint.tensors),
            "values": checkpoint.values,
        }
        (target / "state.json").write_text(json.dumps(state), "utf-8")
        sums = {path.name: _checksum(path) for path in sorted(target.iterdir())}
        (target / MANIFEST).write_text(json.dumps({"sha256": sums}, indent=1) + "\n", "utf-8")

    replace_atomically(folder / name, write)
    found = _all(folder)
    here = found.index(folder / name)
    # later ones were found damaged when the run was resumed, and are made again
    for old in [*found[here + 1 :], *found[: max(0, here + 1 - keep)]]:
        shutil.rmtree(old)


def load_latest(folder: Path, warn: Callable[[str], None] = print) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None when there is none; ``warn`` names others."""
    found = _all(folder)
    for path in reversed(found):
        problem = _problem(path)
        if problem is None:
            return _load(path)
        warn(f"{path}: damaged checkpoint ({problem}), skipped for the one before")
    if found:
        raise UserError(
            f"{folder}: every checkpoint is damaged; restore one, or start again with --overwrite"
        )
    return None


def _load(path: Path) -> Checkpoint:
    state = json.loads((path / "state.json").read_text("utf-8"))
    if state.get("schema") != SCHEMA:
        raise UserError(
            f"{path}/state.json: schema {state.get('schema')!r}, this version reads {SCHEMA}; "
            "resume with the version that wrote it"
        )
    tensors = {g: load_file(path / f"{g}.safetensors") for g in state["groups"]}
    stage, update, finished = (state[key] for key in ("stage", "update", "finished"))
    return Checkpoint(stage, update, finished, tensors, state["values"])


def _problem(path: Path) -> str | None:
    """What is wrong with a checkpoint's files; None when every checksum is right."""
    try:
        sums = json.loads((path / MANIFEST).read_text("utf-8"))["sha256"]
        for name, expected in sums.items():
            if Path(name).name != name or _checksum(path / name) != expected:
                return f"{name} has changed since it was written"
        if "state.json" not in sums:
            return f"{MANIFEST} is incomplete"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        missing = isinstance(error, FileNotFoundError) and error.filename
        return f"{Path(missing).name} is missing" if missing else f"{MANIFEST} cannot be read"
    return None


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _all(folder: Path) -> list[Path]:
    # by stage and update as numbers, the end of a stage after the same update within it
    found = [(re.fullmatch(r"(\d+)-(\d+)(-end)?", p.name), p) for p in folder.glob("[0-9]*")]
    kept = [
        (int(match[1]), int(match[2]), match[3] is not None, path) for match, path in found if match
    ]
    return [path for *_, path in sorted(kept)]
