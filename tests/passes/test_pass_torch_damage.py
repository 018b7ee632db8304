"""Folders that torch-fp16 must refuse, and destinations that it cannot fill."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hugging_face_folder import INDEX, lower, make_folder

from convkit.errors import ConvkitError, ModelError, UnsafeError, UnsupportedError
from convkit.passes.torch_fp16 import torch_fp16

torch = pytest.importorskip("torch", reason="PyTorch makes the folders")


def test_a_full_destination_is_told_as_such(tmp_path: Path) -> None:
    pytest.importorskip("resource", reason="file size limits are a Unix facility")
    folder = make_folder(tmp_path / "model", {"w": torch.ones(1_000_000)})
    code = f"""
import resource
from pathlib import Path
from convkit.artifact import Artifact, Precision
from convkit.errors import ResourceError
from convkit.passes.torch_fp16 import torch_fp16
from convkit.step import Work
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
source = Artifact(Path({str(folder)!r}), "torch", Precision.FP32)
try:
    torch_fp16.rungs[0].run(source, Path({str(tmp_path / "out")!r}), Work((), None, print, print))
except ResourceError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cannot be written" in done.stdout


def _truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-3])


def _random(folder: Path) -> None:
    noise = np.random.default_rng(5).integers(0, 256, 4096, dtype=np.uint8)
    (folder / "model.safetensors").write_bytes(noise.tobytes())


def _empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def _without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _index(folder: Path, file: str) -> None:
    _without_weights(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"w": file}}))


def _missing_shard(folder: Path) -> None:
    _index(folder, "model-00001-of-00002.safetensors")


def _outside(folder: Path) -> None:
    _index(folder, "../../secret.safetensors")


def _broken_index(folder: Path) -> None:
    _without_weights(folder)
    (folder / INDEX).write_text("[]")


def _overlapping(folder: Path) -> None:
    header = json.dumps(
        {
            "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        }
    ).encode()
    content = len(header).to_bytes(8, "little") + header + b"\0" * 4
    (folder / "model.safetensors").write_bytes(content)


def _random_pickle(folder: Path) -> None:
    _without_weights(folder)
    (folder / "pytorch_model.bin").write_bytes(bytes(range(256)))


def _truncated_pickle(folder: Path) -> None:
    _without_weights(folder)
    file = folder / "pytorch_model.bin"
    torch.save({"w": torch.ones(1000)}, file)
    file.write_bytes(file.read_bytes()[:2000])


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (_truncated, ModelError),
        (_random, ModelError),
        (_empty, ModelError),
        (_without_weights, ModelError),
        (_without_config, UnsupportedError),
        (_broken_config, ModelError),
        (_missing_shard, ModelError),
        (_broken_index, ModelError),
        (_outside, UnsafeError),
        (_overlapping, ModelError),
        (_random_pickle, ConvkitError),
        (_truncated_pickle, ModelError),
    ],
)
def test_a_damaged_folder_is_refused(
    tmp_path: Path, damage: Callable[[Path], None], error: type[ConvkitError]
) -> None:
    folder = make_folder(tmp_path / "model", {"w": torch.ones(300)})
    damage(folder)
    with pytest.raises(error) as raised:
        lower(torch_fp16, folder, tmp_path / "out")
    assert raised.value.exit_code in (5, 9)


class _Trap:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def test_a_pickle_with_code_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model", {})
    _without_weights(folder)
    torch.save({"w": _Trap(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(UnsafeError, match="could run code"):
        lower(torch_fp16, folder, tmp_path / "out")
    assert not (tmp_path / "ran").exists()
