"""How much memory a profiled piece of work held at its worst moment."""

from typing import Any


def most_allocated(found: Any) -> int:
    """Bytes, of a ``torch.profiler.profile`` on the processor with ``profile_memory``."""
    now = most = 0
    # an allocation event's bytes are negative when it frees
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most
