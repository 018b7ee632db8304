"""From a kernel's body to machine code for this machine, in some tens of milliseconds.

Source: llvmlite's documentation, "LLVM binding layer".
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from llvmlite import binding, ir

from convkit.checkpoint.rows import Array
from convkit.ggml.kernels.body import Body, Bytes, Elements
from convkit.ggml.kernels.values import BYTE, FLOAT, INDEX, Number

_ALIGNMENT = 64  # a vector, and a line of the cache
_compiling = threading.Lock()

# What computes with floats on Windows refers to this symbol of C's runtime, and to its value never.
_FLOATS_USED = "_fltused"
_floats_used = ctypes.c_int(0)


@dataclass(frozen=True)
class Arguments:
    """What a kernel is called with.

    Attributes:
        values: the elements of all blocks.
        importance: of a row's elements.
        variances: mean squares of the rows, for short blocks with an importance.
        out: where blocks are written.
        count: of blocks, at least one.
        row_blocks: blocks of a row.
    """

    values: Elements
    importance: Elements
    variances: Elements
    out: Bytes
    count: Number
    row_blocks: Number


class Kernel:
    """A compiled function. Threads may call it at the same time, and Python's lock is released."""

    def __init__(self, name: str, build: Callable[[Body, Arguments], None]) -> None:
        with _compiling:
            module, self._workspace_bytes = _module(name, build)
            self._engine = _compiled(module)
        address = self._engine.get_function_address(name)
        self._call = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 5, *[ctypes.c_int64] * 2)(address)

    def __call__(
        self,
        values: Array,
        importance: Array | None,
        variances: Array | None,
        out: Array | None,
        count: int,
        row_blocks: int,
    ) -> None:
        """Runs; see `Arguments`. Arrays are contiguous and as large as these say."""
        arrays = (values, importance, variances, out)
        room = np.empty(self._workspace_bytes + _ALIGNMENT, np.uint8)
        workspace = room.ctypes.data + -room.ctypes.data % _ALIGNMENT
        addresses = (None if array is None else array.ctypes.data for array in arrays)
        self._call(*addresses, workspace, count, row_blocks)


def _module(name: str, build: Callable[[Body, Arguments], None]) -> tuple[str, int]:
    """The kernel in LLVM's language, and how many bytes it works in."""
    module = ir.Module(name)
    elements, octets = FLOAT.as_pointer(), BYTE.as_pointer()
    kinds = [elements, elements, elements, octets, octets, INDEX, INDEX]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), name)
    for argument in function.args[:5]:
        argument.add_attribute("noalias")
    entry = function.append_basic_block("entry")
    start = function.append_basic_block("start")
    ir.IRBuilder(entry).branch(start)
    builder = ir.IRBuilder(start)
    values, importance, variances, out, workspace, count, row_blocks = function.args
    body = Body(builder, workspace)
    build(
        body,
        Arguments(
            Elements(builder, values),
            Elements(builder, importance),
            Elements(builder, variances),
            Bytes(builder, out),
            Number(builder, count),
            Number(builder, row_blocks),
        ),
    )
    builder.ret_void()
    return str(module), body.workspace_bytes


@cache
def _target() -> Any:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    if sys.platform == "win32" and not binding.address_of_symbol(_FLOATS_USED):
        binding.add_symbol(_FLOATS_USED, ctypes.addressof(_floats_used))
    return binding.Target.from_default_triple()


def _compiled(text: str) -> Any:
    target = _target()
    module = binding.parse_assembly(text)
    module.verify()
    machine = target.create_target_machine(
        cpu=binding.get_host_cpu_name(),
        features=binding.get_host_cpu_features().flatten(),
        opt=2,
        jit=True,
    )
    tuning = binding.create_pipeline_tuning_options(speed_level=2)
    passes = binding.create_pass_builder(machine, tuning)
    passes.getModulePassManager().run(module, passes)
    engine = binding.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return engine
