"""What a transformers network takes, from its config: names, shapes and inputs that make sense.

Names follow from the network's `forward` and the config; shapes come from optimum's normalized
configs and dummy input generators, asked at two sizes each, so that what varies gets a name.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convkit.artifact import Dimension, Precision, TensorSpec
from convkit.errors import InputsUnknownError, SamplesError
from convkit.formats.language_inputs import padding_mask
from convkit.formats.torch_runner import Example
from convkit.step import Feeds, Sizes

if TYPE_CHECKING:
    import torch

_FLOATS = {Precision.FP16: "float16", Precision.BF16: "bfloat16"}
_TEXT = ("input_ids", "attention_mask", "token_type_ids")
_KNOWN = (*_TEXT, "bbox", "decoder_input_ids", "pixel_values", "input_values", "input_features")
_IMAGE_SIDE = 224
_LEAST_AUDIO_SAMPLES = 4000  # a quarter second at 16 kHz: the strides of wav2vec2 need 400
_AUDIO_STEP = 400  # a smaller size stands for that many steps more, so that lengths differ
_PROBES: tuple[Mapping[str, int], Mapping[str, int]] = (
    {"batch": 2, "sequence": 11, "decoder_sequence": 13, "audio": 8000},
    {"batch": 3, "sequence": 17, "decoder_sequence": 19, "audio": 9000},
)


def likely_inputs(config: Mapping[str, Any], precision: Precision) -> tuple[TensorSpec, ...]:
    """Inputs as far as `config.json` alone tells, without a framework; empty where it does not."""
    text: tuple[Dimension, ...] = ("batch", "sequence")
    if _is_text(config) and not config.get("is_encoder_decoder"):
        names = [name for name in _TEXT if name != "token_type_ids" or _has_segments(config)]
        return tuple(TensorSpec(name, "int64", text) for name in names)
    if "image_size" in config and "vocab_size" not in config and "text_config" not in config:
        height, width = _pair(config["image_size"])
        shape = ("batch", int(config.get("num_channels", 3)), height, width)
        return (TensorSpec("pixel_values", _FLOATS.get(precision, "float32"), shape),)
    return ()


def inputs_of(
    network: torch.nn.Module, precision: Precision, given: Sequence[TensorSpec] = ()
) -> tuple[tuple[TensorSpec, ...], Example]:
    """Input specs of a loaded network, and a maker of inputs it makes sense of.

    Args:
        network: a `PreTrainedModel`.
        precision: of its weights; floating inputs have it too.
        given: specs that the user stated; they are taken as they are.

    Raises:
        InputsUnknownError: its main input is of a kind this module does not know.
        SamplesError: the user named an input that it does not take.
    """
    config: Any = network.config
    taken = inspect.signature(network.forward).parameters
    unknown = [spec.name for spec in given if spec.name not in taken]
    if unknown:
        raise SamplesError(
            f"{type(network).__name__} takes no '{unknown[0]}'.",
            why=f"It takes: {', '.join(list(taken)[:8])}",
            hint="Name the inputs like the network's arguments.",
        )
    specs = tuple(given) or _specs(network, config, _FLOATS.get(precision, "float32"))

    def example(sizes: Sizes, seed: int) -> Feeds:
        return _example(specs, config, sizes, seed)

    return specs, example


def _specs(network: Any, config: Any, floats: str) -> tuple[TensorSpec, ...]:
    parameters = inspect.signature(network.forward).parameters
    names = _names(network, config, parameters)
    if not names:
        raise InputsUnknownError(
            type(network).__name__, list(parameters)[:4], "Its inputs are no text, image or sound."
        )
    first, second = (_probe(config, names, sizes) for sizes in _PROBES)
    return tuple(
        TensorSpec(
            name,
            floats if first[name].dtype.kind == "f" else "int64",
            tuple(
                a if a == b else _name_of(a, name)
                for a, b in zip(first[name].shape, second[name].shape, strict=True)
            ),
        )
        for name in names
    )


def _names(network: Any, config: Any, parameters: Collection[str]) -> list[str]:
    main = getattr(network, "main_input_name", "input_ids")
    wanted = {main, "input_ids", "pixel_values", "input_features", "input_values", "bbox"}
    if "input_ids" in parameters:
        wanted.add("attention_mask")
        if _has_segments(config.to_dict()):
            wanted.add("token_type_ids")
    if getattr(config, "is_encoder_decoder", False):
        wanted.add("decoder_input_ids")
    return [name for name in parameters if name in wanted and name in _KNOWN]


def _probe(config: Any, names: Sequence[str], sizes: Mapping[str, int]) -> dict[str, Any]:
    """One array per input from optimum's generators, at these sizes."""
    from optimum.utils import input_generators
    from optimum.utils.normalized_config import NormalizedConfigManager, NormalizedTextConfig

    try:
        normalized = NormalizedConfigManager.get_normalized_config_class(config.model_type)
    except KeyError:
        normalized = NormalizedTextConfig
    arrays = {}
    for name in names:
        part = _part(config, name)
        kind = {
            "decoder_input_ids": input_generators.DummyTextInputGenerator,
            "bbox": input_generators.DummyBboxInputGenerator,
            "pixel_values": input_generators.DummyVisionInputGenerator,
            "input_values": _audio_generator(config, name),
            "input_features": _audio_generator(config, name),
        }.get(name, input_generators.DummyTextInputGenerator)
        is_text = issubclass(kind, input_generators.DummyTextInputGenerator)
        length = "decoder_sequence" if name == "decoder_input_ids" else "sequence"
        generator = kind(
            "feature-extraction",
            (normalized if part is config else NormalizedTextConfig)(part),
            batch_size=sizes["batch"],
            sequence_length=sizes[length],
            audio_sequence_length=sizes["audio"],
            feature_size=getattr(config, "num_mel_bins", 80),
            nb_max_frames=2 * getattr(config, "max_source_positions", 1500),
            height=_IMAGE_SIDE,
            width=_IMAGE_SIDE,
        )
        asked = "input_ids" if is_text and name == "decoder_input_ids" else name
        arrays[name] = generator.generate(asked, framework="np")
    return arrays


def _audio_generator(config: Any, name: str) -> Any:
    from optimum.utils import input_generators

    if name == "input_values" and hasattr(config, "max_length") and hasattr(config, "patch_size"):
        return input_generators.ASTDummyAudioInputGenerator
    if config.model_type == "speech_to_text":
        return input_generators.Speech2TextDummyAudioInputGenerator
    return input_generators.DummyAudioInputGenerator


def _part(config: Any, name: str) -> Any:
    """The sub-config that an input belongs to, as CLIP has one for text and one for images."""
    key = "vision_config" if name == "pixel_values" else "text_config"
    part = getattr(config, key, None)
    return part if part is not None and not isinstance(part, dict) else config


def _name_of(probed: int, name: str) -> str:
    found = next((key for key, size in _PROBES[0].items() if size == probed), None)
    return {"audio": "samples", None: f"{name}_length"}.get(found, found) or name


def _example(specs: Sequence[TensorSpec], config: Any, sizes: Sizes, seed: int) -> Feeds:
    import numpy as np

    from convkit.samples import draw, size_of

    sizes = dict(sizes)
    for spec in specs:
        for name in spec.dynamic:
            if name == "samples" and size_of(name, sizes) < _LEAST_AUDIO_SAMPLES:
                sizes[name] = _LEAST_AUDIO_SAMPLES + _AUDIO_STEP * size_of(name, sizes)
    text = _part(config, "input_ids")
    vocabulary = int(getattr(text, "vocab_size", None) or 2)
    segments = int(getattr(text, "type_vocab_size", None) or 1)
    ranges: dict[str, tuple[float, float]] = {
        "input_ids": (0, vocabulary - 1),
        "decoder_input_ids": (0, vocabulary - 1),
        "token_type_ids": (0, segments - 1),
        "input_values": (-1.0, 1.0),
    }
    feeds = dict(draw(specs, sizes, seed, ranges))
    padding = getattr(text, "pad_token_id", None)
    for name in ("input_ids", "decoder_input_ids"):
        if name in feeds and isinstance(padding, int) and vocabulary > 2:
            other = (padding + 1) % vocabulary
            feeds[name] = np.where(feeds[name] == padding, other, feeds[name])
    if "token_type_ids" in feeds and seed % 2 == 0:  # what formats without segments can be asked
        feeds["token_type_ids"] = np.zeros_like(feeds["token_type_ids"])
    if "attention_mask" in feeds:
        feeds["attention_mask"] = padding_mask(feeds["attention_mask"])
    if "bbox" in feeds:
        feeds["bbox"] = np.sort(feeds["bbox"], axis=-1)  # left, top <= right, bottom
    return feeds


def _has_segments(config: Mapping[str, Any]) -> bool:
    return int(config.get("type_vocab_size") or 0) >= 2


def _is_text(config: Mapping[str, Any]) -> bool:
    return "vocab_size" in config and not any(
        key in config for key in ("image_size", "vision_config", "conv_dim", "num_mel_bins")
    )


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, Mapping):
        return int(size.get("height", _IMAGE_SIDE)), int(size.get("width", _IMAGE_SIDE))
    return (int(size[0]), int(size[1])) if isinstance(size, list | tuple) else (int(size),) * 2
