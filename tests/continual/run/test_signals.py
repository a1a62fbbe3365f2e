"""Signals: noted while updates are made, raised elsewhere."""

import os
import signal
import threading
from types import SimpleNamespace

import pytest
import torch

from continual.run.signals import AGREE_EVERY, Interrupted, Signals

ALONE = SimpleNamespace(num_processes=1)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_waits_where_updates_are_made_and_the_second_does_not(signum):
    signals = Signals(ALONE)
    with signals.handled():
        with signals.noted():
            assert signals.pending(1) is None
            os.kill(os.getpid(), signum)
            assert signals.pending(1) == signum
            with pytest.raises(Interrupted) as caught:
                os.kill(os.getpid(), signum)
        assert caught.value.signum == signum
    assert isinstance(caught.value, KeyboardInterrupt)  # nothing that catches errors catches it


def test_elsewhere_a_signal_raises_and_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    signals = Signals(ALONE)
    with pytest.raises(Interrupted), signals.handled():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals(ALONE).handled():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ranks_stop_together():
    """They ask each other every so many updates, and all stop for what one of them was sent."""
    asked = []

    def gather(mine):
        asked.append(int(mine))
        return torch.tensor([0, int(signal.SIGTERM)])

    signals = Signals(SimpleNamespace(num_processes=2, device="cpu", gather=gather))
    for update in range(1, AGREE_EVERY):
        assert signals.pending(update) is None
    assert signals.pending(AGREE_EVERY) == signal.SIGTERM
    assert asked == [0]


def test_in_another_thread_nothing_is_handled():
    seen = []

    def work():
        with Signals(ALONE).handled():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]
