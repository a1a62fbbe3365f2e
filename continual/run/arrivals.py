"""Which documents have arrived, gone and changed so far, and whether a next stage fits them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from continual.stream.stream import NONE, CorpusRows
from dsi.corpus.corpus import Corpus, StageRows
from dsi.corpus.ids import IdRows, id_rows
from dsi.corpus.records import show
from dsi.errors import UserError


class Arrivals:
    """The stages of a stream as they are read, and the number of every document by its id."""

    def __init__(self) -> None:
        self.parts: list[CorpusRows] = []
        self._gone = NONE  # by number: the stage in which a document goes, -1 while it is there
        self._tables: dict[int, tuple[Corpus, np.ndarray]] = {}  # with the number of every row
        self._lookups: dict[int, IdRows] = {}

    def extend(self, corpus: Corpus, stages: Sequence[StageRows]) -> None:
        """The stages of a stream file, or the only one of a corpus without a stream."""
        for stage in stages:
            _, numbers = self._table(corpus)
            gone, changed = numbers[stage.removed], numbers[stage.replaced]
            self._append(CorpusRows(corpus, stage.added, gone, changed, stage.texts))

    def add(self, corpus: Corpus | None, entry: Mapping[str, Any]) -> list[str]:
        """The stage of an entry of added.json; returns warnings.

        The documents of ``corpus`` arrive, except that those whose ids are in ``entry["replace"]``
        are new texts of earlier ones; those in ``entry["remove"]`` go.
        """
        remove, replace = entry.get("remove", []), entry.get("replace", [])
        removed = self._there("removes", remove)
        if corpus is None:
            part = CorpusRows(self.parts[0].corpus, NONE, removed)
        else:
            ids = corpus.documents["id"].to_pylist()
            kept = set(replace)
            is_new = np.fromiter((key not in kept for key in ids), bool, len(ids))
            texts = np.flatnonzero(~is_new)
            replaced = self._there("replaces", [ids[row] for row in texts])
            self._check_new(corpus, [ids[row] for row in np.flatnonzero(is_new)])
            for number in np.intersect1d(removed, replaced)[:1]:
                key = ids[texts[replaced == number][0]]
                raise UserError(
                    f"document {show(key)}: {corpus.name} replaces it and --remove names it; leave "
                    "it out of one of them"
                )
            part = CorpusRows(corpus, np.flatnonzero(is_new), removed, replaced, texts)
        if not len(part.rows) and len(removed) == np.count_nonzero(self._gone < 0):
            raise UserError("--remove: names all documents that are left; keep some")
        self._append(part)
        return [] if corpus is None else _warnings(part, entry.get("corpus"), len(self.parts) - 1)

    def _there(self, verb: str, ids: Sequence[str]) -> np.ndarray:
        """Numbers of documents that added.json names; UserError if one of them is not there."""
        numbers = self.present(ids)
        for at in np.flatnonzero(numbers < 0)[:1].tolist():
            what = f"added.json: {verb} document {show(ids[at])}, which is not there"
            raise UserError(f"{what}; restore the file")
        return numbers

    def present(self, ids: Sequence[str]) -> np.ndarray:
        """The numbers of documents, int64 (M,); -1 for those that are not there (any more)."""
        numbers = self._find(ids)
        arrived = np.flatnonzero(numbers >= 0)
        numbers[arrived[self._gone[numbers[arrived]] >= 0]] = -1
        return numbers

    def check_removed(self, places: Mapping[str, str]) -> None:
        """UserError for a document that is not there, with the place where its id is named."""
        for at in np.flatnonzero(self.present(list(places)) < 0)[:1]:
            document, place = list(places.items())[int(at)]
            stage = self.stage_of_removal(document)
            what = "is not in the run; give ids that the run has"
            if stage >= 0:
                what = f"was removed in stage {stage}; leave it out"
            raise UserError(f"{place}: document {show(document)} {what}")

    def stage_of_removal(self, document: str) -> int:
        """The stage in which a document went; -1 for one that has not arrived or is there."""
        number = int(self._find([document])[0])
        return int(self._gone[number]) if number >= 0 else -1

    def _check_new(self, corpus: Corpus, ids: Sequence[str]) -> None:
        """UserError for an id that any earlier corpus has."""
        for key, (other, _) in self._tables.items():
            again = np.flatnonzero(self._lookup(key).rows(ids) >= 0)
            if other is corpus or not len(again):
                continue
            document = ids[int(again[0])]
            what = f"{corpus.name}: document {show(document)} is in corpus {other.name!r} already"
            gone = self.stage_of_removal(document)
            if gone >= 0:
                what = f"{corpus.name}: document {show(document)} was removed in stage {gone}"
                raise UserError(
                    f"{what}; a removed one cannot arrive again, so give it another _id"
                )
            fix = ", or --replace to change its text" if self.present([document])[0] >= 0 else ""
            raise UserError(f"{what}; a document can arrive only once, so give it another _id{fix}")

    def _find(self, ids: Sequence[str]) -> np.ndarray:
        found = np.full(len(ids), -1, np.int64)
        for key, (_, numbers) in self._tables.items():
            rows = self._lookup(key).rows(ids)
            found = np.where(rows >= 0, np.maximum(found, numbers[rows]), found)
        return found

    def _table(self, corpus: Corpus) -> tuple[Corpus, np.ndarray]:
        return self._tables.setdefault(
            id(corpus), (corpus, np.full(corpus.documents.num_rows, -1, np.int64))
        )

    def _lookup(self, key: int) -> IdRows:
        if key not in self._lookups:
            self._lookups[key] = id_rows(self._tables[key][0].documents["id"])
        return self._lookups[key]

    def _append(self, part: CorpusRows) -> None:
        _, numbers = self._table(part.corpus)
        start = len(self._gone)
        numbers[part.rows] = np.arange(start, start + len(part.rows))
        self._gone = np.concatenate([self._gone, np.full(len(part.rows), -1, np.int64)])
        self._gone[part.removed] = len(self.parts)
        self.parts.append(part)


def _warnings(part: CorpusRows, name: Any, stage: int) -> list[str]:
    """What an added corpus cannot measure, and which of its judgements are not used."""
    warnings, qrels = [], part.corpus.qrels
    if not np.isin(qrels["test"][:, 1], part.rows).any():
        what = f"has no test query: column D{stage} of the performance matrix stays empty"
        warnings.append(f"{name}: {what}")
    again = sum(int(np.isin(pairs[:, 1], part.texts).sum()) for pairs in qrels.values())
    if again:
        what = "judgements on replaced documents are not used; those that came with them stay"
        warnings.append(f"{name}: {again} {what}")
    return warnings


def check_entry(path: Path, entry: Any) -> None:
    """UserError for an entry of added.json that is not what ``dsi add`` writes."""
    if not isinstance(entry, dict):
        raise UserError(f"{path}: an entry without its corpus; restore the file")
    remove, replace = (entry.get(key, []) for key in ("remove", "replace"))
    for ids in (remove, replace):
        if not isinstance(ids, list) or not all(isinstance(key, str) for key in ids):
            raise UserError(f"{path}: remove and replace must be lists of ids; restore the file")
    if ("corpus" in entry or not remove) and not isinstance(entry.get("corpus"), str | dict):
        raise UserError(f"{path}: an entry without its corpus; restore the file")
