"""Files that are either whole or not there: temporary name, flush, rename."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    """Where derived files are kept between runs: ``$DSI_CACHE`` or ``~/.cache/dsi-continual``."""
    return Path(os.environ.get("DSI_CACHE") or Path.home() / ".cache" / "dsi-continual")


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
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` by ``value`` as JSON; NaN is refused, since it is not JSON."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
