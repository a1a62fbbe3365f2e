"""A working directory, command lines in it, and what a refusal must look like."""

import gzip
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import transformers
from accelerate.state import AcceleratorState

from continual import runs
from continual.cli import main
from tests.continual.conftest import Lab

DOCUMENTS = [
    {"_id": "d1", "title": "Whale", "text": "a whale is a mammal that lives in the sea"},
    {"_id": "d2", "title": "Ice", "text": "ice is water that is cold enough to be hard"},
    {"_id": "d3", "title": "Ant", "text": "an ant lives in a nest with many other ants"},
]
QUERIES = [
    {"_id": "q1", "text": "which mammal lives in the sea"},
    {"_id": "q2", "text": "what is hard water"},
    {"_id": "q3", "text": "who lives in a nest"},
]
GOOD: dict[str, str] = {
    "corpus.jsonl": "".join(json.dumps(row) + "\n" for row in DOCUMENTS),
    "queries.jsonl": "".join(json.dumps(row) + "\n" for row in QUERIES),
    "qrels/train.tsv": "query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t1\n",
    "qrels/test.tsv": "query-id\tcorpus-id\tscore\nq3\td3\t1\n",
    "streams/two.json": '{"D0": ["d1", "d2"],\n "D1": ["d3"]}\n',
}
LENGTH = 700
"""Characters of the longest line that is still a line to read."""


@dataclass
class Place:
    """A folder with a good corpus in ``corpus``, in which commands are called."""

    folder: Path
    read_errors: Callable[[], tuple[str, str]]
    prepared: list[tuple[Any, Any]]
    """Configuration and material of every run that was about to begin."""

    def write(self, name: str, content: str | bytes) -> Path:
        """A file in the folder; .gz of a text is compressed."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            content = content.encode("utf-8", "surrogateescape")
            content = gzip.compress(content, mtime=0) if name.endswith(".gz") else content
        path.write_bytes(content)
        return path

    def snapshot(self) -> dict[str, Any]:
        """Every path below the folder, with its bytes or where it points."""
        found: dict[str, Any] = {}
        for parent, folders, files in os.walk(self.folder):
            for name in [*folders, *files]:
                path = Path(parent) / name
                is_file = path.is_file() and not path.is_symlink()
                content = path.read_bytes() if is_file else str(path.is_symlink())
                found[str(path.relative_to(self.folder))] = content
        return found

    def call(self, *arguments: str) -> tuple[int, str, str]:
        """Exit status, standard output and standard error of ``dsi ARGUMENTS``."""
        self.read_errors()
        AcceleratorState._reset_state(True)
        status = main(list(arguments))
        return (status, *self.read_errors())

    def refuse(self, arguments: Sequence[str], start: str, fix: str) -> str:
        """Assert that a command is refused as promised; returns the line after "dsi: error: ".

        Status 2, one line that begins with the place and has the fix, nothing written.
        """
        before = self.snapshot()
        status, out, err = self.call(*arguments)
        assert (status, self.prepared) == (2, []), out
        assert out == ""
        assert err.startswith("dsi: error: ")
        assert err.endswith("\n")
        line = err.removeprefix("dsi: error: ").removesuffix("\n")
        assert line.isprintable(), "one line, without control characters"
        assert len(line) < LENGTH
        assert "Traceback" not in line
        assert line.startswith(start), line
        assert fix in line
        assert self.snapshot() == before, "nothing is written"
        return line

    def accept(self, *arguments: str) -> tuple[Any, Any]:
        """Assert that a command is taken; returns the configuration and material of its run."""
        status, _, err = self.call(*arguments)
        assert (status, err) == (0, "")
        (prepared,) = self.prepared
        return prepared


@pytest.fixture
def place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Place:
    """A folder of its own; a run that would begin is noted and goes no further."""
    prepared: list[tuple[Any, Any]] = []

    def begin(config: Any, folder: Path, material: Any, *_: Any) -> Path:
        prepared.append((config, material))
        return folder

    # in a process of its own the command line says so before transformers is imported
    transformers.utils.logging.disable_progress_bar()
    monkeypatch.setattr(runs, "_run", begin)
    monkeypatch.chdir(tmp_path)
    made = Place(tmp_path, lambda: capfd.readouterr(), prepared)
    for name, content in GOOD.items():
        made.write(f"corpus/{name}", content)
    return made


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Makes tiny runs."""
    return Lab(tmp_path_factory.mktemp("lab"))


QUICK = ("training.updates=2", "training.updates_per_stage=2", "data.stream=two")


def each_once(*settings: str) -> list[str]:
    """The settings without those that a later one replaces."""
    return [f"{key}={value}" for key, value in dict(s.split("=", 1) for s in settings).items()]


KINDS = {
    "atomic": ("method=cl_seen", "docids=atomic"),
    "semantic": (
        "method=cl_seen",
        "docids=semantic",
        "docids.k=3",
        "docids.c=4",
        "docids.embedding.source=tfidf",
    ),
}


@pytest.fixture
def run(lab: Lab, place: Place, request: pytest.FixtureRequest) -> Path:
    """A copy, in ``place``, of a finished run of two stages of the kind asked for."""
    kind = getattr(request, "param", "atomic")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "_run", ORIGINAL)
        finished = lab.kept(*KINDS[kind], *QUICK)
    shutil.copytree(finished, place.folder / "run")
    # as an older run: what is wrong with a file is found without its checksum, too
    for path in [Path("run"), *Path("run/stages").iterdir()]:
        (path / "manifest.json").unlink()
    place.read_errors()
    return Path("run")


ORIGINAL = runs._run
