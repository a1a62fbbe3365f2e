"""The Hugging Face hub, asked once whether it is there, where libraries try for a minute."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SECONDS = 5  # that an answer may take


@contextmanager
def asked(name: str | Path) -> Iterator[None]:
    """Within, ``name`` is loaded: a local folder (as a Path never anything else), or of the hub.

    Where the hub does not answer, or needs no question, libraries look into their caches alone.
    FileNotFoundError for a path that is not there.
    """
    from huggingface_hub import constants

    text = str(name)
    is_path = isinstance(name, Path) or text.startswith((".", "/", "~"))
    if (is_path or text.count("/") > 1 or "\\" in text) and not os.path.exists(name):
        raise FileNotFoundError("no such folder")
    before: Any = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or os.path.exists(name) or not _answers(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _answers(address: str) -> bool:
    from huggingface_hub.utils import get_session

    try:
        get_session().head(address, timeout=SECONDS)
    except Exception:  # of the HTTP library, which is another one in another version of the hub's
        return False
    return True
