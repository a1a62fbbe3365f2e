"""The loop over the updates of one stage."""

import math
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import tqdm

from continual.config.schema import RunConfig
from continual.devices.sharding import gather, is_sharded, shard
from continual.method import Method
from continual.run.material import prepare_layers
from continual.run.signals import Signals
from continual.run.tracking import Tracker
from continual.state import TrainState
from continual.stream.mixture import batch_shape, window_updates
from continual.update.optimizer import learning_rate, peak_rate
from continual.update.update import Update
from dsi.errors import UserError
from dsi.examples.batches import Batch, batches_from
from dsi.examples.prefetch import ahead
from dsi.examples.sources import ExampleSource
from dsi.seeding import derive


class NotFinite(Exception):
    """The loss or gradient of an update is ``value``; ``batch`` is what it was made of."""

    def __init__(self, batch: Batch, value: float, update: int):
        super().__init__(f"{value} at update {update}")
        self.batch, self.value, self.update = batch, value, update


@dataclass(frozen=True)
class Due:
    """What is to be done between two updates: count forgetting events, save, stop by a signal."""

    events: bool
    save: bool
    signum: int | None


@dataclass
class StageLoop:
    """The updates of a stage, from ``state.update`` on.

    ``budget``: updates of the whole stage; ``before``: of all stages before it.
    """

    config: RunConfig
    method: Method
    accelerator: Accelerator
    tracker: Tracker
    signals: Signals
    state: TrainState
    sources: list[ExampleSource]
    codes_NT: np.ndarray
    budget: int
    before: int
    pad: int

    def __post_init__(self) -> None:
        self.seed = derive(self.config.seed, "batches", self.state.stage)
        self.window = window_updates(self.config.training, self.budget)
        ranks = self.accelerator.num_processes
        self.shape = batch_shape(
            self.config.training, self.sources, self.window, self.seed, ranks, self.pad
        )
        self.losses: list[
            torch.Tensor
        ] = []  # this rank's shares of the losses since the last exchange

    def train(self, stop: int) -> Generator[Due, None, None]:
        """Make updates until there are ``stop``; ``state`` is up to date whenever this yields."""
        config, state = self.config, self.state
        prepare_layers(state.model, config.training)
        self._wrap()
        update = self._update()
        bar = tqdm(
            total=self.budget,
            initial=state.update,
            desc=f"stage {state.stage}: D{state.stage}",
            unit="update",
            disable=not self.accelerator.is_main_process or self.budget == 0,
            mininterval=1.0,
        )
        batches = ahead(self._batches(state.update, stop), config.training.prefetch)
        with bar, closing(batches):
            for batch in batches:
                rate = self._take(update, batch)
                bar.update()
                is_last = state.update == self.budget
                if state.update % config.tracking.log_every == 0 or is_last:
                    # the one place where plain updates wait for the device: was every loss finite?
                    self._check(batches)
                    bar.set_postfix(loss=f"{self._log(rate, update):.3f}", refresh=False)
                due = self._due(is_last)
                if due.save:
                    self._check(batches)
                if due.save or due.events:
                    self._settle()
                    yield due
        self._settle()
        if not is_sharded(self.accelerator):
            state.model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)

    def _wrap(self) -> None:
        """The model and the optimizer as the devices train them."""
        state = self.state
        self.model: Any
        self.optimizer: Any
        if is_sharded(self.accelerator):
            self.model, self.optimizer = shard(state.model, state.optimizer, self.config.training)
        else:
            self.model = self.accelerator.prepare_model(state.model)
            self.optimizer = state.optimizer
        self.model.train()

    def _update(self) -> Update:
        codes_NT = torch.from_numpy(self.codes_NT).to(self.accelerator.device).long()
        return Update(
            self.model,
            self.optimizer,
            codes_NT,
            self.accelerator,
            self.config.training,
            self.method,
            self.state.stage,
        )

    def _batches(self, start: int, stop: int) -> Any:
        drawn: Any = batches_from(self.sources, start, stop, self.window, self.shape, self.seed)
        return map(Batch.pinned, drawn) if self.accelerator.device.type == "cuda" else drawn

    def _take(self, update: Update, batch: Batch) -> float:
        """Make one update; returns its learning rate."""
        state, training = self.state, self.config.training
        rate = learning_rate(training, state.stage, state.update, self.budget)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("scale", 1.0)
        seed = derive(self.config.seed, "dropout", state.stage, state.update)
        taken = update.take(batch, seed, state.update, rate / peak_rate(training, state.stage))
        if taken.made:
            self.losses.append(taken.loss)
        elif training.nonfinite == "stop":
            value = float(cast(torch.Tensor, self.accelerator.reduce(taken.loss, "sum")))
            raise NotFinite(batch, value, state.update)
        else:
            state.skipped += 1
        state.update += 1
        return rate

    def _due(self, is_last: bool) -> Due:
        number, checkpoint = self.state.update, self.config.checkpoint.every
        events = self.config.evaluation.events_every
        signum = self.signals.pending(number)
        return Due(
            events=bool(events) and number % events == 0 and not is_last,
            save=bool(signum or (checkpoint and number % checkpoint == 0 and not is_last)),
            signum=signum,
        )

    def _exchange(self) -> None:
        """Sum the ranks' shares of the latest losses, all of them in one exchange."""
        if self.losses:
            sums = cast(torch.Tensor, self.accelerator.reduce(torch.stack(self.losses), "sum"))
            self.state.recent += sums.unbind()
            self.losses.clear()

    def _settle(self) -> None:
        """Bring ``state``, which is evaluated and saved, up to date."""
        self._exchange()
        if is_sharded(self.accelerator):
            state = self.state
            gather(self.model, self.optimizer, state.model, state.optimizer)

    def _check(self, batches: Any) -> None:
        """Raise NotFinite for the first loss since the last training line that is not finite."""
        self._exchange()
        recent = self.state.recent
        values = torch.stack(recent).tolist() if recent else []
        for i, value in enumerate(values):
            if not math.isfinite(value):
                batches.close()  # the thread draws from the same sources
                bad = self.state.update - len(values) + i
                raise NotFinite(next(iter(self._batches(bad, bad + 1))), value, bad)

    def _log(self, rate: float, update: Update) -> float:
        """Write a training line; returns its loss, the mean since the last one."""
        state = self.state
        if not state.recent:
            raise UserError(
                f"training.nonfinite: not one of the last updates was finite (update "
                f"{state.update} of stage {state.stage}); lower training.learning_rate"
            )
        value = float(torch.stack(state.recent).mean())
        state.recent.clear()
        skipped = {"skipped_updates": state.skipped} if update.is_careful else {}
        line = {"stage": state.stage, "update": state.update, "loss": value, **skipped}
        self.tracker.log({**line, "learning_rate": rate}, self.before + state.update)
        return value
