"""The batch of an update that is not finite, on disk."""

import json

import torch
from safetensors.torch import load_file

from continual.run.nonfinite import keep_batch, not_finite
from dsi.examples.batches import Batch


class Words:
    """Decodes a row to its numbers."""

    def batch_decode(self, rows, skip_special_tokens):
        return [" ".join(str(int(token)) for token in row) for row in rows]


def test_tensors_and_texts_are_kept(tmp_path):
    ids = torch.tensor([[3, 4], [5, 0]])
    given = Batch(ids, (ids > 0).long(), torch.tensor([1, 0]), torch.tensor([[7], [8]]))
    for update in (3, 4):  # the last one stays
        place = keep_batch(tmp_path, given, Words(), ["a", "b"], 2, update)
    assert place == tmp_path / "nonfinite"
    about = json.loads((place / "batch.json").read_text())
    assert (about["stage"], about["update"]) == (2, 4)
    assert about["examples"] == [
        {"document": "b", "text": "3 4"},
        {"document": "a", "text": "5 0"},
    ]
    found = load_file(place / "batch.safetensors")
    assert torch.equal(found["input_ids"], ids) and torch.equal(found["labels"], given.labels)
    error = str(not_finite(float("inf"), 2, 4, place))
    assert "inf at update 4 of stage 2" in error and str(place) in error and "\n" not in error
