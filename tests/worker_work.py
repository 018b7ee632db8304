"""An object that tests hold in a process of its own."""

from __future__ import annotations

import os
import signal
import threading

from convkit.errors import UnknownNameError


class Counter:
    """Counts, and fails in every way there is."""

    def __init__(self, start: int) -> None:
        self._count = start

    def add(self, number: int) -> int:
        """The sum so far; chatters as frameworks do."""
        print("chatter on standard output")  # noqa: T201
        self._count += number
        return self._count

    def process(self) -> int:
        """The number of the process it lies in."""
        return os.getpid()

    def variables(self, names: list[str]) -> list[str | None]:
        """The environment it has."""
        return [os.environ.get(name) for name in names]

    def refuse(self) -> None:
        """Raises an error of convkit."""
        raise UnknownNameError("format", "onxn", ["onnx"])

    def crash(self) -> None:
        """Dies as a native library does."""
        os.kill(os.getpid(), signal.SIGSEGV)

    def break_down(self) -> None:
        """Raises what is no error of convkit."""
        raise RuntimeError("segment 7 is bent")

    def spin(self) -> int:
        """Leaves a thread behind that waits by spinning; the number of the process."""

        def wait() -> None:
            while True:
                pass

        threading.Thread(target=wait, daemon=True).start()
        return os.getpid()


def unmade() -> None:
    """Fails before there is an object."""
    raise UnknownNameError("format", "onxn", ["onnx"])
