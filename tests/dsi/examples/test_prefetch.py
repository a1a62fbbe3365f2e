"""Items made ahead, in a thread."""

import threading
import time

import pytest

from dsi.examples.prefetch import ahead


def threads() -> int:
    return sum(thread.name == "batches" for thread in threading.enumerate())


@pytest.mark.parametrize("count", [0, 1, 3])
def test_items_and_their_order_stay(count):
    assert list(ahead(range(10), count)) == list(range(10))
    assert list(ahead([], count)) == []
    assert threads() == 0


def test_items_are_made_before_they_are_asked_for():
    made = []

    def items():
        for i in range(10):
            made.append(i)
            yield i

    found = ahead(items(), 2)
    assert next(found) == 0
    limit = time.monotonic() + 10
    while len(made) < 4 and time.monotonic() < limit:  # two wait, one is in hand
        time.sleep(0.01)
    time.sleep(0.05)
    assert made == [0, 1, 2, 3]
    found.close()
    assert threads() == 0


@pytest.mark.parametrize("count", [0, 2])
def test_an_error_comes_in_its_place(count):
    def items():
        yield 1
        raise ValueError("third")

    found = ahead(items(), count)
    assert next(found) == 1
    with pytest.raises(ValueError, match="third"):
        next(found)
    assert threads() == 0


def test_leaving_the_loop_ends_the_thread():
    found = ahead(iter(range(10**9)), 2)
    for item in found:
        if item == 3:
            break
    found.close()
    assert threads() == 0
