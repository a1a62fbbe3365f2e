"""Stream files: which documents each stage adds, removes and replaces.

Every mistake is named with its line.

``{"D0": [document ids], "D1": [...]}``; in the place of a list, a later stage may have an object
``{"add": [ids], "remove": [ids], "replace": {"id that stays": "id of the row with its new text"}}``
with any of the three. Unlike a corpus, a stream is read whole (some 100 bytes per id, for as long
as it is being read).
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dsi.corpus.ids import IdRows
from dsi.corpus.records import did_you_mean, problem, show
from dsi.errors import UserError

KEYS = ("add", "remove", "replace")


class StageIds(NamedTuple):
    """What a stream file says of one stage. ``replace``: id that stays -> id of its new text."""

    add: list[str]
    remove: list[str]
    replace: dict[str, str]


@dataclass(frozen=True)
class StageRows:
    """What one stage changes, as rows of the corpus's documents, int64 each.

    ``added`` (M,): what arrives, in the order of the file. ``removed`` (R,): what goes.
    ``replaced`` (P,): documents whose text changes; ``texts`` (P,): the rows with their new texts.
    """

    added: np.ndarray
    removed: np.ndarray
    replaced: np.ndarray
    texts: np.ndarray


def read_stream_file(path: Path) -> tuple[str, list[StageIds]]:
    """The text of a stream file (for :func:`line_of`) and what it says of D0, D1, ..."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise problem(path, line, "not UTF-8; convert the file to UTF-8") from None
    except OSError as error:
        raise problem(path, None, f"cannot be read ({error.strerror}); check the path") from None
    return text, parse_stream(path, text)


def parse_stream(path: Path, text: str) -> list[StageIds]:
    """What a stream file says of D0, D1, ...; UserError that names file and line."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) < len(pairs):
            name, line = _repeated(text)
            raise problem(path, line, f"{show(name)} twice; merge them")
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
    for name, entry in value.items():
        line = line_of(text, name)
        if not re.fullmatch(r"D(0|[1-9][0-9]{0,8})", name):
            raise problem(path, line, f"key {show(name)}; name the corpora D0, D1, D2, ...")
        if not isinstance(entry, list | dict) or (isinstance(entry, list) and not _are_ids(entry)):
            raise problem(path, line, f"{name} must be a list of document ids (strings); fix it")
    for number in range(len(value)):
        if f"D{number}" not in value:
            later = min(int(name[1:]) for name in value if int(name[1:]) > number)
            line = line_of(text, f"D{later}")
            what = f"D{number} is missing before D{later}; number the corpora without gaps"
            raise problem(path, line, what)
    return [_stage(path, text, f"D{number}", value[f"D{number}"]) for number in range(len(value))]


def _stage(path: Path, text: str, name: str, entry: Any) -> StageIds:
    if isinstance(entry, list):
        return StageIds(entry, [], {})
    for key, ids in entry.items():
        line = line_of(text, name, key)
        if key not in KEYS:
            what = f"{name} has the key {show(key)}; the keys are {', '.join(KEYS)}"
            raise problem(path, line, what + did_you_mean(key, KEYS))
        if key == "replace":
            if not isinstance(ids, dict) or not _are_ids(ids.values()):
                what = 'must be {"id that stays": "id of the row with its new text"}; fix it'
                raise problem(path, line, f"{name} replace {what}")
        elif not isinstance(ids, list) or not _are_ids(ids):
            what = f"{name} {key} must be a list of document ids (strings); fix it"
            raise problem(path, line, what)
        if name == "D0" and key != "add" and ids:
            what = f"D0 cannot {key}: nothing has arrived before it; move it to a later stage"
            raise problem(path, line, what)
    return StageIds(entry.get("add", []), entry.get("remove", []), entry.get("replace", {}))


def _are_ids(values: Any) -> bool:
    return all(isinstance(value, str) for value in values)


def stage_rows(
    path: Path,
    text: str,
    stages: Sequence[StageIds],
    lookup: IdRows,
    deduplicated: IdRows,
    judged: np.ndarray,
) -> list[StageRows]:
    """The rows of every stage; UserError for the first thing in the file that cannot be.

    ``lookup``: id -> row of the corpus's N documents; ``deduplicated``: ids that deduplication took
    out, which are passed over; ``judged`` bool (N,): rows that some query is judged on.
    """
    return _Checker(path, text, stages, lookup, deduplicated, judged).stages()


class _Checker:
    """Goes through the stages in order and keeps, by row, where a document has arrived and gone."""

    def __init__(
        self,
        path: Path,
        text: str,
        stages: Sequence[StageIds],
        lookup: IdRows,
        deduplicated: IdRows,
        judged: np.ndarray,
    ):
        self.path, self.text, self.given = path, text, stages
        self.lookup, self.deduplicated, self.judged = lookup, deduplicated, judged
        self.arrived, self.gone, self.text_in = (np.full(len(judged), -1) for _ in range(3))

    def stages(self) -> list[StageRows]:
        texts = [self._texts(n) for n in range(len(self.given))]
        found = []
        for n, (replaced, new) in enumerate(texts):
            added = self._added(n)
            removed = self._removed(n)
            self._check_replaced(n, replaced)
            rows = StageRows(added, removed, replaced[replaced >= 0], new[replaced >= 0])
            if not (len(rows.added) or len(rows.removed) or len(rows.replaced)):
                what = f"D{n} is empty" + (" after deduplication" if any(self.given[n]) else "")
                raise self._mistake(f"{what}; give it documents or renumber the others", n)
            if not ((self.arrived >= 0) & (self.gone < 0)).any():
                raise self._mistake(f"D{n} removes all that is left; keep some", n, "remove")
            found.append(rows)
        return found

    def _texts(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows whose text changes (-1: deduplication took them out) and rows of the new texts."""
        ids = self.given[n].replace
        stays = self._rows(n, "replace", list(ids), list(ids))
        new = self.lookup.rows(list(ids.values()))
        for index in np.flatnonzero(new < 0)[:1].tolist():
            kept, by = list(ids.items())[index]
            what = f"D{n} replaces {show(kept)} by the unknown row {show(by)}; add it to the corpus"
            if self.deduplicated.rows([by])[0] >= 0:
                what = f"D{n} replaces {show(kept)} by {show(by)}, which data.deduplicate takes out"
                what += "; set it to none"
            raise self._mistake(what, n, "replace", kept)
        for index in np.flatnonzero(self.judged[new])[:1].tolist():
            kept, by = list(ids.items())[index]
            what = f"{show(by)} is only the new text of {show(kept)}, but queries are judged on it"
            raise self._mistake(f"{what}; judge them on {show(kept)}", n, "replace", kept)
        self.text_in[new] = n
        return stays, new

    def _added(self, n: int) -> np.ndarray:
        ids = self.given[n].add
        rows = self._rows(n, "add", ids, range(len(ids)))
        positions, rows = np.flatnonzero(rows >= 0), rows[rows >= 0]
        wrong = _repeats(rows) | (self.arrived[rows] >= 0) | (self.text_in[rows] >= 0)
        for index in np.flatnonzero(wrong)[:1].tolist():
            row, position = rows[index], int(positions[index])
            earlier, left = int(self.arrived[row]), int(self.gone[row])
            where = f"D{n} twice" if earlier < 0 else f"D{earlier} and in D{n}"
            what = f"document {show(ids[position])} is in {where}; keep it once"
            if self.text_in[row] >= 0:
                what = f"D{n} names {show(ids[position])}, which D{self.text_in[row]} has as a "
                what += "document's new text; leave it out of one of them"
            elif left >= 0:
                what = f"document {show(ids[position])} was removed in D{left} and is in D{n}; a "
                what += "removed document cannot arrive again, so give it another _id"
            raise self._mistake(what, n, "add", position)
        self.arrived[rows] = n
        return rows

    def _removed(self, n: int) -> np.ndarray:
        ids = self.given[n].remove
        rows = self._rows(n, "remove", ids, range(len(ids)))
        positions, rows = np.flatnonzero(rows >= 0), rows[rows >= 0]
        wrong = _repeats(rows) | (self.gone[rows] >= 0) | ~self._is_earlier(n, rows)
        for index in np.flatnonzero(wrong)[:1].tolist():
            row, position = rows[index], int(positions[index])
            what = f"D{n} removes {show(ids[position])}"
            if not self._is_earlier(n, rows[index : index + 1])[0]:
                what += ", which has not arrived in an earlier stage; move it to a later one"
            elif self.gone[row] >= 0:
                what += f", which is removed in D{self.gone[row]}; keep it once"
            else:
                what += " twice; keep it once"
            raise self._mistake(what, n, "remove", position)
        self.gone[rows] = n
        return rows

    def _check_replaced(self, n: int, rows: np.ndarray) -> None:
        known = rows >= 0
        wrong = known & ((self.gone[rows] >= 0) | ~self._is_earlier(n, rows))
        for index in np.flatnonzero(wrong)[:1].tolist():
            kept, left = list(self.given[n].replace)[index], int(self.gone[rows[index]])
            what = f"D{n} replaces {show(kept)}, which "
            if left == n:
                what += f"D{n} removes as well; leave one of them out"
            elif left >= 0:
                what += f"is removed in D{left}; leave it out"
            else:
                what += "has not arrived in an earlier stage; move it to a later one"
            raise self._mistake(what, n, "replace", kept)

    def _is_earlier(self, n: int, rows: np.ndarray) -> np.ndarray:
        return (self.arrived[rows] >= 0) & (self.arrived[rows] < n)

    def _rows(
        self, n: int, key: str, ids: Sequence[str], places: Sequence[str | int]
    ) -> np.ndarray:
        """The row of each id, -1 where deduplication took it out."""
        rows = self.lookup.rows(ids)
        unknown = (rows < 0) & (self.deduplicated.rows(ids) < 0)
        for index in np.flatnonzero(unknown)[:1].tolist():
            verb = {"add": "names", "remove": "removes", "replace": "replaces"}[key]
            what = f"D{n} {verb} the unknown document {show(ids[index])}"
            fix = "add it to the corpus or remove it here"
            raise self._mistake(f"{what}; {fix}", n, key, places[index])
        return rows

    def _mistake(self, what: str, n: int, *path: str | int) -> UserError:
        return problem(self.path, line_of(self.text, f"D{n}", *path), what)


def _repeats(rows: np.ndarray) -> np.ndarray:
    """Whether a row stands before, too."""
    again = np.ones(len(rows), bool)
    again[np.unique(rows, return_index=True)[1]] = False
    return again


def line_of(text: str, *path: str | int) -> int:
    """The line of a key, or of an element of a list, in a stream file that parses.

    ``line_of(text, "D1")``, ``line_of(text, "D1", "remove", 2)``; a list of ids that stands right
    under its corpus is that of ``"add"``. Where there is no such place: the line of the corpus.
    """
    found = 1
    for place, line, _ in _places(text):
        if place == path:
            return line
        found = line if place == path[:1] else found
    return found


def _repeated(text: str) -> tuple[str, int]:
    """The first key that its object has already, and its line."""
    seen = set()
    for place, line, is_key in _places(text):
        if is_key and place in seen:
            return str(place[-1]), line
        if is_key:
            seen.add(place)
    raise AssertionError("no key is there twice")


def _places(text: str) -> Iterator[tuple[tuple[str | int, ...], int, bool]]:
    """Path, line and whether it is a key, of every key and every string; only for errors."""
    # of every bracket that is open: the path to it, and its place at the moment
    around: list[tuple[tuple[Any, ...], Any]] = []
    line, position = 1, 0
    for match in re.finditer(r'"(?:[^"\\]|\\.)*"(\s*:)?|[\[\]{},]', text):
        line += text.count("\n", position, match.start())
        position = match.start()
        sign = match[0][0]
        if sign == '"' and around:
            before, place = around[-1]
            is_key = match[1] is not None
            if is_key:
                place = json.loads(match[0].removesuffix(match[1]))
                around[-1] = (before, place)
            if place is not None:
                yield (*before, place), line, is_key
        elif sign in "[{":
            path = (*around[-1][0], around[-1][1]) if around else ()
            if sign == "[" and len(path) == 1:
                path = (*path, "add")
            around.append((path, 0 if sign == "[" else None))
        elif sign in "]}" and around:
            around.pop()
        elif sign == "," and around and isinstance(around[-1][1], int):
            around[-1] = (around[-1][0], around[-1][1] + 1)
