"""The loop: corpora in sequence, a row of the performance matrix after each.

    dsi train CONFIG [key=value ...]
    accelerate launch -m continual.train CONFIG [key=value ...]

Everything random is a function of (seed, purpose, stage, update), so the state of a run is its
weights, its optimizer's moments and a few counters.
"""

import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import tqdm

from continual.config.schema import RunConfig
from continual.devices.accelerator import make_accelerator
from continual.devices.sharding import gather, is_sharded, shard
from continual.measure.evaluation import METRICS, Evaluator
from continual.measure.performance import ForgettingEvents
from continual.measure.sharpness import measure_stage
from continual.run import checkpoint as checkpoints
from continual.run import directory
from continual.run.checkpoint import Checkpoint
from continual.run.docids import Assignment
from continual.run.material import Material, make_model, prepare_layers
from continual.run.nonfinite import keep_batch, refuse
from continual.run.signals import Interrupted, Signals
from continual.run.tracking import Tracker
from continual.state import TrainState, from_checkpoint, to_checkpoint
from continual.stream.mixture import batch_shape, prompt_ids, stage_sources, window_updates
from continual.stream.view import StageContext, true_queries
from continual.update.optimizer import (
    learning_rate,
    make_optimizer,
    named_state,
    peak_rate,
    restore_state,
)
from continual.update.steps import take_step
from dsi.embeddings import ModelEmbedder
from dsi.errors import UserError
from dsi.examples.batches import Batch, batches_from
from dsi.examples.prefetch import ahead
from dsi.files import replace_atomically, write_json
from dsi.model.dsi_model import DSIModel
from dsi.seeding import derive


class Trainer:
    """One run over the stages of a stream."""

    def __init__(
        self,
        config: RunConfig,
        material: Material,
        folder: Path,
        accept: Sequence[str] = (),
    ):
        self.accept = accept
        self.config, self.folder = config, folder
        self.stream, self.tokenizer = material.stream, material.tokenizer
        self.accelerator = make_accelerator(config)
        self.signals = Signals(self.accelerator)
        self.pad = cast(int, self.tokenizer.pad_token_id or 0)
        self.replay = config.replay.build()
        self.regularizer = config.regularizer.build()
        self.sharpness = config.sharpness.build()
        self.parameters = config.parameters.build()
        self.merging = config.merging.build()
        self.docids = Assignment(
            config,
            self.stream,
            folder,
            self.accelerator.is_main_process,
            self.accelerator.wait_for_everyone,
        )
        self.queries = [self.stream.judged_queries("test", n) for n in range(len(self.stream))]
        every = config.evaluation.events_every
        when = f"every {every} updates and after every stage" if every else "after every stage"
        self.events = ForgettingEvents(0, f"{when}, all documents seen")
        self.timing: list[dict[str, float]] = []

    def run(self, resume: bool = False, begin: Callable[[], None] = lambda: None) -> None:
        """Finish every stage; ``begin`` is called once nothing on disk can refuse the run."""
        config, stream = self.config, self.stream
        last = len(stream) - 1
        found = None
        if resume:
            found = checkpoints.load_latest(self.folder / "checkpoints", self.accelerator.print)
        size, checksum = 0, None
        if found is None:
            state = self._start()
        else:
            with checkpoints.fitting(self.folder / "checkpoints", found):
                state = self._restore(found)
                size, checksum = found.values["metrics_size"], found.values.get("metrics_sha256")
        self.tracker = Tracker(self.folder, config, self.accelerator, size, checksum)
        start = state.stage + 1 if state.finished else state.stage
        try:
            begin()
            with self.signals.handled():
                for stage in range(start, len(stream)):
                    if config.training.stages == "last" and stage < last:
                        self._skip(state, stage)
                        continue
                    self._stage(state, stage)
        finally:
            self.tracker.close()
        self.accelerator.wait_for_everyone()

    def _stage(self, state: TrainState, stage: int) -> None:
        config, stream, started = self.config, self.stream, time.monotonic()
        if state.finished or state.stage != stage or state.update == 0:
            self._begin(state, stage)
        state.model.to(self.accelerator.device)
        budget, entered = self.budget(stage), state.update

        def log(values: dict[str, Any]) -> None:
            if entered == 0:  # a stage that is resumed has said so before
                self.tracker.log({"stage": stage, **values}, self.total(state))

        context = StageContext(
            stage,
            stream,
            self.tokenizer,
            config.seed,
            self.folder,
            self.accelerator,
            progress=sys.stderr.isatty(),
            log=log,
        )
        pools = self.replay.begin_stage(context)
        if self.accelerator.is_main_process:
            directory.seal(self.folder)
        ratio = self.replay.ratio
        if stage > 0 and ratio == float("inf"):
            pools = []
        if stage == 0 or (config.training.restart and not pools):
            queries = true_queries(stream, stage=stage)
            pools = [queries, *pools] if queries else pools
            ratio = config.training.ratio
        sources = stage_sources(config, stream, stage, pools, ratio, self.tokenizer)
        ready = time.monotonic()
        if not self.docids.corpora:  # D_0: the scheme asks the model's own encoder
            with self.signals.noted():
                self._train(state, stage, sources, budget, self.docids.warmup)
            self._leave_atomic(state)
        with self.signals.noted():
            self._train(state, stage, sources, budget, budget)
        trained = time.monotonic()
        self._merge(state, stage)
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

    def _train(self, state: TrainState, stage: int, sources: list, budget: int, stop: int) -> None:
        """Updates up to ``stop`` of the stage's ``budget``."""
        config, training, accelerator = self.config, self.config.training, self.accelerator
        codes_NT = torch.from_numpy(self._codes(stage)).to(accelerator.device).long()
        sharp = self.sharpness.active(stage)
        model: Any
        optimizer, sharded = state.optimizer, is_sharded(accelerator)
        prepare_layers(state.model, training)
        if sharded:
            model, optimizer = shard(state.model, state.optimizer, training)
        else:
            model = accelerator.prepare_model(state.model)
        model.train()
        losses: list[torch.Tensor] = []  # this rank's shares of the latest ones

        def settle() -> None:
            """Ranks exchange their shares of the losses at once, not update by update."""
            if losses:
                sums = cast(torch.Tensor, accelerator.reduce(torch.stack(losses), "sum"))
                state.recent += sums.unbind()
                losses.clear()

        def check() -> None:
            """Plain updates wait for the device here alone: was every loss finite?"""
            settle()
            values = torch.stack(state.recent).tolist() if state.recent else []
            for i, value in enumerate(values):
                if not math.isfinite(value):
                    batches.close()  # the thread draws from the same sources
                    bad = state.update - len(values) + i
                    again = batches_from(sources, bad, bad + 1, window, shape, seed)
                    raise self._not_finite(next(again), value, stage, bad)

        def whole() -> None:
            """What is evaluated and saved is up to date in ``state``."""
            settle()
            if sharded:
                gather(model, optimizer, state.model, state.optimizer)

        peak = peak_rate(training, stage)
        seed = derive(config.seed, "batches", stage)
        window, ranks = window_updates(training, budget), accelerator.num_processes
        shape = batch_shape(training, sources, window, seed, ranks, self.pad)
        drawn: Any = batches_from(sources, state.update, stop, window, shape, seed)
        if accelerator.device.type == "cuda":
            drawn = map(Batch.pinned, drawn)
        batches = ahead(drawn, training.prefetch)
        bar = tqdm(
            total=budget,
            initial=state.update,
            desc=f"stage {stage}: D{stage}",
            unit="update",
            disable=not accelerator.is_main_process,
            mininterval=1.0,
        )
        careful = sharp or training.nonfinite == "skip"
        with bar, closing(batches):
            for batch in batches:
                rate = learning_rate(training, stage, state.update, budget)
                for group in optimizer.param_groups:
                    group["lr"] = rate * group.get("scale", 1.0)
                made = take_step(
                    model,
                    optimizer,
                    batch,
                    codes_NT,
                    accelerator,
                    micro_batches=training.accumulation,
                    seed=derive(config.seed, "dropout", stage, state.update),
                    clip=training.clip,
                    label_smoothing=training.label_smoothing,
                    regularizer=self.regularizer,
                    sharpness=self.sharpness,
                    sharp=sharp,
                    update=state.update,
                    rate=rate / peak,
                    careful=careful,
                )
                if made.taken:
                    losses.append(made.loss)
                elif training.nonfinite == "stop":
                    value = float(cast(torch.Tensor, accelerator.reduce(made.loss, "sum")))
                    raise self._not_finite(batch, value, stage, state.update)
                else:
                    state.skipped += 1
                state.update += 1
                bar.update()
                if state.update % config.tracking.log_every == 0 or state.update == budget:
                    check()
                    if not state.recent:
                        raise UserError(
                            f"training.nonfinite: not one of the last updates was finite (update "
                            f"{state.update} of stage {stage}); lower training.learning_rate"
                        )
                    value = float(torch.stack(state.recent).mean())
                    state.recent.clear()
                    skipped = {"skipped_updates": state.skipped} if careful else {}
                    line = {"stage": stage, "update": state.update, "loss": value, **skipped}
                    self.tracker.log({**line, "learning_rate": rate}, self.total(state))
                    bar.set_postfix(loss=f"{value:.3f}", refresh=False)
                every = config.evaluation.events_every
                if every and state.update % every == 0 and state.update < budget:
                    whole()
                    self._look(state, stage, self._evaluator(state, stage))
                every, signum = config.checkpoint.every, self.signals.pending(state.update)
                if signum or (every and state.update % every == 0 and state.update < budget):
                    check()
                    whole()
                    self._save(state)
                if signum:
                    accelerator.wait_for_everyone()
                    raise Interrupted(signum, f"at update {state.update} of stage {stage}")
        whole()
        if not sharded:
            state.model = accelerator.unwrap_model(model, keep_fp32_wrapper=False)

    def _not_finite(self, batch: Batch, value: float, stage: int, update: int) -> UserError:
        place = self.folder / "nonfinite"
        if self.accelerator.is_main_process:
            ids = self.stream.document_ids(0, self.stream.count(stage))
            keep_batch(self.folder, batch, self.tokenizer, ids, stage, update)
        return refuse(value, stage, update, place)

    def _evaluate(self, state: TrainState, stage: int) -> None:
        config, accelerator = self.config, self.accelerator
        evaluator = self._evaluator(state, stage)
        found = self._look(state, stage, evaluator)
        results, how = evaluator.evaluate(stage, self.queries, found)
        row = {metric: [result.metrics[metric] for result in results] for metric in METRICS}
        state.num_updates.append(self.budget(stage))
        state.rows.append(row)
        matrix = self.matrix(state)
        for o in range(stage + 1):
            cells = {metric: row[metric][o] for metric in METRICS}
            event = {"stage": stage, "update": state.update, "corpus": f"D{o}", **cells}
            self.tracker.log(event, self.total(state, finished=True))
        flat = measure_stage(config, self.stream, state.model, self._codes(stage), stage)
        if flat is not None:
            rises = {f"sharpness/{key}": flat[key] for key in ("rise", "eigenvalue")}
            event = {"stage": stage, "update": state.update, **rises}
            self.tracker.log(event, self.total(state, finished=True))
        averages = {
            f"{short}/{metric}": matrix[key][metric][stage]
            for short, key in (
                ("A", "average_performance"),
                ("F", "forgetting"),
                ("LA", "learning_performance"),
            )
            for metric in METRICS
        }
        self.tracker.log(
            {"stage": stage, "update": state.update, **averages}, self.total(state, finished=True)
        )
        if accelerator.is_main_process:
            target = directory.stage_folder(self.folder, stage)
            directory.write_results(self.folder, self.stream, stage, results, config.name)
            if flat is not None:
                write_json(target / "sharpness.json", flat)
            write_json(target / "decoding.json", {"docids": config.docids.name, **how})
            replace_atomically(target / "model", state.model.save_pretrained)
            if evaluator.ranker.trie is not None:
                evaluator.ranker.trie.save(target / "trie")
            ids = self.stream.document_ids(0, self.stream.count(stage))
            write_json(self.folder / "forgetting_events.json", self.events.to_json(ids))
            write_json(self.folder / "matrix.json", matrix)
        accelerator.wait_for_everyone()

    def _look(self, state: TrainState, stage: int, evaluator: Evaluator) -> np.ndarray:
        """Which documents of U_n the model finds now; counts forgetting events."""
        found = evaluator.documents_found(stage)
        members = self.stream.members(stage)
        self.events.update(members, found[members], self.total(state))
        return found

    def _evaluator(self, state: TrainState, stage: int) -> Evaluator:
        codes, stream = self._codes(stage), self.stream
        return Evaluator(self.config, stream, state.model, codes, self.accelerator, stage)

    def _codes(self, stage: int) -> np.ndarray:
        """Codes (N, T) of the documents that have arrived, all -1 where one was removed."""
        return self.docids.codes(stage)

    def _start(self) -> TrainState:
        if not self.docids.warmup:
            self.docids.extend(0)
            model = self._new_model(0)
        else:
            model = make_model(self.config, self.tokenizer, [self.stream.count(0)], stage=0)
        model.to(self.accelerator.device)
        self.parameters.select(model, 0)
        return TrainState(model, make_optimizer(model, self.config.training))

    def _new_model(self, stage: int) -> DSIModel:
        scheme = self.docids.scheme
        return make_model(self.config, self.tokenizer, scheme.code_sizes, stage, scheme.shared)

    def _leave_atomic(self, state: TrainState) -> None:
        """D_0 gets its docids from what the encoder has learnt, which then goes on with them."""
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
        self.parameters.select(model, 0)
        optimizer = make_optimizer(model, config.training)
        moments = named_state(state.optimizer, old)
        kept = {n: value for n, value in moments.items() if not n.startswith("docids.")}
        restore_state(optimizer, model, kept)
        state.model, state.optimizer = model, optimizer
        self._begin_sharpness(model, 0)

    def _begin(self, state: TrainState, stage: int) -> None:
        """Grow, choose what is trained, and let components remember the stage before."""
        config = self.config
        self.events.extend(self.stream.count(stage), self.stream.replaced(stage))
        model = state.model
        moments, moved = named_state(state.optimizer, model), {}
        if stage > 0:
            self.docids.extend(stage)
        if config.training.restart and stage > 0:
            model, moments = self._new_model(stage), {}
            model.to(self.accelerator.device)
        elif stage > 0:
            generator = torch.Generator().manual_seed(derive(config.seed, "new rows", stage))
            moved = model.grow(self.docids.scheme.code_sizes, generator)
        model.zero_grad()  # what is frozen now would keep its last gradient, and clipping count it
        self.parameters.select(model, stage)
        optimizer = make_optimizer(model, config.training)
        if not config.training.reset_optimizer:
            restore_state(optimizer, model, moments, moved)
        state.model, state.optimizer = model, optimizer
        state.stage, state.update, state.finished, state.skipped = stage, 0, False, 0
        self.regularizer.begin_stage(model, stage)
        self._begin_sharpness(model, stage)
        keep = stage > 0 and self.merging.needs_previous
        weights = model.state_dict() if keep else {}
        state.previous = {name: value.detach().clone() for name, value in weights.items()}
        if keep:  # rows that are new in this stage have no older version
            for name, fresh in model.fresh_rows.items():
                state.previous[name][fresh] = float("nan")

    def _begin_sharpness(self, model: DSIModel, stage: int) -> None:
        if self.sharpness.active(stage):
            weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
            self.sharpness.begin_stage(stage, weights)

    def _merge(self, state: TrainState, stage: int) -> None:
        if state.previous:
            merged = self.merging.merge(state.previous, state.model.state_dict())
            state.model.load_state_dict(merged)
            state.previous = {}

    def _skip(self, state: TrainState, stage: int) -> None:
        self.events.extend(self.stream.count(stage), self.stream.replaced(stage))
        state.rows.append(None)
        state.num_updates.append(0)
        state.stage = stage

    def budget(self, stage: int) -> int:
        """Updates of a stage. Re-training from scratch gets all that the stream has had so far."""
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
        return directory.make_matrix(
            state.rows,
            [len(queries) for queries in self.queries],
            np.diff(self.stream.offsets).tolist(),
            state.num_updates,
            directory.counts_at(self.stream, self.queries, len(state.rows)),
        )

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
        components = {
            "regularizer": self.regularizer.state_dict(),
            "sharpness": self.sharpness.state_dict(),
        }
        checkpoints.save(
            self.folder / "checkpoints",
            to_checkpoint(state, components, values),
            self.config.checkpoint.keep,
        )

    def _restore(self, found: Checkpoint) -> TrainState:
        values, stage, device = found.values, found.stage, self.accelerator.device
        now = directory.made_by(self.accelerator)
        directory.require_same_maker(self.folder, values["made_by"], now, self.accept)
        if values["stream"] != self.stream.fingerprint(stage + 1):
            raise UserError(
                f"{self.folder}: the corpora differ from those the run was trained on; restore "
                "them, or start a new run"
            )
        for component, name in ((self.regularizer, "regularizer"), (self.sharpness, "sharpness")):
            held = {key: value.to(device) for key, value in found.tensors[name].items()}
            component.load_state_dict(held)
        if stage or found.finished or found.update > self.docids.warmup or not self.docids.warmup:
            self.docids.read(stage + 1)
        self.events.load_state_dict(values["events"])
        self.timing = values["timing"]
        select = lambda model: self.parameters.select(model, stage)  # noqa: E731
        return from_checkpoint(found, self.config.training, device, select)
