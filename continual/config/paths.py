"""``~`` and ``$NAME`` in settings that name files, where no shell has expanded them.

That is in YAML, and after the ``=`` of ``output=~/runs``.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

from dsi.corpus.records import show
from dsi.errors import UserError

FILES = ("output", "data.corpus", "data.stream")
NAMES = (  # a file, or a name to be downloaded
    "tokenizer.source",
    "model.source",
    "docids.embedding.name",
    "replay.generator.source",
)


def with_paths(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same plain settings with every path written out."""
    changed = dict(values)
    for key in (*FILES, *NAMES):
        *parents, last = key.split(".")
        holder: Any = changed
        for name in parents:
            if not isinstance(holder, dict) or not isinstance(holder.get(name), Mapping):
                break
            holder[name] = holder = dict(holder[name])
        else:
            value = holder.get(last)
            if isinstance(value, str):
                holder[last] = expand(value, key, is_file=key in FILES)
            elif isinstance(value, Mapping):  # a corpus of several files, or of the hub
                is_file = "dataset" not in value
                holder[last] = {
                    name: expand(part, f"{key}.{name}", is_file) if isinstance(part, str) else part
                    for name, part in value.items()
                }
    return changed


def expand(text: str, key: str, is_file: bool = True) -> str:
    """A path with ``~`` and variables written out; UserError for an unknown user or variable.

    A path that exists as written is returned unchanged. Where the text may also be a name that is
    sent over the network (``is_file=False``), a variable is read only if the result is an absolute
    path: a configuration from somebody else could otherwise send a secret of the environment.
    """
    if os.path.lexists(text):
        return text
    found = os.path.expanduser(text) if "\0" not in text else text
    if text.startswith("~") and found == text:
        raise UserError(f"{key}: {show(text)}: no such user; write the path out")
    variables = re.findall(r"\$(?:(\w+)|\{([^}]*)\})", text, re.ASCII)
    for name in (plain or braced for plain, braced in variables):
        if name not in os.environ:
            raise UserError(f"{key}: {show(text)}: ${name} is not set; set it, or write it out")
    found = os.path.expandvars(found)
    if variables and not is_file and not os.path.isabs(found):
        raise UserError(
            f"{key}: {show(text)}: a variable is read in an absolute path only; write the name out"
        )
    return found
