"""Checksums of what was written: a bit that flips on the disk is found by whoever reads the file.

manifest.json of a folder lists the sha256 of files in it. What it does not list is taken as it is:
files are listed once they are finished, and older runs have no list at all. A file that is written
anew is taken off the list first, so that a process killed in between leaves nothing refused.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from dsi.errors import UserError
from dsi.files import read_json, refuse_special, write_bytes

NAME = "manifest.json"
REMEDY = f"restore the file (or, if the change is meant, delete {NAME})"


def checksum(path: Path) -> str:
    """sha256 of a file's content, 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record(folder: Path, *names: str) -> None:
    """List those of the files that are not listed; a name of a folder means all files in it.

    Without names: every file in ``folder``. What begins with a dot is half-written.
    """
    sums = _read(folder)
    new = {name: checksum(folder / name) for name in _files(folder, names) if name not in sums}
    if new:
        _write(folder, {**sums, **new})


def forget(folder: Path, *names: str, but: Sequence[str] = ()) -> None:
    """Take files off the list that are about to be written; without names all, except ``but``."""
    sums = _read(folder)
    kept = {n: digest for n, digest in sums.items() if n in but or not _chosen(n, names)}
    if len(kept) < len(sums):
        _write(folder, kept)


def verify(folder: Path, *names: str) -> None:
    """UserError for a listed file that is not what it was; without names every one is read.

    What is no file at all (a pipe, a device) is refused wherever it stands, listed or not.
    """
    for top in (folder / name for name in names):
        for path in (top, *top.rglob("*")) if top.is_dir() else (top,):
            refuse_special(path, "restore the file")
    for name, expected in _read(folder).items():
        if not _chosen(name, names):
            continue
        path = folder / name
        try:
            found = checksum(path)
        except FileNotFoundError as error:
            raise UserError(f"{path}: missing, and {folder / NAME} lists it; {REMEDY}") from error
        except OSError as error:
            why = error.strerror or error
            raise UserError(f"{path}: cannot be read ({why}); {REMEDY}") from error
        if found != expected:
            raise UserError(
                f"{path}: not what was written (its checksum differs from the one in "
                f"{folder / NAME}); {REMEDY}"
            )


def _chosen(listed: str, names: Sequence[str]) -> bool:
    return not names or any(listed == name or listed.startswith(f"{name}/") for name in names)


def _files(folder: Path, names: Sequence[str]) -> Iterator[str]:
    for top in (folder / name for name in names) if names else (folder,):
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            name = path.relative_to(folder)
            hidden = any(part.startswith(".") for part in name.parts)
            if path.is_file() and not hidden and name.as_posix() != NAME:
                yield name.as_posix()


def _read(folder: Path) -> dict[str, str]:
    path = folder / NAME
    if not os.path.lexists(path):
        return {}
    sums = read_json(path).get("sha256")
    # its own checksum, since a list with another name in it would leave a file unchecked
    if not isinstance(sums, dict) or path.read_bytes() != _content(sums):
        raise UserError(f"{path}: not what was written; restore the file, or delete it to go on")
    for name, digest in sums.items():
        if not isinstance(digest, str) or Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{path}: names a file outside of its folder; restore the file")
    return sums


def _write(folder: Path, sums: dict[str, str]) -> None:
    write_bytes(folder / NAME, _content(dict(sorted(sums.items()))))


def _content(sums: dict[str, str]) -> bytes:
    own = hashlib.sha256(json.dumps(sums).encode()).hexdigest()
    return (json.dumps({"sha256": sums, "of_these": own}, indent=1) + "\n").encode()
