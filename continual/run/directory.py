"""The run directory: its files, which everything downstream relies on (schema 1)."""

import functools
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from continual.config.loading import dump
from continual.config.schema import RunConfig
from continual.measure.evaluation import METRICS, CorpusResult
from continual.measure.performance import summary
from continual.run.lock import FILES as LOCK_FILES
from continual.stream.stream import Judged, Stream
from dsi.corpus.records import show
from dsi.docids import codes_from_text, codes_to_text, read_docids, stack_codes
from dsi.errors import UserError
from dsi.files import as_written, read_json, write_json, write_text
from dsi.manifest import forget, record, verify
from dsi.measures.trec import write_run

SCHEMA = 1
READ_BACK = (
    "config.yaml",
    "index.json",
    "added.json",
    "environment.json",
    "matrix.json",
    "tokenizer",
    "docids",
    "generator",
)
# Every file that a run writes, for --overwrite deletes no other; where a library chooses the names,
# they are known by their kind.
_KINDS = r"[^/]+\.(json|safetensors|model|jinja|txt|npy)"
WRITTEN = re.compile(
    "|".join(
        (
            r"config\.yaml|metrics\.jsonl",
            r"(manifest|environment|index|added|matrix|timing|forgetting_events)\.json",
            r"docids/(D\d+\.(tsv|safetensors)|report\.json)",
            r"stages/\d+/(manifest|index|decoding|sharpness|memory_quality)\.json",
            r"stages/\d+/((per_query|pseudo_queries)\.jsonl|run\.D\d+\.trec|docids\.tsv)",
            rf"(stages/\d+/)?tokenizer/{_KINDS}|stages/\d+/(model|trie)/{_KINDS}",
            rf"docids/embedder(/model|/tokenizer)?/{_KINDS}",
            rf"generator(/model|/tokenizer)?/{_KINDS}|checkpoints/\d+-\d+(-end)?/{_KINDS}",
            r"nonfinite/batch\.(json|safetensors)|figures/(forgetting_curves|heatmap)_\w+\.png",
            r"figures/comparison\.png|wandb/.+",
            # half-written, as dsi.files names them, and the lock
            r"(.+/)?\.[^/]+\.tmp|(.+/)?\.\w[^/]*\.\w{8}(\.old)?/.+|\.lock(\.json|\.held)?",
        )
    )
)
MEMORY = ("pseudo_queries.jsonl", "memory_quality.json")  # of a stage, read by the stages after it
PACKAGES = ("dsi-continual", "torch", "transformers", "accelerate", "datasets", "numpy", "pyarrow")


def check_free(config: RunConfig, overwrite: bool) -> None:
    """UserError where a new run may not begin: over another one that is not to be replaced, or over
    files that no run has written."""
    folder = config.folder
    if not os.path.isdir(folder) or set(os.listdir(folder)) <= set(LOCK_FILES):
        return
    if not overwrite:
        raise UserError(
            f"{folder}: a run is there already; go on with --resume, replace it with "
            "--overwrite, or choose another name=..."
        )
    if not (folder / "config.yaml").exists():
        raise UserError(f"{folder}: not a run directory, so it is not replaced; move it away")
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in sorted([*files, *links]):
            path = Path(parent, name)
            if not WRITTEN.fullmatch(path.relative_to(folder).as_posix()):
                raise UserError(
                    f"{path}: not written by a run, and --overwrite deletes all that is in "
                    f"{folder}; move it away, or choose another name=..."
                )


def make_folder(config: RunConfig) -> Path:
    """The run directory, for what a new run writes."""
    try:
        config.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{config.folder}: cannot create the run directory ({error.strerror}); choose another "
            "output="
        ) from error
    return config.folder


def create(config: RunConfig, overwrite: bool) -> Path:
    """A new run directory; an existing one is only replaced when asked and when it is a run."""
    check_free(config, overwrite)
    folder = make_folder(config)
    # config.yaml last: what is left when this is stopped can still be replaced
    for path in sorted(folder.iterdir(), key=lambda path: path.name == "config.yaml"):
        if path.name not in LOCK_FILES:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_text(folder / "config.yaml", dump(config))
    record(folder, "config.yaml")
    return folder


def stage_folder(folder: Path, stage: int) -> Path:
    """stages/NN."""
    return folder / "stages" / f"{stage:02d}"


def stages(folder: Path) -> list[Path]:
    """The folders of all stages, in order."""
    found = [path for path in (folder / "stages").glob("[0-9]*") if path.name.isdecimal()]
    for path in found:
        if not path.is_dir():
            raise UserError(f"{path}: not a folder, and a stage belongs there; move it away")
    return sorted(found, key=lambda path: int(path.name))


def seal(folder: Path) -> None:
    """Note the checksums of all files that will be read back and have none yet."""
    record(folder, *READ_BACK)
    for stage in stages(folder):
        record(stage)


def verify_memory(folder: Path) -> None:
    """UserError when a generator or pseudo-queries, which later stages read, were changed."""
    verify(folder, "generator")
    for stage in stages(folder):
        verify(stage, *MEMORY)


def replace(folder: Path, name: str, value: Any) -> None:
    """Write a JSON file of the run anew, and its checksum."""
    forget(folder, name)
    write_json(folder / name, value)
    record(folder, name)


def write_environment(folder: Path, device: str, world_size: int, **more: Any) -> None:
    """environment.json: what ran where, from when to when."""
    old = read_environment(folder)
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    replace(
        folder,
        "environment.json",
        {
            "argv": sys.argv,
            "git_commit": _git_commit(),
            "python": platform.python_version(),
            "packages": versions,
            "device": device,
            "threads": torch.get_num_threads(),
            "world_size": world_size,
            "start": old.get("start", now),
            "end": None,
            "wandb_run": old.get("wandb_run"),
            **more,
        },
    )


def made_by(accelerator: Any) -> dict[str, Any]:
    """What a result depends on besides configuration and corpora, for checkpoints."""
    code = importlib.metadata.version("dsi-continual")
    commit = _git_commit()
    return {
        "code": f"{code} ({commit[:12]})" if commit else code,
        "torch": torch.__version__,
        "precision": accelerator.mixed_precision,
        "world_size": accelerator.num_processes,
    }


def require_same_maker(
    folder: Path, before: dict[str, Any], now: dict[str, Any], accept: Sequence[str]
) -> None:
    """UserError when a checkpoint was written by other code, in another precision (``auto`` on
    another device) or by another number of processes: see :func:`made_by`."""
    for key, value in now.items():
        flag = "world_size" if key == "world_size" else "code"
        if before.get(key) != value and flag not in accept:
            what = "number of processes" if key == "world_size" else key
            raise UserError(
                f"{folder}: the {what} was {before.get(key)} and is {value} now, so the numbers "
                f"would not be the same; restore it, or go on all the same with --accept {flag}"
            )


def finish_environment(folder: Path) -> None:
    """Note when the run ended."""
    note_environment(folder, end=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))


def read_environment(folder: Path) -> dict[str, Any]:
    """environment.json; nothing when the run has not begun."""
    path = folder / "environment.json"
    if not path.exists():
        return {}
    verify(folder, path.name)
    return read_json(path)


def note_environment(folder: Path, **values: Any) -> None:
    """Put values into environment.json."""
    replace(folder, "environment.json", {**read_environment(folder), **values})


def write_docids(folder: Path, stream: Stream, corpus: int, scheme: Any) -> None:
    """docids/Dn.tsv: document id, docid."""
    start, stop = stream.range(corpus)
    ids = stream.document_ids(start, stop)
    texts = codes_to_text(scheme.codes_NT[start:stop])
    lines = (f"{document}\t{docid}\n" for document, docid in zip(ids, texts, strict=True))
    write_text(folder / "docids" / f"D{corpus}.tsv", "".join(lines))


def restore_docids(folder: Path, stream: Stream, corpora: int, scheme: Any) -> None:
    """Give ``scheme`` the docids of the first ``corpora`` corpora; their documents are checked."""
    verify(folder, *(f"docids/D{n}.tsv" for n in range(corpora)))
    parts: list[np.ndarray] = []
    for n in range(corpora):
        path = folder / "docids" / f"D{n}.tsv"
        expected = stream.document_ids(*stream.range(n))
        if not expected and path.exists() and not path.stat().st_size:
            continue  # a stage that adds nothing
        ids, docids = read_docids(path)
        if ids != expected:
            raise UserError(f"{path}: holds other documents than corpus D{n}; restore the corpus")
        parts.append(codes_from_text(docids))
    scheme.restore(stack_codes(parts))


def write_results(
    folder: Path, stream: Stream, stage: int, results: list[CorpusResult], tag: str
) -> None:
    """TREC runs and per_query.jsonl of one stage.

    Older results of the stage lose their checksums: these are the first that are written anew.
    """
    target = stage_folder(folder, stage)
    target.mkdir(parents=True, exist_ok=True)
    # a stage that was stopped between its results and its checkpoint writes them again
    forget(target, but=MEMORY)
    forget(folder, "matrix.json")
    tag = "_".join(tag.split())
    ids = np.asarray(stream.document_ids(0, stream.count(stage)), dtype=object)
    lines = []
    for result in results:
        found = [ids[row[row >= 0]].tolist() for row in result.top_QK]
        path = target / f"run.D{result.corpus}.trec"
        scores = [
            line[row >= 0].tolist()
            for line, row in zip(result.scores_QK, result.top_QK, strict=True)
        ]
        write_run(path, result.queries.ids, found, scores, tag)
        for i, query in enumerate(result.queries.ids):
            line = {
                "corpus": f"D{result.corpus}",
                "query": query,
                "text": result.queries.texts[i],
                "gold": ids[result.queries.gold[i]].tolist(),
                "rank": int(result.ranks[i]),
                "top": found[i],
            }
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_text(target / "per_query.jsonl", "".join(lines))


def make_matrix(
    rows: list[dict[str, list[float | None]] | None],
    num_queries: list[int],
    num_documents: list[int],
    num_updates: list[int],
    counts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """matrix.json's content. ``rows[n][metric][o]``; a stage that was not run has None cells.

    ``num_queries``, ``num_documents``: of the corpora as they arrived; ``counts``: see counts_at.
    """
    size = len(rows)
    metrics: dict[str, list[list[float | None]]] = {metric: [] for metric in METRICS}
    for n, row in enumerate(rows):
        for metric in METRICS:
            cells: list[float | None] = [None] * (n + 1) if row is None else list(row[metric])
            metrics[metric].append([*cells, *[None] * (size - n - 1)])
    return {
        "schema": SCHEMA,
        "corpora": [f"D{n}" for n in range(size)],
        "num_queries": num_queries[:size],
        "num_documents": num_documents[:size],
        **(counts or {}),
        "metrics": metrics,
        **summary(metrics),
        "num_updates": num_updates[:size],
    }


def counts_at(stream: Stream, queries: Sequence[Judged], size: int) -> dict[str, Any]:
    """What is left of D_o after stage n: ``num_queries_at[n][o]`` that still have an answer, and
    ``num_documents_at[n][o]``, None above the diagonal. Nothing as long as nothing was removed."""
    if stream.is_whole(size - 1):
        return {}
    asked: list[list[int | None]] = []
    left: list[list[int | None]] = []
    for n in range(size):
        present, above = stream.present(n), [None] * (size - n - 1)
        asked.append([*(len(own.among(present)) for own in queries[: n + 1]), *above])
        ranges = (stream.range(o) for o in range(n + 1))
        left.append([*(int(present[low:high].sum()) for low, high in ranges), *above])
    return {"num_queries_at": asked, "num_documents_at": left}


def read_matrix(path: Path) -> dict[str, Any]:
    """matrix.json, of the shape that :func:`make_matrix` gives; UserError otherwise."""
    verify(path.parent, path.name)
    matrix = read_json(path)
    if matrix.get("schema") != SCHEMA:
        raise UserError(f"{path}: schema {matrix.get('schema')!r}, this version reads {SCHEMA}")
    with as_written(path):
        size = len(matrix["corpora"])
        if not size or not all(isinstance(name, str) for name in matrix["corpora"]):
            raise ValueError("corpora must be names")
        for key in ("num_queries", "num_documents", "num_updates"):
            if [type(number) for number in matrix[key]] != [int] * size:
                raise ValueError(f"{key} must be {size} whole numbers")
        for key in {"num_queries_at", "num_documents_at"} & set(matrix):
            kinds = [[type(number) for number in row] for row in matrix[key]]
            if kinds != [[int] * (n + 1) + [type(None)] * (size - n - 1) for n in range(size)]:
                raise ValueError(f"{key} must be whole numbers up to the diagonal")
        for metric in {*METRICS, *matrix["metrics"]}:
            if not re.fullmatch(r"[a-z0-9_@]+", metric):  # a file is named after it
                raise ValueError(f"metric {show(metric)}")
            averages = ("average_performance", "forgetting", "learning_performance")
            rows = [*matrix["metrics"][metric], *(matrix[key][metric] for key in averages)]
            cells = [cell for row in rows for cell in row if cell is not None]
            if [len(row) for row in rows] != [size] * (size + 3):
                raise ValueError(f"{metric} must have {size} rows and columns")
            if not all(type(cell) in (int, float) and abs(cell) <= 1 for cell in cells):
                raise ValueError(f"{metric} must be shares")
    return matrix


def format_matrix(matrix: dict[str, Any], metric: str = "hits@10") -> str:
    """P and the averages of one metric as a table for a terminal, in percent."""
    names = matrix["corpora"]
    head = f"{metric:<12}" + "".join(f"{name:>7}" for name in names)
    lines = [head + "      A_n    F_n   LA_n   updates"]
    for n in range(len(names)):
        averages = [
            matrix[key][metric][n]
            for key in ("average_performance", "forgetting", "learning_performance")
        ]
        lines.append(
            f"stage {n:<6}{_cells(matrix['metrics'][metric][n])}  {_cells(averages)}"
            f"{matrix['num_updates'][n]:>10}"
        )
    return "\n".join(lines)


def _cells(row: Sequence[float | None]) -> str:
    return "".join(f"{'':>7}" if value is None else f"{100 * value:7.1f}" for value in row)


@functools.cache
def _git_commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
            cwd=Path(__file__).parent,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
