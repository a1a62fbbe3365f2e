"""From a configuration to corpora, tokenizer and model: what depends on what."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from continual.run.material import make_model, prepare, read_parts
from dsi.corpus.corpus import read_corpus
from dsi.errors import UserError
from dsi.index import SearchIndex
from dsi.text.tokens import prompt_ids


@pytest.fixture
def write(lab, tmp_path):
    """A copy of the corpus in which ``change`` has edited each JSON line of a file."""

    def make(name: str, file: str, change) -> Path:
        folder = lab.write_stream(tmp_path / name)
        lines = [json.loads(line) for line in (folder / file).read_text("utf-8").splitlines()]
        changed = [change(dict(line)) for line in lines]
        assert sum(a != b for a, b in zip(lines, changed, strict=True)) > 0
        (folder / file).write_text("".join(json.dumps(line) + "\n" for line in changed), "utf-8")
        return folder

    return make


def tokenizer_bytes(lab, monkeypatch, folder: Path, *settings: str) -> bytes:
    """tokenizer.json as trained, with an empty cache."""
    with monkeypatch.context() as patch:
        cache = folder.parent / f"cache-{len(list(folder.parent.iterdir()))}"
        patch.setenv("DSI_CACHE", str(cache))
        prepare(lab.config(f"data.corpus={folder}", *settings))
        paths = list(cache.glob("tokenizers/*/tokenizer.json"))
        assert len(paths) == 1
        return paths[0].read_bytes()


def add_text(of: set[str], key: str = "_id"):
    """An edit: words of their own for the documents or queries of a set."""

    def change(line: dict) -> dict:
        if line[key] in of:
            line["text"] += " zyzzyva zyzzyva quixotic zyzzyva"
        return line

    return change


def test_the_tokenizer_is_made_of_the_first_corpus_alone(lab, tmp_path, monkeypatch, write):
    value = json.loads((lab.corpus / "streams" / "three.json").read_text("utf-8"))
    early, late = set(value["D0"]), {*value["D1"], *value["D2"]}
    train = {f"train-{key}-{k}" for key in early for k in (0, 1)}
    heldout = {f"{split}-{key}-0" for split in ("dev", "test") for key in early | late}
    heldout |= {f"train-{key}-{k}" for key in late for k in (0, 1)}

    def trained(folder: Path) -> bytes:
        return tokenizer_bytes(lab, monkeypatch, folder)

    plain = trained(lab.write_stream(tmp_path / "plain"))
    assert trained(lab.write_stream(tmp_path / "again")) == plain
    assert trained(write("later-texts", "corpus.jsonl", add_text(late))) == plain
    assert trained(write("other-queries", "queries.jsonl", add_text(heldout))) == plain
    assert trained(write("first-texts", "corpus.jsonl", add_text(early))) != plain
    assert trained(write("first-queries", "queries.jsonl", add_text(train))) != plain


@pytest.mark.parametrize(
    "setting",
    ["data.title=false", "tokenizer.vocabulary_size=150", "tokenizer.punctuation=drop"],
)
def test_the_tokenizer_follows_the_settings(lab, tmp_path, monkeypatch, setting):
    folder = lab.write_stream(tmp_path / "corpus")
    one = tokenizer_bytes(lab, monkeypatch, folder)
    assert tokenizer_bytes(lab, monkeypatch, folder, setting) != one


def test_tokenizers_with_and_without_punctuation_are_kept_apart(lab, tmp_path, monkeypatch, write):
    """In one cache, with the tokens of both."""

    def change(line):
        return {**line, "text": f'{line["text"]}. the, shock", shock!'}

    monkeypatch.setenv("DSI_CACHE", str(tmp_path / "cache"))
    folder = write("spoken", "corpus.jsonl", change)
    found = {}
    for how in ("keep", "drop", "keep", "drop"):
        made = prepare(lab.config(f"data.corpus={folder}", f"tokenizer.punctuation={how}"))
        values = made.stream.tokens.values.tolist()
        assert found.setdefault(how, values) == values
        two, one = (prompt_ids(made.tokenizer, text) for text in ('shock",', "shock"))
        assert (two.tolist() == one.tolist()) == (how == "drop")
    assert found["keep"] != found["drop"]
    assert len(list((tmp_path / "cache" / "tokenizers").iterdir())) == 2


def test_what_is_asked_of_a_saved_index_has_no_punctuation_either(lab):
    run = lab.kept("tokenizer.punctuation=drop")
    query = lab.per_query(run, 1)[0]["text"]
    spoken = f'"{query.replace(" ", ", ")}"?!'
    assert spoken != query
    for folder in (run, run / "stages" / "00"):
        index = SearchIndex.load(folder)
        scores = [
            [(result.document_id, result.score) for result in index.search(text, 5)]
            for text in (query, spoken)
        ]
        assert scores[0] == scores[1] and len(scores[0]) == 5
    kept = SearchIndex.load(lab.kept())
    one, other = (kept.search(text, 5)[0].score for text in (query, spoken))
    assert one != other


def test_the_tokenizer_follows_what_the_first_corpus_is(lab):
    sizes = {
        name: len(prepare(lab.config(f"data.stream={name}")).tokenizer) for name in ("two", "one")
    }
    assert len(prepare(lab.config()).tokenizer) == sizes["two"], "the same D_0"
    texts = {
        name: prepare(lab.config(f"data.stream={name}")).tokenizer.backend_tokenizer.to_str()
        for name in ("three", "two", "one")
    }
    assert texts["three"] == texts["two"] != texts["one"]


def test_a_run_keeps_its_tokenizer(lab, tmp_path):
    config = lab.config()
    own = prepare(lab.config("tokenizer.vocabulary_size=120")).tokenizer
    own.save_pretrained(tmp_path / "tokenizer")
    found = prepare(config, tmp_path / "tokenizer")
    assert len(found.tokenizer) == len(own)
    assert found.stream.tokenizer is found.tokenizer
    # a run that stopped before it was written trains the same one again
    assert len(prepare(config, tmp_path / "absent").tokenizer) == len(prepare(config).tokenizer)
    local = prepare(lab.config(f"tokenizer.source={tmp_path / 'tokenizer'}"))
    assert local.tokenizer.get_vocab() == own.get_vocab()


def test_the_set_view_is_tokenized_where_it_is_used(lab):
    views = "views=[{{name: first, weight: 1}}, {{name: set, weight: {}}}]"
    assert prepare(lab.config(views.format(0))).stream.set_tokens is None
    assert prepare(lab.config(views.format(1))).stream.set_tokens is not None


def test_warnings_say_what_cannot_be_measured(lab, tmp_path):
    folder = lab.write_stream(tmp_path / "corpus")
    assert prepare(lab.config(f"data.corpus={folder}")).warnings == []
    (folder / "qrels" / "test.tsv").unlink()
    warnings = prepare(lab.config(f"data.corpus={folder}")).warnings
    assert len(warnings) == 1
    assert "no test query" in warnings[0]


def test_an_added_corpus_is_the_next_stage(lab, tmp_path):
    config = lab.config()
    folder = lab.write_stream(tmp_path / "more", (4,), first=50)
    entry = {"corpus": str(folder), "content_hash": read_corpus(folder).content_hash}
    before, after = prepare(config).stream, prepare(config, added=[entry]).stream
    assert len(after) == len(before) + 1
    assert after.document_ids(0, 30) == before.document_ids(0, 30)
    assert after.document_ids(30, 34) == ["d50", "d51", "d52", "d53"]
    assert after.fingerprint(len(before)) == before.fingerprint()
    assert after.tokenizer.get_vocab() == before.tokenizer.get_vocab()


def test_an_added_corpus_must_be_what_it_was(lab, tmp_path):
    folder = lab.write_stream(tmp_path / "more", (4,), first=50)
    entry = {"corpus": str(folder), "content_hash": "0" * 64}
    with pytest.raises(UserError, match="has changed since it was added to the run; restore it"):
        read_parts(lab.config(), [entry])
    again = lab.write_stream(tmp_path / "again", (4,), first=28)
    with pytest.raises(UserError, match="again: document 'd28' is in corpus 'corpus' already"):
        read_parts(lab.config(), [{"corpus": str(again)}])
    fine = {"corpus": str(folder)}
    with pytest.raises(UserError, match="more: document 'd50' is in corpus 'more' already"):
        read_parts(lab.config(), [fine, fine])


def test_a_model_is_a_function_of_seed_and_stage(lab):
    config = lab.config()
    tokenizer = prepare(config).tokenizer
    state = torch.get_rng_state()
    one = make_model(config, tokenizer, [5], stage=0)
    assert torch.equal(torch.get_rng_state(), state), "no global state"
    same = make_model(config, tokenizer, [5], stage=0)
    later = make_model(config, tokenizer, [5], stage=1)
    other = make_model(dataclasses.replace(config, seed=1), tokenizer, [5], stage=0)
    assert torch.equal(one.docids.rows, same.docids.rows)
    assert not torch.equal(one.docids.rows, later.docids.rows)
    assert not torch.equal(one.docids.rows, other.docids.rows)
    assert one.docids.rows.shape == (5, 16)
    assert one.config.vocab_size == len(tokenizer)
    assert (one.config.pad_token_id, one.config.eos_token_id) == (0, 1)
    spread = float(one.get_input_embeddings().weight.detach().std())
    assert spread == pytest.approx(config.model.embedding_std, rel=0.2)


def test_a_checkpoint_brings_its_own_sizes(lab, tmp_path):
    tokenizer = prepare(lab.config()).tokenizer
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    sizes: dict[str, Any] = dict(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    for name, vocabulary in {"fits": len(tokenizer) + 3, "small": len(tokenizer) - 1}.items():
        config = T5Config(vocab_size=vocabulary, **sizes)
        T5ForConditionalGeneration(config).save_pretrained(tmp_path / name)
    # the tiny run's sizes are settings, and a checkpoint has its own
    plain = [f"{key}={value}" for key, value in (("d_model", 128), ("num_heads", 4), ("d_ff", 256))]
    plain = [f"model.{setting}" for setting in plain]
    settings = [f"tokenizer.source={tmp_path / 'tokenizer'}", "model.dropout=0.3", *plain]
    config = lab.config(f"model.source={tmp_path / 'fits'}", *settings)
    model = make_model(config, tokenizer, [5], stage=0)
    loaded = T5ForConditionalGeneration.from_pretrained(tmp_path / "fits")
    embedding = model.get_input_embeddings().weight
    assert torch.equal(embedding, loaded.get_input_embeddings().weight)  # type: ignore[arg-type]
    assert (model.docids.rows.shape, model.config.dropout_rate) == ((5, 8), 0.3)
    config = lab.config(f"model.source={tmp_path / 'small'}", *settings)
    with pytest.raises(UserError, match=r"^tokenizer\.source: .* use the checkpoint's own"):
        make_model(config, tokenizer, [5], stage=0)
