"""Writes the result: an exported program, or a folder with source and weights.

The folder holds `model.py` (a module and `load()`), `operators.py` where library functions are
called, `model.safetensors`, and `convkit_module.json` with names, dtypes and shapes of inputs and
outputs. The weights are streamed, one tensor at a time.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from convkit.artifact import Artifact
from convkit.converters.onnx_to_torch.build import filled_from
from convkit.converters.onnx_to_torch.dtypes import STORED, carried, carrier_name
from convkit.converters.onnx_to_torch.exporting import exported
from convkit.converters.onnx_to_torch.generate import program_of
from convkit.converters.onnx_to_torch.program import Program
from convkit.converters.onnx_to_torch.weights import Weight
from convkit.converters.torch_to_onnx.callable import best_sample, quiet
from convkit.errors import UnsupportedError
from convkit.onnx_folder import graph_file
from convkit.safetensors_file import ITEM_BYTES, SafetensorsWriter
from convkit.step import Work
from convkit.torch_values import to_tensor

SIGNATURE_FILE = "convkit_module.json"
_PIECE_BYTES = 16 << 20


def write_program(source: Artifact, out: Path, work: Work) -> None:
    """Writes an exported program; its weights are mapped from a file while it is made."""
    import torch

    program = _program(source, work)
    # The largest first: a size of 1 somewhere inside the network is taken for a constant.
    samples = sorted(work.samples, key=lambda feeds: -sum(a.size for a in feeds.values()))
    feeds = best_sample(samples, source.inputs)
    # The example first: it is the one that every attempt takes.
    ordered = [feeds, *(each for each in samples if each is not feeds)]
    inputs = [[to_tensor(each[port.name]) for port in program.inputs] for each in ordered]
    room = Path(tempfile.mkdtemp(prefix=".weights-", dir=out.parent))
    try:
        weights = room / "model.safetensors"
        write_weights(program, weights, work)
        module = filled_from(program, weights, dict)
        work.progress("exporting", 0, None)
        with quiet():
            made = exported(module, inputs[0], note=work.note, samples=inputs)
            torch.export.save(made, str(out))
        del module, made
    finally:
        shutil.rmtree(room, ignore_errors=True)


def write_folder(source: Artifact, out: Path, work: Work) -> None:
    """Writes source, weights and signature into the new folder `out`."""
    program = _program(source, work)
    out.mkdir()
    (out / "model.py").write_text(program.source, encoding="utf-8")
    if program.operators:
        (out / "operators.py").write_text(program.operators, encoding="utf-8")
    write_weights(program, out / "model.safetensors", work)
    document = {
        "convkit_module": 1,
        "source": program.title,
        "inputs": [port.to_json() for port in program.inputs],
        "outputs": [port.to_json() for port in program.outputs],
        "parameters": dict(program.onnx_names),
        "values": dict(program.values),
    }
    (out / SIGNATURE_FILE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _program(source: Artifact, work: Work) -> Program:
    work.progress("reading the graph", 0, None)
    program = program_of(graph_file(source.path))
    for text in program.notes:
        work.note(text)
    return program


def write_weights(program: Program, path: Path, work: Work) -> None:
    """Writes a program's weights, one after another.

    Raises:
        UnsupportedError: a dtype that safetensors files do not have.
    """
    stored = program.stored
    sizes = {key: _byte_count(key, weight) for key, weight in stored.items()}
    shapes = {key: weight.shape for key, weight in stored.items()}
    metadata = {"format": "pt"}
    # Larger elements first, so that every tensor begins at a multiple of its own size.
    order = sorted(stored, key=lambda key: -ITEM_BYTES[_stored_dtype(key, stored[key])])
    with SafetensorsWriter(path, shapes, byte_limit=sum(sizes.values()), metadata=metadata) as file:
        for number, key in enumerate(order):
            work.progress("writing weights", number, len(order))
            weight = stored[key]
            file.write(key, _stored_dtype(key, weight), weight.shape, _pieces(weight))


def _stored_dtype(key: str, weight: Weight) -> str:
    name = carrier_name(weight.dtype)
    if name not in STORED:
        raise UnsupportedError(
            f"The weight '{weight.name}' is {name or weight.dtype}, which safetensors cannot hold."
        )
    return STORED[name]


def _byte_count(key: str, weight: Weight) -> int:
    return math.prod(weight.shape) * ITEM_BYTES[_stored_dtype(key, weight)]


def _pieces(weight: Weight) -> Iterator[memoryview]:
    import numpy as np

    array = np.ascontiguousarray(carried(weight.make()))
    flat = array.reshape(-1).view(np.uint8)
    for begin in range(0, flat.size, _PIECE_BYTES):
        yield flat[begin : begin + _PIECE_BYTES].data
