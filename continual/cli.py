"""The command line: ``dsi train | add | search | evaluate | report | config``.

A user's mistake is one line on standard error and exit status 2; a traceback is a bug of ours.
SIGTERM, SIGHUP and Ctrl-C end with 143, 129 and 130, after a checkpoint if updates were made.
Heavy imports happen where they are used, so that ``dsi --help`` answers at once.
"""

import argparse
import dataclasses
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from continual.devices.ranks import another_spoke, say_once
from dsi.errors import UserError, printable

if TYPE_CHECKING:
    from continual.config.schema import RunConfig


class _Parser(argparse.ArgumentParser):
    """Reports like everything else: one line, without the usage in front."""

    def error(self, message: str) -> NoReturn:
        message = message if len(message) <= 300 else message[:297] + "..."
        raise UserError(f"{message}; see {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    # bars of our own say what is going on; those of transformers only say that a file was read
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    options = argparse.Namespace()
    try:
        parser = _parser()
        options, rest = parser.parse_known_args(arguments)
        # argparse takes positional arguments in one piece: dsi train FILE --overwrite seed=1,
        # dsi search RUN --k 3 QUERY, dsi add RUN --replace FOLDER
        has_options = any(word.startswith("-") for word in rest)
        if not has_options and hasattr(options, "settings"):
            options.settings += rest
        elif not has_options and len(rest) == 1 and getattr(options, "query", "") is None:
            options.query = rest[0]
        elif not has_options and len(rest) == 1 and getattr(options, "folder", "") is None:
            options.folder = rest[0]
        else:
            options = parser.parse_args(arguments)
        for package in getattr(options, "plugin", ()):
            from continual.config.registry import allow

            allow(package)
        return options.run(options)
    except UserError as error:
        say_once(f"dsi: error: {printable(str(error))}")
        return 2
    except KeyboardInterrupt as stop:
        if not another_spoke():  # the launcher stops all processes when one has failed
            say_once(f"dsi: stopped by {_stopped(stop, options)}")
        return 128 + getattr(stop, "signum", signal.SIGINT)
    except BrokenPipeError:
        # the reader of our output went away (dsi search ... | head): not worth a traceback
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 0
    except Exception:
        if another_spoke():  # its line says what went wrong
            return 2
        raise


def _stopped(stop: KeyboardInterrupt, options: argparse.Namespace) -> str:
    """The signal, where the run was stopped, and how to go on."""
    name = signal.Signals(getattr(stop, "signum", signal.SIGINT)).name
    if getattr(options, "run", None) not in (run_train, _add):
        return name
    if not hasattr(stop, "signum"):  # not of continual.run.signals
        return f"{name} before the first update; start it again"
    where = getattr(stop, "where", "") or "between two checkpoints"
    command = "--resume" if options.run is run_train else f"dsi train --resume {options.run_folder}"
    return f"{name} {where}; go on with {command}"


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="dsi", description="Index corpora in sequence, and know what was forgotten."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train every stage of a stream (the main job)")
    add_train_arguments(train)
    train.set_defaults(run=run_train)

    add = commands.add_parser("add", help="add a corpus to a finished run, or remove documents")
    add.add_argument("run_folder", metavar="RUN", type=Path, help="run directory")
    add.add_argument("folder", metavar="FOLDER", nargs="?", help="corpus: a BEIR folder")
    add.add_argument(
        "--remove", type=Path, metavar="FILE", help="these documents go: ids, one a line"
    )
    add.add_argument(
        "--replace",
        action="store_true",
        help="documents of FOLDER whose ids the run has already are their new texts",
    )
    _add_accept(add)
    _add_plugin(add)
    add.set_defaults(run=_add)

    search = commands.add_parser("search", help="ask a run")
    search.add_argument(
        "run_folder", metavar="RUN", type=Path, help="run directory, or the folder of one stage"
    )
    search.add_argument("query", metavar="QUERY", nargs="?", help="without it: a prompt")
    search.add_argument("--k", type=int, default=10, help="results (default 10)")
    search.add_argument("--stage", type=int, help="the index after this stage (default: the last)")
    search.add_argument(
        "--corpus", type=_corpus, nargs="+", metavar="Dn", help="only these corpora"
    )
    search.add_argument("--documents", type=Path, metavar="FILE", help="only these ids, one a line")
    search.add_argument("--without", type=Path, metavar="FILE", help="all but these ids")
    search.set_defaults(run=_search)

    evaluate = commands.add_parser("evaluate", help="recompute a row of the matrix")
    evaluate.add_argument("run_folder", metavar="RUN", type=Path, help="run directory")
    evaluate.add_argument("--stage", type=int, help="stage (default: the last)")
    evaluate.add_argument("--split", default="test", choices=("train", "dev", "test"))
    _add_plugin(evaluate)
    evaluate.set_defaults(run=_evaluate)

    report = commands.add_parser("report", help="tables and figures of one or more runs")
    report.add_argument("run_folders", metavar="RUN", type=Path, nargs="+", help="run directories")
    report.add_argument("--out", type=Path, help="folder for the figures (default: RUN/figures)")
    report.set_defaults(run=_report)

    config = commands.add_parser("config", help="every setting; or what a file resolves to")
    config.add_argument(
        "settings",
        metavar="CONFIG|key=value",
        nargs="*",
        help="print what these come to, every default written out (default: list the settings)",
    )
    config.add_argument("--schema", action="store_true", help="print a JSON schema, for editors")
    _add_plugin(config)
    config.set_defaults(run=_config)
    return parser


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``dsi train`` and ``python -m continual.train``."""
    parser.add_argument(
        "settings",
        metavar="CONFIG|key=value",
        nargs="*",
        help="a YAML file (default: the quickstart) and settings, e.g. method=cl_new seed=1",
    )
    parser.add_argument("--resume", action="store_true", help="go on where the run stopped")
    parser.add_argument("--overwrite", action="store_true", help="replace a run of this name")
    _add_accept(parser)
    _add_plugin(parser)


def _add_plugin(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="run code of this package where the configuration names a component of it",
    )


def _add_accept(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--accept",
        action="append",
        default=[],
        choices=("world_size", "code"),
        help="go on although the number of processes, or the code, is another than before",
    )


def run_train(options: argparse.Namespace) -> int:
    """``dsi train``."""
    config = _train_config(options.settings, options.resume)
    from continual.runs import train

    train(config, options.resume, options.overwrite, options.accept)
    return 0


def _train_config(settings: list[str], resume: bool) -> "RunConfig":
    """The configuration that the command line means; a run goes on with its own settings."""
    from continual.config.loading import differences, load_config, read_resolved
    from continual.config.paths import expand
    from dsi.corpus.records import show

    # a path may have "=" in it: runs/rate=0.1
    paths = [s for s in settings if "=" not in s or os.path.exists(s)]
    overrides = [s for s in settings if s not in paths]
    if len(paths) > 1 or (paths and settings[0] != paths[0]):
        raise UserError(
            f"{' '.join(settings)}: expected at most one configuration file, then key=value"
        )
    keys = [setting.partition("=")[0].strip() for setting in overrides]
    for i, key in enumerate(keys):
        if key in keys[:i]:
            raise UserError(
                f"{show(overrides[i])}: {key[:80]} is given twice; leave one of them out"
            )
    path = Path(expand(paths[0], "configuration")) if paths else None
    if resume and path is not None and os.path.isdir(path):
        if not os.path.exists(path / "config.yaml"):
            raise UserError(f"{path}: no run here (config.yaml is missing); give a run directory")
        if overrides:
            raise UserError(
                f"{overrides[0]}: --resume goes on with the run's own settings; leave it out, or "
                "start a new run with another name="
            )
        # a run that was moved is still the same run
        path = path.resolve()
        own = read_resolved(path / "config.yaml")
        return dataclasses.replace(own, output=str(path.parent), name=path.name)
    config = load_config(path, overrides)
    written = config.folder / "config.yaml"
    if resume and settings and os.path.exists(written):
        changed = differences(read_resolved(written), config)
        for key in (key for key in changed if key not in ("name", "output")):
            raise UserError(
                f"{key}: differs from {written}, and --resume goes on with the run's own settings; "
                f"leave it out, or use dsi train --resume {config.folder}"
            )
    return config


def _add(options: argparse.Namespace) -> int:
    from continual.runs import add

    if options.folder is None and options.remove is None:
        raise UserError("dsi add: neither FOLDER nor --remove FILE; see dsi add --help")
    if options.folder is None and options.replace:
        raise UserError("--replace: the new texts are those of FOLDER; give one")
    remove = _read_ids(options.remove) if options.remove is not None else {}
    if options.remove is not None and not remove:
        raise UserError(f"{options.remove}: no document ids; write one a line")
    places = {key: f"{options.remove}:{line}" for key, line in remove.items()}
    add(options.run_folder, options.folder, options.accept, places, options.replace)
    return 0


def _search(options: argparse.Namespace) -> int:
    from dsi.index import SearchIndex

    if options.k < 1:
        raise UserError(f"--k: must be at least 1, got {options.k}")
    index = SearchIndex.load(_index_folder(options.run_folder, options.stage))
    for line in index.warnings:
        print(f"dsi: warning: {printable(line)}", file=sys.stderr)
    if options.corpus is not None or options.documents is not None:
        listed = list(_read_ids(options.documents)) if options.documents else None
        index = index.among(listed, options.corpus)
    if options.without is not None:
        index = index.without(list(_read_ids(options.without)))
    if options.query is not None:
        _print_results(index.search([options.query], options.k)[0])
        return 0
    print(f"{len(index)} documents. Type a question; an empty line ends.")
    while True:
        try:
            query = input("> ").strip()
        except EOFError:
            return 0
        except KeyboardInterrupt:  # a way to leave, like the empty line
            print()
            return 128 + signal.SIGINT
        if not query:
            return 0
        _print_results(index.search([query], options.k)[0])


def _index_folder(run: Path, stage: int | None) -> Path:
    """The folder of a stage; ``run`` itself without a stage, or where it is no run directory."""
    if not os.path.exists(run / "config.yaml"):
        if stage is not None:
            raise UserError(f"--stage: {run} is no run directory; leave it out")
        return run
    found = (path.parent for path in (run / "stages").glob("[0-9]*/index.json"))
    folders = {int(path.name): path for path in found if path.name.isdecimal()}
    if not folders and not os.path.lexists(run / "index.json"):
        raise UserError(
            f"{run}: no stage has an index yet (a baseline never has one); go on with dsi train "
            f"--resume {run}"
        )
    if stage is not None and stage not in folders:
        raise UserError(f"--stage: {run} has no stage {stage}; there are {sorted(folders)}")
    return run if stage is None else folders[stage]


def _corpus(text: str) -> str:
    """The name of a corpus; its number alone will do."""
    return f"D{int(text)}" if text.isdecimal() and text.isascii() and len(text) < 10 else text


def _read_ids(path: Path) -> dict[str, int]:
    """The ids of a file, and on which line each stands."""
    from dsi.files import refuse_special

    refuse_special(path, "give a file of document ids, one a line")
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        what = f"cannot be read ({error})"
        raise UserError(f"{path}: {what}; give document ids, one a line") from error
    return {line.strip(): number for number, line in enumerate(lines, 1) if line.strip()}


def _print_results(results: list) -> None:
    if not results:
        print("dsi: no known word in the query, so nothing is found", file=sys.stderr)
    for rank, result in enumerate(results, 1):
        title, passage = result.title or result.document_id, result.snippet(90)
        print(f"{rank:3d}. {result.score:8.3f}  {printable(title)}")
        print(f"               {result.document_id}: {printable(passage)}")


def _evaluate(options: argparse.Namespace) -> int:
    from continual.runs import evaluate

    for line in evaluate(options.run_folder, options.stage, options.split):
        print(line)
    return 0


def _report(options: argparse.Namespace) -> int:
    from continual.runs import report

    for line in report(options.run_folders, options.out):
        print(line)
    return 0


def _config(options: argparse.Namespace) -> int:
    if options.settings and options.schema:
        raise UserError("--schema: is the same for every configuration; leave out the settings")
    if options.settings:
        from continual.config.loading import dump

        print(dump(_train_config(options.settings, resume=False)), end="")
        return 0
    from continual.config import describe

    if options.schema:
        print(describe.schema_text())
    else:
        print(*describe.lines(), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
