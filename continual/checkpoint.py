"""Checkpoints: everything a run needs to go on, as safetensors and JSON, whole or not there."""

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from dsi.errors import UserError
from dsi.files import replace_atomically

SCHEMA = 1


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

    replace_atomically(folder / name, write)
    for old in _all(folder)[:-keep]:
        shutil.rmtree(old)


def load_latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint, or None when there is none."""
    found = _all(folder)
    if not found:
        return None
    path = found[-1]
    try:
        state = json.loads((path / "state.json").read_text("utf-8"))
        if state.get("schema") != SCHEMA:
            raise UserError(
                f"{path}/state.json: schema {state.get('schema')!r}, this version reads {SCHEMA}; "
                "resume with the version that wrote it"
            )
        tensors = {g: load_file(path / f"{g}.safetensors") for g in state["groups"]}
        stage, update, finished = (state[key] for key in ("stage", "update", "finished"))
        return Checkpoint(stage, update, finished, tensors, state["values"])
    except UserError:
        raise
    except Exception as error:  # safetensors and json each have their own error types
        raise UserError(
            f"{path}: damaged checkpoint ({type(error).__name__}); delete this folder to go on "
            "from the one before"
        ) from error


def _all(folder: Path) -> list[Path]:
    # by stage and update as numbers, the end of a stage after the same update within it
    found = [(re.fullmatch(r"(\d+)-(\d+)(-end)?", p.name), p) for p in folder.glob("[0-9]*")]
    kept = [
        (int(match[1]), int(match[2]), match[3] is not None, path)
        for match, path in found
        if match and (path / "state.json").exists()
    ]
    return [path for *_, path in sorted(kept)]
