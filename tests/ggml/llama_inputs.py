"""What enters each weight while llama.cpp computes: its own numbers, as llama-imatrix sums them up.

llama.cpp calls back for every tensor of its graph. Where the callback stands among the parameters
of a context, and where fields stand in a tensor, is checked by llama.cpp's own functions first.

Source: llama.cpp, `tools/imatrix/imatrix.cpp` (`collect_imatrix`), `include/llama.h` (`cb_eval` and
its data before `type_k`), `ggml/include/ggml.h` (`struct ggml_tensor`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_bool, c_char, c_char_p, c_int, c_int8, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

from convkit.ggml.llama_abi import POOLING_NONE, Library, library

Array = np.ndarray[Any, Any]


class _Tensor(ctypes.Structure):
    """`struct ggml_tensor`."""

    _fields_ = (
        ("type", c_int),
        ("buffer", c_void_p),
        ("sizes", c_int64 * 4),
        ("strides", c_size_t * 4),
        ("operation", c_int),
        ("parameters", c_int32 * 16),
        ("flags", c_int32),
        ("sources", c_void_p * 10),
        ("view_source", c_void_p),
        ("view_offset", c_size_t),
        ("data", c_void_p),
        ("name", c_char * 64),
    )


_Callback = ctypes.CFUNCTYPE(c_bool, c_void_p, c_bool, c_void_p)


class _Watcher:
    """Sums up squares of what enters the weights of the layers."""

    def __init__(self, call: Any) -> None:
        self.sums: dict[str, Array] = {}
        self.counts: dict[str, Array] = {}
        self.failure: Exception | None = None
        call.ggml_get_name.restype, call.ggml_get_name.argtypes = c_void_p, (c_void_p,)
        call.ggml_get_data.restype, call.ggml_get_data.argtypes = c_void_p, (c_void_p,)
        call.ggml_op_name.restype, call.ggml_op_name.argtypes = c_char_p, (c_int,)
        self._call = call

    def __call__(self, address: int, is_asked: bool, _data: object) -> bool:
        tensor = _Tensor.from_address(address)
        operation = self._call.ggml_op_name(tensor.operation)
        if operation not in (b"MUL_MAT", b"MUL_MAT_ID"):
            return not is_asked
        weight = self._tensor(tensor.sources[0])
        if not weight.name.startswith(b"blk."):
            return not is_asked
        if not is_asked:
            try:
                self._take(tensor, weight, has_experts=operation == b"MUL_MAT_ID")
            except Exception as failure:
                self.failure = failure  # it cannot pass through C
        return True

    def _tensor(self, address: int) -> _Tensor:
        tensor = _Tensor.from_address(address)
        assert self._call.ggml_get_name(address) == address + _Tensor.name.offset
        assert self._call.ggml_get_data(address) == tensor.data
        return tensor

    def _take(self, tensor: _Tensor, weight: _Tensor, *, has_experts: bool) -> None:
        inputs = _array(self._tensor(tensor.sources[1]), np.float32)
        experts = weight.sizes[2]
        name = weight.name.decode()
        sums = self.sums.setdefault(name, np.zeros((experts, weight.sizes[0])))
        counts = self.counts.setdefault(name, np.zeros(experts))
        squares = np.square(inputs[0], dtype=np.float64)
        if not has_experts:
            rows = squares.reshape(-1, squares.shape[-1])
            sums[0] += rows.sum(0)
            counts[0] += len(rows)
            return
        chosen = _array(self._tensor(tensor.sources[2]), np.int32)[0, 0]  # (tokens, experts of one)
        for token, place in np.ndindex(chosen.shape):
            expert = chosen[token, place]
            sums[expert] += squares[token, place % squares.shape[1]]
            counts[expert] += 1


def _array(tensor: _Tensor, kind: type) -> Array:
    """A view of a tensor, its longest strides first."""
    shape, strides = tensor.sizes[::-1], tensor.strides[::-1]
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    content = (c_char * (last + 4)).from_address(tensor.data)
    return np.ndarray(shape, kind, content, 0, strides)


def sums_of_inputs(path: Path, pieces: Sequence[Sequence[int]]) -> dict[str, tuple[Array, Array]]:
    """Name of a weight -> sums of squares (matrices, columns) and counts (matrices,).

    Args:
        path: a GGUF file.
        pieces: token ids, each read from the beginning.
    """
    here = library()
    call = here.call
    watcher = _Watcher(call)
    callback = _Callback(watcher)
    model = call.llama_model_load_from_file(
        str(path).encode(), here.model_parameters(vocabulary_only=False)
    )
    assert model, here.log.taken()
    context = call.llama_init_from_model(model, _parameters(here, callback, len(pieces[0])))
    assert context, here.log.taken()
    try:
        for piece in pieces:
            call.llama_memory_clear(call.llama_get_memory(context), True)
            tokens = (c_int32 * len(piece))(*piece)
            batch = call.llama_batch_get_one(tokens, len(piece))
            outputs = (c_int8 * len(piece))(*[1] * len(piece))  # or the last layer skips tokens
            batch.outputs = ctypes.addressof(outputs)
            assert call.llama_decode(context, batch) == 0
    finally:
        call.llama_free(context)
        call.llama_model_free(model)
    if watcher.failure:
        raise watcher.failure
    return {name: (sums, watcher.counts[name]) for name, sums in watcher.sums.items()}


def _parameters(here: Library, callback: Any, length: int) -> Any:
    parameters = here.context_parameters(capacity=length, batch=length, pooling=POOLING_NONE)
    types = here.context_fields.cache_types
    assert types is not None
    words = parameters.words()[types - 4 : types].view(np.uint64)
    assert not words.any()
    words[0] = ctypes.cast(callback, c_void_p).value
    return parameters
