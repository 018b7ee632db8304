"""Functions that tests run in a process of their own."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

from convkit.errors import UnknownNameError


def add(a: int, b: int) -> int:
    """Adds, and chatters as frameworks do."""
    print("chatter on standard output")  # noqa: T201
    return a + b


def ones(count: int) -> np.ndarray[Any, Any]:
    """Bytes."""
    return np.ones(count, np.uint8)


def network_states(folders: list[Path]) -> tuple[list[dict[str, Any]], set[str]]:
    """Parameters and buffers of Hugging Face folders, and the modules that were loaded for them."""
    from convkit import graph

    states = []
    for folder in folders:
        network = graph.discover().format("torch").load(graph.detect(folder))
        tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        states.append({name: one.detach().numpy() for name, one in tensors.items()})
    return states, set(sys.modules)


def architectures() -> set[str]:
    """All that `transformers.models` offers."""
    from convkit.formats.torch_lean_import import network_class

    network_class("LlamaForCausalLM")
    import transformers.models

    return set(dir(transformers.models))


def refuse() -> None:
    """Raises an error of convkit whose constructor takes something else."""
    raise UnknownNameError("format", "onxn", ["onnx"])


def crash() -> None:
    """Dies as a native library does."""
    os.kill(os.getpid(), signal.SIGSEGV)


def break_down() -> None:
    """Raises what is no error of convkit."""
    raise RuntimeError("segment 7 is bent")


def leave() -> None:
    """Ends the process as if nothing had happened."""
    sys.stdout.flush()
    os._exit(0)


def process_number() -> int:
    """The number of the process it runs in."""
    return os.getpid()


def sleep() -> None:
    """Takes a minute."""
    import time

    time.sleep(60)
