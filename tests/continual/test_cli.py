"""The command line: one line for a mistake, nothing written, and help at once."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from continual import cli, runs
from continual.cli import main
from continual.config.loading import dump, load_config
from continual.run.signals import Interrupted

HEAVY = "torch transformers accelerate datasets numpy yaml pyarrow matplotlib wandb bm25s pydantic"

# each: a command line, how the line starts after "dsi: error: ", a part of the rest
BAD_COMMANDS = [
    ("", "the following arguments are required: COMMAND", "see dsi --help"),
    ("trian", "argument COMMAND: invalid choice: 'trian'", "'train'"),
    ("--verbose", "the following arguments are required: COMMAND", "dsi --help"),
    ("train --ovewrite", "unrecognized arguments: --ovewrite", "dsi --help"),
    ("train seed=1 --ovewrite x=1", "unrecognized arguments: --ovewrite", "dsi --help"),
    ("train one.yaml two.yaml", "one.yaml two.yaml: expected at most one configuration", ""),
    ("train seed=1 one.yaml", "seed=1 one.yaml: expected at most one configuration", ""),
    ("train seed=1 seed=2", "'seed=2': seed is given twice", "leave one of them out"),
    ("train method=cl_new method=default", "'method=default': method is given twice", "leave"),
    ("train output=$NOWHERE_SET/x", "output: '$NOWHERE_SET/x': $NOWHERE_SET is not set", "write"),
    ("train output=~nobody-here", "output: '~nobody-here': no such user", "write the path out"),
    ("train ~nobody-here/a.yaml", "configuration: '~nobody-here/a.yaml': no such user", "write"),
    ("train absent.yaml", "absent.yaml: cannot read the configuration", "give a YAML file"),
    ("train folder", "folder: cannot read the configuration (Is a directory)", "--resume"),
    ("train trainin.updates=5", "trainin: unknown key", "did you mean 'training'"),
    ("train training.updates=x", "training.updates: expected a whole number", "'x'"),
    ("train method=cl_knew", "method: unknown preset 'cl_knew'", "did you mean 'cl_new'"),
    ("train data.corpus=absent", "absent: no such folder", "give a folder"),
    ("train data.corpus=folder", "folder/corpus.jsonl: missing", "corpus.jsonl"),
    ("train data.corpus={documents: absent}", "absent: no such file", "JSONL"),
    ("train data.corpus={text: absent}", "corpus.text: unknown", "documents"),
    ("train data.stream=idd", "", "idd.json: no such stream; there are: iid, topic"),
    ("train data.stream=absent/s.json", "absent/s.json: no such file", "give JSON"),
    ("train method=windows tokenizer.source=absent", "tokenizer.source: cannot load", "'train'"),
    ("train output=file", "file/quickstart: cannot create the run directory", "output="),
    ("train --resume folder", "folder: no run here (config.yaml is missing)", "run directory"),
    ("train --resume absent.yaml", "absent.yaml: cannot read the configuration", ""),
    ("train --resume name=absent", "runs/absent: no run here", "give a run directory"),
    ("train --resume run seed=1", "seed=1: --resume goes on with the run's own", "leave it out"),
    ("add", "the following arguments are required: RUN", "dsi add --help"),
    ("add run", "dsi add: neither FOLDER nor --remove FILE", "dsi add --help"),
    ("add folder folder", "folder: no run here", "give a run directory"),
    ("add run folder", "run: only 0 of 6 stages are finished", "dsi train --resume run"),
    ("config trainin.updates=5", "trainin: unknown key", "did you mean 'training'"),
    ("config training.updates=-1", "training.updates: must be at least 0, got -1", ""),
    ("config absent.yaml", "absent.yaml: cannot read the configuration", "give a YAML file"),
    ("config --schema seed=1", "--schema: is the same for every configuration", "leave out"),
    ("search", "the following arguments are required: RUN", "dsi search --help"),
    ("search folder query", "folder: no index here", "give a run directory"),
    ("search run query --k 0", "--k: must be at least 1", "0"),
    ("search run query --k ten", "argument --k: invalid int value: 'ten'", ""),
    ("evaluate folder", "folder: no run here", "give a run directory"),
    ("evaluate run", "run: no stage is finished yet", "dsi train --resume run"),
    ("evaluate run --stage x", "argument --stage: invalid int value", ""),
    ("evaluate run --split dve", "argument --split: invalid choice: 'dve'", "'dev'"),
    ("report", "the following arguments are required: RUN", "dsi report --help"),
    ("report run", "run: no finished stage here", "matrix.json"),
    ("report run run", "run: no finished stage here", "matrix.json"),
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with an empty folder, a file, and a run that has not begun."""
    monkeypatch.chdir(tmp_path)
    AcceleratorState._reset_state(True)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(dump(load_config(None, ["name=run"])))
    return tmp_path


@pytest.fixture
def trained(monkeypatch):
    """What ``runs.train`` is called with; nothing is trained."""
    calls = []

    def train(config, resume=False, overwrite=False, accept=()):
        calls.append((config, resume, overwrite))
        return config.folder

    monkeypatch.setattr(runs, "train", train)
    return calls


def words(line: str) -> list[str]:
    """A command line as arguments; braces stay together."""
    return line.replace(": ", ":\0").split(" ") if line else []


def inventory(place: Path) -> list[str]:
    return sorted(str(path) for path in place.rglob("*"))


@pytest.mark.parametrize(("line", "start", "rest"), BAD_COMMANDS)
def test_a_mistake_is_one_line_and_status_2(place, capsys, line, start, rest):
    before = inventory(place)
    arguments = [word.replace("\0", " ") for word in words(line)]
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert err.startswith(f"dsi: error: {start}")
    assert rest in err
    assert inventory(place) == before, "nothing is written"


def test_a_missing_checkpoint_is_found_before_anything_is_written(place, capsys, tmp_path):
    from dsi.text.tokens import train_tokenizer

    train_tokenizer(["some words to learn"], 100).save_pretrained(tmp_path / "folder")
    before = inventory(place)
    assert main(["train", "method=windows", "tokenizer.source=folder", "model.source=absent"]) == 2
    assert "model.source: cannot load 'absent'" in capsys.readouterr().err
    assert inventory(place) == before


def test_a_run_is_not_replaced_by_accident(place, capsys):
    shutil.copytree(place / "run", place / "runs" / "quickstart")
    assert main(["train"]) == 2
    assert "--resume, replace it with --overwrite" in capsys.readouterr().err
    (place / "runs" / "quickstart" / "config.yaml").rename(place / "runs" / "quickstart" / "mine")
    assert main(["train", "--overwrite"]) == 2
    assert "not a run directory, so it is not replaced" in capsys.readouterr().err
    assert (place / "runs" / "quickstart" / "mine").exists()


def test_what_follows_from_the_end_of_another_rank_is_no_news(place, capsys, monkeypatch):
    def lose(*_):
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(runs, "train", lose)
    with pytest.raises(RuntimeError, match="closed by peer"):
        main(["train"])
    monkeypatch.setattr(cli, "another_spoke", lambda: True)
    assert main(["train"]) == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "line",
    [
        "file.yaml seed=4 --overwrite",
        "--overwrite file.yaml seed=4",
        "file.yaml --overwrite seed=4",
    ],
)
def test_options_may_stand_anywhere(place, trained, line):
    (place / "file.yaml").write_text("seed: 3\nthreads: 1\n")
    assert main(["train", *line.split()]) == 0
    config, resume, overwrite = trained[0]
    assert (config.seed, config.threads, resume, overwrite) == (4, 1, False, True)


def test_a_home_folder_is_meant_where_no_shell_has_read_it(place, trained, monkeypatch):
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.setenv("SCRATCH", str(place / "folder"))
    (place / "file.yaml").write_text("output: $SCRATCH/runs\nmethod: ~/method.yaml\n")
    (place / "method.yaml").write_text("seed: 5\n")
    assert main(["train", "~/file.yaml", "data.corpus=~/folder"]) == 0
    config = trained[0][0]
    assert (config.output, config.seed) == (f"{place}/folder/runs", 5)
    assert config.data.corpus == str(place / "folder")


def test_config_prints_what_a_file_resolves_to(place, capsys):
    (place / "file.yaml").write_text("method: cl_new\ntraining: {clip: 3e0}\n")
    assert main(["config", "file.yaml", "seed=4"]) == 0
    expected = load_config(place / "file.yaml", ["seed=4"])
    assert capsys.readouterr().out == dump(expected)
    assert (expected.seed, expected.indexing, expected.training.clip) == (4, "new", 3)


def test_config_alone_lists_the_settings(place, capsys):
    assert main(["config"]) == 0
    assert "\n  updates = 1200 (whole number, at least 0)\n" in capsys.readouterr().out
    assert main(["config", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out)["properties"]["seed"]["type"] == "integer"


def test_nothing_given_is_the_quickstart(place, trained):
    assert main(["train"]) == 0
    assert trained == [(load_config(), False, False)]


def test_a_run_that_was_moved_goes_on_where_it_is(place, trained):
    moved = place / "elsewhere" / "rate=0.1"
    shutil.copytree(place / "run", moved)
    assert main(["train", "--resume", "elsewhere/rate=0.1"]) == 0
    config, resume, _ = trained[0]
    assert resume
    assert config.folder.samefile(moved)
    assert config.name == "rate=0.1"


def test_a_run_goes_on_with_its_own_settings(place, trained, capsys):
    (place / "run.yaml").write_text("name: run\noutput: .\n")
    assert main(["train", "--resume", "run.yaml"]) == 0
    assert main(["train", "--resume", "name=run", "output=."]) == 0
    assert [call[0].folder for call in trained] == [Path("run")] * 2
    assert main(["train", "--resume", "run.yaml", "training.clip=2"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("dsi: error: training.clip: differs from run/config.yaml")
    assert "dsi train --resume run" in error
    assert len(trained) == 2


def test_search_prompts_until_an_empty_line(monkeypatch, capsys):
    from dsi.index import Result, SearchIndex

    class Index:
        warnings = ()

        def search(self, queries, k):
            return [[Result("id", -0.5, "", f"about {queries[0]}")] * k]

        def __len__(self):
            return 7

    asked = iter(["  ether ", ""])
    monkeypatch.setattr(SearchIndex, "load", lambda folder: Index())
    monkeypatch.setattr("builtins.input", lambda prompt: next(asked))
    assert main(["search", "run", "--k", "2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("7 documents.")
    assert out.count("about ether") == 2
    assert main(["search", "run", "wind"]) == 0
    assert capsys.readouterr().out.count("about wind") == 10
    assert main(["search", "run", "--k", "3", "wind"]) == 0
    assert capsys.readouterr().out.count("about wind") == 3
    assert main(["search", "run", "wind", "--k", "3", "rain"]) == 2
    assert "unrecognized arguments: rain" in capsys.readouterr().err


def test_leaving_the_prompt_is_no_error(monkeypatch, capsys):
    from dsi.index import SearchIndex

    def stop(_):
        raise KeyboardInterrupt

    empty = SearchIndex.__new__(SearchIndex)
    monkeypatch.setattr(SearchIndex, "__len__", lambda index: 0)
    empty.warnings = []
    monkeypatch.setattr(SearchIndex, "load", lambda folder: empty)
    monkeypatch.setattr("builtins.input", stop)
    assert main(["search", "run"]) == 130
    out, err = capsys.readouterr()
    assert out.endswith("\n\n") and err == ""


def stopped(signum: int | None, where: str = ""):
    """Something that is interrupted where it is called."""

    def raise_(*_, **__):
        raise Interrupted(signum, where) if signum else KeyboardInterrupt

    return raise_


@pytest.mark.parametrize(
    ("line", "called", "stop", "said"),
    [
        ("search run x", "dsi.index.SearchIndex.load", stopped(None), "SIGINT"),
        ("evaluate run", "continual.runs.evaluate", stopped(None), "SIGINT"),
        ("report run", "continual.runs.report", stopped(None), "SIGINT"),
        (
            "train",
            "continual.runs.train",
            stopped(None),
            "SIGINT before the first update; start it again",
        ),
        (
            "train",
            "continual.runs.train",
            stopped(signal.SIGHUP),
            "SIGHUP between two checkpoints; go on with --resume",
        ),
        (
            "add run folder",
            "continual.runs.add",
            stopped(signal.SIGTERM, "at update 3 of stage 6"),
            "SIGTERM at update 3 of stage 6; go on with dsi train --resume run",
        ),
        (
            "add run folder",
            "continual.runs.add",
            stopped(None),
            "SIGINT before the first update; start it",
        ),
    ],
)
def test_who_is_stopped_is_told_how_to_go_on(place, capsys, monkeypatch, line, called, stop, said):
    (place / "run" / "index.json").touch()
    monkeypatch.setattr(called, stop)
    assert main(line.split()) > 128
    err = capsys.readouterr().err
    assert err.startswith(f"dsi: stopped by {said}") and err.count("\n") == 1
    assert ("--resume" in err) == ("--resume" in said)


def test_a_search_can_be_restricted(monkeypatch, tmp_path, capsys):
    from dsi.index import Result, SearchIndex

    class Index:
        warnings = ()

        def __init__(self, seen=()):
            self.seen = seen

        def among(self, documents, corpora):
            return Index((*self.seen, documents, corpora))

        def without(self, documents):
            return Index((*self.seen, documents))

        def search(self, queries, k):
            return [[Result("id", -0.5, "", str(self.seen))]]

    monkeypatch.setattr(SearchIndex, "load", lambda folder: Index())
    ids = tmp_path / "ids.txt"
    ids.write_text("a\n\n b \n")
    command = ["search", "run", "wind", "--corpus", "D0", "2"]
    assert main([*command, "--documents", str(ids), "--without", str(ids)]) == 0
    assert "(['a', 'b'], ['D0', 'D2'], ['a', 'b'])" in capsys.readouterr().out
    assert main(["search", "run", "wind", "--without", str(ids)]) == 0
    assert "(['a', 'b'],)" in capsys.readouterr().out
    assert main(["search", "run", "wind", "--documents", str(tmp_path / "none")]) == 2
    assert "none: cannot be read" in capsys.readouterr().err


def test_the_index_that_a_search_opens(monkeypatch, tmp_path, capsys):
    from dsi.index import SearchIndex

    opened = []
    monkeypatch.setattr(SearchIndex, "load", lambda folder: opened.append(folder) or 1 / 0)
    run = tmp_path / "run"
    run.mkdir()

    def search(*options: str) -> str:
        with suppress(ZeroDivisionError):
            main(["search", str(run), "wind", *options])
        return capsys.readouterr().err

    search()
    assert opened.pop() == run  # an index that was copied out of its run
    assert "no run directory" in search("--stage", "0")
    (run / "config.yaml").touch()
    assert (
        f"no stage has an index yet (a baseline never has one); go on with dsi train --resume {run}"
        in search()
    )
    (run / "stages/00/model").mkdir(parents=True)  # stopped before the index was whole
    assert "no stage has an index yet" in search("--stage", "0")
    for name in ("index.json", "stages/00/index.json", "stages/02/index.json"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).touch()
    search()
    search("--stage", "2")
    assert opened == [run, run / "stages/02"]
    assert f"--stage: {run} has no stage 1; there are [0, 2]" in search("--stage", "1")


def test_output_that_nobody_reads(monkeypatch):
    def report(folders, out):
        raise BrokenPipeError

    monkeypatch.setattr(runs, "report", report)
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    assert main(["report", "run"]) == 0
    assert sys.stdout.name == os.devnull
    sys.stdout.close()


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["report", "--help"]])
def test_help_is_there_at_once(arguments):
    code = f"""
import sys, time
from continual.cli import main
try:
    main({arguments!r})
except SystemExit as stop:
    print(stop.code, sorted(set(sys.modules) & set({HEAVY.split()!r})), time.process_time())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.startswith("usage: dsi")
    status, modules, seconds = done.stdout.splitlines()[-1].split(" ")
    assert (status, modules) == ("0", "[]")
    assert float(seconds) < 1
    assert done.stderr == ""
