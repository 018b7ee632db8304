"""Where caches of hubs keep models: under the hash of a commit, with links to what they hold.

Source: huggingface_hub, `docs/source/en/guides/manage-cache.md`.
"""

from __future__ import annotations

from pathlib import Path

_SNAPSHOTS = "snapshots"
_MODELS = "models--"


def cached_name(path: Path) -> str | None:
    """What a model in a cache is called on its hub, without who made it; None for any other path.

    `models--HuggingFaceTB--SmolLM2-135M/snapshots/93efa2f` is `SmolLM2-135M`.
    """
    for folder in (path, *path.parents):
        repository = folder.parent.parent
        if folder.parent.name == _SNAPSHOTS and repository.name.startswith(_MODELS):
            return repository.name.split("--")[-1]
    return None
