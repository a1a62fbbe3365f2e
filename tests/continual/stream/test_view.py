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
from dsi.model.dsi_model import from_scratch
from dsi.search.forward import Inference
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


def test_states_are_those_of_each_text_alone_in_the_order_asked_for(lab, tmp_path, stream):
    """Whatever the batch: three at a time, of unequal lengths."""
    sizes = dict(vocab_size=len(stream.tokenizer), d_model=16, d_kv=8, num_heads=2, d_ff=32)
    model = from_scratch(0, num_layers=1, num_decoder_layers=1, code_sizes=[4], **sizes)
    config = lab.config("evaluation.batch_size=3")
    view = StageView(0, stream, stream.tokenizer, config, tmp_path, model, NOTHING)
    rows = np.array([5, 0, 9, 2, 5])
    assert len(set(stream.tokens.lengths_of(rows).tolist())) > 2
    found, inference = view.states(stream.tokens, rows), Inference(model)
    assert found.shape == (5, 16) and not found.requires_grad
    for state, row in zip(found, rows.tolist(), strict=True):
        ids = torch.from_numpy(stream.tokens[row].astype(np.int64))[None]
        alone = inference.query_states(ids, torch.ones_like(ids))[0]
        torch.testing.assert_close(state, alone, rtol=1e-4, atol=1e-5)


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
