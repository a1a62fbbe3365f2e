"""Checksums of written files, so that whoever reads a file notices if it has changed.

manifest.json of a folder lists the sha256 of files in it: of a run, of each stage, of each
checkpoint. What it does not list is taken as it is: files are listed once they are finished, and
older runs have no list at all. A file that is written anew is taken off the list first, so that a
process killed in between leaves nothing refused.
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


class Changed(UserError):
    """A file at ``path`` is not what its folder's manifest says; ``what`` is wrong with it."""

    def __init__(self, path: Path, what: str):
        super().__init__(f"{path}: {what}; {REMEDY}")
        self.path, self.what = path, what


def checksum(path: Path, algorithm: str = "sha256") -> str:
    """The checksum of a file's content in hex digits; of sha256 64."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def folder_checksum(folder: Path) -> str:
    """sha256 over names and contents of the files in a folder (not those in its folders)."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(path.name.encode() + bytes.fromhex(checksum(path)))
    return digest.hexdigest()


def text_hash(text: str) -> str:
    """sha256 of a text, 32 hex digits: what it is called in a cache."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def record(folder: Path, *names: str) -> None:
    """List those of the files that are not listed; a name of a folder means all files in it.

    Without names: every file in ``folder``. Names that begin with a dot are half-written files.
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
    """Changed for a listed file that is not what it was; without names every one is read.

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
            raise Changed(path, f"missing, and {folder / NAME} lists it") from error
        except OSError as error:
            raise Changed(path, f"cannot be read ({error.strerror or error})") from error
        if found != expected:
            where = folder / NAME
            raise Changed(path, f"not what was written (its checksum differs from that in {where})")


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
    # (checkpoints were once written without)
    if not isinstance(sums, dict) or path.read_bytes() not in (_content(sums), _plain(sums)):
        raise Changed(path, "not what was written")
    for name, digest in sums.items():
        if not isinstance(digest, str) or Path(name).is_absolute() or ".." in Path(name).parts:
            raise Changed(path, "names a file outside of its folder")
    return sums


def _write(folder: Path, sums: dict[str, str]) -> None:
    write_bytes(folder / NAME, _content(dict(sorted(sums.items()))))


def _content(sums: dict[str, str]) -> bytes:
    return _plain(sums, of_these=hashlib.sha256(json.dumps(sums).encode()).hexdigest())


def _plain(sums: dict[str, str], **more: str) -> bytes:
    return (json.dumps({"sha256": sums, **more}, indent=1) + "\n").encode()
