import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, T5Config, T5ForConditionalGeneration

import dsi.queries.generator as module
from dsi.errors import UserError
from dsi.queries.generator import GeneratorConfig, QueryGenerator
from dsi.queries.sampling import DecodingConfig
from dsi.text.tokens import train_tokenizer

TEXTS = [
    "the heron waits in the shallow river for a silver fish",
    "the mill on the hill grinds barley and rye for three villages",
    "the town clock has two faces and is slow in winter",
    "a baker sells dark bread and seven kinds of cake at the gate",
    "the ferry crosses the lake twice a day except on sundays",
    "an old map of the harbour shows a tower that fell in a storm",
    "bees sleep through the frost in a hive of straw",
    "the choir rehearses every thursday in the cold chapel",
]
QUERIES = [
    "what does the heron eat",
    "what is ground in the mill",
    "when is the clock slow",
    "how many kinds of cake are there",
    "when does the ferry rest",
    "why did the tower fall",
    "where do bees sleep",
    "which day is the rehearsal",
]
KEYS = [f"key-{i}" for i in range(8)]
TINY = GeneratorConfig(
    d_model=32,
    num_layers=1,
    num_decoder_layers=1,
    num_heads=2,
    d_ff=64,
    updates=12,
    batch_size=8,
    document_length=40,
    query_length=16,
)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS + QUERIES, 200)


@pytest.fixture(scope="module")
def generator(tokenizer):
    return QueryGenerator.train(TEXTS, QUERIES, tokenizer, TINY, seed=1)


@pytest.fixture
def sampled(generator):
    """The shared generator, with any sampling; put back afterwards."""
    yield generator
    generator.sampling = DecodingConfig()


def test_same_seed_same_weights_and_the_global_generator_is_untouched(tokenizer, generator):
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = QueryGenerator.train(TEXTS, QUERIES, tokenizer, TINY, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    assert again.fingerprint() == generator.fingerprint()
    other = QueryGenerator.train(TEXTS, QUERIES, tokenizer, TINY, seed=2)
    assert other.fingerprint() != generator.fingerprint()
    copied = replace(TINY, copy_updates=3, dropout=0.2)
    runs = [QueryGenerator.train(TEXTS, QUERIES, tokenizer, copied, seed=1) for _ in range(2)]
    assert runs[0].fingerprint() == runs[1].fingerprint() != generator.fingerprint()


def test_queries_do_not_depend_on_the_batch_or_its_order(sampled):
    sampled.sampling = DecodingConfig(top_k=0, temperature=1.2)
    whole = sampled.generate(TEXTS, KEYS, 4, seed=0)
    assert [len(set(own)) for own in whole] == [4] * 8
    for rows in (4, 8, 4096):
        assert sampled.generate(TEXTS, KEYS, 4, seed=0, rows=rows) == whole
    assert sampled.generate(TEXTS[::-1], KEYS[::-1], 4, seed=0) == whole[::-1]
    assert sampled.generate(TEXTS[2:3], KEYS[2:3], 4, seed=0) == whole[2:3]
    assert sampled.generate(TEXTS, KEYS, 4, seed=1) != whole
    assert sampled.generate(TEXTS[:1], ["other"], 4, seed=0)[0] != whole[0]


def test_several_processes_write_what_one_writes(sampled, monkeypatch):
    expected = sampled.generate(TEXTS, KEYS, 3, seed=0, rows=6)
    barrier, mailbox, results = threading.Barrier(3), {}, {}

    class Rank:
        num_processes = 3

        def __init__(self, index):
            self.process_index = index

    def gather_objects(rank, items):
        mailbox[rank.process_index] = items
        barrier.wait(60)
        everything = [item for index in sorted(mailbox) for item in mailbox[index]]
        barrier.wait(60)
        return everything

    monkeypatch.setattr(module, "gather_objects", gather_objects)

    def work(index):
        results[index] = sampled.generate(TEXTS, KEYS, 3, 0, rows=6, accelerator=Rank(index))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    [thread.start() for thread in threads]
    [thread.join(60) for thread in threads]
    assert results == {0: expected, 1: expected, 2: expected}


def test_as_many_samples_at_once_as_there_is_room_for(generator, monkeypatch):
    config = generator.model.config
    row = 2 * 4 * config.num_decoder_layers * config.d_model * generator.config.query_length
    monkeypatch.setattr(module, "CACHE_BYTES", (100 * row + 1, 1))
    assert generator._room() == 100
    monkeypatch.setattr(module, "CACHE_BYTES", (10**6 * row, 1))
    assert generator._room() == module.MOST_ROWS[0]
    monkeypatch.setattr(module, "CACHE_BYTES", (1, 1))
    assert generator._room() == 1


def test_never_special_tokens_even_when_the_model_prefers_them(tokenizer):
    generator = QueryGenerator.train(TEXTS, QUERIES, tokenizer, replace(TINY, updates=1))
    special = [tokenizer.pad_token_id, tokenizer.unk_token_id]
    special += tokenizer.convert_tokens_to_ids([f"<extra_id_{i}>" for i in range(32)])
    assert all(generator.forbidden[special]) and not generator.forbidden[tokenizer.eos_token_id]
    written = []
    sample = module.sample_tokens

    def spy(*args, **kwargs):
        written.extend(sample(*args, **kwargs))
        return written[-len(args[1]) :]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "sample_tokens", spy)
        generator.sampling = DecodingConfig(top_k=0, temperature=20.0)
        generator.generate(TEXTS, KEYS, 20, seed=0)
    ids = {i for own in written for row in own for i in row}
    assert len(ids) > 50 and not ids & {*special, tokenizer.eos_token_id}
    assert min(len(row) for own in written for row in own) >= 1


def test_learns_eight_pairs_by_heart_without_any_copying(tokenizer):
    plain = replace(TINY, copy_bias=0.0, follow_bias=0.0, query_length=32)
    config = replace(plain, updates=130, learning_rate=1e-2)
    generator = QueryGenerator.train(TEXTS, QUERIES, tokenizer, config, seed=0)
    generator.sampling = DecodingConfig(greedy=True)
    assert [own[0] for own in generator.generate(TEXTS, KEYS, 5, seed=0)] == QUERIES


def test_greedy_gives_one_query_and_repeats_are_dropped(sampled):
    sampled.sampling = DecodingConfig(greedy=True)
    assert [len(own) for own in sampled.generate(TEXTS, KEYS, 5, seed=0)] == [1] * 8
    sampled.sampling = DecodingConfig(top_k=1)
    assert [len(own) for own in sampled.generate(TEXTS, KEYS, 5, seed=0)] == [1] * 8
    assert sampled.generate([], [], 5, seed=0) == []


def test_save_and_load(sampled, tmp_path):
    sampled.sampling = DecodingConfig(top_k=5, temperature=0.8)
    sampled.save(tmp_path / "generator")
    assert (tmp_path / "generator" / "model.safetensors").is_file()
    loaded = QueryGenerator.load(tmp_path / "generator")
    assert loaded.fingerprint() == sampled.fingerprint()
    assert loaded.sampling == sampled.sampling and loaded.config == sampled.config
    assert loaded.generate(TEXTS, KEYS, 3, seed=0) == sampled.generate(TEXTS, KEYS, 3, seed=0)
    with pytest.raises(UserError, match=r"generator\.json"):
        QueryGenerator.load(tmp_path)


def test_fingerprint_sees_one_weight_the_configuration_and_the_idf(generator, tokenizer):
    base = generator.fingerprint()

    def fresh(config=TINY) -> QueryGenerator:
        copy = QueryGenerator(generator.model, tokenizer, config)
        copy.idf = generator.idf.clone()
        return copy

    assert fresh().fingerprint() == base
    assert fresh(replace(TINY, copy_bias=0.5)).fingerprint() != base
    changed = fresh()
    changed.idf[5] += 1
    assert changed.fingerprint() != base
    with torch.no_grad():
        weight = generator.model.shared.weight
        old = weight[7, 3].clone()
        weight[7, 3] += 1e-6
        assert fresh().fingerprint() != base
        weight[7, 3] = old
    assert fresh().fingerprint() == base


@pytest.mark.parametrize("version", ["original", "v1.1"])
def test_a_local_checkpoint_keeps_its_head_and_its_scale(version, tokenizer, tmp_path):
    torch.manual_seed(4)
    vocabulary = len(tokenizer) + 5  # published tables are rounded up
    untied = version == "v1.1"
    settings = T5Config(
        vocab_size=vocabulary,
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu" if untied else "relu",
        tie_word_embeddings=not untied,
    )
    settings.decoder_start_token_id = 0
    checkpoint = T5ForConditionalGeneration(settings)
    if untied:
        checkpoint.lm_head.weight = torch.nn.Parameter(torch.randn(vocabulary, 16))
        checkpoint.config.tie_word_embeddings = False
    checkpoint.save_pretrained(tmp_path / "t5")
    config = GeneratorConfig(
        source=str(tmp_path / "t5"), updates=2, learning_rate=1e-9, query_length=8
    )
    generator = QueryGenerator.train(TEXTS, QUERIES, tokenizer, config, seed=0)
    assert generator.config.dropout == 0.1 and generator.config.copy_bias == 0.0
    generator.save(tmp_path / "saved")
    loaded = QueryGenerator.load(tmp_path / "saved")
    elsewhere = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "saved")
    for t5 in (generator.model, loaded.model, elsewhere):
        assert (t5.lm_head.weight is t5.shared.weight) == (not untied)
        assert t5.config.scale_decoder_outputs is (not untied)
        torch.testing.assert_close(t5.lm_head.weight, checkpoint.lm_head.weight)
        torch.testing.assert_close(t5.shared.weight, checkpoint.shared.weight)
    assert loaded.fingerprint() == generator.fingerprint()
    generator.sampling = DecodingConfig(top_k=0, temperature=3.0)
    assert all(len(own) == 4 for own in generator.generate(TEXTS, KEYS, 4, seed=0))
    assert generator.forbidden[len(tokenizer) :].all()


def test_the_loss_is_the_model_s_own_without_copying(generator, tokenizer):
    plain = QueryGenerator(generator.model, tokenizer, replace(TINY, copy_bias=0, follow_bias=0))
    sources, targets = plain._ids(TEXTS[:3], 40), plain._ids(QUERIES[:4], 16)
    owner = np.array([0, 0, 1, 2])
    loss = plain._loss(module.PairBatch(sources, targets, owner))
    input_DL, mask_DL = module._pad([sources[i] for i in owner], 0, torch.device("cpu"))
    labels, valid = module._pad(targets, 0, torch.device("cpu"))
    labels[valid == 0] = -100
    reference = plain.model(input_ids=input_DL, attention_mask=mask_DL, labels=labels).loss
    torch.testing.assert_close(loss, reference)


def test_mistakes_are_named(tokenizer, tmp_path):
    config = GeneratorConfig(source=str(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"generator\.source"):
        QueryGenerator.train(TEXTS, QUERIES, tokenizer, config)
    with pytest.raises(ValueError, match="8 texts and 1 queries"):
        QueryGenerator.train(TEXTS, QUERIES[:1], tokenizer, TINY)
