"""Lets tensors go after their last use, as a hand-written `forward` does by nesting calls.

Kept until the function returns, every intermediate tensor would take fresh memory, which for large
images costs more time than computing them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

_NAME = re.compile(r"(?<![\w.])[A-Za-z_]\w*")
_RELEASE = re.compile(r";  del [\w, ]+$")


def with_releases(lines: Sequence[str], variables: Collection[str]) -> list[str]:
    """The statements, each followed on its line by `del` of the variables it reads last."""
    last: dict[str, int] = {}
    made: dict[str, int] = {}
    for number, line in enumerate(lines):
        for name in _NAME.findall(line):
            if name in variables:
                made.setdefault(name, number)
                last[name] = number
    ending: dict[int, list[str]] = {}
    for name, number in last.items():
        if number > made[name] and not lines[number].startswith("return "):
            ending.setdefault(number, []).append(name)
    return [
        line + (f";  del {', '.join(ending[number])}" if number in ending else "")
        for number, line in enumerate(lines)
    ]


def without_release(line: str) -> str:
    """A statement that lets nothing go."""
    return _RELEASE.sub("", line)
