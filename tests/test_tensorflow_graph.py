from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
pytest.importorskip("keras", reason="Keras is not installed")

from convkit.artifact import TensorSpec
from convkit.errors import InputsUnknownError, ModelError, SamplesError, UnsupportedError
from convkit.tensorflow_graph import GraphRunner, freeze_keras, freeze_saved_model
from convkit.tensorflow_import import import_keras, import_tensorflow
from convkit.tensorflow_inlining import check_size
from convkit.tensorflow_proto import named_spec
from tests.keras_factories import Subclassed, two_layers

pytestmark = pytest.mark.filterwarnings("ignore")

tf = import_tensorflow()
keras = import_keras()

_X = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def network() -> Any:
    keras.utils.set_random_seed(0)
    return two_layers()


def test_frozen_keras_model_computes_what_the_model_computes(network: Any) -> None:
    frozen = freeze_keras(network)
    assert not [node for node in frozen.graph_def.node if "Var" in node.op or "Call" in node.op]
    (array,) = GraphRunner(frozen)({frozen.inputs[0].name: _X}).values()
    # The same kernels on both sides; only their fusing may differ.
    np.testing.assert_allclose(array, network(_X).numpy(), atol=1e-6)


def test_subclassed_model_is_frozen_for_the_inputs_that_are_given() -> None:
    model = Subclassed()
    with pytest.raises(InputsUnknownError):
        freeze_keras(model)
    frozen = freeze_keras(model, [TensorSpec("rows", "float32", ("batch", 3))])
    assert [str(port.spec) for port in frozen.outputs] == ["output: float32[batch, 2]"]
    (array,) = GraphRunner(frozen)({"rows": _X}).values()
    np.testing.assert_allclose(array, model(_X).numpy(), atol=1e-6)


def test_inputs_that_are_missing_or_do_not_fit_are_the_users_trouble(network: Any) -> None:
    frozen = freeze_keras(network)
    runner = GraphRunner(frozen)
    with pytest.raises(SamplesError, match=frozen.inputs[0].name):
        runner({"other": _X})
    with pytest.raises(SamplesError, match="refuses the inputs"):
        runner({frozen.inputs[0].name: np.zeros((2, 5), np.float32)})


def test_changed_bytes_of_variables_are_found_by_their_checksum(
    network: Any, tmp_path: Path
) -> None:
    network.export(str(tmp_path / "saved"), verbose=False)
    path = tmp_path / "saved" / "variables" / "variables.data-00000-of-00001"
    content = bytearray(path.read_bytes())
    content[:8] = bytes(8)
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        freeze_saved_model(tmp_path / "saved")
    assert caught.value.exit_code == 5


def test_weights_beyond_what_one_graph_holds_are_refused_before_any_work() -> None:
    check_size("small", (1 << 31) - 1)
    with pytest.raises(UnsupportedError, match=r"large has 2\.0 GiB of weights"):
        check_size("large", 1 << 31)


@pytest.mark.parametrize(
    ("dtype", "sizes", "shape"),
    [
        ("float32", (None, 10), ("batch", 10)),
        ("float32", (None, None, None, 3), ("batch", "height", "width", 3)),
        ("float32", (None, 3, None, None), ("batch", 3, "height", "width")),
        ("float32", (None, None, 8), ("batch", "time", 8)),
        ("int32", (None, None), ("batch", "sequence")),
        ("float32", (None, None), ("batch", "x_dim1")),
        ("float32", (2, None, None, None), (2, "x_dim1", "x_dim2", "x_dim3")),
        ("float32", (), ()),
        ("float32", None, ("...",)),
    ],
)
def test_unknown_sizes_get_names_that_say_what_they_are(
    dtype: str, sizes: Any, shape: tuple[int | str, ...]
) -> None:
    assert named_spec("x", dtype, sizes).shape == shape


def test_tensorflow_is_loaded_without_a_word() -> None:
    code = "from convkit.tensorflow_import import import_keras; import_keras()"
    environment = {key: value for key, value in os.environ.items() if key[:3] != "TF_"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_a_table_that_a_keras_model_looks_up_cannot_be_frozen() -> None:
    ids = keras.Input((1,), dtype="int64", name="ids")
    lookup = keras.layers.IntegerLookup(vocabulary=[10, 20])
    model = keras.Model(ids, keras.layers.Embedding(4, 3)(lookup(ids)))
    with pytest.raises(UnsupportedError, match="LookupTableFindV2 in "):
        freeze_keras(model)


def test_variables_that_a_signature_changes_cannot_be_frozen(tmp_path: Path) -> None:
    class Counter(tf.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.total = tf.Variable(tf.zeros(2))

        @tf.function(input_signature=[tf.TensorSpec((None, 2), tf.float32, "x")])
        def call(self, x: Any) -> dict[str, Any]:
            self.total.assign_add(tf.reduce_sum(x, 0))
            return {"y": x * self.total}

    module = Counter()
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.call)
    with pytest.raises(UnsupportedError, match=r"changes variables.*\n.*AssignAddVariableOp"):
        freeze_saved_model(tmp_path / "m")
