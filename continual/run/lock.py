"""One writer per run directory: two would mix their checkpoints and measurements.

The system's own lock on ``.lock`` ends with the process that holds it, whatever ended that one.
``.lock.json`` says who it is, for people, and for other machines of a shared file system that does
not carry locks. Both are gone when the writer has ended by itself. Readers need no lock.
"""

import errno
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from dsi.errors import UserError
from dsi.files import read_json, write_json

FILES = (".lock", ".lock.json", ".lock.held")
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Within: no other process writes to the run; UserError, with nothing touched, if one does."""
    path, note = folder / FILES[0], folder / FILES[1]
    lock = _acquire(folder)
    try:
        left = _holder(note)
        if (
            left and left["host"] != socket.gethostname()
        ):  # one of this host has ended, else it would hold the lock
            raise UserError(
                f"{folder}: {_described(left)} was writing here, and from "
                f"{socket.gethostname()} it cannot be seen whether it still does; if it has ended, "
                f"delete {note} and try again"
            )
        write_json(note, _own())
        try:
            yield
        finally:
            note.unlink(missing_ok=True)
    finally:
        with suppress(OSError):  # Windows keeps open files, and an empty one is in nobody's way
            path.unlink(missing_ok=True)
        lock.release()


def _acquire(folder: Path) -> BaseFileLock:
    lock = FileLock(folder / FILES[0])
    try:
        lock.acquire(timeout=0)
        if not isinstance(lock, SoftFileLock):
            return lock
        lock.release()  # what filelock makes of itself there, older versions of it take away again
    except OSError as error:
        if isinstance(error, Timeout):
            raise _in_use(folder) from error
        if error.errno not in NO_LOCKS:
            raise
    # a file system without locks: a file that is there or not
    lock = SoftFileLock(folder / FILES[2])
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise _in_use(folder) from error
    return lock


def _in_use(folder: Path) -> UserError:
    holder = _holder(folder / FILES[1])
    who = _described(holder) if holder else "another process"
    fix = "wait until it has ended, or stop it"
    if holder and holder["host"] != socket.gethostname():
        fix += f"; if it has ended, delete {folder}/.lock*"
    return UserError(f"{folder}: {who} is writing here; {fix}")


def _own() -> dict[str, Any]:
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "command": command if len(command) <= 100 else command[:97] + "...",
        "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _holder(note: Path) -> dict[str, Any] | None:
    """Who is noted; None when there is no note, or none that can be read."""
    try:
        found = read_json(note)
        return {key: str(found[key]) for key in ("host", "pid", "command", "since")}
    except (UserError, KeyError):
        return None


def _described(holder: dict[str, Any]) -> str:
    return (
        f"process {holder['pid']} on {holder['host']} ({holder['command']}, since "
        f"{holder['since']})"
    )
