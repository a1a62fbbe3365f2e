"""Born as a lexical index and grown by the same formula, which is written here in plain numpy."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from continual.cli import main
from continual.run.docids import codes_at
from continual.run.material import make_model, prepare
from continual.starts.lexical import Lexical
from continual.stream.view import StageView
from dsi.corpus.corpus import write_corpus
from dsi.docids.atomic import Atomic
from dsi.index import SearchIndex
from dsi.model.lexical import token_states
from dsi.search.forward import Inference
from dsi.text.tokens import Tokens, pad_id, padded_tensors, prompt_ids, tokenize

SETTINGS = ("starts=lexical", "model.d_model=128", "model.num_heads=4", "model.embedding_std=0.02")
CONFIG = Lexical.Config(k1=0.9, b=0.4, norm=0.5, prior=0.4, strength=3.0, rounds=2)
# whole runs: what stage 0 is born with is what is measured
BORN = (*SETTINGS, "training.updates=0", "training.updates_per_stage=0")


# --- the formula ----------------------------------------------------------------------------------


class Formula:
    """Weights of tokens by D_0 (of ``stage``: with ``training.restart``), and what follows."""

    def __init__(self, view, config=CONFIG, stage=0):
        stream, self.config = view.stream, config
        texts = {n: stream.tokens_at(stage)[n].tolist() for n in stream.members(stage)}
        queries, answers = stream.train_queries(0, stage)
        vocabulary = len(view.tokenizer)
        self.asked, self.own = np.empty(vocabulary), np.empty(vocabulary)
        self.length = sum(map(len, texts.values())) / len(texts)
        sets = {n: set(text) for n, text in texts.items()}
        pairs = [(set(queries[i].tolist()), sets[int(n)]) for i, n in enumerate(answers)]
        for t in range(vocabulary):
            share = (sum(t in words for words in sets.values()) + 0.5) / (len(texts) + 1)
            asking = [words for query, words in pairs if t in query]
            p = sum(t in words for words in asking) + config.strength * config.prior
            p = min(max(p / (len(asking) + config.strength), 0.02), 0.98)
            inverse = max(math.log((1 - share) / share), 0.02)
            self.asked[t] = max(math.log(p / (1 - p) * (1 - share) / share), 0.02)
            self.own[t] = math.sqrt(inverse * self.asked[t])

    def row(self, text, states):
        """The vector of a document, before the scale of all."""
        config, total = self.config, np.zeros(states.shape[1])
        near = config.k1 * (1 - config.b + config.b * len(text) / self.length)
        for t in set(text):
            tf = text.count(t)
            total += tf / (tf + near) * self.own[t] * states[t]
        return total / np.linalg.norm(total) ** config.norm

    def rows(self, view, documents, states):
        tokens = view.stream.tokens_at(view.stage)
        return np.stack([self.row(tokens[int(n)].tolist(), states) for n in documents])

    def state(self, query, directions):
        """sqrt(D) times the unit vector of sum_t w_t g_t, a repeated word as often as it is."""
        total = sum(self.asked[t] * directions[t] for t in query)
        return total / np.linalg.norm(total) * directions.shape[1] ** 0.5


def view_of(config, material=None, stage=0, model=None):
    """The view of a stage, of a new model where none is given."""
    material = material or prepare(config)
    stream, tokenizer = material.stream, material.tokenizer
    scheme = Atomic(None)
    scheme.codes_NT = np.arange(stream.count(stage), dtype=np.int32)[:, None]
    codes = codes_at(scheme, stream, stage)
    model = model or make_model(config, tokenizer, [len(stream.members(stage))], stage)
    nowhere = config.output
    return StageView(stage, stream, tokenizer, config, nowhere, model.eval(), codes)


def born(lab, *settings, config=CONFIG, stage=0):
    run_config = lab.config(*SETTINGS, *settings)
    view = view_of(run_config, stage=stage)
    Lexical(config).begin(view, {})
    return view


def grown(view, stage):
    """The view of the next stage, as the trainer makes it: with random new rows."""
    stream = view.stream
    stays = np.flatnonzero(~np.isin(stream.members(stage - 1), stream.removed(stage)))
    sizes = [len(stream.members(stage))]
    view.model.resize(sizes, torch.Generator().manual_seed(5), torch.from_numpy(stays))
    made = view_of(view.config, view, stage, view.model)
    return replace(made, model=view.model)


def directions(model):
    """What the embedding says: everything but its first two numbers, as unit vectors (V, D)."""
    rows = model.encoder.embed_tokens.weight.detach().double().numpy().copy()
    rows[:, :2] = 0
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def states_of(view, queries: Tokens):
    rows = np.arange(len(queries))
    inference = Inference(view.model)
    return inference.query_states(*padded_tensors(queries, rows, pad_id(view.tokenizer))).numpy()


def rows_of(view):
    return view.model.docids.rows.detach().double().numpy()


def place(view, document):
    return int(view.codes_NT[document, 0])


# --- birth ----------------------------------------------------------------------------------------


def assert_is_the_formula(view, formula):
    stream, found = view.stream, directions(view.model)
    queries, _ = stream.train_queries(0)
    mixed = [queries[i].tolist() for i in range(6)]
    mixed += [mixed[0] * 2 + mixed[1], mixed[2][:1] * 5 + mixed[3], mixed[4][:1]]
    expected = np.stack([formula.state(query, found) for query in mixed])
    states = states_of(view, Tokens.from_lists(mixed))
    assert np.abs(states - expected).max() < 1e-4 * np.abs(expected).max()
    rows, plain = rows_of(view), formula.rows(view, view.documents, found)
    scale = float((rows * plain).sum() / (plain**2).sum())
    assert np.abs(rows - scale * plain).max() < 1e-4 * np.abs(rows).max()
    scores, wanted = states @ rows.T, scale * expected @ plain.T
    assert np.abs(scores - wanted).max() < 1e-4 * np.abs(wanted).max()
    ranked = np.take_along_axis(wanted, np.argsort(-scores, 1), 1)
    assert np.diff(ranked, axis=1).max() < 2e-4 * np.abs(wanted).max()
    return scale


@pytest.mark.parametrize("width", [128, 256, 512, 1024])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_born_model_ranks_as_the_formula_does(lab, width, layers):
    depth = [f"model.num_layers={layers}", f"model.num_decoder_layers={layers}"]
    view = born(lab, f"model.d_model={width}", *depth)
    assert_is_the_formula(view, Formula(view))


@pytest.mark.parametrize(
    "changes",
    [
        {"k1": 0.0},
        {"k1": 2.0, "b": 1.0},
        {"norm": 1.0},
        {"norm": 0.0},
        {"prior": 0.5, "strength": 1e9},
        {"prior": 0.98, "strength": 1.0},
        {"rounds": 0},
    ],
)
def test_every_setting_is_in_the_formula(lab, changes):
    config = replace(CONFIG, **changes)
    view = born(lab, config=config)
    scale = assert_is_the_formula(view, Formula(view, config))
    lengths = np.linalg.norm(rows_of(view), axis=1)
    assert (np.ptp(lengths) < 1e-4 * scale) == (config.norm == 1), "unit rows"


def test_strength_zero_takes_the_counts_as_they_are(lab):
    """The formula above divides by nothing there: by hand, of a token that no query has."""
    config = replace(CONFIG, strength=0.0, prior=0.3)
    statistics, _, _ = Lexical(config)._statistics(view_of(lab.config(*SETTINGS)), 0)
    found, share = statistics.relevance(0.3, 0.0), statistics.share_V
    nobody = np.flatnonzero(statistics.asked_V == 0)
    expected = np.maximum(np.log(3 / 7 * (1 - share) / share), 0.02)[nobody]
    assert len(nobody) and np.allclose(found[nobody], expected)
    view = born(lab, config=config)
    assert bool(torch.isfinite(view.model.docids.rows).all())


def test_of_a_born_model_all_that_is_random_follows_the_seed(lab):
    one, again, other = born(lab), born(lab), born(lab, "seed=1")
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    assert not np.allclose(directions(one.model), directions(other.model))


def test_a_prompt_is_read_as_words(lab):
    """It is in every query's state, and in what the temperature is fitted to; rows know none."""
    plain, prompted = born(lab), born(lab, "prompts.retrieval=find the fox")
    prompt = prompt_ids(prompted.tokenizer, "find the fox").tolist()
    query = plain.stream.train_queries(0)[0][0].tolist()
    formula = Formula(prompted)
    found = states_of(prompted, Tokens.from_lists([prompt + query]))[0]
    expected = formula.state(prompt + query, directions(prompted.model))
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    one, other = rows_of(plain), rows_of(prompted)
    scale = np.linalg.norm(other) / np.linalg.norm(one)
    assert np.allclose(other, scale * one, rtol=1e-5, atol=1e-7)
    assert abs(math.log(scale)) > 0.01


@pytest.fixture
def write(tmp_path):
    """A corpus of documents (id: text), all of them D_0 unless there are stages."""

    def make(texts, queries=(), stages=None):
        folder = tmp_path / f"corpus-{len(list(tmp_path.iterdir()))}"
        documents = [{"_id": key, "title": "", "text": text} for key, text in texts.items()]
        asked = [{"_id": f"q{i}", "text": text} for i, (text, _) in enumerate(queries)]
        pairs = [(f"q{i}", key, 1) for i, (_, key) in enumerate(queries)]
        streams = {"own": stages or [list(texts)]}
        return str(write_corpus(folder, documents, asked, {"train": pairs}, streams))

    return make


TEXTS = {
    "lamp": "the brass lamp of the harbour master was cleaned on every monday",
    "goat": "the goat of the neighbour ate the washing of the whole village",
    "kite": "a kite of red paper flew over the brown hill and over the jetty",
    "plum": "plum jam is cooked with sugar, vanilla and quite a zest of lemon",
}


def test_the_scale_surprises_the_train_queries_least(lab, write):
    """Two of eight ask for what their words do not say: where all were right, more is better."""
    names = ["lamp", "goat", "kite", "plum"]
    asked = [(TEXTS[name][:30], name) for name in names]
    asked += [("brass brass lamp", "goat"), ("red kite kite", "kite"), ("plum jam", "plum")]
    own = (f"data.corpus={write(TEXTS, [*asked, ('goat', 'kite')])}", "data.stream=own")
    view = born(lab, *own, "tokenizer.vocabulary_size=150")
    queries, answers = view.stream.train_queries(0)
    scores = torch.from_numpy(states_of(view, queries) @ rows_of(view).T)
    gold = torch.from_numpy(answers)
    right = float((scores.argmax(1) == gold).double().mean())
    assert right == 0.75
    loss = [float(torch.nn.functional.cross_entropy(scores * x, gold)) for x in (0.8, 1, 1.25)]
    assert loss[1] < min(loss[0], loss[2])


@pytest.mark.parametrize("strength", [0.0, 5.0])
def test_without_a_train_query_documents_are_found_by_their_words(lab, write, strength):
    own = (f"data.corpus={write(TEXTS)}", "data.stream=own", "tokenizer.vocabulary_size=300")
    config = replace(CONFIG, prior=0.5, strength=strength)
    view = born(lab, *own, config=config)
    for number, text in enumerate(("brass lamp", "goat village", "red kite", "lemon plum")):
        states = states_of(view, tokenize(view.tokenizer, [text]))
        assert int(np.argmax(states @ rows_of(view).T)) == number


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("asked", [True, False])
def test_a_corpus_of_one_document_or_two_equal_ones(lab, write, count, asked):
    texts = {f"same{n}": TEXTS["kite"] for n in range(count)}
    corpus = write(texts, [("the red kite", "same0")] if asked else [])
    own = (f"data.corpus={corpus}", "data.stream=own", "tokenizer.vocabulary_size=200")
    rows = rows_of(born(lab, *own))
    assert np.isfinite(rows).all() and 0 < np.abs(rows).max() < 100


# --- growth ---------------------------------------------------------------------------------------


def disturbed(view, scale=1.0):
    """The model as if it had been trained: other embeddings, and rows of another size."""
    model, generator = view.model, torch.Generator().manual_seed(11)
    with torch.no_grad():
        weight = model.encoder.embed_tokens.weight
        weight += 0.005 * torch.randn(weight.shape, generator=generator)
        feed = model.encoder.block[0].layer[1].DenseReluDense.wo.weight
        feed += 0.1 * torch.randn(feed.shape, generator=generator)
        model.docids.rows *= scale
    return view


def begun(view, config=CONFIG):
    """Begin the stage; the weights before it by name."""
    before = {name: value.clone() for name, value in view.model.state_dict().items()}
    Lexical(config).begin(view, {})
    return before


def assert_new_rows_are_the_formula(view, config=CONFIG):
    stream, formula = view.stream, Formula(view, config)
    new = np.intersect1d(stream.changed(view.stage), view.documents)
    old = np.setdiff1d(view.documents, new)
    before = begun(view, config)
    present = token_states(view.model, len(view.tokenizer)).astype(np.float64)
    rows, kept = rows_of(view), formula.rows(view, old, present)
    along = (rows[[place(view, n) for n in old]] * kept).sum() / (kept**2).sum()
    expected = along * formula.rows(view, new, present)
    found = rows[[place(view, n) for n in new]]
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    # and nothing else has moved
    for name, value in view.model.state_dict().items():
        if name != "docids.rows":
            assert torch.equal(value, before[name]), name
    places = [place(view, n) for n in old]
    assert torch.equal(view.model.docids.rows[places], before["docids.rows"][places])
    return found


@pytest.mark.parametrize("norm", [0.5, 1.0])
def test_new_rows_are_the_formula_through_the_present_model(lab, norm):
    config = replace(CONFIG, norm=norm)
    view = disturbed(born(lab, config=config))
    found = assert_new_rows_are_the_formula(grown(view, 1), config)
    stale = born(lab, config=config)
    view = grown(stale, 1)
    Lexical(config).begin(view, {})
    assert not np.allclose(rows_of(view)[18:], found, rtol=0.05), "of the model as it was born"


def test_new_rows_are_as_large_as_the_old_ones_are_now(lab):
    plain, large = (disturbed(born(lab), scale) for scale in (1.0, 3.0))
    one, other = (grown(view, 1) for view in (plain, large))
    for view in (one, other):
        Lexical(CONFIG).begin(view, {})
    assert np.allclose(3 * rows_of(one)[18:], rows_of(other)[18:], rtol=1e-4, atol=1e-6)


def test_old_documents_that_judge_the_size_are_a_sample(lab, monkeypatch):
    view = grown(disturbed(born(lab)), 1)
    Lexical(CONFIG).begin(view, {})
    whole = rows_of(view)[18:]
    monkeypatch.setattr("continual.starts.lexical.MOST", 3)
    Lexical(CONFIG).begin(view, {})
    few = rows_of(view)[18:]
    scale = float((few * whole).sum() / (whole**2).sum())
    assert np.allclose(few, scale * whole, rtol=1e-4, atol=1e-6) and 0.8 < scale < 1.25
    assert scale != 1.0


def test_a_stage_that_removes_and_replaces(lab, changing):
    """Stage 1 removes d01 and d05 and gives d02 a new text; stage 2 only removes d03."""
    view = disturbed(born(lab, *changing))
    old = view.model.docids.rows.detach()[2].clone()
    view = grown(view, 1)
    assert place(view, 2) == 1
    assert_new_rows_are_the_formula(view)
    assert not torch.allclose(view.model.docids.rows[1], old), "of its new text"
    view = grown(view, 2)
    before = begun(view)
    for name, value in view.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert_new_rows_are_the_formula(grown(view, 3))


def assert_new_rows_are_finite_and_found(view, texts):
    states = states_of(view, tokenize(view.tokenizer, texts))
    assert np.isfinite(rows_of(view)).all()
    assert np.argmax(states @ rows_of(view).T, 1).tolist() == list(range(len(texts)))


def test_where_no_document_is_left_as_it_was_rows_are_finite(lab, write):
    first = dict(list(TEXTS.items())[:2])
    new = {f"new-{key}": TEXTS[key] for key in ("kite", "plum")}
    moved = dict(zip(first, new, strict=True))
    stages = {"D0": {"add": list(first)}, "D1": {"replace": moved}}
    corpus = write({**first, **new})
    with open(f"{corpus}/streams/own.json", "w") as file:
        json.dump(stages, file)
    own = (f"data.corpus={corpus}", "data.stream=own", "tokenizer.vocabulary_size=150")
    view = grown(born(lab, *own), 1)
    Lexical(CONFIG).begin(view, {})
    assert_new_rows_are_finite_and_found(view, list(new.values()))


def test_words_that_the_first_corpus_never_had(lab, write):
    """Letters of D_0 in pieces that it has nowhere, and letters that it does not know."""
    strange = {"unseen": "zywvz zywvz uqjkv", "unknown": "日本 語"}
    stages, texts = [list(TEXTS), list(strange)], {**TEXTS, **strange}
    own = (
        f"data.corpus={write(texts, [('the red kite', 'kite')], stages)}",
        "data.stream=own",
        "tokenizer.vocabulary_size=150",
    )
    view = grown(born(lab, *own), 1)
    tokens = view.stream.tokens
    unknown = view.tokenizer.unk_token_id
    assert unknown in tokens[5].tolist() and unknown not in tokens[4].tolist()
    assert set(tokens[4].tolist()) - set(tokens.values[: tokens.offsets[4]].tolist())
    assert_new_rows_are_the_formula(view)
    assert np.isfinite(rows_of(view)).all()
    asked = tokenize(view.tokenizer, ["zywvz uqjkv", "本 語", "brass lamp"])
    states = states_of(view, asked)
    assert np.argmax(states @ rows_of(view).T, 1).tolist() == [4, 5, 0]


@pytest.mark.parametrize("text", ["\u200b", "?! ..."])
def test_a_document_without_a_token(lab, write, text):
    texts = {**TEXTS, "nothing": text}
    stages = [list(TEXTS), ["nothing"]]
    own = (
        f"data.corpus={write(texts, [], stages)}",
        "data.stream=own",
        "tokenizer.vocabulary_size=150",
        "tokenizer.punctuation=drop",
    )
    view = grown(born(lab, *own), 1)
    assert view.stream.tokens[4].tolist() == [view.tokenizer.unk_token_id]
    assert_new_rows_are_the_formula(view)
    states = states_of(view, tokenize(view.tokenizer, ["!", "plum jam"]))
    assert np.argmax(states @ rows_of(view).T, 1).tolist() == [4, 3]


# --- whole runs -----------------------------------------------------------------------------------


def test_a_run_of_no_updates_is_the_index(lab):
    """What is born is searched, and grows; no old row moves."""
    run = lab.kept(*BORN)
    matrix = lab.matrix(run)["metrics"]
    assert min(matrix["hits@10"][n][o] for n in range(3) for o in range(n + 1)) > 0.6
    assert min(matrix["indexing_accuracy"][n][n] for n in range(3)) == 1
    for stage in (1, 2):
        before, after = lab.weights(run, stage - 1), lab.weights(run, stage)
        assert all(torch.equal(after[name][: len(v)], v) for name, v in before.items())


def test_every_stage_is_born_anew_with_restart(lab):
    restart = ("training.restart=true", "training.stages=all", *BORN)
    run = lab.kept(*restart)
    config = lab.config(*restart)
    for stage in (1, 2):
        view = view_of(config, stage=stage)
        component = Lexical(config.starts.settings)
        component.begin(view, {})
        for name, value in view.model.state_dict().items():
            if name in lab.weights(run, stage):
                assert torch.equal(lab.weights(run, stage)[name], value), (stage, name)
        assert_is_the_formula(view, Formula(view, config.starts.settings, stage))
    # D_0 is all that a stage that grows knows of
    grown_rows = lab.weights(lab.kept(*BORN), 2)["docids.rows"]
    assert not torch.allclose(lab.weights(run, 2)["docids.rows"], grown_rows, rtol=0.01)


@pytest.mark.parametrize(
    "more",
    [
        ("parameters=lora", "parameters.r=2"),
        ("parameters=incremental_rows",),
        ("training.docid_softmax=sampled", "training.docid_samples=4"),
    ],
)
def test_it_goes_with_others(lab, more):
    run = lab.train(*SETTINGS, "training.updates=3", "training.updates_per_stage=2", *more)
    assert bool(torch.isfinite(lab.weights(run, 2)["docids.rows"]).all())
    assert len(lab.weights(run, 2)["docids.rows"]) == 30


def test_changing_documents_in_a_whole_run(lab, changing):
    run = lab.kept(*BORN, *changing)
    before, after = lab.weights(run, 1), lab.weights(run, 2)
    stays = np.flatnonzero(prepare(lab.config(*changing)).stream.members(1) != 3)
    assert torch.equal(after.pop("docids.rows"), before.pop("docids.rows")[stays])
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert lab.matrix(run)["metrics"]["indexing_accuracy"][3][3] == 1


def test_an_added_corpus_is_found_at_once(lab, write, tmp_path, capsys):
    run = lab.train(*BORN, output=tmp_path / "out")
    new = write({"n1": "zyxwv zyxwv uqjkx uqjkx", "n2": f"日本語 {'fox ' * 3}"})
    before = lab.weights(run, 2)
    assert lab.call(main, ["add", str(run), new]) == 0
    after = lab.weights(run, 3)
    assert len(after["docids.rows"]) == 32
    assert all(torch.equal(after[name][: len(v)], v) for name, v in before.items())
    capsys.readouterr()
    assert main(["search", str(run), "uqjkx zyxwv", "--k", "1"]) == 0
    assert "n1" in capsys.readouterr().out
    index = SearchIndex.load(run)
    assert index.search("日本語 fox", 1)[0].document_id == "n2"
    (own,) = index.search(next(iter(prepare(lab.config()).stream.texts(7, 8))), 1)
    assert own.document_id == "d07", "an old one still is"


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            ("docids=naive",),
            "docids.name: starts: lexical needs one row per document; set docids: atomic, "
            "starts: random",
        ),
        (
            ("model.source=folder", "tokenizer.source=folder"),
            "model.source: starts: lexical writes a model of its own; set model.source: scratch, "
            "or starts: random",
        ),
        (("starts.prior=0.99",), "starts.prior: must be at most 0.98, got 0.99"),
        (("starts.rounds=-1",), "starts.rounds: must be at least 0, got -1"),
        (("starts.norm=2",), "starts.norm: must be at most 1"),
    ],
)
def test_what_it_does_not_go_with_is_one_line(lab, tmp_path, capsys, settings, line):
    base = [s for s in lab.settings(output=tmp_path) if not s.startswith("model.")]
    if not any(setting.startswith("tokenizer.source") for setting in settings):
        base = lab.settings(output=tmp_path)
    assert main(["train", *base, "starts=lexical", *settings]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"dsi: error: {line}") and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
