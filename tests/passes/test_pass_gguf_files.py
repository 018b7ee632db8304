"""What comes in, what is refused, and what is left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convkit
from convkit.errors import ModelError, UsageError
from convkit.ggml.file import GgufFile
from convkit.ggml.header import read_header
from convkit.ggml.types import TYPES
from convkit.ggml.values import typed
from convkit.ggml.writer import Layout, Place
from tests.passes.gguf_passes import requantize

gguf = pytest.importorskip("gguf", reason="gguf writes the models")

NAME = "blk.1.ffn_up.weight"


def _write(path: Path, tensors: dict[str, Any], *, tensors_per_file: int = 0) -> Path:
    """A Llama of two layers that computes nothing sensible, in one file or several."""
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=tensors_per_file)
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_key_value("llama.rope.freq_base", 5e5, gguf.GGUFValueType.FLOAT32)
    writer.add_array("tokenizer.ggml.token_type", [1, 2, 3])
    writer.add_file_type(0)
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(**changed: float) -> dict[str, Any]:
    """Weights, one of which can be changed: `element=nan`."""
    generator = np.random.default_rng(0)
    names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down")
    tensors = {
        f"blk.{layer}.{name}.weight": generator.normal(0, 0.1, (8, 256)).astype(np.float32)
        for layer in range(2)
        for name in names
    }
    tensors["token_embd.weight"] = generator.normal(0, 0.1, (8, 256)).astype(np.float32)
    for value in changed.values():
        tensors[NAME][5, 17] = value
    return tensors


@pytest.mark.parametrize("scheme", ["q4_k_m", "bf16"])
def test_a_split_model_becomes_one_file(scheme: str, tmp_path: Path) -> None:
    whole = _write(tmp_path / "whole.gguf", _tensors())
    _write(tmp_path / "split.gguf", _tensors(), tensors_per_file=4)
    parts = sorted(tmp_path.glob("split-*.gguf"))
    assert len(parts) == 4
    requantize(whole, tmp_path / "a.gguf", scheme)
    requantize(parts[0], tmp_path / "b.gguf", scheme)
    assert (tmp_path / "b.gguf").read_bytes() == (tmp_path / "a.gguf").read_bytes()


def test_metadata_stay_as_they_are(tmp_path: Path) -> None:
    source = _write(tmp_path / "source.gguf", _tensors())
    requantize(source, tmp_path / "out.gguf", "q5_k_m")
    before, after = _metadata(source), _metadata(tmp_path / "out.gguf")
    own = {"general.quantization_version": typed(2), "general.file_type": typed(17)}
    kept = {key: value for key, value in before.items() if key not in own}
    assert list(after.items()) == [*kept.items(), *((k, v.encoded()) for k, v in own.items())]


def _metadata(path: Path) -> dict[str, bytes]:
    return {key: value.encoded() for key, value in read_header(path).metadata.items()}


@pytest.mark.parametrize("kind", ["q8_0", "q4_1"])
def test_what_is_quantized_is_quantized_again_only_if_the_user_insists(
    kind: str, tmp_path: Path
) -> None:
    _write(tmp_path / "plain.gguf", _tensors())
    source = tmp_path / "source.gguf"
    requantize(tmp_path / "plain.gguf", source, kind)
    out = tmp_path / "out.gguf"
    with pytest.raises(UsageError, match=f"quantized already .{kind.upper()}") as refusal:
        convkit.convert(source, to="gguf", scheme="q6_k", out=out, verify=False)
    assert refusal.value.exit_code == 2
    assert "--force" in refusal.value.hint
    assert not out.exists()
    report = convkit.convert(source, to="gguf", scheme="q6_k", out=out, verify=False, force=True)
    assert any(f"a second time, from {kind.upper()}" in note for note in report.steps[-1].notes)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("scheme", ["q4_k_m", "q8_0", "f16", "bf16"])
def test_a_weight_that_is_no_number_is_named_and_nothing_is_left(
    scheme: str, value: float, tmp_path: Path
) -> None:
    source = _write(tmp_path / "source.gguf", _tensors(element=value))
    with pytest.raises(ModelError) as failure:
        convkit.convert(source, to="gguf", scheme=scheme, out=tmp_path / "out.gguf", verify=False)
    assert failure.value.exit_code == 5
    assert NAME in failure.value.what
    assert [path.name for path in tmp_path.iterdir()] == ["source.gguf"]


def test_a_weight_too_large_for_f16_is_named_with_the_way_out(tmp_path: Path) -> None:
    source = _write(tmp_path / "source.gguf", _tensors(element=65520.0))
    with pytest.raises(ModelError, match=f"'{NAME}' holds 65520, which is infinite as F16") as told:
        requantize(source, tmp_path / "out.gguf", "f16")
    assert "--bf16" in told.value.hint
    requantize(source, tmp_path / "wider.gguf", "bf16")
    with GgufFile(tmp_path / "wider.gguf") as file:
        assert file.tensors[NAME].array()[5, 17] == 65536


def test_the_largest_number_of_f16_is_no_failure(tmp_path: Path) -> None:
    source = _write(tmp_path / "source.gguf", _tensors(element=np.nextafter(np.float32(65520), 0)))
    requantize(source, tmp_path / "out.gguf", "f16")
    with GgufFile(tmp_path / "out.gguf") as file:
        assert file.tensors[NAME].array()[5, 17] == 65504


def test_one_tensor_may_have_another_type_where_f16_does_not_reach(tmp_path: Path) -> None:
    source = _write(tmp_path / "source.gguf", _tensors(element=1e6))
    with pytest.raises(ModelError, match=NAME):
        requantize(source, tmp_path / "out.gguf", "q4_k_m", tensor_types=("ffn_up=f16",))
    (tmp_path / "out.gguf").unlink()
    requantize(source, tmp_path / "out.gguf", "q4_k_m", tensor_types=(f"{NAME}=bf16",))


def test_a_text_says_nothing_of_a_file_that_pytorch_does_not_run(tmp_path: Path) -> None:
    source = _write(tmp_path / "source.gguf", _tensors())
    (tmp_path / "text.txt").write_text("Some words.")
    with pytest.raises(UsageError, match="cannot be run with a look at its inside"):
        requantize(source, tmp_path / "out.gguf", "q4_k_m", calibration=tmp_path / "text.txt")


def test_options_of_measuring_without_a_text_are_refused(tmp_path: Path) -> None:
    source = _write(tmp_path / "source.gguf", _tensors())
    with pytest.raises(UsageError, match="there is no text"):
        requantize(source, tmp_path / "out.gguf", "q4_k_m", imatrix_out="matrix.gguf")


_MEASURED = """
import sys
from pathlib import Path
from convkit.resources import peak_rss_bytes
from tests.passes.gguf_passes import requantize
requantize(Path(sys.argv[1]), Path(sys.argv[2]), "q4_k_m")
print(peak_rss_bytes())
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    pytest.importorskip("resource", reason="it tells how much memory a process took")
    peaks = []
    for layers in (1, 8):
        source = _sparse(tmp_path / f"{layers}.gguf", layers)
        command = [
            sys.executable,
            "-c",
            _MEASURED,
            str(source),
            str(tmp_path / f"{layers}-q4.gguf"),
        ]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        peaks.append(int(told) / 2**20)
        assert source.stat().st_size > layers * 134e6
    assert peaks[1] < 350
    assert peaks[1] - peaks[0] < 30


def _sparse(path: Path, layers: int) -> Path:
    """A model of 33 million zeros a layer, which take no room on the disk."""
    places = [
        Place(f"blk.{layer}.ffn_{name}.weight", (4096, 4096), TYPES["F32"])
        for layer in range(layers)
        for name in ("up", "down")
    ]
    metadata = {"general.architecture": "llama", "llama.block_count": layers}
    layout = Layout({key: typed(value) for key, value in metadata.items()}, places)
    with path.open("wb") as stream:
        stream.write(layout.head)
        stream.truncate(layout.byte_count)
    return path
