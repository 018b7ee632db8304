"""Runs a ScriptModule: arrays in, arrays out, from the same state every time."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit.artifact import TensorSpec
from convkit.errors import InputsUnknownError, SamplesError, UnsupportedError
from convkit.naming import named_leaves
from convkit.step import Feeds, Outputs, Runner, Sizes
from convkit.torch_values import NUMBERS, to_array, to_tensor
from convkit.torchscript_module import assigned_attributes, has_reset, nodes_of

if TYPE_CHECKING:
    import numpy as np

_NUMBER_DTYPES = {"int": "int64", "float": "float64", "bool": "bool"}
_CANDIDATE_LIMIT = 24


class TorchScriptRunner(Runner):
    """A ScriptModule behind the Runner contract.

    Inputs are fed by the names of `forward`'s arguments. An argument of type int, float or bool
    takes a 0-d array. Outputs are named as `naming.named_leaves` says.

    State a module keeps between calls (attributes it assigns, buffers it changes in place) is put
    back before each call: with the module's own `reset_states()` where it has one, else to what it
    was when loaded.

    Args:
        module: loaded, in evaluation mode.
        specs: of the inputs; empty if nobody said, then the graph's own annotations must do.
        path: named in errors.
        ranges: input name -> least and greatest value, where known.

    Raises:
        InputsUnknownError: shapes or dtypes of tensor arguments are nowhere to be found.
        SamplesError: an input is called as no argument is.
        UnsupportedError: `forward` takes something other than tensors and numbers.
    """

    def __init__(
        self,
        module: Any,
        specs: Sequence[TensorSpec],
        path: Path,
        ranges: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        self._module = module
        self._ranges = dict(ranges or {})
        self._path = path
        self._arguments = _arguments(module)
        self.inputs = self._complete(tuple(specs))
        self.outputs: tuple[TensorSpec, ...] = ()
        self._state = _State(module)
        self._numbers: dict[str, int] = {}
        self._is_proven = False

    def __call__(self, feeds: Feeds) -> Outputs:
        """Outputs by name. Raises SamplesError if an input is missing."""
        import torch

        missing = [
            name for name, (_, must) in self._arguments.items() if must and name not in feeds
        ]
        if missing:
            raise SamplesError(
                f"forward of {self._path.name} needs '{missing[0]}'.",
                why=f"It takes {self._signature()}.",
                hint=f'Describe it:  --input "{missing[0]}=float32[batch,...]"',
            )
        self._state.reset()
        arguments = {name: self._argument(name, array) for name, array in feeds.items()}
        with torch.inference_mode(False), torch.no_grad():
            result = self._module(**arguments)
        outputs = {name: to_array(value) for name, value in named_leaves(result)}
        if not self.outputs:
            self.outputs = tuple(
                TensorSpec(name, str(array.dtype), array.shape) for name, array in outputs.items()
            )
        return outputs

    def example(self, sizes: Sizes, seed: int) -> Feeds:
        """Seeded inputs that the module accepts, as far as a few attempts find some.

        A sample rate, a mode or a task id is refused by most modules unless it is one of a few:
        those values stand in the code as constants, so number arguments try these first. Whole
        numbers in tensors that are too large for a table are drawn again as 0 and 1.
        """
        from convkit import samples

        first = {**samples.draw(self.inputs, sizes, seed, self._ranges), **_arrays(self._numbers)}
        if self._is_proven or all(spec.dtype.startswith("float") for spec in self.inputs):
            return first
        for ranges, numbers in self._attempts():
            feeds = {**samples.draw(self.inputs, sizes, seed, ranges), **_arrays(numbers)}
            try:
                self(feeds)
            except Exception:  # this guess does not suit the program; the caller says if none does
                continue
            self._ranges, self._numbers, self._is_proven = dict(ranges), dict(numbers), True
            return feeds
        return first

    def close(self) -> None:
        """Lets the module go."""
        self._module = None

    def _attempts(self) -> Iterator[tuple[Mapping[str, tuple[float, float]], Mapping[str, int]]]:
        """Ranges for tensors and values for number arguments, what worked before first."""
        kinds = {spec.name: self._arguments[spec.name][0] for spec in self.inputs}
        numbers = [name for name, kind in kinds.items() if kind == "int"]
        yield self._ranges, self._numbers
        if numbers:
            for value in compared_integers(self._module.inlined_graph)[:_CANDIDATE_LIMIT]:
                yield self._ranges, dict.fromkeys(numbers, value)
        whole = [s.name for s in self.inputs if s.shape and s.dtype.startswith("int")]
        for names in (*([name] for name in whole), whole):
            yield self._ranges | dict.fromkeys(names, (0.0, 1.0)), self._numbers

    def _argument(self, name: str, array: np.ndarray[Any, Any]) -> Any:
        if name not in self._arguments:
            raise self._unknown(name)
        kind = self._arguments[name][0]
        return NUMBERS[kind](array.item()) if kind in NUMBERS else to_tensor(array)

    def _complete(self, specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        given = {spec.name: spec for spec in specs}
        for name in given:
            if name not in self._arguments:
                raise self._unknown(name)
        complete, unknown = [], []
        for name, (kind, must) in self._arguments.items():
            spec = given.get(name) or self._own_spec(name, kind)
            if spec is not None:
                complete.append(spec)
            elif must:
                unknown.append(name)
        if unknown:
            raise InputsUnknownError(
                str(self._path), unknown, f"Its forward takes {self._signature()}, without shapes."
            )
        return tuple(complete)

    def _own_spec(self, name: str, kind: str) -> TensorSpec | None:
        """What the graph itself says of an argument: a number's dtype, a frozen graph's shape."""
        if not self._arguments[name][1]:
            return None
        if kind in _NUMBER_DTYPES:
            return TensorSpec(name, _NUMBER_DTYPES[kind], ())
        for value in list(self._module.graph.inputs())[1:]:
            found = value.type()
            if value.debugName().split(".")[0] == name and found.kind() == "TensorType":
                sizes, dtype = found.sizes(), found.dtype()
                if sizes and dtype is not None and all(isinstance(size, int) for size in sizes):
                    return TensorSpec(name, str(dtype).removeprefix("torch."), tuple(sizes))
        return None

    def _unknown(self, name: str) -> SamplesError:
        return SamplesError(
            f"forward of {self._path.name} has no argument '{name}'.",
            why=f"It takes {self._signature()}.",
            hint="Inputs are named as the arguments are.",
        )

    def _signature(self) -> str:
        return ", ".join(f"{name}: {kind}" for name, (kind, _) in self._arguments.items())


class _State:
    """What a module changes while it runs, as it was when loaded."""

    def __init__(self, module: Any) -> None:
        import torch

        self._module = module
        self._resets = has_reset(module)
        if self._resets:
            module.reset_states()
        self._held: list[tuple[Any, str, Any]] = []
        self._buffers = [(b, b._version, b.detach().clone()) for b in module.buffers()]
        for path in sorted(assigned_attributes(module)):
            owner = module
            for name in path[:-1]:
                owner = getattr(owner, name)
            value = getattr(owner, path[-1])
            is_tensor = isinstance(value, torch.Tensor)
            kept = value.detach().clone() if is_tensor else copy.deepcopy(value)
            self._held.append((owner, path[-1], kept))

    def reset(self) -> None:
        """Puts everything back."""
        import torch

        if self._resets:
            self._module.reset_states()
            return
        for owner, name, value in self._held:
            is_tensor = isinstance(value, torch.Tensor)
            setattr(owner, name, value.clone() if is_tensor else copy.deepcopy(value))
        with torch.no_grad():
            for index, (buffer, version, kept) in enumerate(self._buffers):
                if buffer._version != version:
                    buffer.copy_(kept)
                    self._buffers[index] = (buffer, buffer._version, kept)


def compared_integers(graph: Any) -> list[int]:
    """Whole numbers that a graph compares others with, in order of appearance, each once."""
    found: list[int] = []
    for node in nodes_of(graph):
        if node.kind() in ("aten::eq", "aten::ne", "aten::__contains__"):
            for value in node.inputs():
                constant = value.toIValue() if value.node().kind() == "prim::Constant" else None
                numbers = constant if isinstance(constant, list) else [constant]
                found += [n for n in numbers if type(n) is int]
    return list(dict.fromkeys(found))


def _arguments(module: Any) -> dict[str, tuple[str, bool]]:
    """Argument name -> (type, must be given)."""
    arguments = {}
    for argument in module.forward.schema.arguments[1:]:
        kind = str(argument.type)
        inner = kind.removeprefix("Optional[").removesuffix("]") if "Optional" in kind else kind
        must = not argument.has_default_value()
        if inner not in ("Tensor", *_NUMBER_DTYPES) and must:
            raise UnsupportedError(
                f"forward takes '{argument.name}: {kind}'; only tensors and numbers can be fed.",
                hint="Wrap the module in one whose forward takes tensors, and script that.",
            )
        arguments[argument.name] = (inner, must)
    return arguments


def _arrays(numbers: Mapping[str, int]) -> Feeds:
    import numpy as np

    return {name: np.asarray(value, np.int64) for name, value in numbers.items()}
