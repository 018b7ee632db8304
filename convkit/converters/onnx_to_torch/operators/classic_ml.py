"""Operators of ai.onnx.ml on numbers: scaling, encoding, linear models."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

# Terms of the approximate inverse error function behind PROBIT.
# Source: S. Winitzki, A handy approximation for the error function and its inverse, 2008.
WINITZKI_A = 0.147


def as_features(x: torch.Tensor) -> torch.Tensor:
    """Numbers as float32, unless they are float64 already."""
    return x if x.dtype == torch.float64 else x.to(torch.float32)


def array_feature_extractor(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """ai.onnx.ml ArrayFeatureExtractor: columns of the last axis; a vector gives one row."""
    taken = x.index_select(-1, y.reshape(-1).to(torch.int64))
    return taken.unsqueeze(0) if x.dim() == 1 else taken


def binarizer(x: torch.Tensor, *, threshold: float = 0.0) -> torch.Tensor:
    """ai.onnx.ml Binarizer."""
    return (x > threshold).to(x.dtype)


def scaler(
    x: torch.Tensor, *, offset: list[float] | None = None, scale: list[float] | None = None
) -> torch.Tensor:
    """ai.onnx.ml Scaler: `(x - offset) * scale` in float32."""
    y = x.to(torch.float32)
    y = y if offset is None else y - torch.tensor(offset, dtype=y.dtype, device=y.device)
    return y if scale is None else y * torch.tensor(scale, dtype=y.dtype, device=y.device)


def imputer(
    x: torch.Tensor,
    *,
    imputed_value_floats: list[float] | None = None,
    imputed_value_int64s: list[int] | None = None,
    replaced_value_float: float = 0.0,
    replaced_value_int64: int = 0,
) -> torch.Tensor:
    """ai.onnx.ml Imputer: one value replaced, column by column."""
    values: list[float] = imputed_value_floats or list(imputed_value_int64s or [])
    replaced = replaced_value_float if imputed_value_floats else replaced_value_int64
    missing = torch.isnan(x) if math.isnan(replaced) else x == replaced
    return torch.where(missing, torch.tensor(values, dtype=x.dtype, device=x.device), x)


def normalizer(x: torch.Tensor, *, norm: str = "MAX") -> torch.Tensor:
    """ai.onnx.ml Normalizer of rows by their MAX, L1 or L2 norm; zero rows stay zero."""
    order = {"MAX": math.inf, "L1": 1, "L2": 2}[norm]
    y = as_features(x)
    size = torch.linalg.vector_norm(y, order, -1, keepdim=True)
    return (y / torch.clamp(size, min=1e-30)).to(torch.float32)


def one_hot_encoder(x: torch.Tensor, *, cats_int64s: list[int], zeros: int = 1) -> torch.Tensor:
    """ai.onnx.ml OneHotEncoder of integers; unknown ones are zeros."""
    categories = torch.tensor(cats_int64s, dtype=torch.int64, device=x.device)
    return (x.to(torch.int64).unsqueeze(-1) == categories).to(torch.float32)


def feature_vectorizer(
    *inputs: torch.Tensor, inputdimensions: list[int] | None = None
) -> torch.Tensor:
    """ai.onnx.ml FeatureVectorizer: columns side by side, each input cut or filled to its width."""
    columns = [x.unsqueeze(1) if x.dim() == 1 else x for x in inputs]
    widths = inputdimensions or [x.shape[1] for x in columns]
    fitted = [F.pad(x, (0, w - x.shape[1])) for x, w in zip(columns, widths, strict=True)]
    return torch.cat(fitted, 1).to(torch.float32)


def label_encoder(
    x: torch.Tensor,
    *,
    default_float: float = -0.0,
    default_int64: int = -1,
    default_tensor: torch.Tensor | None = None,
    keys_floats: list[float] | None = None,
    keys_int64s: list[int] | None = None,
    keys_tensor: torch.Tensor | None = None,
    values_floats: list[float] | None = None,
    values_int64s: list[int] | None = None,
    values_tensor: torch.Tensor | None = None,
) -> torch.Tensor:
    """ai.onnx.ml LabelEncoder from numbers to numbers; NaN is a key like any other."""
    if keys_tensor is None:
        keys_tensor = torch.tensor(keys_int64s or keys_floats, device=x.device)
    if values_tensor is not None and default_tensor is not None:
        values, default = values_tensor, default_tensor.reshape(())
    elif values_int64s:
        values = torch.tensor(values_int64s, device=x.device)
        default = torch.tensor(default_int64, device=x.device)
    else:
        values = torch.tensor(values_floats, dtype=torch.float32, device=x.device)
        default = torch.tensor(default_float, dtype=torch.float32, device=x.device)
    keys = keys_tensor.reshape(-1)
    same = x.unsqueeze(-1) == keys
    if x.dtype.is_floating_point:
        same = same | (torch.isnan(x).unsqueeze(-1) & torch.isnan(keys))
    place = same.to(torch.uint8).argmax(-1)
    return torch.where(same.any(-1), values.reshape(-1)[place], default)


def post_transformed(scores: torch.Tensor, post_transform: str) -> torch.Tensor:
    """Scores of classes, the last axis, through the transform that models name."""
    if post_transform == "LOGISTIC":
        return torch.sigmoid(scores)
    if post_transform == "SOFTMAX":
        return torch.softmax(scores, -1)
    if post_transform == "SOFTMAX_ZERO":
        # Scores of exactly zero stay zero: they are classes without a vote.
        shares = torch.exp(scores - scores.amax(-1, keepdim=True))
        shares = torch.where(torch.abs(scores) > 1e-7, shares, 0)
        total = shares.sum(-1, keepdim=True)
        return torch.where(total == 0, 0.5, shares / torch.where(total == 0, 1, total))
    if post_transform == "PROBIT":
        return math.sqrt(2) * approximate_erfinv(2 * scores - 1)
    return scores


def approximate_erfinv(x: torch.Tensor) -> torch.Tensor:
    """Winitzki's inverse error function, which ONNX Runtime uses."""
    log = torch.log((1 - x) * (1 + x))
    half = 2 / (math.pi * WINITZKI_A) + log / 2
    return torch.sign(x) * torch.sqrt(torch.sqrt(half * half - log / WINITZKI_A) - half)


def linear_regressor(
    x: torch.Tensor,
    *,
    coefficients: list[float] | None = None,
    intercepts: list[float] | None = None,
    post_transform: str = "NONE",
    targets: int = 1,
) -> torch.Tensor:
    """ai.onnx.ml LinearRegressor."""
    y = as_features(x)
    weights = torch.tensor(coefficients, dtype=y.dtype, device=y.device).reshape(targets, -1)
    bias = torch.tensor(intercepts, dtype=y.dtype, device=y.device) if intercepts else None
    return post_transformed(F.linear(y, weights, bias), post_transform).to(torch.float32)


def linear_classifier(
    x: torch.Tensor,
    *,
    classlabels_ints: list[int] | None = None,
    coefficients: list[float],
    intercepts: list[float] | None = None,
    multi_class: int = 0,
    post_transform: str = "NONE",
) -> tuple[torch.Tensor, torch.Tensor]:
    """ai.onnx.ml LinearClassifier with integer labels: labels and scores."""
    y = as_features(x)
    weights = torch.tensor(coefficients, dtype=y.dtype, device=y.device).reshape(-1, x.shape[-1])
    bias = torch.tensor(intercepts, dtype=y.dtype, device=y.device) if intercepts else None
    scores = F.linear(y, weights, bias)
    labels = torch.tensor(classlabels_ints or [1], device=x.device)
    if weights.shape[0] == 1 and labels.shape[0] == 2:
        scores = torch.cat([-scores, scores], -1)
    shown = post_transformed(scores, post_transform).to(torch.float32)
    if scores.shape[-1] > 1:
        return labels[torch.argmax(shown, -1)], shown
    threshold = 0.0 if post_transform == "NONE" else 0.5
    return torch.where(shown.reshape(-1) >= threshold, labels[0], 0), shown


OPERATORS = {
    ("ai.onnx.ml", "ArrayFeatureExtractor"): array_feature_extractor,
    ("ai.onnx.ml", "Binarizer"): binarizer,
    ("ai.onnx.ml", "FeatureVectorizer"): feature_vectorizer,
    ("ai.onnx.ml", "Imputer"): imputer,
    ("ai.onnx.ml", "LabelEncoder"): label_encoder,
    ("ai.onnx.ml", "LinearClassifier"): linear_classifier,
    ("ai.onnx.ml", "LinearRegressor"): linear_regressor,
    ("ai.onnx.ml", "Normalizer"): normalizer,
    ("ai.onnx.ml", "OneHotEncoder"): one_hot_encoder,
    ("ai.onnx.ml", "Scaler"): scaler,
}
