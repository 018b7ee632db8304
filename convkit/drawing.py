"""The converter graph as a table, Mermaid, Graphviz dot, or SVG."""

from __future__ import annotations

import math
from typing import Any
from xml.sax.saxutils import escape

from convkit.graph import ConverterGraph
from convkit.step import Converter, Step

_SIZE = 640
_RADIUS = 220
_NODE = 46


def table(graph: ConverterGraph) -> dict[str, Any]:
    """Formats and steps as JSON values: what each needs, loses and takes as options."""
    formats = [
        {
            "name": found.name,
            "suffixes": list(found.suffixes),
            "available": all(need.is_available for need in found.needs),
            "install": next((n.install for n in found.needs if not n.is_available), ""),
            "origin": graph.origins.get(found.name, "convkit"),
        }
        for found in graph.formats.values()
    ]
    return {"formats": formats, "steps": [_row(graph, step) for step in graph.steps.values()]}


def _row(graph: ConverterGraph, step: Step) -> dict[str, Any]:
    source, target = ends(step)
    kept = ", ".join(map(str, step.carries)) if isinstance(step, Converter) else ""
    gives = f"{target} ({kept})" if kept else f"{target} {target and step.name.split('-')[-1]}"
    return {
        "name": step.name,
        "from": source,
        "to": target,
        "gives": gives,
        "loses": step.loses,
        "available": _is_available(step),
        "install": next((n.install for n in step.needs if not n.is_available), ""),
        "rungs": [rung.name for rung in step.rungs],
        "options": {name: str(p.default) for name, p in step.options.items()},
        "origin": graph.origins.get(step.name, "convkit"),
    }


def ends(step: Step) -> tuple[str, str]:
    """The formats a step leads from and to; a pass stays."""
    if isinstance(step, Converter):
        return step.source, step.target
    return step.format, step.format


def draw(graph: ConverterGraph, language: str) -> str:
    """The graph as `mermaid`, `dot` or `svg` text; steps that miss a package are dashed."""
    return {"mermaid": _mermaid, "dot": _dot, "svg": _svg}[language](graph)


def _mermaid(graph: ConverterGraph) -> str:
    lines = ["graph LR"] + [f"  {name}" for name in graph.formats]
    for step in graph.steps.values():
        source, target = ends(step)
        arrow = "-->" if _is_available(step) else "-.->"
        lines.append(f"  {source} {arrow}|{_label(step)}| {target}")
    return "\n".join(lines)


def _dot(graph: ConverterGraph) -> str:
    lines = ["digraph convkit {", "  rankdir=LR;", "  node [shape=box, style=rounded];"]
    lines += [f'  "{name}";' for name in graph.formats]
    for step in graph.steps.values():
        source, target = ends(step)
        style = "solid" if _is_available(step) else "dashed"
        lines.append(f'  "{source}" -> "{target}" [label="{_label(step)}", style={style}];')
    return "\n".join([*lines, "}"])


def _svg(graph: ConverterGraph) -> str:
    """Formats on a circle, converters as arrows, passes listed under their format."""
    names = list(graph.formats)
    middle = _SIZE / 2
    spots = {
        name: (
            middle + _RADIUS * math.cos(2 * math.pi * i / len(names) - math.pi / 2),
            middle + _RADIUS * math.sin(2 * math.pi * i / len(names) - math.pi / 2),
        )
        for i, name in enumerate(names)
    }
    converters = [step for step in graph.steps.values() if isinstance(step, Converter)]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_SIZE} {_SIZE}" '
        'font-family="sans-serif" font-size="14" text-anchor="middle">',
        '<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="7" refY="4" '
        'orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="#555"/></marker></defs>',
        *(_svg_arrow(step, spots) for step in converters if step.source != step.target),
    ]
    for name, (x, y) in spots.items():
        passes = [_label(s) for s in graph.steps.values() if ends(s) == (name, name)]
        parts.append(
            f'<circle cx="{x:.0f}" cy="{y:.0f}" r="{_NODE}" fill="#eef3fb" stroke="#35609c"/>'
            f'<text x="{x:.0f}" y="{y:.0f}">{escape(name)}</text>'
            f'<text x="{x:.0f}" y="{y + 18:.0f}" font-size="11" fill="#35609c">'
            f"{escape(' '.join(passes))}</text>"
        )
    return "\n".join([*parts, "</svg>"])


def _svg_arrow(step: Converter, spots: dict[str, tuple[float, float]]) -> str:
    """A straight arrow, shifted to its right so that the way back has its own line."""
    (x0, y0), (x1, y1) = spots[step.source], spots[step.target]
    length = math.hypot(x1 - x0, y1 - y0)
    dx, dy = (x1 - x0) / length, (y1 - y0) / length
    start, end, side = _NODE + 2, length - _NODE - 2, 8
    dash = "" if _is_available(step) else ' stroke-dasharray="6 4"'
    return (
        f'<line x1="{x0 + dx * start - dy * side:.1f}" y1="{y0 + dy * start + dx * side:.1f}" '
        f'x2="{x0 + dx * end - dy * side:.1f}" y2="{y0 + dy * end + dx * side:.1f}" '
        f'stroke="#555" marker-end="url(#tip)"{dash}><title>{step.name}</title></line>'
    )


def _label(step: Step) -> str:
    return " ".join(map(str, step.carries)) if isinstance(step, Converter) else str(step.precision)


def _is_available(step: Step) -> bool:
    return all(need.is_available for need in step.needs)
