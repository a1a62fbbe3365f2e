"""StageView, which components are given at both ends of a stage, and the queries of replay."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from continual.stream.stream import Stream
from dsi.examples.batches import Batch, collate
from dsi.examples.sources import Examples
from dsi.model.dsi_model import DSIModel, follow_rows
from dsi.search.forward import Inference
from dsi.text.tokens import Tokens, pad_id, padded_tensors, prompt_ids, slices

if TYPE_CHECKING:
    from continual.config.schema import RunConfig


@dataclass(frozen=True)
class QueryPool:
    """Queries to train on: ``tokens[i]`` asks for document number ``documents[i]``.

    ``weight`` is the pool's share among the pools. ``by_document``: draw a document first, as the
    run's sampling says, then one of its queries; otherwise every query is drawn equally often.
    ``extras``: further arrays with a row per query, which reach the batches (``Batch.extras``);
    examples of other sources hold NaN there, or -1 in whole numbers. An array called ``weight``
    multiplies the cross-entropy of its examples; that of others stays as it is.
    """

    name: str
    tokens: Tokens
    documents: np.ndarray
    weight: float
    by_document: bool = False
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)


def true_queries(stream: Stream, weight: float = 1.0, stage: int = 0) -> QueryPool | None:
    """The train queries of D_0 on documents that are there in a stage, each drawn equally often;
    None when there are none."""
    tokens, documents = stream.train_queries(0, stage)
    return QueryPool("queries", tokens, documents, weight) if len(documents) else None


@dataclass(frozen=True)
class StageView:
    """The stage at hand: the same for components of every family.

    Components see documents and D_0's queries through ``stream``. ``model`` is the one that is
    trained, not wrapped by any device; ``codes_NT`` are the docids by document number, -1 after
    the end, all -1 for a removed document. ``origins``: by the name of each parameter that was
    resized for the stage, where its rows were before, -1 for new ones. ``pools``: the
    queries of the stage, empty in ``begin_stage``.
    """

    stage: int
    stream: Stream
    tokenizer: PreTrainedTokenizerFast
    config: "RunConfig"
    run_folder: Path
    """The run directory; only the main process may write there."""
    model: DSIModel
    codes_NT: np.ndarray
    accelerator: Any = None
    """Accelerate's: every process of a run calls the components; None: there is only one."""
    origins: Mapping[str, Tensor] = field(default_factory=dict)
    pools: Sequence[QueryPool] = ()
    ratio: float = float("inf")
    """Indexing examples per query of ``pools``."""
    progress: bool = True
    log: Callable[[dict], None] = lambda values: None
    folded: Callable[[], AbstractContextManager[None]] = nullcontext
    """``with view.folded():`` the model has its own weights alone, under the names that they have
    in every stage: what adapters add is in them."""

    @property
    def seed(self) -> int:
        """The run's; a component derives its own from it (``dsi.seeding.derive``)."""
        return self.config.seed

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return self.accelerator is None or self.accelerator.is_main_process

    def wait(self) -> None:
        """Return when every process has come here: readers wait for what the main one writes."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()

    @property
    def documents(self) -> np.ndarray:
        """Numbers of the documents that are there in this stage."""
        return self.stream.members(self.stage)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The parameters that the stage trains, by name."""
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    def fresh(self) -> dict[str, Tensor]:
        """By parameter name, which rows are new in this stage (bool)."""
        return {name: origin < 0 for name, origin in self.origins.items()}

    def followed(self, state: Mapping[str, Tensor], fill: float = 0.0) -> dict[str, Tensor]:
        """Tensors kept since the stage before, with the rows that their parameters have now.

        Named after parameters (see ``Component.state``); ``fill`` in rows that are new.
        """
        found = {}
        for name, value in state.items():
            origin = self.origins.get(name, self.origins.get(name.partition("/")[2]))
            found[name] = value if origin is None else follow_rows(value, origin, fill)
        return found

    def batches(self, count: int, purpose: str) -> Iterator[Batch]:
        """``count`` batches of the stage's own mixture, with draws of their own.

        They depend on the seed and ``purpose`` alone and are the same on every rank.
        """
        from continual.stream.mixture import stage_batches  # which imports this module

        return stage_batches(self, count, purpose)

    def examples(
        self, tokens: Tokens, documents: np.ndarray, size: int, prompt: str = ""
    ) -> Iterator[Batch]:
        """Text -> docid examples in the order given, at most ``size`` in a batch.

        ``prompt``: stands before each; queries are trained on behind ``prompts.retrieval``.
        """
        before = prompt_ids(self.tokenizer, prompt)
        read = slices(tokens, tokens.offsets[:-1], tokens.lengths, before)
        examples = Examples(read, documents)
        for start in range(0, len(documents), size):
            rows = np.arange(start, min(start + size, len(documents)))
            yield collate(examples, rows, pad_id(self.tokenizer))

    def states(self, tokens: Tokens, rows: np.ndarray) -> Tensor:
        """The decoder's states before the first code (Q, D) of the texts at ``rows``, in their
        order and without a graph.

        Read ``evaluation.batch_size`` at a time, so neighbours had better be of one length.
        """
        inference, pad = Inference(self.model), pad_id(self.tokenizer)
        found, size = [], self.config.evaluation.batch_size
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            read = padded_tensors(tokens, batch, pad, inference.device)
            found.append(inference.query_states(*read))
        return torch.cat(found)

    def losses(self, batch: Batch) -> Tensor:
        """Cross-entropy per example (B,), summed over its docid, with its graph."""
        return cast(Tensor, self.model(**self.inputs(batch)))

    def outputs(self, batch: Batch) -> list[Tensor]:
        """Log-probabilities over the codes of each docid position, (B, C), with their graph."""
        _, scores = self.model(**self.inputs(batch), return_logits=True)
        return [torch.log_softmax(score, -1) for score in scores]

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """What ``model`` takes for a batch, on its device."""
        device = self.model.docids.rows.device
        batch = batch.to(device)
        codes = torch.from_numpy(self.codes_NT[batch.documents.cpu().numpy()])
        return {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "codes": codes.to(device).long(),
            "labels": batch.labels,
        }
