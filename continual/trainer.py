"""The loop: corpora in sequence, a row of the performance matrix after each.

    dsi train CONFIG [key=value ...]
    accelerate launch -m continual.train CONFIG [key=value ...]

Everything random is a function of (seed, purpose, stage, update), so the state of a run is its
weights, its optimizer's moments, what its components carry and a few counters.
"""

import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from continual.config.schema import RunConfig
from continual.devices.accelerator import make_accelerator
from continual.measure.evaluation import METRICS, CorpusResult, Evaluator
from continual.measure.performance import ForgettingEvents
from continual.measure.sharpness import measure_stage
from continual.method import Method
from continual.run import checkpoint as checkpoints
from continual.run import directory
from continual.run.checkpoint import Checkpoint
from continual.run.docids import Assignment
from continual.run.material import Material, make_model
from continual.run.nonfinite import keep_batch, not_finite
from continual.run.results import row_events, stream_matrix
from continual.run.signals import Interrupted, Signals
from continual.run.stage_index import write_index
from continual.run.tracking import Tracker
from continual.stage import NotFinite, StageLoop
from continual.state import TrainState, as_checkpoint, restored
from continual.stream.mixture import stage_pools, stage_sources
from continual.stream.view import QueryPool, StageView
from continual.update.optimizer import make_optimizer, named_state, restore_state
from dsi.embeddings import ModelEmbedder
from dsi.errors import UserError
from dsi.files import write_json
from dsi.model.dsi_model import DSIModel
from dsi.search.trie import Trie
from dsi.seeding import derive
from dsi.text.tokens import pad_id, prompt_ids


class Trainer:
    """One run over the stages of a stream. :meth:`load` first, then :meth:`run`.

    ``accelerator`` and ``docids``: where the caller has made them already.
    """

    def __init__(
        self,
        config: RunConfig,
        material: Material,
        folder: Path,
        accelerator: Accelerator | None = None,
        docids: Assignment | None = None,
    ):
        self.config, self.folder = config, folder
        self.stream, self.tokenizer = material.stream, material.tokenizer
        self.accelerator = accelerator or make_accelerator(config)
        self.docids = docids or Assignment(config, self.stream, folder, self.accelerator)
        self.signals = Signals(self.accelerator)
        self.method = Method.of(config)
        self.queries = [self.stream.judged_queries("test", n) for n in range(len(self.stream))]
        every = config.evaluation.events_every
        when = f"every {every} updates and after every stage" if every else "after every stage"
        self.events = ForgettingEvents(0, f"{when}, all documents seen")
        self.timing: list[dict[str, float]] = []
        self._pools: tuple[int, list[QueryPool], float] = (-1, [], 0.0)

    def load(self, resume: bool = False, accept: Sequence[str] = ()) -> TrainState:
        """The state that the run starts from; after this nothing on disk can refuse it.

        ``accept``: see :func:`continual.runs.train`.
        """
        found, size, checksum = None, 0, None
        if resume:
            found = checkpoints.load_latest(self.folder / "checkpoints", self.accelerator.print)
        if found is None:
            state = self._start()
        else:
            with checkpoints.fitting(self.folder / "checkpoints", found):
                state = self._restore(found, accept)
                size, checksum = found.values["metrics_size"], found.values.get("metrics_sha256")
        self.tracker = Tracker(self.folder, self.config, self.accelerator, size, checksum)
        return state

    def run(self, state: TrainState) -> None:
        """Finish every stage."""
        last = len(self.stream) - 1
        with self.signals.handled():
            for stage in range(state.stage + 1 if state.finished else state.stage, last + 1):
                if self.config.training.stages == "last" and stage < last:
                    self._skip(state, stage)
                else:
                    self._stage(state, stage)
        self.accelerator.wait_for_everyone()

    def _stage(self, state: TrainState, stage: int) -> None:
        started = time.monotonic()
        is_new = state.finished or state.stage != stage or state.update == 0
        view = self._begin(state, stage) if is_new else self._view(state, stage)
        if self.accelerator.is_main_process:
            directory.seal(self.folder)
        view = self._with_pools(view)
        ready = time.monotonic()
        state.model.to(self.accelerator.device)
        if not self.method.parameters.learn(view):
            self._train(state, view)
        trained = time.monotonic()
        self._end(state, stage)
        self._evaluate(state, stage)
        state.finished = True
        seconds = {
            "prepare": ready - started,
            "train": trained - ready,
            "evaluate": time.monotonic() - trained,
        }
        self.timing.append({"stage": stage, **{k: round(v, 2) for k, v in seconds.items()}})
        self._save(state)
        if self.accelerator.is_main_process:
            write_json(self.folder / "timing.json", self.timing)
            directory.seal(self.folder)

    def _begin(self, state: TrainState, stage: int) -> StageView:
        """Adapt docids, model and optimizer to the stage, and let every component begin it."""
        config, method = self.config, self.method
        self.events.extend(self.stream.count(stage), self.stream.replaced(stage))
        model, origins = state.model, {}
        moments = named_state(state.optimizer, model)
        if stage > 0:
            self.docids.extend(stage)
        if config.training.restart and stage > 0:
            model, moments = self._new_model(stage), {}
            model.to(self.accelerator.device)
        elif stage > 0:
            generator = torch.Generator().manual_seed(derive(config.seed, "new rows", stage))
            kept = self.docids.kept_rows(stage)
            rows = None if kept is None else torch.from_numpy(kept)
            origins = model.resize(self.docids.code_sizes(stage), generator, rows)
        model.zero_grad()  # what is frozen now would keep its last gradient, and clipping count it
        method.parameters.shape(model, stage)
        method.parameters.select(model, stage)
        optimizer = make_optimizer(model, config.training)
        if not config.training.reset_optimizer:
            restore_state(optimizer, model, moments, origins)
        state.model, state.optimizer = model, optimizer
        state.stage, state.update, state.finished, state.skipped = stage, 0, False, 0
        view = replace(self._view(state, stage), origins=origins)
        for axis, component in method:
            component.begin_stage(view)
            if axis == "starts":
                method.starts.begin(self._with_pools(view), self._fresh(state, view))
        return view

    def _fresh(self, state: TrainState, view: StageView) -> dict[str, torch.Tensor]:
        """Which rows of the docid head are new in the stage, by name."""
        if view.stage > 0 and not self.config.training.restart:
            return view.fresh()
        head = {n: p for n, p in state.model.named_parameters() if n.startswith("docids.")}
        return {n: torch.ones(len(p), dtype=torch.bool) for n, p in head.items() if p.dim() > 1}

    def _view(self, state: TrainState, stage: int) -> StageView:
        return StageView(
            stage,
            self.stream,
            self.tokenizer,
            self.config,
            self.folder,
            state.model,
            self.docids.codes(stage),
            self.accelerator,
            progress=sys.stderr.isatty(),
            log=lambda values: self.tracker.log({"stage": stage, **values}, self.total(state)),
            folded=lambda: self.method.parameters.folded(state.model),
        )

    def _with_pools(self, view: StageView) -> StageView:
        if self._pools[0] != view.stage:  # they are read and tokenized once per stage
            stage, replay = view.stage, self.method.replay
            found = stage_pools(self.config, self.stream, stage, replay.pools(view), replay.ratio)
            self._pools = (stage, *found)
        _, pools, ratio = self._pools
        return replace(view, pools=pools, ratio=ratio)

    def _train(self, state: TrainState, view: StageView) -> None:
        budget, stage = self.budget(view.stage), view.stage
        sources = stage_sources(
            self.config, self.stream, stage, view.pools, view.ratio, self.tokenizer
        )
        if not self.docids.corpora:  # D_0, whose docids come from the model's own encoder
            self._loop(state, sources, budget, self.docids.warmup)
            self._leave_atomic(state)
        self._loop(state, sources, budget, budget)

    def _loop(self, state: TrainState, sources: list, budget: int, stop: int) -> None:
        """Updates up to ``stop`` of the stage's ``budget``."""
        loop = StageLoop(
            self.config,
            self.method,
            self.accelerator,
            self.tracker,
            self.signals,
            state,
            sources,
            self.docids.codes(state.stage),
            budget,
            sum(state.num_updates),
            pad_id(self.tokenizer),
        )
        try:
            with self.signals.noted(), closing(loop.train(stop)) as updates:
                for due in updates:
                    if due.events:
                        with self.method.parameters.folded(state.model):
                            self._look(state, state.stage, self._evaluator(state, state.stage))
                    if due.save:
                        self._save(state)
                    if due.signum:
                        self.accelerator.wait_for_everyone()
                        where = f"at update {state.update} of stage {state.stage}"
                        raise Interrupted(due.signum, where)
        except NotFinite as problem:
            raise self._not_finite(problem, state.stage) from None

    def _not_finite(self, problem: NotFinite, stage: int) -> UserError:
        place = self.folder / "nonfinite"
        if self.accelerator.is_main_process:
            ids = self.stream.document_ids(0, self.stream.count(stage))
            keep_batch(self.folder, problem.batch, self.tokenizer, ids, stage, problem.update)
        return not_finite(problem.value, stage, problem.update, place)

    def _leave_atomic(self, state: TrainState) -> None:
        """Give D_0 its docids by the encoder as trained so far; training goes on with them."""
        config, old = self.config, state.model
        embedder = ModelEmbedder(
            old,
            self.tokenizer,
            config.evaluation.document_length,
            prompt_ids(self.tokenizer, config.prompts.indexing),
        )
        self.docids.extend(0, embedder)
        model = self._new_model(0)
        weights = {n: w for n, w in old.state_dict().items() if not n.startswith("docids.")}
        model.load_state_dict(weights, strict=False)
        model.to(self.accelerator.device)
        self.method.parameters.select(model, 0)
        optimizer = make_optimizer(model, config.training)
        moments = named_state(state.optimizer, old)
        kept = {n: value for n, value in moments.items() if not n.startswith("docids.")}
        restore_state(optimizer, model, kept)
        state.model, state.optimizer = model, optimizer
        self.method.sharpness.begin_stage(self._view(state, 0))

    def _end(self, state: TrainState, stage: int) -> None:
        """Let every component end the stage: adapters are folded first, weights merged last."""
        moments = named_state(state.optimizer, state.model)
        view = self._with_pools(self._view(state, stage))
        state.model.eval()
        for _, component in self.method:
            component.end_stage(view)
        names = dict(state.model.named_parameters())
        if any(key.rpartition("/")[0] not in names for key in moments):
            state.optimizer = make_optimizer(state.model, self.config.training)
            restore_state(state.optimizer, state.model, moments)

    def _evaluate(self, state: TrainState, stage: int) -> None:
        """The row of the matrix, its files and what is logged of it."""
        evaluator = self._evaluator(state, stage)
        found = self._look(state, stage, evaluator)
        results, how = evaluator.evaluate(stage, self.queries, found)
        row = {metric: [result.metrics[metric] for result in results] for metric in METRICS}
        state.num_updates.append(state.update)
        state.rows.append(row)
        flat = measure_stage(self.config, self.stream, state.model, self.docids.codes(stage), stage)
        matrix = self.matrix(state)
        for event in row_events(stage, state.update, row, matrix, flat):
            self.tracker.log(event, self.total(state, finished=True))
        if self.accelerator.is_main_process:
            self._write(state, results, evaluator.ranker.trie)
            target = directory.stage_folder(self.folder, stage)
            write_json(target / "decoding.json", {"docids": self.config.docids.name, **how})
            if flat is not None:
                write_json(target / "sharpness.json", flat)
            write_json(self.folder / "matrix.json", matrix)
        self.accelerator.wait_for_everyone()

    def _write(self, state: TrainState, results: list[CorpusResult], trie: Trie | None) -> None:
        """The results of a stage, and its folder as an index."""
        stage, codes = state.stage, self.docids.codes(state.stage)
        directory.write_results(self.folder, self.stream, stage, results, self.config.name)
        write_index(self.folder, stage, self.config, self.stream, state.model, codes, trie)
        ids = self.stream.document_ids(0, self.stream.count(stage))
        write_json(self.folder / "forgetting_events.json", self.events.to_json(ids))

    def _look(self, state: TrainState, stage: int, evaluator: Evaluator) -> np.ndarray:
        """Whether the model finds each document now; counts forgetting events."""
        found = evaluator.documents_found(stage)
        members = self.stream.members(stage)
        self.events.update(members, found[members], self.total(state))
        return found

    def _evaluator(self, state: TrainState, stage: int) -> Evaluator:
        codes, stream = self.docids.codes(stage), self.stream
        return Evaluator(self.config, stream, state.model, codes, self.accelerator, stage)

    def _start(self) -> TrainState:
        self.docids.clear()
        if not self.docids.warmup:
            self.docids.extend(0)
            model = self._new_model(0)
        else:
            model = make_model(self.config, self.tokenizer, [self.stream.count(0)], stage=0)
        model.to(self.accelerator.device)
        self.method.parameters.select(model, 0)
        return TrainState(model, make_optimizer(model, self.config.training))

    def _new_model(self, stage: int) -> DSIModel:
        sizes, shared = self.docids.code_sizes(stage), self.docids.scheme.shared
        return make_model(self.config, self.tokenizer, sizes, stage, shared)

    def _skip(self, state: TrainState, stage: int) -> None:
        self.events.extend(self.stream.count(stage), self.stream.replaced(stage))
        state.rows.append(None)
        state.num_updates.append(0)
        state.stage = stage

    def budget(self, stage: int) -> int:
        """Updates of a stage; re-training from scratch gets those of all stages so far."""
        training = self.config.training
        if training.restart:
            return training.updates + stage * training.updates_per_stage
        if not len(self.stream.changed(stage)):  # it only removes
            return 0
        return training.updates if stage == 0 else training.updates_per_stage

    def total(self, state: TrainState, finished: bool = False) -> int:
        """Updates of the whole run so far."""
        return sum(state.num_updates) + (0 if finished else state.update)

    def matrix(self, state: TrainState) -> dict[str, Any]:
        """matrix.json's content after the stages done."""
        rows, updates = state.rows, state.num_updates
        return stream_matrix(self.stream, self.queries, rows, updates)

    def _save(self, state: TrainState) -> None:
        if not self.accelerator.is_main_process:
            return
        events = self.events.state_dict()
        plain = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in events.items()}
        values = {
            "events": plain,
            "metrics_size": self.tracker.size(),
            "metrics_sha256": self.tracker.checksum(),
            "timing": self.timing,
            "stream": self.stream.fingerprint(state.stage + 1),
            "made_by": directory.made_by(self.accelerator),
        }
        found = as_checkpoint(state, self.method, values)
        checkpoints.save(self.folder / "checkpoints", found, self.config.checkpoint.keep)

    def _restore(self, found: Checkpoint, accept: Sequence[str]) -> TrainState:
        values, stage = found.values, found.stage
        now = directory.made_by(self.accelerator)
        directory.require_same_maker(self.folder, values["made_by"], now, accept)
        if values["stream"] != self.stream.fingerprint(stage + 1):
            raise UserError(
                f"{self.folder}: the corpora differ from those the run was trained on; restore "
                "them, or start a new run"
            )
        if stage or found.finished or found.update > self.docids.warmup or not self.docids.warmup:
            self.docids.read(stage + 1)
        else:
            self.docids.clear()
        self.events.load_state_dict(values["events"])
        self.timing = values["timing"]
        return restored(found, self.method, self.config.training, self.accelerator.device)
