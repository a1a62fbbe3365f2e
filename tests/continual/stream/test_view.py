"""What a component is given at the start of a stage."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from continual.run.material import prepare
from continual.stream.stream import CorpusRows, Stream
from continual.stream.view import QueryPool, StageView, true_queries
from dsi.corpus.corpus import read_corpus, write_corpus
from dsi.text.tokens import prompt_ids

NOTHING: Any = None


@pytest.fixture(scope="module")
def stream(lab):
    return prepare(lab.config()).stream


def test_true_queries_are_those_of_the_first_corpus(stream):
    pool = true_queries(stream, 0.25)
    assert pool is not None
    assert (pool.weight, pool.by_document) == (0.25, False)
    assert len(pool.tokens) == len(pool.documents) == 36
    assert set(pool.documents.tolist()) == set(range(18)), "no later document is asked for"
    tokens, _ = stream.train_queries(0)
    assert np.array_equal(pool.tokens.values, tokens.values)


def test_a_corpus_without_train_queries_has_none(tmp_path, stream):
    documents = [{"_id": "x", "title": "", "text": "words"}]
    corpus = read_corpus(write_corpus(tmp_path / "c", documents, [], {}))
    assert true_queries(Stream([CorpusRows(corpus, np.arange(1))], stream.tokenizer)) is None


def test_a_view_works_without_a_trainer(lab, tmp_path, stream):
    view = StageView(1, stream, stream.tokenizer, lab.config(), tmp_path, NOTHING, NOTHING)
    assert view.is_main
    assert view.wait() is None
    assert view.log({"any": 1}) is None
    logged = []
    view = StageView(
        1, stream, stream.tokenizer, lab.config(), tmp_path, NOTHING, NOTHING, log=logged.append
    )
    view.log({"any": 1})
    assert logged == [{"any": 1}]


@pytest.mark.parametrize("name", ["stage", "stream", "model"])
def test_a_component_cannot_change_its_view(lab, tmp_path, stream, name):
    view = StageView(1, stream, stream.tokenizer, lab.config(), tmp_path, NOTHING, NOTHING)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(view, name, None)


def test_a_pool_cannot_be_changed(stream):
    pool = QueryPool("p", *stream.train_queries(0), weight=1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        pool.weight = 2.0  # type: ignore[misc]


def test_examples_stand_behind_a_prompt(lab, tmp_path, stream):
    view = StageView(1, stream, stream.tokenizer, lab.config(), tmp_path, NOTHING, NOTHING)
    tokens, documents = stream.train_queries(0)
    plain = list(view.examples(tokens, documents, 20))
    asked = list(view.examples(tokens, documents, 20, "find"))
    before = prompt_ids(stream.tokenizer, "find").tolist()
    assert before and [len(batch.documents) for batch in asked] == [20, 16]
    for one, other in zip(plain, asked, strict=True):
        assert torch.equal(one.documents, other.documents)
        assert torch.equal(one.input_ids, other.input_ids[:, len(before) :])
        assert other.input_ids[:, : len(before)].tolist() == [before] * len(other.documents)
