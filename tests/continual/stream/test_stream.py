"""What arrives when: U_n is a prefix, and every query belongs to the corpora that answer it."""

import json

import numpy as np
import pytest

from continual.run.material import prepare, read_parts
from continual.stream.stream import CorpusRows, Stream
from dsi.corpus.corpus import document_texts, read_corpus, write_corpus
from dsi.text.tokens import tokenize
from dsi.text.views import set_text


@pytest.fixture(scope="module")
def material(lab):
    return prepare(lab.config())


@pytest.fixture(scope="module")
def stream(material):
    return material.stream


@pytest.fixture(scope="module")
def ids(lab) -> list[list[str]]:
    """The document ids of D_0, D_1, ... as the file says."""
    value = json.loads((lab.corpus / "streams" / "three.json").read_text("utf-8"))
    return [value[f"D{n}"] for n in range(len(value))]


def shuffled(stream: Stream, order: list[list[str]]) -> Stream:
    """A stream over the same corpus in another order."""
    corpus = stream.parts[0].corpus
    place = {key: row for row, key in enumerate(corpus.documents["id"].to_pylist())}
    parts = [CorpusRows(corpus, np.array([place[key] for key in keys])) for keys in order]
    return Stream(parts, stream.tokenizer)


def test_everything_seen_is_a_prefix(stream, ids):
    every = [key for keys in ids for key in keys]
    assert len(stream) == len(ids)
    assert stream.document_ids(0, stream.count(len(ids) - 1)) == every
    for stage in range(len(ids)):
        count = sum(len(keys) for keys in ids[: stage + 1])
        assert stream.count(stage) == count
        assert stream.document_ids(0, count) == every[:count]
        start = count - len(ids[stage])
        assert stream.document_ids(start, count) == ids[stage]
    assert stream.document_ids(3, 3) == []


def test_every_number_has_its_corpus(stream, ids):
    expected = np.repeat(np.arange(len(ids)), [len(keys) for keys in ids])
    assert stream.corpus_of(np.arange(len(expected))).tolist() == expected.tolist()


def test_texts_titles_and_tokens_have_the_same_order(stream, ids):
    order = [keys[::-1] for keys in ids[::-1]]
    for one in (stream, shuffled(stream, order)):
        count = one.count(len(one) - 1)
        table = one.parts[0].corpus.documents
        texts = list(document_texts(table, title=True, lowercase=True))
        of = dict(zip(table["id"].to_pylist(), texts, strict=True))
        found = list(one.texts(0, count))
        assert found == [of[key] for key in one.document_ids(0, count)]
        assert list(one.texts(5, 20)) == found[5:20], "across the border of two corpora"
        titles = one.titles(0, count)
        assert all(text.startswith(title) for text, title in zip(found, titles, strict=True))
        tokens = tokenize(one.tokenizer, found)
        assert np.array_equal(one.tokens.values, tokens.values)
        assert np.array_equal(one.tokens.offsets, tokens.offsets)


def test_the_set_view_has_tokens_of_its_own(stream):
    parts, tokenizer = stream.parts, stream.tokenizer
    one = Stream(parts, tokenizer, title=False, lowercase=False, with_set_view=True)
    texts = [set_text(text) for text in one.texts(0, one.count(2))]
    assert one.set_tokens is not None
    assert np.array_equal(one.set_tokens.values, tokenize(tokenizer, texts).values)
    assert stream.set_tokens is None
    assert not np.array_equal(one.tokens.values, stream.tokens.values), "another text, other tokens"


def test_train_queries_are_those_of_one_corpus(lab, stream, ids):
    for n, keys in enumerate(ids):
        texts, documents = stream.train_pairs(n)
        assert all(lab.marker("train", n) in text for text in texts)
        low, high = stream.offsets[n], stream.offsets[n + 1]
        assert sorted(documents) == sorted(2 * list(range(low, high)))
        asked = stream.document_ids(0, stream.count(2))
        assert {asked[number] for number in documents} == set(keys)
        tokens, again = stream.train_queries(n)
        assert again.tolist() == documents.tolist()
        assert np.array_equal(tokens.values, tokenize(stream.tokenizer, texts).values)


def test_numbers_follow_the_order_of_arrival(stream, ids):
    """Whatever the order, a query asks for the same documents."""
    judgements = {
        key: {stream.document_ids(0, 30)[number] for number in gold}
        for n in range(3)
        for key, gold in zip(*of(stream.judged_queries("test", n)), strict=True)
        if len(gold) == 1 and key != "test-d00-0"
    }
    other = shuffled(stream, [ids[2][::-1], ids[0][::2] + ids[1], ids[0][1::2]])
    for n in range(3):
        judged = other.judged_queries("test", n)
        for key, gold in zip(*of(judged), strict=True):
            assert np.all(other.corpus_of(gold) == n)
            if key in judgements:
                keys = {other.document_ids(0, 30)[number] for number in gold}
                assert keys == judgements[key]


def of(judged) -> tuple[list[str], list[np.ndarray]]:
    return judged.ids, judged.gold


def test_a_query_with_several_answers_is_asked_once_per_corpus(lab, stream, ids):
    first, second, third = (stream.judged_queries("test", n) for n in range(3))
    assert [len(judged) for judged in (first, second, third)] == [18, 7, 6]
    gold = dict(zip(*of(first), strict=True))
    assert gold["test-d00-0"].tolist() == [0, 1]
    assert gold["test-d01-0"].tolist() == [1]
    assert dict(zip(*of(second), strict=True))["test-d00-0"].tolist() == [18]
    assert "test-d00-0" not in third.ids
    for n, judged in enumerate((first, second, third)):
        assert len(set(judged.ids)) == len(judged.ids) == len(judged.tokens) == len(judged.gold)
        assert all(len(own) and np.all(stream.corpus_of(own) == n) for own in judged.gold)
        assert np.array_equal(judged.tokens.values, tokenize(stream.tokenizer, judged.texts).values)
        assert {key.split("-")[0] for key in judged.ids} == {"test"}
    assert stream.judged_queries("dev", 1).ids == [f"dev-{key}-0" for key in ids[1]]


def test_a_corpus_without_queries(tmp_path, stream):
    documents = [{"_id": f"x{i}", "title": "", "text": f"words {i}"} for i in range(3)]
    corpus = read_corpus(write_corpus(tmp_path / "c", documents, [], {}))
    one = Stream([*stream.parts, CorpusRows(corpus, np.arange(3))], stream.tokenizer)
    assert len(one.judged_queries("test", 3)) == 0
    assert one.judged_queries("test", 3).gold == []
    texts, numbers = one.train_pairs(3)
    assert (texts, len(numbers)) == ([], 0)
    assert len(one.train_queries(3)[0]) == 0
    # numbers go on where the stream ended, and older ones stay
    assert one.document_ids(29, 33) == ["d29", "x0", "x1", "x2"]
    assert list(one.texts(30, 33)) == ["words 0", "words 1", "words 2"]
    assert one.judged_queries("test", 1).gold[0].tolist() == [18]
    assert one.fingerprint(3) == stream.fingerprint()


def test_queries_are_read_as_documents_are(tmp_path, stream):
    documents = [{"_id": "a", "title": "T", "text": "Some  TEXT"}]
    queries = [{"_id": "q", "text": "  What \n IS it  "}]
    corpus = read_corpus(
        write_corpus(tmp_path / "c", documents, queries, {"train": [("q", "a", 1)]})
    )
    parts = [CorpusRows(corpus, np.arange(1))]
    assert Stream(parts, stream.tokenizer).train_pairs(0)[0] == ["what is it"]
    plain = Stream(parts, stream.tokenizer, title=False, lowercase=False)
    assert plain.train_pairs(0)[0] == ["What IS it"]
    assert list(plain.texts(0, 1)) == ["Some TEXT"]


def test_the_fingerprint_is_about_order_and_content(lab, tmp_path, stream, ids):
    same = shuffled(stream, ids)
    assert same.fingerprint() == stream.fingerprint()
    others = [
        [ids[0][::-1], ids[1], ids[2]],
        [ids[0], ids[2], ids[1]],
        [ids[0][:-1], [ids[0][-1], *ids[1]], ids[2]],
        [[*ids[0], ids[1][0]], ids[1][1:], ids[2]],
        [ids[0], ids[1]],
    ]
    found = {shuffled(stream, order).fingerprint() for order in others}
    assert len(found | {stream.fingerprint()}) == len(others) + 1
    later = shuffled(stream, [ids[0], ids[2], ids[1]])
    assert later.fingerprint(1) == stream.fingerprint(1), "of the first corpora alone"
    assert later.fingerprint(2) != stream.fingerprint(2)
    folder = lab.write_stream(tmp_path / "other", first=1)
    parts, _ = read_parts(lab.config(f"data.corpus={folder}"))
    other = Stream(parts, stream.tokenizer)
    assert other.fingerprint() != stream.fingerprint(), "other documents in the same rows"


@pytest.fixture(scope="module")
def changed(lab, changing) -> Stream:
    """See CHANGES in tests/continual/conftest.py."""
    return prepare(lab.config(*changing, "views=[{name: set, weight: 1}]")).stream


GONE = [set(), {1, 5}, {1, 5, 3}, {1, 5, 3, 18}]


def test_a_stream_without_changes_is_a_prefix_of_itself(stream):
    for stage in range(3):
        count = stream.count(stage)
        assert stream.is_whole(stage) and stream.present(stage).all()
        assert stream.members(stage).tolist() == list(range(count))
        assert stream.changed(stage).tolist() == stream.added(stage).tolist()
        assert stream.added(stage).tolist() == list(range(*stream.range(stage)))
        assert len(stream.removed(stage)) == len(stream.replaced(stage)) == 0
        assert stream.tokens_at(stage) is stream.tokens, "no copy"


def test_what_is_there_in_a_stage(changed):
    assert [changed.range(n) for n in range(4)] == [(0, 18), (18, 24), (24, 24), (24, 30)]
    assert [changed.count(n) for n in range(4)] == [18, 24, 24, 30]
    for stage, gone in enumerate(GONE):
        expected = [n for n in range(changed.count(stage)) if n not in gone]
        assert changed.members(stage).tolist() == expected
        assert np.flatnonzero(changed.present(stage)).tolist() == expected
        assert changed.is_whole(stage) == (not gone)
    assert [changed.removed(n).tolist() for n in range(4)] == [[], [1, 5], [3], [18]]
    assert [changed.replaced(n).tolist() for n in range(4)] == [[], [2], [], [2, 19]]
    assert [changed.changed(n).tolist() for n in range(1, 4)] == [
        [2, *range(18, 24)],
        [],
        [2, 19, *range(24, 30)],
    ]
    # ids and corpora stay those of the arrival
    assert changed.ids_of(np.array([19, 2, 25])) == ["d19", "d02", "d25"]
    assert changed.document_ids(0, 30) == [f"d{n:02d}" for n in range(30)]
    assert changed.corpus_of(np.array([2, 19, 24])).tolist() == [0, 1, 3]


def test_a_replaced_document_has_its_new_text_from_its_stage_on(changed):
    table = changed.parts[0].corpus.documents
    all_texts = dict(
        zip(
            table["id"].to_pylist(),
            document_texts(table, title=True, lowercase=True),
            strict=True,
        )
    )
    names = {0: {}, 1: {2: "t0"}, 2: {2: "t0"}, 3: {2: "t1", 19: "t2"}}
    for stage, new in names.items():
        numbers = np.arange(changed.count(stage))
        rows = [new.get(n, f"d{n:02d}") for n in numbers.tolist()]
        expected = [all_texts[row] for row in rows]
        assert list(changed.texts_at(numbers, stage)) == expected
        assert list(changed.texts_at(numbers[::-1], stage)) == expected[::-1]
        for found, texts in (
            (changed.tokens_at(stage), expected),
            (changed.set_tokens_at(stage), map(set_text, expected)),
        ):
            tokens = tokenize(changed.tokenizer, texts)
            assert np.array_equal(found.values[: found.offsets[len(rows)]], tokens.values)
            assert np.array_equal(found.offsets[: len(rows) + 1], tokens.offsets)
    assert list(changed.texts(0, 30)) == list(changed.texts_at(np.arange(30), 0)), "as they arrived"
    assert changed.tokens_at(0) is changed.tokens
    assert changed.tokens_at(1) is changed.tokens_at(2), "made once"
    since = changed.text_stages(np.arange(30), 3)
    assert {n: since[n] for n in (0, 2, 19, 20, 24)} == {0: 0, 2: 3, 19: 3, 20: 1, 24: 3}


def test_queries_are_those_that_still_have_an_answer(changed):
    first, second = changed.judged_queries("test", 0), changed.judged_queries("test", 1)
    assert first.among(changed.present(0)) is first
    # d00's query has the answers d00 and d01 in D0, and d18 in D1
    later = first.among(changed.present(2))
    assert "test-d01-0" not in later.ids and "test-d03-0" not in later.ids
    assert len(later) == 18 - 3
    gold = dict(zip(*of(later), strict=True))
    assert gold["test-d00-0"].tolist() == [0]
    assert gold["test-d02-0"].tolist() == [2], "a replaced document keeps its queries"
    place = later.ids.index("test-d06-0")
    assert later.texts[place] == first.texts[first.ids.index("test-d06-0")]
    assert np.array_equal(later.tokens[place], first.tokens[first.ids.index("test-d06-0")])
    assert "test-d00-0" in second.ids and "test-d00-0" not in second.among(changed.present(3)).ids
    texts, documents = changed.train_pairs(0)
    tokens, present = changed.train_queries(0, 2)
    assert present.tolist() == [n for n in documents.tolist() if n not in GONE[2]]
    assert len(tokens) == len(present) == len(texts) - 6
    assert changed.train_queries(0, 0)[1].tolist() == documents.tolist()


def test_the_fingerprint_is_about_changes_too(changed):
    found = {changed.fingerprint()}
    first, second, third, last = changed.parts
    for part in (
        CorpusRows(last.corpus, last.rows, last.removed, last.replaced[:1], last.texts[:1]),
        CorpusRows(last.corpus, last.rows, last.removed, last.replaced, last.texts[::-1]),
        CorpusRows(last.corpus, last.rows, np.array([19]), last.replaced[:1], last.texts[:1]),
        CorpusRows(last.corpus, last.rows),
    ):
        other = Stream([first, second, third, part], changed.tokenizer)
        assert other.fingerprint(3) == changed.fingerprint(3)
        found.add(other.fingerprint())
    assert len(found) == 5
