"""Runs a function in a process of its own: its frameworks, memory and crashes stay there."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any, Generic, TypeVar

from convkit import resources
from convkit.errors import ConvkitError

T = TypeVar("T")

OWN_PROCESS = "CONVKIT_PROCESS"
"""Set in the environment of processes that run convkit and nothing else."""


PROTOCOL = 5
"""Arrays travel as they lie, without a copy on either side. Source: PEP 574."""


class ChildDiedError(Exception):
    """The process ended without an answer: killed, crashed, or with a foreign error."""


class ChildTrace(Exception):
    """The trace of an error in another process: traces themselves do not travel."""


class Child(Generic[T]):
    """A function at work in a process of its own, from the moment this is made.

    Args:
        function: of a module of convkit; arguments and result are pickled on their way.
        arguments: for the function.

    Attributes:
        peak_rss_mib: the process's peak memory, once the result is there.
    """

    def __init__(self, function: Callable[..., T], *arguments: Any) -> None:
        self.peak_rss_mib = 0.0
        self._answer: tuple[Any, float, str] | None = None
        self._failure: Exception | None = None
        self._last_words = ""
        complaint = tempfile.TemporaryFile()  # noqa: SIM115 (it is read when the process has ended)
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from convkit.child import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaint,
            env={**os.environ, OWN_PROCESS: "1"},
        )
        request = (list(sys.path), (function, arguments))
        self._talk = threading.Thread(
            target=self._communicate, args=(request, complaint), daemon=True
        )
        self._talk.start()

    @property
    def has_ended(self) -> bool:
        """Whether `result` would not have to wait."""
        return not self._talk.is_alive()

    def result(self) -> T:
        """What the function returned; waits for it.

        Raises:
            ConvkitError: the function raised it.
            ChildDiedError: there is no answer.
        """
        self._talk.join()
        if self._failure is not None:
            raise self._failure
        code = self._process.returncode
        if code != 0 or self._answer is None:
            ended = f"signal {-code}" if code < 0 else f"code {code}"
            raise ChildDiedError(f"ended with {ended} {self._last_words}".strip())
        answer, self.peak_rss_mib, trace = self._answer
        if isinstance(answer, ConvkitError):
            raise answer from ChildTrace(trace)
        result: T = answer
        return result

    def stop(self) -> None:
        """Ends the process if it still runs; its result is then lost."""
        if self._process.poll() is None:
            self._process.kill()
        self._talk.join()

    def _communicate(self, request: tuple[Any, ...], complaint: IO[bytes]) -> None:
        """Sends the parts of a request, takes the answer; `complaint` is its standard error."""
        to, answers = self._process.stdin, self._process.stdout
        assert to is not None
        assert answers is not None
        with complaint:
            try:
                with suppress(BrokenPipeError), to:  # it died already
                    for part in request:
                        pickle.dump(part, to, PROTOCOL)
                with suppress(EOFError, pickle.UnpicklingError), answers:  # it died over it
                    self._answer = pickle.load(answers)
            except Exception as failure:  # what was sent, or came, cannot be pickled
                self._failure = failure
                self._process.kill()
            self._process.wait()
            complaint.seek(0)
            lines = complaint.read().decode(errors="replace").strip().splitlines()
        self._last_words = lines[-1] if lines else ""


def serve() -> None:
    """The other side: reads function and arguments, answers with the result and the peak memory.

    Whatever a framework prints on standard output goes to standard error: the answer has it alone.
    """
    die_with_parent()
    answer_to = os.dup(1)
    os.dup2(2, 1)
    sys.path[:] = pickle.load(sys.stdin.buffer)  # first: what follows may need it
    function, arguments = pickle.load(sys.stdin.buffer)
    trace = ""
    try:
        answer = function(*arguments)
    except ConvkitError as error:
        answer, trace = error, traceback.format_exc()
    peak = resources.peak_rss_bytes() / (1 << 20)
    with os.fdopen(answer_to, "wb") as stream:
        pickle.dump((answer, peak, trace), stream, PROTOCOL)
    sys.stderr.flush()
    os._exit(0)  # tearing a framework down takes longer than what is left to do


def die_with_parent() -> None:
    """Has Linux end this process with its parent. Source: prctl(2), PR_SET_PDEATHSIG."""
    if sys.platform == "linux":
        import ctypes
        import signal

        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def is_not_loaded(modules: list[str]) -> bool:
    """Whether a child pays: there are modules to load, and none of them is loaded here yet."""
    return bool(modules) and not any(module in sys.modules for module in modules)
