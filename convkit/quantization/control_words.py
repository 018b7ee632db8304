"""Accuracy control in words: what was found, how sure it is, and why nothing sufficed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit.errors import GateError
from convkit.quantization.accuracy import Metric, Score, points, sqnr_db

if TYPE_CHECKING:
    from convkit.quantization.calibration_data import CalibrationData


def told(
    facts: Mapping[str, Any], data: CalibrationData, metric: Metric, before: Score, after: Score
) -> list[str]:
    """What the report says of it."""
    origin = "" if metric.has_labels else ", measured against the source, as there are no labels"
    values = f"{after.reference:.5g} in fp32, {_number(facts['value'])} now"
    if metric.name == "noise":
        values = f"{_number(facts['value'])} of the signal, SQNR {sqnr_db(after.value):.1f} dB"
    lines = [
        f"{metric.words}{origin}: {values}, on {facts['samples']} samples of {data.path}. That is "
        f"a drop of {points(after.drop)}; {points(facts['max_drop'])} are allowed."
    ]
    if facts["layers"]:
        noise, least = facts["sqnr_db_quantized"], facts["least_sqnr_db"]
        asked = ""
        if least is not None and noise is not None and noise < least:
            asked = f" and the SQNR {noise} dB, where verification asks for {least:g}"
        lines.append(
            f"{len(facts['layers'])} of {facts['layer_count']} layers stay in fp32; with all of "
            f"them quantized the drop is {points(before.drop)}{asked}."
        )
    if after.count:
        unit = "samples" if after.count == facts["samples"] else "answers"
        lines += _precision(after, after.count, unit, facts["max_drop"])
    if data.is_random:
        lines.append("The samples are random: the drop on real ones may be any other.")
    return lines


def gate_error(out: Path, facts: Mapping[str, Any]) -> GateError:
    """That no choice of layers keeps the limit; `out` is the best one, to be looked at."""
    limit = facts["max_drop"]
    drop = math.inf if facts["drop"] is None else facts["drop"]
    is_lost = math.isinf(drop)
    what = "everything" if is_lost else points(drop)
    hint = f"Allow more:  --max-drop {'5' if is_lost else f'{100 * _rounded_up(drop):g}'}%\n"
    if drop <= limit:  # it is the noise
        what = f"{what}, but has an SQNR of {facts['sqnr_db']} dB, where verification asks for "
        what += f"{facts['least_sqnr_db']:g}"
        hint = ""
    return GateError(
        f"No choice of layers keeps within a drop of {points(limit)}: the best loses {what}.",
        why=[
            f"{facts['metric']} on {facts['samples']} samples: {facts['value_before']:.5g} in "
            f"fp32, {_number(facts['value_quantized'])} with all layers quantized, "
            f"{_number(facts['value'])} with {len(facts['layers'])} of {facts['layer_count']} in "
            "fp32.",
        ],
        hint=hint + "Less is lost in half precision:  --fp16",
        result=out,
        control=facts,
    )


def _precision(score: Score, count: int, unit: str, limit: float) -> list[str]:
    """That few samples, or answers about tokens, do not show a small drop."""
    if 1.0 / count > limit:
        return [
            f"One of {count} {unit} is {points(1.0 / count)}: a drop of {points(limit)} cannot be "
            f"seen on so few, so none at all was allowed. {math.ceil(1.0 / limit)} {unit} or "
            "more would show it."
            if limit > 0
            else f"No drop at all was allowed, seen on {count} {unit}."
        ]
    if score.interval is not None and score.interval[1] > limit:
        low, high = (100 * each for each in score.interval)
        return [
            f"On {count} {unit} the drop is known to lie between {low:.2g} and {high:.2g} points "
            f"(95 %); more {unit} tell more."
        ]
    return []


def _number(value: float | None) -> str:
    return "no number" if value is None else f"{value:.5g}"


def _rounded_up(drop: float) -> float:
    """A drop in whole tenths of a point, a little above."""
    return math.ceil(drop * 1000 + 1e-9) / 1000
