"""Pseudo-queries on disk: a document is given to a generator once, whichever run asks.

Layout: CACHE/pseudo-queries/FINGERPRINT/SETTINGS/*.jsonl, one line per document: {"document",
"key", "check", "queries"}. A shard is written once, atomically, under a name made from what it
holds; readers take every shard, so runs may share a cache.
"""

import json
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from dsi.files import cache_folder, write_text
from dsi.manifest import text_hash
from dsi.queries.generator import share

SHARD = 5_000  # documents: what an interrupted run can lose


class Generator(Protocol):
    """What the cache needs of QueryGenerator and LexicalQueries."""

    def fingerprint(self) -> str:
        """A hash of everything that decides what is generated, the sampling excepted."""
        ...

    def generate(
        self,
        texts: Sequence[str],
        keys: Sequence[str],
        count: int,
        seed: int,
        *,
        accelerator: Any = None,
        progress: bool = False,
    ) -> list[list[str]]:
        """Up to ``count`` queries per document."""
        ...


def cached_generate(
    generator: Generator,
    texts: Sequence[str],
    count: int,
    seed: int,
    *,
    keys: Sequence[str] | None = None,
    cache: Path | None = None,
    accelerator: Any = None,
    progress: bool = False,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> list[list[str]]:
    """``generator.generate`` for the documents that are not on disk yet; the rest is read.

    An entry holds for one generator (fingerprint), text, key, count, sampling and seed. ``keys``
    default to :func:`dsi.manifest.text_hash` of the texts. ``cache`` defaults to ``$DSI_CACHE`` or
    ``~/.cache/dsi-continual``. A line that is cut off or altered is left out and made again.
    With ``accelerator`` the main process reads and writes, all processes generate. ``report`` is
    told how many documents were read and made, and the queries per second of those made.
    """
    hashes = [text_hash(text) for text in texts]
    keys = hashes if keys is None else keys
    folder = _folder(generator, count, seed, cache)
    main = accelerator is None or accelerator.is_main_process
    wanted = list(zip(hashes, keys, strict=True))
    known = share(accelerator, _read(folder, set(wanted)) if main else None)
    missing = {pair: text for pair, text in zip(wanted, texts, strict=True) if pair not in known}
    queries_made, seconds = 0, 0.0
    for part in _parts(list(missing), SHARD):
        started = time.perf_counter()
        made = generator.generate(
            [missing[pair] for pair in part],
            [key for _, key in part],
            count,
            seed,
            accelerator=accelerator,
            progress=progress,
        )
        seconds += time.perf_counter() - started
        queries_made += sum(map(len, made))
        known.update(zip(part, made, strict=True))
        if main:
            lines = [
                _line(pair[0], pair[1], queries) for pair, queries in zip(part, made, strict=True)
            ]
            content = "".join(line + "\n" for line in lines)
            write_text(folder / f"{text_hash(content)}.jsonl", content)
    if report is not None:
        report(
            {
                "read": len(set(wanted)) - len(missing),
                "made": len(missing),
                "queries": queries_made,
                "seconds": round(seconds, 2),
                "queries_per_second": round(queries_made / seconds, 1) if queries_made else None,
            }
        )
    return [known[pair] for pair in wanted]


def _folder(generator: Generator, count: int, seed: int, cache: Path | None) -> Path:
    sampling = getattr(generator, "sampling", None)
    settings = [asdict(sampling) if sampling else None, count, seed]
    name = text_hash(json.dumps(settings, sort_keys=True))
    return (cache or cache_folder()) / "pseudo-queries" / generator.fingerprint()[:32] / name


def _line(document: str, key: str, queries: list[str]) -> str:
    check = _check(document, key, queries)
    return json.dumps({"document": document, "key": key, "check": check, "queries": queries})


def _check(document: str, key: str, queries: list[str]) -> int:
    return zlib.crc32(json.dumps([document, key, queries]).encode())


def _read(folder: Path, wanted: set[tuple[str, str]]) -> dict[tuple[str, str], list[str]]:
    """The entries among ``wanted`` that are on disk and whole."""
    known: dict[tuple[str, str], list[str]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        with open(path, "rb") as file:
            for line in file:
                try:
                    entry = json.loads(line)
                    pair, queries = (entry["document"], entry["key"]), entry["queries"]
                    whole = entry["check"] == _check(*pair, queries)
                except (ValueError, KeyError, TypeError):
                    continue
                if whole and pair in wanted:
                    known[pair] = queries
    return known


def _parts(items: list, size: int) -> Iterator[list]:
    return (items[i : i + size] for i in range(0, len(items), size))
