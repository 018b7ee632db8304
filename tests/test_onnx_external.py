"""Where the weights of an ONNX model may lie: the format and the passes judge alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="onnx is not installed")

from convkit.artifact import Opening  # noqa: E402
from convkit.errors import ModelError, UnsafeError  # noqa: E402
from convkit.formats.onnx import onnx as onnx_format  # noqa: E402
from convkit.onnx_structure import read_structure  # noqa: E402

READERS = (lambda path: onnx_format.describe(path, Opening()), read_structure)


def model_at(path: Path, **entries: str) -> Path:
    """A model whose one weight, 16 bytes, lies where `entries` say."""
    weight = onnx.numpy_helper.from_array(np.ones(4, np.float32), "w")
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in entries.items():
        weight.external_data.add(key=key, value=value)
    x, y = (onnx.helper.make_tensor_value_info(n, 1, [4]) for n in "xy")
    nodes = [onnx.helper.make_node("Add", ["x", "w"], ["y"])]
    graph = onnx.helper.make_graph(nodes, "g", [x], [y], [weight])
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    return path


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("location", ["/etc/passwd", "../w", "a/../w", "..\\w", "C:\\w", "w\0"])
def test_locations_outside_the_folder_are_unsafe(read, tmp_path: Path, location: str) -> None:
    (tmp_path / "w").write_bytes(b"\0" * 16)
    with pytest.raises(UnsafeError):
        read(model_at(tmp_path / "m.onnx", location=location))


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    "entries",
    [{"length": "12"}, {"offset": "4"}, {"offset": "-4"}, {"length": "many"}, {"location": "v"}],
)
def test_weights_that_are_not_all_there_are_refused(read, tmp_path: Path, entries) -> None:
    (tmp_path / "w").write_bytes(b"\0" * 16)
    with pytest.raises(ModelError):
        read(model_at(tmp_path / "m.onnx", **{"location": "w", **entries}))


@pytest.mark.parametrize("read", READERS)
def test_a_link_to_a_model_finds_the_weights_linked_beside_it(read, tmp_path: Path) -> None:
    """A hub's cache is a folder of links to files that lie together elsewhere."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    (blobs / "w").write_bytes(b"\0" * 16)
    model_at(blobs / "m.onnx", location="w")
    for name in ("w", "m.onnx"):
        (snapshot / name).symlink_to(blobs / name)
    read(snapshot / "m.onnx")
