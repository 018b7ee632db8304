"""Hears how a run goes on."""

from __future__ import annotations

from typing import Protocol


class Listener(Protocol):
    """Hears how a run goes on; the command line draws it."""

    def stage(self, what: str) -> None:
        """A new stage has begun."""

    def progress(self, what: str, done: int, total: int | None, unit: str = "") -> None:
        """Work within the stage; `total` is None where unknown, `unit` is `B` for bytes."""

    def note(self, text: str) -> None:
        """Something the user should know."""


class Silence:
    """A listener that hears nothing."""

    def stage(self, what: str) -> None:
        """Nothing."""

    def progress(self, what: str, done: int, total: int | None, unit: str = "") -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""
