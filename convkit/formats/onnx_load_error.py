"""What ONNX Runtime means when it refuses a model: the operator, node and domain, and a way on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from convkit.errors import ModelError, UnsupportedError
from convkit.formats.onnx_header import Header, read_header

_IR_TOO_NEW = re.compile(r"IR version: (\d+), max supported IR version: (\d+)")
_OPSET_TOO_NEW = re.compile(
    r"Opset (\d+) is under development.*for domain (\S+) is till opset (\d+)", re.DOTALL
)
_NO_OPERATOR = re.compile(
    r'In Node, \("(.*?)", (\S+?), "(.*?)", -?\d+\).*No Op registered', re.DOTALL
)
_NO_FUNCTION = re.compile(r"Fatal error: (\S*?):(\S+?)\(-?\d*\) is not a registered")
_NO_KERNEL = re.compile(r"implementation for (\S+?)\(\d+\) node with name '(.*?)'")
_AT_NODE = re.compile(
    r"status code returned while running (\S+) node\. Name:'(.*?)' Status Message: (.*)"
)
"""Source: messages of onnxruntime 1.31.1."""

_SHOWN_CHARACTERS = 100


def load_error(path: Path, header: Header, message: str, version: str) -> ModelError:
    """What the runtime's message means, with the operator, node and domain it is about."""
    model, runtime = path.name, f"ONNX Runtime {version}"
    if found := _IR_TOO_NEW.search(message):
        return _too_new(path, "IR version", int(found[1]), int(found[2]), runtime)
    if found := _OPSET_TOO_NEW.search(message):
        return _too_new(path, f"opset of {found[2]}", int(found[1]), int(found[3]), runtime)
    if found := _NO_OPERATOR.search(message):
        return _no_operator(model, found[2], found[3], found[1], header, runtime)
    if found := _NO_FUNCTION.search(message):
        return _no_operator(model, found[2], found[1], "", header, runtime)
    if found := _NO_KERNEL.search(message):
        return _no_kernel(model, found[1], found[2], header, runtime)
    return ModelError(f"{model} is not a valid ONNX model for {runtime}.", why=plain(message))


def plain(message: str) -> str:
    """The runtime's message without its error code and without places in its own source."""
    message = re.sub(r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", "", message.strip())
    message = re.sub(r"/onnxruntime_src/\S+\s+.*?\)\s(?=[A-Z])", "", message)
    return " ".join(message.split())


def run_line(message: str) -> str:
    """One short line of what the runtime said when a run failed: the node, and what it minds."""
    inner = plain(message)
    begin = inner.rfind("Non-zero status code returned")  # of bodies, the innermost says why
    found = _AT_NODE.search(inner, max(begin, 0))
    if not found:
        return inner[:400]
    operator, node, said = found.groups()
    said = re.sub(r"/onnxruntime_src/\S+:\d+ ", "", said)
    said = re.sub(r"^[\w:<>*& ]*?(\w+::)?(\w+)\(.*?\)(?: \[with .*?\])? ", "", said)
    said = re.sub(r"^.*? was false\. (?=\S)", "", said)
    said = said if len(said) <= _SHOWN_CHARACTERS else f"{said[:_SHOWN_CHARACTERS].rstrip()} ..."
    return f"node {node} ({operator}): {said}"


def _too_new(path: Path, what: str, found: int, newest: int, runtime: str) -> UnsupportedError:
    copy = path.with_suffix(".lowered.onnx")
    return UnsupportedError(
        f"{path.name} has {what} {found}; {runtime} loads up to {newest}.",
        hint="Update the runtime:  pip install -U onnxruntime-gpu\n"
        "or lower a copy as far as that is legal:\n"
        f"cp {path} {copy} && python -c \"from convkit.opset import fit; fit('{copy}')\"",
        found=found,
        newest=newest,
    )


def _no_operator(
    model: str, operator: str, domain: str, node: str, header: Header, runtime: str
) -> UnsupportedError:
    shown = domain or "ai.onnx"
    opset = header.opsets.get(domain)
    known = f"Opset {opset} of {shown} has no such operator." if opset else ""
    hint = f"It belongs to {shown}, so only a runtime with that extension runs the model."
    return UnsupportedError(
        f"{model} uses operator {operator} of domain {shown}, which {runtime} does not know.",
        why=[line for line in (f"Node: {node}" if node else "", known) if line],
        hint=hint if domain else "The exporter wrote an operator that ONNX does not define.",
        operator=operator,
        domain=shown,
        node=node,
    )


def _no_kernel(
    model: str, operator: str, node: str, header: Header, runtime: str
) -> UnsupportedError:
    domains = {domain or "ai.onnx" for domain, name in header.operators if name == operator}
    shown = "/".join(sorted(domains)) or "ai.onnx"
    dtypes = _dtypes_at(header, node, operator)
    return UnsupportedError(
        f"{runtime} has no CPU kernel for {operator} of domain {shown} in {model}.",
        why=[f"Node: {node}", *([f"Its inputs: {dtypes}"] if dtypes else [])],
        hint="The operator exists, but not for these types on a CPU; bf16 in most cases.",
        operator=operator,
        domain=shown,
        node=node,
    )


def _dtypes_at(header: Header, node: str, operator: str) -> str:
    """The dtypes of a node's inputs, as far as the file tells."""
    full = read_header(header.path, with_nodes=True)
    known: Mapping[str, str] = {
        **{name: spec.dtype for name, spec in full.values.items()},
        **{spec.name: spec.dtype for spec in full.inputs},
        **{tensor.name: tensor.dtype for tensor in full.initializers},
    }
    for found in full.nodes:
        if found.name == node and found.op_type == operator:
            return ", ".join(f"{name} {known.get(name, '?')}" for name in found.inputs if name)
    return ""
