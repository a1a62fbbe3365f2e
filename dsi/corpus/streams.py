"""Stream files: {"D0": [document ids], "D1": [...]}, checked, with the line of every mistake.

Unlike a corpus, a stream is read whole (some 100 bytes per id, for as long as it is being read).
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dsi.corpus.records import problem, show
from dsi.errors import UserError


def read_stream_file(path: Path) -> tuple[str, list[list[str]]]:
    """The text of a stream file (for :func:`line_of`) and the ids of D0, D1, ... in this order."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise problem(path, line, "not UTF-8; convert the file to UTF-8") from None
    except OSError as error:
        raise problem(path, None, f"cannot be read ({error.strerror}); check the path") from None
    return text, parse_stream(path, text)


def parse_stream(path: Path, text: str) -> list[list[str]]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        for index, name in enumerate(names):
            if name in names[:index]:
                # the second key's line: what is before it holds the first one
                lines = [n for key, _, n in _strings(text) if key and key[0] == name]
                raise problem(path, lines[-1] if lines else 1, f"{show(name)} twice; merge them")
        return dict(pairs)

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        fix = 'write {"D0": [document ids], "D1": [...]}'
        raise problem(path, error.lineno, f"broken JSON ({error.msg}); {fix}") from None
    except UserError:
        raise
    except (ValueError, RecursionError):  # a number of 5,000 digits, 10,000 brackets
        raise problem(path, 1, 'not a stream; write {"D0": [document ids]}') from None
    if not isinstance(value, dict):
        raise problem(path, 1, 'not a JSON object; write {"D0": [document ids], "D1": [...]}')
    if not value:
        raise problem(path, 1, 'no corpora; write {"D0": [document ids], "D1": [...]}')
    for name, ids in value.items():
        line = line_of(text, name, None)
        if not re.fullmatch(r"D(0|[1-9][0-9]{0,8})", name):
            raise problem(path, line, f"key {show(name)}; name the corpora D0, D1, D2, ...")
        if not isinstance(ids, list) or not all(isinstance(entry, str) for entry in ids):
            raise problem(path, line, f"{name} must be a list of document ids (strings); fix it")
    for number in range(len(value)):
        if f"D{number}" not in value:
            later = min(int(name[1:]) for name in value if int(name[1:]) > number)
            line = line_of(text, f"D{later}", None)
            what = f"D{number} is missing before D{later}; number the corpora without gaps"
            raise problem(path, line, what)
    return [value[f"D{number}"] for number in range(len(value))]


def _strings(text: str) -> Iterator[tuple[list[str], int, int]]:
    """Only for errors: ([key] or [], index of the element under its key, line) of every string."""
    index = line = 0
    position = 0
    for match in re.finditer(r'"(?:[^"\\]|\\.)*"(\s*:)?', text):
        line += text.count("\n", position, match.start())
        position = match.start()
        if match[1] is not None:
            index = 0
            yield [json.loads(match[0].removesuffix(match[1]))], index, line + 1
        else:
            yield [], index, line + 1
            index += 1


def line_of(text: str, key: str, index: int | None) -> int:
    """The line of a key, or of element ``index`` of its list, in a stream file that parses."""
    inside, found = False, 1
    for names, position, line in _strings(text):
        if names:
            inside = names == [key]
            found = line if inside else found
            if inside and index is None:
                return line
        elif inside and position == index:
            return line
    return found
