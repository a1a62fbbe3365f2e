"""Peak memory of training does not grow with the number of stages."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from dsi.corpus.corpus import write_corpus

DOCUMENTS = 96
SETTINGS = (
    "name=run",
    "method=default",
    "data.stream=stages",
    "tokenizer.vocabulary_size=200",
    "model.d_model=32",
    "model.num_heads=2",
    "model.d_ff=64",
    "regularizer.name=l2",
    "training.updates=8",
    "training.updates_per_stage=8",
    "training.batch_size=16",
    "training.window=4",
    "evaluation.events_every=4",
    "checkpoint.every=4",
)
TRAIN = """
import gc, json, resource, sys
import torch
from continual import runs
from continual.config.loading import load_config
from continual.update.update import Update

peak, take = 0, Update.take

def live():
    storages = {}
    for found in gc.get_objects():
        if issubclass(type(found), torch.Tensor):
            storage = found.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())

def step(self, batch, seed, number, rate):
    global peak
    made = take(self, batch, seed, number, rate)
    if number % 8 == 7:  # looking at every object takes longer than an update
        peak = max(peak, live())
    return made

Update.take = step
runs._show = lambda folder: None
runs.train(load_config(None, sys.argv[1:]))
resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"tensors": max(peak, live()), "resident": resident}))
"""


def write_stages(folder, stages):
    """Always the same documents, with a train and a test query each, in so many stages."""
    rng = np.random.default_rng(3)
    words = [f"{a}{b}" for a in ("ba", "ki", "lo", "du", "re") for b in ("na", "to", "si", "mu")]
    ids = [f"d{number}" for number in range(DOCUMENTS)]
    texts = [" ".join(rng.choice(words, 12)) for _ in ids]
    documents = [{"_id": i, "title": "", "text": t} for i, t in zip(ids, texts, strict=True)]
    qrels = {split: [(f"{split}-{i}", i, 1) for i in ids] for split in ("train", "test")}
    queries = [
        {"_id": f"{split}-{i}", "text": " ".join(text.split()[place : place + 4])}
        for split, place in (("train", 0), ("test", 6))
        for i, text in zip(ids, texts, strict=True)
    ]
    stream = np.array_split(np.array(ids), stages)
    write_corpus(folder, documents, queries, qrels, {"stages": [part.tolist() for part in stream]})


def peaks(folder, stages):
    """Bytes at the peak of a training run in a process of its own: tensors, and all of it."""
    write_stages(folder / "corpus", stages)
    settings = [f"output={folder}", f"data.corpus={folder / 'corpus'}", *SETTINGS]
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, *settings],
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    matrix = json.loads((folder / "run" / "matrix.json").read_text("utf-8"))
    assert matrix["num_documents"] == [DOCUMENTS // stages] * stages
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_twice_the_stages_need_no_more_memory(tmp_path):
    six, twelve = (peaks(tmp_path / str(stages), stages) for stages in (6, 12))
    # parameters, moments, an anchor and batches: what a stage leaves behind would be seen
    assert 100_000 < six["tensors"] < 10_000_000
    for kind, bytes_of_six in six.items():
        assert twelve[kind] <= 1.05 * bytes_of_six, (kind, six, twelve)
