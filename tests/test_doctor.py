"""What `doctor` says of environments and machines, without importing what it looks at."""

from __future__ import annotations

from pathlib import Path

import pytest

from convkit import __version__, doctor, hardware
from convkit.doctor import Finding, examine, examine_packages, examine_runtimes
from convkit.hardware import Gpu

GPU = Gpu("NVIDIA H200", 143771, "580.1", "9.0")

REQUIREMENTS = (
    "click>=8.1",
    "numpy>=1.26; python_version >= '3'",
    "torch>=2.9; extra == 'torch'",
    "tensorflow-cpu>=2.20; extra == 'savedmodel'",
    "onnxruntime-gpu>=1.23; python_version >= '3' and extra == 'onnx'",
    "onnxruntime>=1.23; python_version < '3' and extra == 'onnx'",
    "convkit-ml[torch,onnx]; extra == 'all'",
    "ruff; extra == 'dev'",
)


def install(
    place: Path,
    name: str,
    version: str,
    files: tuple[str, ...] = (),
    requires: tuple[str, ...] = (),
) -> None:
    """Writes what pip would: a dist-info folder with METADATA and RECORD, and the files."""
    info = place / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {text}" for text in requires]
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
    for file in files:
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        (place / file).write_text("raise AssertionError('doctor must not import this')")


def install_convkit(place: Path, version: str = __version__) -> None:
    install(place, "convkit-ml", version, requires=REQUIREMENTS)
    install(place, "click", "8.2")
    install(place, "numpy", "2.1")


def packages(place: Path) -> dict[str, Finding]:
    found = examine_packages(doctor.installed_distributions([str(place)]))
    return {finding.name: finding for finding in found}


def runtimes(place: Path, *gpus: Gpu) -> dict[str, Finding]:
    found = examine_runtimes(doctor.installed_distributions([str(place)]), gpus)
    return {finding.name: finding for finding in found}


ORT = ("onnxruntime/__init__.py", "onnxruntime/capi/onnxruntime_pybind11_state.so")
ORT_GPU = (*ORT, "onnxruntime/capi/libonnxruntime_providers_cuda.so")


def test_every_finding_of_this_machine_is_complete() -> None:
    findings = examine()
    assert {finding.state for finding in findings} <= {"ok", "missing", "wrong"}
    assert all(finding.area and finding.name and finding.what for finding in findings)
    names = {finding.name for finding in findings}
    assert {"Python", "processor", "memory", "disk here", "GPU"} <= names


def test_core_and_extras_are_listed_and_developer_tools_are_not(tmp_path: Path) -> None:
    install_convkit(tmp_path)
    found = packages(tmp_path)
    assert list(found) == [
        "convkit-ml", "click", "numpy", "torch", "onnxruntime-gpu", "tensorflow-cpu",
    ]  # fmt: skip
    assert found["click"] == Finding("convkit", "click", "ok", "8.2")


def test_a_missing_extra_costs_formats_and_names_the_line_that_brings_it(tmp_path: Path) -> None:
    install_convkit(tmp_path)
    torch = packages(tmp_path)["torch"]
    assert torch.state == "missing"
    assert torch.remedy == 'pip install "convkit-ml[torch]"'


def test_a_missing_core_package_is_wrong(tmp_path: Path) -> None:
    install(tmp_path, "convkit-ml", __version__, requires=REQUIREMENTS)
    assert packages(tmp_path)["click"].remedy == 'pip install "click>=8.1"'
    assert packages(tmp_path)["click"].state == "wrong"


def test_a_version_that_is_too_old_is_wrong(tmp_path: Path) -> None:
    install_convkit(tmp_path)
    install(tmp_path, "torch", "2.3.1+cu121")
    torch = packages(tmp_path)["torch"]
    assert (torch.state, torch.what) == ("wrong", "2.3.1+cu121, but convkit needs >=2.9")
    assert torch.remedy == 'pip install --upgrade "torch>=2.9"'


def test_a_local_build_and_a_stand_in_satisfy_an_extra(tmp_path: Path) -> None:
    install_convkit(tmp_path)
    install(tmp_path, "torch", "2.13.0+cpu")
    install(tmp_path, "tensorflow", "2.21.0")
    found = packages(tmp_path)
    assert found["torch"].state == found["tensorflow"].state == "ok"
    assert "tensorflow-cpu" not in found


def test_an_installation_of_another_version_is_wrong(tmp_path: Path) -> None:
    install_convkit(tmp_path, version="0.0.1")
    own = packages(tmp_path)["convkit-ml"]
    assert (own.state, own.what) == ("wrong", f"installed as 0.0.1, but the code is {__version__}")


def test_running_from_the_source_folder_is_told(tmp_path: Path) -> None:
    assert packages(tmp_path)["convkit-ml"].remedy == "pip install -e ."


def test_both_builds_of_onnxruntime_are_wrong_and_the_line_keeps_the_gpu_build(
    tmp_path: Path,
) -> None:
    install(tmp_path, "onnxruntime", "1.30.0", ORT)
    install(tmp_path, "onnxruntime-gpu", "1.31.1", ORT_GPU)
    found = runtimes(tmp_path)["one ONNX Runtime"]
    assert found.state == "wrong"
    assert found.remedy == (
        'pip uninstall -y onnxruntime onnxruntime-gpu && pip install "onnxruntime-gpu==1.31.1"'
    )


def test_a_half_removed_onnxruntime_is_wrong(tmp_path: Path) -> None:
    install(tmp_path, "onnxruntime-gpu", "1.31.1", ORT_GPU)
    for file in ORT_GPU:
        (tmp_path / file).unlink()  # what `pip uninstall onnxruntime` leaves of the other build
    found = runtimes(tmp_path)["one ONNX Runtime"]
    assert found.state == "wrong"
    assert found.remedy == ('pip install --force-reinstall --no-deps "onnxruntime-gpu==1.31.1"')


def test_providers_are_told_from_files(tmp_path: Path) -> None:
    install(tmp_path, "onnxruntime-gpu", "1.31.1", ORT_GPU)
    install(tmp_path, "onnxruntime-extensions", "0.14", ("onnxruntime_extensions/__init__.py",))
    assert runtimes(tmp_path, GPU)["execution providers"].what == "CPU, CUDA"


def test_a_cpu_runtime_beside_a_gpu_is_wrong(tmp_path: Path) -> None:
    install(tmp_path, "onnxruntime", "1.31.1", ORT)
    assert runtimes(tmp_path)["execution providers"].state == "ok"
    found = runtimes(tmp_path, GPU)["execution providers"]
    assert found.state == "wrong"
    assert found.remedy == "pip uninstall -y onnxruntime && pip install onnxruntime-gpu"


@pytest.mark.parametrize(
    ("version_file", "gpus", "state", "what"),
    [
        ("cuda: Optional[str] = None\n", (), "ok", "CPU"),
        ("cuda: Optional[str] = '13.0'\n", (GPU,), "ok", "CUDA 13.0"),
        ("cuda = '12.4'\n", (), "ok", "CUDA 12.4"),
        ("cuda: Optional[str] = None\nhip: Optional[str] = '6.2'\n", (GPU,), "ok", "ROCm 6.2"),
    ],
)
def test_the_build_of_pytorch_is_read_and_not_run(
    tmp_path: Path, version_file: str, gpus: tuple[Gpu, ...], state: str, what: str
) -> None:
    install(tmp_path, "torch", "2.13.0", ("torch/version.py",))
    (tmp_path / "torch/version.py").write_text(f"raise SystemExit\n{version_file}")
    found = runtimes(tmp_path, *gpus)["PyTorch build"]
    assert (found.state, found.what) == (state, what)


def test_a_cpu_build_of_pytorch_beside_a_gpu_is_wrong(tmp_path: Path) -> None:
    install(tmp_path, "torch", "2.13.0+cpu", ("torch/version.py",))
    (tmp_path / "torch/version.py").write_text("cuda: Optional[str] = None\n")
    found = runtimes(tmp_path, GPU)["PyTorch build"]
    assert found.state == "wrong"
    assert found.remedy == 'pip install --force-reinstall "torch==2.13.0"'


def test_the_first_of_two_installations_on_the_path_counts(tmp_path: Path) -> None:
    install(tmp_path / "a", "torch", "2.13.0")
    install(tmp_path / "b", "torch", "2.1.0")
    found = doctor.installed_distributions([str(tmp_path / "a"), str(tmp_path / "b")])
    assert found["torch"].version == "2.13.0"


def test_the_processor_is_read_from_cpuinfo(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu f16c avx2 avx512_vnni\n\n"
        "processor\t: 1\nmodel name\t: AMD EPYC\nflags\t\t: fpu\n"
    )
    found = hardware.processor(tmp_path)
    assert (found.model, found.instruction_sets) == ("AMD EPYC", ("avx2", "f16c", "avx512_vnni"))


def test_a_containers_limit_bounds_memory(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:       32000000 kB\n")
    (tmp_path / "memory.max").write_text("2147483648\n")
    total, available = hardware.memory_bytes(proc=tmp_path, cgroup=tmp_path)
    assert total == 2 << 30
    assert available <= total


def test_an_unlimited_container_has_the_machines_memory(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:       32000000 kB\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert hardware.memory_bytes(proc=tmp_path, cgroup=tmp_path)[0] == 32_000_000 * 1024


def nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_gpus_are_those_that_nvidia_smi_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi(tmp_path, monkeypatch, 'echo "NVIDIA H200, 143771, 580.1, 9.0"')
    assert hardware.gpus(tmp_path) == (GPU,)


def test_gpus_are_found_without_a_working_nvidia_smi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi(tmp_path, monkeypatch, "echo 'NVIDIA-SMI has failed'; exit 9")
    card = tmp_path / "driver/nvidia/gpus/0000:01:00.0"
    card.mkdir(parents=True)
    (card / "information").write_text("Model: \t\t NVIDIA L4\nIRQ: 40\n")
    assert hardware.gpus(tmp_path) == (Gpu("NVIDIA L4"),)


def test_a_machine_without_driver_has_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hardware.gpus(tmp_path) == ()
