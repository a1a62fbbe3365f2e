"""Items made ahead by a thread."""

import queue
import threading
from collections.abc import Generator, Iterable
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterable[T], count: int) -> Generator[T, None, None]:
    """The same items in the same order, up to ``count`` of them made before they are asked for.

    What ``items`` raises is raised here in its place. Closing the iterator ends the thread.
    """
    if count == 0:
        yield from items
        return
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(count)
    done = threading.Event()

    def put(item: T | None, error: BaseException | None) -> None:
        while not done.is_set():
            try:
                ready.put((item, error), timeout=0.1)
                return
            except queue.Full:  # nobody may be left to ask
                continue

    def work() -> None:
        try:
            for item in items:
                put(item, None)
                if done.is_set():
                    return
        except BaseException as error:  # belongs to the one who asks
            put(None, error)
        else:
            put(None, StopIteration())

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        done.set()
        thread.join()
