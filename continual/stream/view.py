"""What components are given at the start of a stage, and what replay gives back."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from continual.stream.stream import Stream
from dsi.text.tokens import Tokens


@dataclass(frozen=True)
class QueryPool:
    """Queries to train on: ``tokens[i]`` asks for document number ``documents[i]``.

    ``weight`` is the pool's share among the pools. ``by_document``: draw a document first, as the
    run's sampling says, then one of its queries; otherwise every query is drawn equally often.
    """

    name: str
    tokens: Tokens
    documents: np.ndarray
    weight: float
    by_document: bool = False


def true_queries(stream: Stream, weight: float = 1.0, stage: int = 0) -> QueryPool | None:
    """The train queries of D_0 on documents that are there in a stage, each drawn equally often;
    None when there are none."""
    tokens, documents = stream.train_queries(0, stage)
    return QueryPool("queries", tokens, documents, weight) if len(documents) else None


@dataclass(frozen=True)
class StageContext:
    """The stage at hand. Components see documents and D_0's queries through ``stream``."""

    stage: int
    stream: Stream
    tokenizer: PreTrainedTokenizerFast
    seed: int
    run_folder: Path
    """The run directory; only the main process may write there."""
    accelerator: Any = None
    """Accelerate's, of a run whose processes all call the components; None: there is one."""
    progress: bool = True
    log: Callable[[dict], None] = lambda values: None

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return self.accelerator is None or self.accelerator.is_main_process

    def wait(self) -> None:
        """Return when every process has come here: readers wait for what the main one writes."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()
