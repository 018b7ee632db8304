"""What flows between steps: an artifact at rest on disk, and the words that describe it."""

from __future__ import annotations

import enum
import hashlib
import json
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MANIFEST_SUFFIX = ".convkit.json"
_CHUNK_BYTES = 1 << 20

_DTYPE_BITS = {
    "float64": 64, "float32": 32, "float16": 16, "bfloat16": 16,
    "float8_e4m3fn": 8, "float8_e5m2": 8,
    "int64": 64, "int32": 32, "int16": 16, "int8": 8, "int4": 4,
    "uint64": 64, "uint32": 32, "uint16": 16, "uint8": 8, "uint4": 4,
    "bool": 8, "complex64": 64, "complex128": 128,
}  # fmt: skip


class Precision(str, enum.Enum):
    """How the weights are stored; the spelling is file name, flag, YAML and JSON key alike."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    INT8 = "int8"
    Q4 = "q4"

    def __str__(self) -> str:
        return self.value

    @property
    def bits(self) -> int:
        """Bits per weight, the order in which precision falls; fp16 and bf16 are equals."""
        return {"fp32": 32, "bf16": 16, "fp16": 16, "int8": 8, "q4": 4}[self.value]

    def may_become(self, other: Precision) -> bool:
        """Whether a route may go from this precision to `other`: it stays, or bits are lost."""
        return self is other or other.bits < self.bits

    @classmethod
    def of_weights(cls, elements_by_dtype: Mapping[str, int]) -> Precision:
        """The precision of a model from its number of weight elements per dtype.

        The floating or quantized dtype that holds most elements decides; index tables and masks
        (int64, int32, bool) say nothing about precision.
        """
        named = {
            "float64": cls.FP32, "float32": cls.FP32, "float16": cls.FP16, "bfloat16": cls.BF16,
            "int8": cls.INT8, "uint8": cls.INT8, "int4": cls.Q4, "uint4": cls.Q4,
            "float8_e4m3fn": cls.INT8, "float8_e5m2": cls.INT8,
        }  # fmt: skip
        votes: dict[Precision, int] = {}
        for dtype, count in elements_by_dtype.items():
            if dtype in named:
                votes[named[dtype]] = votes.get(named[dtype], 0) + count
        return max(votes, key=lambda precision: votes[precision], default=cls.FP32)


Dimension = int | str
"""A fixed size, or the name of a dynamic dimension (`"batch"`)."""


@dataclass(frozen=True)
class TensorSpec:
    """A named input or output; `dtype` in numpy's spelling, a dimension an int or a name."""

    name: str
    dtype: str
    shape: tuple[Dimension, ...]

    @property
    def dynamic(self) -> tuple[str, ...]:
        """Names of the dynamic dimensions, in order."""
        return tuple(size for size in self.shape if isinstance(size, str))

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"

    def as_option(self) -> str:
        """As `--input` takes it: `x=float32[batch,3]`."""
        return f"{self.name}={self.dtype}[{','.join(map(str, self.shape))}]"

    def to_json(self) -> dict[str, Any]:
        """The JSON of `inspect`: name, dtype, shape."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}


@dataclass(frozen=True)
class Opening:
    """How the user said a model is to be opened, where the path alone does not tell.

    Attributes:
        factory: `package.module:callable` that builds the network.
        weights_key: dotted path to the state dict inside a nested checkpoint (`model_state`).
        inputs: input specs given with `--input`, or read off the user's samples.
        signature: which signature of a SavedModel; None is the default one.
        input_names, output_names: tensors where a TensorFlow graph begins and ends, where the file
            does not say.
        adapter: a folder with a low-rank adapter that counts as merged into the weights.
        trust: the user vouches for code inside the model file.
    """

    factory: str | None = None
    weights_key: str | None = None
    inputs: tuple[TensorSpec, ...] = ()
    signature: str | None = None
    input_names: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()
    adapter: Path | None = None
    trust: bool = False


@dataclass(frozen=True)
class Description:
    """What a file's headers say of a model, without running it.

    Attributes:
        precision: precision of the weights.
        inputs, outputs: empty where only a run of the model would tell.
        parameter_count: number of weight elements; None where headers do not tell.
        operators: operator name -> count.
        details: further facts `inspect` prints, JSON values only (opset, architecture ...).
        data_files: files beside the path that hold its weights (ONNX external data).
    """

    precision: Precision
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    parameter_count: int | None = None
    operators: Mapping[str, int] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    data_files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class LineageEntry:
    """One step in an artifact's life: what ran, with what, on what input, when."""

    step: str
    options: Mapping[str, Any]
    versions: Mapping[str, str]
    input_sha256: str
    finished_at: str


@dataclass(frozen=True)
class Artifact:
    """A model at rest: one path on disk, one format, one precision, named inputs and outputs.

    For a factory without a weights file, `path` is the source file of its module. `data_files` are
    further files that hold its weights.
    """

    path: Path
    format: str
    precision: Precision
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    lineage: tuple[LineageEntry, ...] = ()
    opening: Opening = Opening()
    data_files: tuple[Path, ...] = ()

    @property
    def words(self) -> str:
        """How a command line names it: a path, or a factory with its weights and inputs."""
        opening = self.opening
        if not opening.factory:
            adapter = f" --adapter {shlex.quote(str(opening.adapter))}" if opening.adapter else ""
            return shlex.quote(str(self.path)) + adapter
        weights = f"{self.path}:{opening.weights_key}" if opening.weights_key else str(self.path)
        named = "" if self.path.suffix == ".py" else f" --weights {shlex.quote(weights)}"
        inputs = (f" --input {shlex.quote(spec.as_option())}" for spec in opening.inputs)
        return f"{opening.factory}{named}{''.join(inputs)}"

    @property
    def manifest_path(self) -> Path:
        """Where the manifest lies: beside the artifact."""
        return self.path.with_name(self.path.name + MANIFEST_SUFFIX)

    def files(self) -> tuple[Path, ...]:
        """Every file the artifact consists of."""
        if self.path.is_dir():
            return tuple(sorted(p for p in self.path.rglob("*") if p.is_file()))
        return (self.path, *self.data_files)

    def size_bytes(self) -> int:
        """Bytes on disk."""
        return sum(os.stat(file).st_size for file in self.files())

    def sha256(self) -> str:
        """SHA-256 over the names and contents of its files, hexadecimal."""
        digest = hashlib.sha256()
        for file in self.files():
            digest.update(file.name.encode())
            for chunk in _chunks(file):
                digest.update(chunk)
        return digest.hexdigest()

    def write_manifest(self, **facts: Any) -> None:
        """Writes the manifest beside the artifact; `facts` (checks ...) are added as given."""
        document = {
            "convkit": 1,
            "format": self.format,
            "precision": self.precision.value,
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
            "lineage": [asdict(entry) for entry in self.lineage],
            **facts,
        }
        self.manifest_path.write_text(json.dumps(document, indent=1, default=str) + "\n")

    def read_lineage(self) -> tuple[LineageEntry, ...]:
        """The lineage in the manifest beside the artifact; empty without a readable manifest."""
        try:
            document = json.loads(self.manifest_path.read_text())
            return tuple(LineageEntry(**entry) for entry in document["lineage"])
        except (OSError, ValueError, KeyError, TypeError):
            return ()


def dtype_bits(dtype: str) -> int:
    """Bits per element of a dtype in numpy's spelling; 0 where it has no fixed size (strings)."""
    return _DTYPE_BITS.get(dtype, 0)


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            yield chunk
