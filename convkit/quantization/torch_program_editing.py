"""Edits an exported program in place: weights replaced, operators added, the signature kept true.

An exported program takes its weights as inputs of the graph, in the order of its signature.

Source: `torch.export.graph_signature` and `torch.export.exported_program` of PyTorch 2.13.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram
    from torch.fx import Node


class ProgramEditor:
    """A program while it is changed; `finish` makes it whole again.

    Args:
        program: changed in place.

    Attributes:
        weights: name of each parameter or buffer -> its node.
    """

    def __init__(self, program: ExportedProgram) -> None:
        self._program = program
        self.graph = program.graph_module.graph
        nodes = {node.name: node for node in self.graph.nodes if node.op == "placeholder"}
        signature = program.graph_signature
        held = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.weights: dict[str, Node] = {target: nodes[name] for name, target in held.items()}

    def tensor(self, name: str) -> torch.Tensor:
        """What a weight holds."""
        tensor: torch.Tensor = self._program.state_dict[name]
        return tensor.detach()

    def add(self, name: str, tensor: torch.Tensor, near: Node) -> Node:
        """A new buffer, as an input of the graph behind another weight."""
        from torch.export.graph_signature import InputKind, InputSpec, TensorArgument

        with self.graph.inserting_after(near):
            node: Node = self.graph.placeholder("b_" + name.replace(".", "_"))
        node.meta["val"] = near.meta["val"].fake_mode.from_tensor(tensor, static_shapes=True)
        specs = self._program.graph_signature.input_specs
        at = next(i for i, spec in enumerate(specs) if getattr(spec.arg, "name", "") == near.name)
        kind = InputKind.BUFFER
        specs.insert(at + 1, InputSpec(kind, TensorArgument(node.name), name, persistent=True))
        self._program.state_dict[name] = tensor
        self.weights[name] = node
        return node

    def call(self, operator: Any, *arguments: Any, **named: Any) -> Node:
        """An operator on nodes and constants, where the graph is being inserted into."""
        from torch.fx import Node

        def value(argument: Any) -> Any:
            if isinstance(argument, list):
                return [value(each) for each in argument]
            return argument.meta["val"] if isinstance(argument, Node) else argument

        node: Node = self.graph.call_function(operator, arguments, named)
        node.meta["val"] = operator(*map(value, arguments), **named)
        return node

    def replace(self, node: Node, made: Node) -> None:
        """Puts one node in another's place, in results of the program too."""
        from torch.export.graph_signature import TensorArgument

        node.replace_all_uses_with(made)
        for spec in self._program.graph_signature.output_specs:
            if getattr(spec.arg, "name", "") == node.name:
                spec.arg = TensorArgument(made.name)
        self.graph.erase_node(node)

    def drop(self, name: str) -> None:
        """Takes out a weight that nothing uses any more."""
        node = self.weights.pop(name)
        signature = self._program.graph_signature
        specs = [spec for spec in signature.input_specs if spec.target != name]
        signature.input_specs[:] = specs
        self.graph.erase_node(node)
        if not any(spec.target == name for spec in specs):
            del self._program.state_dict[name]

    def finish(self) -> None:
        """Checks the graph and its signature against each other."""
        self.graph.eliminate_dead_code()
        self.graph.lint()
        self._program.graph_module.recompile()
        self._program.validate()
