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
