"""An update whose gradient or loss is not finite: keep its batch, stop the run."""

from pathlib import Path

from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

from dsi.errors import UserError
from dsi.examples.batches import Batch
from dsi.files import replace_atomically, write_json


def keep_batch(
    folder: Path,
    batch: Batch,
    tokenizer: PreTrainedTokenizerFast,
    ids: list[str],
    stage: int,
    update: int,
) -> Path:
    """Write a batch to ``folder/nonfinite``: tensors, and texts with their documents' ids."""

    def write(target: Path) -> None:
        tensors = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "documents": batch.documents,
        }
        if batch.labels is not None:
            tensors["labels"] = batch.labels
        save_file(
            {k: v.cpu().contiguous() for k, v in tensors.items()}, target / "batch.safetensors"
        )
        texts = tokenizer.batch_decode(batch.input_ids, skip_special_tokens=True)
        examples = [
            {"document": ids[number], "text": text}
            for number, text in zip(batch.documents.tolist(), texts, strict=True)
        ]
        write_json(target / "batch.json", {"stage": stage, "update": update, "examples": examples})

    replace_atomically(folder / "nonfinite", write)
    return folder / "nonfinite"


def not_finite(value: float, stage: int, update: int, place: Path) -> UserError:
    """The error that stops the run."""
    return UserError(
        f"training.learning_rate: the loss or its gradient is {value} at update {update} of stage "
        f"{stage}, whose batch is in {place}; lower the rate, set training.clip: 1, or leave such "
        "updates out with training.nonfinite: skip"
    )
