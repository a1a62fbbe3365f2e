"""Text to ids and back; flat arrays of texts; the cache."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from dsi.errors import UserError
from dsi.text import tokens as tokenization
from dsi.text.tokens import (
    NUM_SENTINELS,
    Tokens,
    batches,
    cached_tokenize,
    load_tokenizer,
    pad_id,
    padded_tensors,
    prompt_ids,
    tokenize,
    tokenizer_fingerprint,
    train_tokenizer,
)

LISTS = st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=5), max_size=8)
WORDS = ["whale", "harbour", "lantern", "copper", "violin", "meadow", "glacier", "orchard"]


def sentences(seed: int, count: int = 60) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(count)]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return sentences(0)


@pytest.fixture(scope="module")
def tokenizer(texts) -> PreTrainedTokenizerFast:
    return train_tokenizer(texts, 110)


def pieces(tokenizer: PreTrainedTokenizerFast) -> set[str]:
    special = set(tokenizer.all_special_tokens) | {f"<extra_id_{i}>" for i in range(NUM_SENTINELS)}
    return set(tokenizer.get_vocab()) - special


def test_the_trainer_is_not_given_words_without_end(monkeypatch):
    given = []

    def train(sentence_iterator, **_):
        given.extend(sentence_iterator)
        raise RuntimeError

    monkeypatch.setattr("sentencepiece.SentencePieceTrainer.train", train)
    texts = ["a  b\n" + "c" * 1000, "a  b " + "c" * 2500, "", "\ufdfa" * 100]
    with pytest.raises(UserError):
        train_tokenizer(texts, 200)
    # what is not cut stays as it was written
    assert given[:3] == [texts[0], f"a b {'c' * 1000} {'c' * 1000} {'c' * 500}", ""]
    assert max(len(word) for text in given for word in text.split()) == 1000


@pytest.mark.parametrize(
    ("drop", "expected"),
    [(False, ["a whale, \u4ee4\u548c", "fish"]), (True, ["a whale", "fish"])],
)
def test_the_trainer_is_given_normalised_texts(monkeypatch, drop, expected):
    """By Python, where punctuation is kept: tokenizers does not know this character of 2019."""
    given = []

    def train(sentence_iterator, **_):
        given.extend(sentence_iterator)
        raise RuntimeError

    monkeypatch.setattr("sentencepiece.SentencePieceTrainer.train", train)
    with pytest.raises(UserError):
        train_tokenizer(["a whale, \u32ff", "\ufb01sh"], 200, drop)
    assert given == expected


def test_a_prompt_is_as_long_as_a_query_at_most(tokenizer):
    assert len(prompt_ids(tokenizer, "whale " * 400)) <= 512
    with pytest.raises(UserError, match=r"^prompts\.retrieval: \d+ tokens, at most 512 are read"):
        prompt_ids(tokenizer, "whale" * 4_000, "prompts.retrieval")


# --- Tokens ---------------------------------------------------------------------------------------


@given(LISTS, st.data())
def test_tokens_are_lists(lists, data):
    tokens = Tokens.from_lists(lists)
    assert len(tokens) == len(lists)
    assert [tokens[i].tolist() for i in range(len(lists))] == lists
    assert tokens.lengths.tolist() == [len(ids) for ids in lists]
    rows = np.arange(len(lists))[::-2]
    assert tokens.lengths_of(rows).tolist() == [len(lists[row]) for row in rows]
    assert (tokens.values.dtype, tokens.offsets.dtype) == (np.int32, np.int64)
    chosen = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=9)) if lists else []
    taken = tokens.take(np.array(chosen, np.int64))
    assert [taken[i].tolist() for i in range(len(taken))] == [lists[i] for i in chosen]


@pytest.mark.parametrize("block", [1, 2, 3, 7, 100])
def test_tokens_are_chosen_block_by_block(monkeypatch, block):
    monkeypatch.setattr("dsi.text.tokens.BLOCK", block)
    one, two = Tokens.from_lists([[], [1, 2], [3], []]), Tokens.from_lists([[4, 5, 6], [7]])
    chosen = Tokens.chosen(
        [(one, np.array([3, 2, 0, 1])), (two, np.array([], np.int64)), (two, np.array([1, 0, 1]))]
    )
    lists = [chosen[i].tolist() for i in range(len(chosen))]
    assert lists == [[], [3], [], [1, 2], [7], [4, 5, 6], [7]]
    assert (chosen.values.dtype, chosen.offsets.dtype) == (np.int32, np.int64)


@given(st.lists(LISTS, min_size=1, max_size=4))
def test_concatenated_tokens_are_concatenated_lists(parts):
    tokens = Tokens.concatenate([Tokens.from_lists(lists) for lists in parts])
    flat = [ids for lists in parts for ids in lists]
    assert [tokens[i].tolist() for i in range(len(tokens))] == flat
    assert tokens.offsets.dtype == np.int64


@given(st.lists(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5), min_size=1), st.data())
def test_padded_tensors_hold_the_texts_and_nothing_else(lists, data):
    rows = data.draw(st.lists(st.integers(0, len(lists) - 1), min_size=1, max_size=6))
    multiple = data.draw(st.sampled_from([1, 4]))
    ids, mask = padded_tensors(Tokens.from_lists(lists), np.array(rows), 7, multiple=multiple)
    assert (ids.dtype, mask.dtype) == (torch.int64, torch.int64)
    longest = max(len(lists[row]) for row in rows)
    assert ids.shape == mask.shape == (len(rows), -(-longest // multiple) * multiple)
    for row, line, real in zip(rows, ids.tolist(), mask.tolist(), strict=True):
        kept = lists[row]
        assert line == kept + [7] * (len(line) - len(kept))
        assert real == [1] * len(kept) + [0] * (len(line) - len(kept))


@pytest.mark.parametrize(("own", "expected"), [(None, 0), (0, 0), (3, 3)])
def test_without_a_padding_token_it_is_the_first(own, expected):
    assert pad_id(SimpleNamespace(pad_token_id=own)) == expected


# --- a tokenizer of one's own ---------------------------------------------------------------------


def test_ids_of_special_tokens(tokenizer):
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<pad>", "</s>", "<unk>"]
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    assert ids == (0, 1, 2)
    sentinels = [f"<extra_id_{i}>" for i in range(NUM_SENTINELS)]
    assert tokenizer.convert_tokens_to_ids(sentinels) == list(
        range(len(tokenizer) - NUM_SENTINELS, len(tokenizer))
    )


def test_the_vocabulary_is_no_larger_than_asked(tokenizer):
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    assert len(tokenizer) <= 110
    assert len(train_tokenizer(["abc"], 5000)) < 60  # a small text has fewer pieces


def test_pieces_come_from_the_given_texts_alone(tokenizer, texts):
    seen = " ".join(["", *texts]).replace(" ", "▁")
    assert pieces(tokenizer)
    assert [piece for piece in pieces(tokenizer) if piece not in seen] == []
    assert "▁whale" in pieces(tokenizer)
    assert "whale" not in "".join(pieces(train_tokenizer(["copper violin meadow"] * 9, 60)))


def test_equal_texts_give_the_same_tokenizer_and_others_do_not(tokenizer, texts):
    assert tokenizer_fingerprint(train_tokenizer(iter(texts), 110)) == tokenizer_fingerprint(
        tokenizer
    )
    assert tokenizer_fingerprint(train_tokenizer(texts, 57)) != tokenizer_fingerprint(tokenizer)


def test_a_saved_tokenizer_is_the_same(tokenizer, texts, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert tokenizer_fingerprint(again) == tokenizer_fingerprint(tokenizer)
    assert np.array_equal(tokenize(again, texts).values, tokenize(tokenizer, texts).values)
    assert (again.pad_token_id, again.eos_token_id, len(again)) == (0, 1, len(tokenizer))


@pytest.mark.parametrize("size", [1, 33, 36])
def test_too_small_a_vocabulary_is_one_line(texts, size):
    with pytest.raises(UserError, match=r"^tokenizer\.vocabulary_size: .+") as caught:
        train_tokenizer(texts, size)
    assert "\n" not in str(caught.value)


# --- without punctuation --------------------------------------------------------------------------

SPOKEN = [
    "the shock, \"shock\" of a whale's tail; don't (ever) touch u.s. harbours!",
    "हिन्दी नमस्ते, القَمَر cafe\u0301 ภาษาไทยที่ดี 日本語、です。 5,000",
]


@pytest.fixture(scope="module")
def plain():
    """Drops punctuation."""
    return train_tokenizer(SPOKEN * 3 + sentences(0), 300, True)


def ids(tokenizer, text):
    return tokenize(tokenizer, [text])[0].tolist()


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ('shock",', "shock"),
        ('"shock"', "shock"),
        ("(shock)\n", "shock"),
        ("  shock  \t whale...", "shock whale"),
        ("don't", "don t"),
        ("don\u2019t", "don t"),
        ("u.s.", "u s"),
        ("the_shock-tail/whale", "the shock tail whale"),
        ("5,000", "5 000"),
        ("日本語、です。", "日本語 です"),
        ("\u00bfshock?", "shock"),
        ("\uff53\uff48\uff4f\uff43\uff4b\uff01", "shock"),  # full-width letters and mark
    ],
)
def test_a_word_is_the_same_beside_punctuation(plain, text, same):
    assert ids(plain, text) == ids(plain, same)
    assert plain.decode(ids(plain, text)) == same


@pytest.mark.parametrize(
    ("text", "other"),
    [("don't", "dont"), ("u.s.", "us"), ("5,000", "5000"), ("shock tail", "shocktail")],
)
def test_what_punctuation_parts_stays_apart(plain, text, other):
    assert ids(plain, text) != ids(plain, other)


@pytest.mark.parametrize(
    "word", ["हिन्दी", "नमस्ते", "القَمَر", "caf\u00e9", "ภาษาไทยที่ดี", "日本語", "5", "whale"]
)
def test_letters_marks_and_digits_of_any_script_stay(plain, word):
    assert plain.decode(ids(plain, word)) == word
    assert plain.unk_token_id not in ids(plain, word)


def test_marks_stay_with_letters_that_no_letter_holds_together(plain):
    backend = plain.backend_tokenizer.normalizer
    for word in ("q\u0303a", "שָׁלוֹם", "हिन्दी", "القَمَر"):
        assert backend.normalize_str(f"({word})") == word


@pytest.mark.parametrize("text", ["?!", "... -- _", "\u3001\u3002", "", " "])
def test_a_text_of_punctuation_alone_is_one_unknown_token(plain, text):
    assert ids(plain, text) == [plain.unk_token_id]


def test_no_piece_has_punctuation(plain):
    known = "".join(pieces(plain)).replace("▁", "")
    assert not set(known) & set("'\"(),.;:!?_-、。") and "k" in known


def test_one_that_drops_punctuation_is_saved_and_is_another(plain, tmp_path):
    plain.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    texts = [*SPOKEN, 'shock",', "?!", "u.s."]
    assert np.array_equal(tokenize(again, texts).values, tokenize(plain, texts).values)
    assert tokenizer_fingerprint(again) == tokenizer_fingerprint(plain)
    kept = train_tokenizer(SPOKEN * 3 + sentences(0), 300)
    assert tokenizer_fingerprint(kept) != tokenizer_fingerprint(plain)
    assert ids(kept, 'shock",') != ids(kept, "shock")


# --- texts to ids ---------------------------------------------------------------------------------


def test_ids_decode_to_the_text(tokenizer):
    texts = sentences(9)
    tokens = tokenize(tokenizer, iter(texts))
    assert len(tokens) == len(texts)
    assert [tokenizer.decode(tokens[i].tolist()) for i in range(len(texts))] == texts
    assert not {0, 1, 2} & set(tokens.values.tolist())


def test_batches_change_nothing(tokenizer, monkeypatch):
    texts = sentences(3, 50)
    whole = tokenize(tokenizer, texts)
    monkeypatch.setattr("dsi.text.tokens.batches", lambda items: batches(items, 7))
    parts = tokenize(tokenizer, texts)
    assert np.array_equal(whole.values, parts.values)
    assert np.array_equal(whole.offsets, parts.offsets)


@given(st.integers(0, 30), st.integers(1, 9))
def test_batches_are_consecutive(count, size):
    found = list(batches(map(str, range(count)), size))
    assert [item for batch in found for item in batch] == [str(i) for i in range(count)]
    assert all(len(batch) == size for batch in found[:-1])
    assert all(found)


def test_no_text_is_without_tokens(tokenizer):
    tokens = tokenize(tokenizer, ["", "whale", "日本"])
    assert tokens[0].tolist() == [2]
    assert 2 in tokens[2]
    assert (tokens.lengths >= 1).all()
    empty = tokenize(tokenizer, [])
    assert (len(empty), len(empty.values)) == (0, 0)


def test_saved_truncation_and_padding_are_not_applied(tokenizer, texts, tmp_path):
    limited = train_tokenizer(texts, 110)
    limited.backend_tokenizer.enable_truncation(2)
    limited.backend_tokenizer.enable_padding(length=40)
    limited.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    prompt = loaded.backend_tokenizer.encode("whale copper harbour lantern").ids
    assert prompt == tokenize(tokenizer, ["whale copper harbour lantern"])[0].tolist()
    assert np.array_equal(tokenize(limited, texts).values, tokenize(tokenizer, texts).values)


# --- the cache ------------------------------------------------------------------------------------


def forbidden():
    raise AssertionError("read again")
    yield ""


def test_the_cache_is_used_again(tokenizer, texts, tmp_path):
    first = cached_tokenize(tokenizer, texts, "content", tmp_path)
    again = cached_tokenize(tokenizer, forbidden(), "content", tmp_path)
    direct = tokenize(tokenizer, texts)
    for tokens in (first, again):
        assert np.array_equal(tokens.values, direct.values)
        assert np.array_equal(tokens.offsets, direct.offsets)
    assert isinstance(again.values, np.memmap)


def test_other_content_or_another_tokenizer_is_never_served_stale_ids(tokenizer, texts, tmp_path):
    cached_tokenize(tokenizer, texts, "content", tmp_path)
    changed = sentences(5)
    found = cached_tokenize(tokenizer, changed, "changed", tmp_path)
    assert np.array_equal(found.values, tokenize(tokenizer, changed).values)
    other = train_tokenizer(texts, 57)
    found = cached_tokenize(other, texts, "content", tmp_path)
    assert np.array_equal(found.values, tokenize(other, texts).values)
    assert len(list((tmp_path / "tokens").iterdir())) == 3


def test_an_unfinished_entry_is_made_again(tokenizer, texts, tmp_path):
    cached_tokenize(tokenizer, texts, "content", tmp_path)
    (entry,) = (tmp_path / "tokens").iterdir()
    (entry / "complete.json").unlink()
    np.save(entry / "values.npy", np.zeros(3, np.int32))
    found = cached_tokenize(tokenizer, texts, "content", tmp_path)
    assert np.array_equal(found.values, tokenize(tokenizer, texts).values)


# --- tokenizers of others -------------------------------------------------------------------------


def one_line(folder) -> str:
    with pytest.raises(UserError) as caught:
        load_tokenizer(folder)
    message = str(caught.value)
    assert message.startswith("tokenizer.source: ")
    assert str(folder) in message
    assert "'train'" in message
    assert "\n" not in message
    return message


def test_what_cannot_be_loaded_is_one_line(tmp_path):
    one_line(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    one_line(tmp_path / "empty")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "t5"}')
    (broken / "tokenizer.json").write_text("{")
    one_line(broken)


def test_a_model_folder_without_tokenizer_is_refused(tmp_path):
    # transformers makes an empty tokenizer of it: every word would be unknown
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    assert "no vocabulary" in one_line(tmp_path)


@pytest.mark.parametrize("lacking", ["pad_token", "eos_token"])
def test_padding_and_end_are_needed(tokenizer, tmp_path, lacking):
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings.pop(lacking)
    path.write_text(json.dumps(settings))
    assert "padding" in one_line(tmp_path)


def test_many_tokens_are_mapped_from_a_file_that_vanishes(monkeypatch, tmp_path):
    monkeypatch.setenv("DSI_CACHE", str(tmp_path))
    tokens = Tokens.from_lists([[1, 2, 3], [4], [5, 6]])
    plain = tokens.take(np.array([2, 0, 1, 0]))
    monkeypatch.setattr(tokenization, "MOST_IN_MEMORY", 4)
    mapped = tokens.take(np.array([2, 0, 1, 0]))
    assert isinstance(mapped.values, np.memmap) and not isinstance(plain.values, np.memmap)
    assert mapped.values.tolist() == plain.values.tolist() == [5, 6, 1, 2, 3, 4, 1, 2, 3]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rows", [[], [0], [3, 1], [4], [0, 1, 2, 3, 4]])
def test_some_texts_are_replaced(rows):
    texts = [[1, 2], [], [3], [4, 5, 6], [7]]
    new = [[10 * (i + 1)] * (3 * i) for i in range(len(rows))]
    tokens = Tokens.from_lists(texts)
    found = tokens.with_texts(np.array(rows, np.int64), Tokens.from_lists(new))
    expected = [new[rows.index(i)] if i in rows else own for i, own in enumerate(texts)]
    assert [found[i].tolist() for i in range(5)] == expected
    assert found.values.dtype == np.int32 and found.offsets.dtype == np.int64
    assert [tokens[i].tolist() for i in range(5)] == texts, "a copy"
