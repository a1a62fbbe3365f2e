"""Where a corpus comes from: a BEIR folder, a pair of JSONL files, or a dataset of `datasets`.

A source only says which records there are and which files they come from; `dsi.corpus.cache` reads
them. Nothing is read when a source is made, except that a dataset of the Hugging Face hub is
fetched.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsi import hub
from dsi.corpus.records import (
    SPLITS,
    Judgement,
    check_regular,
    did_you_mean,
    find_file,
    json_rows,
    judgements_from_queries,
    judgements_from_rows,
    judgements_from_tsv,
    problem,
    show,
)
from dsi.errors import UserError

Rows = Iterable[Mapping[str, Any]]
BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
LAYOUT = "corpus.jsonl, queries.jsonl, qrels/train.tsv, qrels/dev.tsv, qrels/test.tsv"


@dataclass(frozen=True)
class Source:
    """Records and the files behind them; the callables get a folder for temporary files."""

    name: str
    documents_label: str
    documents: Callable[[Path], Rows]
    queries_label: str
    queries: Callable[[Path], Rows]
    judgements: Callable[[Path], Iterator[Judgement]]
    files: Mapping[str, Path]
    """What the cache key is computed from: a name without this machine's paths -> file."""
    options: tuple[str, ...] = ()
    folder: Path | None = None
    warnings: tuple[str, ...] = ()
    """Of files beside those in ``files``, thus never cached."""


def beir_source(folder: Path) -> Source:
    """A folder in BEIR layout; queries and any of the splits may be absent."""
    if not os.path.isdir(folder):
        text = "is a file; for JSONL files give {documents: FILE, queries: FILE}"
        if not os.path.exists(folder):
            text = f"no such folder; give a folder with {LAYOUT}, or 'encyclopedia'"
        raise problem(folder, None, text)
    corpus = find_file(folder / "corpus.jsonl")
    if corpus is None:
        text = f"missing; a corpus folder holds {LAYOUT} (each plain or .gz)"
        raise problem(folder / "corpus.jsonl", None, text)
    queries = find_file(folder / "queries.jsonl")
    splits = {split: find_file(folder / "qrels" / f"{split}.tsv") for split in SPLITS}
    qrels = {split: path for split, path in splits.items() if path is not None}
    if queries is None and qrels:
        text = f"missing, but {next(iter(qrels.values()))} judges queries; add the file"
        raise problem(folder / "queries.jsonl", None, text)
    others = sorted(path.name for path in folder.glob("qrels/[!.]*") if path not in qrels.values())
    known = ", ".join(f"{split}.tsv" for split in SPLITS)
    files = {"corpus": corpus, "queries": queries, **qrels}

    def judgements(_: Path) -> Iterator[Judgement]:
        for split, path in qrels.items():
            yield from judgements_from_tsv(path, split)

    return Source(
        name=folder.resolve().name,
        documents_label=str(corpus),
        documents=lambda _: json_rows(corpus),
        queries_label=str(queries),
        queries=lambda _: json_rows(queries) if queries else (),
        judgements=judgements,
        files={name: path for name, path in files.items() if path is not None},
        options=("beir",),
        folder=folder,
        warnings=tuple(f"qrels/{name} is not read; the splits are {known}" for name in others),
    )


def jsonl_source(mapping: Mapping[str, Any]) -> Source:
    """Two JSONL files; query rows carry {"relevant": [document ids], "split"}; queries optional."""
    _check_keys(mapping, {"documents"}, {"queries"})
    documents = Path(mapping["documents"])
    queries = Path(mapping["queries"]) if "queries" in mapping else None
    for key, path in (("documents", documents), ("queries", queries)):
        if path is not None:
            check_regular(path)
        if path is not None and not os.path.isfile(path):
            text = f"no such file; corpus.{key} must name a JSONL file (plain or .gz)"
            raise problem(path, None, text)
    return Source(
        name=documents.name.removesuffix(".gz").removesuffix(".jsonl"),
        documents_label=str(documents),
        documents=lambda _: json_rows(documents),
        queries_label=str(queries),
        queries=lambda _: json_rows(queries) if queries else (),
        judgements=lambda _: judgements_from_queries(queries) if queries else iter(()),
        files={"documents": documents, **({"queries": queries} if queries else {})},
        options=("jsonl",),
    )


def dataset_source(mapping: Mapping[str, Any]) -> Source:
    """A dataset of the Hugging Face hub, or a local folder that `datasets` can read.

    ``documents``, ``queries``, ``train``, ``dev`` and ``test`` say where the rows are:
    "config/split", "split", or, in a local folder, a file or a folder (as of save_to_disk).
    ``qrels`` names another dataset that holds the judgements (BEIR's are apart), ``revision`` pins
    a version of the hub's. Columns are BEIR's: _id, title, text; _id, text; query-id, corpus-id,
    score.
    """
    optional = {"queries", *SPLITS, "qrels", "revision"}
    _check_keys(mapping, {"dataset", "documents"}, optional)
    mapping = {key: str(value) for key, value in mapping.items()}
    name, revision = mapping["dataset"], mapping.get("revision")
    owner = {key: mapping.get("qrels", name) if key in SPLITS else name for key in mapping}
    tables = {key: mapping[key] for key in ("documents", "queries", *SPLITS) if key in mapping}
    if any(split in tables for split in SPLITS) and "queries" not in tables:
        raise UserError("corpus.queries: missing beside judgements; add it, e.g. queries: queries")
    labels = {key: f"{owner[key]}[{where}]" for key, where in tables.items()}
    fetched: dict[str, Any] = {}
    files: dict[str, Path] = {}
    for key, where in tables.items():
        local, role = Path(owner[key]), "dataset" if owner[key] == name else "qrels"
        if local.is_dir():  # its files are the key: an unchanged folder is not loaded again
            paths = (path for path in sorted(local.rglob("*")) if path.is_file())
            files |= {f"{role} {path.relative_to(local).as_posix()}": path for path in paths}
        else:
            fetched[key] = _load(owner[key], where, labels[key], revision, None)
            paths = (Path(file["filename"]) for file in fetched[key].cache_files)
            files |= {f"{key} {number}": path for number, path in enumerate(paths)}

    def rows(key: str, scratch: Path) -> Rows:
        if key not in tables:
            return ()
        if key in fetched:
            return _rows(fetched[key])
        return _rows(_load(owner[key], tables[key], labels[key], revision, scratch / "datasets"))

    def judgements(scratch: Path) -> Iterator[Judgement]:
        for split in SPLITS:
            label = labels.get(split, "")
            yield from judgements_from_rows(rows(split, scratch), label, split)

    return Source(
        name=Path(name).name,
        documents_label=labels["documents"],
        documents=lambda scratch: rows("documents", scratch),
        queries_label=labels.get("queries", ""),
        queries=lambda scratch: rows("queries", scratch),
        judgements=judgements,
        files=files,
        options=("dataset", *(f"{key}={where}" for key, where in tables.items())),
    )


def _load(name: str, where: str, label: str, revision: str | None, scratch: Path | None) -> Any:
    """One table of a dataset, on disk; ``scratch`` keeps `datasets`' own copy out of its cache,
    which would miss a changed file of unchanged time and size."""
    try:
        import datasets
    except ImportError:
        raise UserError("corpus.dataset: needs the package; pip install datasets") from None
    path, suffix = Path(name) / where, Path(where.removesuffix(".gz")).suffix
    config, _, split = where.rpartition("/")
    options = {"cache_dir": str(scratch) if scratch else None, "keep_in_memory": False}
    try:
        if path.is_file():
            if suffix not in BUILDERS:
                raise problem(label, None, f"not a file of {', '.join(BUILDERS)}; convert it")
            kind = BUILDERS[suffix]
            return datasets.load_dataset(kind, data_files=str(path), split="train", **options)
        if (path / "state.json").is_file():  # save_to_disk, of a dataset or of a dict of splits
            return datasets.load_from_disk(str(path), keep_in_memory=False)
        if path.is_dir():
            return datasets.load_dataset(str(path), split="train", **options)
        with hub.asked(name):
            return datasets.load_dataset(
                name, config or None, split=split, revision=revision, **options
            )
    except UserError:
        raise
    except Exception as error:  # of the reader or the hub: dozens of kinds
        reason = str(error.__cause__ or error).strip() or type(error).__name__
        text = f"cannot be loaded ({reason[:200]}); name it as CONFIG/SPLIT, SPLIT or a file"
        raise problem(label, None, text) from error


def _rows(dataset: Any) -> Iterator[Mapping[str, Any]]:
    for batch in dataset.iter(batch_size=1000):
        names = list(batch)
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(names, values, strict=True))


def _check_keys(mapping: Mapping[str, Any], required: set[str], optional: set[str]) -> None:
    known = sorted(required | optional)
    for key, value in mapping.items():
        if key not in known:
            text = f"corpus.{key}: unknown; the keys are {', '.join(known)}"
            raise UserError(text + did_you_mean(str(key), known))
        if not isinstance(value, str | Path):
            raise UserError(f"corpus.{key}: {show(value)} is not a string; write a path or name")
    for key in sorted(required - set(mapping)):
        raise UserError(f"corpus.{key}: missing; the keys are {', '.join(known)}")
