"""Time, memory and disk: what a step took, and whether a job will fit."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from convkit.errors import ResourceError

_MIB = 1 << 20
_SPARE_BYTES = 16 * _MIB


@dataclass
class Usage:
    """What a piece of work took; filled in when it ends."""

    seconds: float = 0.0
    peak_rss_mib: float = 0.0


@contextmanager
def measured() -> Iterator[Usage]:
    """Measures wall time and this process's peak resident memory while the block runs.

    On Linux the kernel's high-water mark is reset at the start, so each block has its own peak;
    elsewhere it is the peak since the process began.
    """
    usage = Usage()
    _reset_peak()
    started = time.perf_counter()
    try:
        yield usage
    finally:
        usage.seconds = time.perf_counter() - started
        usage.peak_rss_mib = peak_rss_bytes() / _MIB


def peak_rss_bytes() -> int:
    """This process's peak resident set, in bytes.

    Source: proc(5), VmHWM of /proc/self/status; getrusage(2) elsewhere (kilobytes on BSD and
    Linux, bytes on macOS).
    """
    peak = _status_bytes("VmHWM:")
    if peak is not None:
        return peak
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def rss_bytes() -> int:
    """This process's resident set now, in bytes; its peak where the system does not say."""
    return _status_bytes("VmRSS:") or peak_rss_bytes()


def _status_bytes(key: str) -> int | None:
    """A line of /proc/self/status in bytes; None where there is none. Source: proc(5)."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _reset_peak() -> None:
    """Source: proc(5): writing 5 to /proc/self/clear_refs resets VmHWM."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def check_disk(folder: Path, needed_bytes: int) -> None:
    """Says before any work that the disk will not hold the result.

    Raises:
        ResourceError: less than `needed_bytes` and a small spare is free at `folder`.
    """
    free = shutil.disk_usage(folder).free
    if free < needed_bytes + _SPARE_BYTES:
        raise ResourceError(
            f"The disk that holds {folder} is too full: about "
            f"{(needed_bytes + _SPARE_BYTES) / _MIB:.0f} MiB are needed, {free / _MIB:.0f} MiB are "
            "free.",
            hint="Free some space, or choose another place:  -o PATH",
            needed_bytes=needed_bytes,
            free_bytes=free,
        )


def available_memory_bytes() -> int | None:
    """Memory a new process can use without swapping; None where the system does not say.

    Source: proc(5), MemAvailable of /proc/meminfo.
    """
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def check_memory(needed_bytes: int) -> None:
    """Says before any work that memory will not hold the model.

    Raises:
        ResourceError: less than `needed_bytes` is available.
    """
    available = available_memory_bytes()
    if available is not None and available < needed_bytes:
        raise ResourceError(
            f"Memory is too small: about {needed_bytes / _MIB:.0f} MiB are needed, "
            f"{available / _MIB:.0f} MiB are available.",
            hint="Close other programs, or run it on a larger machine.",
            needed_bytes=needed_bytes,
            available_bytes=available,
        )
