"""A run of a baseline: the stages, the matrix and the files of any other run, and no model."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from continual.config.schema import RunConfig
from continual.measure.evaluation import METRICS, CorpusResult, corpus_results
from continual.run import directory
from continual.run.docids import Assignment
from continual.run.material import Material
from continual.run.results import row_events, stream_matrix
from continual.run.signals import Signals
from continual.run.tracking import Tracker
from continual.stream.stream import Judged
from dsi.baselines import Retriever
from dsi.files import write_json


class BaselineRun:
    """One run of ``config.baseline`` over the stages of a stream.

    It makes no updates and no checkpoints: a resumed run makes all rows again, in seconds. Of
    several processes the first one does the work. There are no docids, so no indexing accuracy.
    """

    def __init__(
        self,
        config: RunConfig,
        material: Material,
        folder: Path,
        accelerator: Accelerator,
        docids: Assignment | None = None,
    ):
        self.config, self.folder, self.stream = config, folder, material.stream
        self.accelerator, self.signals = accelerator, Signals(accelerator)
        self.retriever: Retriever = config.baseline.build()
        self.retriever.seed = config.seed

    def load(self, resume: bool = False, accept: Sequence[str] = ()) -> None:
        """Open metrics.jsonl; there is no state to load."""
        self.tracker = Tracker(self.folder, self.config, self.accelerator)

    def run(self, state: None = None) -> None:
        """Every stage: documents out and in, queries, a row of the matrix."""
        if self.accelerator.is_main_process:
            self._run()
        self.accelerator.wait_for_everyone()

    def _run(self) -> None:
        rows: list[Any] = []
        queries = [self.stream.judged_queries("test", n) for n in range(len(self.stream))]
        timing: list[dict[str, float]] = []
        with self.signals.handled():
            for stage in range(len(self.stream)):
                started = time.monotonic()
                self.follow(stage)
                ready = time.monotonic()
                results, how = self.answer(stage, queries)
                rows.append({m: [result.metrics[m] for result in results] for m in METRICS})
                matrix = stream_matrix(self.stream, queries, rows, [0] * len(rows))
                for event in row_events(stage, 0, rows[-1], matrix):
                    self.tracker.log(event, 0)
                name, target = self.config.name, directory.stage_folder(self.folder, stage)
                directory.write_results(self.folder, self.stream, stage, results, name)
                write_json(target / "decoding.json", how)
                done = time.monotonic()
                seconds = {"stage": stage, "prepare": ready - started, "evaluate": done - ready}
                timing.append({key: round(value, 2) for key, value in seconds.items()})
                write_json(self.folder / "timing.json", timing)
                write_json(self.folder / "matrix.json", matrix)
                directory.seal(self.folder)

    def follow(self, stage: int) -> None:
        """Remove, change and add the documents of a stage."""
        stream = self.stream
        self.retriever.remove(stream.removed(stage))
        changed = np.sort(stream.changed(stage))
        self.retriever.add(changed, list(stream.texts_at(changed, stage)))

    def answer(
        self, stage: int, queries: list[Judged]
    ) -> tuple[list[CorpusResult], dict[str, Any]]:
        """Results on D_0 .. D_n, and how fast they came."""
        present = self.stream.present(stage)
        asked = [queries[o].among(present) for o in range(stage + 1)]
        texts = [text for own in asked for text in own.texts]
        started = time.perf_counter()
        numbers, scores = self.retriever.search(texts, self.config.evaluation.depth)
        seconds = time.perf_counter() - started
        speed = len(texts) / seconds if seconds > 0 and texts else None
        how = {"queries": len(texts), "queries_per_second": speed}
        return corpus_results(asked, numbers, scores), {**self.name, **how}

    @property
    def name(self) -> dict[str, str]:
        """Which baseline it is."""
        return {"baseline": self.config.baseline.name}
