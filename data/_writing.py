"""Writing for the recipes: BEIR folders line by line, seeded splits, and cuts into a stream.

Every choice depends on the seed and on ids only (a hash), never on the order of the source or on
a generator's state: the same source gives the same files on every machine.
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from data._reading import SPLITS
from dsi.errors import UserError
from dsi.files import write_json

DSI_PLUS_PLUS_SIZES = ("50000", "5x10000")
HALF_AND_TENTHS = ("0.5", "5x0.1")


def position(seed: int, text: str) -> float:
    """A place in [0, 1) that depends on ``seed`` and ``text`` only, uniform over texts."""
    digest = hashlib.sha256(f"{seed}\t{text}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def shuffled(ids: Iterable[str], seed: int) -> list[str]:
    """The ids in a random order that does not depend on the order in which they came."""
    ids = list(ids)
    places = np.fromiter((position(seed, key) for key in ids), np.float64, len(ids))
    order = np.argsort(places, kind="stable")
    return [ids[row] for row in order]


def split_of(query: str, seed: int, shares: Sequence[float]) -> str:
    """The split of a query (train, dev, test) drawn with probabilities ``shares``."""
    place = position(seed, query) * sum(shares)
    for split, end in zip(SPLITS, itertools.accumulate(shares), strict=True):
        if place < end:
            return split
    return SPLITS[-1]


def parse_sizes(words: Sequence[str], total: int) -> list[int]:
    """Documents per corpus from words like ``50000 5x10000`` or ``0.5 5x0.1`` (of ``total``).

    Shares that add up to 1 use every document, each boundary rounded to the nearest document.
    Raises UserError for words that are not sizes, for a mixture, and for more than ``total``.
    """
    values: list[float] = []
    for word in words:
        times, _, size = word.rpartition("x")
        try:
            values += [float(size)] * int(times or 1)
        except ValueError as error:
            raise UserError(
                f"--sizes {word}: not a size; write a number like 10000 or 0.1, or 5x10000"
            ) from error
    if not values or not all(0 < value < math.inf for value in values):
        raise UserError("--sizes: every corpus needs a size above 0")
    if all(value < 1 for value in values) or values == [1.0]:
        if sum(values) > 1 + 1e-9:
            raise UserError(f"--sizes: the shares add up to {sum(values):g}; at most 1 is possible")
        ends = [round(total * end) for end in itertools.accumulate(values)]
    elif all(value >= 1 and value == int(value) for value in values):
        ends = [int(end) for end in itertools.accumulate(values)]
    else:
        raise UserError("--sizes: give either whole numbers of documents or shares below 1")
    if ends[-1] > total:
        raise UserError(
            f"--sizes: {ends[-1]} documents are asked for, the source has {total}; ask for fewer"
        )
    sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    if min(sizes) == 0:
        raise UserError(f"--sizes: a corpus would be empty with {total} documents; ask for fewer")
    return sizes


def cut(ids: Sequence[str], sizes: Sequence[int]) -> list[list[str]]:
    """Consecutive pieces of ``ids``; what is left over belongs to no corpus."""
    rest = iter(ids)
    return [list(itertools.islice(rest, size)) for size in sizes]


def cut_groups(groups: Sequence[Sequence[str]], sizes: Sequence[int]) -> list[list[str]]:
    """Like :func:`cut`, but a group is never torn: it goes where its middle falls.

    The sizes are therefore met to about half a group. Raises UserError if a corpus stays empty.
    """
    ends = list(itertools.accumulate(sizes))
    corpora: list[list[str]] = [[] for _ in sizes]
    start = 0
    for group in groups:
        middle = start + len(group) / 2
        start += len(group)
        corpus = next((n for n, end in enumerate(ends) if middle <= end), None)
        if corpus is not None:
            corpora[corpus] += group
    for n, corpus in enumerate(corpora):
        if not corpus:
            raise UserError(
                f"corpus D{n} would be empty, since {len(groups)} groups stay whole;"
                " ask for fewer or larger corpora"
            )
    return corpora


def choose(all_ids: Sequence[str], judged: set[str], total: int, seed: int) -> list[str]:
    """``total`` ids in random order, those with a judged query first taken.

    Documents without a query cost a corpus its test questions, so they only fill up the rest.
    """
    taken = shuffled((key for key in all_ids if key in judged), seed)[:total]
    if len(taken) < total:
        rest = shuffled((key for key in all_ids if key not in judged), seed)
        taken = shuffled(taken + rest[: total - len(taken)], seed)
    return taken


class BeirWriter:
    """Writes a BEIR folder line by line; the folder appears whole, when the ``with`` block ends.

    Raises UserError if the folder exists and is not empty, for ids that are empty or hold
    whitespace (which TREC files cannot carry), and for empty texts. Repeated ids are found when
    the folder is read: remembering millions of them here would cost more than the writing.
    """

    def __init__(self, folder: Path) -> None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder}: exists and is not empty; give --out a new folder")
        self.folder = folder
        self.counts: dict[str, int] = {}
        self._files: dict[str, IO[str]] = {}

    def __enter__(self) -> Self:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = Path(
            tempfile.mkdtemp(prefix=f".{self.folder.name}.", dir=self.folder.parent)
        )
        self._stack = contextlib.ExitStack()
        for name in ("corpus.jsonl", "queries.jsonl", *(f"qrels/{s}.tsv" for s in SPLITS)):
            path = self._temporary / name
            path.parent.mkdir(exist_ok=True)
            file = open(path, "w", encoding="utf-8", newline="\n")
            self._files[path.stem] = self._stack.enter_context(file)
        for split in SPLITS:
            self._files[split].write("query-id\tcorpus-id\tscore\n")
        return self

    def document(self, key: str, title: str, text: str, **metadata: Any) -> None:
        """Append a document; ``metadata`` is for people and for cutting streams."""
        self._record("corpus", key, {"title": title, "text": text}, metadata)

    def query(self, key: str, text: str, **metadata: Any) -> None:
        """Append a query."""
        self._record("queries", key, {"text": text}, metadata)

    def judge(self, split: str, query: str, document: str) -> None:
        """Append the judgement that ``document`` answers ``query``."""
        self._files[split].write(f"{query}\t{document}\t1\n")
        self.counts[split] = self.counts.get(split, 0) + 1

    def stream(self, name: str, corpora: Sequence[Sequence[str]]) -> None:
        """Write ``streams/NAME.json`` from the document ids of D_0, D_1, ..."""
        write_stream(self._temporary / "streams" / f"{name}.json", corpora)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
        if kind is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            return
        self._temporary.chmod(0o755)  # mkdtemp makes private folders
        if self.folder.exists():
            self.folder.rmdir()
        self._temporary.rename(self.folder)

    def _record(self, kind: str, key: str, fields: dict[str, str], metadata: dict) -> None:
        if not key or key.split() != [key]:
            raise UserError(f"id {key!r} is empty or holds whitespace; the source needs other ids")
        if not fields["text"].strip():
            raise UserError(f"{key!r} has no text; remove it from the source")
        record = {"_id": key, **fields, **({"metadata": metadata} if metadata else {})}
        self._files[kind].write(json.dumps(record, ensure_ascii=False) + "\n")
        self.counts[kind] = self.counts.get(kind, 0) + 1


def write_stream(path: Path, corpora: Sequence[Sequence[str]]) -> None:
    """Write a stream file ``{"D0": [document ids], "D1": [...]}``."""
    named = {f"D{n}": list(corpus) for n, corpus in enumerate(corpora)}
    write_json(path, named)


def write_queries(
    writer: BeirWriter,
    queries: Iterable[tuple[str, str]],
    judged: dict[str, list[tuple[str, str]]],
    documents: set[str],
) -> None:
    """Write the queries that a chosen document answers, and their judgements.

    ``queries`` are pairs (id, text), ``judged`` holds pairs (query id, document id) by split.
    """
    kept = {s: [(q, d) for q, d in pairs if d in documents] for s, pairs in judged.items()}
    wanted = {q for pairs in kept.values() for q, _ in pairs}
    for key, text in queries:
        if key in wanted:
            writer.query(key, text)
            wanted.discard(key)
    if wanted:
        raise UserError(
            f"query {min(wanted)!r} is judged but has no text in the source;"
            " add it to the queries or remove its judgement"
        )
    for split, pairs in kept.items():
        for query, document in pairs:
            writer.judge(split, query, document)


def complete_splits(
    judged: dict[str, list[tuple[str, str]]], seed: int
) -> dict[str, list[tuple[str, str]]]:
    """Give every split queries: a model that answers test queries has to train on some.

    A split that is there stays, except the one that gives: train gives 20 per cent to a missing
    dev and to a missing test; without train, dev gives 80 per cent of its queries; where test
    stands alone (most BEIR sets) it is cut 60/20/20. Whole queries move, never single judgements.
    """
    pairs = {split: list(judged.get(split, [])) for split in SPLITS}
    there = [split for split in SPLITS if pairs[split]]
    shares = {
        ("train",): (0.6, 0.2, 0.2),
        ("dev",): (0.6, 0.2, 0.2),
        ("test",): (0.6, 0.2, 0.2),
        ("train", "dev"): (0.8, 0.0, 0.2),
        ("train", "test"): (0.8, 0.2, 0.0),
        ("dev", "test"): (0.8, 0.2, 0.0),
    }.get(tuple(there))
    if shares is None:
        return pairs
    moved, pairs[there[0]] = pairs[there[0]], []
    for query, document in moved:
        pairs[split_of(query, seed, shares)].append((query, document))
    return pairs


def parser(recipe: str, description: str | None) -> argparse.ArgumentParser:
    """An argument parser with ``--out`` and ``--seed``; ``description``: the recipe's docstring."""
    made = argparse.ArgumentParser(
        prog=f"python -m data.{recipe}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--out", type=Path, required=True, metavar="DIR", help="BEIR folder to write")
    made.add_argument("--seed", type=int, default=0, help="of every random choice (default 0)")
    return made


def add_sizes(made: argparse.ArgumentParser, default: Sequence[str]) -> None:
    """Add ``--sizes``, the documents or shares of D_0, D_1, ..."""
    made.add_argument(
        "--sizes",
        nargs="+",
        default=list(default),
        metavar="SIZE",
        help="D_0, D_1, ... as documents (50000 5x10000) or shares (0.5 5x0.1);"
        f" default {' '.join(default)}",
    )


def report(writer: BeirWriter) -> None:
    """Print what was written."""
    counts = writer.counts
    judged = ", ".join(f"{counts.get(split, 0)} {split}" for split in SPLITS)
    print(
        f"{writer.folder}: {counts.get('corpus', 0)} documents,"
        f" {counts.get('queries', 0)} queries ({judged} judgements)"
    )


def run(main: Callable[[], None]) -> None:
    """Run a recipe's ``main``: a user's mistake is one line on standard error, exit status 2."""
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def progress(records: Iterable[Any], what: str, every: int = 50_000) -> Iterator[Any]:
    """Pass records on and say on standard error how many went by."""
    count = 0
    for count, record in enumerate(records, start=1):
        if count % every == 0:
            print(f"{what}: {count}", file=sys.stderr)
        yield record
