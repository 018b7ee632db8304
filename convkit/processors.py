"""How many processors there are for this process, and threads to compute with."""

from __future__ import annotations

import os


def usable_processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def thread_count() -> int:
    """A thread for each of them, at most OMP_NUM_THREADS where that is set."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    count = usable_processors()
    return max(1, min(count, int(wanted))) if wanted.isdigit() else count
