"""Runs a model so that it shows chosen intermediate tensors: an ONNX graph, or a PyTorch network.

Only the tensors asked for are kept, so memory is theirs alone, however deep the model.
"""

from __future__ import annotations

import abc
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from convkit.artifact import Artifact, Precision, TensorSpec
from convkit.errors import UnsupportedError
from convkit.onnx_folder import graph_file, text_folder
from convkit.onnx_language_graph import language_graph
from convkit.step import Feeds, Outputs, Runner

if TYPE_CHECKING:
    import numpy as np

    from convkit.formats.onnx_header import Header, NodeHeader


class Exposed(abc.ABC):
    """A model whose inner tensors can be asked for by key.

    Attributes:
        inputs: what it takes, in order; empty where feeds go by the reference's names.
        outputs: keys of the model's own outputs, in order; empty where they are known after a run.
    """

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[str, ...]

    @abc.abstractmethod
    def run(self, keys: Sequence[str], feeds: Feeds) -> Mapping[str, np.ndarray[Any, Any]]:
        """The model's outputs and the tensors of these keys; keys that have none are absent."""


class ExposedGraph(Exposed):
    """An ONNX graph; keys are value names of its main graph.

    Half precision is run with its own rounding where that can be had: ONNX Runtime computes it
    in single precision on a CPU, and the very overflow one looks for would not happen.
    """

    def __init__(self, artifact: Artifact) -> None:
        from convkit.formats.onnx_header import read_header

        self.artifact = replace(artifact, path=graph_file(artifact.path))
        header: Header = read_header(self.artifact.path, with_nodes=True)
        self.header = header
        folder = text_folder(artifact.path)
        self._language = language_graph(header.inputs, header.outputs, folder)
        self.inputs = self._language.inputs if self._language else header.inputs
        self.outputs = tuple(spec.name for spec in self.header.outputs)
        self.nodes: Sequence[NodeHeader] = self.header.nodes
        self.makers = {name: node for node in self.nodes for name in node.outputs if name}
        self._is_half = artifact.precision in (Precision.FP16, Precision.BF16)

    def run(self, keys: Sequence[str], feeds: Feeds) -> Outputs:
        """The graph's outputs and the values of these names."""
        inner = [key for key in keys if key not in self.outputs]
        with self._open(inner) as runner:
            return runner(self.completed(feeds))

    def completed(self, feeds: Feeds) -> Feeds:
        """Feeds as the graph itself takes them: that of a language model also takes a cache."""
        return feeds if self._language is None else self._language.completed(feeds)

    def _open(self, inner: Sequence[str]) -> Runner:
        from convkit.formats.onnx_session import SessionRunner

        if self._is_half:
            with suppress(ImportError, OSError, UnsupportedError):
                return self._open_exact(inner)
        return SessionRunner(self.artifact, inner)

    def _open_exact(self, inner: Sequence[str]) -> Runner:
        """On a copy with more outputs, beside the model so that its data files are found."""
        from convkit.formats.onnx_session import outputs_tail
        from convkit.formats.onnx_true_half import open_true_half

        path = self.artifact.path
        copy = path.with_name(f".{path.name}.exposed-{os.getpid()}")
        try:
            shutil.copyfile(path, copy)
            with copy.open("ab") as stream:
                stream.write(outputs_tail(inner) if inner else b"")
            runner: Runner = open_true_half(replace(self.artifact, path=copy))
            return runner
        finally:
            copy.unlink(missing_ok=True)


class ExposedNetwork(Exposed):
    """A PyTorch network; keys are the paths of its modules (`encoder.layer.0.attention`).

    A module that runs more than once has no one output and gives none.
    """

    def __init__(self, network: Any, inputs: Iterable[str]) -> None:
        from convkit.formats.torch_runner import TorchRunner

        self.modules = {path: module for path, module in network.named_modules() if path}
        self.outputs = ()
        specs = [TensorSpec(name, "", ()) for name in inputs]
        self._runner = TorchRunner(network, specs, lambda sizes, seed: {})

    def run(self, keys: Sequence[str], feeds: Feeds) -> Outputs:
        """The network's outputs and the first tensor each of these modules returned."""
        caught: dict[str, list[Any]] = {key: [] for key in keys}
        hooks = [
            self.modules[key].register_forward_hook(_catch(caught[key]))
            for key in keys
            if key in self.modules
        ]
        try:
            outputs = self._runner(feeds)
        finally:
            for hook in hooks:
                hook.remove()
        self.outputs = tuple(outputs)
        return {**outputs, **{key: found[0] for key, found in caught.items() if len(found) == 1}}


def _catch(into: list[Any]) -> Callable[..., None]:
    from convkit.torch_values import named_tensors, to_array

    def hook(module: Any, arguments: Any, result: Any) -> None:
        found = named_tensors(result)
        if found:
            into.append(to_array(found[0][1].clone()))

    return hook


def element_counts(graph: ExposedGraph, feeds: Feeds) -> dict[str, int]:
    """Elements of every value by estimate: from the file's shapes with this input's sizes.

    A value without a shape in the file is taken to be as large as the largest that has one.
    """
    sizes: dict[str, int] = {}
    feeds = graph.completed(feeds)
    for spec in graph.header.inputs:
        array = feeds.get(spec.name)
        if array is not None and array.ndim == len(spec.shape):
            named = zip(spec.shape, array.shape, strict=True)
            sizes |= {name: size for name, size in named if isinstance(name, str)}
    largest_size = max((max(array.shape, default=1) for array in feeds.values()), default=1)
    specs = {**graph.header.values, **{spec.name: spec for spec in graph.header.outputs}}
    known = {
        name: math.prod(d if isinstance(d, int) else sizes.get(d, largest_size) for d in spec.shape)
        for name, spec in specs.items()
    }
    fed = (int(array.size) for array in feeds.values())
    largest = max((*known.values(), *fed), default=1)
    return {name: known.get(name, largest) for name in graph.makers}
