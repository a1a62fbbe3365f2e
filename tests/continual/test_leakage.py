"""What may not be seen is not seen: later corpora, and queries other than D_0's train queries.

Every query carries a word that names its split and corpus, and every batch, the tokenizer's and
the generator's texts are watched. The watcher is shown to see the oracle.
"""

from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest

from continual import trainer
from continual.config.loading import load_config, preset_names
from continual.replay import generative
from continual.run import material as setup
from continual.stream.stream import Stream
from continual.trainer import Trainer
from continual.update.update import Update
from dsi.queries.generator import QueryGenerator
from dsi.queries.lexical import LexicalQueries

SPLITS = ("train", "dev", "test")
GENERATOR = (
    "replay.generator={d_model: 16, num_layers: 1, num_decoder_layers: 1, num_heads: 2, "
    "d_ff: 16, updates: 3}"
)


@dataclass
class Watcher:
    """What was seen, with the stage in which it was."""

    stage: int = -1
    texts: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    documents: list[tuple[int, int]] = field(default_factory=list)
    asked: list[tuple[int, int]] = field(default_factory=list)

    def see(self, where, texts):
        self.texts.setdefault(where, []).extend((self.stage, text) for text in texts)

    def leaks(self, marker, sizes, texts_of_documents):
        """One line per thing that should not have been seen."""
        found = []
        allowed = marker("train", 0)
        bounds = np.cumsum(sizes)
        forbidden = [marker(s, c) for s in SPLITS for c in range(len(sizes))]
        forbidden.remove(allowed)
        for where, seen in self.texts.items():
            for stage, text in seen:
                joined = text.replace(" ", "")
                found += [f"{where}: {word}" for word in forbidden if word in joined]
                if where in ("tokenizer", "generator", "frequencies"):
                    stage = 0  # they learn from D_0 alone, whenever that is
                later = texts_of_documents[bounds[max(stage, 0)] :]
                found += [f"{where}: stage {stage} has {t[:20]}" for t in later if t in text]
        found += [f"batch: document {d} in stage {s}" for s, d in self.documents if d >= bounds[s]]
        found += [f"queries of D{c} in stage {s}" for s, c in self.asked if c > 0]
        return sorted(set(found))


@contextmanager
def watching(watcher, cache):
    """Note all that reaches a batch, the tokenizer, a generator or a list of pseudo-queries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DSI_CACHE", str(cache))  # else nothing is trained twice

        def wrap(owner, name, note):
            original = getattr(owner, name)

            def wrapper(*arguments, **options):
                note(*arguments, **options)
                return original(*arguments, **options)

            patch.setattr(owner, name, wrapper)

        def begin(self, state, stage):
            watcher.stage, watcher.tokenizer = stage, self.tokenizer

        def step(update, batch, *rest, **more):
            watcher.documents += [(watcher.stage, d) for d in batch.documents.tolist()]
            rows = batch.input_ids.tolist()
            if batch.labels is not None:
                rows += batch.labels.clamp(min=0).tolist()
            watcher.see("batch", watcher.tokenizer.batch_decode(rows, skip_special_tokens=True))

        def vocabulary(texts, *rest):
            texts = list(texts)
            watcher.see("tokenizer", texts)
            return train_tokenizer(texts, *rest)

        def written(maker, texts, *rest, **more):
            made = cached_generate(maker, texts, *rest, **more)
            watcher.see("memory", [*texts, *(query for queries in made for query in queries)])
            return made

        train = QueryGenerator.train.__func__  # type: ignore[attr-defined]

        def learn(cls, texts, queries, *rest, **more):
            watcher.see("generator", [*texts, *queries])
            return train(cls, texts, queries, *rest, **more)

        def fit(self, texts):
            texts = list(texts)
            watcher.see("frequencies", texts)
            return count(self, texts)

        def ask(self, corpus, stage=None):
            watcher.asked.append((watcher.stage, corpus))

        train_tokenizer, cached_generate = setup.train_tokenizer, generative.cached_generate
        count = LexicalQueries.fit
        wrap(Trainer, "_stage", begin)
        wrap(Update, "take", step)
        wrap(Stream, "train_queries", ask)
        wrap(Stream, "train_pairs", ask)
        patch.setattr(setup, "train_tokenizer", vocabulary)
        patch.setattr(generative, "cached_generate", written)
        patch.setattr(QueryGenerator, "train", classmethod(learn))
        patch.setattr(LexicalQueries, "fit", fit)
        yield watcher


def leaks_of(lab, cache, *settings):
    """Train, and say what was seen that should not have been."""
    material = setup.prepare(lab.config())
    texts = list(material.stream.texts(0, len(material.stream.tokens)))
    with watching(Watcher(), cache) as watcher:
        lab.train("training.updates=5", "training.updates_per_stage=4", *settings)
    assert {stage for stage, _ in watcher.texts["batch"]} == {0, 1, 2}
    assert {stage for stage, _ in watcher.documents} == {0, 1, 2}
    return watcher, watcher.leaks(lab.marker, lab.sizes, texts)


METHODS = [f"method={name}" for name in preset_names()]


@pytest.mark.parametrize(
    "method",
    [
        *((text,) for text in METHODS if not load_config(None, [text]).is_baseline),
        ("method=windows", "replay=generative"),
    ],
    ids=" ".join,
)
def test_no_method_sees_what_it_may_not(lab, tmp_path, method):
    settings = [*method, "training.ratio=1"]
    name = lab.config(*method).replay.name
    if name != "none":
        settings += ["replay.ratio=0.5"]
    if name == "generative":
        settings += ["replay.queries_per_document=2", GENERATOR]
    watcher, leaks = leaks_of(lab, tmp_path, *settings)
    assert leaks == []
    assert not lab.config(*settings).replay.build().is_oracle
    # D_0's train queries are seen, so the markers can be read; the rest was watched, too
    allowed = lab.marker("train", 0)
    for where in ("batch", "tokenizer"):
        assert any(allowed in text.replace(" ", "") for _, text in watcher.texts[where])
    learned = "genmem" in method[0]
    assert ("generator" in watcher.texts) is learned
    assert ("memory" in watcher.texts) is (name == "generative")


@pytest.mark.parametrize(
    ("replay", "corpora"),
    [
        (("replay=episodic", "replay.documents=initial"), set()),
        (("replay=episodic", "replay.documents=new"), {1, 2}),
        (("replay=episodic", "replay.documents=seen"), {1, 2}),
        (("replay=oracle",), {1, 2}),
    ],
)
def test_the_watcher_sees_the_oracle(lab, tmp_path, replay, corpora):
    """Who sees queries of later corpora is declared to, and nobody else is."""
    settings = (*replay, "replay.ratio=0.5")
    assert lab.config(*settings).replay.build().is_oracle is bool(corpora)
    _, leaks = leaks_of(lab, tmp_path, *settings)
    for corpus in (1, 2):
        found = any(f"batch: {lab.marker('train', corpus)}" in leak for leak in leaks)
        assert found is (corpus in corpora)
        asked = any(leak.startswith(f"queries of D{corpus}") for leak in leaks)
        assert asked is (corpus in corpora)
    assert bool(leaks) is bool(corpora)


def test_the_watcher_sees_documents_of_the_future(lab, tmp_path):
    """A tokenizer trained on everything, and a stage that indexes what comes next."""
    original = trainer.stage_sources

    def ahead(config, stream, stage, *rest):
        return original(config, stream, min(stage + 1, 2), *rest)

    def all_of_it(config, first):
        table = first.corpus.documents
        texts = setup.document_texts(table, title=True, lowercase=True)
        return setup.train_tokenizer(texts, config.tokenizer.vocabulary_size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "_trained", all_of_it)
        _, leaks = leaks_of(lab, tmp_path)
    assert leaks and all(leak.startswith("tokenizer: ") for leak in leaks)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(IndexError):
        patch.setattr(trainer, "stage_sources", ahead)
        leaks_of(lab, tmp_path)  # such a document has no docid yet
