"""What a benchmark ran on: the machine, the versions, the threads."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from convkit import __version__, hardware
from convkit.processors import thread_count
from convkit.step import Format

USERS_WAIT_POLICY = "CONVKIT_USERS_OMP_WAIT_POLICY"
"""What the user's environment said of OMP_WAIT_POLICY, before the command set its own."""

_MIB = 1 << 20


def fingerprint(formats: Iterable[Format], threads: int | None) -> dict[str, Any]:
    """JSON values that tell one machine's results from another's."""
    processor = hardware.processor()
    total, available = hardware.memory_bytes()
    return {
        "processor": processor.model,
        "cores": processor.core_count,
        "instruction_sets": list(processor.instruction_sets),
        "memory_mib": total // _MIB,
        "available_memory_mib": available // _MIB,
        "gpus": [gpu.name for gpu in hardware.gpus()],
        "device": "cpu",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "threads": min(threads, processor.core_count) if threads else thread_count(),
        "load_average": _load_average(),
        "versions": _versions(formats),
    }


def environment(threads: int | None) -> dict[str, str | None]:
    """Variables of the processes that run models: the user's own waiting, this many threads.

    Source: OpenMP API 5.2, OMP_NUM_THREADS; TensorFlow, tensorflow/core/common_runtime/
    process_util.cc, TF_NUM_INTRAOP_THREADS.
    """
    changed: dict[str, str | None] = {}
    said = os.environ.get(USERS_WAIT_POLICY)
    if said is not None:
        changed["OMP_WAIT_POLICY"] = said or None
    if threads:
        changed |= {"OMP_NUM_THREADS": str(threads), "TF_NUM_INTRAOP_THREADS": str(threads)}
    return changed


def _load_average() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):  # Windows has none
        return None


def _versions(formats: Iterable[Format]) -> dict[str, str]:
    found = {"python": platform.python_version(), "convkit": __version__}
    distributions = importlib.metadata.packages_distributions()
    for each in formats:
        for need in each.needs:
            # onnxruntime comes in several distributions; the one that is here has the module.
            for name in distributions.get(need.module, [need.distribution])[:1]:
                with suppress(importlib.metadata.PackageNotFoundError):
                    found[need.module] = importlib.metadata.version(name)
    return found
