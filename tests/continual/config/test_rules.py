"""Rules that no single type can state; the many of one setting each are in test_config."""

import dataclasses

import pytest

from continual.config.loading import load_config
from continual.config.rules import check
from continual.config.schema import TrainingConfig
from dsi.errors import UserError

SEMANTIC = ("docids=semantic", "docids.embedding.source=model", "training.updates=100")
ROOT = ("training.schedule=inverse_sqrt", "training.updates=400", "training.updates_per_stage=300")


@pytest.mark.parametrize(
    ("settings", "start"),
    [
        (("evaluation.depth=20",), "evaluation.beams: at least evaluation.depth"),
        ((*ROOT, "training.warmup=0"), "training.warmup: under schedule: inverse_sqrt"),
        ((*ROOT, "training.warmup=0.003"), "training.warmup: under schedule: inverse_sqrt"),
        (("evaluation.length_penalty=.inf",), "evaluation.length_penalty: must be finite"),
        ((*SEMANTIC, "docids.embedding.updates=100"), "docids.embedding.updates: must be below"),
        ((*SEMANTIC, "docids.k=1"), "docids.k: must be at least 2"),
        ((*SEMANTIC, "docids.embedding.source=bert"), "docids.embedding.source: 'bert' is not one"),
        (("docids=title", "docids.max_length=0"), "docids.max_length: "),
        (
            ("tokenizer.punctuation=drop", "tokenizer.source=folder"),
            "tokenizer.punctuation: 'folder' decides this itself; set "
            "tokenizer.punctuation: keep, or tokenizer.source: train",
        ),
        (
            ("starts=lexical", "docids=naive"),
            "docids.name: starts: lexical needs one row per document; set docids: atomic, "
            "starts: random",
        ),
        (
            ("starts=lexical", "model.source=folder", "tokenizer.source=folder"),
            "model.source: starts: lexical writes a model of its own; set model.source: scratch, "
            "or starts: random",
        ),
    ],
)
def test_what_does_not_go_together_names_its_key(settings, start):
    with pytest.raises(UserError) as caught:
        load_config(None, ["method=windows", *settings])
    assert str(caught.value).startswith(start)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        ("evaluation.depth=20", "evaluation.beams=20"),
        (*ROOT, "training.warmup=1"),
        (*ROOT, "training.warmup=0.004"),
        (*ROOT, "training.warmup=0.003", "training.updates_per_stage=0"),
        (*ROOT[1:], "training.warmup=0"),
        (*SEMANTIC, "docids.embedding.updates=99"),
        (*SEMANTIC, "docids.embedding.source=tfidf", "docids.embedding.updates=100"),
        ("tokenizer.punctuation=drop",),
        ("tokenizer.source=folder",),
        ("starts=lexical", "tokenizer.source=folder"),
        ("starts=random", "docids=naive", "model.source=folder", "tokenizer.source=folder"),
    ],
)
def test_what_goes_together_passes(settings):
    check(load_config(None, ["method=windows", *settings]))


def test_a_configuration_made_in_code_is_checked_like_a_file():
    config = load_config(None)
    check(config)
    with pytest.raises(ValueError, match=r"^threads: must be at least 0, got -1$"):
        dataclasses.replace(config, threads=-1)
    wrong = dataclasses.replace(config, training=TrainingConfig(accumulation=3))
    with pytest.raises(UserError, match=r"^training\.accumulation: must divide"):
        check(wrong)
