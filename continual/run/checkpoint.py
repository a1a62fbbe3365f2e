"""Checkpoints: everything a run needs to go on, as safetensors and JSON, whole or not there."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import OutOfMemoryError, Tensor

from dsi import manifest
from dsi.errors import UserError
from dsi.files import replace_atomically

SCHEMA = 3


@dataclass
class Checkpoint:
    """The state after ``update`` updates of ``stage`` (all of them: the stage is finished).

    Batches, schedules and dropout are functions of (seed, stage, update), so no generator state is
    needed. ``tensors``: groups such as model, optimizer and each axis of the method. ``values``:
    plain data.
    """

    stage: int
    update: int
    finished: bool
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


def save(folder: Path, checkpoint: Checkpoint, keep: int) -> None:
    """Write ``folder/SS-UUUUUU`` and remove all but the newest ``keep``."""
    name = _name(checkpoint)

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
        manifest.record(target)

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
            loaded = _load(path)
            if isinstance(loaded, Checkpoint):
                return loaded
            problem = loaded
        warn(f"{path}: damaged checkpoint ({problem}), skipped for the one before")
    if found:
        raise UserError(
            f"{folder}: every checkpoint is damaged; restore one, or start again with --overwrite"
        )
    return None


@contextmanager
def fitting(folder: Path, found: Checkpoint) -> Iterator[None]:
    """Turns what goes wrong with a checkpoint of another run's tensors or values into one line."""
    try:
        yield
    except (UserError, OutOfMemoryError):
        raise
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"{folder / _name(found)}: does not fit this run ({what}); delete it to go on from the "
            "one before"
        ) from error


def _name(checkpoint: Checkpoint) -> str:
    end = "-end" if checkpoint.finished else ""
    return f"{checkpoint.stage:02d}-{checkpoint.update:08d}{end}"


def _load(path: Path) -> Checkpoint | str:
    """A checkpoint, or what is wrong with the content of its files."""
    state = json.loads((path / "state.json").read_text("utf-8"))
    if isinstance(state, dict) and state.get("schema") != SCHEMA:
        raise UserError(
            f"{path}/state.json: schema {state.get('schema')!r}, this version reads {SCHEMA}; "
            "resume with the version that wrote it"
        )
    try:
        for group in state["groups"]:
            file = f"{group}.safetensors"
            if Path(file).name != file or not (path / file).is_file():
                return f"{file} is missing"
        tensors = {g: load_file(path / f"{g}.safetensors") for g in state["groups"]}
        stage, update, finished = (state[key] for key in ("stage", "update", "finished"))
        found = Checkpoint(stage, update, finished, tensors, dict(state["values"]))
        if _name(found) != path.name:
            return f"state.json is of {_name(found)}"
    except (SafetensorError, LookupError, TypeError, ValueError, AttributeError) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return f"not what was written: {what}"
    return _misfit(tensors) or found


def _misfit(tensors: dict[str, dict[str, Tensor]]) -> str | None:
    """A tensor that goes with a weight and has other sizes: most optimizers would not notice."""
    weights = tensors.get("model", {})
    for group, named in tensors.items():
        for key, value in named.items():
            # of the optimizer the entry follows the name, of a component a prefix precedes it
            name = key.rpartition("/")[0] if group == "optimizer" else key.rpartition("/")[2]
            weight = weights.get(name, value)
            # a step is one number, a factored moment has a dimension less
            if value.dim() == weight.dim() and value.shape != weight.shape:
                sizes = f"{tuple(value.shape)}, the weight {tuple(weight.shape)}"
                return f"{group}: {key} has sizes {sizes}"
    return None


def _problem(path: Path) -> str | None:
    """What is wrong with a checkpoint's files; None when every checksum is right."""
    if not (path / manifest.NAME).exists():
        return f"{manifest.NAME} is missing"
    try:
        manifest.verify(path)
    except manifest.Changed as error:
        return f"{error.path.name}: {error.what}"
    except UserError:
        return f"{manifest.NAME} cannot be read"
    return None


def _all(folder: Path) -> list[Path]:
    # by stage and update as numbers, the end of a stage after the same update within it
    found = [(re.fullmatch(r"(\d+)-(\d+)(-end)?", p.name), p) for p in folder.glob("[0-9]*")]
    kept = [
        (int(match[1]), int(match[2]), match[3] is not None, path) for match, path in found if match
    ]
    return [path for *_, path in sorted(kept)]
