"""Whole runs: start one, go on with one, add a corpus to a finished one."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from continual import run_directory as directory
from continual.config import RunConfig, read_resolved
from continual.setup import prepare, read_parts
from dsi.errors import UserError
from dsi.files import write_json


def train(config: RunConfig, resume: bool = False, overwrite: bool = False) -> Path:
    """Run every stage that is left; returns the run directory."""
    folder, added = config.folder, []
    main = int(os.environ.get("RANK", "0")) == 0
    if resume:
        config, added = _read_run(folder)
    else:
        # the corpora are read and checked before anything is written
        read_parts(config)
        if main:
            directory.create(config, overwrite)
    return _run(config, folder, added, resume)


def add(folder: Path, corpus: str, progress: bool = True) -> Path:
    """Index one more corpus into a finished run, as its next stage."""
    config, added = _read_run(folder)
    before = json.loads((folder / "matrix.json").read_text("utf-8"))
    parts, _ = read_parts(config, added)
    if len(before["corpora"]) < len(parts):
        raise UserError(
            f"{folder}: only {len(before['corpora'])} of {len(parts)} stages are finished; finish "
            f"them first: dsi train --resume {folder}"
        )
    source = str(Path(corpus).resolve()) if Path(corpus).exists() else corpus
    entry: dict[str, Any] = {"corpus": source}
    more, _ = read_parts(config, [*added, entry])
    entry["content_hash"] = more[-1].corpus.content_hash
    added = [*added, entry]
    write_json(folder / "added.json", added)
    return _run(config, folder, added, resume=True)


def _run(config: RunConfig, folder: Path, added: list, resume: bool) -> Path:
    from continual.trainer import Trainer

    tokenizer_folder = folder / "tokenizer"
    material = prepare(config, tokenizer_folder if resume else None, added)
    trainer = Trainer(config, material, folder)
    if trainer.accelerator.is_main_process:
        for warning in material.warnings:
            trainer.accelerator.print(f"warning: {warning}")
        material.tokenizer.save_pretrained(tokenizer_folder)
        device, world = str(trainer.accelerator.device), trainer.accelerator.num_processes
        directory.write_environment(folder, device, world)
        write_json(folder / "index.json", _index(config, added))
    trainer.run(resume)
    if trainer.accelerator.is_main_process:
        directory.finish_environment(folder)
        _show(folder)
    return folder


def _index(config: RunConfig, added: list[Mapping[str, Any]]) -> dict[str, Any]:
    """What an application needs to search the run: where the texts are and how they are read."""
    data, corpus = config.data, config.data.corpus
    if isinstance(corpus, str) and Path(corpus).exists():
        corpus = str(Path(corpus).resolve())
    return {
        "schema": directory.SCHEMA,
        "docids": config.docids.name,
        "corpora": [corpus, *(entry["corpus"] for entry in added)],
        "deduplicate": data.deduplicate,
        "title": data.title,
        "lowercase": data.lowercase,
        "prompt": config.prompts.retrieval,
    }


def _read_run(folder: Path) -> tuple[RunConfig, list]:
    if not (folder / "config.yaml").exists():
        raise UserError(f"{folder}: no run here (config.yaml is missing); give a run directory")
    config = read_resolved(folder / "config.yaml")
    # a run that was moved is still the same run
    object.__setattr__(config, "output", str(folder.parent))
    object.__setattr__(config, "name", folder.name)
    path = folder / "added.json"
    added = json.loads(path.read_text("utf-8")) if path.exists() else []
    return config, added


def _show(folder: Path) -> None:
    """Print the matrix and draw the figures."""
    from continual.report.figures import save_figures

    matrix = json.loads((folder / "matrix.json").read_text("utf-8"))
    for metric in ("hits@10", "indexing_accuracy"):
        print(directory.format_matrix(matrix, metric), end="\n\n")
    paths = save_figures(matrix, folder / "figures")
    print(f"run directory: {folder}")
    for path in paths:
        print(f"figure:        {path}")
