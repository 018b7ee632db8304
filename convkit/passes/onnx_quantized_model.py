"""What passes that quantize ONNX models share: naming nodes, writing what was made."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from convkit.artifact import Artifact
from convkit.errors import UnknownNameError
from convkit.onnx_folder import copy_companions, data_name, graph_file, result_file
from convkit.onnx_typing import nodes_of
from convkit.passes.onnx_half_writing import write_model

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir


def named_nodes(model: ir.Model, names: Iterable[str]) -> frozenset[str]:
    """Nodes by their names or operators.

    Raises:
        UnknownNameError: there is no such node or operator.
    """
    nodes = list(nodes_of(model.graph))
    known = {node.name for node in nodes if node.name} | {node.op_type for node in nodes}
    for name in names:
        if name not in known:
            raise UnknownNameError("node or operator", name, known)
    wanted = set(names)
    return frozenset(n.name for n in nodes if n.name and wanted & {n.name, n.op_type})


def write_quantized(made: ir.Model, source: Artifact, out: Path) -> None:
    """Writes a model that was made from `source`: a file, or a folder like the source's.

    Raises:
        ResourceError: `out` cannot be written.
    """
    path = graph_file(source.path)
    file = result_file(source.path, out)
    if file == out:
        write_model(made, out, path.parent, f"{out.name}.data")
    else:
        write_model(made, file, path.parent, data_name(path), is_beside=bool(source.data_files))
    copy_companions(source, out)
