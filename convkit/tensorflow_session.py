"""Sessions of TensorFlow 1 with a model loaded: SavedModels of both generations, checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from convkit.errors import ModelError, UnsupportedError
from convkit.tensorflow_checkpoint import check_shards
from convkit.tensorflow_import import import_tensorflow
from convkit.tensorflow_signature import Signature, choose, saved_model

_VARIABLES = ("VarHandleOp", "VariableV2", "Variable")


class SavedModelSession:
    """A SavedModel loaded in a session, its variables restored and its tables filled.

    Args:
        path: the folder with `saved_model.pb`.
        signature: which signature is meant, see `tensorflow_signature.choose`.

    Attributes:
        signature: the signature that was chosen.
        session: the `tf.compat.v1.Session`.

    Raises:
        ModelError: the model is missing, damaged, or lacks its variables.
        UnknownNameError, UsageError: which signature is meant cannot be told.
        UnsupportedError: an input or output is sparse or ragged.
    """

    def __init__(self, path: Path, signature: str | None = None) -> None:
        with saved_model(path) as meta:
            self.signature: Signature = choose(meta.signatures, signature, path)
            has_variables = any(node.op in _VARIABLES for node in meta.graph.nodes)
            tags = list(meta.tags)
        _check_ports(self.signature, path)
        if has_variables:
            check_shards(path / "variables" / "variables")
        tf = import_tensorflow()
        graph = tf.Graph()
        self.session = tf.compat.v1.Session(graph=graph, config=cpu_config())
        with graph.as_default(), load_errors(path):
            tf.compat.v1.saved_model.load(self.session, tags, str(path))

    def __enter__(self) -> SavedModelSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.session.close()


@contextmanager
def checkpoint_session(meta: Path) -> Iterator[Any]:
    """A session with the graph of `model.ckpt.meta`, restored from `model.ckpt`.

    Raises:
        ModelError: a file of the checkpoint is missing or damaged.
    """
    prefix = meta.with_suffix("")
    check_shards(prefix)
    tf = import_tensorflow()
    graph = tf.Graph()
    with (
        tf.compat.v1.Session(graph=graph, config=cpu_config()) as session,
        graph.as_default(),
        load_errors(meta),
    ):
        saver = tf.compat.v1.train.import_meta_graph(str(meta), clear_devices=True)
        if saver is not None:
            saver.restore(session, str(prefix))
        tables = tf.compat.v1.get_collection(tf.compat.v1.GraphKeys.TABLE_INITIALIZERS)
        session.run(tables)
        yield session


def cpu_config() -> Any:
    """A session's configuration: the CPU only, the graph left as it is where that is possible."""
    tf = import_tensorflow()
    return tf.compat.v1.ConfigProto(device_count={"GPU": 0}, allow_soft_placement=True)


@contextmanager
def load_errors(path: Path) -> Iterator[None]:
    """Turns TensorFlow's errors while it loads a model into ours.

    Raises:
        ModelError: the model is damaged, or a file of it is.
        UnsupportedError: it has operators that this TensorFlow does not know.
    """
    tf = import_tensorflow()
    from google.protobuf.message import DecodeError

    try:
        yield
    except tf.errors.NotFoundError as cause:
        line = first_line(cause)
        if "Op type not registered" in line:
            raise UnsupportedError(
                f"{path} uses an operator that TensorFlow {tf.__version__} does not have.",
                why=line,
                hint="It needs the package that brings the operator, or an older TensorFlow.",
            ) from cause
        raise _damaged(path, line) from cause
    except (tf.errors.OpError, DecodeError, ValueError, KeyError, TypeError, OSError) as cause:
        raise _damaged(path, first_line(cause)) from cause


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def _damaged(path: Path, why: str) -> ModelError:
    return ModelError(
        f"TensorFlow cannot load {path}.", why=why, hint="Save it again, or check the download."
    )


def _check_ports(signature: Signature, path: Path) -> None:
    composite = [p.name for p in (*signature.inputs, *signature.outputs) if not p.tensor]
    if composite:
        raise UnsupportedError(
            f"'{composite[0]}' of signature {signature.name} in {path} is no plain tensor.",
            why="Sparse and ragged tensors have no counterpart in other formats.",
            hint="Save the model with a signature of dense tensors.",
        )
