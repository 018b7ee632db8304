"""What this machine is: processor, memory, disks, GPUs. Reads files and asks system tools only."""

from __future__ import annotations

import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from convkit.processors import usable_processors
from convkit.resources import available_memory_bytes

_TOOL_TIMEOUT_S = 10
_PROC = Path("/proc")

# What ONNX Runtime, llama.cpp and oneDNN choose their kernels by, in Linux's spelling.
_INSTRUCTION_SETS = (
    "avx2", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16",
    "amx_int8", "amx_bf16", "amx_fp16", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip


@dataclass(frozen=True)
class Processor:
    """A processor as this process may use it.

    Attributes:
        model: its marketing name.
        core_count: logical processors this process may run on.
        instruction_sets: those that matter for inference, in Linux's spelling.
    """

    model: str
    core_count: int
    instruction_sets: tuple[str, ...]


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU; fields that the driver does not tell are empty or 0."""

    name: str
    memory_mib: int = 0
    driver: str = ""
    compute_capability: str = ""


def processor(proc: Path = _PROC) -> Processor:
    """The processor, from /proc/cpuinfo on Linux and `sysctl` on macOS.

    Source: proc(5); "flags" on x86, "Features" on Arm (Linux arch/arm64/kernel/cpuinfo.c).
    """
    try:
        text = (proc / "cpuinfo").read_text(errors="replace")
    except OSError:
        model = _tool_output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
        flags = _macos_flags()
    else:
        fields = _cpuinfo_fields(text)
        model = fields.get("model name") or fields.get("CPU implementer", "")
        flags = set((fields.get("flags") or fields.get("Features") or "").split())
    known = tuple(name for name in _INSTRUCTION_SETS if name in flags)
    return Processor(model or platform.machine() or "unknown", usable_processors(), known)


def _cpuinfo_fields(text: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    return fields


def _macos_flags() -> set[str]:
    """Source: Apple, "Determining Instruction Set Characteristics" (hw.optional.*)."""
    if platform.system() != "Darwin":
        return set()
    names = {
        "asimd": "hw.optional.neon", "asimdhp": "hw.optional.arm.FEAT_FP16",
        "asimddp": "hw.optional.arm.FEAT_DotProd", "i8mm": "hw.optional.arm.FEAT_I8MM",
        "bf16": "hw.optional.arm.FEAT_BF16", "avx2": "hw.optional.avx2_0",
        "avx512f": "hw.optional.avx512f", "f16c": "hw.optional.f16c",
    }  # fmt: skip
    return {flag for flag, name in names.items() if _tool_output("sysctl", "-n", name) == "1"}


def memory_bytes(proc: Path = _PROC, cgroup: Path = Path("/sys/fs/cgroup")) -> tuple[int, int]:
    """Total and available memory in bytes, a container's limit respected; 0 where unknown.

    Source: proc(5), MemTotal; Linux Documentation/admin-guide/cgroup-v2.rst, memory.max.
    """
    total = 0
    try:
        for line in (proc / "meminfo").read_text().splitlines():
            if line.startswith("MemTotal:"):
                total = int(line.split()[1]) * 1024
    except OSError:
        total = int(_tool_output("sysctl", "-n", "hw.memsize") or 0)
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            limit = (cgroup / name).read_text().strip()
        except OSError:
            continue
        if limit.isdigit() and 0 < int(limit) < total:
            total = int(limit)
    return total, min(total, available_memory_bytes() or 0)


def free_disk_bytes(folder: Path) -> int:
    """Free bytes on the disk that holds a folder; 0 where it cannot be asked."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def gpus(proc: Path = _PROC) -> tuple[Gpu, ...]:
    """The NVIDIA GPUs that the driver shows; none without a driver.

    Source: `nvidia-smi --help-query-gpu`; NVIDIA driver README, chapter "/proc/driver/nvidia".
    """
    query = "--query-gpu=name,memory.total,driver_version,compute_cap"
    listing = _tool_output("nvidia-smi", query, "--format=csv,noheader,nounits")
    rows = [[cell.strip() for cell in line.split(",")] for line in listing.splitlines()]
    found = [
        Gpu(row[0], int(row[1]) if row[1].isdigit() else 0, row[2], row[3])
        for row in rows
        if len(row) == 4
    ]
    if found:
        return tuple(found)
    information = sorted((proc / "driver/nvidia/gpus").glob("*/information"))
    fields = (_cpuinfo_fields(file.read_text(errors="replace")) for file in information)
    return tuple(Gpu(field.get("Model", "NVIDIA GPU")) for field in fields)


def _tool_output(*command: str) -> str:
    """What a system tool prints; empty where there is no such tool or it fails."""
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=_TOOL_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout.strip()
