"""The ranking of layers as a bar chart: one SVG that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from xml.sax.saxutils import escape

from convkit.quantization.accuracy import sqnr_db
from convkit.quantization.sensitivity import Sensitivity

_MOST_BARS = 60
_ROW = 18
_TOP = 62
_NAMES = 300
_BARS = 420
_WIDTH = _NAMES + _BARS + 120
_KEPT, _QUANTIZED, _GRID, _TEXT = "#c2410c", "#35609c", "#d8dee9", "#2b2f36"
_LONGEST_NAME = 44


def chart(ranking: Sequence[Sensitivity], keep: Collection[str]) -> str:
    """Noise of each layer alone, most worth giving back first; those given back in another colour.

    The axis is logarithmic: noise of 1 % is an SQNR of 20 dB.
    """
    shown = ranking[:_MOST_BARS]
    exponents = [_exponent(each.noise_share) for each in shown]
    low = math.floor(min(exponents, default=-4.0) - 0.1)
    high = max(math.ceil(max(exponents, default=0.0)), low + 1)
    height = _TOP + _ROW * len(shown) + 34
    scale = _BARS / (high - low)
    step = max(1, (high - low) // 6)
    ticks = range(low, high + 1, step)
    title = "Noise of each layer alone, most worth giving back first"
    more = f" (the first {_MOST_BARS} of {len(ranking)})" if len(ranking) > _MOST_BARS else ""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}" font-family="sans-serif" font-size="11" '
        f'fill="{_TEXT}">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        f'<text x="16" y="24" font-size="15" font-weight="bold">{title}{more}</text>',
        f'<rect x="16" y="36" width="10" height="10" fill="{_KEPT}"/>'
        f'<text x="32" y="45">returned to fp32</text>'
        f'<rect x="132" y="36" width="10" height="10" fill="{_QUANTIZED}"/>'
        f'<text x="148" y="45">quantized</text>',
    ]
    for tick in ticks:
        x = _NAMES + (tick - low) * scale
        parts.append(
            f'<line x1="{x:.1f}" y1="{_TOP - 6}" x2="{x:.1f}" y2="{height - 28}" '
            f'stroke="{_GRID}"/><text x="{x:.1f}" y="{height - 14}" text-anchor="middle">'
            f"{-10 * tick} dB</text>"
        )
    for number, each in enumerate(shown):
        parts.append(_bar(each, _TOP + _ROW * number, low, scale, keep))
    return "\n".join([*parts, "</svg>", ""])


def _bar(each: Sensitivity, y: int, low: int, scale: float, keep: Collection[str]) -> str:
    colour = _KEPT if set(each.names) & set(keep) else _QUANTIZED
    width = max(1.0, (_exponent(each.noise_share) - low) * scale)
    decibels = sqnr_db(each.noise_share)
    value = f"{decibels:.1f} dB" if math.isfinite(decibels) else "no noise"
    if math.isinf(each.noise_share):
        value = "no numbers"
    name = each.names[0] if len(each.names) == 1 else f"{each.names[0]} + {len(each.names) - 1}"
    short = name if len(name) <= _LONGEST_NAME else f"...{name[-_LONGEST_NAME + 3 :]}"
    return (
        f"<g><title>{escape(', '.join(each.names))}: {escape(each.op_type)}, "
        f"{each.parameter_count:,} parameters, {value}</title>"
        f'<text x="{_NAMES - 8}" y="{y + 12}" text-anchor="end">{escape(short)}</text>'
        f'<rect x="{_NAMES}" y="{y + 2}" width="{width:.1f}" height="{_ROW - 5}" '
        f'fill="{colour}"/>'
        f'<text x="{_NAMES + width + 6:.1f}" y="{y + 12}">{value}</text></g>'
    )


def _exponent(share: float) -> float:
    """The decimal logarithm of a share of noise, within what a chart can show."""
    if share <= 0.0:
        return -12.0
    return min(math.log10(share), 2.0) if math.isfinite(share) else 2.0
