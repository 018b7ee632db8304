"""Control flow of exported programs (`cond`, `while_loop`, `scan`) for the tracer of TorchScript.

The tracer knows none of the three. Their bodies are traced alone, and a scripted module around
them branches or repeats; a call of a scripted module is what the tracer does record.

Source: torch/_higher_order_ops/{cond,while_loop,scan}.py of PyTorch 2.13 for the arguments.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

Prepare = Callable[[Any], None]


def script_control_flow(network: Any, arguments: Sequence[Any], prepare: Prepare) -> None:
    """Replaces the control flow of an exported program, in place, by scripted modules.

    Args:
        network: the `GraphModule`.
        arguments: its arguments, flat; the network is run on them to learn what bodies get.
        prepare: readies the graph of a body for the tracer, in place.
    """
    import torch

    found = [node for node in network.graph.nodes if _maker(node) is not None]
    if not found:
        return
    given: dict[Any, tuple[Any, ...]] = {}

    class Recorder(torch.fx.Interpreter):
        """Runs the network and keeps the arguments of its control flow."""

        def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
            given.setdefault(str(self._here), args)
            return super().call_function(target, args, kwargs)

        def run_node(self, n: Any) -> Any:
            self._here = n.name
            return super().run_node(n)

    with torch.no_grad():
        Recorder(network).run(*arguments)
    for number, node in enumerate(found):
        make = _maker(node)
        assert make is not None
        name = f"control_flow_{number}"
        network.add_submodule(name, _called(make(given[node.name], prepare)))
        with network.graph.inserting_before(node):
            call = network.graph.call_module(name, _operands(node))
        node.replace_all_uses_with(call)
        network.graph.erase_node(node)
    network.graph.eliminate_dead_code()
    network.recompile()


def _maker(node: Any) -> Callable[[Any, Prepare], Any] | None:
    import torch

    if node.op != "call_function":
        return None
    makers = {"cond": _branch, "while_loop": _while, "scan": _scan}
    is_control = isinstance(node.target, torch._ops.HigherOrderOperator)
    return makers.get(node.target._name) if is_control else None


def _operands(node: Any) -> tuple[list[Any], ...]:
    """What the scripted module is called with: lists of tensors."""
    name = node.target._name
    if name == "cond":
        condition, _, _, operands = node.args
        return [condition], list(operands)
    if name == "while_loop":
        _, _, carried, captured = node.args
        return list(carried), list(captured)
    _, carried, rows, captured = node.args
    return list(carried), list(rows), list(captured)


def _branch(arguments: Any, prepare: Prepare) -> Any:
    import torch

    class Branch(torch.nn.Module):
        """`cond`."""

        def __init__(self, bodies: Sequence[Any]) -> None:
            super().__init__()
            self.yes, self.no = bodies

        def forward(
            self, condition: list[torch.Tensor], operands: list[torch.Tensor]
        ) -> list[torch.Tensor]:
            if bool(condition[0]):
                chosen: list[torch.Tensor] = self.yes(operands)
            else:
                chosen = self.no(operands)
            return chosen

    _, yes, no, operands = arguments
    return Branch([_traced(body, operands, prepare) for body in (yes, no)])


def _while(arguments: Any, prepare: Prepare) -> Any:
    import torch

    class While(torch.nn.Module):
        """`while_loop`."""

        def __init__(self, goes_on: Any, body: Any) -> None:
            super().__init__()
            self.goes_on, self.body = goes_on, body

        def forward(
            self, carried: list[torch.Tensor], captured: list[torch.Tensor]
        ) -> list[torch.Tensor]:
            while bool(self.goes_on(carried + captured)[0]):
                carried = self.body(carried + captured)
            return carried

    goes_on, body, carried, captured = arguments
    operands = (*carried, *captured)
    return While(_traced(goes_on, operands, prepare), _traced(body, operands, prepare))


def _scan(arguments: Any, prepare: Prepare) -> Any:
    import torch

    class Scan(torch.nn.Module):
        """`scan`: the carried values at the end, then the rows of each output stacked."""

        def __init__(self, body: Any, count: int) -> None:
            super().__init__()
            self.body, self.count = body, count

        def forward(
            self,
            carried: list[torch.Tensor],
            rows: list[torch.Tensor],
            captured: list[torch.Tensor],
        ) -> list[torch.Tensor]:
            made: list[list[torch.Tensor]] = []
            for index in range(rows[0].size(0)):
                step = [row[index] for row in rows]
                results = self.body(carried + step + captured)
                carried = results[: self.count]
                made.append(results[self.count :])
            stacked: list[torch.Tensor] = []
            for place in range(len(made[0])):
                stacked += [torch.stack([each[place] for each in made])]
            return carried + stacked

    body, carried, rows, captured = arguments
    operands = (*carried, *(row[0] for row in rows), *captured)
    return Scan(_traced(body, operands, prepare), len(carried))


def _traced(body: Any, operands: Sequence[Any], prepare: Prepare) -> Any:
    """A body as a scripted module from a list of tensors to a list of tensors."""
    import torch

    class Body(torch.nn.Module):
        """The body on a list."""

        def __init__(self) -> None:
            super().__init__()
            self.body = body

        def forward(self, values: list[torch.Tensor]) -> list[torch.Tensor]:
            result = self.body(*values)
            return list(result) if isinstance(result, (tuple, list)) else [result]

    script_control_flow(body, operands, prepare)
    prepare(body)
    tensors = [v if isinstance(v, torch.Tensor) else torch.tensor(v) for v in operands]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(Body(), (tensors,), check_trace=False, strict=False)


def _called(module: Any) -> Any:
    """The scripted module; sizes, which the tracer holds as tensors, are given as such."""
    import torch

    class Flat(torch.nn.Module):
        """Calls the scripted module."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.jit.script(module)

        def forward(self, *lists: Any) -> Any:
            given = [[torch.as_tensor(value) for value in values] for values in lists]
            return tuple(self.inner(*given))

    return Flat()
