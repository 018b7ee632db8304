"""Decision trees of ai.onnx.ml: all trees walked at once, one level at a time."""

from __future__ import annotations

import torch

from convkit.converters.onnx_to_torch.operators.classic_ml import as_features, post_transformed

# Source: the values of `post_transform` and `aggregate_function` in the schema of TreeEnsemble.
POST_TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")
AGGREGATES = ("AVERAGE", "SUM", "MIN", "MAX")
MEMBER_MODE = 6
BRANCH_MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ")


def tree_ensemble(
    x: torch.Tensor,
    *,
    aggregate_function: int = 1,
    leaf_targetids: list[int],
    leaf_weights: torch.Tensor,
    membership_values: torch.Tensor | None = None,
    n_targets: int = 1,
    nodes_falseleafs: list[int],
    nodes_falsenodeids: list[int],
    nodes_featureids: list[int],
    nodes_hitrates: torch.Tensor | None = None,
    nodes_missing_value_tracks_true: list[int] | None = None,
    nodes_modes: torch.Tensor,
    nodes_splits: torch.Tensor,
    nodes_trueleafs: list[int],
    nodes_truenodeids: list[int],
    post_transform: int = 0,
    tree_roots: list[int],
) -> torch.Tensor:
    """ai.onnx.ml TreeEnsemble: (rows, targets).

    Leaves are numbered behind the nodes; a leaf is its own successor.
    """
    count = len(nodes_featureids)
    leaves = list(range(count, count + len(leaf_targetids)))
    on_true = successors(nodes_truenodeids, nodes_trueleafs, count) + leaves
    on_false = successors(nodes_falsenodeids, nodes_falseleafs, count) + leaves
    roots = [on_true[root] if on_true[root] == on_false[root] else root for root in tree_roots]
    branch = branch_taken(
        x,
        nodes_modes.tolist(),
        nodes_splits,
        nodes_featureids,
        nodes_missing_value_tracks_true,
        membership_values,
    )
    reached = walked(branch, on_true, on_false, roots, count)
    weights = leaf_weights.to(x.dtype)[reached - count]
    targets = torch.tensor(leaf_targetids, device=x.device)[reached - count]
    y = aggregated(weights, targets, n_targets, AGGREGATES[aggregate_function], len(roots))
    return post_transformed(y, POST_TRANSFORMS[post_transform])


def successors(ids: list[int], are_leaves: list[int], count: int) -> list[int]:
    """Where each node leads, leaves being numbered from `count` on."""
    return [
        number + count if leaf else number for number, leaf in zip(ids, are_leaves, strict=True)
    ]


def branch_taken(
    x: torch.Tensor,
    modes: list[int],
    splits: torch.Tensor,
    features: list[int],
    missing_is_true: list[int] | None,
    members: torch.Tensor | None,
) -> torch.Tensor:
    """Whether each row would take the true branch at each node: (rows, nodes)."""
    value = x[:, torch.tensor(features, device=x.device)]
    threshold = splits.to(x.dtype)
    comparisons = (torch.le, torch.lt, torch.ge, torch.gt, torch.eq, torch.ne)
    taken = torch.zeros(value.shape, dtype=torch.bool, device=x.device)
    for number in sorted(set(modes) - {MEMBER_MODE}):
        here = torch.tensor([mode == number for mode in modes], device=x.device)
        taken = taken | (here & comparisons[number](value, threshold))
    if members is not None and MEMBER_MODE in modes:
        # Sets stand one after the other, each closed by NaN, in the order of their nodes.
        owner = torch.cumsum(torch.isnan(members).to(torch.int64), 0)
        nodes = [node for node, mode in enumerate(modes) if mode == MEMBER_MODE]
        place = torch.full((len(modes),), -1, device=x.device)
        place[nodes] = torch.arange(len(nodes), device=x.device)
        inside = (value.unsqueeze(-1) == members.to(x.dtype)) & (place.unsqueeze(-1) == owner)
        taken = taken | inside.any(-1)
    if missing_is_true:
        taken = taken | (torch.isnan(value) & torch.tensor(missing_is_true, device=x.device).bool())
    return taken


def walked(
    branch: torch.Tensor, on_true: list[int], on_false: list[int], roots: list[int], count: int
) -> torch.Tensor:
    """The leaf that each row reaches in each tree: (rows, trees)."""
    yes = torch.tensor(on_true, device=branch.device)
    no = torch.tensor(on_false, device=branch.device)
    at = torch.tensor(roots, device=branch.device).expand(branch.shape[0], -1)
    for _ in range(tree_depth(on_true, on_false, roots, count)):
        choice = torch.gather(branch, 1, torch.clamp(at, max=count - 1))
        at = torch.where(choice, yes[at], no[at])
    return at


def tree_depth(on_true: list[int], on_false: list[int], roots: list[int], count: int) -> int:
    """The number of decisions on the longest way to a leaf."""
    depth, level = 0, {root for root in roots if root < count}
    while level:
        depth += 1
        level = {after for node in level for after in (on_true[node], on_false[node])}
        level = {node for node in level if node < count}
    return depth


def aggregated(
    weights: torch.Tensor, targets: torch.Tensor, count: int, aggregate: str, trees: int
) -> torch.Tensor:
    """Leaf weights (rows, leaves) gathered by target: (rows, count)."""
    limits = torch.finfo(weights.dtype)
    start, reduction = {
        "SUM": (0.0, "sum"),
        "AVERAGE": (0.0, "sum"),
        "MIN": (limits.max, "amin"),
        "MAX": (limits.min, "amax"),
    }[aggregate]
    y = torch.full([weights.shape[0], count], start, dtype=weights.dtype, device=weights.device)
    y = y.scatter_reduce(1, targets, weights, reduction)
    return y / trees if aggregate == "AVERAGE" else y


def leaf_votes(
    x: torch.Tensor,
    *,
    nodes_falsenodeids: list[int],
    nodes_featureids: list[int],
    nodes_missing_value_tracks_true: list[int] | None,
    nodes_modes: list[str],
    nodes_nodeids: list[int],
    nodes_treeids: list[int],
    nodes_truenodeids: list[int],
    nodes_values: torch.Tensor,
    vote_nodeids: list[int],
    vote_treeids: list[int],
    vote_targets: list[int],
    vote_weights: torch.Tensor,
    count: int,
    aggregate: str,
) -> torch.Tensor:
    """Votes of the leaves that rows reach, (rows, count), in the layout of the older operators."""
    place = {key: i for i, key in enumerate(zip(nodes_treeids, nodes_nodeids, strict=True))}
    inner = [i for i, mode in enumerate(nodes_modes) if mode != "LEAF"]
    outer = [i for i, mode in enumerate(nodes_modes) if mode == "LEAF"]
    number = {old: new for new, old in enumerate(inner + outer)}
    ways = []
    for ids in (nodes_truenodeids, nodes_falsenodeids):
        ways.append(
            [number[place[nodes_treeids[i], ids[i]]] for i in inner]
            + list(range(len(inner), len(nodes_modes)))
        )
    roots: dict[int, int] = {}
    for i, tree in enumerate(nodes_treeids):
        roots.setdefault(tree, number[i])
    missing = nodes_missing_value_tracks_true
    branch = branch_taken(
        x,
        [BRANCH_MODES.index(nodes_modes[i]) for i in inner],
        nodes_values[inner],
        [nodes_featureids[i] for i in inner],
        [missing[i] for i in inner] if missing else None,
        None,
    )
    reached = walked(branch, ways[0], ways[1], list(roots.values()), len(inner))
    # (voters): the leaf of each vote; rows vote where they reached that leaf.
    voter = [number[place[key]] for key in zip(vote_treeids, vote_nodeids, strict=True)]
    leaves = len(outer)
    hits = torch.zeros([x.shape[0], leaves], dtype=torch.bool, device=x.device)
    hits = hits.scatter(1, reached - len(inner), True)
    cast_vote = hits[:, torch.tensor(voter, device=x.device) - len(inner)]
    neutral = {"MIN": torch.finfo(x.dtype).max, "MAX": torch.finfo(x.dtype).min}.get(aggregate, 0.0)
    votes = torch.where(cast_vote, vote_weights.to(x.dtype), neutral)
    targets = torch.tensor(vote_targets, device=x.device).expand(votes.shape)
    return aggregated(votes, targets, count, aggregate, len(roots))


def float_list(values: list[float] | None, tensor: torch.Tensor | None) -> torch.Tensor:
    """An attribute given as a list of floats or as a tensor; empty if it is absent."""
    return torch.tensor(values or [], dtype=torch.float32) if tensor is None else tensor


def tree_ensemble_regressor(
    x: torch.Tensor,
    *,
    aggregate_function: str = "SUM",
    base_values: list[float] | None = None,
    base_values_as_tensor: torch.Tensor | None = None,
    n_targets: int = 1,
    nodes_falsenodeids: list[int],
    nodes_featureids: list[int],
    nodes_hitrates: list[float] | None = None,
    nodes_hitrates_as_tensor: torch.Tensor | None = None,
    nodes_missing_value_tracks_true: list[int] | None = None,
    nodes_modes: list[str],
    nodes_nodeids: list[int],
    nodes_treeids: list[int],
    nodes_truenodeids: list[int],
    nodes_values: list[float] | None = None,
    nodes_values_as_tensor: torch.Tensor | None = None,
    post_transform: str = "NONE",
    target_ids: list[int],
    target_nodeids: list[int],
    target_treeids: list[int],
    target_weights: list[float] | None = None,
    target_weights_as_tensor: torch.Tensor | None = None,
) -> torch.Tensor:
    """ai.onnx.ml TreeEnsembleRegressor (deprecated, but what scikit-learn converters write)."""
    y = leaf_votes(
        as_features(x),
        nodes_falsenodeids=nodes_falsenodeids,
        nodes_featureids=nodes_featureids,
        nodes_missing_value_tracks_true=nodes_missing_value_tracks_true,
        nodes_modes=nodes_modes,
        nodes_nodeids=nodes_nodeids,
        nodes_treeids=nodes_treeids,
        nodes_truenodeids=nodes_truenodeids,
        nodes_values=float_list(nodes_values, nodes_values_as_tensor),
        vote_nodeids=target_nodeids,
        vote_treeids=target_treeids,
        vote_targets=target_ids,
        vote_weights=float_list(target_weights, target_weights_as_tensor),
        count=n_targets,
        aggregate=aggregate_function,
    )
    base = float_list(base_values, base_values_as_tensor)
    y = y + base.to(y.dtype) if base.numel() else y
    return post_transformed(y, post_transform).to(torch.float32)


def tree_ensemble_classifier(
    x: torch.Tensor,
    *,
    base_values: list[float] | None = None,
    base_values_as_tensor: torch.Tensor | None = None,
    class_ids: list[int],
    class_nodeids: list[int],
    class_treeids: list[int],
    class_weights: list[float] | None = None,
    class_weights_as_tensor: torch.Tensor | None = None,
    classlabels_int64s: list[int],
    nodes_falsenodeids: list[int],
    nodes_featureids: list[int],
    nodes_hitrates: list[float] | None = None,
    nodes_hitrates_as_tensor: torch.Tensor | None = None,
    nodes_missing_value_tracks_true: list[int] | None = None,
    nodes_modes: list[str],
    nodes_nodeids: list[int],
    nodes_treeids: list[int],
    nodes_truenodeids: list[int],
    nodes_values: list[float] | None = None,
    nodes_values_as_tensor: torch.Tensor | None = None,
    post_transform: str = "NONE",
) -> tuple[torch.Tensor, torch.Tensor]:
    """ai.onnx.ml TreeEnsembleClassifier with integer labels: labels and scores.

    Votes for a single class make a binary classifier: the other class gets what is missing.
    """
    y = leaf_votes(
        as_features(x),
        nodes_falsenodeids=nodes_falsenodeids,
        nodes_featureids=nodes_featureids,
        nodes_missing_value_tracks_true=nodes_missing_value_tracks_true,
        nodes_modes=nodes_modes,
        nodes_nodeids=nodes_nodeids,
        nodes_treeids=nodes_treeids,
        nodes_truenodeids=nodes_truenodeids,
        nodes_values=float_list(nodes_values, nodes_values_as_tensor),
        vote_nodeids=class_nodeids,
        vote_treeids=class_treeids,
        vote_targets=class_ids,
        vote_weights=float_list(class_weights, class_weights_as_tensor),
        count=len(classlabels_int64s),
        aggregate="SUM",
    )
    base = float_list(base_values, base_values_as_tensor)
    labels = torch.tensor(classlabels_int64s, device=x.device)
    if len(set(class_ids)) == 1 and labels.shape[0] == 2:
        positive = y[:, class_ids[0] : class_ids[0] + 1]
        positive = positive + base.to(y.dtype)[-1] if base.numel() else positive
        plain = post_transform in ("NONE", "PROBIT")
        y = torch.cat([1 - positive if plain else -positive, positive], 1)
    elif base.numel():
        y = y + base.to(y.dtype)
    scores = post_transformed(y, post_transform).to(torch.float32)
    return labels[torch.argmax(scores, 1)], scores


OPERATORS = {
    ("ai.onnx.ml", "TreeEnsemble"): tree_ensemble,
    ("ai.onnx.ml", "TreeEnsembleClassifier"): tree_ensemble_classifier,
    ("ai.onnx.ml", "TreeEnsembleRegressor"): tree_ensemble_regressor,
}
