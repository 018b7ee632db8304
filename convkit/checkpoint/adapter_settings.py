"""What `adapter_config.json` of a PEFT adapter says, and which adapters can be merged."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convkit.errors import ModelError, UnsupportedError

_CONFIG = "adapter_config.json"
_REFUSED = {
    "use_dora": "DoRA scales rows by learned magnitudes",
    "use_qalora": "QALoRA pools the inputs",
    "alora_invocation_tokens": "aLoRA is active behind certain tokens only",
    "layer_replication": "it repeats layers of the model",
    "trainable_token_indices": "it changes single rows of the embeddings",
    "target_parameters": "it changes parameters that are no layers (experts)",
    "use_bdlora": "BD-LoRA has block-diagonal factors",
    "arrow_config": "Arrow chooses among several adapters for each token",
    "kasa_config": "KaSA has a diagonal between its factors",
    "monteclora_config": "MonteCLoRA draws random weights",
    "ensure_weight_tying": "it ties adapters of input and output embeddings",
    "lora_bias": "its factors have biases",
}
"""Settings that make an adapter more than W + s B A. Source: `peft.tuners.lora.config.LoraConfig`.
"""
_CHANGES_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""Initializations that took something off the model's own weights."""


@dataclass(frozen=True)
class AdapterSettings:
    """The settings of a low-rank adapter (LoRA).

    Attributes:
        folder: where it lies.
        base: the model it was trained on, as PEFT names it; "" where it does not say.
        settings: all of them.
    """

    folder: Path
    base: str
    settings: Mapping[str, Any]

    @property
    def is_turned(self) -> bool:
        """Whether square weights are to be taken as (inputs, outputs)."""
        return bool(self.settings.get("fan_in_fan_out"))

    def scaling(self, module: str, rank: int) -> float:
        """What B A is multiplied with in a module.

        Source: `peft.tuners.lora.layer.LoraLayer.update_layer` (alpha / r, or alpha / sqrt(r)), and
        `peft.utils.other.get_pattern_key` for patterns.

        Raises:
            ModelError: the settings and the rank of the factors contradict each other.
        """
        stated = self._for_module("rank_pattern", "r", module)
        alpha = self._for_module("alpha_pattern", "lora_alpha", module)
        if stated != rank:
            raise ModelError(
                f"The adapter's factors for '{module}' have rank {rank}.",
                why=f"{self.folder / _CONFIG} says {stated}.",
            )
        return float(alpha) / (math.sqrt(rank) if self.settings.get("use_rslora") else rank)

    def _for_module(self, patterns: str, otherwise: str, module: str) -> Any:
        value = self.settings.get(otherwise)
        try:
            for pattern, special in (self.settings.get(patterns) or {}).items():
                if re.match(rf"(.*\.)?({pattern})$", module):
                    value = special
                    break
        except (re.error, AttributeError) as cause:
            raise self._damaged(f"{patterns}: {cause}") from cause
        if not isinstance(value, int | float):
            raise self._damaged(f"{otherwise} is {value!r}.")
        return value

    def _damaged(self, why: str) -> ModelError:
        return ModelError(f"{self.folder / _CONFIG} is damaged.", why=why)


def read_adapter_settings(folder: Path) -> AdapterSettings:
    """The settings of an adapter that can be merged.

    Raises:
        ModelError: there is no adapter, or its configuration is damaged.
        UnsupportedError: it is of another kind; says which.
    """
    file = folder / _CONFIG
    if not file.is_file():
        raise ModelError(
            f"{folder} is no PEFT adapter.",
            why=f"It has no {_CONFIG}." if folder.is_dir() else "There is no such folder.",
        )
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as cause:
        raise ModelError(f"{file} is not valid JSON.", why=str(cause)) from cause
    if not isinstance(settings, dict):
        raise ModelError(f"{file} is no adapter's configuration.")
    _refuse_other_kinds(folder, settings)
    return AdapterSettings(folder, str(settings.get("base_model_name_or_path") or ""), settings)


def _refuse_other_kinds(folder: Path, settings: Mapping[str, Any]) -> None:
    kind = str(settings.get("peft_type"))
    named = next((key for key in _REFUSED if settings.get(key)), None)
    start = str(settings.get("init_lora_weights") or "")
    hint = "Merge it with peft: PeftModel.from_pretrained(model, adapter).merge_and_unload()"
    if kind != "LORA":
        raise UnsupportedError(
            f"{folder} is an adapter of type {kind}.", why="LORA is what can be merged.", hint=hint
        )
    if named:
        raise UnsupportedError(
            f"{folder} is more than a low-rank adapter ({named}): {_REFUSED[named]}.", hint=hint
        )
    if start.startswith(_CHANGES_BASE):
        raise UnsupportedError(
            f"{folder} belongs to changed base weights (init_lora_weights is '{start}').",
            why="Added to the model's own weights it would give another model.",
            hint="Save it with peft's save_pretrained(..., path_initial_model_for_weight_"
            "conversion=...), which makes it an ordinary one.",
        )
