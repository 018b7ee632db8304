"""TorchScript: a network compiled to a graph and saved with its weights (`torch.jit.save`).

SECURITY: loading runs no Python and unpickles no classes, but a TorchScript method is a program: it
can loop forever, take all memory, and call any registered operator, among them two that write files
(`aten::save`, `aten::from_file`); code that names those is refused without trust.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from convkit.artifact import Artifact, Description, Opening, Precision
from convkit.errors import ModelError
from convkit.formats.torchscript_archive import (
    OWN_SUFFIXES,
    TorchScriptArchive,
    count_elements,
    looks_like_torchscript,
)
from convkit.step import Format, Package, Runner


def describe(path: Path, opening: Opening) -> Description:
    """Precision, parameter count and the signature of `forward`, from headers alone.

    Raises:
        ModelError: missing, truncated, corrupt, or a ZIP bomb.
        UnsafeError: record names leave the archive, or its code touches files and is not trusted.
    """
    archive = _checked(path, opening)
    counts = count_elements(archive.tensors)
    forward = next((m for m in archive.methods if m.name == "forward"), None)
    weights = {
        dtype: n for dtype, n in counts.items() if not dtype.startswith(("int6", "int3", "bo"))
    }
    return Description(
        precision=Precision.of_weights(counts),
        inputs=tuple(opening.inputs) or archive.signature.inputs,
        outputs=archive.signature.outputs,
        parameter_count=sum(weights.values()),
        details={
            "arguments": [str(argument) for argument in forward.arguments] if forward else [],
            "returns": forward.returns if forward else "",
            "methods": [method.name for method in archive.methods],
            "elements_by_dtype": dict(counts),
            "archive_version": archive.text("version").strip(),
            "archive_size_bytes": archive.size_bytes,
        },
    )


def load(artifact: Artifact) -> Any:
    """The `torch.jit.ScriptModule`, on the CPU, in evaluation mode.

    Raises:
        ModelError: PyTorch cannot load it, or it has no `forward`.
        UnsafeError: see `describe`.
    """
    import torch

    _checked(artifact.path, artifact.opening)
    try:
        with _quiet_jit():
            module = torch.jit.load(str(artifact.path), map_location="cpu")
    except (RuntimeError, ValueError, EOFError, OSError) as cause:
        raise ModelError(
            f"PyTorch {torch.__version__} cannot load {artifact.path}.",
            why=_last_line(cause),
            hint="Save it again with a PyTorch not newer than this one, or check the download.",
        ) from cause
    if not hasattr(module, "forward"):
        raise ModelError(f"{artifact.path} has no method forward.", why="So it cannot be run.")
    return module.eval()


@contextmanager
def _quiet_jit() -> Iterator[None]:
    """Silences the deprecation warnings of `torch.jit` within."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.", category=DeprecationWarning)
        yield


def _open(artifact: Artifact) -> Runner:
    from convkit.formats.torchscript_runner import TorchScriptRunner

    module = load(artifact)
    archive = TorchScriptArchive(artifact.path)
    specs = artifact.opening.inputs or artifact.inputs or archive.signature.inputs
    return TorchScriptRunner(module, specs, artifact.path, archive.signature.ranges)


def _checked(path: Path, opening: Opening) -> TorchScriptArchive:
    if not path.is_file():
        raise ModelError(f"There is no file {path}.")
    if path.stat().st_size == 0:
        raise ModelError(f"{path} is empty.", hint="Download or save it again.")
    archive = TorchScriptArchive(path)
    if not opening.trust:
        archive.check_safe()
    return archive


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]


def _matches(path: Path, opening: Opening) -> bool:
    return opening.factory is None and path.is_file() and looks_like_torchscript(path)


torchscript = Format(
    name="torchscript",
    suffixes=(".torchscript.pt", ".pt", ".pth", *OWN_SUFFIXES),
    needs=(Package("torch", "torch"),),
    matches=_matches,
    describe=describe,
    open=_open,
    load=load,
)
