"""PyTorch to TorchScript: by tracing, checked at another shape; else by scripting.

A trace follows one run: what Python decides from the values of tensors is fixed. PyTorch notices
where that happens; such networks are scripted, and traced only if they cannot be.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from convkit.artifact import Artifact
from convkit.converters.torchscript_call import quiet_exporters
from convkit.converters.torchscript_control import script_control_flow
from convkit.converters.torchscript_sizes import keep_sizes_dynamic
from convkit.errors import RungSkipped, UnsupportedError
from convkit.step import Feeds, Package, Work, ladder, rung
from convkit.torch_values import named_tensors, parameters_of, to_argument
from convkit.torchscript_signature import EXTRA_FILE, Signature

_TORCH = Package("torch", "torch")
_TOLERANCE = 1e-3
"""Relative to the largest output: kernels may differ between eager and compiled, results not."""


@rung("trace", needs=(_TORCH,))
def _trace(source: Artifact, out: Path, work: Work) -> None:
    """Traces the network, unless its Python code decides by the values of tensors."""
    network = work.load(source)
    traced, decisions = _traced(network, source, work)
    if decisions:
        raise RungSkipped(f"a trace would fix what the data decide at {decisions[0]}")
    _check(network, traced, work)
    _save(traced, out, source, work)


@rung("script", needs=(_TORCH,))
def _script(source: Artifact, out: Path, work: Work) -> None:
    """Compiles the network's Python source, branches and loops included."""
    import torch

    network = work.load(source)
    try:
        with quiet_exporters():
            scripted = torch.jit.script(network)
    except Exception as cause:  # the compiler raises many types, some its own
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        raise UnsupportedError(
            "torch.jit.script cannot compile this network.",
            why=[line[:300] for line in lines[:4]],
            hint="Convert it to onnx or .pt2 instead, which need no compilation.",
        ) from cause
    _check(network, scripted, work)
    _save(scripted, out, source, work)


@rung("trace-fixed", needs=(_TORCH,))
def _trace_fixed(source: Artifact, out: Path, work: Work) -> None:
    """Traces although decisions by tensor values become fixed; says where."""
    network = work.load(source)
    traced, decisions = _traced(network, source, work)
    if not decisions:
        raise RungSkipped("a trace was tried already")
    _check(network, traced, work)
    work.note(f"Fixed as it was for the traced sample: what the data decide at {decisions[0]}.")
    _save(traced, out, source, work)


torch_to_torchscript = ladder(
    "torch",
    "torchscript",
    _trace,
    _script,
    _trace_fixed,
    carries=("fp32", "fp16", "bf16"),
    loses="training state; when traced, Python control flow",
)


def _traced(network: Any, source: Artifact, work: Work) -> tuple[Any, list[str]]:
    """The trace, and the places (`file:line`) where values of tensors decided something."""
    import torch

    sample = _example(work)
    if isinstance(network, torch.fx.GraphModule):
        _ready(network, *_arguments(network, sample))
    tracer_warning: Any = vars(torch.jit)["TracerWarning"]
    with _quiet(), _no_fast_path(), torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", tracer_warning)
        try:
            positional, named = _arguments(network, sample)
            traced = torch.jit.trace(
                network,
                example_inputs=positional or None,
                example_kwarg_inputs=named or None,
                strict=False,
                check_trace=False,
            )
        except Exception as cause:  # whatever the network's own code raises under the tracer
            lines = str(cause).strip().splitlines() or [type(cause).__name__]
            raise UnsupportedError("This network cannot be traced.", why=lines[0][:300]) from cause
    own = Path(torch.__file__).parent
    places = [
        f"{Path(warning.filename).name}:{warning.lineno}"
        for warning in caught
        if issubclass(warning.category, tracer_warning)
        and "Python boolean" in str(warning.message)
        and not Path(warning.filename).is_relative_to(own)  # PyTorch's layers only check shapes
    ]
    return traced, list(dict.fromkeys(places))


def _ready(network: Any, positional: Sequence[Any], named: dict[str, Any]) -> None:
    """Makes an exported program traceable, in place."""
    from torch.utils import _pytree

    leaves = _pytree.tree_leaves((tuple(positional), named))
    with quiet_exporters():
        script_control_flow(network, leaves, keep_sizes_dynamic)
    keep_sizes_dynamic(network)


def _check(network: Any, compiled: Any, work: Work) -> None:
    """Compares with the eager network at every shape but the traced one.

    Raises:
        UnsupportedError: they differ, or the compiled one fails.
    """
    import torch

    for feeds in work.samples:
        positional, named = _arguments(network, feeds)
        with torch.no_grad(), _quiet():
            expected = named_tensors(network(*positional, **named))
            try:
                got = named_tensors(compiled(*positional, **named))
            except RuntimeError as cause:
                raise _differs(feeds, str(cause).strip().splitlines()[-1]) from cause
        if [t.shape for _, t in expected] != [t.shape for _, t in got]:
            raise _differs(feeds, "other shapes")
        for (name, left), (_, right) in zip(expected, got, strict=True):
            if not _close(left, right):
                raise _differs(feeds, f"other values in '{name}'")


def _close(left: Any, right: Any) -> bool:
    import torch

    if not left.is_floating_point():
        return bool((left == right).float().mean() > 1 - _TOLERANCE) or left.numel() == 0
    left, right = left.double(), right.double()
    scale = max(float(left[left.isfinite()].abs().max()) if left.isfinite().any() else 0.0, 1e-6)
    margin = _TOLERANCE if left.dtype == torch.float64 else 0.05
    return bool(torch.allclose(left, right, rtol=0.0, atol=margin * scale, equal_nan=True))


def _differs(feeds: Feeds, how: str) -> UnsupportedError:
    shapes = ", ".join(f"{name} {array.shape}" for name, array in feeds.items())
    return UnsupportedError(
        "The compiled network does not compute what the network computes.",
        why=f"At {shapes}: {how[:300]}.",
    )


def _example(work: Work) -> Feeds:
    """The sample to trace: the first with a batch above 1, if there are several."""
    return work.samples[1] if len(work.samples) > 1 else work.samples[0]


def _arguments(network: Any, feeds: Feeds) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments by position and by name; a parameter annotated as a number takes one.

    An exported program takes its arguments exactly as it was exported with.
    """
    numbers = parameters_of(network)
    values = {name: to_argument(array, numbers.get(name)) for name, array in feeds.items()}
    tree = getattr(network, "_in_spec", None)
    if tree is None or tree.num_leaves != len(values):
        return (), values
    from torch.utils import _pytree

    positional, named = _pytree.tree_unflatten(list(values.values()), tree)
    return tuple(positional), dict(named)


def _save(module: Any, out: Path, source: Artifact, work: Work) -> None:
    import torch

    signature = Signature(source.inputs, source.outputs, _ranges(work.samples))
    with quiet_exporters():
        torch.jit.save(module, str(out), _extra_files={EXTRA_FILE: signature.to_text()})


def _ranges(samples: Sequence[Feeds]) -> dict[str, tuple[int, int]]:
    """Least and greatest value of each whole-number input: ids must stay within their tables."""
    ranges = {}
    for name in samples[0]:
        arrays = [feeds[name] for feeds in samples if feeds[name].dtype.kind in "iu"]
        values = [array for array in arrays if array.size]
        if values:
            ranges[name] = (min(int(a.min()) for a in values), max(int(a.max()) for a in values))
    return ranges


@contextlib.contextmanager
def _no_fast_path() -> Iterator[None]:
    """Traces attention as ordinary operators, not as a fused kernel only PyTorch knows."""
    import torch

    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
