"""Trained networks of packages keep their answers in int8, beside ONNX Runtime's quantizer."""

from __future__ import annotations

import random
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convkit
from convkit.metrics import sqnr_db
from tests.material import (
    MATERIAL,
    chars2vec_onnx_file,
    magika_onnx_file,
    minilm_folder,
    nsnet2_onnx_file,
)
from tests.onnx_files import runtime

pytestmark = pytest.mark.slow
quantization = pytest.importorskip("onnxruntime.quantization")

Array = np.ndarray[Any, Any]
SYMBOLS = "!\"#$%&'()*+,-./0123456789:;<=>?@_abcdefghijklmnopqrstuvwxyz"


def run(path: Path, feeds: Mapping[str, Array], rows: int = 16) -> Array:
    """The first output, of all rows."""
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    count = len(next(iter(feeds.values())))
    parts = [
        session.run(None, {name: array[i : i + rows] for name, array in feeds.items()})[0]
        for i in range(0, count, rows)
    ]
    return np.concatenate(parts)


def int8(source: Path, out: Path, calibration: Path | None = None) -> Path:
    convkit.convert(
        source, to="onnx", precision="int8", calibration=calibration, out=out, verify=False
    )
    return out


def agreement(one: Array, other: Array) -> float:
    return float((one.argmax(-1) == other.argmax(-1)).mean())


def crops(count: int, seed: int) -> Array:
    """Squares of scikit-learn's two photos, as EfficientNet-lite takes them."""
    pytest.importorskip("tensorflow", reason="it decodes JPEG here")
    import tensorflow as tf
    from sklearn import datasets

    folder = Path(datasets.__file__).parent / "images"
    images = [tf.io.decode_jpeg(tf.io.read_file(str(f))) for f in sorted(folder.glob("*.jpg"))]
    chosen, found = np.random.default_rng(seed), []
    for number in range(count):
        height, width, _ = images[number % 2].shape
        side = int(chosen.integers(height // 3, height))
        top, left = (int(chosen.integers(0, size - side)) for size in (height, width))
        cut = images[number % 2][top : top + side, left : left + side]
        found.append((tf.image.resize(cut, (224, 224)).numpy() - 127) / 128)
    return np.stack(found).transpose(0, 3, 1, 2).astype(np.float32)


def test_efficientnet_has_less_than_half_the_noise_that_quantize_static_leaves(
    tmp_path: Path,
) -> None:
    known = MATERIAL["efficientnet_lite0"]
    source, data = tmp_path / "float.onnx", tmp_path / "data.npz"
    convkit.convert(
        known.opening.factory or "",
        weights=known.path(),
        inputs=["inputs=float32[batch,3,224,224]"],
        to="onnx",
        out=source,
        verify=False,
    )
    seen, judged = crops(40, 0), {"inputs": crops(64, 1)}
    np.savez(data, inputs=seen)
    rows = iter([{"inputs": row[None]} for row in seen])

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def get_next(self) -> dict[str, Array] | None:
            return next(rows, None)

    quantization.quantize_static(source, tmp_path / "peer.onnx", Reader(), per_channel=True)
    reference, peer = run(source, judged), run(tmp_path / "peer.onnx", judged)
    own = run(int8(source, tmp_path / "own.onnx", data), judged)
    assert sqnr_db(reference, own) > 20  # what verification asks; 24 dB of many photos
    assert sqnr_db(reference, own) > sqnr_db(reference, peer) + 4  # 10^(4 / 10) is 2.5
    assert agreement(reference, own) >= agreement(reference, peer)


def test_minilm_has_less_noise_than_quantize_dynamic_leaves(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    from pydoc_data import topics

    source = tmp_path / "float.onnx"
    convkit.convert(minilm_folder(), to="onnx", out=source, verify=False)
    texts = [text for _, text in sorted(topics.topics.items()) if len(text) > 1000][:48]
    tokenizer = tokenizers.Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(48)
    tokenizer.no_padding()
    ids = [each.ids for each in tokenizer.encode_batch(texts)]  # all cut to 48 tokens
    feeds = {"input_ids": np.array(ids)}
    feeds["attention_mask"] = np.ones_like(feeds["input_ids"])
    feeds["token_type_ids"] = np.zeros_like(feeds["input_ids"])
    reference = run(source, feeds)
    quantization.quantize_dynamic(source, tmp_path / "peer.onnx", per_channel=True)
    own = run(int8(source, tmp_path / "own.onnx"), feeds)
    peer = run(tmp_path / "peer.onnx", feeds)
    assert sqnr_db(reference, own) > max(20, sqnr_db(reference, peer) + 2)


def test_magika_tells_as_many_files_in_int8(tmp_path: Path) -> None:
    source = magika_onnx_file()
    place = Path(sysconfig.get_path("stdlib"))
    files = [f for f in sorted(place.rglob("*.py")) + sorted(place.rglob("*.txt")) if _long(f)]
    random.Random(0).shuffle(files)
    rows = np.stack([_bytes_of(file) for file in files[:400]])
    np.savez(tmp_path / "data.npz", bytes=rows[:100])
    judged = {"bytes": rows[100:]}
    own = int8(source, tmp_path / "own.onnx", tmp_path / "data.npz")
    assert agreement(run(source, judged), run(own, judged)) >= 0.995
    assert own.stat().st_size < source.stat().st_size


def test_chars2vec_finds_as_many_words_in_a_third_of_the_size(tmp_path: Path) -> None:
    source, own = chars2vec_onnx_file(), tmp_path / "own.onnx"
    words = sorted({word for word in _prose().split() if 5 <= len(word) <= 12})[:400]
    chosen = random.Random(0)
    wrong = [_swapped(word, chosen.randrange(1, len(word) - 2)) for word in words]
    feeds = {"lstm_input": _letters(wrong + words)}
    int8(source, own)
    shares = []
    for path in (source, own):
        typed, meant = np.split(run(path, feeds).astype(np.float64), 2)
        distances = ((typed[:, None] - meant[None]) ** 2).sum(-1)
        shares.append(float((distances.argmin(1) == np.arange(len(words))).mean()))
    assert shares[0] > 0.8  # else nothing is shown
    assert shares[1] >= shares[0] - 0.005
    assert own.stat().st_size < source.stat().st_size / 3


def test_nsnet2_has_no_more_noise_than_quantize_dynamic_in_less_than_a_third(
    tmp_path: Path,
) -> None:
    source = nsnet2_onnx_file()
    quantization.quantize_dynamic(source, tmp_path / "peer.onnx")
    own = int8(source, tmp_path / "own.onnx")
    steps = np.random.default_rng(0).normal(0, 0.4, (8, 150, 161)).cumsum(1)
    feeds = {"input": (steps.clip(-9, 2) - 2).astype(np.float32)}
    reference = run(source, feeds)
    assert sqnr_db(reference, run(own, feeds)) > sqnr_db(
        reference, run(tmp_path / "peer.onnx", feeds)
    )
    assert own.stat().st_size < source.stat().st_size / 3


def _long(file: Path) -> bool:
    return file.is_file() and file.stat().st_size > 200


def _bytes_of(file: Path) -> Array:
    """Source: magika 1.0: bytes of the beginning and the end; 256 where there are none."""
    content = file.read_bytes()
    head, tail = content[:4096].lstrip()[:1024], content[-4096:].rstrip()[-1024:]
    codes = np.full(2048, 256, np.int32)
    codes[: len(head)] = np.frombuffer(head, np.uint8)
    codes[2048 - len(tail) :] = np.frombuffer(tail, np.uint8)
    return codes


def _prose() -> str:
    from pydoc_data import topics

    text = " ".join(topics.topics.values()).lower()
    return "".join(letter if letter.isalpha() else " " for letter in text)


def _swapped(word: str, place: int) -> str:
    return word[:place] + word[place + 1] + word[place] + word[place + 2 :]


def _letters(words: list[str]) -> Array:
    codes = np.zeros((len(words), 12, len(SYMBOLS)), np.float32)
    for row, word in zip(codes, words, strict=True):
        for place, letter in enumerate(word, 12 - len(word)):
            row[place, SYMBOLS.index(letter)] = 1
    return codes
