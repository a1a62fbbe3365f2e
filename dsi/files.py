"""Files that are either whole or not there: temporary name, flush, rename."""

import errno
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from dsi.errors import UserError

NOT_WRITABLE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
)
OUT_OF_PLACE = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
_REMEDY = "make room or give write access, then go on with --resume: what was kept is whole"


def cache_folder() -> Path:
    """Where derived files are kept between runs: ``$DSI_CACHE`` or ``~/.cache/dsi-continual``."""
    return Path(os.environ.get("DSI_CACHE") or Path.home() / ".cache" / "dsi-continual")


def refuse_special(path: str | Path, fix: str) -> None:
    """UserError for what is neither a file nor a folder: opening a pipe may wait for ever, and a
    device has no end."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return  # whoever opens it says what is wrong
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UserError(f"{path}: not a regular file; {fix}")


def replace_atomically(folder: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a new folder, then put it in the place of ``folder``."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        write(temporary)
        for path in temporary.rglob("*"):
            if path.is_file():
                _flush(path)
        temporary.chmod(0o755)  # mkdtemp makes private folders; a run directory is for sharing
        _put(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _put(temporary: Path, folder: Path) -> None:
    old = temporary.with_name(f"{temporary.name}.old")
    with suppress(FileNotFoundError):
        os.rename(folder, old)
    try:
        os.rename(temporary, folder)
    except OSError:
        # another process may have finished the same cache entry in between: theirs is as good
        shutil.rmtree(temporary, ignore_errors=True)
        if not folder.exists():
            if old.exists():
                os.rename(old, folder)
            raise
    shutil.rmtree(old, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` in one step (UTF-8)."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` by ``value`` as JSON; NaN is refused, since it is not JSON."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, kind: type = dict) -> Any:
    """The JSON object (or another ``kind``) in a file; UserError that names the file otherwise."""
    refuse_special(path, "restore the file")
    try:
        value = json.loads(path.read_text("utf-8"))
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"{path}: cannot be read ({why}); restore the file") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: broken JSON ({error}); restore the file") from error
    if not isinstance(value, kind):
        what = {dict: "an object", list: "a list"}.get(kind, kind.__name__)
        raise UserError(f"{path}: {what} is expected; restore the file")
    return value


@contextmanager
def as_written(path: Path) -> Iterator[None]:
    """Within, errors about the content of a file become one UserError that names the file."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{path}: not what was written ({what}); restore the file") from error


@contextmanager
def reported(folder: Path) -> Iterator[None]:
    """Turns a full disk, a missing permission and the like into one line.

    The same for a file in ``folder`` in the place of a folder, a folder in the place of a file, and
    a link to nowhere.
    """
    try:
        yield
    except OSError as error:
        path = error.filename2 or error.filename or ""
        inside = Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))
        if error.errno in OUT_OF_PLACE and inside:
            why = os.strerror(error.errno).lower()
            raise UserError(f"{path}: {why}; something else belongs there, move it away") from error
        if error.errno not in NOT_WRITABLE:
            raise
        where, why = error.filename or folder, os.strerror(error.errno)
        raise UserError(f"{where}: {why.lower()}; {_REMEDY}") from error
    except SafetensorError as error:
        # a Rust library: its error has the number in its text alone
        found = re.search(r"(?:os error|code:) (\d+)", str(error))
        if found is None or int(found[1]) not in NOT_WRITABLE:
            raise
        why = os.strerror(int(found[1])).lower()
        raise UserError(f"{folder}: {why}; {_REMEDY}") from error


def _flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def whole_lines(path: Path, content: bytes) -> list[str]:
    """The lines of a table that we wrote; UserError where they are not UTF-8 or the end is gone."""
    try:
        lines = content.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}); restore the file") from error
    if lines.pop():
        raise UserError(f"{path}:{len(lines) + 1}: the last line is cut off; restore the file")
    return lines
