"""One reason why a model is not faster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from convkit.explaining_profile import Node, Profile

LEAST_SHARE = 0.01
"""Of the time; what saves less is not told."""

_NAMES_SHOWN = 3


@dataclass(frozen=True)
class Finding:
    """One reason why a model is not faster.

    Attributes:
        kind: one word for programs.
        what: a sentence.
        nodes: those it is about.
        ms: what they take in a call.
        share: of the time of all nodes.
        gain_ms: what a call would take less if they ran as the rest does; None where only other
            hardware tells.
        remedy: what to do.
    """

    kind: str
    what: str
    nodes: tuple[str, ...]
    ms: float
    share: float
    gain_ms: float | None
    remedy: str

    def to_json(self) -> dict[str, Any]:
        """One entry of `findings`."""
        return {
            "kind": self.kind,
            "what": self.what,
            "nodes": list(self.nodes),
            "ms": round(self.ms, 6),
            "share": round(self.share, 4),
            "gain_ms": None if self.gain_ms is None else round(self.gain_ms, 6),
            "remedy": self.remedy,
        }


def finding_of(
    profile: Profile,
    kind: str,
    what: str,
    nodes: Sequence[Node],
    gain_ms: float | None,
    remedy: str,
) -> Finding:
    """A finding with the time of its nodes."""
    ms = sum(node.ms for node in nodes)
    names = tuple(node.name for node in nodes)
    return Finding(kind, what, names, ms, ms / profile.total_ms, gain_ms, remedy)


def named(nodes: Sequence[Node]) -> str:
    """A few names."""
    names = ", ".join(node.name for node in nodes[:_NAMES_SHOWN])
    more = len(nodes) - _NAMES_SHOWN
    return f"{names} and {more} more" if more > 0 else names
