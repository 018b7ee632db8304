"""What the nodes of a TorchScript graph compute: numbers and lists in Python, tensors in ATen.

Traced graphs compute sizes as tensors of no dimension (`prim::NumToTensor`); here they stay Python
numbers, so that `torch.export` keeps them symbolic.
Source: PyTorch, torch/csrc/jit/runtime/register_prim_ops.cpp.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from convkit.converters.torchscript_attention import FAST_PATHS


class UnknownOperatorError(Exception):
    """There is no rule for this node kind."""


_DTYPES: Mapping[int, str] = {
    0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64", 5: "float16", 6: "float32",
    7: "float64", 9: "complex64", 10: "complex128", 11: "bool", 15: "bfloat16",
}  # fmt: skip
"""TorchScript writes a dtype as a number. Source: PyTorch, c10/core/ScalarType.h."""

_DTYPE_NUMBERS = {name: number for number, name in _DTYPES.items()}
_MEMORY_FORMATS = ("contiguous_format", "preserve_format", "channels_last", "channels_last_3d")
"""Source: PyTorch, c10/core/MemoryFormat.h."""


def call_operator(node: Any, inputs: Sequence[Any]) -> Any:
    """The result of a node on these inputs; a tuple where it has several outputs.

    Raises:
        UnknownOperatorError: there is no rule for it.
    """
    kind: str = node.kind()
    if kind in _STRUCTURE:
        return _STRUCTURE[kind](node, inputs)
    if kind in FAST_PATHS:
        return FAST_PATHS[kind](*inputs)
    has_tensor = any(_holds_tensor(value) for value in inputs)
    if kind in _ON_TENSORS and has_tensor:
        return _ON_TENSORS[kind](*inputs)
    if kind in _ON_NUMBERS and not has_tensor:
        return _ON_NUMBERS[kind](*inputs)
    if kind in _ON_LISTS and isinstance(inputs[0], list | dict):
        return _ON_LISTS[kind](*inputs)
    if kind.startswith("prim::"):
        raise UnknownOperatorError(kind)
    return _dispatch(node, inputs)


def _dispatch(node: Any, inputs: Sequence[Any]) -> Any:
    """Calls the registered operator that the node's schema names."""
    import torch

    text = node.schema()
    if text == "(no schema)":
        raise UnknownOperatorError(node.kind())
    schema = torch._C.parse_schema(text)
    namespace, _, name = schema.name.partition("::")
    packet = getattr(getattr(torch.ops, namespace), name, None)
    if packet is None:
        raise UnknownOperatorError(node.kind())
    function = getattr(packet, schema.overload_name or "default", packet)
    fitted = [_fit(a, value) for a, value in zip(schema.arguments, inputs, strict=False)]
    positional = [v for a, v in zip(schema.arguments, fitted, strict=False) if not a.kwarg_only]
    named = {a.name: v for a, v in zip(schema.arguments, fitted, strict=False) if a.kwarg_only}
    return function(*positional, **named)


def _fit(argument: Any, value: Any) -> Any:
    """A value as the operator's argument wants it: dtypes by name, numbers as tensors."""
    import torch

    kind = str(argument.real_type)
    if isinstance(value, int) and not isinstance(value, bool):
        if "ScalarType" in kind:
            return getattr(torch, _DTYPES[value])
        if "MemoryFormat" in kind:
            return getattr(torch, _MEMORY_FORMATS[value])
        if "Layout" in kind:
            return torch.strided
    numbers = (bool, int, float, torch.SymInt, torch.SymFloat, torch.SymBool)
    if kind == "Tensor" and isinstance(value, numbers):
        number: Any = value
        return torch.scalar_tensor(number, dtype=_dtype_of(value))
    return value


def _dtype_of(value: Any) -> Any:
    import torch

    if isinstance(value, bool | torch.SymBool):
        return torch.bool
    return torch.int64 if isinstance(value, int | torch.SymInt) else torch.float32


def _holds_tensor(value: Any) -> bool:
    from torch import Tensor

    if isinstance(value, list | tuple):
        return any(isinstance(item, Tensor) for item in value)
    return isinstance(value, Tensor)


def _whole(value: Any) -> Any:
    """The number as an integer; a symbolic size stays symbolic."""
    import torch

    return int(value) if isinstance(value, bool | str) else torch.sym_int(value)


def _real(value: Any) -> Any:
    import torch

    return torch.sym_float(value)


def _convolution(*inputs: Any) -> Any:
    """`aten::_convolution` without its four flags for cuDNN."""
    import torch

    return torch.ops.aten.convolution.default(*inputs[:9])


def _divided(left: Any, right: Any, *rounding: Any) -> Any:
    """`aten::div` on numbers: true division, or rounded as the mode says."""
    mode = rounding[0] if rounding else None
    if mode == "floor":
        return left // right
    if mode == "trunc":
        return left // right if left >= 0 and right > 0 else math.trunc(left / right)
    return left / right


def _contains(items: Any, item: Any) -> bool:
    return any(item == other for other in items)


def _range_length(low: Any, high: Any, step: Any) -> Any:
    if isinstance(low, int) and isinstance(high, int):
        return len(range(low, high, step))
    return (high - low + step - 1) // step


def _slice_list(items: Any, start: Any = None, end: Any = None, step: Any = 1) -> Any:
    limit = 2**63 - 1
    return items[start : None if end == limit else end : step]


def _set_item(items: Any, key: Any, value: Any) -> Any:
    items[key] = value
    return items


def _append(items: Any, item: Any) -> Any:
    items.append(item)
    return items


def _extend(items: Any, more: Any) -> None:
    items.extend(more)


def _format(text: str, *values: Any) -> str:
    for value in values:
        text = text.replace("{}", str(value), 1)
    return text


def _scaled(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """`aten::add` and `aten::sub` on numbers, which may carry a factor `alpha`."""
    return lambda left, right, alpha=1: function(left, right if alpha == 1 else right * alpha)


_ON_NUMBERS: Mapping[str, Callable[..., Any]] = {
    "aten::add": _scaled(operator.add), "aten::sub": _scaled(operator.sub),
    "aten::rsub": lambda left, right, alpha=1: right - left * alpha,
    "aten::mul": operator.mul, "aten::div": _divided,
    "aten::floordiv": operator.floordiv, "aten::floor_divide": operator.floordiv,
    "aten::remainder": operator.mod, "aten::neg": operator.neg, "aten::pow": operator.pow,
    "aten::eq": operator.eq, "aten::ne": operator.ne, "aten::lt": operator.lt,
    "aten::le": operator.le, "aten::gt": operator.gt, "aten::ge": operator.ge,
    "aten::__not__": operator.not_, "aten::__and__": operator.and_,
    "aten::__or__": operator.or_, "aten::__xor__": operator.xor,
    "aten::ceil": math.ceil, "aten::floor": math.floor, "aten::sqrt": lambda x: x**0.5,
    "aten::log": math.log, "aten::exp": math.exp, "aten::abs": abs, "prim::abs": abs,
    "aten::Int": _whole, "aten::Float": _real, "aten::Bool": lambda x: x != 0,
    "aten::IntImplicit": lambda x: x, "aten::FloatImplicit": lambda x: x,
    "aten::ScalarImplicit": lambda x: x, "aten::item": lambda x: x,
    "aten::str": str, "aten::format": _format, "aten::ord": ord, "aten::lower": str.lower,
    "aten::__range_length": _range_length,
    "aten::__derive_index": lambda index, start, step: start + index * step,
    "aten::detach": lambda x: x, "aten::to": lambda x, *_: x,
}  # fmt: skip

_ON_LISTS: Mapping[str, Callable[..., Any]] = {
    "aten::__getitem__": lambda items, key: items[key],
    "aten::__contains__": _contains,
    "aten::append": _append, "aten::extend": _extend, "aten::_set_item": _set_item,
    "aten::insert": lambda items, index, item: items.insert(index, item),
    "aten::pop": lambda items, *key: items.pop(*key), "aten::clear": lambda items: items.clear(),
    "aten::len": len, "aten::slice": _slice_list, "aten::list": list, "aten::copy": list,
    "aten::keys": list, "aten::values": lambda items: list(items.values()),
    "aten::items": lambda items: list(items.items()),
    "aten::add": lambda left, right: [*left, *right], "aten::mul": operator.mul,
    "aten::add_": lambda left, right: (left.extend(right), left)[1],
    "aten::eq": operator.eq, "aten::ne": operator.ne,
    "prim::min": lambda *items: min(*items), "prim::max": lambda *items: max(*items),
}  # fmt: skip


def _size(tensor: Any, dim: Any = None) -> Any:
    return list(tensor.shape) if dim is None else tensor.shape[dim]


def _dtype_number(tensor: Any) -> int:
    return _DTYPE_NUMBERS[str(tensor.dtype).removeprefix("torch.")]


_ON_TENSORS: Mapping[str, Callable[..., Any]] = {
    "aten::size": _size, "prim::shape": _size, "aten::dim": lambda x: x.dim(),
    "aten::len": lambda x: len(x) if isinstance(x, list) else x.shape[0],
    "aten::numel": lambda x: x.numel(),
    "aten::is_floating_point": lambda x: x.is_floating_point(),
    "aten::Int": lambda x: x.item(), "aten::Float": lambda x: x.item(),
    "aten::IntImplicit": lambda x: x.item(), "aten::FloatImplicit": lambda x: x.item(),
    "aten::ScalarImplicit": lambda x: x.item(), "aten::Bool": lambda x: x,
    "prim::data": lambda x: x.detach(), "prim::dtype": _dtype_number,
    "prim::device": lambda x: x.device, "prim::layout": lambda _: 0,
    "prim::is_cuda": lambda _: False, "prim::is_cpu": lambda _: True,
    "prim::is_nested": lambda _: False, "prim::is_quantized": lambda _: False,
    "prim::is_sparse": lambda _: False, "prim::requires_grad": lambda _: True,
    "prim::unchecked_cast": lambda x: x, "prim::NumToTensor": lambda x: x,
    **{k: _ON_LISTS[k] for k in ("aten::__getitem__", "aten::append", "aten::_set_item")},
    "aten::_convolution": _convolution,
    "aten::is_nonzero": lambda x: x, "aten::get_device": lambda _: -1,
}  # fmt: skip


def _nothing(*_: Any) -> None:
    return None


_STRUCTURE: Mapping[str, Callable[[Any, Sequence[Any]], Any]] = {
    "prim::ListConstruct": lambda _, inputs: list(inputs),
    "prim::TupleConstruct": lambda _, inputs: tuple(inputs),
    "prim::DictConstruct": lambda _, inputs: dict(zip(inputs[::2], inputs[1::2], strict=True)),
    "prim::TupleUnpack": lambda _, inputs: (
        tuple(inputs[0]) if len(inputs[0]) != 1 else inputs[0][0]
    ),
    "prim::ListUnpack": lambda _, inputs: tuple(inputs[0]) if len(inputs[0]) != 1 else inputs[0][0],
    "prim::TupleIndex": lambda _, inputs: inputs[0][inputs[1]],
    "prim::TupleSlice": lambda node, inputs: inputs[0][node.i("beg") : node.i("end")],
    "prim::unchecked_cast": lambda _, inputs: inputs[0],
    "prim::unchecked_unwrap_optional": lambda _, inputs: inputs[0],
    "aten::_unwrap_optional": lambda _, inputs: inputs[0],
    "prim::type": lambda _, inputs: inputs[0].type,
    "prim::NumToTensor": lambda _, inputs: inputs[0],
    "prim::Uninitialized": lambda node, _: (None,) * node.outputsSize() or None,
    "aten::__is__": lambda _, inputs: inputs[0] is inputs[1],
    "aten::__isnot__": lambda _, inputs: inputs[0] is not inputs[1],
    "aten::is_autocast_enabled": lambda *_: False,
    "aten::is_autocast_cpu_enabled": lambda *_: False,
    "aten::is_grad_enabled": lambda *_: True,  # keeps code off fused inference kernels
    "aten::_get_tracing_state": _nothing, "aten::is_scripting": lambda *_: True,
    "prim::Enter": _nothing, "prim::Exit": _nothing, "prim::Print": _nothing,
    "aten::warn": _nothing, "aten::set_grad_enabled": _nothing,
    "profiler::_record_function_enter_new": _nothing, "profiler::_record_function_exit": _nothing,
}  # fmt: skip
