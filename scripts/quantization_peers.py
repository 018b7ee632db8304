"""What other quantizers make of a model, each run in an environment of its own.

    python quantization_peers.py PEER MODEL.onnx CALIBRATION.npz OUT.onnx [transformer]

Each is used as its documentation says for a processor with VNNI: unsigned activations, signed
weights, a scale for each channel. All see the same samples, one by one.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

_PER_CHANNEL = 13
"""The opset from which DequantizeLinear takes a scale for each channel."""

Feeds = dict[str, np.ndarray[Any, Any]]


def samples(file: Path) -> Iterator[Feeds]:
    """Rows, one by one."""
    with np.load(file) as known:
        arrays = {name: known[name] for name in known.files}
    for row in range(len(next(iter(arrays.values())))):
        yield {name: array[row : row + 1] for name, array in arrays.items()}


def quantize_static(model: Path, data: Path, out: Path, method: str) -> None:
    """ONNX Runtime's, after its own preparation."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType
    from onnxruntime.quantization import quantize_static as quantize

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rows = samples(data)

        def get_next(self) -> Feeds | None:
            return next(self._rows, None)

    with tempfile.TemporaryDirectory() as folder:
        prepared = _prepared(model, Path(folder))

        def made(per_channel: bool) -> None:
            quantize(
                prepared,
                out,
                Reader(),
                per_channel=per_channel,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod[method],
            )

        try:
            made(per_channel=True)
        except ValueError:  # 1.31 stumbles over some biases of a Gemm with a scale for each channel
            made(per_channel=False)


def quantize_dynamic(model: Path, _data: Path, out: Path) -> None:
    """ONNX Runtime's, after its own preparation; weights unsigned, or it slows convolutions."""
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize_dynamic as quantize

    with tempfile.TemporaryDirectory() as folder:
        prepared = _prepared(model, Path(folder))
        import onnx

        has_convolutions = any(node.op_type == "Conv" for node in onnx.load(prepared).graph.node)
        kind = QuantType.QUInt8 if has_convolutions else QuantType.QInt8
        quantize(prepared, out, weight_type=kind, per_channel=not has_convolutions)


def nncf_quantize(model: Path, data: Path, out: Path) -> None:
    """What nncf makes after training."""
    import nncf
    import onnx

    rows = list(samples(data))
    kind = nncf.ModelType.TRANSFORMER if "transformer" in sys.argv else None
    quantized = nncf.quantize(
        onnx.load(model), nncf.Dataset(rows), subset_size=len(rows), model_type=kind
    )
    onnx.save(quantized, out)


def optimum_static(model: Path, data: Path, out: Path) -> None:
    """By ORTQuantizer of optimum with its configuration for VNNI, ranges from minima and maxima."""
    from onnxruntime.quantization import CalibrationMethod
    from optimum.onnxruntime import AutoQuantizationConfig, ORTQuantizer
    from optimum.onnxruntime.configuration import CalibrationConfig

    rows = [{name: array[0] for name, array in feeds.items()} for feeds in samples(data)]
    wanted = AutoQuantizationConfig.avx512_vnni(is_static=True, per_channel=True)
    with tempfile.TemporaryDirectory() as folder:
        quantizer = ORTQuantizer(_prepared(model, Path(folder)))
        seen = CalibrationConfig("samples", "", "train", len(rows), CalibrationMethod.MinMax)
        ranges = quantizer.fit(
            rows,
            seen,
            Path(folder) / "augmented.onnx",
            [getattr(each, "value", each) for each in wanted.operators_to_quantize],
        )
        quantizer.quantize(wanted, folder, calibration_tensors_range=ranges)
        next(Path(folder).glob("*_quantized.onnx")).rename(out)


def optimum_dynamic(model: Path, _data: Path, out: Path) -> None:
    """By ORTQuantizer of optimum with its dynamic configuration for VNNI."""
    from optimum.onnxruntime import AutoQuantizationConfig, ORTQuantizer

    wanted = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
    with tempfile.TemporaryDirectory() as folder:
        quantizer = ORTQuantizer(_prepared(model, Path(folder)))
        quantizer.quantize(wanted, folder)
        next(Path(folder).glob("*_quantized.onnx")).rename(out)


PEERS: dict[str, Callable[[Path, Path, Path], None]] = {
    "quantize_static-minmax": lambda *files: quantize_static(*files, method="MinMax"),
    "quantize_static-percentile": lambda *files: quantize_static(*files, method="Percentile"),
    "quantize_static-entropy": lambda *files: quantize_static(*files, method="Entropy"),
    "quantize_dynamic": quantize_dynamic,
    "nncf": nncf_quantize,
    "optimum-static": optimum_static,
    "optimum-dynamic": optimum_dynamic,
}


def _prepared(model: Path, folder: Path) -> Path:
    """The model after shape inference and ONNX Runtime's optimizer, as its documentation asks."""
    import onnx
    from onnx import version_converter
    from onnxruntime.quantization.shape_inference import quant_pre_process

    out, raised = folder / "model.onnx", folder / "raised.onnx"
    loaded = onnx.load(model)
    if loaded.opset_import[0].version < _PER_CHANNEL:
        onnx.save(version_converter.convert_version(loaded, _PER_CHANNEL), raised)
        model = raised
    try:
        quant_pre_process(model, out)
    except Exception:  # its symbolic shape inference does not know all operators
        quant_pre_process(model, out, skip_symbolic_shape=True)
    return out


if __name__ == "__main__":
    PEERS[sys.argv[1]](*(Path(each) for each in sys.argv[2:5]))
