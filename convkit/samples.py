"""Inputs for models: seeded random by spec, the shapes to verify at, files of samples.

Import this module inside functions where start-up matters: it imports numpy.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convkit.artifact import TensorSpec, dtype_bits
from convkit.errors import SamplesError, UsageError
from convkit.step import Feeds, Sizes

BATCH_NAMES = ("batch", "batch_size", "n")
RANDOM = Path("random")
"""The word in place of calibration data for numbers drawn at random, which says so."""
LABELS = ("labels", "label")
"""Arrays beside the inputs that say what is right; a model that takes an input of the name has none
of them."""
_SPATIAL = ("height", "width", "depth", "h", "w")
_CHANNELS = (1, 3, 4)
_BATCHES = (1, 3, 2, 4, 8, 12, 16, 1, 3, 2)
_LENGTHS = (16, 12, 7, 16, 11, 24, 32, 128, 640, 1601)
_SIDES = (64, 96, 67, 128, 160, 224, 256, 512, 640, 448)
_LENGTH_STEP, _SIDE_STEP = 2, 32
"""Odd stays odd; networks that halve an image five times still can."""
_INVENTED = re.compile(r"_dim\d+$")
"""Dimensions that a file leaves nameless are called `<value>_dim<axis>`: many are one and the same
size (ids and their mask), so they are not set apart."""
_DEFAULT_IDS = (0, 100)
_SIZE = r"0*[1-9]\d*|[A-Za-z_]\w*"
"""A dimension as written: a number above zero, or a name."""


def draw(
    specs: Sequence[TensorSpec],
    sizes: Sizes,
    seed: int,
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> Feeds:
    """Seeded arrays for input specs.

    Floats are standard normal, or uniform within their range; integers are uniform in [low, high]
    (0 to 100 without a range); booleans are fair coins.

    Args:
        specs: inputs to draw for.
        sizes: sizes of dynamic dimensions; a batch dimension missing here is 2, others 16.
        seed: the same seed and sizes give the same arrays.
        ranges: input name -> (low, high), both ends included.
    """
    generator = np.random.default_rng(seed)
    ranges = ranges or {}
    return {spec.name: _draw_one(spec, sizes, generator, ranges.get(spec.name)) for spec in specs}


def shape_of(spec: TensorSpec, sizes: Sizes) -> tuple[int, ...]:
    """The concrete shape of a spec under these sizes, defaults filled in."""
    return tuple(size if isinstance(size, int) else size_of(size, sizes) for size in spec.shape)


def size_of(name: str, sizes: Sizes) -> int:
    """The size of a dynamic dimension: as given, else 2 for a batch, 64 for an image side, 16."""
    if name in sizes:
        return sizes[name]
    if is_batch(name):
        return 2
    return _SIDES[0] if is_spatial(name) else _LENGTHS[0]


def is_batch(name: str) -> bool:
    """Whether the name of a dynamic dimension means the batch."""
    return name.lower() in BATCH_NAMES


def is_spatial(name: str) -> bool:
    """Whether the name of a dynamic dimension means the side of an image."""
    return name.lower() in _SPATIAL


def shape_sets(specs: Sequence[TensorSpec]) -> Iterator[Sizes]:
    """Sizes to try a model at, most telling first: batch 1, batch 3, an odd length with batch 2.

    Within a set, dimensions of different names differ in size, so that mixing two up shows. More
    sets follow for models that refuse some: with sizes alike (an image may have to be square), a
    batch in fours, long audio; the caller stops when enough were accepted. Without dynamic
    dimensions there is one empty set.
    """
    if not dynamic_names(specs):
        yield {}
        return
    apart, alike = (
        [_sizes(specs, *sizes, step) for sizes in zip(_BATCHES, _LENGTHS, _SIDES, strict=True)]
        for step in (1, 0)
    )
    if apart == alike:
        alike = []
    yield from (*apart[:3], *alike[:3], *apart[3:], *alike[3:])


def _sizes(specs: Sequence[TensorSpec], batch: int, length: int, side: int, step: int) -> Sizes:
    """One set; lengths and sides grow by `step` times their least difference from name to name."""
    batches = batch_names(specs)
    others = [name for name in dynamic_names(specs) if name not in batches]
    images = _image_sides(specs)
    sides = [name for name in others if is_spatial(name) or name in images]
    lengths = [name for name in others if name not in sides and not _INVENTED.search(name)]
    return (
        dict.fromkeys(others, length)
        | {name: length + step * _LENGTH_STEP * i for i, name in enumerate(lengths)}
        | {name: side + step * _SIDE_STEP * i for i, name in enumerate(sides)}
        | dict.fromkeys(batches, batch)
    )


def _image_sides(specs: Sequence[TensorSpec]) -> set[str]:
    """Dynamic dimensions beside one, three or four channels: sides of an image by their place."""
    sides: set[str] = set()
    for spec in specs:
        if len(spec.shape) != 4 or not spec.dtype.startswith(("float", "uint8")):
            continue
        if spec.shape[1] in _CHANNELS:
            places = spec.shape[2:]
        elif spec.shape[3] in _CHANNELS:
            places = spec.shape[1:3]
        else:
            continue
        sides |= {size for size in places if isinstance(size, str) and not is_batch(size)}
    return sides


def batch_names(specs: Sequence[TensorSpec]) -> set[str]:
    """Dynamic dimensions that mean the batch: those called so, else those that come first."""
    called = {name for name in dynamic_names(specs) if is_batch(name)}
    first = {spec.shape[0] for spec in specs if len(spec.shape) > 1}
    return called or {name for name in first if isinstance(name, str) and not is_spatial(name)}


def dynamic_names(specs: Sequence[TensorSpec]) -> list[str]:
    """Names of all dynamic dimensions, each once, in order of appearance."""
    return list(dict.fromkeys(name for spec in specs for name in spec.dynamic))


def resize(feeds: Feeds, specs: Sequence[TensorSpec], sizes: Sizes) -> Feeds:
    """The same feeds cut or repeated along their dynamic dimensions to these sizes."""
    shapes = {spec.name: shape_of(spec, sizes) for spec in specs}
    return {
        name: _fit(array, shapes[name]) if name in shapes else array
        for name, array in feeds.items()
    }


def specs_of(samples: Sequence[Feeds]) -> tuple[TensorSpec, ...]:
    """Input specs read off samples: sizes that differ between samples are dynamic.

    The first dimension is the batch where all inputs with dimensions agree on it in each sample.
    """
    first = samples[0]
    has_batch = all(
        len({array.shape[0] for array in feeds.values() if array.ndim}) == 1 for feeds in samples
    )
    specs = []
    for name, array in first.items():
        shapes = [feeds[name].shape for feeds in samples if feeds[name].ndim == array.ndim]
        shape: list[int | str] = [
            size if all(s[axis] == size for s in shapes) else f"{name}_dim{axis}"
            for axis, size in enumerate(array.shape)
        ]
        if shape and has_batch:
            shape[0] = "batch"
        specs.append(TensorSpec(name, array.dtype.name, tuple(shape)))
    return tuple(specs)


def without_labels(feeds: Feeds, inputs: Sequence[TensorSpec] = ()) -> Feeds:
    """The inputs of a model in a sample: what says what is right is none, unless it is called so.

    Args:
        feeds: arrays of a sample.
        inputs: of the model; without them, `labels` beside other arrays are none.
    """
    known = {spec.name for spec in inputs}
    kept = {name: array for name, array in feeds.items() if name not in LABELS or name in known}
    return kept or feeds


def is_text(path: Path) -> bool:
    """Whether samples are a text, which only a language model can make inputs of."""
    return path.suffix == ".txt"


def read_text(path: Path) -> str:
    """A text that samples are made of.

    Raises:
        SamplesError: the file is missing, no text, or empty.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as cause:
        raise SamplesError(f"There is no file {path}.", hint=_TEXT_HINT) from cause
    except (OSError, UnicodeDecodeError) as cause:
        raise SamplesError(
            f"The text {path} cannot be read.", why=str(cause), hint=_TEXT_HINT
        ) from cause
    if not text.strip():
        raise SamplesError(f"The text {path} is empty.", hint=_TEXT_HINT)
    return text


_TEXT_HINT = "Give a text in UTF-8:  --samples text.txt"


def read(path: Path) -> list[Feeds]:
    """Samples from disk: one `.npz` (a sample), `.jsonl` (a sample a line), or a folder of `.npz`.

    In `.jsonl` each line maps input names to (nested) lists; whole numbers become int64, others
    float32.

    Raises:
        SamplesError: the file is missing, of another kind, broken or empty, or holds NaN.
    """
    if path.is_dir():
        samples = [feeds for file in sorted(path.glob("*.npz")) for feeds in read(file)]
        if not samples:
            raise SamplesError(f"No .npz files in {path}.", hint=_SAMPLES_HINT)
        return samples
    readers = {".npz": _read_npz, ".jsonl": _read_jsonl}
    if path.suffix not in readers:
        raise SamplesError(f"{path} is no samples file.", hint=_SAMPLES_HINT)
    try:
        samples = readers[path.suffix](path)
    except FileNotFoundError as cause:
        raise SamplesError(f"There is no samples file {path}.", hint=_SAMPLES_HINT) from cause
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as cause:
        raise SamplesError(
            f"The samples in {path} cannot be read.", why=str(cause), hint=_SAMPLES_HINT
        ) from cause
    _check_sane(path, samples)
    return samples


_SAMPLES_HINT = (
    'Write them with numpy:  np.savez("inputs.npz", x=array)   (one array per input, batch first)'
)


def _read_npz(path: Path) -> list[Feeds]:
    with np.load(path, allow_pickle=False) as arrays:
        return [dict(arrays)]


def _read_jsonl(path: Path) -> list[Feeds]:
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return [{name: from_list(value) for name, value in line.items()} for line in lines]


def from_list(value: Any) -> np.ndarray[Any, Any]:
    """The array of a (nested) list: whole numbers become int64, others float32.

    Raises:
        ValueError: it holds no numbers, or its rows differ in length.
    """
    array = np.asarray(value)
    if array.dtype == np.float64:
        return array.astype(np.float32)
    if array.dtype.kind not in "iufb":
        raise ValueError(f"an input holds {array.dtype}, numbers are expected")
    return array


def _check_sane(path: Path, samples: Sequence[Feeds]) -> None:
    if not samples or not any(samples):
        raise SamplesError(f"{path} holds no samples.", hint=_SAMPLES_HINT)
    for index, feeds in enumerate(samples):
        for name, array in feeds.items():
            if array.size == 0:
                raise SamplesError(
                    f"Sample {index} in {path} has no numbers in '{name}': its shape is "
                    f"{array.shape}.",
                    hint="Leave such samples out.",
                )
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise SamplesError(
                    f"Sample {index} in {path} has NaN or infinity in '{name}'.",
                    hint="Leave such samples out.",
                )


def _fit(array: np.ndarray[Any, Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    if array.ndim != len(shape):
        return array
    for axis, size in enumerate(shape):
        if array.shape[axis] != size:
            array = np.take(array, np.arange(size) % array.shape[axis], axis=axis)
    return array


def parse_spec(text: str) -> TensorSpec:
    """An input as the command line writes it: `name=float32[batch,3,224,224]`, `sr=int64[]`.

    Raises:
        UsageError: it is not written that way.
    """
    found = re.fullmatch(r"([^=]+)=(\w+)\[([^\]]*)\]", text.strip())
    sizes = [size.strip() for size in found[3].split(",") if size.strip()] if found else []
    if not found or dtype_bits(found[2]) == 0 or not all(re.fullmatch(_SIZE, s) for s in sizes):
        raise UsageError(
            f"'{text}' does not describe an input.",
            hint='Write it as  --input "x=float32[batch,3,224,224]"   (names are dynamic sizes)',
        )
    shape = tuple(int(size) if size.isdigit() else size for size in sizes)
    return TensorSpec(found[1].strip(), found[2], shape)


def _draw_one(
    spec: TensorSpec,
    sizes: Sizes,
    generator: np.random.Generator,
    limits: tuple[float, float] | None,
) -> np.ndarray[Any, Any]:
    shape = shape_of(spec, sizes)
    if spec.dtype == "bool":
        return generator.integers(0, 2, shape).astype(bool)
    if spec.dtype.startswith(("int", "uint")):
        low, high = limits or _DEFAULT_IDS
        return generator.integers(int(low), int(high), shape, endpoint=True).astype(spec.dtype)
    if limits is not None:
        return generator.uniform(*limits, shape).astype(spec.dtype)
    if spec.dtype == "bfloat16":
        import ml_dtypes

        return generator.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)
    return generator.standard_normal(shape).astype(spec.dtype)
