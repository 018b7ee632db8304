"""GPTQ, AWQ and 8-bit floats, against the integers they were packed from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convkit.checkpoint.folder import open_folder
from convkit.errors import ModelError, UnsupportedError
from tests.checkpoint.packed_layers import GROUP, INPUTS, OUTPUTS, Packed, less_one, words_of
from tests.checkpoint.tiny_language_models import folder_of, in_torch

torch = pytest.importorskip("torch", reason="PyTorch makes the files")


def gptq_settings(bits: int, **more: Any) -> dict[str, Any]:
    settings = {"quant_method": "gptq", "bits": bits, "group_size": GROUP, **more}
    return {"quantization_config": settings}


def assert_gives(path: Path, want: Any) -> None:
    with open_folder(path) as checkpoint:
        assert list(checkpoint.tensors) == ["a.weight"]
        assert not checkpoint.other
        rows = checkpoint.tensors["a.weight"]
        assert torch.equal(in_torch(rows), want)
        for begin, end in ((0, 1), (5, 11), (8, 24), (OUTPUTS - 3, OUTPUTS)):
            np.testing.assert_array_equal(rows.read(begin, end), want[begin:end].numpy())


@pytest.mark.parametrize("has_order", [False, True], ids=["in order", "desc_act"])
@pytest.mark.parametrize("is_symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("form", "write"), [("gptq", less_one), ("gptq_v2", words_of)])
def test_gptq_gives_scale_times_integer_less_zero_point(
    tmp_path: Path, form: str, write: Any, bits: int, is_symmetric: bool, has_order: bool
) -> None:
    layer = Packed(bits, is_symmetric=is_symmetric, has_order=has_order)
    settings = gptq_settings(bits, desc_act=has_order, sym=is_symmetric, checkpoint_format=form)
    assert_gives(folder_of(tmp_path, layer.gptq(write), settings), layer.weight)


def other_than_one(zeros: Any, bits: int) -> list[int]:
    """What GPTQModel 2 made of zero points of three bits: its constants were in reverse order."""
    constants = (0x24924924, 0x92492492, 0x49249249)
    words = words_of(zeros, bits)
    return [(word - constants[i % 3]) % (1 << 32) for i, word in enumerate(words)]


@pytest.mark.parametrize(("bits", "write"), [(4, words_of), (8, words_of), (3, other_than_one)])
def test_symmetric_gptq_that_claims_the_wrong_format_is_read_right(
    tmp_path: Path, bits: int, write: Any
) -> None:
    layer = Packed(bits, is_symmetric=True, has_order=False)
    settings = gptq_settings(bits, sym=True, checkpoint_format="gptq")
    assert_gives(folder_of(tmp_path, layer.gptq(write), settings), layer.weight)


def test_gptq_settings_may_lie_in_a_file_of_their_own_and_differ_by_layer(tmp_path: Path) -> None:
    layer = Packed(8, is_symmetric=False, has_order=False)
    tensors = layer.gptq()
    del tensors["a.g_idx"]
    path = folder_of(tmp_path, tensors)
    settings = {"bits": 4, "group_size": GROUP, "dynamic": {"a": {"bits": 8}}}
    (path / "quantize_config.json").write_text(json.dumps(settings))
    assert_gives(path, layer.weight)


@pytest.mark.parametrize(
    "settings",
    [
        {"bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True},
        {"w_bit": 4, "q_group_size": GROUP, "version": "GEMM"},
    ],
)
def test_awq_gives_scale_times_integer_less_zero_point(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    layer = Packed(4, is_symmetric=False, has_order=False)
    config = {"quantization_config": {"quant_method": "awq", **settings}}
    assert_gives(folder_of(tmp_path, layer.awq(), config), layer.weight)


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_8_bit_floats_are_multiplied_with_the_scale_of_their_block(
    tmp_path: Path, scale_dtype: Any
) -> None:
    weight = torch.randn(3, 150, 200).mul(30).to(torch.float8_e4m3fn)
    scales = torch.rand(3, 2, 2).to(scale_dtype)
    grown = scales.float().repeat_interleave(128, 1).repeat_interleave(128, 2)[:, :150, :200]
    settings = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    tensors = {
        "e.proj": weight,
        "e.proj_scale_inv": scales,
        "a.weight": weight[0].clone(),
        "a.weight_scale_inv": torch.tensor(0.5),
        "a.activation_scale": torch.tensor(2.0),
        "n.weight": torch.ones(3),
    }
    path = folder_of(tmp_path, tensors, {"quantization_config": settings})
    with open_folder(path) as checkpoint:
        assert set(checkpoint.tensors) == {"e.proj", "a.weight", "n.weight"}
        experts = checkpoint.tensors["e.proj"]
        assert torch.equal(in_torch(experts), weight.float() * grown)
        np.testing.assert_array_equal(
            experts.read(140, 160), (weight.float() * grown).reshape(450, 200)[140:160].numpy()
        )
        assert torch.equal(in_torch(checkpoint.tensors["a.weight"]), weight[0].float() * 0.5)


def test_powers_of_two_as_scales_are_read(tmp_path: Path) -> None:
    weight = torch.randn(4, 6).to(torch.float8_e4m3fn)
    exponents = torch.tensor([[130, 120]], dtype=torch.uint8)
    tensors = {
        "a.weight": weight,
        "a.weight_scale_inv": exponents.view(torch.float8_e8m0fnu),
    }
    settings = {"quant_method": "fp8", "weight_block_size": [4, 3], "scale_fmt": "ue8m0"}
    path = folder_of(tmp_path, tensors, {"quantization_config": settings})
    grown = torch.tensor([[2.0**3] * 3 + [2.0**-7] * 3])
    with open_folder(path) as checkpoint:
        assert torch.equal(in_torch(checkpoint.tensors["a.weight"]), weight.float() * grown)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quant_method": "hqq"}, "quantized with hqq, which is not read"),
        ({"quant_method": "compressed-tensors"}, "llm-compressor's packings"),
        ({"quant_method": "mxfp4"}, "4-bit floats in blocks of 32"),
        ({"quant_method": "new"}, "quantized with new, which is not read"),
        ({"quant_method": "gptq", "bits": 5}, "GPTQ, bits 5"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "format marlin"),
        ({"quant_method": "gptq", "bits": 4, "is_marlin_format": True}, "format marlin"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "AWQ, version gemv"),
        ({"quant_method": "awq", "bits": 8}, "AWQ, bits 8"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "fp8, fmt e5m2"),
    ],
)
def test_other_ways_are_refused_by_name(
    tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    path = folder_of(tmp_path, {"w": torch.ones(2)}, {"quantization_config": settings})
    with pytest.raises(UnsupportedError) as raised:
        open_folder(path)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("method", "part"),
    [
        *(("gptq", part) for part in ("qweight", "qzeros", "scales", "g_idx")),
        *(("awq", part) for part in ("qweight", "qzeros", "scales")),
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path: Path, method: str, part: str) -> None:
    layer = Packed(4, is_symmetric=True, has_order=False)
    tensors = layer.gptq() if method == "gptq" else layer.awq()
    tensors[f"a.{part}"] = tensors[f"a.{part}"][: -8 if part == "g_idx" else -1]
    settings = {"quant_method": method, "bits": 4, "group_size": GROUP}
    path = folder_of(tmp_path, tensors, {"quantization_config": settings})
    with pytest.raises(ModelError, match="do not fit each other"):
        open_folder(path)


def test_an_order_beyond_the_groups_is_refused_when_it_is_read(tmp_path: Path) -> None:
    layer = Packed(4, is_symmetric=True, has_order=False)
    tensors = {**layer.gptq(), "a.g_idx": torch.full((INPUTS,), 9, dtype=torch.int32)}
    with (
        open_folder(folder_of(tmp_path, tensors, gptq_settings(4))) as checkpoint,
        pytest.raises(ModelError, match="do not fit each other"),
    ):
        checkpoint.tensors["a.weight"].read(0, 1)


@pytest.mark.parametrize("method", ["gptq", pytest.param("awq", marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_number_of_packed_tensors(
    tmp_path: Path, method: str
) -> None:
    # 16 tensors of 8 MiB packed, 64 MiB as floats each.
    shape = (512, 4096) if method == "gptq" else (4096, 512)
    tensors = {}
    for n in range(16):
        tensors[f"l{n}.qweight"] = torch.zeros(shape, dtype=torch.int32)
        tensors[f"l{n}.qzeros"] = torch.zeros(32, 512, dtype=torch.int32)
        tensors[f"l{n}.scales"] = torch.ones(32, 4096, dtype=torch.float16)
    settings = {"quant_method": method, "bits": 4, "group_size": 128}
    path = folder_of(tmp_path, tensors, {"quantization_config": settings})
    code = f"""
from pathlib import Path
from convkit.checkpoint.folder import open_folder
from convkit.resources import peak_rss_bytes
with open_folder(Path({str(path)!r})) as checkpoint:
    for rows in checkpoint.tensors.values():
        for begin in range(0, 4096, 128):
            rows.read(begin, begin + 128)
print(peak_rss_bytes() >> 20)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # 32 held, 8 for the next, 4 of strips, 8 of floats; the interpreter with numpy takes 45.
    assert int(done.stdout) < 120
