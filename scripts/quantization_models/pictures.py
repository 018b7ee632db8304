"""Pictures as arrays: crops of photos, and words that are drawn.

    python pictures.py photos FOLDER PHOTO...     crops for an ImageNet classifier
    python pictures.py words FOLDER               words for text recognition, and pages of them

It runs in the environment that has Pillow, scikit-image and foolbox; the rest of the folder does
not need them. Photos whose names end like foolbox's `imagenet_03_990.jpg` have that label.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Array = np.ndarray[Any, Any]

SIDE = 224
IN_COLOR = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
WORDS = """
    about after again animal answer because before better between bring build carry change city
    close country different early earth every family father follow found friend garden great
    group happen heavy house idea important island kind language large learn letter light little
    machine measure morning mother mountain never night north number ocean often order other
    paper people picture place plant point problem question quick quiet rain ready river rock
    round school science second seven simple sleep small sound south space spring stand start
    state still stone story street strong study summer table teach thing think thought three
    through together travel tree under until valley village voice walk water weather white winter
    without wonder world write yellow young
""".split()  # noqa: SIM905


def photos(folder: Path, more: Sequence[Path]) -> None:
    """Writes `crops-calibration`, `crops-compare`, `labelled-control` and `labelled-evaluation`."""
    labelled = sorted(_data("foolbox").glob("imagenet_*.jpg"))
    plain = [_data("skimage") / name for name in IN_COLOR] + [Path(each) for each in more]
    images = [_read(file) for file in (*plain, *labelled)]
    for name, count, seed in (("crops-calibration", 64, 0), ("crops-compare", 128, 1)):
        chosen = np.random.default_rng(seed)
        crops = [_crop(images[chosen.integers(len(images))], 0.5, chosen) for _ in range(count)]
        np.savez(folder / name, inputs=np.stack(crops))
    known = [(_read(file), int(file.stem.rpartition("_")[2])) for file in labelled]
    for name, each, seed in (("labelled-control", 10, 2), ("labelled-evaluation", 20, 3)):
        chosen = np.random.default_rng(seed)
        crops = [_crop(image, 0.8, chosen) for image, _ in known for _ in range(each)]
        labels = [label for _, label in known for _ in range(each)]
        np.savez(folder / name, inputs=np.stack(crops), labels=np.array(labels))
    whole = [_values(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for image, _ in known]
    np.savez(
        folder / "photos", inputs=np.stack(whole), labels=np.array([label for _, label in known])
    )


def words(folder: Path, _more: Sequence[Path]) -> None:
    """Writes `words` (count, 3, 48, 320), `turned` (..., 48, 192) and `pages` (..., 320, 320).

    Values are (pixel - 127.5) / 127.5, the channels in the order of OpenCV, blue first.
    `texts` are the words, `upside_down` says which are turned, `boxes` are 1 where words are.
    Source: RapidOCR 1.4, config.yaml and ch_ppocr_rec, ch_ppocr_cls, ch_ppocr_det.
    """
    chosen = np.random.default_rng(0)
    texts = [_text(chosen) for _ in range(600)]
    lines = [_line(text, chosen) for text in texts]
    turned = chosen.integers(0, 2, len(lines))
    heads = [
        _fitted(line.rotate(180) if is_turned else line, 48, 192)
        for line, is_turned in zip(lines, turned, strict=True)
    ]
    pages, boxes = zip(*(_page(chosen) for _ in range(80)), strict=True)
    np.savez(
        folder / "words",
        words=np.stack([_fitted(line, 48, 320) for line in lines]),
        texts=np.array(texts),
        turned=np.stack(heads),
        upside_down=turned,
        pages=np.stack(pages),
        boxes=np.stack(boxes),
    )


def _data(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{package} is not installed in {sys.prefix}")
    return Path(spec.origin).parent / "data"


def _read(file: Path) -> Image.Image:
    return Image.open(file).convert("RGB")


def _crop(image: Image.Image, least: float, chosen: np.random.Generator) -> Array:
    """A square of at least that share of the shorter side, turned over at random."""
    width, height = image.size
    shorter = min(width, height)
    side = int(chosen.integers(int(least * shorter), shorter + 1))
    left, top = (int(chosen.integers(0, size - side + 1)) for size in (width, height))
    cut = image.crop((left, top, left + side, top + side))
    cut = cut.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    if chosen.random() < 0.5:
        cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return _values(cut)


def _values(image: Image.Image) -> Array:
    """(channels, height, width). Source: efficientnet-lite-pytorch, README: mean 127, std 128."""
    return ((np.asarray(image, np.float32) - 127) / 128).transpose(2, 0, 1)


def _text(chosen: np.random.Generator) -> str:
    word = str(chosen.choice(WORDS))
    kind = chosen.integers(4)
    if kind == 0:
        return f"{word}{chosen.integers(10, 1000)}"
    return (word, word, word.capitalize())[kind - 1]


def _line(text: str, chosen: np.random.Generator) -> Image.Image:
    """Dark letters on light ground, or the other way round, a little noisy."""
    font = ImageFont.load_default(size=int(chosen.integers(28, 44)))
    left, top, right, bottom = (round(edge) for edge in font.getbbox(text))
    margin = int(chosen.integers(3, 9))
    ground, ink = _colors(chosen)
    size = (right - left + 2 * margin, bottom - top + 2 * margin)
    image = Image.new("RGB", size, ground)
    ImageDraw.Draw(image).text((margin - left, margin - top), text, ink, font)
    noisy = np.asarray(image, np.float32) + chosen.normal(0, 5, (*size[::-1], 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _colors(chosen: np.random.Generator) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    light, dark = (
        tuple(int(value) for value in chosen.integers(low, low + 80, 3)) for low in (170, 10)
    )
    pair = (light, dark) if chosen.random() < 0.7 else (dark, light)
    return pair  # type: ignore[return-value]


def _fitted(image: Image.Image, height: int, width: int) -> Array:
    """Of that height, padded on the right with zeros."""
    wide = min(width, max(1, round(image.width * height / image.height)))
    values = _centered(image.resize((wide, height), Image.Resampling.BILINEAR))
    return np.pad(values, ((0, 0), (0, 0), (0, width - wide)))


def _page(chosen: np.random.Generator) -> tuple[Array, Array]:
    """Words in rows, and a map that is 1 where they are."""
    ground, ink = _colors(chosen)
    page = Image.new("RGB", (320, 320), ground)
    boxes = np.zeros((320, 320), np.uint8)
    draw = ImageDraw.Draw(page)
    top = int(chosen.integers(8, 30))
    while top < 270:
        font = ImageFont.load_default(size=int(chosen.integers(16, 34)))
        start = int(chosen.integers(6, 60))
        draw.text((start, top), _text(chosen), ink, font)
        left, upper, right, lower = _inked(page, ground, top)
        boxes[upper:lower, left:right] = 1
        top = lower + int(chosen.integers(14, 40))
    noisy = np.asarray(page, np.float32) + chosen.normal(0, 8, (320, 320, 3))
    return _centered(Image.fromarray(noisy.clip(0, 255).astype(np.uint8))), boxes


def _inked(page: Image.Image, ground: tuple[int, int, int], top: int) -> tuple[int, ...]:
    """What differs from the ground from that row on: left, top, right, bottom."""
    is_inked = (np.asarray(page) != np.array(ground)).any(axis=2)
    is_inked[:top] = False
    rows, columns = np.flatnonzero(is_inked.any(axis=1)), np.flatnonzero(is_inked.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def _centered(image: Image.Image) -> Array:
    return ((np.asarray(image, np.float32)[:, :, ::-1] - 127.5) / 127.5).transpose(2, 0, 1)


DRAW: dict[str, Callable[[Path, Sequence[Path]], None]] = {"photos": photos, "words": words}

if __name__ == "__main__":
    DRAW[sys.argv[1]](Path(sys.argv[2]), [Path(each) for each in sys.argv[3:]])
