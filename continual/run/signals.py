"""SIGTERM, SIGHUP and Ctrl-C: a checkpoint first, then an exit status that says which it was."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch

SIGNALS = [signal.SIGTERM, signal.SIGINT]
if hasattr(signal, "SIGHUP"):  # the terminal was closed; Windows does without
    SIGNALS.append(signal.SIGHUP)
AGREE_EVERY = 10  # updates between two exchanges of signals among the ranks


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop. ``signum``: by what; the exit status is 128 more."""

    def __init__(self, signum: int, where: str = ""):
        super().__init__(where)
        self.signum, self.where = signum, where


class Signals:
    """Notes a signal while updates are made, and raises at once everywhere else.

    Updates are worth keeping, so there the loop asks :meth:`pending` and saves; what else a run
    does is done again from the last checkpoint. A second signal always raises.
    """

    def __init__(self, accelerator: Any):
        self.accelerator = accelerator
        self.signum: int | None = None
        self._noting = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Within: the signals are ours (in the main thread; elsewhere nothing changes).

        Except a SIGHUP that is ignored already, as nohup has it.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        hangup = getattr(signal, "SIGHUP", None)
        ours = [n for n in SIGNALS if n != hangup or signal.getsignal(n) is not signal.SIG_IGN]
        old = {number: signal.signal(number, self._handle) for number in ours}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Within: a first signal waits until :meth:`pending` is asked."""
        self._noting = True
        try:
            yield
        finally:
            self._noting = False

    def pending(self, update: int) -> int | None:
        """The signal to stop for, the same on every rank: they exchange it every few updates."""
        if self.accelerator.num_processes == 1:
            return self.signum
        if update % AGREE_EVERY:
            return None
        mine = torch.tensor([self.signum or 0], device=self.accelerator.device)
        most = int(self.accelerator.gather(mine).max())
        return most or None

    def _handle(self, signum: int, frame: FrameType | None) -> Any:
        first, self.signum = self.signum is None, signum
        if not (first and self._noting):
            raise Interrupted(signum)
