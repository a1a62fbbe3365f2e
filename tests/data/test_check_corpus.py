"""The checker finds what is planted in a copy of the embedded corpus."""

import importlib.resources
import json
import shutil
import sys
from pathlib import Path

import pytest

from data import _measures, check_corpus
from dsi.errors import UserError

SOURCE = Path(str(importlib.resources.files("dsi"))) / "encyclopedia"


@pytest.fixture
def folder(tmp_path):
    """A copy of the corpus, small enough to be checked often: its first two topics."""
    documents = (SOURCE / "corpus.jsonl").read_text(encoding="utf-8").splitlines()[:16]
    ids = [json.loads(line)["_id"] for line in documents]
    queries = (SOURCE / "queries.jsonl").read_text(encoding="utf-8").splitlines()[:80]
    shutil.copytree(SOURCE, tmp_path / "copy")
    made = tmp_path / "copy"
    _write(made / "corpus.jsonl", documents)
    _write(made / "queries.jsonl", queries)
    for path in (made / "qrels").iterdir():
        header, *lines = path.read_text(encoding="utf-8").splitlines()
        _write(path, [header, *(line for line in lines if line.split("\t")[1] in ids)])
    (made / "streams" / "topic.json").unlink()
    corpora = [ids[:8], ids[8:10], ids[10:12], ids[12:14], ids[14:15], ids[15:]]
    (made / "streams" / "iid.json").write_text(
        json.dumps({f"D{n}": corpus for n, corpus in enumerate(corpora)})
    )
    return made


def _write(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _edit(path, line, change):
    lines = path.read_text(encoding="utf-8").splitlines()
    record = json.loads(lines[line])
    change(record)
    lines[line] = json.dumps(record)
    _write(path, lines)


def _problems(folder, strict=False):
    return "\n".join(check_corpus.check(folder, strict).problems)


def test_untouched_copy_has_no_problems(folder):
    assert _problems(folder) == ""
    rest = _problems(folder, strict=True)
    assert rest.count("\n") == 0 and "a half and five tenths" in rest  # 16 cannot be cut so


def test_repeated_id(folder):
    first = json.loads((folder / "corpus.jsonl").read_text(encoding="utf-8").splitlines()[0])
    _edit(folder / "corpus.jsonl", 1, lambda record: record.update(_id=first["_id"]))
    assert f"corpus.jsonl: id '{first['_id']}' comes twice" in _problems(folder)


def test_near_duplicate_passage(folder):
    lines = (folder / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    text = json.loads(lines[0])["text"] + " One sentence more makes no other passage."
    _edit(folder / "corpus.jsonl", 1, lambda record: record.update(text=text))
    assert "(Jaccard 0.9" in _problems(folder)


def test_short_passage_only_breaks_the_house_rules(folder):
    _edit(folder / "corpus.jsonl", 2, lambda record: record.update(text="Far too short."))
    assert _problems(folder) == ""
    assert "has 3 words, 60 to 120 are asked" in _problems(folder, strict=True)


def test_repeated_question_in_other_letters(folder):
    lines = (folder / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    text = json.loads(lines[0])["text"].upper()
    _edit(folder / "queries.jsonl", 7, lambda record: record.update(text=text))
    assert "asks the same as" in _problems(folder)


def test_copied_question(folder):
    passage = json.loads((folder / "corpus.jsonl").read_text(encoding="utf-8").splitlines()[0])
    text = passage["text"].split(". ")[0]
    _edit(folder / "queries.jsonl", 0, lambda record: record.update(text=text))
    assert "copies its passage (100% of its content words)" in _problems(folder, strict=True)


def test_kinds(folder):
    _edit(folder / "queries.jsonl", 4, lambda record: record.update(metadata={"kind": "what"}))
    assert "at least four different and one keyword are asked" in _problems(folder, strict=True)


def test_query_in_two_splits_and_unknown_ids(folder):
    train = (folder / "qrels" / "train.tsv").read_text(encoding="utf-8").splitlines()
    with open(folder / "qrels" / "test.tsv", "a", encoding="utf-8") as file:
        file.write(f"{train[1]}\nnobody-q1\t{train[1].split()[1]}\t1\n")
    problems = _problems(folder)
    assert f"query '{train[1].split()[0]}' is in train already" in problems
    assert "qrels/test.tsv:19: unknown query 'nobody-q1'" in problems


def test_question_without_judgement(folder):
    path = folder / "qrels" / "dev.tsv"
    lines = path.read_text(encoding="utf-8").splitlines()
    _write(path, lines[:-1])
    assert "is in no split" in _problems(folder)
    assert "has 4 questions, 5 are asked" in _problems(folder, strict=True)


def test_stream_with_gaps_and_repetitions(folder):
    path = folder / "streams" / "iid.json"
    corpora = json.loads(path.read_text(encoding="utf-8"))
    lost = corpora["D0"].pop()
    corpora["D5"].append(corpora["D1"][0])
    corpora["D5"].append("nobody")
    path.write_text(json.dumps(corpora), encoding="utf-8")
    problems = _problems(folder)
    assert f"'{lost}' is in no corpus" in problems
    assert f"'{corpora['D1'][0]}' comes 2 times" in problems
    assert "unknown document 'nobody'" in problems
    path.write_text('{"D0": ["a"],\n "D2": ["b"]}', encoding="utf-8")
    assert "streams/iid.json:2: D1 is missing before D2" in _problems(folder)


def test_stream_that_removes_and_replaces(folder):
    path = folder / "streams" / "iid.json"
    corpora = json.loads(path.read_text(encoding="utf-8"))
    first, text = corpora["D0"][0], corpora["D5"].pop()
    corpora["D6"] = {"remove": [corpora["D0"][1]], "replace": {first: text}}
    path.write_text(json.dumps(corpora), encoding="utf-8")
    assert "streams/iid.json" not in _problems(folder), "the row of a new text is in use"
    corpora["D6"]["remove"].append("nobody")
    path.write_text(json.dumps(corpora), encoding="utf-8")
    assert "streams/iid.json: unknown document 'nobody'" in _problems(folder)


def test_exit_status_and_table(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["check_corpus", str(folder)])
    with pytest.raises(SystemExit) as stop:
        check_corpus.main()
    assert stop.value.code == 0
    assert "problems" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["check_corpus", str(folder), "--strict"])
    with pytest.raises(SystemExit) as stop:
        check_corpus.main()
    assert stop.value.code == 1
    assert "a half and five tenths are asked" in capsys.readouterr().out


def test_broken_line_is_named(folder):
    with open(folder / "corpus.jsonl", "a", encoding="utf-8") as file:
        file.write('{"_id": "x", \n')
    with pytest.raises(UserError, match=r"corpus.jsonl:17: broken JSON"):
        check_corpus.check(folder)


def test_overlap_counts_content_words_whatever_their_endings():
    passage = "Two engineers measured waves in Berlin."
    assert _measures.overlap("Who was measuring a wave?", passage) == 1.0
    assert _measures.overlap("Did the engineer see a lighthouse?", passage) == 1 / 3
    assert _measures.overlap("What is it?", passage) == 0.0


def test_near_duplicates_is_the_jaccard_of_all_pairs():
    texts = ["a b c d e f g", "a b c d e f h", "x y z", "x y z", "b c d e f"]
    brute = []
    for one in range(len(texts)):
        for other in range(one + 1, len(texts)):
            s, t = _measures.shingles(texts[one]), _measures.shingles(texts[other])
            if s & t:
                brute.append((len(s & t) / len(s | t), one, other))
    assert _measures.near_duplicates(texts, 0.0) == sorted(brute, reverse=True)
    assert [pair[1:] for pair in _measures.near_duplicates(texts, 0.9)] == [(2, 3)]


def test_bm25_finds_nothing_among_texts_without_words():
    assert _measures.bm25_hits(["...", "?!"], ["whale", "..."], [{0}, {1}]) == (0.0, 0.0)
