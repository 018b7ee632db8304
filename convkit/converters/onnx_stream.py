"""ONNX files whose weights go from where they lie to the file, without being held."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from convkit.onnx_structure import external_entries
from convkit.protobuf import BYTES, encode_bytes, encode_varint

if TYPE_CHECKING:
    import onnx

EXTERNAL_OVER_BYTES = 1_500_000_000
"""Above this, weights go to a file beside the model: a protobuf message ends at 2 GiB, and room is
left for what later passes add."""

# Source: onnx.proto: ModelProto.graph, GraphProto.initializer, TensorProto.raw_data.
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
_SMALL_BYTES = 1024
"""Up to here a weight stays in the model, so that shape inference can read it."""
_ALIGNMENT = 4096
"""Where external tensors begin, so that runtimes can map them.

Source: onnx, docs/ExternalData.md.
"""


def ir_version_for(opset: int) -> int:
    """The oldest IR version that admits an opset, so that older runtimes load the file.

    Source: onnx `docs/Versioning.md`.
    """
    return 10 if opset <= 22 else 11


@dataclass(frozen=True)
class Streamed:
    """An initializer whose bytes are made when they are written.

    Attributes:
        name: of the initializer.
        data_type: TensorProto.DataType.
        shape: of the tensor.
        byte_count: of all pieces together.
        pieces: gives the bytes in order, anew at each call.
    """

    name: str
    data_type: int
    shape: tuple[int, ...]
    byte_count: int
    pieces: Callable[[], Iterable[Any]]


def write_streamed(
    proto: onnx.ModelProto,
    weights: Sequence[Streamed],
    out: Path,
    *,
    external_over_bytes: int = EXTERNAL_OVER_BYTES,
    progress: Callable[[int], None] = lambda byte_count: None,
) -> None:
    """Writes a model and the weights that are not in it yet.

    Args:
        proto: the model without `weights`; it loses its graph.
        weights: further initializers.
        out: the file to write; very large weights go to `out.name + ".data"` beside it.
        external_over_bytes: what very large is.
        progress: hears how many bytes of weights were written.
    """
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    if sum(weight.byte_count for weight in weights) > external_over_bytes:
        _write_beside(proto, graph, weights, out, progress)
    else:
        _write_whole(proto, graph, weights, out, progress)


def _write_whole(
    proto: onnx.ModelProto,
    graph: bytes,
    weights: Sequence[Streamed],
    out: Path,
    progress: Callable[[int], None],
) -> None:
    heads = [_head(weight) for weight in weights]
    sizes = [len(head) + w.byte_count for head, w in zip(heads, weights, strict=True)]
    keys = [_key(_INITIALIZER) + encode_varint(size) for size in sizes]
    with out.open("wb") as stream:
        _write_head(stream, proto, graph, sum(sizes) + sum(map(len, keys)))
        done = 0
        for key, head, weight in zip(keys, heads, weights, strict=True):
            stream.write(key + head)
            done = _write_pieces(stream, weight, done, progress)


def _write_beside(
    proto: onnx.ModelProto,
    graph: bytes,
    weights: Sequence[Streamed],
    out: Path,
    progress: Callable[[int], None],
) -> None:
    small = [weight for weight in weights if weight.byte_count <= _SMALL_BYTES]
    large = [weight for weight in weights if weight.byte_count > _SMALL_BYTES]
    tensors = [encode_bytes(_INITIALIZER, _head(w) + b"".join(w.pieces())) for w in small]
    tensors += _write_data(large, out.with_name(f"{out.name}.data"), progress)
    with out.open("wb") as stream:
        _write_head(stream, proto, graph, sum(map(len, tensors)))
        stream.writelines(tensors)


def _write_head(stream: BinaryIO, proto: onnx.ModelProto, graph: bytes, more_bytes: int) -> None:
    """All of the model up to the weights, which take `more_bytes` of the graph."""
    stream.write(proto.SerializeToString())
    stream.write(_key(_GRAPH) + encode_varint(len(graph) + more_bytes) + graph)


def _write_data(
    weights: Sequence[Streamed], path: Path, progress: Callable[[int], None]
) -> list[bytes]:
    """Writes the data file; gives the initializers that refer to it, as fields of a graph."""
    tensors = []
    done = 0
    with path.open("wb") as stream:
        for weight in weights:
            stream.write(bytes(-stream.tell() % _ALIGNMENT))
            entries = {
                "location": path.name,
                "offset": str(stream.tell()),
                "length": str(weight.byte_count),
            }
            done = _write_pieces(stream, weight, done, progress)
            tensors.append(encode_bytes(_INITIALIZER, _proto(weight) + external_entries(entries)))
    return tensors


def _write_pieces(
    stream: BinaryIO, weight: Streamed, done: int, progress: Callable[[int], None]
) -> int:
    begin = stream.tell()
    for piece in weight.pieces():
        stream.write(piece)
        progress(done + stream.tell() - begin)
    written = stream.tell() - begin
    if written != weight.byte_count:
        raise ValueError(f"{weight.name} has {written} bytes, not {weight.byte_count}")
    return done + written


def _head(weight: Streamed) -> bytes:
    """A TensorProto up to where its raw data begin."""
    return _proto(weight) + _key(_RAW_DATA) + encode_varint(weight.byte_count)


def _proto(weight: Streamed) -> bytes:
    import onnx

    proto = onnx.TensorProto(name=weight.name, data_type=weight.data_type, dims=weight.shape)
    head: bytes = proto.SerializeToString()
    return head


def _key(number: int) -> bytes:
    return encode_varint(number << 3 | BYTES)
