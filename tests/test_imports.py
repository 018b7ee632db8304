"""The direction of imports, and what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import convkit

PACKAGE = Path(convkit.__file__).parent
ROOMS = ("formats", "converters", "passes")
FRAMEWORKS = frozenset(
    (
        "accelerate", "gguf", "h5py", "keras", "ml_dtypes", "mobius", "numpy", "onnx", "onnx_ir",
        "onnxruntime", "onnxscript", "optimum", "safetensors", "tensorflow", "tensorrt", "tf2onnx",
        "bitsandbytes", "libggml", "llvmlite", "sentencepiece", "tokenizers", "torch",
        "transformers", "xllamacpp",
    )
)  # fmt: skip

# What a room may import beside its own modules. What follows `samples` is knowledge of file layouts
# and of frameworks' values that rooms share.
FOUNDATION = frozenset(
    (
        "artifact",
        "step",
        "errors",
        "factory",
        "git_lfs",
        "hardware",
        "hub_cache",
        "metrics",
        "samples",
        "protobuf",
        "onnx_external",
        "onnx_folder",
        "onnx_language_graph",
        "onnx_metadata",
        "onnx_structure",
        "onnx_typing",
        "processors",
        "safetensors_file",
        "naming",
        "streaming",
        "tensorflow_checkpoint",
        "tensorflow_ends",
        "tensorflow_feeds",
        "tensorflow_graph",
        "tensorflow_import",
        "tensorflow_keras",
        "tensorflow_proto",
        "tensorflow_reach",
        "tensorflow_session",
        "tensorflow_signature",
        "torch_values",
        "torchscript_module",
        "torchscript_signature",
    )
)

# Packages of such knowledge; they import the foundation and each other.
SHARED = ("checkpoint", "families", "ggml", "quantization", "vocabulary")

# Module -> the only modules of convkit it may import.
NARROW = {
    "errors": frozenset(),
    "artifact": frozenset(),
    "runner": frozenset(("artifact",)),
    "step": frozenset(("artifact", "runner")),
    "streaming": frozenset(("artifact", "step")),
    "processors": frozenset(),
    "protobuf": frozenset(),
    "safetensors_file": frozenset(("errors", "checkpoint.ranges")),
    "factory": frozenset(("errors",)),
    "git_lfs": frozenset(("errors",)),
    "hub_cache": frozenset(),
    "naming": frozenset(),
    "tensorflow_import": frozenset(("errors",)),
    "tensorflow_proto": frozenset(("artifact", "protobuf")),
    "tensorflow_checkpoint": frozenset(("errors", "protobuf", "tensorflow_proto")),
    "tensorflow_keras_order": frozenset(("protobuf", "tensorflow_proto")),
    "tensorflow_signature": frozenset(
        ("artifact", "errors", "protobuf", "tensorflow_proto", "tensorflow_keras_order")
    ),
    "torch_values": frozenset(("naming",)),
    "torchscript_module": frozenset(),
    "torchscript_signature": frozenset(("artifact",)),
    "samples": frozenset(("artifact", "errors", "step")),
    "metrics": frozenset(),
    "onnx_external": frozenset(("errors",)),
    "onnx_folder": frozenset(("artifact",)),
    "onnx_language_graph": frozenset(
        ("artifact", "errors", "runner", "checkpoint.folder_files", "vocabulary.text_files")
    ),
    "onnx_metadata": frozenset(("protobuf",)),
    "onnx_structure": frozenset(("errors", "onnx_external", "processors", "protobuf")),
    "onnx_typing": frozenset(("errors", "onnx_structure")),
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def dotted(path: Path) -> str:
    """`formats.onnx` for convkit/formats/onnx.py; "" for convkit/__init__.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Full names of everything imported anywhere in a module, with the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def own_modules(path: Path) -> Iterator[tuple[str, int]]:
    """Modules of convkit that a file imports, without the leading `convkit.`."""
    known = {dotted(module) for module in modules()}
    for name, line in imported(ast.parse(path.read_text())):
        if name == "convkit" or name.startswith("convkit."):
            target = name.removeprefix("convkit").removeprefix(".")
            yield (target if target in known else target.rpartition(".")[0]), line


def fresh_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def loaded_frameworks(code: str) -> str:
    names = sorted(FRAMEWORKS)
    return fresh_python(f"{code}\nimport sys; print(*sorted(set({names}) & set(sys.modules)))")


@pytest.mark.parametrize("room", [*ROOMS, *SHARED])
def test_rooms_import_only_the_foundation_and_their_own_room(room: str) -> None:
    allowed = {room, *SHARED}
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line} imports convkit.{target}"
        for path in sorted((PACKAGE / room).rglob("*.py"))
        for target, line in own_modules(path)
        if target not in FOUNDATION and target.split(".")[0] not in allowed
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module", NARROW)
def test_foundation_modules_import_nothing_above_them(module: str) -> None:
    wrong = [
        f"convkit/{module}.py:{line} imports convkit.{target}"
        for target, line in own_modules(PACKAGE / f"{module}.py")
        if target and target not in NARROW[module]
    ]
    assert not wrong, "\n".join(wrong)


def test_only_the_commands_know_the_commands() -> None:
    commands = ("cli", "cli_bench", "cli_options", "console")
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in modules()
        if dotted(path) not in commands and dotted(path) != "__main__"
        for target, line in own_modules(path)
        if target in commands
    ]
    assert not wrong, "\n".join(wrong)


def test_importing_the_command_line_loads_no_framework() -> None:
    assert loaded_frameworks("import convkit.cli") == ""


def test_importing_convkit_loads_no_framework() -> None:
    assert loaded_frameworks("import convkit") == ""


def test_finding_all_steps_loads_numpy_at_most() -> None:
    loaded = loaded_frameworks("from convkit.graph import discover; discover()")
    assert loaded in ("", "numpy")


def test_a_graph_is_described_without_a_framework(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 17]> g (float[n] x) => (float[n] y) { y = Abs(x) }'
    )
    onnx.save(model, tmp_path / "m.onnx")
    inspected = f"import convkit; convkit.inspect({str(tmp_path / 'm.onnx')!r})"
    assert loaded_frameworks(inspected) == ""


def test_examining_the_machine_loads_no_framework() -> None:
    assert loaded_frameworks("from convkit.doctor import examine; examine()") == ""


def test_finding_all_steps_works_where_no_framework_is_installed() -> None:
    # None in sys.modules makes an import fail as it does where the package is missing.
    hidden = sorted(FRAMEWORKS - {"numpy", "ml_dtypes"})
    fresh_python(
        f"import sys; sys.modules.update(dict.fromkeys({hidden}))\n"
        "from convkit.graph import discover; assert discover().formats"
    )
