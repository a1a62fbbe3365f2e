"""The benchmarks run, and what they count is right; their times are not tested."""

import dataclasses
import json
import os
import subprocess
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from benchmarks import decoding, end_to_end, generation, learning, methods, scaling, training
from benchmarks.end_to_end import Stopwatch
from continual import cli, runs
from continual.config.loading import load_config
from dsi.corpus.corpus import read_corpus, read_stream
from dsi.examples.batches import BatchShape, window_batches
from tests.ranks import on_two_ranks

TINY = ["--size", "tiny", "--rounds", "1", "--updates", "1", "--batch-size", "4"]
TINY = [*TINY, "--documents", "40", "--side", "16"]


@pytest.fixture(autouse=True)
def _as_before():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(True)  # else the first precision is that of every later test


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DSI_CACHE", str(tmp_path / "cache"))
    return tmp_path


# --- training -------------------------------------------------------------------------------------


def test_training_compares_the_same_sizes(tmp_path, capsys):
    result = training.main([*TINY, "--json", str(tmp_path / "out.json")])
    assert json.loads((tmp_path / "out.json").read_text()) == result
    rows = result["rows"]
    kinds = {(row["texts"], row["positions"], row["name"]) for row in rows}
    names = ["plain", "plain, longest", "ours", "ours, dropout 0"]
    assert kinds == {(t, p, n) for t in "AB" for p in (7, 1) for n in names}
    assert all(row["ratio"] == 1 for row in rows if row["name"] == "plain")
    assert all(row["share_of_peak"] > 0 and row["tokens_per_second"] > 0 for row in rows)
    # padding to a fixed length is never less than to the longest
    padding = {row["name"]: row["padding"] for row in rows if row["texts"] == "B"}
    assert padding["plain"] >= padding["plain, longest"]
    assert "GFLOP/s" in capsys.readouterr().out


def test_mixtures_have_the_lengths_they_promise():
    for name, low, high in (("A", 46, 50), ("B", 20, 24), ("fixed", 12, 12)):
        texts = training.synthetic(name, 2000, 512, 12)
        batches = list(window_batches(texts.sources(0), 0, 16, BatchShape(64), 0))
        lengths = torch.cat([batch.attention_mask.sum(1) for batch in batches])
        assert low <= lengths.double().mean() <= high
        assert lengths.max() <= texts.longest


def test_operations_are_those_of_the_products():
    from torch.utils.flop_counter import FlopCounterMode

    texts = training.synthetic("fixed", 40, 512, 12)
    args = (texts, training.SIZES["tiny"], 7, 4, "cpu", "no")
    for one in (training.Plain(*args), training.Ours(*args, window=1)):
        batch = next(one.batches())
        with FlopCounterMode(display=False) as counter:
            one.step(batch)
        work = training.Work(1.0, 4, 48, 4 * 144, 48)
        # not counted by the formula: the gradient of the inputs of a first layer is not needed
        assert 0.9 <= counter.get_total_flops() / one.operations(work) <= 1.1


def test_bf16_is_skipped_with_a_reason_where_there_are_no_units(monkeypatch, capsys):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True})
    result = training.main([*TINY, "--precision", "bf16"])
    assert result["rows"] == [] and "no bf16 units" in result["bf16_skipped"]
    assert "bf16 is skipped" in capsys.readouterr().out
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert training.bf16_missing("cpu") is None


def test_contestants_of_both_precisions_keep_their_own(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    options = training.parse([*TINY, "--mixtures", "fixed", "--positions", "7", "--rows"])
    texts = training.synthetic("fixed", 40, 512, 12)
    seen: dict[str, torch.dtype] = {}

    def note(key: str) -> Any:
        return lambda _, __, output: seen.update({key: output.dtype})

    for one in training.contestants(options, texts, 7, ["no", "bf16"]):
        model: Any = one.model  # pyright: ignore[reportAttributeAccessIssue]
        layer = model.encoder.block[0].layer[0].SelfAttention.q
        layer.register_forward_hook(note(f"{one.name} {one.precision}"))
        one.round(1)
    fp32, bf16 = torch.float32, torch.bfloat16
    assert seen == {"plain no": fp32, "ours no": fp32, "plain bf16": bf16, "ours bf16": bf16}


def test_random_batches_have_the_examples_of_the_windows():
    texts = training.synthetic("B", 100, 512, 0)
    batches = list(window_batches(texts.sources(0), 0, 4, BatchShape(8), 0))
    mixed = learning.at_random(batches, 8, 0, np.random.default_rng(0))

    def examples(parts: list) -> list:
        return sorted(
            (int(document), *ids[mask.bool()].tolist())
            for part in parts
            for ids, mask, document in zip(
                part.input_ids, part.attention_mask, part.documents, strict=True
            )
        )

    assert examples(mixed) == examples(batches)
    assert sum(b.input_ids.numel() for b in mixed) > sum(b.input_ids.numel() for b in batches)


def test_a_device_that_is_not_there_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        training.main([*TINY, "--device", "cuda"])
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and err.startswith("--device cuda: ")


def test_learning_and_real_text(cache, tmp_path):
    scaling.write_stream(tmp_path / "corpus", 2, 15)
    corpus = ["--corpus", str(tmp_path / "corpus")]
    result = training.main([*TINY, *corpus, "--positions", "1", "--rows"])
    assert [row["name"] for row in result["rows"]] == ["plain", "ours"]
    contestants = ["random", "length_groups=2", "docid_softmax=sampled docid_samples=5"]
    small = ["training.batch_size=4", "training.window=2", "tokenizer.vocabulary_size=300"]
    settings = ["--updates", "3", "--seeds", "0", "--override", *small]
    rows = learning.main([*contestants, *corpus, *settings])["rows"]
    assert [(row["contestant"], row["updates"]) for row in rows] == [(c, 3) for c in contestants]
    assert all(row["split"] == "test" and 0 <= row["hits@10"] <= 1 for row in rows)


# --- one stage ------------------------------------------------------------------------------------


def test_a_stopwatch_counts_every_second_once(monkeypatch):
    now = iter([(float(i), 10.0 * i) for i in range(20)])
    monkeypatch.setattr(Stopwatch, "_now", staticmethod(lambda: next(now)))
    watch = Stopwatch()  # 0
    with watch.part("outer"):  # 1
        with watch.part("inner"):  # 2
            pass  # 3
        watch.timed("inner", lambda: None)()  # 4, 5
    assert watch.seconds == {"outer": [3.0, 30.0], "inner": [2.0, 20.0]}
    assert watch.calls == {"outer": 1, "inner": 2}
    assert list(watch.drawn("items", lambda: iter([1, 2]))()) == [1, 2]
    assert watch.calls["items"] == 3


def test_a_stage_and_its_parts(tmp_path, capsys):
    scaling.write_stream(tmp_path / "corpus", 1, 12)
    settings = [
        f"data.corpus={tmp_path / 'corpus'}",
        "tokenizer.vocabulary_size=300",
        "training.updates=3",
        "training.batch_size=4",
        "replay.queries_per_document=2",
    ]
    result = end_to_end.main([*settings, "--json", str(tmp_path / "out.json")])
    assert (result["documents"], result["updates"], result["test_queries"]) == (12, 3, 12)
    assert result["pseudo_queries"] == 24
    parts = {part["part"]: part for part in result["parts"]}
    expected = {"read and tokenize", "docids", "write pseudo-queries", "updates", "make batches"}
    expected |= {"find documents", "answer queries", "write results", "checkpoint"}
    assert expected <= set(parts)
    assert sum(part["share"] for part in parts.values()) == pytest.approx(1)
    assert parts["updates"]["seconds"] > 0 and parts["checkpoint"]["seconds"] > 0
    assert all(result["per_second"].values())
    assert len(result["timing"]) == 1
    assert "| updates |" in capsys.readouterr().out


# --- growth ---------------------------------------------------------------------------------------

GROWTH = ["--shape", "tiny", "--rounds", "1", "--updates", "1", "--batch-size", "4"]


def test_growth_with_documents():
    rows = scaling.main([*GROWTH, "--parts", "documents", "--documents", "50", "200"])["documents"]
    found = [(row["docids"], row["documents"], row["codes"]) for row in rows]
    assert found == [
        ("codes", 50, 7), ("naive", 50, 3), ("atomic", 50, 1),
        ("codes", 200, 7), ("naive", 200, 4), ("atomic", 200, 1),
    ]  # fmt: skip
    assert [row["ratio"] for row in rows[:3]] == [1, 1, 1]
    weights = {(row["docids"], row["documents"]): row["weights"] for row in rows}
    width = scaling.SHAPES["tiny"]["d_model"]
    assert weights["atomic", 200] - weights["atomic", 50] == 150 * width
    assert rows[-1]["bytes_per_document"] == 16 * width


def test_growth_with_stages(cache):
    arguments = ["--parts", "stages", "--stages", "3", "--stage-documents", "8"]
    arguments += ["--stage-updates", "2", "--stage-docids", "naive"]
    small = ["training.batch_size=4", "tokenizer.vocabulary_size=300", "model.d_model=16"]
    rows = scaling.main([*arguments, "--override", *small])["stages"]
    assert [(row["stage"], row["documents"]) for row in rows] == [(0, 8), (1, 16), (2, 24)]
    assert rows[1]["ratio"] == rows[1]["ratio_per_token"] == 1
    assert all(row["evaluation_seconds"] > 0 for row in rows)


def test_growth_with_parameters():
    arguments = [*GROWTH, "--parts", "parameters", "--shapes", "tiny", "d128", "--side", "16"]
    rows = scaling.main(arguments)["parameters"]
    assert rows[0]["parameters"] < rows[1]["parameters"]
    assert rows[1]["operations_ratio"] > 10


def test_the_stream_of_equal_corpora(cache, tmp_path):
    scaling.write_stream(tmp_path / "corpus", 3, 5)
    corpus = read_corpus(str(tmp_path / "corpus"))
    assert [len(stage.added) for stage in read_stream(corpus, "equal")] == [5, 5, 5]
    assert len(corpus.qrels["train"]) == len(corpus.qrels["test"]) == 15


def test_texts_with_docids_of_their_own():
    codes = np.array([[3, 0, -1], [1, 2, 4]], np.int32)
    texts = training.synthetic("B", 2, 512, 0)
    own = dataclasses.replace(texts, codes_NT=codes)
    one = training.Ours(own, training.SIZES["tiny"], 3, 2, "cpu", "no")
    assert one.sizes == [4, 3, 5]
    one.round(1)


# --- methods --------------------------------------------------------------------------------------

RATES = {"random": "2e-3,9e-4", "centroid": "2e-3,9e-4", "lexical": "5e-5,1e-5"}


def settings_of(name):
    return {text.partition("=")[0]: text for text in methods.rows(RATES, 128)[name]}


def differing(one, other):
    ours, theirs = settings_of(one), settings_of(other)
    return {key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)}


def test_rows_differ_in_what_their_names_say():
    assert len(methods.rows(RATES, 128)) == 2 * 4 * 3 + 2 + 2
    assert differing("first.none.random", "mixed.none.random") == {"views"}
    assert differing("mixed.none.random", "mixed.none.centroid") == {"starts"}
    replay = {"replay.memory", "replay.queries_per_document"}
    assert differing("mixed.lexical.random", "mixed.learned.random") == replay
    replay = differing("mixed.none.random", "mixed.oracle.random")
    assert replay == {"replay", "replay.ratio"}
    trained = {"training.learning_rate", "training.later_learning_rate", "parameters"}
    assert differing("mixed.oracle.random", "mixed.oracle.lexical") == {"starts", *trained}
    once = {"training.restart", "training.stages", "training.later_learning_rate"}
    assert differing("mixed.lexical.lexical", "restart.lexical") == once
    assert settings_of("baseline.projection")["baseline.width"] == "baseline.width=128"


@pytest.mark.parametrize("start", ["random", "lexical"])
def test_every_row_is_a_configuration(start):
    for name, own in methods.rows(RATES, 128).items():
        if name.endswith(start):
            assert load_config(None, [*methods.SHARED, *own]).starts.name == start


def test_an_interval_is_students():
    # worked by hand: mean 4, standard deviation 2, and t of 2 degrees of freedom is 4.3027
    assert methods.interval([2.0, None, 4.0, 6.0]) == f"4.0 ± {4.302653 * 2 / 3**0.5:.1f}"
    assert (methods.interval([4.0]), methods.interval([None])) == ("4.0", "")


@pytest.fixture
def made(monkeypatch):
    """Names of the runs that were made, by this process."""
    names = []

    def run(command, **options):
        names.append(next(text[5:] for text in command if text.startswith("name=")))
        AcceleratorState._reset_state(True)
        return SimpleNamespace(returncode=cli.main(["train", *command[3:]]))

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(runs, "_show", lambda folder: None)
    return names


def test_the_table_of_methods(cache, tmp_path, made):
    scaling.write_stream(tmp_path / "corpus", 2, 12)
    out, names = tmp_path / "out", ["mixed.lexical.random", "mixed.oracle.random"]
    refused, names = "mixed.oracle.lexical", [*names, "restart.random", "baseline.bm25"]
    tiny = ["data.stream=equal", "training.updates=2", "training.updates_per_stage=1"]
    tiny += ["training.batch_size=4", "tokenizer.vocabulary_size=300", "model.d_model=16"]
    arguments = ["configs/squad-2k.yaml", "--out", str(out), "--seeds", "2", *tiny]
    arguments += [f"data.corpus={tmp_path / 'corpus'}", "--rate-lexical=-1,1e-5"]
    for name in [*names, refused]:
        arguments += ["--rows", name]
    found = methods.main(arguments)
    assert {name[-1] for name in made[:5]} == {"0"} and {name[-1] for name in made[5:]} == {"1"}
    assert sorted({name[:-3] for name in made}) == sorted([*names, refused]) and len(made) == 10
    assert json.loads((out / "methods.json").read_text()) == found
    assert found[refused] == [None, None], "its rate is below zero"
    assert "| mixed | oracle | lexical | failed |" in (out / "methods.md").read_text()
    assert [found[name][0]["updates"] for name in names] == [3, 3, 3, 0]
    assert found["restart.random"][0]["first"] is None
    lines = (tmp_path / "corpus" / "queries.jsonl").read_text().splitlines()
    queries = [json.loads(line) for line in lines]
    size = sum(len(query["text"]) for query in queries if query["_id"].startswith("train")) / 1000
    assert found["mixed.oracle.random"][0]["kilobytes"] == size
    assert found["mixed.lexical.random"][0]["kilobytes"] > size
    assert found["baseline.bm25"][0]["kilobytes"] == 0

    made.clear()
    assert methods.main(arguments) == found
    assert made == [f"{refused}-s0", f"{refused}-s1"], "what is finished is read"
    other = [text for text in arguments if text != "training.updates=2"]
    assert methods.main(other)["restart.random"] == [None, None], "it has other settings"
    assert "training.updates" in (out / "restart.random-s0.log").read_text()


def test_a_setting_that_tells_rows_apart_is_none_of_the_users(tmp_path):
    arguments = ["configs/squad-2k.yaml", "--out", str(tmp_path)]
    for setting in ("starts=lexical", "training.learning_rate=1e-3", "replay.ratio=2"):
        with pytest.raises(SystemExit, match=setting.partition("=")[0]):
            methods.main([*arguments, setting])
    with pytest.raises(SystemExit, match="--rows"):
        methods.main([*arguments, "--rows", "nothing"])


# --- pseudo-queries -------------------------------------------------------------------------------


def write_on_ranks(place, *arguments):
    result = generation.across_ranks(*arguments)
    if os.environ["RANK"] == "0":
        (place / "result.json").write_text(json.dumps(result))


def test_several_processes_write_the_queries_of_one(tmp_path):
    generator, texts = generation.material(6, 2, "default")
    on_two_ranks(write_on_ranks, tmp_path, generator, texts, 3, 1)
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["processes"], result["equal"]) == (2, True)
    assert len(texts) < result["queries"] <= 3 * len(texts)


@pytest.mark.slow  # at T5-small's size
def test_decoding_and_its_shares(tmp_path, monkeypatch, capsys):
    small = ["--sizes", "200", "--batches", "1", "--atomic-sizes", "--against", "--rounds", "1"]
    path = tmp_path / "decoding.json"
    monkeypatch.setattr("sys.argv", ["decoding", *small, "--json", str(path)])
    decoding.main()
    result = json.loads(path.read_text())
    assert result["string"][0]["ours_ms"] > 0
    assert [row["batch"] for row in result["shares"]] == [1]
    capsys.readouterr()
