"""Runs an ONNX model on ONNX Runtime's CPU provider, and says in plain words why it cannot."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit.artifact import Artifact, TensorSpec
from convkit.errors import (
    ConvkitError,
    ResourceError,
    SamplesError,
    StepError,
    UnsupportedError,
)
from convkit.formats.onnx_header import Header, read_header
from convkit.formats.onnx_load_error import load_error, plain, run_line
from convkit.formats.onnx_resolution import resolution_of
from convkit.formats.onnx_types import ANY_RANK, ELEMENT_NAMES
from convkit.onnx_external import check_external
from convkit.processors import thread_count
from convkit.protobuf import encode_bytes
from convkit.step import Feeds, Outputs, Runner, Sizes

if TYPE_CHECKING:
    import numpy as np

_FATAL = 4
"""ONNX Runtime's severity that prints nothing; every failure also raises."""

_FOLDER_KEY = "session.model_external_initializers_file_folder_path"
"""Where data files lie for a model given as bytes.

Source: onnxruntime_session_options_config_keys.h.
"""
_CODES = {name: code for code, name in ELEMENT_NAMES.items()}
RUNTIME_TYPES = {
    "float": "float32", "double": "float64", "float16": "float16", "bfloat16": "bfloat16",
    "bool": "bool", "string": "string", "int8": "int8", "int16": "int16", "int32": "int32",
    "int64": "int64", "uint8": "uint8", "uint16": "uint16", "uint32": "uint32", "uint64": "uint64",
}  # fmt: skip


class SessionRunner(Runner):
    """An ONNX model on ONNX Runtime's CPU provider.

    Args:
        artifact: the model; it is opened by path, so that data files may be of any size.
        expose: further values of the main graph to give as outputs, after the model's own.

    Attributes:
        session: ONNX Runtime's own object.

    Raises:
        ModelError: the file or its data files are missing, truncated or invalid.
        UnsafeError: a data file lies outside the model's folder.
        UnsupportedError: this runtime does not know an operator, the IR version or the opset.
    """

    def __init__(self, artifact: Artifact, expose: Sequence[str] = ()) -> None:
        self._path = artifact.path
        header = read_header(artifact.path)
        check_external(artifact.path, header.initializers)
        model = artifact.path.read_bytes() + outputs_tail(expose) if expose else None
        self.session = open_session(artifact.path, header, model)
        self.inputs = header.inputs
        declared = header.outputs + tuple(TensorSpec(name, "unknown", ()) for name in expose)
        self.outputs = tuple(map(_completed, declared, self.session.get_outputs()))
        self.resolution = resolution_of(artifact.path)
        self._optional = {arg.name for arg in self.session.get_overridable_initializers()}
        self._is_plain = all(
            spec.dtype in RUNTIME_TYPES.values() and spec.dtype != "bfloat16"
            for spec in (*self.inputs, *self.outputs)
        )

    def __call__(self, feeds: Feeds) -> Outputs:
        """Outputs by name, in the model's order.

        Raises:
            SamplesError: names, dtypes or shapes are not the model's.
            UnsupportedError: an output is no tensor.
            StepError: the runtime fails on these inputs.
        """
        check_feeds(self._path.name, self.inputs, feeds, self._optional)
        names = [spec.name for spec in self.outputs]
        try:
            if self._is_plain:
                arrays = self.session.run(names, dict(feeds))
            else:
                arrays = _run_values(self.session, self.inputs, names, feeds)
        except ConvkitError:
            raise
        except Exception as cause:  # the runtime's exceptions share no base class of their own
            raise run_error(self._path.name, cause) from cause
        return dict(zip(names, arrays, strict=True))

    def example(self, sizes: Sizes, seed: int) -> Feeds:
        """Seeded inputs: indices stay inside the tables they look up, masks are ones.

        Raises:
            ModelError: an input holds strings or is no tensor.
        """
        from convkit.formats.onnx_example import draw_example

        return draw_example(self._path, self.inputs, sizes, seed)

    def close(self) -> None:
        """Gives the session's memory back."""
        del self.session


def outputs_tail(values: Sequence[str]) -> bytes:
    """Bytes that, put after an ONNX file's own, make these values outputs of its graph.

    Source: Protocol Buffers documentation, "Encoding", "Last One Wins": messages that follow one
    another are merged, repeated fields joined. ModelProto.graph is field 7, GraphProto.output 12,
    ValueInfoProto.name 1; the runtime infers the types.
    """
    named = (encode_bytes(12, encode_bytes(1, value.encode())) for value in values)
    return encode_bytes(7, b"".join(named))


def open_session(path: Path, header: Header, model: bytes | None = None) -> Any:
    """A session on the model at `path`, or on `model`, bytes whose data files lie beside `path`.

    Raises:
        ModelError: the runtime finds the model invalid.
        UnsupportedError: the runtime does not know an operator, the IR version or the opset.
    """
    runtime = import_runtime()
    options = runtime.SessionOptions()
    options.log_severity_level = _FATAL
    # A given number also keeps the runtime from pinning threads, which containers forbid.
    options.intra_op_num_threads = thread_count()
    if model is not None:
        options.add_session_config_entry(_FOLDER_KEY, str(path.parent.resolve()))
    source = str(path) if model is None else model
    try:
        # Without a fallback: it would try the same provider again, and print that it does.
        return runtime.InferenceSession(
            source, options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except Exception as cause:  # the runtime's exceptions share no base class of their own
        raise load_error(path, header, str(cause), runtime.__version__) from cause


def import_runtime() -> Any:
    """The onnxruntime module; what its library prints while it looks for GPUs is dropped."""
    if "onnxruntime" in sys.modules:
        return sys.modules["onnxruntime"]
    with _quiet_stderr(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import onnxruntime
    return onnxruntime


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Drops what C++ code writes to file descriptor 2; Python's own errors still raise."""
    try:
        saved = os.dup(2)
    except OSError:  # closed, so nothing is printed anyway
        yield
        return
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(sink)


def _completed(spec: TensorSpec, argument: Any) -> TensorSpec:
    """An output whose type the file leaves out gets the type that the runtime inferred."""
    if spec.dtype != "unknown":
        return spec
    inner = re.fullmatch(r"tensor\((\w+)\)", argument.type)
    dtype = RUNTIME_TYPES.get(inner.group(1), inner.group(1)) if inner else argument.type
    shape = tuple(
        size if isinstance(size, int | str) else f"{spec.name}_dim{index}"
        for index, size in enumerate(argument.shape or ())
    )
    return TensorSpec(spec.name, dtype, shape or (ANY_RANK,))


def check_feeds(
    model: str, specs: tuple[TensorSpec, ...], feeds: Feeds, optional: set[str] | None = None
) -> None:
    """Whether feeds have the names, dtypes and shapes of `specs`; both sides are named if not.

    Raises:
        SamplesError: they have not.
    """
    known = {spec.name: spec for spec in specs}
    missing = [name for name in known if name not in feeds]
    extra = [name for name in feeds if name not in known and name not in (optional or ())]
    wrong = [
        line for name, spec in known.items() if name in feeds and (line := _misfit(spec, feeds))
    ]
    if not (missing or extra or wrong):
        return
    got = ", ".join(f"{name}: {_shown(array)}" for name, array in feeds.items())
    problems = [
        *(f"missing  {name}" for name in missing),
        *(f"unknown  {name}" for name in extra),
        *wrong,
    ]
    raise SamplesError(
        f"The samples do not fit {model}.",
        why=(
            *problems,
            f"The model takes: {'; '.join(map(str, specs)) or 'nothing'}",
            f"The samples hold: {got or 'nothing'}",
        ),
        hint="Give arrays named like the inputs:  --samples inputs.npz",
        missing=missing,
        unknown=extra,
    )


def _shown(array: Any) -> str:
    return f"{array.dtype.name}[{', '.join(map(str, array.shape))}]"


def _misfit(spec: TensorSpec, feeds: Feeds) -> str:
    array = feeds[spec.name]
    is_text = spec.dtype == "string" and array.dtype.kind in "OUS"
    if array.dtype.name != spec.dtype and not is_text and "(" not in spec.dtype:
        return f"{spec.name} is {array.dtype.name}, the model takes {spec.dtype}"
    if ANY_RANK in spec.shape:
        return ""
    fits = len(spec.shape) == array.ndim and all(
        isinstance(wanted, str) or wanted == size
        for wanted, size in zip(spec.shape, array.shape, strict=True)
    )
    return "" if fits else f"{spec.name} has shape {array.shape}, the model takes {spec}"


def _run_values(
    session: Any, specs: tuple[TensorSpec, ...], names: list[str], feeds: Feeds
) -> list[np.ndarray[Any, Any]]:
    """Runs with dtypes that numpy lacks, which the runtime passes as its own values."""
    runtime = import_runtime()
    dtypes = {spec.name: spec.dtype for spec in specs}
    values = {
        name: to_value(runtime, array, dtypes.get(name, array.dtype.name))
        for name, array in feeds.items()
    }
    results = session.run_with_ort_values(names, values)
    return [from_value(name, value) for name, value in zip(names, results, strict=True)]


def to_value(runtime: Any, array: np.ndarray[Any, Any], dtype: str) -> Any:
    """The runtime's own value of an array, for dtypes that numpy lacks as well."""
    import numpy as np

    array = np.ascontiguousarray(array)
    if dtype in RUNTIME_TYPES.values() and dtype != "bfloat16":
        return runtime.OrtValue.ortvalue_from_numpy(array)
    raw = array.view(np.uint16 if array.dtype.itemsize == 2 else np.uint8)
    return runtime.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, _CODES[dtype])


def from_value(name: str, value: Any) -> np.ndarray[Any, Any]:
    """The array of one of the runtime's values, output `name`; bfloat16 is that of ml_dtypes.

    Raises:
        UnsupportedError: it is no tensor.
    """
    import ctypes

    import numpy as np

    if not value.is_tensor():
        raise UnsupportedError(
            f"Output '{name}' is {value.data_type()}, not a tensor.",
            why="Models that give sequences or maps cannot be compared or converted.",
        )
    inner = value.data_type()[len("tensor(") : -1]
    if inner in RUNTIME_TYPES and inner != "bfloat16":
        result: np.ndarray[Any, Any] = value.numpy()
        return result
    import ml_dtypes

    dtype = np.dtype(getattr(ml_dtypes, inner.replace("float8", "float8_")))
    shape = tuple(value.shape())
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = ctypes.string_at(value.data_ptr(), size) if size else b""
    return np.frombuffer(raw, dtype).reshape(shape)  # the shape the value has


def run_error(model: str, cause: Exception) -> ConvkitError:
    """What a failure of the runtime while it runs means, in plain words."""
    message = plain(str(cause))
    if "Failed to allocate" in message or isinstance(cause, MemoryError):
        return ResourceError(f"Memory does not suffice to run {model}.", why=message[:400])
    return StepError(
        f"ONNX Runtime failed while running {model}.",
        why=run_line(message),
        hint="Inputs it accepts can be given with  --samples inputs.npz",
    )
