"""Whole runs: train, resume, add a stage, evaluate a stage again, report."""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from itertools import compress
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from continual.baseline import BaselineRun
from continual.config.loading import read_resolved
from continual.config.schema import RunConfig
from continual.devices.accelerator import make_accelerator, on_main
from continual.measure.evaluation import METRICS, Evaluator
from continual.run import directory
from continual.run.arrivals import check_entry
from continual.run.docids import Assignment, codes_at
from continual.run.lock import only_writer
from continual.run.material import Material, make_model, prepare, read_added, read_arrivals
from continual.run.stage_index import absolute, text_sources
from continual.stream.stream import Stream
from continual.trainer import Trainer
from dsi.docid_report import format_report
from dsi.errors import UserError
from dsi.files import as_written, read_json, replace_atomically, reported
from dsi.index import check_fit
from dsi.index_folder import read_settings
from dsi.manifest import verify
from dsi.model.dsi_model import load_model

ORACLE = (
    "an oracle: it rehearses train queries of later corpora, which DSI++ does not let a method "
    "see; its figures are an upper bound"
)


def train(
    config: RunConfig,
    resume: bool = False,
    overwrite: bool = False,
    accept: Sequence[str] = (),
) -> Path:
    """Run every stage that is left; returns the run directory.

    ``accept``: what may differ from the run that is resumed: "world_size", "code".
    """
    with reported(config.folder):
        return _train(config, resume, overwrite, accept)


def _train(config: RunConfig, resume: bool, overwrite: bool, accept: Sequence[str]) -> Path:
    folder, added = config.folder, []
    with ExitStack() as held:
        if resume:
            config, added, accelerator = _claim(held, folder)
            material = prepare(config, folder / "tokenizer", added)
            docids = Assignment(config, material.stream, folder, accelerator)
            if os.path.exists(folder / "matrix.json") and not config.is_baseline:
                docids.check(len(directory.read_matrix(folder / "matrix.json")["corpora"]))
        else:
            material, accelerator = _begin(held, config, overwrite)
            docids = Assignment(config, material.stream, folder, accelerator)
        return _run(config, folder, material, accelerator, docids, added, resume, accept)


def _begin(held: ExitStack, config: RunConfig, overwrite: bool) -> tuple[Material, Accelerator]:
    """A new run's directory, made once all that can be wrong is read and checked."""
    accelerator, folder = make_accelerator(config), config.folder
    is_there = os.path.isdir(folder)

    def claim() -> None:
        directory.check_free(config, overwrite)
        if is_there:
            held.enter_context(only_writer(folder))

    def create() -> None:
        if not is_there:
            held.enter_context(only_writer(directory.make_folder(config)))
        directory.create(config, overwrite)

    on_main(accelerator, claim)
    material = prepare(config)
    if config.model.source != "scratch":
        make_model(config, material.tokenizer, [1], stage=0)
    # what another process cannot read, it says before the first one writes
    accelerator.wait_for_everyone()
    on_main(accelerator, create)
    return material, accelerator


def _claim(held: ExitStack, folder: Path) -> tuple[RunConfig, list, Accelerator]:
    """Read a run that exists and lock it: only this process (the first of several) may write."""
    accelerator = make_accelerator(_read_config(folder))
    on_main(accelerator, lambda: held.enter_context(only_writer(folder)))
    config, added = _read_run(folder)
    directory.verify_memory(folder)
    return config, added, accelerator


def add(
    folder: Path,
    corpus: str | None,
    accept: Sequence[str] = (),
    remove: Mapping[str, str] | None = None,
    replace: bool = False,
) -> Path:
    """One more stage of a finished run: index a corpus, remove documents, or both.

    ``remove``: ids of documents that go, and what an error calls the place where each is named.
    ``replace``: documents of ``corpus`` whose ids are there already are their new texts.
    """
    with reported(folder), ExitStack() as held:
        return _add(held, folder, corpus, accept, remove or {}, replace)


def _add(
    held: ExitStack,
    folder: Path,
    corpus: str | None,
    accept: Sequence[str],
    remove: Mapping[str, str],
    replace: bool,
) -> Path:
    config, added, accelerator = _claim(held, folder)
    path = folder / "matrix.json"
    before = directory.read_matrix(path) if path.exists() else {"corpora": []}
    arrivals, _ = read_arrivals(config, added)
    old, done = len(arrivals.parts), len(before["corpora"])
    if done < old:
        raise UserError(
            f"{folder}: only {done} of {old} stages are finished; finish them first: dsi train "
            f"--resume {folder}"
        )
    entry: dict[str, Any] = {} if corpus is None else {"corpus": absolute(corpus)}
    if remove:
        arrivals.check_removed(remove)
        entry["remove"] = list(remove)
    more, warnings = read_added(config, entry)
    if replace and more is not None:
        ids = more.documents["id"].to_pylist()
        entry["replace"] = [*compress(ids, (arrivals.present(ids) >= 0).tolist())]
    warnings += arrivals.add(more, entry)
    material = prepare(config, folder / "tokenizer", read=(arrivals.parts, warnings))
    docids = Assignment(config, material.stream, folder, accelerator)
    if not config.is_baseline:
        docids.check(old)
    if more is not None:
        entry["content_hash"] = more.content_hash
    return _run(config, folder, material, accelerator, docids, [*added, entry], True, accept)


def _run(
    config: RunConfig,
    folder: Path,
    material: Material,
    accelerator: Accelerator,
    docids: Assignment,
    added: list,
    resume: bool,
    accept: Sequence[str],
) -> Path:
    kind: Any = BaselineRun if config.is_baseline else Trainer
    running = kind(config, material, folder, accelerator, docids)
    is_main = accelerator.is_main_process
    if is_main:
        for warning in material.warnings:
            accelerator.print(f"warning: {warning}")
        if _is_oracle(config):
            accelerator.print(f"warning: {ORACLE}")
        if not (folder / "tokenizer" / "tokenizer.json").exists():
            save: Any = material.tokenizer.save_pretrained
            replace_atomically(folder / "tokenizer", save)
        device, world = str(accelerator.device), accelerator.num_processes
        precision = accelerator.mixed_precision
        directory.write_environment(folder, device, world, precision=precision)
    state = running.load(resume, accept)
    with closing(running.tracker):
        if is_main:  # now that nothing else on disk can refuse the run
            text_sources(config, added)  # a path that cannot be noted is refused now
            if added:
                directory.replace(folder, "added.json", added)
        running.run(state)
    if is_main:
        with running.signals.handled():
            directory.seal(folder)
            directory.finish_environment(folder)
            _show(folder)
    return folder


def _read_config(folder: Path) -> RunConfig:
    if not os.path.exists(folder / "config.yaml"):
        raise UserError(f"{folder}: no run here (config.yaml is missing); give a run directory")
    verify(folder, "config.yaml")
    config = read_resolved(folder / "config.yaml")
    # a run that was moved is still the same run
    object.__setattr__(config, "output", str(folder.parent))
    object.__setattr__(config, "name", folder.name)
    return config


def _read_run(folder: Path) -> tuple[RunConfig, list]:
    config = _read_config(folder)
    verify(folder, "added.json", "tokenizer")
    path = folder / "added.json"
    added = read_json(path, list) if path.exists() else []
    for entry in added:
        check_entry(path, entry)
    return config, added


def _show(folder: Path) -> None:
    """Print the matrix and draw the figures."""
    from continual.report.figures import save_figures

    matrix = directory.read_matrix(folder / "matrix.json")
    for metric in ("hits@10", "indexing_accuracy"):
        print(directory.format_matrix(matrix, metric), end="\n\n")
    paths = save_figures(matrix, folder / "figures")
    print(f"run directory: {folder}")
    for path in paths:
        print(f"figure:        {path}")


def evaluate(folder: Path, stage: int | None = None, split: str = "test") -> list[str]:
    """Recompute one row of the matrix from the stage's model; returns lines to print."""
    config, added = _read_run(folder)
    if config.is_baseline:
        raise UserError(
            f"{folder}: a baseline has no model to evaluate again; dsi train --resume {folder} "
            "makes all rows anew"
        )
    done = [int(path.name) for path in directory.stages(folder) if (path / "model").is_dir()]
    if not done:
        raise UserError(f"{folder}: no stage is finished yet; dsi train --resume {folder} goes on")
    stage = done[-1] if stage is None else stage
    if stage not in done:
        raise UserError(f"--stage: {folder} has no stage {stage}; there are {done}")
    material = prepare(config, folder / "tokenizer", added)
    stream, scheme = material.stream, config.docids.build()
    warnings = _changes(directory.stage_folder(folder, stage), stream, split)
    directory.restore_docids(folder, stream, stage + 1, scheme)
    verify(directory.stage_folder(folder, stage), "model")
    accelerator = make_accelerator(config)
    model = load_model(directory.stage_folder(folder, stage) / "model")
    with as_written(folder / "docids"):
        codes_NT = codes_at(scheme, stream, stage)
        check_fit(model, material.tokenizer, None, codes_NT, stream.count(stage))
        model.to(accelerator.device)
        evaluator = Evaluator(config, stream, model, codes_NT, accelerator)
    queries = [stream.judged_queries(split, corpus) for corpus in range(stage + 1)]
    results, how = evaluator.evaluate(stage, queries, evaluator.documents_found(stage))
    lines = [f"stage {stage}, {split} queries" + "".join(f"{m:>20}" for m in METRICS)]
    for result in results:
        cells = "".join(
            f"{'':>20}" if result.metrics[m] is None else f"{100 * (result.metrics[m] or 0):20.2f}"
            for m in METRICS
        )
        lines.append(f"D{result.corpus:<22}{cells}")
    return [*warnings, *lines, *_decoding_lines(config.docids.name, how)]


def _changes(folder: Path, stream: Stream, split: str) -> list[str]:
    """UserError when documents, or what asks for them, are not those of a stage; warnings."""
    path = folder / "index.json"
    if not os.path.lexists(path):
        what = "no checksums of the corpora: whether they were edited since cannot be told"
        return [f"warning: {path}: {what}"]
    kept = read_settings(folder).part_hashes
    # corpora that arrive after the stage are not noted in it
    for corpus, hashes in zip(stream.corpora, kept, strict=False):
        where, fix = corpus.folder or corpus.name, "restore them, or start a new run"
        if hashes["documents"] != corpus.part_hashes["documents"]:
            raise UserError(f"{where}: other documents than the run was trained on; {fix}")
        # None: the split was empty then, so nothing was measured on it
        if hashes[split] not in (None, corpus.part_hashes[split]):
            raise UserError(f"{where}: other {split} queries or judgements than the run had; {fix}")
    return []


def _decoding_lines(scheme: str, how: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, part in ((f"{scheme} docids", how), ("unconstrained", how.get("unconstrained"))):
        if part and part["queries_per_second"]:
            lines.append(
                f"{name}: {part['queries_per_second']:.0f} queries/s, "
                f"{100 * part['invalid_rate']:.1f} % invalid and "
                f"{100 * part['repeat_rate']:.1f} % repeated docids"
            )
    return lines


def report(folders: list[Path], out: Path | None = None) -> list[str]:
    """Figures of each run, and of several side by side; returns lines to print."""
    from continual.report.figures import comparison, save_figures
    from continual.report.summary import summary

    matrices: dict[str, Any] = {}
    folders = list(dict.fromkeys(folders))
    for folder in folders:
        path = folder / "matrix.json"
        if not os.path.exists(path):
            raise UserError(f"{folder}: no finished stage here (matrix.json is missing)")
        short = Path(os.path.abspath(folder)).name
        name = short if short not in matrices else str(folder)
        matrices[name] = directory.read_matrix(path)
    # all is read before anything is drawn
    several = len(folders) > 1
    tables = [
        _remarks(folder, name) if several else _tables(folder, matrices[name])
        for folder, name in zip(folders, matrices, strict=True)
    ]
    table = summary(folders, matrices) if several else []
    shared = out or folders[0] / "figures"
    try:
        shared.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{shared}: cannot be made ({error}); choose another --out") from error
    lines = []
    for folder, own, (name, matrix) in zip(folders, tables, matrices.items(), strict=True):
        target = out / name.replace("/", "_") if out else folder / "figures"
        paths = save_figures(matrix, target)
        lines += own if several else [name, *own, *(f"figure: {path}" for path in paths)]
    if several:
        path = shared / "comparison.png"
        comparison(matrices, "hits@10").savefig(path, dpi=150)
        lines += [*table, "", f"figure: {path}"]
    return lines


def _remarks(folder: Path, name: str) -> list[str]:
    """What has to be said of a run beside others."""
    verify(folder, "timing.json")
    with suppress(UserError, OSError):  # what needs a plugin says nothing of itself here
        if _is_oracle(read_resolved(folder / "config.yaml")):
            return [f"{name}: {ORACLE}"]
    return []


def _is_oracle(config: RunConfig) -> bool:
    return not config.is_baseline and config.replay.build().is_oracle


def _tables(folder: Path, matrix: dict[str, Any]) -> list[str]:
    """The lines that describe one run."""
    from continual.report.flatness import sharpness_table

    lines = [directory.format_matrix(matrix), ""]
    with suppress(UserError, OSError):  # what needs a plugin says nothing of itself here
        lines += [ORACLE, ""] if _is_oracle(read_resolved(folder / "config.yaml")) else []
    docids = folder / "docids" / "report.json"
    verify(folder, "docids/report.json")
    for stage in directory.stages(folder):
        verify(stage, "sharpness.json")
    if docids.exists():
        with as_written(docids):
            lines += ["docids:", format_report(read_json(docids)), ""]
    with as_written(folder / "stages"):
        table = sharpness_table(folder, matrix)
    return [*lines, *table, ""] if table else lines
