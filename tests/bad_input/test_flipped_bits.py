"""Every file of a finished run, one bit flipped or one byte cut off: refused, or never read."""

import io
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState

from continual import runs
from continual.cli import main
from continual.run import checkpoint
from dsi.errors import UserError
from tests.continual.conftest import Lab

SETTINGS = (
    "data.stream=one",
    "docids=semantic",
    "docids.k=3",
    "docids.c=4",
    "docids.embedding.source=tfidf",
    "replay.name=generative",
    "replay.memory=both",
    "replay.ratio=1",
    "replay.queries_per_document=2",
    "replay.generator={d_model: 16, num_layers: 1, num_decoder_layers: 1, num_heads: 2, "
    "d_ff: 32, updates: 3}",
    "regularizer.name=l2",
    "evaluation.sharpness.examples=4",
    "evaluation.sharpness.ascents=1",
    "evaluation.sharpness.iterations=2",
    "training.updates=2",
    "training.updates_per_stage=2",
)
NEVER_READ = {
    r"stages/\d\d/run\.D\d\.trec": "results for other tools",
    r"stages/\d\d/per_query\.jsonl": "results for people",
    r"stages/\d\d/decoding\.json": "results for people",
    r"docids/D0\.safetensors": "what extends docids is in the file of the last corpus",
    r"forgetting_events\.json": "results for people; a run goes on with the checkpoint's",
    r"timing\.json": "results for people; a run goes on with the checkpoint's",
    r"figures/.*": "drawn anew from matrix.json",
}
"""Files that no command reads, with the reason: the removal of one changes nothing."""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a stream, and of one corpus added to it, with nearly all that a run can hold."""
    lab = Lab(tmp_path_factory.mktemp("flips"))
    run = lab.train(*SETTINGS)
    lab.write_stream(lab.folder / "more", (6,), first=50)
    lab.call(runs.add, run, str(lab.folder / "more"))
    lab.write_stream(lab.folder / "third", (5,), first=70)
    with redirect_stdout(io.StringIO()):
        assert call("report", str(run)) == (0, "")
    return run


@pytest.fixture
def run(original: Path) -> Path:
    """A copy, beside the corpora."""
    copy = original.parents[1] / "copy" / "run"
    shutil.rmtree(copy, ignore_errors=True)
    return shutil.copytree(original, copy)


def call(*arguments: str) -> tuple[int, str]:
    """Exit status and what a command says on standard error."""
    AcceleratorState._reset_state(True)
    errors = io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(errors):
        status = main(list(arguments))
    lines = errors.getvalue().splitlines()
    return status, "\n".join(line for line in lines if line.startswith("dsi:") or status)


def commands(run: Path) -> list[tuple[str, ...]]:
    third = str(run.parents[1] / "third")
    resume = ("train", "--resume", str(run))
    return [
        ("search", str(run), "water"),
        ("search", str(run), "water", "--stage", "0"),
        ("report", str(run), "--out", str(run.parent / "out")),
        resume,
        ("evaluate", str(run)),
        ("evaluate", str(run), "--stage", "0"),
        ("add", str(run), third),
    ]


def files(run: Path) -> list[str]:
    return sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())


def never_read(name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in NEVER_READ)


def flip(content: bytes, rng: random.Random) -> bytes:
    at, bit = rng.randrange(len(content)), rng.randrange(8)
    return content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :]


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[:-1]


@pytest.fixture(autouse=True)
def no_figures(original, monkeypatch) -> None:
    """They take longer than everything else."""
    monkeypatch.setattr(runs, "_show", lambda folder: None)
    monkeypatch.setattr("continual.report.figures.save_figures", lambda *_: [])


MANY = pytest.param(flip, 8, marks=pytest.mark.slow)


@pytest.mark.parametrize(("damage", "times"), [(flip, 1), (cut, 1), MANY])
def test_no_damage_is_silent(original, run, damage: Callable[..., bytes], times: int) -> None:
    rng, count = random.Random(5), Counter[str]()
    for name in files(run):
        path = run / name
        content = path.read_bytes()
        for _ in range(times):
            path.write_bytes(damage(content, rng))
            if name.startswith("checkpoints/"):
                named = skipped(run, path)
                count["named and skipped" if named else f"silent: {name}"] += 1
            elif never_read(name):
                count["never read"] += 1
            else:
                count["refused" if refused(run, name) else f"silent: {name}"] += 1
            path.write_bytes(content)
    assert not [what for what in count if what.startswith("silent")], count
    assert files(run) == files(original)
    print(dict(count))
    assert count["refused"] > 30


def refused(run: Path, name: str) -> bool:
    """Whether a command ends with one line, before one that takes the file writes it over."""
    damaged = (run / name).read_bytes()
    for command in commands(run):
        status, line = call(*command)
        if status:
            assert (status, line.count("\n")) == (2, 0), (name, command, line)
            assert line.startswith("dsi: error: ")
            return True
        if (run / name).read_bytes() != damaged:
            return False
    return False


def skipped(run: Path, path: Path) -> bool:
    """Whether a damaged checkpoint is named and not taken; here there is none before it."""
    alone = run.parent / "checkpoints"
    shutil.rmtree(alone, ignore_errors=True)
    shutil.copytree(path.parent, alone / path.parent.name)
    told: list[str] = []
    with suppress(UserError):
        checkpoint.load_latest(alone, told.append)
        return False
    return len(told) == 1 and path.parent.name in told[0]


def test_what_is_never_read_can_be_gone(run) -> None:
    gone = [name for name in files(run) if never_read(name)]
    assert {p for p in NEVER_READ if any(re.fullmatch(p, name) for name in gone)} == {*NEVER_READ}
    for name in gone:
        (run / name).unlink()
    for command in commands(run):
        assert call(*command) == (0, ""), command


def test_without_checksums_a_run_is_an_older_one(run) -> None:
    before: Any = {path: path.read_bytes() for path in run.rglob("manifest.json")}
    own = [path for path in before if "checkpoints" not in path.parts]
    assert len(own) == 3
    for path in own:
        path.unlink()
    for command in commands(run)[:-1]:
        assert call(*command) == (0, ""), command
    for path in own:  # the run that went on has noted what it found
        if path.parent != run:
            assert path.read_bytes() == before[path]
    assert call("add", str(run), str(run.parents[1] / "third")) == (0, "")
