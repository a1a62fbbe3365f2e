"""Run directories that were damaged: each file cut off, flipped, of another type, or gone."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from continual.run.lock import only_writer
from tests.bad_input.conftest import Place

Damage = Callable[[Path], object]
SEARCH, EVALUATE, REPORT = ("search", "run", "water"), ("evaluate", "run"), ("report", "run")
ADD, RESUME = ("add", "run", "corpus"), ("train", "--resume", "run")
MODEL = "stages/01/model/model.safetensors"
INDEX, TABLE, TOKENIZER = "stages/01/index.json", "stages/01/docids.tsv", "stages/01/tokenizer"
DOCIDS, NO_TOKENIZER = f"run/{TABLE}", ("run/stages/01/tokenizer", "tokenizer.source: ")


def gone(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def loop(path: Path) -> None:
    gone(path)
    path.symlink_to(path.absolute())


def flipped(at: int) -> Damage:
    """One bit of byte ``at`` is another one."""

    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[at] ^= 0x10
        path.write_bytes(content)

    return damage


def holding(content: str | bytes) -> Damage:
    """Something else is in the file."""
    data = content if isinstance(content, bytes) else content.encode()
    return lambda path: path.write_bytes(data)


def replaced(old: str, new: str) -> Damage:
    """A part of a text file is another."""

    def damage(path: Path) -> None:
        text = path.read_text("utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), "utf-8")

    return damage


def changed(*keys: Any, to: Any = None) -> Damage:
    """A value inside a JSON file is another; ``to`` None: it is gone."""

    def damage(path: Path) -> None:
        whole = value = json.loads(path.read_text("utf-8"))
        for key in keys[:-1]:
            value = value[key]
        if to is None:
            del value[keys[-1]]
        else:
            value[keys[-1]] = to
        path.write_text(json.dumps(whole), "utf-8")

    return damage


def tensors(change: Callable[[dict[str, np.ndarray]], object]) -> Damage:
    """A whole safetensors file of other content."""

    def damage(path: Path) -> None:
        arrays = load_file(path)
        change(arrays)
        save_file(arrays, path, {"format": "pt"})

    return damage


def array(change: Callable[[np.ndarray], np.ndarray]) -> Damage:
    """A whole .npy file of other content."""
    return lambda path: np.save(path, change(np.load(path)))


class Bad(NamedTuple):
    """A file of the run, what happened to it, the commands that must notice, and what they say."""

    name: str
    damage: Damage
    commands: tuple[tuple[str, ...], ...]
    fix: str
    start: str | None = None
    """None: the line begins with the file's path."""


ATOMIC = {
    "configuration gone": Bad(
        "config.yaml", gone, (EVALUATE, ADD, RESUME), "give a run directory", "run: no run here"
    ),
    "configuration empty, of another stream": Bad(
        "config.yaml", replaced("stream: two", "stream: tow"), (EVALUATE,), "mean 'two'", ""
    ),
    "configuration cut": Bad(
        "config.yaml", holding("name: [a"), (EVALUATE, ADD, RESUME), "correct"
    ),
    "configuration binary": Bad(
        "config.yaml", holding(b"\x80\x04\x95."), (EVALUATE, RESUME), "save it as UTF-8"
    ),
    "configuration a list": Bad("config.yaml", holding("- a\n"), (EVALUATE,), "'key: value'"),
    "configuration a folder": Bad("config.yaml", folder, (EVALUATE, RESUME), "give a YAML file"),
    "configuration a loop": Bad("config.yaml", loop, (EVALUATE,), "run directory", "run: no run"),
    "configuration misspelt": Bad(
        "config.yaml", replaced("seed:", "sed:"), (EVALUATE, RESUME), "did you mean 'seed'", "sed: "
    ),
    "configuration with a tag": Bad(
        "config.yaml", holding("seed: !!python/name:os.system ''"), (EVALUATE,), "correct the line"
    ),
    "pointer gone": Bad("index.json", gone, (SEARCH,), "give a run directory", "run: no index"),
    "pointer cut": Bad("index.json", cut, (SEARCH,), "restore the file"),
    "pointer of another schema": Bad("index.json", changed("schema", to=1), (SEARCH,), "reads 2"),
    "pointer to a number": Bad("index.json", changed("index", to=5), (SEARCH,), "restore the file"),
    "pointer out of the run": Bad("index.json", changed("index", to="../x"), (SEARCH,), "restore"),
    "pointer to nothing": Bad(
        "index.json", changed("index", to="stages/07"), (SEARCH,), "give a run", "run/stages/07: no"
    ),
    "index gone": Bad(INDEX, gone, (SEARCH,), "give a run directory", "run/stages/01: no index"),
    "index cut": Bad(INDEX, cut, (SEARCH, EVALUATE), "restore the file"),
    "index empty": Bad(INDEX, emptied, (SEARCH, EVALUATE), "restore the file"),
    "index a list": Bad(INDEX, holding("[]"), (SEARCH, EVALUATE), "restore the file"),
    "index a folder": Bad(INDEX, folder, (SEARCH, EVALUATE), "restore the file"),
    "index a loop": Bad(INDEX, loop, (SEARCH, EVALUATE), "restore the file"),
    "index not UTF-8": Bad(INDEX, holding(b"\xff\xfe{}"), (SEARCH,), "restore the file"),
    "index a nest": Bad(INDEX, holding("[" * 90_000), (SEARCH,), "restore the file"),
    "index of another schema": Bad(
        INDEX, changed("schema", to=9), (SEARCH, EVALUATE), "make the index anew"
    ),
    "index a pointer": Bad(INDEX, changed("index", to="model"), (EVALUATE,), "", "run/stages/01"),
    "index without corpora": Bad(INDEX, changed("corpora"), (SEARCH,), "restore the file"),
    "index of a number": Bad(INDEX, changed("corpora", to=[5]), (SEARCH,), "write", "corpus"),
    "index of fewer checksums": Bad(
        INDEX, changed("part_hashes", to=[]), (SEARCH, EVALUATE), "restore the file"
    ),
    "index of checksums that are none": Bad(
        INDEX, changed("part_hashes", to=[7]), (SEARCH, EVALUATE), "restore the file"
    ),
    "index whose new texts are a list": Bad(
        INDEX, changed("new_texts", to=["d00"]), (SEARCH, EVALUATE), "restore the file"
    ),
    "index whose new texts are nowhere": Bad(
        INDEX, changed("new_texts", to={"d00": [1, "d01"]}), (SEARCH, EVALUATE), "restore the file"
    ),
    "index whose new texts have no id": Bad(
        INDEX, changed("new_texts", to={"d00": [0, 5]}), (SEARCH, EVALUATE), "restore the file"
    ),
    "index of no beams": Bad(INDEX, changed("beams", to=0), (SEARCH,), "restore the file"),
    "index of more documents": Bad(
        INDEX, changed("documents", to=99), (SEARCH,), "restore the file", DOCIDS
    ),
    "index of a text for a prompt": Bad(INDEX, changed("prompt", to=3), (SEARCH,), "restore"),
    "index of an absent corpus": Bad(
        INDEX, changed("corpora", to=["/absent/corpus"]), (SEARCH,), "give a folder", "/absent"
    ),
    "table gone": Bad(TABLE, gone, (SEARCH,), "restore the file"),
    "table cut": Bad(TABLE, cut, (SEARCH,), "restore the file"),
    "table empty": Bad(TABLE, emptied, (SEARCH,), "restore the file"),
    "table not UTF-8": Bad(TABLE, holding(b"\xff\t1\tD0\n"), (SEARCH,), "restore the file"),
    "table of two columns": Bad(
        TABLE, replaced("\t0\t", "\t0"), (SEARCH,), "restore", f"{DOCIDS}:1"
    ),
    "table of four columns": Bad(TABLE, replaced("\t", "\t1\t"), (SEARCH,), "restore the file"),
    "table of letters": Bad(TABLE, replaced("\t0\t", "\tx\t"), (SEARCH,), "restore the file"),
    "table of a negative number": Bad(TABLE, replaced("\t0\t", "\t-5\t"), (SEARCH,), "restore"),
    "table out of range": Bad(TABLE, replaced("\t0\t", "\t999999999\t"), (SEARCH,), "restore"),
    "table with a docid twice": Bad(TABLE, replaced("\t0\t", "\t1\t"), (SEARCH,), "restore"),
    "table a folder": Bad(TABLE, folder, (SEARCH,), "restore the file"),
    "a character out of place": Bad(
        "docids/D1.tsv", replaced("d18", "d18\x1b[2J"), (EVALUATE,), "restore the corpus"
    ),
    "matrix gone": Bad(
        "matrix.json", gone, (REPORT,), "matrix.json is missing", "run: no finished stage here"
    ),
    "matrix cut": Bad("matrix.json", cut, (REPORT, ADD), "restore the file"),
    "matrix empty": Bad("matrix.json", emptied, (REPORT, ADD), "restore the file"),
    "matrix a number": Bad("matrix.json", holding("7"), (REPORT, ADD), "restore the file"),
    "matrix of another schema": Bad("matrix.json", changed("schema", to=2), (REPORT,), "reads 1"),
    "matrix without a metric": Bad(
        "matrix.json", changed("metrics", "hits@10"), (REPORT,), "restore the file"
    ),
    "matrix with a hole": Bad(
        "matrix.json", changed("metrics", "hits@10", 1, to=[0.5]), (REPORT,), "restore the file"
    ),
    "matrix of words": Bad(
        "matrix.json", changed("metrics", "hits@1", 0, 0, to="high"), (REPORT,), "restore the file"
    ),
    "matrix of NaN": Bad(
        "matrix.json",
        changed("metrics", "hits@1", 0, 0, to=float("nan")),
        (REPORT,),
        "restore the file",
    ),
    "matrix beyond one": Bad(
        "matrix.json", changed("metrics", "hits@1", 0, 0, to=1e308), (REPORT,), "restore the file"
    ),
    "matrix with a metric that climbs": Bad(
        "matrix.json", changed("metrics", "../../escape", to=[]), (REPORT,), "restore the file"
    ),
    "matrix with an absolute metric": Bad(
        "matrix.json", changed("metrics", "/absolute/escape", to=[]), (REPORT,), "restore the file"
    ),
    "matrix of more corpora": Bad(
        "matrix.json", changed("corpora", to=["D0", "D1", "D2"]), (REPORT,), "restore the file"
    ),
    "docids gone": Bad("docids/D0.tsv", gone, (EVALUATE,), "restore the file"),
    "docids cut": Bad("docids/D0.tsv", cut, (EVALUATE,), "restore"),
    "docids empty": Bad("docids/D0.tsv", emptied, (EVALUATE,), "restore the file"),
    "docids of fewer documents": Bad(
        "docids/D1.tsv", lambda path: path.write_text("d18\t18\n"), (EVALUATE,), "restore"
    ),
    "docids not UTF-8": Bad("docids/D0.tsv", flipped(0), (EVALUATE,), "restore the corpus"),
    "docids binary": Bad("docids/D1.tsv", holding(b"\xff\t1\n"), (EVALUATE,), "restore the"),
    "docids of one column": Bad("docids/D0.tsv", replaced("\t", " "), (EVALUATE,), "restore"),
    "docids of three columns": Bad(
        "docids/D0.tsv", replaced("\t", "\t1\t"), (EVALUATE,), "restore the file"
    ),
    "docids of letters": Bad("docids/D0.tsv", replaced("\t0", "\tx"), (EVALUATE,), "restore"),
    "docids out of range": Bad(
        "docids/D0.tsv", replaced("\t0\n", "\t999999999\n"), (EVALUATE,), "restore", "run/docids"
    ),
    "docids a negative number": Bad(
        "docids/D0.tsv", replaced("\t0\n", "\t-5\n"), (EVALUATE,), "restore the file"
    ),
    "docids given twice": Bad(
        "docids/D0.tsv", replaced("\t0\n", "\t1\n"), (EVALUATE,), "restore", "run/docids"
    ),
    "docids a folder": Bad("docids/D0.tsv", folder, (EVALUATE,), "restore the file"),
    "model gone": Bad(MODEL, gone, (SEARCH, EVALUATE), "restore the whole folder"),
    "model cut": Bad(MODEL, cut, (SEARCH, EVALUATE), "restore the folder", "run/stages/01/model"),
    "model empty": Bad(
        MODEL, emptied, (SEARCH, EVALUATE), "restore the folder", "run/stages/01/model"
    ),
    "model with a flipped size": Bad(
        MODEL, flipped(3), (SEARCH, EVALUATE), "restore the folder", "run/stages/01/model"
    ),
    "model with a flipped name": Bad(
        MODEL, flipped(24), (SEARCH, EVALUATE), "restore the f", "run/stages/01/model"
    ),
    "model a text": Bad(
        MODEL, holding("weights"), (SEARCH, EVALUATE), "restore the folder", "run/stages/01/model"
    ),
    "model with a weight gone": Bad(
        MODEL,
        tensors(lambda arrays: arrays.pop("docids.rows")),
        (SEARCH, EVALUATE),
        "restore the file",
    ),
    "model with a weight more": Bad(
        MODEL,
        tensors(lambda arrays: arrays.update(more=np.zeros(3, np.float32))),
        (SEARCH, EVALUATE),
        "restore the file",
    ),
    "model with a weight of another shape": Bad(
        MODEL,
        tensors(lambda arrays: arrays.update({"docids.rows": np.zeros((3, 16), np.float32)})),
        (SEARCH, EVALUATE),
        "restore the f",
        "run/stages/01/model",
    ),
    "model of another stage": Bad(
        "stages/01/model",
        lambda path: shutil.copytree(path.parents[1] / "00/model", path, dirs_exist_ok=True),
        (SEARCH, EVALUATE),
        "restore the file",
        "run/",
    ),
    "model description gone": Bad(
        "stages/01/model/config.json", gone, (SEARCH, EVALUATE), "restore the whole folder"
    ),
    "model description cut": Bad(
        "stages/01/model/config.json",
        cut,
        (SEARCH, EVALUATE),
        "restore the folder",
        "run/stages/01/model",
    ),
    "model description of another type": Bad(
        "stages/01/model/config.json",
        changed("d_model", to="wide"),
        (SEARCH, EVALUATE),
        "restore the folder",
        "run/stages/01/model",
    ),
    "model description a list": Bad(
        "stages/01/model/config.json",
        holding("[1]"),
        (SEARCH, EVALUATE),
        "restore the folder",
        "run/stages/01/model",
    ),
    "model description of other sizes": Bad(
        "stages/01/model/config.json",
        changed("d_ff", to=64),
        (SEARCH, EVALUATE),
        "restore the f",
        "run/stages/01/model",
    ),
    "model description of other docids": Bad(
        "stages/01/model/config.json",
        changed("code_sizes", to=[7]),
        (SEARCH, EVALUATE),
        "restore the f",
        "run/stages/01/model",
    ),
    "model description of more layers": Bad(
        "stages/01/model/config.json",
        changed("num_layers", to=2),
        (SEARCH, EVALUATE),
        "restore the file",
        "run/stages/01/model",
    ),
    "tokenizer of the run cut": Bad(
        "tokenizer/tokenizer.json", cut, (EVALUATE,), "run/tokenizer", "tokenizer.source: "
    ),
    "tokenizer cut": Bad(f"{TOKENIZER}/tokenizer.json", cut, (SEARCH,), *NO_TOKENIZER),
    "tokenizer empty": Bad(f"{TOKENIZER}/tokenizer.json", emptied, (SEARCH,), *NO_TOKENIZER),
    "tokenizer gone": Bad(TOKENIZER, gone, (SEARCH,), *NO_TOKENIZER),
    "tokenizer of another type": Bad(
        f"{TOKENIZER}/tokenizer.json", holding("[]"), (SEARCH,), *NO_TOKENIZER
    ),
    "tokenizer description cut": Bad(
        f"{TOKENIZER}/tokenizer_config.json", cut, (SEARCH,), *NO_TOKENIZER
    ),
    "stages gone": Bad("stages", gone, (EVALUATE,), "dsi train --resume", "run: no stage"),
    "stages gone, the pointer not": Bad("stages", gone, (SEARCH,), "give a run", "run/stages/01"),
    "docid report cut": Bad("docids/report.json", cut, (REPORT,), "restore the file"),
    "docid report a list": Bad("docids/report.json", holding("[]"), (REPORT,), "restore the file"),
    "docid report of nothing": Bad(
        "docids/report.json", holding("{}"), (REPORT,), "restore the file"
    ),
    "docid report of no corpora": Bad(
        "docids/report.json", changed("corpora", to=[]), (REPORT,), "restore the file"
    ),
    "sharpness cut": Bad("stages/01/sharpness.json", holding("{"), (REPORT,), "restore", "run/"),
    "sharpness of nothing": Bad(
        "stages/01/sharpness.json", holding("{}"), (REPORT,), "restore", "run/stages"
    ),
    "additions cut": Bad("added.json", holding("["), (EVALUATE, ADD, RESUME), "restore the file"),
    "additions an object": Bad("added.json", holding("{}"), (EVALUATE, RESUME), "restore the file"),
    "additions without corpus": Bad("added.json", holding("[{}]"), (EVALUATE, ADD), "restore the"),
    "additions of numbers": Bad("added.json", holding("[5]"), (EVALUATE, ADD), "restore the file"),
    "additions that remove a number": Bad(
        "added.json", holding('[{"remove": [5]}]'), (EVALUATE, ADD, RESUME), "restore the file"
    ),
    "additions that remove a stranger": Bad(
        "added.json", holding('[{"remove": ["x"]}]'), (EVALUATE, ADD), "restore", "added.json"
    ),
    "additions that replace by a text": Bad(
        "added.json",
        holding('[{"corpus": "corpus", "replace": "d1"}]'),
        (EVALUATE, RESUME),
        "restore the file",
    ),
    "additions of an absent corpus": Bad(
        "added.json",
        holding('[{"corpus": "/absent"}]'),
        (EVALUATE, ADD),
        "give a folder",
        "/absent",
    ),
}

TREE = {
    "trie gone, and a docid given twice": Bad(
        "stages/01/trie",
        lambda path: (gone(path), _repeat(path.parent / "docids.tsv")),
        (SEARCH,),
        "restore the file",
        DOCIDS,
    ),
    "trie description gone": Bad("stages/01/trie/trie.json", gone, (SEARCH,), "restore the file"),
    "trie description cut": Bad("stages/01/trie/trie.json", cut, (SEARCH,), "restore the file"),
    "trie description a list": Bad("stages/01/trie/trie.json", holding("[]"), (SEARCH,), "reads 2"),
    "trie description with a key more": Bad(
        "stages/01/trie/trie.json", changed("more", to=1), (SEARCH,), "restore the file"
    ),
    "trie array gone": Bad("stages/01/trie/codes.npy", gone, (SEARCH,), "restore the file"),
    "trie array cut": Bad("stages/01/trie/start.npy", cut, (SEARCH,), "restore the file"),
    "trie array empty": Bad("stages/01/trie/leaves.npy", emptied, (SEARCH,), "restore the file"),
    "trie array of floats": Bad(
        "stages/01/trie/documents.npy",
        array(lambda a: a.astype(np.float32)),
        (SEARCH,),
        "restore the file",
    ),
    "trie array with a flipped header": Bad(
        "stages/01/trie/codes.npy", flipped(1), (SEARCH,), "restore the file"
    ),
    "trie array with a flipped document": Bad(
        "stages/01/trie/documents.npy",
        flipped(-1),
        (SEARCH,),
        "restore the file",
        DOCIDS,
    ),
    "trie array with a flipped node": Bad(
        "stages/01/trie/start.npy", flipped(-1), (SEARCH,), "restore the file", "run/stages/01/trie"
    ),
    "trie array with a flipped leaf": Bad(
        "stages/01/trie/leaves.npy", flipped(-1), (SEARCH,), "restore", "run/stages/01/trie"
    ),
    "trie array with a flipped code": Bad(
        "stages/01/trie/codes.npy", flipped(-1), (SEARCH,), "restore the file", "run/"
    ),
    "trie of another stage": Bad(
        "stages/01/trie",
        lambda path: shutil.copytree(path.parents[1] / "00/trie", path, dirs_exist_ok=True),
        (SEARCH,),
        "restore the file",
        DOCIDS,
    ),
    "codebook gone": Bad("docids/D1.safetensors", gone, (ADD, RESUME), "restore the file"),
    "codebook cut": Bad("docids/D1.safetensors", cut, (ADD, RESUME), "restore the file"),
    "codebook empty": Bad("docids/D1.safetensors", emptied, (ADD, RESUME), "restore the file"),
    "codebook of other arrays": Bad(
        "docids/D1.safetensors", tensors(lambda arrays: arrays.clear()), (ADD,), "restore the file"
    ),
    "embedder description cut": Bad(
        "docids/embedder/embedder.json", cut, (ADD, RESUME), "restore the folder"
    ),
    "embedder of another kind": Bad(
        "docids/embedder/embedder.json", changed("source", to="os"), (ADD,), "restore the folder"
    ),
    "embedder weights cut": Bad(
        "docids/embedder/tfidf.safetensors",
        cut,
        (ADD,),
        "restore the folder",
        "run/docids/embedder",
    ),
    "embedder words cut": Bad(
        "docids/embedder/words.json", cut, (ADD,), "restore the folder", "run/docids/embedder"
    ),
    "embedder words a number": Bad(
        "docids/embedder/words.json",
        holding("7"),
        (ADD,),
        "restore the folder",
        "run/docids/embedder",
    ),
}


def _repeat(path: Path) -> None:
    first, second, *others = path.read_text("utf-8").splitlines()
    rest = first.partition("\t")[2]
    lines = [first, f"{second.partition(chr(9))[0]}\t{rest}", *others]
    path.write_text("\n".join(lines) + "\n", "utf-8")


def refuse(place: Place, case: Bad) -> None:
    path = place.folder / "run" / case.name
    case.damage(path)
    start = f"run/{case.name}" if case.start is None else case.start
    for command in case.commands:
        # a run that goes on is named by its whole path, wherever it was moved from
        whole = f"{place.folder}/{start}" if command is RESUME and start[:4] == "run/" else start
        place.refuse(command, whole, case.fix)


@pytest.mark.parametrize("case", ATOMIC.values(), ids=ATOMIC)
def test_a_damaged_run_is_one_line(place: Place, run, case: Bad) -> None:
    refuse(place, case)


@pytest.mark.parametrize("run", ["semantic"], indirect=True)
@pytest.mark.parametrize("case", TREE.values(), ids=TREE)
def test_a_damaged_run_with_docids_of_several_codes_is_one_line(place, run, case: Bad) -> None:
    refuse(place, case)


@pytest.mark.parametrize("run", ["atomic", "semantic"], indirect=True)
def test_what_is_not_damaged_is_read(place: Place, run) -> None:
    """The cases above are refused for their damage, not for something else."""
    (run / "stages" / "01 (copy)").mkdir()
    (run / "stages" / "01 (copy)" / "model").mkdir()
    for command in (SEARCH, EVALUATE, REPORT):
        status, out, err = place.call(*command)
        assert (status, err) == (0, "")
        assert out
    place.accept(*ADD)


REPLACE = ("train", "--overwrite", "name=run", "output=.")


def test_a_run_that_is_being_written_has_readers_and_no_second_writer(place: Place, run) -> None:
    with only_writer(run):
        for command in (RESUME, REPLACE, ADD):
            line = place.refuse(command, "", "wait until it has ended, or stop it")
            assert f"run: process {os.getpid()} on " in line
        for command in (SEARCH, EVALUATE, REPORT):
            assert place.call(*command)[0] == 0
    place.accept(*ADD)
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    "name", ["notes.txt", "stages/00/model/mine.pdf", ".git/HEAD", "figures/a"]
)
def test_files_of_the_users_own_are_not_deleted(place: Place, run, name: str) -> None:
    place.write(f"run/{name}", "years of work")
    place.refuse(REPLACE, f"run/{name}: not written by a run", "move it away")


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("absent")])
def test_a_stage_that_is_no_folder_is_one_line(place: Place, run, make: Damage) -> None:
    make(run / "stages" / "05")
    for command in (RESUME, ADD, EVALUATE, REPORT):
        start = f"{place.folder}/run" if command is RESUME else "run"
        place.refuse(command, f"{start}/stages/05: not a folder", "move it away")


@pytest.mark.parametrize("name", [".lock", ".lock.json"])
def test_a_folder_in_the_place_of_the_lock_is_one_line(place: Place, run, name: str) -> None:
    (run / name).mkdir()
    place.refuse(ADD, "", f"run/{name}: is a directory; something else belongs there, move it away")


def test_a_trie_that_is_gone_is_made_from_the_docids(place: Place, lab) -> None:
    from tests.bad_input.conftest import KINDS, ORIGINAL, QUICK

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("continual.runs._run", ORIGINAL)
        shutil.copytree(lab.kept(*KINDS["semantic"], *QUICK), place.folder / "run")
    (place.folder / "run/stages/01/manifest.json").unlink()
    before = place.call(*SEARCH)
    shutil.rmtree(place.folder / "run" / "stages" / "01" / "trie")
    assert place.call(*SEARCH) == before
    assert before[0] == 0


def test_a_run_in_a_folder_that_is_no_text_takes_no_corpus(place: Place, run) -> None:
    name = os.fsdecode(b"caf\xe9")
    shutil.copytree("corpus", name)
    place.refuse(["add", "run", name], "", "not UTF-8")
