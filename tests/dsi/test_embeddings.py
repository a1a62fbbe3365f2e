"""Embedders: unit length, one space for all calls, and the same vectors after loading."""

import json
import sys
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsi.embeddings import (
    EmbeddingConfig,
    ModelEmbedder,
    SentenceEmbedder,
    TfidfEmbedder,
    load_embedder,
    unit_length,
)
from dsi.errors import UserError
from dsi.model.dsi_model import from_scratch
from dsi.text.tokens import tokenize, train_tokenizer

TEXTS = [
    "Whales sing in the deep sea and travel far in winter.",
    "A whale of the deep sea dives and sings.",
    "A violin has four strings.",
    "The strings of a violin are tuned in fifths.",
    "A glacier is a slow river of ice.",
    "Ice of the glacier melts into the river in summer.",
]
UNKNOWN = "xyzzy plugh"


def lengths(vectors: np.ndarray) -> np.ndarray:
    return np.linalg.norm(vectors, axis=1)


# --- configuration --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("source", dict(source="word2vec")),
        ("dimensions", dict(dimensions=0)),
        ("updates", dict(updates=0)),
        ("name", dict(source="sentence-transformers")),
        ("name", dict(source="tfidf", name="all-mpnet-base-v2")),
    ],
    ids=["source", "dimensions", "updates", "name missing", "name given"],
)
def test_configuration_refuses(field, values):
    with pytest.raises(ValueError, match=f"^{field}: "):
        EmbeddingConfig(**values)


def test_configuration_accepts():
    assert EmbeddingConfig().source == "tfidf"
    assert EmbeddingConfig(source="sentence-transformers", name="x").name == "x"


# --- TF-IDF ---------------------------------------------------------------------------------------


def test_tfidf_puts_texts_on_one_thing_together():
    vectors = TfidfEmbedder.fit(iter(TEXTS), 3, seed=0).embed(iter(TEXTS))
    assert vectors.shape == (6, 3)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(lengths(vectors), 1, rtol=1e-5)
    similar = vectors @ vectors.T - 2 * np.eye(6)
    assert similar.argmax(1).tolist() == [1, 0, 3, 2, 5, 4]


def test_tfidf_is_the_truncated_svd_of_scikit_learn():
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    weights = TfidfVectorizer(sublinear_tf=True).fit_transform(TEXTS)
    theirs = TruncatedSVD(4, algorithm="arpack", random_state=0).fit_transform(weights)
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    ours = TfidfEmbedder.fit(TEXTS, 4, seed=1).embed(TEXTS)
    # the directions have no sign of their own: compare what the vectors say about each other
    np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, atol=1e-4)


def test_tfidf_depends_on_the_seed_alone():
    one, same = (TfidfEmbedder.fit(TEXTS, 2, seed=5) for _ in range(2))
    np.testing.assert_array_equal(one.components_DV, same.components_DV)
    before: Any = np.random.get_state()  # noqa: NPY002
    TfidfEmbedder.fit(TEXTS, 2, seed=6)
    after: Any = np.random.get_state()  # noqa: NPY002
    np.testing.assert_array_equal(before[1], after[1])
    assert before[2] == after[2]


def test_text_without_a_known_word_is_zero():
    vectors = TfidfEmbedder.fit(TEXTS, 3, seed=0).embed([UNKNOWN, "", TEXTS[0]])
    assert lengths(vectors) == pytest.approx([0, 0, 1])


@pytest.mark.parametrize(
    ("texts", "width"),
    [(["alone"], 1), (["two words"], 1), (["same same"] * 4, 1), (TEXTS, 5), (["", "one", ""], 1)],
    ids=["one word", "one text", "equal texts", "six texts", "empty texts"],
)
def test_tiny_corpora_give_fewer_dimensions(texts, width):
    vectors = TfidfEmbedder.fit(texts, 128, seed=0).embed(texts)
    assert vectors.shape == (len(texts), width)
    np.testing.assert_allclose(lengths(vectors), [float(text != "") for text in texts], rtol=1e-5)


def test_direction_that_was_dropped_is_zero_and_not_noise():
    """A word on its own, orthogonal to the one direction that is kept."""
    embedder = TfidfEmbedder.fit(["sea ice"] * 9 + ["violin"], 1, seed=0)
    assert lengths(embedder.embed(["sea", "violin"])) == pytest.approx([1, 0])


def test_texts_without_words_are_refused():
    with pytest.raises(UserError, match=r"^docids\.embedding\.source: .*choose model"):
        TfidfEmbedder.fit(["", "? !"], 3, seed=0)


def test_no_text_at_all_gives_no_row():
    assert TfidfEmbedder.fit(TEXTS, 3, seed=0).embed([]).shape == (0, 3)


def test_tfidf_loads_bit_for_bit(tmp_path):
    embedder = TfidfEmbedder.fit(["Größe naïve Ärger", *TEXTS], 4, seed=0)
    embedder.save(tmp_path / "embedder")
    loaded = load_embedder(tmp_path / "embedder")
    texts = [*TEXTS, "größe", UNKNOWN]
    np.testing.assert_array_equal(loaded.embed(texts), embedder.embed(texts))
    names = {path.name for path in (tmp_path / "embedder").iterdir()}
    assert names == {"embedder.json", "words.json", "tfidf.safetensors"}


WORDS = st.sampled_from(["sea", "ice", "river", "violin", "whale", "string", "ärger", ""])


@settings(max_examples=20)
@given(st.lists(st.lists(WORDS, max_size=6).map(" ".join), min_size=1, max_size=12))
def test_tfidf_does_not_depend_on_the_company(texts):
    """A text has one vector, whatever is embedded with it; its length is one or zero."""
    embedder = TfidfEmbedder.fit([*texts, "sea ice river violin"], 4, seed=0)
    together = embedder.embed(texts)
    alone = np.concatenate([embedder.embed([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.all(np.isclose(lengths(together), 1, rtol=1e-5) | (lengths(together) == 0))


# --- a pretrained encoder -------------------------------------------------------------------------


class StandIn:
    """The part of SentenceTransformer that is used: vectors of letter counts."""

    given: ClassVar[list[tuple[tuple, dict]]] = []

    def __init__(self, *args, **options):
        StandIn.given.append((args, options))
        if args == ("missing",):
            raise OSError("missing is not a\nmodel")

    def encode(self, texts, convert_to_numpy, show_progress_bar):
        assert isinstance(texts, list)
        assert convert_to_numpy
        assert not show_progress_bar
        rows = [[3.0 * text.count(letter) for letter in "aeiou"] for text in texts]
        return np.array(rows, np.float64).reshape(len(texts), 5)


@pytest.fixture
def package(monkeypatch):
    module = SimpleNamespace(SentenceTransformer=StandIn)
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    StandIn.given.clear()


@pytest.mark.usefixtures("package")
def test_sentence_encoder_and_its_folder(tmp_path):
    embedder = SentenceEmbedder("some/name")
    vectors = embedder.embed(iter(["aa", "ae", "xyz"]))
    root = 0.5**0.5
    expected = [[1, 0, 0, 0, 0], [root, root, 0, 0, 0], [0] * 5]
    np.testing.assert_allclose(vectors, expected, rtol=1e-6)
    assert vectors.dtype == np.float32
    assert embedder.embed([]).shape == (0, 5)
    embedder.save(tmp_path / "embedder")
    assert [path.name for path in (tmp_path / "embedder").iterdir()] == ["embedder.json"]
    loaded = load_embedder(tmp_path / "embedder")
    np.testing.assert_array_equal(loaded.embed(["aa", "ae", "xyz"]), vectors)
    assert StandIn.given == [(("some/name",), {})] * 2  # code of a checkpoint is never allowed


@pytest.mark.usefixtures("package")
def test_sentence_encoder_that_cannot_be_loaded():
    with pytest.raises(UserError, match=r"^docids\.embedding\.name: cannot load 'missing' \(mis"):
        SentenceEmbedder("missing")


def test_sentence_encoder_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UserError, match=r"pip install sentence-transformers$"):
        SentenceEmbedder("some/name")


# --- our own model --------------------------------------------------------------------------------

SIZES: dict[str, Any] = dict(
    d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, dropout_rate=0.5, embedding_std=1.0
)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([*TEXTS, *map(str.lower, TEXTS)], 150)


@pytest.fixture
def embedder(tokenizer):
    model = from_scratch(3, vocab_size=len(tokenizer), code_sizes=[40, 3], **SIZES)
    return ModelEmbedder(model, tokenizer, 6, np.array([5, 7]), lowercase=True)


def test_model_vectors_are_the_mean_of_the_encoder(embedder):
    texts = [*TEXTS, "ice", "a violin", "a"]  # the short ones last: batches are sorted by length
    vectors = embedder.embed(iter(texts))
    assert vectors.dtype == np.float32
    model = embedder.model.eval()
    for text, vector in zip(texts, vectors, strict=True):
        ids = embedder.tokenizer.encode(text.lower(), add_special_tokens=False)[:6]
        ids = torch.tensor([[5, 7, *ids]])
        with torch.no_grad():
            state = model.encode(ids, torch.ones_like(ids))[0][0].mean(0)
        np.testing.assert_allclose(vector, state / state.norm(), atol=1e-5)


def test_model_is_left_as_it_was(embedder):
    assert embedder.model.training
    state = torch.get_rng_state()
    first = embedder.embed(TEXTS)
    np.testing.assert_array_equal(first, embedder.embed(TEXTS))  # no dropout
    assert embedder.model.training
    assert torch.equal(state, torch.get_rng_state())
    embedder.model.eval()
    embedder.embed(TEXTS)
    assert not embedder.model.training


def test_batches_do_not_matter(embedder, monkeypatch):
    texts = ["ice", *TEXTS, "a"] * 3
    expected = embedder.embed(texts)
    monkeypatch.setattr("dsi.embeddings.BATCH", 5)
    np.testing.assert_allclose(embedder.embed(texts), expected, atol=1e-5)
    tokens = tokenize(embedder.tokenizer, [text.lower() for text in texts])
    np.testing.assert_array_equal(embedder.embed_tokens(tokens), embedder.embed(texts))
    assert embedder.embed([]).shape == (0, 16)


def test_only_the_first_tokens_are_read(embedder):
    text = "a glacier is a slow river of ice and of snow"
    tokens = tokenize(embedder.tokenizer, [text])
    cut = embedder.tokenizer.decode(tokens[0][:6])
    assert tokenize(embedder.tokenizer, [cut])[0].tolist() == tokens[0][:6].tolist()
    np.testing.assert_allclose(*embedder.embed([text, cut]), atol=1e-5)
    embedder.length = 7
    assert np.abs(np.subtract(*embedder.embed([text, cut]))).max() > 1e-3


def test_model_loads_without_its_docid_rows(embedder, tmp_path):
    state = torch.get_rng_state()
    embedder.save(tmp_path / "embedder")
    assert torch.equal(state, torch.get_rng_state())
    assert embedder.model.code_sizes == [40, 3]
    assert len(embedder.model.docids.rows) == 43
    loaded = load_embedder(tmp_path / "embedder")
    assert isinstance(loaded, ModelEmbedder)
    assert loaded.model.code_sizes == [1]
    assert loaded.lowercase
    np.testing.assert_array_equal(loaded.embed(TEXTS), embedder.embed(TEXTS))


def test_saving_again_replaces_the_folder(embedder, tmp_path):
    embedder.save(tmp_path / "embedder")
    TfidfEmbedder.fit(TEXTS, 2, seed=0).save(tmp_path / "embedder")
    assert isinstance(load_embedder(tmp_path / "embedder"), TfidfEmbedder)
    assert not (tmp_path / "embedder" / "model").exists()


# --- broken folders -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["embedder.json", "words.json", "tfidf.safetensors"])
@pytest.mark.parametrize("text", [None, "{", '["sea"]'], ids=["missing", "cut", "other"])
def test_broken_folder_names_the_file(tmp_path, name, text):
    TfidfEmbedder.fit(TEXTS, 2, seed=0).save(tmp_path / "embedder")
    path = tmp_path / "embedder" / name
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UserError, match=r"embedder\.json: .*restore the folder"):
        load_embedder(tmp_path / "embedder")


@pytest.mark.parametrize("change", [dict(schema=2), dict(source="word2vec")], ids=str)
def test_unknown_schema_or_source(tmp_path, change):
    TfidfEmbedder.fit(TEXTS, 2, seed=0).save(tmp_path / "embedder")
    path = tmp_path / "embedder" / "embedder.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=str(next(iter(change.values())))):
        load_embedder(tmp_path / "embedder")


def test_unit_length_keeps_zero_rows():
    vectors = unit_length(np.array([[3.0, 4.0], [0.0, 0.0], [1e-7, 0.0]]), smallest=1e-5)
    np.testing.assert_allclose(vectors, [[0.6, 0.8], [0, 0], [0, 0]], rtol=1e-6)
