"""What convkit and other quantizers make of a case: a file each, or why there is none."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from quantization_measuring import Row
from quantization_models.case import ENVIRONMENT, ROOT, Case
from turns import OPTIMUM, OPTIMUM_PACKAGES, build_environment

FLOAT, DYNAMIC, STATIC, CONTROLLED, Q4 = (
    "fp32",
    "int8 dynamic",
    "int8 static",
    "int8 --max-drop 0.5%",
    "q4",
)
NNCF = ROOT / ".venvs/nncf"
NNCF_PACKAGES = ("nncf==3.4.0", "onnx==1.23.2", "onnxruntime==1.31.1", "numpy==2.4.6")
PEERS = {
    "quantize_static-minmax": NNCF,
    "quantize_static-percentile": NNCF,
    "quantize_static-entropy": NNCF,
    "quantize_dynamic": NNCF,
    "nncf": NNCF,
    "optimum-static": OPTIMUM,
    "optimum-dynamic": OPTIMUM,
}
_PATIENCE_S = 1800


def build_peers() -> None:
    """Makes the environments of the peers; ONNX Runtime's quantizer shares nncf's.

    Raises:
        BenchFailure: the packages could not be installed.
    """
    build_environment(NNCF, NNCF_PACKAGES)
    build_environment(OPTIMUM, OPTIMUM_PACKAGES)


def own_rows(case: Case, folder: Path) -> Iterator[Row]:
    """What the command line makes, without verification, which peers have none of."""
    files = case.prepare()
    yield Row(FLOAT, files / "model.onnx")
    data = ("--calibration", str(files / "calibration.npz"))
    judged = ("--samples", str(files / "control.npz"), "--max-drop", "0.5%")
    if case.metric:
        judged += ("--metric", case.metric)
    wanted = {
        DYNAMIC: ("--int8", "--scheme", "dynamic", *case.options),
        STATIC: ("--int8", *data, *case.options),
        CONTROLLED: ("--int8", *data, *judged, *case.options),
        Q4: ("--q4", *data),
    }
    for number, (name, options) in enumerate(wanted.items()):
        out = folder / f"own-{number}.onnx"
        command = [ROOT / ".venv/bin/convkit", "convert", files / "model.onnx", "--to", "onnx"]
        row = _made(name, [*command, *options, "-o", out, "--no-verify", "--force", "-q"], out)
        kept = out.parent / ".rejected" / out.name
        if row.path is None and kept.exists():
            row.path = kept
        yield row


def peer_rows(case: Case, folder: Path, names: tuple[str, ...]) -> Iterator[Row]:
    """What peers make of the same samples."""
    files = case.prepare()
    for name in names:
        out = folder / f"{name}.onnx"
        script = Path(__file__).resolve().with_name("quantization_peers.py")
        command = [PEERS[name] / "bin/python", script, name, files / "model.onnx"]
        kind = ("transformer",) if case.is_transformer else ()
        yield _made(name, [*command, files / "calibration.npz", out, *kind], out)


def _made(name: str, command: list[Path | str], out: Path) -> Row:
    out.unlink(missing_ok=True)
    began = time.perf_counter()
    try:
        done = subprocess.run(
            [str(part) for part in command],
            env=ENVIRONMENT,
            cwd=out.parent,  # some leave files where they run
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Row(name, None, f"not done after {_PATIENCE_S} s", _PATIENCE_S)
    seconds = time.perf_counter() - began
    if done.returncode == 0 and out.exists():
        row = Row(name, out, "", seconds)
    else:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        row = Row(name, None, _reason(lines, done.returncode), seconds)
    print(f"  {name}: {seconds:.1f} s {row.failure}", flush=True)
    return row


def _reason(lines: list[str], code: int) -> str:
    """The last line of a traceback, else the first line of an error of convkit."""
    if not lines:
        return f"exit code {code}"
    is_traceback = any(line.startswith("Traceback") for line in lines)
    return (lines[-1] if is_traceback else lines[0]).strip()[:160]
