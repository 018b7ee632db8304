"""Keras files that a stranger made: nothing runs, nothing outside of the file is read."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="TensorFlow is not installed")

from convkit.artifact import Artifact, Opening
from convkit.errors import ConvkitError, ModelError, UnsafeError
from convkit.formats.keras import keras as keras_format
from convkit.tensorflow_import import import_keras

h5py = pytest.importorskip("h5py", reason="h5py is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")

Node = dict[str, Any]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    keras = import_keras()
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2, name="dense")])
    path = tmp_path_factory.mktemp("plain") / "model.keras"
    model.save(path)
    return path


@pytest.fixture(scope="module")
def plain_h5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    keras = import_keras()
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2, name="dense")])
    path = tmp_path_factory.mktemp("plain") / "model.h5"
    model.save(path)
    return path


def opened(path: Path) -> Any:
    described = keras_format.describe(path, Opening())
    assert keras_format.open is not None
    artifact = Artifact(path, "keras", described.precision, described.inputs)
    with keras_format.open(artifact) as runner:
        return runner(runner.example({"batch": 2}, 0))


def rewritten(source: Path, target: Path, change: Callable[[Node], None]) -> Path:
    """An archive with its configuration changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json":
                config = json.loads(content)
                change(config)
                content = json.dumps(config).encode()
            new.writestr(name, content)
    return target


def layer(config: Node) -> Node:
    found: Node = config["config"]["layers"][-1]
    return found


def as_class(module: str, name: str, registered: str | None) -> Callable[[Node], None]:
    def change(config: Node) -> None:
        layer(config).update(module=module, class_name=name, registered_name=registered)

    return change


def as_activation(module: str, name: str, registered: str | None) -> Callable[[Node], None]:
    def change(config: Node) -> None:
        layer(config)["config"]["activation"] = {
            "module": module,
            "class_name": "function",
            "config": name,
            "registered_name": registered,
        }

    return change


@pytest.mark.parametrize("registered", [None, "system", "Dense", "Custom>system"])
@pytest.mark.parametrize(
    ("module", "name"),
    [("os", "system"), ("posix", "system"), ("builtins", "eval"), ("subprocess", "Popen")],
)
def test_classes_of_other_modules_are_not_looked_up(
    module: str, name: str, registered: str | None, plain: Path, tmp_path: Path
) -> None:
    path = rewritten(plain, tmp_path / "m.keras", as_class(module, name, registered))
    with pytest.raises(ConvkitError) as caught:
        opened(path)
    assert caught.value.exit_code in (5, 9)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("builtins", "print"),
        ("keras.utils", "get_file"),
        ("keras.src.utils.file_utils", "get_file"),
        ("keras.saving", "load_model"),
        ("keras.src.utils.python_utils", "func_load"),
    ],
)
def test_functions_that_are_no_mathematics_are_not_called(
    module: str, name: str, plain: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = rewritten(plain, tmp_path / "m.keras", as_activation(module, name, name))
    with pytest.raises(ConvkitError) as caught:
        opened(path)
    assert caught.value.exit_code in (5, 9)


@pytest.mark.parametrize("wrapper", ["TimeDistributed", "Bidirectional", "Sequential"])
@pytest.mark.parametrize(
    ("module", "name"),
    [("keras.layers", "Lambda"), ("keras", "layers.Lambda"), ("keras.src.layers.core", "x>Lambda")],
)
def test_code_inside_of_wrappers_is_found(
    wrapper: str, module: str, name: str, plain: Path, tmp_path: Path
) -> None:
    inner: Node = {
        "module": module,
        "class_name": name,
        "registered_name": None,
        "config": {
            "name": "inner",
            "function": {"class_name": "__lambda__", "config": {"value": "4wEAAAA="}},
        },
    }

    def change(config: Node) -> None:
        layer(config).update(class_name=wrapper, config={"name": "outer", "layer": inner})

    path = rewritten(plain, tmp_path / "m.keras", change)
    with pytest.raises(UnsafeError, match="carries Python code"):
        keras_format.describe(path, Opening())


def test_a_vocabulary_outside_of_the_file_is_not_read(plain: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("a\nb\n")

    def change(config: Node) -> None:
        layer(config).update(
            module="keras.layers",
            class_name="StringLookup",
            config={"name": "lookup", "vocabulary": str(secret)},
        )

    path = rewritten(plain, tmp_path / "m.keras", change)
    with pytest.raises(UnsafeError, match=r"secret\.txt"):
        keras_format.describe(path, Opening())


def linked_outside(file: Any, other: Path) -> None:
    group = file["model_weights/dense"]
    name = next(iter(group))
    del group[name]
    group[name] = h5py.ExternalLink(str(other), "/secret")


def stored_outside(file: Any, other: Path) -> None:
    dataset = file["model_weights/dense"].visititems(
        lambda name, item: name if isinstance(item, h5py.Dataset) and item.ndim == 2 else None
    )
    group = file["model_weights/dense"]
    del group[dataset]
    group.create_dataset(dataset, (3, 2), "float32", external=[(str(other), 0, 24)])


def virtual(file: Any, other: Path) -> None:
    dataset = file["model_weights/dense"].visititems(
        lambda name, item: name if isinstance(item, h5py.Dataset) and item.ndim == 2 else None
    )
    group = file["model_weights/dense"]
    del group[dataset]
    layout = h5py.VirtualLayout((3, 2), "float32")
    layout[:] = h5py.VirtualSource(str(other), "secret", (3, 2), "float32")
    group.create_virtual_dataset(dataset, layout)


def root_outside(file: Any, other: Path) -> None:
    del file["model_weights"]
    file["model_weights"] = h5py.ExternalLink(str(other), "/")


@pytest.mark.parametrize("attack", [linked_outside, stored_outside, virtual, root_outside])
def test_weights_in_other_files_are_not_read(
    attack: Callable[[Any, Path], None], plain_h5: Path, tmp_path: Path
) -> None:
    other = tmp_path / "outside" / "secret.h5"
    other.parent.mkdir()
    with h5py.File(other, "w") as file:
        file["secret"] = np.full((3, 2), 7, np.float32)
    path = tmp_path / "model.h5"
    path.write_bytes(plain_h5.read_bytes())
    with h5py.File(path, "r+") as file:
        attack(file, other)
    with pytest.raises(UnsafeError, match="from another file") as caught:
        keras_format.describe(path, Opening())
    assert caught.value.exit_code == 9
    with pytest.raises(UnsafeError, match="from another file"):
        opened(path)


def test_weights_in_other_files_are_not_read_from_an_archive(plain: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(plain) as archive:
        archive.extractall(tmp_path)
    with h5py.File(tmp_path / "model.weights.h5", "r+") as file:
        file["elsewhere"] = h5py.ExternalLink("/etc/secret.h5", "/")
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("config.json", "metadata.json", "model.weights.h5"):
            archive.write(tmp_path / name, name)
    with pytest.raises(UnsafeError, match="from another file"):
        keras_format.describe(path, Opening())


@pytest.mark.parametrize("name", ["../../escaped.txt", "/tmp/escaped.txt", "assets/../../../x"])
def test_archive_members_outside_of_the_archive_are_not_written(
    name: str, plain: Path, tmp_path: Path
) -> None:
    path = tmp_path / "inner" / "deep" / "model.keras"
    path.parent.mkdir(parents=True)
    path.write_bytes(plain.read_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"text")
    with suppress(ModelError, UnsafeError):
        opened(path)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]
    assert not Path("/tmp/escaped.txt").exists()


def test_a_bomb_is_refused(plain: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    path.write_bytes(plain.read_bytes())
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("assets/zeros", bytes(50 << 20))
    with pytest.raises(ModelError, match="out of proportion"):
        keras_format.describe(path, Opening())
