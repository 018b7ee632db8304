"""The ONNX format: one protobuf file, with weights inside or in data files beside it.

Language models are kept in folders: the file is `model.onnx` there, tokenizer and configuration lie
beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convkit.artifact import Artifact, Description, Opening, Precision
from convkit.formats.onnx_folder import is_folder
from convkit.formats.onnx_header import Header, is_onnx, read_header
from convkit.formats.onnx_quantized import activations_of, unpacked_in, weights_of
from convkit.formats.onnx_types import ANY_RANK
from convkit.onnx_external import check_external
from convkit.onnx_folder import graph_file, text_folder
from convkit.quantization.recognition import recognised_in
from convkit.step import Format, Package, Runner

_OWN_METADATA = "convkit."
"""What convkit keeps for its own steps: which weight is which, whole configurations."""
_KNOWN_DOMAINS = ("", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training")

_SCHEMES = {
    "static": Precision.INT8, "dynamic": Precision.INT8,
    "rtn": Precision.Q4, "hqq": Precision.Q4, "gptq": Precision.Q4,
    "nf4": Precision.Q4, "fp4": Precision.Q4,
}  # fmt: skip

_WEIGHTS = (
    "float", "bfloat", "int8", "uint8", "int4", "uint4", "int2", "uint2",
)  # fmt: skip
"""What the dtypes of weights begin with; integers of more bits are indices and shapes."""


_SHARE_OF_FOUR = 1 / 3
"""Of the quantized weights in 4 bits, from which on a model is called that."""


def _matches(path: Path, opening: Opening) -> bool:
    return is_onnx(path) or is_folder(path)


def _describe(path: Path, opening: Opening) -> Description:
    """Precision, signature, sizes, operators, from the file's structure.

    Raises:
        ModelError: truncated, empty, damaged, or its data files are missing or too short.
        UnsafeError: a data file lies outside the model's folder.
    """
    from convkit.onnx_language_graph import language_graph

    file, folder = graph_file(path), text_folder(path)
    header = read_header(file)
    data_files = check_external(file, header.initializers)
    language = language_graph(header.inputs, header.outputs, folder)
    details = {}
    if language is not None:
        from convkit.formats.onnx_language_details import language_details

        details = language_details(language, folder)
    weights = weight_elements(header)
    operators = {
        f"{domain}::{name}" if domain else name: count
        for (domain, name), count in header.operators.most_common()
    }
    return Description(
        precision=precision_of(weights),
        inputs=header.inputs if language is None else language.inputs,
        outputs=header.outputs if language is None else language.outputs,
        parameter_count=sum(weights.values()),
        operators=operators,
        details=details | _details(header, data_files, weights),
        data_files=tuple(file.parent / location for location in data_files),
    )


def precision_of(weights: Mapping[str, int]) -> Precision:
    """The precision of a model from its number of weight elements per dtype.

    Models whose matrices are in 4 bits often keep tables in 8, which may hold more elements.
    """
    found = Precision.of_weights(weights)
    fours = sum(count for dtype, count in weights.items() if dtype.endswith("int4"))
    integers = sum(count for dtype, count in weights.items() if dtype.endswith(("int8", "int4")))
    is_in_four = found is Precision.INT8 and fours >= _SHARE_OF_FOUR * integers
    return Precision.Q4 if is_in_four else found


def weight_elements(header: Header) -> Counter[str]:
    """Number of weight elements per dtype; packed weights are counted as what they hold.

    Scales, zero points, indices and shapes are no weights. Float weights that are rounded when the
    model is opened, as TensorRT has them, count as what they are rounded to.
    """
    counts: Counter[str] = Counter()
    for weight in weights_of(header.initializers, header.reads):
        if weight.dtype.startswith(_WEIGHTS):
            counts[weight.dtype] += weight.element_count
    return counts


def _details(
    header: Header, data_files: Mapping[str, int], weights: Mapping[str, int]
) -> dict[str, Any]:
    details: dict[str, Any] = {
        "ir_version": header.ir_version,
        "opsets": {domain or "ai.onnx": version for domain, version in header.opsets.items()},
        "producer": f"{header.producer} {header.producer_version}".strip(),
        "graph_name": header.graph_name,
        "node_count": sum(header.operators.values()),
        "weights_by_dtype": dict(weights),
    }
    optional = {
        "external_data": dict(data_files),
        "quantization": _quantization(header),
        "custom_domains": _custom_domains(header),
        "functions": [f"{domain}::{name}" for domain, name in header.functions],
        "metadata": {k: v for k, v in header.metadata.items() if not k.startswith(_OWN_METADATA)},
        "unknown_rank": [s.name for s in header.inputs + header.outputs if ANY_RANK in s.shape],
    }
    return details | {name: value for name, value in optional.items() if value}


def _quantization(header: Header) -> dict[str, Any]:
    """The schemes found, the operators that show them, and what is quantized how."""
    tensors, reads = header.initializers, header.reads
    operators: Counter[str] = Counter()
    for (_, name), count in header.operators.items():
        operators[name] += count
    found = recognised_in(operators, unpacked_in(tensors, reads))
    if found is None:
        return {}
    weights: Counter[str] = Counter()
    for each in weights_of(tensors, reads):
        if each.dtype.startswith(_WEIGHTS):
            weights[f"{each.dtype} {each.sharing}".rstrip()] += each.element_count
    floats = sum(count for kind, count in weights.items() if "float" in kind)
    described = {
        "schemes": list(found.kinds),
        "operators": dict(found.operators),
        "weights": dict(weights.most_common()),
        "quantized_share": round(1 - floats / max(1, weights.total()), 3),
        "activations": activations_of(tensors, reads),
    }
    return {name: value for name, value in described.items() if value not in ([], {})}


def _custom_domains(header: Header) -> list[str]:
    used = {domain for domain, _ in header.operators} - {domain for domain, _ in header.functions}
    return sorted(used - set(_KNOWN_DOMAINS))


def _open(artifact: Artifact) -> Runner:
    """A runner on ONNX Runtime's CPU provider; opened by path, so data files may be of any size."""
    from convkit.formats.onnx_language import open_onnx
    from convkit.formats.onnx_session import SessionRunner

    return open_onnx(artifact, SessionRunner)


def _open_exact(artifact: Artifact) -> Runner:
    """A runner that rounds every fp16 and bf16 result, as hardware of that precision does."""
    from convkit.formats.onnx_language import open_onnx
    from convkit.formats.onnx_true_half import TrueHalfRunner

    return open_onnx(artifact, TrueHalfRunner)


onnx = Format(
    name="onnx",
    suffixes=(".onnx",),
    needs=(Package("onnxruntime", "onnx"),),
    matches=_matches,
    describe=_describe,
    open=_open,
    open_exact=_open_exact,
    schemes=_SCHEMES,
)
