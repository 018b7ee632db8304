"""Layers that see only the last tokens: which do, and what is said of those that cannot be told."""

from __future__ import annotations

from convkit.errors import UnsupportedError
from convkit.families.config import Config

FULL, SLIDING = "full_attention", "sliding_attention"


def window_of(config: Config) -> int | None:
    """Tokens that a sliding layer sees; None where no layer slides."""
    if config.get("use_sliding_window") is False:
        return None
    return int(config.get("sliding_window") or 0) or None


def notes_of(config: Config) -> tuple[str, ...]:
    """What is to be said where llama.cpp lets every layer see everything.

    Source: llama.cpp, `src/models/llama.cpp`, which knows no window, and `src/models/phi3.cpp`,
    which reads one and leaves it off.
    """
    window = window_of(config)
    if window is None or window >= config.context:
        return ()
    return (
        f"in transformers each token sees the last {window}; llama.cpp has no such window for this "
        f"architecture, so that texts of more than {window} tokens get other results",
    )


def check_none(config: Config) -> None:
    """Sees to it that no layer slides within the context.

    Raises:
        UnsupportedError: one does.
    """
    window = window_of(config)
    if window is None or window >= config.context or SLIDING not in _kinds(config):
        return
    raise UnsupportedError(
        f"Layers of this model see the last {window} tokens only.",
        why=f"llama.cpp has no window for {config.model_type}; the result would be another model.",
        hint='Where the texts are shorter, put "use_sliding_window": false into config.json.',
        option="use_sliding_window",
    )


def _kinds(config: Config) -> list[str]:
    """The kind of each layer.

    Source: transformers, `configuration_qwen2.py`, `configuration_qwen2_moe.py`: of Qwen 2 and 3
    the last layers slide, of Qwen 2's mixtures every other one of the first, of the others all.
    """
    if config.get("layer_types"):
        return list(config["layer_types"])
    count, bound = config.layers, int(config.get("max_window_layers") or 0)
    if config.model_type in ("qwen2", "qwen3"):
        return [SLIDING if i >= bound else FULL for i in range(count)]
    if config.model_type == "qwen2_moe":
        return [FULL if i % 2 or i >= bound else SLIDING for i in range(count)]
    return [SLIDING] * count


def period_of(config: Config, usual: int) -> int:
    """Every how many-th layer sees everything while the others slide; 1 where none slides.

    Args:
        config: of the model.
        usual: the period where the configuration does not say.

    Raises:
        UnsupportedError: they follow in no such order.
    """
    period = int(config.get("sliding_window_pattern") or usual)
    kinds = config.get("layer_types") or kinds_of(period, config.layers)
    for period in range(1, config.layers + 2):
        if kinds_of(period, config.layers) == list(kinds):
            return usual if kinds_of(usual, config.layers) == list(kinds) else period
    raise UnsupportedError(
        f"llama.cpp cannot tell which layers of this {config.model_type} slide.",
        why=f"It knows only every n-th layer that does not; layer_types is {list(kinds)}.",
        option="layer_types",
    )


def kinds_of(period: int, layers: int) -> list[str]:
    """`layer_types` where every `period`-th layer sees everything."""
    return [SLIDING if (i + 1) % period else FULL for i in range(layers)]
