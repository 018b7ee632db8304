"""llama.cpp's own quantizer, out of the package cyllama, in a process of its own.

cyllama shows importance data and overrides of types as pointers that cannot be set, so they are
written into the parameters' memory; the layout is checked first. The llama.cpp in cyllama 0.2.18
(b9190) aborts on pure schemes where rows fit no block; newer ones fall back as without `is_pure`.

Source: llama.cpp, `include/llama.h` (`llama_model_quantize_params`, `llama_model_imatrix_data`,
`llama_model_tensor_override`).
"""

from __future__ import annotations

import ctypes
import math
import os
import pickle
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from convkit.ggml.header import Header

IS_MISSING = "cyllama has llama.cpp's quantizer"
"""Why a test is skipped: `pytest.importorskip("cyllama", reason=oracle.IS_MISSING)`."""


@dataclass(frozen=True)
class Job:
    """One run of the quantizer.

    Attributes:
        source: the GGUF file to quantize.
        out: the GGUF file to write.
        file_type: number of the scheme.
        is_pure: no mixture.
        overrides: (regex, number of a type).
        importance: tensor name -> mean squares, flat; None for a run without.
        thread_count: of the quantizer.
        may_requantize: the source may be quantized.
    """

    source: Path
    out: Path
    file_type: int
    is_pure: bool = False
    overrides: Sequence[tuple[str, int]] = ()
    importance: Mapping[str, NDArray[np.float32]] | None = None
    thread_count: int = 1
    may_requantize: bool = False


def quantize(jobs: Sequence[Job]) -> list[str]:
    """Runs the jobs one after the other; per job the reason why it failed, or nothing."""
    done = subprocess.run(
        [sys.executable, __file__], input=pickle.dumps(list(jobs)), capture_output=True
    )
    said = done.stderr.decode(errors="replace")[-2000:]
    assert done.returncode == 0, f"the quantizer ended with {done.returncode}: {said}"
    answers: list[str] = pickle.loads(done.stdout)
    return answers


def even_importance(header: Header) -> dict[str, NDArray[np.float32]]:
    """Importance data of ones for every matrix of a model."""
    return {
        one.name: np.ones(math.prod(one.shape[:-2]) * one.shape[-1], np.float32)
        for one in header.tensors
        if len(one.shape) > 1
    }


def stored(path: Path) -> dict[str, tuple[str, bytes]]:
    """Tensor name -> type and bytes, in the order of the file."""
    import gguf

    tensors = gguf.GGUFReader(path).tensors
    return {one.name: (one.tensor_type.name, one.data.tobytes()) for one in tensors}


class _Parameters(ctypes.Structure):
    """`llama_model_quantize_params` behind the head of its Python object."""

    _fields_ = (
        ("reference_count", ctypes.c_ssize_t),
        ("type", ctypes.c_void_p),
        ("methods", ctypes.c_void_p),
        ("thread_count", ctypes.c_int32),
        ("file_type", ctypes.c_int32),
        ("output_type", ctypes.c_int32),
        ("embedding_type", ctypes.c_int32),
        ("switches", ctypes.c_bool * 6),
        ("importance", ctypes.c_void_p),
        ("metadata", ctypes.c_void_p),
        ("overrides", ctypes.c_void_p),
        ("pruned", ctypes.c_void_p),
    )


class _Importance(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("size", ctypes.c_size_t))


class _Override(ctypes.Structure):
    _fields_ = (("pattern", ctypes.c_char_p), ("type", ctypes.c_int32))


def _run(job: Job) -> str:
    from cyllama.llama import llama_cpp

    parameters = llama_cpp.LlamaModelQuantizeParams()
    parameters.nthread, parameters.ftype = job.thread_count, job.file_type
    parameters.pure, parameters.allow_requantize = job.is_pure, job.may_requantize
    held = _lay_bare(parameters)
    # A list ends with an entry of zeros; the arrays live until the call returns.
    overrides = [_Override(pattern.encode(), number) for pattern, number in job.overrides]
    if overrides:
        patterns = (_Override * (len(overrides) + 1))(*overrides)
        held.overrides = ctypes.addressof(patterns)
    if job.importance is not None:
        arrays = [np.ascontiguousarray(one, np.float32) for one in job.importance.values()]
        entries = [
            _Importance(name.encode(), array.ctypes.data, array.size)
            for name, array in zip(job.importance, arrays, strict=True)
        ]
        importance = (_Importance * (len(entries) + 1))(*entries)
        held.importance = ctypes.addressof(importance)
    with _heard() as log:
        try:
            llama_cpp.model_quantize(str(job.source), str(job.out), parameters)
        except RuntimeError as refusal:
            log.seek(0)
            said = re.findall(r"failed to quantize: (.*)", log.read().decode(errors="replace"))
            return said[-1] if said else str(refusal)
    return ""


@contextmanager
def _heard() -> Iterator[BinaryIO]:
    """What llama.cpp writes to the error stream, where it says why it refuses."""
    stream = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            yield log
        finally:
            os.dup2(stream, 2)
            os.close(stream)


def _lay_bare(parameters: Any) -> _Parameters:
    """The parameters' memory, once it reads as the layout says."""
    held = _Parameters.from_address(id(parameters))
    assert type(parameters).__basicsize__ == ctypes.sizeof(_Parameters)
    assert (held.thread_count, held.file_type) == (parameters.nthread, parameters.ftype)
    assert list(held.switches)[:4] == [
        parameters.allow_requantize,
        parameters.quantize_output_tensor,
        parameters.only_copy,
        parameters.pure,
    ]
    assert not any((held.importance, held.metadata, held.overrides, held.pruned))
    return held


if __name__ == "__main__":
    # Jobs come pickled as `tests.ggml.oracle.Job`, which this file run as a program is not.
    sys.path.insert(0, str(Path(__file__).parents[2]))
    answers = [_run(job) for job in pickle.load(sys.stdin.buffer)]
    sys.stdout.buffer.write(pickle.dumps(answers))
