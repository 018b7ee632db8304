"""Options of steps as the user sets them: names checked, values typed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from convkit.errors import UnknownNameError, UsageError
from convkit.graph import ConverterGraph


def options_of(graph: ConverterGraph, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`{"onnx-fp16.keep_io": False}` as options per step, every name checked.

    Raises:
        UnknownNameError: a step or option does not exist; offers the nearest.
        UsageError: a setting is not written `step.option`, or its value has the wrong type.
    """
    chosen: dict[str, dict[str, Any]] = {}
    for setting, value in settings.items():
        name, dot, option = setting.partition(".")
        if not dot:
            raise UsageError(
                f"'{setting}' does not name an option.",
                hint="Write it as  --set onnx-fp16.keep_io=false",
            )
        step = graph.step(name)
        option = option.replace("-", "_")
        if option not in step.options:
            raise UnknownNameError(f"option of {name}", option, step.options)
        annotation = str(step.options[option].annotation)
        chosen.setdefault(name, {})[option] = _typed(setting, value, annotation)
    return chosen


def _typed(setting: str, value: Any, annotation: str) -> Any:
    """The value as the option's annotation wants it; annotations are text (PEP 563)."""
    wanted: Sequence[tuple[str, Callable[[Any], bool]]] = (
        ("bool", lambda v: isinstance(v, bool)),
        ("int", lambda v: isinstance(v, int) and not isinstance(v, bool)),
        ("float", lambda v: isinstance(v, int | float) and not isinstance(v, bool)),
        ("str", lambda v: isinstance(v, str)),
        ("None", lambda v: v is None),
        ("tuple", lambda v: isinstance(v, list | tuple)),
        ("Sequence", lambda v: isinstance(v, list | tuple)),
    )
    fitting = [test for kind, test in wanted if re.search(rf"\b{kind}\b", annotation)]
    if fitting and not any(test(value) for test in fitting):
        raise UsageError(f"{setting} takes {annotation}, not {value!r}.")
    return tuple(value) if isinstance(value, list) else value
