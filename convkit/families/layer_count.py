"""How many layers weights have, held against what their configuration says."""

from __future__ import annotations

import re
from collections.abc import Iterable

from convkit.families.config import Config

_NUMBER = re.compile(r"^(.*?\.)(\d+)\.")
"""The beginning of names of layers, and the number of one."""


def counted(names: Iterable[str], of: str) -> int:
    """Layers among tensors that are called like one of a layer; 0 where it is of none."""
    layer = _NUMBER.match(of)
    if layer is None:
        return 0
    found = (_NUMBER.match(name) for name in names)
    return max((1 + int(one[2]) for one in found if one and one[1] == layer[1]), default=0)


def difference(config: Config, names: Iterable[str], of: str) -> str:
    """A sentence where weights and configuration differ in their number of layers; else "".

    Args:
        config: of the model.
        names: of its tensors.
        of: a tensor that is missing, or that has no place.
    """
    count = counted(names, of)
    if count in (0, config.layers):
        return ""
    if config.says("num_hidden_layers"):
        said = f"config.json says {config.layers} (num_hidden_layers)"
    else:
        said = (
            "config.json does not say how many (num_hidden_layers), which stands for "
            f"{config.layers}"
        )
    return f"The weights have {count} layers; {said}."
