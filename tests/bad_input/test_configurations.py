"""YAML files and settings: bombs, tags and numbers out of range, each one line."""

import resource
import time

import pytest

from continual.config.loading import load_config
from tests.bad_input.conftest import Place

LAUGHS = "a: &a [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(12)
)
MERGES = "a: &a {k: 1}\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} {{<<: [{', '.join(['*' + chr(97 + n)] * 9)}]}}\n"
    for n in range(12)
)
WIDE = "".join(f"key{n}: {n}\n" for n in range(11_000))

# a file's content -> how the line goes on after the file's name, the fix
BAD_FILES: dict[str, tuple[str | bytes, str, str]] = {
    "a billion laughs": (LAUGHS, ": not valid YAML (more than", "correct the line"),
    "a billion laughs in a setting": (f"data:\n  corpus: {{x: &x [1]}}\n{LAUGHS}", ": ", "correct"),
    "a billion merges": (MERGES, ": not valid YAML (more than", "correct the line"),
    "more keys than there are settings": (WIDE, ": not valid YAML (more than", "correct"),
    "a file of a megabyte": ("# " + "x" * (1 << 20), ": larger than", "give a configuration"),
    "a deep nest": ("a: " + "[" * 5000, ": not valid YAML", "correct the line"),
    "a deep mapping": ("a: " + "{a: " * 3000, ": not valid YAML", "correct the line"),
    "a tag that calls": ("a: !!python/object/apply:os.getcwd []", ":1: not valid", "constructor"),
    "a tag that makes": ("a: !!python/object:pathlib.Path {}", ":1: not valid", "constructor"),
    "a tag that imports": ("a: !!python/module:antigravity ''", ":1: not valid", "constructor"),
    "a tag that names": ("seed: !!python/name:os.system ''", ":1: not valid", "constructor"),
    "a tag at the top": ("!!python/dict {seed: 1}", ":1: not valid", "constructor"),
    "a tag of bytes": ("seed: !!binary x!", ":1: not valid", "correct the line"),
    "an unknown tag": ("seed: !seed 1", ":1: not valid", "constructor"),
    "two documents": ("seed: 1\n---\nseed: 2\n", ":2: not valid", "document"),
    "a key twice": ("seed: 1\nseed: 2\n", ":2: not valid", "twice"),
    "a key twice inside": ("data:\n  title: true\n  title: false\n", ":3: not valid", "twice"),
    "a key that is a list": ("[a]: 1\n", ":1: not valid", "correct the line"),
    "a tab": ("data:\n\ttitle: true\n", ":2: not valid", "correct the line"),
    "a brace left open": ("data: {title: true\n", ":2: not valid", "correct the line"),
    "a NUL": (b"seed: 1\0\n", ": not valid YAML", "correct the line"),
    "an escape sequence": (b"seed: \x1b[31m1\n", ": not valid YAML", "correct the line"),
    "a date that is none": ("name: 2024-13-45\n", ": not valid YAML", "correct the line"),
    "a surrogate": (b"name: \xed\xa0\x80\n", ": not UTF-8", "save it as UTF-8"),
    "latin-1": (b"name: caf\xe9\n", ": not UTF-8", "save it as UTF-8"),
    "a pickle": (b"\x80\x04\x95\x00.", ": not UTF-8", "save it as UTF-8"),
    "a list": ("- seed\n- 1\n", ": expected", "'key: value' lines"),
    "a word": ("seed\n", ": expected", "'key: value' lines"),
    "a number": ("7\n", ": expected", "'key: value' lines"),
    "keys that are numbers": ("1: 2\n", ": expected", "'key: value' lines"),
    "a key that is null": ("~: 2\n", ": expected", "'key: value' lines"),
    "JSON lines": ('{"seed": 1}\n{"seed": 2}\n', ":2: not valid", "correct the line"),
    "a method that is a list": ("method: [cl_new]\n", ": method: expected", "preset's name"),
}


@pytest.mark.parametrize(("content", "rest", "fix"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_one_line(place: Place, content, rest: str, fix: str) -> None:
    place.write("run.yaml", content)
    place.refuse(["train", "run.yaml", "output=out"], f"run.yaml{rest}", fix)


@pytest.mark.parametrize("text", [LAUGHS, MERGES], ids=["sequences", "merges"])
def test_a_bomb_costs_neither_time_nor_memory(place: Place, text: str) -> None:
    path = place.write("run.yaml", text)
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    place.refuse(["train", str(path)], str(path), "aliases")
    compact = text.splitlines()
    override = "data={" + ", ".join(compact) + "}"
    place.refuse(["train", override], "'data={a: &a", "aliases")
    assert time.process_time() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


# a setting -> how the line begins, the fix
BAD_SETTINGS: dict[str, tuple[str, str, str]] = {
    "a misspelt key": ("sed=1", "sed: unknown key", "did you mean 'seed'"),
    "a misspelt key inside": ("training.clp=1", "training.clp: unknown key", "'clip'"),
    "an extra key": ("extra=1", "extra: unknown key", "known: "),
    "an extra key with an escape": ("a\x1b[2Jb=1", "a\\x1b[2Jb: unknown key", "known: "),
    "a gigantic key": ("k" * 100_000 + "=1", "kkk", "unknown key"),
    "a gigantic value": ("seed=" + "v" * 100_000, "seed: expected a whole number", "vvv..."),
    "a key of a thousand parts": (".".join("a" * 1000) + "=1", "'a.a.a", "expected key=value"),
    "a missing value": ("seed=", "seed: expected a whole number", "None"),
    "a mapping for a number": ("seed={a: 1}", "seed: expected a whole number", "{'a': 1}"),
    "a number for a mapping": ("replay=7", "replay.name: missing", "one of"),
    "a list for an axis": ("docids=[atomic]", "docids.name: missing", "one of"),
    "a member that climbs": ("docids=../evil", "docids.name: ", "atomic"),
    "a member that is private": ("docids=_scheme", "docids.name: unknown name", "atomic"),
    "a member with a NUL": ('docids="a.\\0b"', "docids.name: unknown name", "known: "),
    "a member that is relative": ("docids=.evil", "docids.name: unknown name", "atomic"),
    "a member that ends in a dot": ("docids=evil.", "docids.name: unknown name", "known: "),
    "a member that takes over": (
        "regularizer=unittest.__main__",
        "regularizer.name: 'unittest.__main__' is code from elsewhere",
        "add --plugin unittest (in Python",
    ),
    "a member that opens a browser": (
        "merging=this.antigravity",
        "merging.name: ",
        "--plugin this",
    ),
    "a member of our own by its place": (
        "regularizer=continual.regularizers.l2",
        "regularizer.name: 'continual.regularizers.l2' is code",
        "l2",
    ),
    "a negative budget": ("training.updates=-1", "training.updates: must be at least 0", "-1"),
    "a negative later budget": (
        "training.updates_per_stage=-5",
        "training.updates_per_stage: must",
        "at least 0",
    ),
    "a negative warm-up": ("training.warmup=-0.1", "training.warmup: must be at least 0", "-0.1"),
    "a negative replay": ("replay.ratio=-2", "replay.ratio: must be at least 0", "got -"),
    "a seed out of range": (f"seed={2**63}", "seed: ", "at most 2^63 - 1"),
    "a seed far out of range": ("seed=" + "9" * 4000, "seed: 999", "at most 2^63 - 1"),
    "a seed of too many digits": ("seed=" + "9" * 5000, "'seed=999", "quote it"),
    "a seed of infinity": ("seed=.inf", "seed: expected a whole number", "inf"),
    "a float that is too large for one": ("seed=1e300", "seed: ", "too large"),
    "threads out of range": ("threads=1000000", "threads: must be at most", "4096"),
    "a width out of range": ("model.d_model=1000000", "model.d_model: must be at most", "65536"),
    "a depth out of range": ("model.num_layers=5000", "model.num_layers: must be at most", "1000"),
    "a batch out of range": (
        f"training.batch_size={10**12}",
        "training.batch_size: must be at most",
        "1048576",
    ),
    "a vocabulary out of range": (
        f"tokenizer.vocabulary_size={10**12}",
        "tokenizer.vocabulary_size: must be at most",
        "16777216",
    ),
    "beams out of range": (f"evaluation.beams={10**9}", "evaluation.beams: must be at", "1048576"),
    "a rate that is no number": ("training.learning_rate=.nan", "training.learning_rate: ", "nan"),
    "a share above one": ("sampling.new=1.01", "sampling.new: must be at most 1", "1.01"),
    "a name that climbs": ("name=../x", "name: must be a plain folder name", "'../x'"),
    "a name that is a path": (
        "name=/absolute/x",
        "name: must be a plain folder name",
        "'/absolute/x'",
    ),
    "a name of Windows": ("name=a\\b", "name: must be a plain folder name", "plain"),
    "a name with a NUL": ('name="a\\0b"', "name: must be a plain folder name", "plain"),
    "a name with a line end": ('name="a\\nb"', "name: must be short and without", "control"),
    "a name with an escape": ('name="\\e[2Ja"', "name: must be short and without", "control"),
    "a gigantic name": ("name=" + "a" * 5000, "name: must be short", "aaa..."),
    "a name of half a surrogate pair": ('name="\\ud800"', "name: half a surrogate", "remove it"),
    "a prompt of half a surrogate pair": (
        'prompts.retrieval="\\udfff"',
        "prompts.retrieval: half a surrogate pair",
        "remove it",
    ),
    "a gigantic prompt": ("prompts.retrieval=" + "w" * 20_000, "prompts.retrieval: ", "shorter"),
    "a gigantic prompt of words": (
        "prompts.indexing=" + "a whale " * 999,
        "prompts.ind",
        "at most",
    ),
    "a name of bytes": ("name=\udcff", "'name=\\udcff': the value is not valid", "quote it"),
    "an output with a NUL": ('output="a\\0"', "output: must be a folder", "control"),
    "an empty output": ("output=''", "output: must be a folder", "''"),
    "an output too long": ("output=" + "a" * 300, "aaa", "choose another output="),
    "an output that is a file": ("output=corpus/corpus.jsonl", "corpus/corpus.jsonl/", "output="),
    "a tokenizer that is a file": (
        "tokenizer.source=corpus/corpus.jsonl",
        "tokenizer.source: cannot load",
        "'train'",
    ),
    "a tokenizer with a NUL": ('tokenizer.source="a\\0"', "tokenizer.source: ", "'train'"),
    "a method with a NUL": ('method="a\\0.yaml"', "a\\x00.yaml: cannot read", "give a"),
    "a gigantic method": ("method=" + "m" * 100_000, "method: unknown preset", "known: "),
    "a bomb": ("views=&a [&b [*a, *a], *b]", "'views=&a", "inside itself"),
}


@pytest.mark.parametrize(("setting", "start", "fix"), BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_a_bad_setting_is_one_line(place: Place, setting: str, start: str, fix: str) -> None:
    others = (
        "method=windows",
        "replay=generative",
        "data.corpus=corpus",
        "data.stream=two",
        "output=out",
        "name=x",
    )
    key = setting.partition("=")[0]
    kept = [other for other in others if other.partition("=")[0] != key]
    place.refuse(["train", *kept, setting], start, fix)


ODD = {
    "a byte-order mark": b"\xef\xbb\xbfseed: 3\ntraining: {clip: 2}\n",
    "CRLF": b"seed: 3\r\ntraining:\r\n  clip: 2\r\n",
    "JSON": b'{"seed": 3, "training": {"clip": 2}}',
    "an alias": b"seed: &three 3\ntraining: {clip: 2}\nthreads: 1\n",
    "a document mark": b"---\nseed: 3\ntraining:\n  clip: 2.0\n...\n",
    "a number in quotes": b"seed: '3'\ntraining: {clip: '2e0'}\n",
}


@pytest.mark.parametrize("content", ODD.values(), ids=ODD)
def test_what_is_odd_but_meant_loads(place: Place, content: bytes) -> None:
    assert load_config(place.write("run.yaml", content)) == load_config(
        None, ["seed=3", "training.clip=2"]
    )
