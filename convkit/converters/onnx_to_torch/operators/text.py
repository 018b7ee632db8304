"""TfIdfVectorizer of integers: how often each known n-gram occurs."""

from __future__ import annotations

import torch


def tfidf_vectorizer(
    x: torch.Tensor,
    *,
    max_gram_length: int,
    max_skip_count: int,
    min_gram_length: int,
    mode: str,
    ngram_counts: list[int],
    ngram_indexes: list[int],
    pool_int64s: list[int],
    weights: list[float] | None = None,
) -> torch.Tensor:
    """ONNX TfIdfVectorizer of (tokens) or (rows, tokens); skipped tokens lie between the grams'."""
    rows = x.to(torch.int64) if x.dim() == 2 else x.to(torch.int64).unsqueeze(0)
    columns = [torch.zeros(rows.shape[0], device=x.device)] * (max(ngram_indexes) + 1)
    for number, (gram, column) in enumerate(
        zip(known_grams(pool_int64s, ngram_counts), ngram_indexes, strict=True)
    ):
        if not min_gram_length <= len(gram) <= max_gram_length:
            continue
        count = occurrences(rows, gram, max_skip_count)
        weight = 1.0 if weights is None else weights[number]
        if mode == "IDF":
            count = torch.where(count > 0, weight, 0.0)
        elif mode == "TFIDF":
            count = count * weight
        columns[column] = columns[column] + count
    y = torch.stack(columns, 1)
    return y if x.dim() == 2 else y.squeeze(0)


def known_grams(pool: list[int], starts: list[int]) -> list[list[int]]:
    """The n-grams of a pool; `starts[n - 1]` is where those of length n begin."""
    grams = []
    ends = [*starts[1:], len(pool)]
    for length, (start, end) in enumerate(zip(starts, ends, strict=True), start=1):
        grams += [pool[i : i + length] for i in range(start, end, length)]
    return grams


def occurrences(rows: torch.Tensor, gram: list[int], max_skip_count: int) -> torch.Tensor:
    """How often each row has the gram with 0, 1, ... or `max_skip_count` tokens skipped between."""
    total = torch.zeros(rows.shape[0], device=rows.device)
    for skip in range(max_skip_count + 1 if len(gram) > 1 else 1):
        reach = (len(gram) - 1) * (skip + 1) + 1
        places = rows.shape[1] - reach + 1
        if isinstance(places, int) and places < 1:
            break
        found = torch.ones(rows.shape[0], places, dtype=torch.bool, device=rows.device)
        for position, token in enumerate(gram):
            found = found & (rows.narrow(1, position * (skip + 1), places) == token)
        total = total + found.sum(1)
    return total


OPERATORS = {"TfIdfVectorizer": tfidf_vectorizer}
