"""Asks the Hugging Face hub once whether it answers; its libraries would retry for a minute."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SECONDS = 5  # to wait for an answer


@contextmanager
def asked(name: str | Path) -> Iterator[None]:
    """Load ``name`` within this context: a local folder, or a name on the hub (a Path: a folder).

    For a local folder, and where the hub does not answer, libraries use local files alone.
    FileNotFoundError for a path that does not exist.
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
