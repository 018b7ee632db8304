"""Builds the model of a Keras file: as Keras 3 does where it can, else from a modern configuration.

SECURITY: a configuration with code is refused without trust (`keras_config.check_no_code`), and
Keras's own safe mode stays on; classes outside of Keras are imported with trust only.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import json
import re
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from convkit.errors import ConvkitError, ModelError, UnsupportedError
from convkit.formats.keras_config import check_no_code, custom_classes
from convkit.formats.keras_file import CONFIG, KerasFile, hdf5, read_keras
from convkit.formats.keras_modern import modern, without_unknown
from convkit.formats.keras_operations import build_functional, must_be_rebuilt
from convkit.formats.keras_weights import fill, fill_old
from convkit.tensorflow_import import import_keras

_POPPED = re.compile(r"kwargs\.pop\(\s*\"(\w+)\"|\"(\w+)\" in kwargs")


def load_keras(path: Path, *, trust: bool = False) -> Any:
    """The `keras.Model` in a file, without its optimizer.

    Raises:
        ModelError: it is damaged, holds weights only, or needs a class that is not there.
        UnsafeError: it carries code, without trust.
        UnsupportedError: it uses what Keras 3 no longer has.
    """
    file = read_keras(path)
    if file.kind == "weights":
        raise weights_only(file)
    if not trust:
        check_no_code(path, file.config)
    keras = import_keras()
    _require_classes(keras, file, trust)
    with _load_errors(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if file.kind == "archive":
            return _load_archive(keras, file, trust)
        return _load_hdf5(keras, file, trust)


def weights_only(file: KerasFile) -> ModelError:
    """The error for a file that holds weights and no network."""
    count = sum(file.elements.values())
    return ModelError(
        f"{file.path} holds weights only ({count:,} numbers), not the network they belong to.",
        hint="Name what builds the network:  "
        f"convkit convert package.module:factory --weights {file.path}",
    )


def _load_archive(keras: Any, file: KerasFile, trust: bool) -> Any:
    if file.major >= 3:
        return keras.saving.load_model(file.path, compile=False, safe_mode=not trust)
    config = _modernised(keras, file)
    if must_be_rebuilt(config):
        model = build_functional(config, lambda node: _built(keras, node, trust))
        fill(model, file.path)
        return model
    with tempfile.TemporaryDirectory() as folder:
        rewritten = Path(folder, "model.keras")
        with zipfile.ZipFile(file.path) as old, zipfile.ZipFile(rewritten, "w") as new:
            for name in old.namelist():
                with old.open(name) as source, new.open(name, "w", force_zip64=True) as target:
                    if name == CONFIG:
                        target.write(json.dumps(config).encode())
                    else:
                        shutil.copyfileobj(source, target)
        return keras.saving.load_model(rewritten, compile=False, safe_mode=not trust)


def _load_hdf5(keras: Any, file: KerasFile, trust: bool) -> Any:
    config = _modernised(keras, file)
    if must_be_rebuilt(config):
        model = build_functional(config, lambda node: _built(keras, node, trust))
    else:
        model = _built(keras, config, trust)
    with hdf5(file.path) as opened:
        fill_old(model, opened["model_weights"], file.path)
    return model


def _built(keras: Any, config: dict[str, Any], trust: bool) -> Any:
    """The object of a configuration, in the older or the newer spelling."""
    if "module" in config:
        return keras.saving.deserialize_keras_object(config, safe_mode=not trust)
    from keras.src.legacy.saving.saving_options import keras_option_scope
    from keras.src.legacy.saving.saving_utils import model_from_config
    from keras.src.saving.serialization_lib import SafeModeScope

    with keras_option_scope(use_legacy_config=True), SafeModeScope(not trust):
        return model_from_config(config)


def _modernised(keras: Any, file: KerasFile) -> dict[str, Any]:
    config = modern(file.config)
    if file.major < 3:
        without_unknown(config, lambda kind, module: _arguments(keras, kind, module))
    return config


def _arguments(keras: Any, kind: str, module: str) -> frozenset[str] | None:
    """What a layer or initializer of Keras takes; None for a class that is not known here.

    Some constructors take an argument of an older version out of `**kwargs`.
    """
    owner = module.partition(".")[2] or "layers"
    place = getattr(keras, owner, None) if "." not in owner else None
    found = getattr(place, kind, None)
    if not inspect.isclass(found) or kind in ("Sequential", "Functional", "Model"):
        return None
    names: set[str] = set()
    for base in inspect.getmro(found):
        constructor = vars(base).get("__init__")
        if base.__module__.partition(".")[0] != "keras" or constructor is None:
            continue
        parameters = inspect.signature(constructor).parameters.values()
        names.update(p.name for p in parameters if p.kind is not p.VAR_KEYWORD)
        names.update(a or b for a, b in _POPPED.findall(inspect.getsource(constructor)))
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return frozenset(names)


def _require_classes(keras: Any, file: KerasFile, trust: bool) -> None:
    """Makes sure that classes outside of Keras are registered; imports their modules with trust.

    Raises:
        ModelError: one is not there.
    """
    for name, module in custom_classes(file.config):
        if keras.saving.get_registered_object(name) is None and trust and module:
            _import(module)
        if keras.saving.get_registered_object(name) is None:
            raise _missing_class(file, name, module)


def _import(module: str) -> None:
    """Imports a module of the user's, which registers its classes."""
    with contextlib.suppress(Exception, SystemExit):  # the module's own code may do anything
        importlib.import_module(module)


def _missing_class(file: KerasFile, name: str, module: str) -> ModelError:
    where = f"module {module}" if module else "a module the file does not name"
    hint = f"Build it yourself:  convkit convert package.module:factory --weights {file.path}"
    if module and _is_findable(module):
        hint += f"\nor, if you know where the model comes from, import {module}:  --trust"
    return ModelError(
        f"{file.path} needs the class {name}, which is none of Keras.",
        why=f"It was defined in {where}; the file holds its name, not its code.",
        hint=hint,
        class_name=name,
        module=module,
    )


def _is_findable(module: str) -> bool:
    """Whether the package that holds a module is there; nothing is imported."""
    try:
        return importlib.util.find_spec(module.partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False


@contextlib.contextmanager
def _load_errors(path: Path) -> Iterator[None]:
    """Turns what Keras raises while it builds a model into our errors."""
    try:
        yield
    except ConvkitError:
        raise
    except (OSError, zipfile.BadZipFile, EOFError) as cause:
        raise ModelError(
            f"{path} is damaged or truncated.", why=_line(cause), hint="Save or download it again."
        ) from cause
    except Exception as cause:  # Keras raises whatever its layers' constructors raise
        raise UnsupportedError(
            f"Keras 3 cannot build the model of {path}.",
            why=_line(cause),
            hint="Build the network yourself:  "
            f"convkit convert package.module:factory --weights {path}",
        ) from cause


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
