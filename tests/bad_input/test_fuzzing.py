"""Readers and the configuration loader on made-up input: what was meant, or the one error type."""

import gzip
import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from continual.config.loading import dump, load_config, parse
from continual.config.schema import RunConfig
from dsi.corpus.corpus import read_corpus, read_stream
from dsi.corpus.records import (
    checked_documents,
    checked_queries,
    json_rows,
    judgements_from_tsv,
    lines,
)
from dsi.corpus.streams import read_stream_file
from dsi.errors import UserError

FEW = settings(
    deadline=None,
    derandomize=True,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

ids = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=6)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
rows = st.dictionaries(st.sampled_from(["_id", "title", "text", "x"]), json_values | ids)
ends = st.sampled_from(["\n", "\r\n"])


def read(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result, or None for a UserError of one line; anything else is a bug."""
    try:
        return function(*arguments)
    except UserError as error:
        assert len(str(error).splitlines()) == 1
        assert 0 < len(str(error)) < 2000
        return None


def damaged(data: st.DataObject, content: bytes) -> bytes:
    """The content with some bytes cut out, changed or put in."""
    for _ in range(data.draw(st.integers(0, 3), "changes")):
        at = data.draw(st.integers(0, len(content)), "at")
        until = at + data.draw(st.integers(0, 4), "cut")
        content = content[:at] + data.draw(st.binary(max_size=3), "new") + content[until:]
    return content


@FEW
@given(
    st.lists(st.fixed_dictionaries({"_id": ids, "title": texts, "text": texts})), ends, st.data()
)
def test_well_formed_documents_are_read_as_json_reads_them(tmp_path, documents, end, data):
    path = tmp_path / ("c.jsonl.gz" if data.draw(st.booleans(), "gz") else "c.jsonl")
    text = "".join(json.dumps(d, ensure_ascii=data.draw(st.booleans())) + end for d in documents)
    raw = (b"\xef\xbb\xbf" if data.draw(st.booleans(), "mark") else b"") + text.encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    found = read(lambda: list(checked_documents(json_rows(path), path)))
    expected = [(d["_id"], d["title"], d["text"]) for d in documents]
    is_empty = any(not (d["title"].strip() or d["text"].strip()) for d in documents)
    assert found == (None if is_empty else expected)


@FEW
@given(st.lists(rows, max_size=4), st.data())
@example([{"_id": "a", "text": "\ud800"}], None)
def test_any_rows_are_read_or_refused(tmp_path, values, data):
    content = "".join(json.dumps(value) + "\n" for value in values).encode()
    path = tmp_path / "c.jsonl"
    path.write_bytes(damaged(data, content) if data else content)
    for check in (checked_documents, checked_queries):
        found = read(lambda check=check: list(check(json_rows(path), path)))
        for entry in found or ():
            assert all(isinstance(value, str) for value in entry)
            assert entry[0].split() == [entry[0]]
            "".join(entry).encode()


@FEW
@given(st.binary(max_size=200), st.sampled_from(["x.jsonl", "x.jsonl.gz"]))
@example(b"\x1f\x8b\x08\x00", "x.jsonl.gz")
@example(gzip.compress(b"{}", mtime=0)[:-3], "x.jsonl.gz")
def test_any_bytes_are_lines_or_refused(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    found = read(lambda: list(lines(tmp_path / name)))
    if found is not None and name == "x.jsonl":
        text = content.removeprefix(b"\xef\xbb\xbf").decode()
        # the ends of lines as in a spreadsheet's or an editor's export, no others
        assert [line for line in found if line.strip()] == [
            line.rstrip("\r") for line in text.split("\n") if line.strip()
        ]


@FEW
@given(st.lists(st.tuples(ids, ids, st.integers(-5, 10**17)), min_size=1), ends, st.booleans())
def test_well_formed_judgements_are_read_as_columns(tmp_path, judgements, end, has_header):
    table = [["query-id", "corpus-id", "score"]] * has_header + [
        list(map(str, j)) for j in judgements
    ]
    path = tmp_path / "test.tsv"
    path.write_bytes("".join("\t".join(row) + end for row in table).encode())
    found = read(lambda: list(judgements_from_tsv(path, "test")))
    assert [(j.query, j.document, j.score) for j in found] == judgements
    assert [j.line for j in found] == [n + 1 + has_header for n in range(len(judgements))]


@FEW
@given(st.binary(max_size=60) | st.text("q\t1 \n-.eé0", max_size=30).map(str.encode))
def test_any_judgements_are_read_or_refused(tmp_path, content):
    path = tmp_path / "test.tsv"
    path.write_bytes(content)
    for judgement in read(lambda: list(judgements_from_tsv(path, "test"))) or ():
        line = content.removeprefix(b"\xef\xbb\xbf").decode().split("\n")[judgement.line - 1]
        assert [field.strip() for field in line.split("\t")][:2] == [
            judgement.query,
            judgement.document,
        ]
        assert int(line.split("\t")[2]) == judgement.score


names = st.integers(0, 12).map(lambda n: f"D{n}") | st.text(max_size=3)
stage_values = st.lists(ids, max_size=3) | st.dictionaries(
    st.sampled_from(["add", "remove", "replace", "x"]),
    st.lists(ids, max_size=3) | st.dictionaries(ids, ids, max_size=2),
    max_size=3,
)
stream_values = st.dictionaries(names, stage_values | json_values, max_size=5)


@FEW
@given(stream_values, st.sampled_from([None, 1]), st.data())
def test_any_stream_is_read_or_refused(tmp_path, value, indent, data):
    path = tmp_path / "s.json"
    content = damaged(data, json.dumps(value, indent=indent).encode())
    path.write_bytes(content)
    found = read(read_stream_file, path)
    if found is not None:
        again = json.loads(content.decode("utf-8-sig"))
        for n, stage in enumerate(found[1]):
            entry = again[f"D{n}"]
            plain = isinstance(entry, list)
            written = {"add": entry} if plain else entry
            assert stage._asdict() == {"add": [], "remove": [], "replace": {}, **written}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    entries = [{"_id": f"d{n}", "text": f"text {n}"} for n in range(6)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in entries))
    return read_corpus(folder, cache=folder / "cache")


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    folder = tmp_path_factory.mktemp("letters")
    entries = [{"_id": letter, "text": f"text {letter}"} for letter in "abcdef"]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in entries))
    return read_corpus(folder, cache=folder / "cache")


@FEW
@given(st.lists(st.lists(st.integers(0, 7), max_size=4), min_size=1, max_size=4))
def test_a_stream_is_a_partition_or_refused(tmp_path, corpus, parts):
    path = tmp_path / "s.json"
    path.write_text(json.dumps({f"D{n}": [f"d{i}" for i in ids] for n, ids in enumerate(parts)}))
    found = read(read_stream, corpus, path)
    flat = [number for part in parts for number in part]
    is_meant = all(parts) and len(set(flat)) == len(flat) and all(number < 6 for number in flat)
    assert (found is not None) == is_meant
    if found is not None:
        assert [stage.added.tolist() for stage in found] == parts
        assert {stage.added.dtype for stage in found} == {np.dtype(np.int64)}


changes = st.fixed_dictionaries(
    {},
    optional={
        "add": st.lists(st.sampled_from("abcdef"), max_size=3),
        "remove": st.lists(st.sampled_from("abcdeg"), max_size=2),
        "replace": st.dictionaries(st.sampled_from("abcd"), st.sampled_from("efg"), max_size=2),
    },
)


@FEW
@given(st.lists(changes, min_size=1, max_size=4))
def test_a_stream_of_changes_can_happen_or_is_refused(tmp_path, letters, stages):
    path = tmp_path / "s.json"
    path.write_text(json.dumps({f"D{n}": stage for n, stage in enumerate(stages)}))
    found = read(read_stream, letters, path)
    # the same, said as what is there after each stage
    here, ever = set(), set()
    texts = {row for stage in stages for row in stage.get("replace", {}).values()}
    is_meant = "g" not in {key for stage in stages for key in stage.get("add", [])} | texts
    for stage in stages:
        add, remove = stage.get("add", []), stage.get("remove", [])
        kept = set(stage.get("replace", {}))
        is_meant &= len({*add}) == len(add) and not {*add} & (ever | texts)
        is_meant &= len({*remove}) == len(remove) and {*remove} <= here and kept <= here - {*remove}
        is_meant &= bool(add or remove or kept)
        here, ever = (here | {*add}) - {*remove}, ever | {*add}
        is_meant &= bool(here)
    assert (found is not None) == is_meant
    if found is not None:
        name = lambda rows: ["abcdef"[row] for row in rows]  # noqa: E731
        for stage, rows in zip(stages, found, strict=True):
            assert name(rows.added) == stage.get("add", [])
            assert name(rows.removed) == stage.get("remove", [])
            pairs = zip(name(rows.replaced), name(rows.texts), strict=True)
            assert dict(pairs) == stage.get("replace", {})


KEYS = sorted(
    {"seed", "training", "updates", "clip", "data", "corpus", "replay", "name", "views", "docids"}
    | {"ratio", "method", "evaluation", "depth", "training.clip", "output", "x"}
)
yaml_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["no", "3e-4", "episodic", "cl_new", "..", "~", "atomic"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=8,
)


def configuration(function: Callable[..., RunConfig], *arguments: Any) -> None:
    """A configuration that is not refused is the one that it is written out as."""
    config = read(function, *arguments)
    if config is not None:
        assert parse(yaml.safe_load(dump(config))) == config


@FEW
@given(st.dictionaries(st.sampled_from(KEYS), yaml_values, max_size=4), st.data())
def test_any_configuration_file_is_read_or_refused(tmp_path, value, data):
    path: Path = tmp_path / "run.yaml"
    content = yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "replace")
    path.write_bytes(damaged(data, content))
    configuration(load_config, path)


@FEW
@given(
    st.text(max_size=60)
    | st.text(string.ascii_letters + ":{}[]&*!<-#|>'\"\n \t,?%@`0.", max_size=60)
)
@example("a: &a\n- *a\n")
@example("? {}\n: 1\n")
@example("<<: 5\n")
@example("<<: [[]]\n")
@example("seed: !!timestamp x\n")
@example("seed: !!omap x\n")
@example("seed: !!set [a]\n")
@example("seed: !!float ''\n")
@example("seed: 0x\n")
@example("seed: 1:99:99\n")
@example("seed: 0o8\n")
@example("seed: !!bool x\n")
@example("seed: !!str {a: b}\n")
@example("seed: !!int {a: b}\n")
@example("data: &d {corpus: *d}\n")
@example("training: &t {clip: *t}\n")
@example("%YAML 9.9\n---\nseed: 1\n")
def test_any_text_is_a_configuration_or_refused(tmp_path, text):
    path: Path = tmp_path / "run.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    configuration(load_config, path)


@FEW
@given(st.lists(st.tuples(st.sampled_from(KEYS), yaml_values), max_size=3), st.text(max_size=10))
def test_any_overrides_are_read_or_refused(pairs, more):
    settings_ = [f"{key}={yaml.safe_dump(value, default_flow_style=True)}" for key, value in pairs]
    configuration(load_config, None, settings_)
    configuration(load_config, None, [*settings_, more])


@FEW
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "seed": st.integers(-(2**63) + 1, 2**63 - 1),
            "training.updates": st.integers(0, 10**9),
            "training.clip": st.floats(0, 1e6),
            "training.ratio": st.floats(0, 1e6),
            "data.title": st.booleans(),
            "prompts.retrieval": st.text(st.characters(exclude_categories=["C"]), max_size=9),
            "sampling.new": st.none() | st.floats(0, 1),
            "tracking.log_every": st.integers(1, 10**6),
        },
    ),
    st.booleans(),
)
def test_well_formed_settings_are_what_the_configuration_has(tmp_path, values, is_file):
    if is_file:
        nested: dict[str, Any] = {}
        for key, value in values.items():
            section, _, name = key.rpartition(".")
            (nested.setdefault(section, {}) if section else nested)[name] = value
        path = tmp_path / "run.yaml"
        path.write_text(json.dumps(nested))
        config = load_config(path)
    else:
        config = load_config(None, [f"{key}={json.dumps(value)}" for key, value in values.items()])
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        assert getattr(getattr(config, section) if section else config, name) == value
