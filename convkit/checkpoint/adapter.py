"""Merges a PEFT low-rank adapter (LoRA) into a checkpoint while it is read: W + s B A, by rows.

Source: `peft.tuners.lora.layer` (`Linear` and `Embedding`: `get_delta_weight`) and
`peft.utils.save_and_load.get_peft_model_state_dict` for the names in its files.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from convkit.checkpoint.adapter_settings import AdapterSettings, read_adapter_settings
from convkit.checkpoint.dequantized import is_turned
from convkit.checkpoint.folder_files import architecture
from convkit.checkpoint.rows import Array, Computed, Rows
from convkit.checkpoint.shard import open_shard
from convkit.checkpoint.stored import FLOAT_DTYPES, RecentArrays, Stored
from convkit.errors import ModelError, UnsupportedError
from convkit.safetensors_file import StoredTensor

HEAD = "lm_head.weight"
_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "shared")
_WITH_HEAD = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(.+)\.lora_(embedding_)?([AB])(\.weight)?")
_WRAPPERS = re.compile(r"\.(base_layer|modules_to_save(\.default)?)(?=\.)")


@dataclass
class _Adapter:
    """What the files of an adapter hold: factors by module, and whole tensors by name.

    Where modules are named as the model's, `spelled` has the adapter's own names of them.
    """

    settings: AdapterSettings
    factors: dict[str, dict[str, StoredTensor]] = field(default_factory=dict)
    whole: dict[str, StoredTensor] = field(default_factory=dict)
    spelled: dict[str, str] = field(default_factory=dict)

    def changes(self, name: str) -> bool:
        """Whether a tensor of the model becomes another one."""
        return name in self.whole or name.removesuffix(".weight") in self.factors


class _AdaptedRows(Computed):
    """A matrix with a low-rank product added.

    Args:
        rows: the matrix: (outputs, inputs), turned around (inputs, outputs).
        factors: `A` (rank, inputs) and `B` (outputs, rank).
        scaling: what their product is multiplied with.
        is_turned: whether the matrix is turned around, as embeddings are.
        recent: holds the factors.
    """

    def __init__(
        self,
        rows: Rows,
        factors: Mapping[str, StoredTensor],
        scaling: float,
        is_turned: bool,
        recent: RecentArrays,
    ) -> None:
        self._rows, self._factors, self._recent = rows, factors, recent
        self._scaling, self._is_turned = np.float32(scaling), is_turned
        self.shape = rows.shape

    def read(self, begin: int, end: int) -> Array:
        """Rows in float32."""
        a, b = self._recent.get(self, self._read_factors)
        product: Array = a[:, begin:end].T @ b.T if self._is_turned else b[begin:end] @ a
        product *= self._scaling
        product += self._rows.read(begin, end)
        return product

    def _read_factors(self) -> tuple[Array, ...]:
        return tuple(Stored(self._factors[side]).array() for side in "AB")


def merge_adapter(
    folder: Path,
    tensors: dict[str, Rows],
    config: dict[str, Any],
    opened: ExitStack,
    recent: RecentArrays,
    *,
    model: Path,
    trust: bool = False,
) -> list[str]:
    """Puts merged tensors in place of the model's; gives sentences for the report.

    Args:
        folder: of the adapter.
        tensors: the model's, changed in place.
        config: the model's configuration, changed in place where the adapter unties or resizes.
        opened: takes what has to be closed.
        recent: holds factors.
        model: the model's folder.
        trust: the user vouches for code in the adapter.

    Raises:
        ModelError: the adapter does not fit the model, or its files are damaged.
        UnsupportedError: it is of a kind that cannot be merged.
    """
    adapter = _named_as(_open(folder, opened, trust), tensors)
    notes = [_summary(adapter), *_doubts(adapter.settings, model, config)]
    is_untied = _untie(adapter, tensors, config)
    for name, tensor in adapter.whole.items():
        tensors[name] = _replaced(name, tensor, tensors[name], config)
    if is_untied and _is_still_tied(adapter):
        del tensors[HEAD]
        config["tie_word_embeddings"] = True
    elif is_untied:
        notes.append(
            "input and output embeddings were tied; the adapter changes one of them, so that the "
            f"result has both ({HEAD})"
        )
    for module, factors in adapter.factors.items():
        name = f"{module}.weight"
        tensors[name] = _adapted(module, factors, tensors[name], adapter, config, recent)
    return notes


def _open(folder: Path, opened: ExitStack, trust: bool) -> _Adapter:
    adapter = _Adapter(read_adapter_settings(folder))
    file = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise ModelError(
            f"{folder} has no weights.", why=f"None of {', '.join(_WEIGHTS)} is there."
        )
    shard = opened.enter_context(open_shard(file, trust=trust))
    named = {tensor.name: tensor for tensor in shard.tensors}
    for key, tensor in {**named, **{a: named[kept] for a, kept in shard.aliases.items()}}.items():
        found = _FACTOR.fullmatch(key.removeprefix(_PREFIX))
        if found:
            side = f"embedding_{found[3]}" if found[2] else found[3]
            adapter.factors.setdefault(found[1], {})[side] = tensor
        elif ".lora_" in key:
            raise UnsupportedError(f"{file} holds '{key}', which is no factor of a LoRA adapter.")
        else:
            adapter.whole[_WRAPPERS.sub("", key.removeprefix(_PREFIX))] = tensor
    for module, factors in adapter.factors.items():
        if len(factors) != 2 or len({side[-1] for side in factors}) != 2:
            raise ModelError(f"{file} lacks one of the two factors for '{module}'.")
    return adapter


def _named_as(adapter: _Adapter, tensors: Mapping[str, Rows]) -> _Adapter:
    """The adapter with its modules named as the model's; output embeddings may be tied."""
    known = {*tensors, HEAD}

    def own(name: str) -> str:
        found = _spelled(name, known)
        if found is None:
            raise _unknown(adapter.settings, name, tensors)
        return found

    modules = {
        module: own(f"{module}.weight").removesuffix(".weight") for module in adapter.factors
    }
    return _Adapter(
        adapter.settings,
        {modules[module]: pair for module, pair in adapter.factors.items()},
        {own(name): tensor for name, tensor in adapter.whole.items()},
        {here: there for there, here in modules.items()},
    )


def _spelled(name: str, known: set[str]) -> str | None:
    """The model's name for a tensor: the class's prefix (`model.`) may be there or not."""
    bare = name.partition(".")[2]
    prefixes = {each.partition(".")[0] for each in known}
    longer = [f"{prefix}.{name}" for prefix in prefixes if f"{prefix}.{name}" in known]
    if name in known:
        return name
    if bare in known:
        return bare
    return longer[0] if len(longer) == 1 else None


def _unknown(settings: AdapterSettings, name: str, tensors: Mapping[str, Rows]) -> ModelError:
    near = difflib.get_close_matches(name, tensors, n=1, cutoff=0.0)
    trained = f" It was trained on {settings.base}." if settings.base else ""
    return ModelError(
        f"The adapter changes '{name}', which the model does not have.",
        why=f"Nearest is '{near[0]}'." if near else "The model has no tensors.",
        hint=f"Does the adapter belong to this model?{trained}",
    )


def _summary(adapter: _Adapter) -> str:
    sides = (side for pair in adapter.factors.values() for side in pair.items())
    ranks = sorted({tensor.shape[0] for side, tensor in sides if side.endswith("A")})
    words = f"adapter {adapter.settings.folder.name} merged: {len(adapter.factors)} matrices"
    if ranks:
        words += f" of rank {' and '.join(map(str, ranks))}"
    if adapter.whole:
        words += f", {len(adapter.whole)} tensors replaced"
    return words


def _doubts(settings: AdapterSettings, model: Path, config: Mapping[str, Any]) -> list[str]:
    """A word where the adapter names a model that, by its names, may not be this one."""
    names = {_last(str(model.resolve())), _last(str(config.get("_name_or_path") or ""))}
    if not settings.base or _last(settings.base) in names:
        return []
    return [f"the adapter was trained on {settings.base}; nothing says that {model.name} is that"]


def _last(name: str) -> str:
    """The last part of a path or of a hub's name."""
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2].lower()


def _embedding_name(tensors: Mapping[str, Any]) -> str | None:
    return next(
        (
            name
            for name in tensors
            if name.endswith(".weight") and name.rsplit(".", 2)[-2] in _EMBEDDINGS
        ),
        None,
    )


def _untie(adapter: _Adapter, tensors: dict[str, Rows], config: dict[str, Any]) -> bool:
    """Gives a model with tied embeddings two of them, where the adapter makes them differ."""
    name = _embedding_name(tensors)
    stated = config.get("tie_word_embeddings")
    is_tied = stated if stated is not None else HEAD not in tensors
    kind = architecture(config)
    has_head = HEAD in tensors or adapter.changes(HEAD) or kind.endswith(_WITH_HEAD)
    if not is_tied or name is None or not (adapter.changes(HEAD) or adapter.changes(name)):
        if adapter.changes(HEAD) and HEAD not in tensors:
            raise _unknown(adapter.settings, HEAD, tensors)
        return False
    if kind.endswith(("ForMaskedLM", "ForPreTraining")) or config.get("is_encoder_decoder"):
        raise UnsupportedError(
            f"The adapter changes the embeddings of {kind}, which are tied to its head.",
            hint="Merge it with peft: PeftModel.from_pretrained(model, adapter).merge_and_unload()",
        )
    if not has_head:
        return False
    tensors[HEAD] = tensors[name]
    config["tie_word_embeddings"] = False
    return True


def _replaced(name: str, tensor: StoredTensor, own: Rows, config: dict[str, Any]) -> Rows:
    """A tensor that the adapter brings whole; embeddings may have more rows than before."""
    if tensor.dtype not in FLOAT_DTYPES:
        raise UnsupportedError(f"The adapter holds '{name}' as {tensor.dtype}.")
    rows = Stored(tensor)
    if rows.shape != own.shape:
        is_embedding = name == HEAD or _embedding_name({name: own}) is not None
        if not is_embedding or rows.shape[1:] != own.shape[1:]:
            raise _misfit(name, rows.shape, own.shape)
        config["vocab_size"] = rows.shape[0]
    return rows


def _is_still_tied(adapter: _Adapter) -> bool:
    """Whether the adapter brings both embeddings whole, and they are equal; read in pieces."""
    name = _embedding_name(adapter.whole) or ""
    one, other = adapter.whole.get(HEAD), adapter.whole.get(name)
    if one is None or other is None or (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    if any(each.removesuffix(".weight") in adapter.factors for each in (HEAD, name)):
        return False
    ends = [*range(0, one.byte_count, 1 << 22), one.byte_count]
    return all(one.read(*span) == other.read(*span) for span in pairwise(ends))


def _adapted(
    module: str,
    factors: Mapping[str, StoredTensor],
    rows: Rows,
    adapter: _Adapter,
    config: Mapping[str, Any],
    recent: RecentArrays,
) -> Rows:
    name = f"{module}.weight"
    is_embedding = "embedding_A" in factors
    a, b = (factors[f"embedding_{side}" if is_embedding else side] for side in "AB")
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        raise UnsupportedError(
            f"The adapter's factors for '{module}' are no matrices that fit each other.",
            why=f"A is {list(a.shape)}, B {list(b.shape)}; convolutions are not merged.",
        )
    if a.dtype not in FLOAT_DTYPES or b.dtype not in FLOAT_DTYPES:
        raise UnsupportedError(f"The adapter's factors for '{module}' are {a.dtype}, {b.dtype}.")
    straight, turned = (b.shape[0], a.shape[1]), (a.shape[1], b.shape[0])
    lies_turned = is_embedding or _is_turned(name, rows, straight, adapter, config)
    if rows.shape != (turned if lies_turned else straight):
        raise _misfit(name, straight, rows.shape)
    scaling = adapter.settings.scaling(adapter.spelled[module], a.shape[0])
    return _AdaptedRows(rows, {"A": a, "B": b}, scaling, lies_turned, recent)


def _is_turned(
    name: str,
    rows: Rows,
    straight: tuple[int, ...],
    adapter: _Adapter,
    config: Mapping[str, Any],
) -> bool:
    """Whether a weight is (inputs, outputs).

    Shapes tell, but not of squares. PEFT's setting is one for all layers and does not hold for the
    linear ones among them, so that it counts for classes only that are not known.
    """
    if rows.shape == straight == straight[::-1] and "auto_map" in config:
        return adapter.settings.is_turned
    return is_turned(name, str(config.get("model_type"))) or rows.shape != straight


def _misfit(name: str, shape: tuple[int, ...], own: tuple[int, ...]) -> ModelError:
    return ModelError(
        f"The adapter does not fit '{name}': it is for {' x '.join(map(str, shape))}.",
        why=f"In the model it is {' x '.join(map(str, own))}.",
        hint="Does the adapter belong to this model?",
    )
