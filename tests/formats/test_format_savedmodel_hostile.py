"""TensorFlow models that a stranger made: what would run is seen whole, however it is written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tensorflow", reason="TensorFlow is not installed")

from convkit.artifact import Opening
from convkit.errors import ConvkitError, ModelError, UnsafeError
from convkit.formats.savedmodel import savedmodel
from convkit.formats.tf_frozen import tf_frozen
from convkit.protobuf import encode_bytes
from convkit.tensorflow_import import import_tensorflow
from tests.tf1_models import tf1_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")

tf = import_tensorflow()

WRITER = "evil/write"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    module = tf.Module()
    module.weight = tf.Variable([[1.0], [2.0]])
    module.f = tf.function(
        lambda x: x @ module.weight, input_signature=[tf.TensorSpec((None, 2), name="x")]
    )
    tf.saved_model.save(module, str(folder), signatures=module.f)
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def parsed(folder: Path) -> Any:
    from tensorflow.core.protobuf import saved_model_pb2

    return saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())


def written(folder: Path, *parts: bytes) -> Path:
    (folder / "saved_model.pb").write_bytes(b"".join(parts))
    return folder


def add_writer(graph: Any, target: Path) -> None:
    """Nodes that write a file."""
    for name, value in (("evil/name", str(target).encode()), ("evil/text", b"x")):
        node = graph.node.add(name=name, op="Const")
        node.attr["dtype"].type = tf.string.as_datatype_enum
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
    graph.node.add(name=WRITER, op="WriteFile", input=["evil/name", "evil/text"])


def described(folder: Path) -> Any:
    return savedmodel.describe(folder, Opening())


def refused(folder: Path) -> None:
    with pytest.raises(ConvkitError) as caught:
        described(folder)
    assert caught.value.exit_code in (5, 9)


def evil_meta(folder: Path, target: Path) -> Any:
    """A meta graph whose restoring writes a file."""
    meta = parsed(folder).meta_graphs[0]
    add_writer(meta.graph_def, target)
    restore = meta.saver_def.restore_op_name.partition(":")[0]
    node = next(n for n in meta.graph_def.node if n.name == restore)
    node.input.append(f"^{WRITER}")
    return meta


def as_field(message: Any) -> bytes:
    return encode_bytes(2, message.SerializeToString())


def test_a_meta_graph_with_its_tag_twice_is_the_one_that_tensorflow_loads(
    copied: Path, tmp_path: Path
) -> None:
    good, evil = parsed(copied).meta_graphs[0], evil_meta(copied, tmp_path / "out")
    evil.meta_info_def.tags.append("serve")
    with pytest.raises(UnsafeError, match=WRITER):
        described(written(copied, as_field(evil), as_field(good)))


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_meta_graph_in_two_pieces_is_refused(number: int, copied: Path, tmp_path: Path) -> None:
    evil = evil_meta(copied, tmp_path / "out").SerializeToString()
    written(copied, encode_bytes(2, evil + encode_bytes(number, b"")))
    with pytest.raises(ModelError, match="comes twice"):
        described(copied)


def test_a_function_in_two_pieces_is_refused(copied: Path) -> None:
    meta = parsed(copied).meta_graphs[0]
    function = meta.graph_def.library.function[0].SerializeToString() + encode_bytes(1, b"")
    graph = encode_bytes(2, encode_bytes(1, function))
    del meta.graph_def.library.function[0]
    written(copied, encode_bytes(2, meta.SerializeToString()[:0] + _with_graph(meta, graph)))
    with pytest.raises(ModelError, match="comes twice"):
        described(copied)


def _with_graph(meta: Any, more: bytes) -> bytes:
    """A meta graph with more bytes at the end of its graph."""
    graph = meta.graph_def.SerializeToString() + more
    meta.ClearField("graph_def")
    encoded: bytes = meta.SerializeToString()
    return encoded + encode_bytes(2, graph)


def test_a_called_function_with_two_names_is_refused(copied: Path) -> None:
    meta = parsed(copied).meta_graphs[0]
    names = [f.signature.name for f in meta.graph_def.library.function]
    twice = b"".join(encode_bytes(1, name.encode()) for name in names[:2])
    node = encode_bytes(1, b"evil") + encode_bytes(2, b"PartitionedCall")
    attribute = encode_bytes(1, b"f") + encode_bytes(2, encode_bytes(10, twice))
    node += encode_bytes(5, attribute)
    out = meta.signature_def["serving_default"].outputs
    out[next(iter(out))].name = "evil:0"
    written(copied, encode_bytes(2, _with_graph(meta, encode_bytes(1, node))))
    with pytest.raises(ModelError, match="comes twice"):
        described(copied)


def test_a_function_that_may_stand_in_for_another_is_looked_at(
    copied: Path, tmp_path: Path
) -> None:
    model = parsed(copied)
    function = model.meta_graphs[0].graph_def.library.function.add()
    function.signature.name = "spare"
    function.attr["api_implements"].s = b"something"
    function.node_def.add(name=WRITER, op="WriteFile")
    with pytest.raises(UnsafeError, match=WRITER):
        described(written(copied, model.SerializeToString()))


@pytest.mark.parametrize(
    "operator",
    [
        "PyFunc", "EagerPyFunc", "ReadFile", "WriteFile", "Save", "SaveV2", "RestoreV2",
        "LoadAndRemapMatrix", "GenerateVocabRemapping", "DatasetToTFRecord", "RecordInput",
        "ExperimentalDatasetToTFRecord", "MatchingFilesDataset", "DataServiceDatasetV4",
        "RpcServer", "RpcClient", "DumpTensor", "CalibrationStatisticsSaver", "DistributedSave",
        "InitializeTableFromTextFileV2", "ExperimentalSqlDataset", "LMDBDataset",
        "SnapshotDatasetV2", "RegisterDatasetV2", "FileSystemSetConfiguration", "DebugIdentityV3",
        "XlaCustomCallV2", "TextLineReaderV2",
    ],
)  # fmt: skip
def test_operators_that_touch_files_or_the_network_are_refused(operator: str, copied: Path) -> None:
    model = parsed(copied)
    graph = model.meta_graphs[0].graph_def
    graph.node.add(name="evil", op=operator)
    out = model.meta_graphs[0].signature_def["serving_default"].outputs
    node = out[next(iter(out))].name.partition(":")[0]
    next(n for n in graph.node if n.name == node).input.append("^evil")
    with pytest.raises(UnsafeError, match="its node evil is a") as caught:
        described(written(copied, model.SerializeToString()))
    assert caught.value.exit_code == 9


def words(folder: Path) -> Path:
    """A model that looks words up in a table from a file."""
    vocabulary = folder / "words.txt"
    vocabulary.write_text("a\nb\n")
    module = tf.Module()
    module.table = tf.lookup.StaticHashTable(
        tf.lookup.TextFileInitializer(
            str(vocabulary), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE,
            tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER,
        ),
        -1,
    )  # fmt: skip
    module.f = tf.function(
        lambda x: module.table.lookup(x), input_signature=[tf.TensorSpec((None,), tf.string)]
    )
    tf.saved_model.save(module, str(folder / "words"), signatures=module.f)
    vocabulary.unlink()
    return folder / "words"


def test_a_vocabulary_in_the_models_own_folder_is_no_danger(tmp_path: Path) -> None:
    assert described(words(tmp_path)).inputs


def test_a_vocabulary_outside_of_the_models_folder_is_refused(tmp_path: Path) -> None:
    folder = words(tmp_path)
    model = parsed(folder)
    model.meta_graphs[0].asset_file_def[0].filename = "../../../etc/passwd"
    with pytest.raises(UnsafeError, match="outside of its folder"):
        described(written(folder, model.SerializeToString()))
    del model.meta_graphs[0].asset_file_def[:]
    with pytest.raises(UnsafeError, match="InitializeTableFromTextFile"):
        described(written(folder, model.SerializeToString()))


def test_what_a_checkpoint_sets_up_is_looked_at(tmp_path: Path) -> None:
    from tensorflow.core.protobuf import meta_graph_pb2

    path = tf1_checkpoint(tmp_path)
    meta = meta_graph_pb2.MetaGraphDef.FromString(path.read_bytes())
    add_writer(meta.graph_def, tmp_path / "out")
    meta.collection_def["table_initializer"].node_list.value.append(WRITER)
    path.write_bytes(meta.SerializeToString())
    opening = Opening(output_names=("prediction",))
    with pytest.raises(UnsafeError, match=WRITER):
        tf_frozen.describe(path, opening)
    assert not (tmp_path / "out").exists()


def linked(path: Path, target: Path) -> None:
    target.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(target)


@pytest.mark.parametrize("name", ["variables/variables.data-00000-of-00001", "saved_model.pb"])
def test_a_file_that_is_a_link_out_of_the_folder_is_refused(
    name: str, copied: Path, tmp_path: Path
) -> None:
    linked(copied / name, tmp_path / "elsewhere")
    with pytest.raises(UnsafeError, match="link"):
        described(copied)


def test_links_of_a_hubs_cache_are_followed(copied: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "1"
    snapshot.parent.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    copied.rename(snapshot)
    linked(snapshot / "saved_model.pb", tmp_path / "models--a--b" / "blobs" / "abc")
    assert described(snapshot).inputs
