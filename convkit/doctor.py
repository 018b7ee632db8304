"""What is installed, what hardware is here, what is wrong, and the line that repairs it.

Nothing is imported to find out: packages are read from their metadata, hardware from the system.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from convkit import __version__, hardware
from convkit.hardware import Gpu

_DISTRIBUTION = "convkit-ml"
_EXTRAS = ("torch", "onnx", "savedmodel", "gguf", "tensorrt", "report")
_OLDEST_PYTHON = (3, 10)
_GIB = 1 << 30
_TIGHT_DISK_BYTES = _GIB // 2

# Other distributions that bring the same module.
_STAND_INS = {
    "tensorflow-cpu": ("tensorflow",),
    "onnxruntime-gpu": ("onnxruntime", "onnxruntime-directml", "onnxruntime-openvino"),
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino"),
}

Distributions = Mapping[str, importlib.metadata.Distribution]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        area: `convkit`, the name of an extra, or `hardware`.
        name: what was looked at.
        state: `ok`; `missing`, which costs some formats only; `wrong`, which breaks something.
        what: what was found.
        remedy: a line to paste that puts it right; empty where there is none or nothing to do.
    """

    area: str
    name: str
    state: str
    what: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Everything that `convkit doctor` shows, in reading order."""
    gpus = hardware.gpus()
    installed = installed_distributions()
    return [
        *_examine_python(),
        *examine_packages(installed),
        *examine_runtimes(installed, gpus),
        *_examine_hardware(gpus),
    ]


def installed_distributions(search_path: Sequence[str] | None = None) -> Distributions:
    """Installed distributions by normalized name; the first on the path wins, as on import."""
    found: dict[str, importlib.metadata.Distribution] = {}
    places = sys.path if search_path is None else search_path
    for distribution in importlib.metadata.distributions(path=list(places)):
        name = distribution.metadata["Name"]
        if name:
            found.setdefault(_normalized(name), distribution)
    return found


def examine_packages(installed: Distributions) -> Iterator[Finding]:
    """Each package that convkit or one of its extras asks for, against what is installed."""
    if _DISTRIBUTION not in installed:
        what = "runs from its source folder: nothing says which packages it needs"
        yield Finding("convkit", _DISTRIBUTION, "wrong", what, "pip install -e .")
        return
    own = installed[_DISTRIBUTION]
    if own.version != __version__:
        what = f"installed as {own.version}, but the code is {__version__}"
        remedy = "pip install --force-reinstall --no-deps -e ."
        yield Finding("convkit", _DISTRIBUTION, "wrong", what, remedy)
    else:
        yield Finding("convkit", _DISTRIBUTION, "ok", own.version)
    requires = own.requires or []
    for extra in ("", *_EXTRAS):
        for text in _requirements_of(requires, extra):
            yield _examine_requirement(text, extra, installed)


def _requirements_of(requires: Sequence[str], extra: str) -> Iterator[str]:
    """Those of an extra ("" is the core) whose markers hold on this machine."""
    from packaging.requirements import Requirement

    for text in requires:
        requirement = Requirement(text)
        is_core = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        applies = is_core or bool(
            requirement.marker and requirement.marker.evaluate({"extra": extra})
        )
        if applies and is_core == (extra == "") and _normalized(requirement.name) != _DISTRIBUTION:
            yield f"{requirement.name}{requirement.specifier}"


def _examine_requirement(text: str, extra: str, installed: Distributions) -> Finding:
    from packaging.requirements import Requirement

    requirement = Requirement(text)
    area = extra or "convkit"
    names = (_normalized(requirement.name), *_STAND_INS.get(requirement.name, ()))
    name = next((name for name in names if name in installed), None)
    if name is None:
        if not extra:
            return Finding(
                area, requirement.name, "wrong", "not installed", f'pip install "{text}"'
            )
        remedy = f'pip install "{_DISTRIBUTION}[{extra}]"'
        return Finding(area, requirement.name, "missing", "not installed", remedy)
    version = installed[name].version
    if not requirement.specifier.contains(version, prereleases=True):
        what = f"{version}, but convkit needs {requirement.specifier}"
        remedy = f'pip install --upgrade "{name}{requirement.specifier}"'
        return Finding(area, name, "wrong", what, remedy)
    return Finding(area, name, "ok", version)


def examine_runtimes(installed: Distributions, gpus: Sequence[Gpu]) -> Iterator[Finding]:
    """Builds that clash, or that leave a GPU unused."""
    yield from _examine_onnxruntime(installed, gpus)
    torch = installed.get("torch")
    if torch is not None:
        yield _examine_torch(torch, gpus)


def _examine_onnxruntime(installed: Distributions, gpus: Sequence[Gpu]) -> Iterator[Finding]:
    builds = sorted(name for name in installed if re.fullmatch(r"onnxruntime(-\w+)?", name))
    builds = [name for name in builds if (_folder(installed[name]) or Path()).name == "onnxruntime"]
    if not builds:
        return
    keep = "onnxruntime-gpu" if "onnxruntime-gpu" in builds else builds[0]
    version = installed[keep].version
    if len(builds) > 1:
        what = f"{' and '.join(builds)} are installed over each other: one folder, mixed files"
        remedy = f'pip uninstall -y {" ".join(builds)} && pip install "{keep}=={version}"'
        yield Finding("onnx", "one ONNX Runtime", "wrong", what, remedy)
        return
    folder = _folder(installed[keep])
    if folder is None or not (folder / "__init__.py").is_file():
        what = f"{keep} {version} is registered, but its files are gone"
        remedy = f'pip install --force-reinstall --no-deps "{keep}=={version}"'
        yield Finding("onnx", "one ONNX Runtime", "wrong", what, remedy)
        return
    providers = _providers(folder)
    if gpus and "CUDA" not in providers:
        what = f"{keep} computes on {', '.join(providers)} only; this machine has a GPU"
        remedy = f"pip uninstall -y {keep} && pip install onnxruntime-gpu"
        yield Finding("onnx", "execution providers", "wrong", what, remedy)
    else:
        yield Finding("onnx", "execution providers", "ok", ", ".join(providers))


def _folder(distribution: importlib.metadata.Distribution) -> Path | None:
    """Where the `onnxruntime` folder of a build lies; None for plugins that bring none."""
    module = "onnxruntime"
    files = distribution.files
    if files is not None and not any(file.parts[:1] == (module,) for file in files):
        return None
    return Path(str(distribution.locate_file(module)))


def _providers(folder: Path) -> list[str]:
    """Execution providers by the libraries that lie there; CPU is built in."""
    pattern = re.compile(r"(?:lib)?onnxruntime_providers_(\w+)\.(?:so|dll|dylib)")
    spelled = {"cuda": "CUDA", "tensorrt": "TensorRT", "openvino": "OpenVINO", "rocm": "ROCm"}
    found = ["CPU"]
    for file in sorted((folder / "capi").glob("*onnxruntime_providers_*")):
        match = pattern.fullmatch(file.name)
        if match and match[1] != "shared":
            found.append(spelled.get(match[1], match[1]))
    return found


def _examine_torch(torch: importlib.metadata.Distribution, gpus: Sequence[Gpu]) -> Finding:
    """Which build of PyTorch this is, from `torch/version.py` without running it."""
    try:
        text = Path(str(torch.locate_file("torch/version.py"))).read_text()
    except OSError:
        what = f"torch {torch.version} is registered, but its files are gone"
        remedy = f'pip install --force-reinstall "torch=={torch.version}"'
        return Finding("torch", "PyTorch build", "wrong", what, remedy)
    for variable, platform_name in (("cuda", "CUDA"), ("hip", "ROCm")):
        match = re.search(rf"^{variable}\b[^=]*=\s*'([^']+)'", text, re.MULTILINE)
        if match:
            return Finding("torch", "PyTorch build", "ok", f"{platform_name} {match[1]}")
    if gpus:
        what = f"torch {torch.version} computes on the CPU only; this machine has a GPU"
        public = torch.version.partition("+")[0]
        remedy = f'pip install --force-reinstall "torch=={public}"'
        return Finding("torch", "PyTorch build", "wrong", what, remedy)
    return Finding("torch", "PyTorch build", "ok", "CPU")


def _examine_python() -> Iterator[Finding]:
    version = platform.python_version()
    if sys.version_info < _OLDEST_PYTHON:
        oldest = ".".join(map(str, _OLDEST_PYTHON))
        what = f"{version}, but convkit needs {oldest} or later"
        yield Finding("convkit", "Python", "wrong", what, f"python{oldest} -m venv .venv")
    else:
        yield Finding("convkit", "Python", "ok", f"{version} ({sys.executable})")


def _examine_hardware(gpus: Sequence[Gpu]) -> Iterator[Finding]:
    processor = hardware.processor()
    sets = " ".join(processor.instruction_sets) or "no vector extensions that matter here"
    what = f"{processor.model}, {processor.core_count} cores, {sets}"
    yield Finding("hardware", "processor", "ok", what)
    total, available = hardware.memory_bytes()
    what = f"{available / _GIB:.1f} of {total / _GIB:.1f} GiB available" if total else "unknown"
    yield Finding("hardware", "memory", "ok", what)
    for name, folder in (
        ("disk here", Path.cwd()),
        ("disk for temporary files", Path(tempfile.gettempdir())),
    ):
        free = hardware.free_disk_bytes(folder)
        what = f"{free / _GIB:.1f} GiB free in {folder}"
        tight = free < _TIGHT_DISK_BYTES
        remedy = "export TMPDIR=/path/with/space" if tight and "temporary" in name else ""
        yield Finding("hardware", name, "wrong" if tight else "ok", what, remedy)
    if not gpus:
        what = "no NVIDIA GPU: TensorRT and CUDA are not available"
        yield Finding("hardware", "GPU", "missing", what)
    for gpu in gpus:
        facts = [gpu.name]
        facts += [f"{gpu.memory_mib} MiB"] if gpu.memory_mib else []
        facts += [f"compute capability {gpu.compute_capability}"] if gpu.compute_capability else []
        facts += [f"driver {gpu.driver}"] if gpu.driver else []
        yield Finding("hardware", "GPU", "ok", ", ".join(facts))


def _normalized(name: str) -> str:
    """Source: PyPA "Names and normalization"."""
    return re.sub(r"[-_.]+", "-", name).lower()
