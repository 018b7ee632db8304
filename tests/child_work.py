"""Functions that tests run in a process of their own."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import numpy as np

from convkit.errors import UnknownNameError


def add(a: int, b: int) -> int:
    """Adds, and chatters as frameworks do."""
    print("chatter on standard output")  # noqa: T201
    return a + b


def ones(count: int) -> np.ndarray[Any, Any]:
    """Bytes."""
    return np.ones(count, np.uint8)


def refuse() -> None:
    """Raises an error of convkit whose constructor takes something else."""
    raise UnknownNameError("format", "onxn", ["onnx"])


def crash() -> None:
    """Dies as a native library does."""
    os.kill(os.getpid(), signal.SIGSEGV)


def break_down() -> None:
    """Raises what is no error of convkit."""
    raise RuntimeError("segment 7 is bent")


def leave() -> None:
    """Ends the process as if nothing had happened."""
    sys.stdout.flush()
    os._exit(0)


def process_number() -> int:
    """The number of the process it runs in."""
    return os.getpid()


def sleep() -> None:
    """Takes a minute."""
    import time

    time.sleep(60)
