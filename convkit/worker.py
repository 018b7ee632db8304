"""A process that holds an object and answers one question about it after another."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from convkit.child import OWN_PROCESS, PROTOCOL, ChildDiedError, ChildTrace, die_with_parent
from convkit.errors import ConvkitError

_STOP = getattr(signal, "SIGSTOP", None)
_CONTINUE = getattr(signal, "SIGCONT", None)


class Worker:
    """An object in a process of its own; a context manager that ends the process.

    Args:
        make: of a module of convkit; what it returns stays in the process and is asked.
        arguments: for `make`; they and all answers are pickled on their way.
        environment: variables of the process that differ from ours; None takes one away.
    """

    def __init__(
        self,
        make: Callable[..., Any],
        *arguments: Any,
        environment: Mapping[str, str | None] | None = None,
    ) -> None:
        changed = {**os.environ, OWN_PROCESS: "1", **(environment or {})}
        self._complaint = tempfile.TemporaryFile()  # noqa: SIM115 (read when the process has ended)
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from convkit.worker import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaint,
            env={name: value for name, value in changed.items() if value is not None},
        )
        self._is_stopped = False
        self._send(list(sys.path))
        self._send((make, arguments))

    def ready(self) -> None:
        """Waits until the object is made.

        Raises:
            ConvkitError: making it raised it.
            ChildDiedError: the process ended over it.
        """
        self._answer()

    def ask(self, method: str, *arguments: Any) -> Any:
        """What this method of the object returns; waits for it.

        Raises:
            ConvkitError: the method raised it; the object can still be asked.
            ChildDiedError: the process ended over it.
        """
        self._send((method, arguments))
        return self._answer()

    def freeze(self) -> None:
        """Stops the process where it is, threads that wait by spinning included, until it is asked.

        Source: signal(7), SIGSTOP. Where there is no such signal nothing happens.
        """
        if _STOP is not None and self._process.poll() is None:
            os.kill(self._process.pid, _STOP)
            self._is_stopped = True

    def close(self) -> None:
        """Ends the process."""
        if self._process.poll() is None:
            self._process.kill()  # reaches a stopped process too
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._complaint):
            with suppress(OSError, AttributeError):
                stream.close()  # type: ignore[union-attr]

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, what: Any) -> None:
        stream = self._process.stdin
        assert stream is not None
        if self._is_stopped and _CONTINUE is not None:
            os.kill(self._process.pid, _CONTINUE)
            self._is_stopped = False
        with suppress(BrokenPipeError):  # it died; its last words are read with the answer
            pickle.dump(what, stream, PROTOCOL)
            stream.flush()

    def _answer(self) -> Any:
        stream = self._process.stdout
        assert stream is not None
        try:
            answer, trace = pickle.load(stream)
        except (EOFError, pickle.UnpicklingError) as cause:
            code = self._process.wait()
            ended = f"signal {-code}" if code < 0 else f"code {code}"
            self._complaint.seek(0)
            lines = self._complaint.read().decode(errors="replace").strip().splitlines()
            raise ChildDiedError(f"ended with {ended} {lines[-1] if lines else ''}".strip()) from (
                cause
            )
        if isinstance(answer, ConvkitError):
            raise answer from ChildTrace(trace)
        return answer


def serve() -> None:
    """The other side: makes the object, then calls the methods it is asked for until the pipe ends.

    Whatever a framework prints on standard output goes to standard error: answers have it alone.
    """
    die_with_parent()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.path[:] = pickle.load(sys.stdin.buffer)  # first: what follows may need it
    make, arguments = pickle.load(sys.stdin.buffer)
    held = _tried(answers, lambda: (make(*arguments), True))
    while held is not None:
        try:
            method, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            break
        _tried(answers, lambda: (None, getattr(held, method)(*arguments)))  # noqa: B023 (called now)
    sys.stderr.flush()
    os._exit(0)  # tearing a framework down takes longer than what is left to do


def _tried(answers: Any, work: Callable[[], tuple[Any, Any]]) -> Any:
    """Sends the second of what the work gives, or its error, and returns the first."""
    kept, trace = None, ""
    try:
        kept, answer = work()
    except ConvkitError as error:
        answer, trace = error, traceback.format_exc()
    pickle.dump((answer, trace), answers, PROTOCOL)
    answers.flush()
    return kept
