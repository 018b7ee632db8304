"""What a decoder language model computes, as data: all that a builder of graphs needs to know.

Every piece names its tensors as the checkpoint does. Names of a layer's pieces are relative to the
layer (`self_attn.q_proj`), all others are whole; `.weight` and `.bias` are left out.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Linear:
    """A product with a matrix, and maybe a bias.

    Attributes:
        name: of its tensors; in experts `{}` stands for the expert's number.
        inputs, outputs: widths.
        has_bias: whether a vector is added.
        is_turned: the matrix is stored (inputs, outputs), as Conv1D of GPT-2 does.
    """

    name: str
    inputs: int
    outputs: int
    has_bias: bool = False
    is_turned: bool = False


@dataclass(frozen=True)
class Norm:
    """A normalization over the last axis.

    Attributes:
        name: of its tensors.
        width: of the last axis.
        epsilon: added to the variance.
        is_centered: subtracts the mean (LayerNorm), else RMSNorm.
        has_bias: whether a vector is added.
        offset: added to the stored weight. Where there is one, half precision rounds only after
            the weight was applied, as Gemma does.
        head_count: heads that each have a weight of their own, in `{name}.norms.{head}`; else 0.
    """

    name: str
    width: int
    epsilon: float
    is_centered: bool = False
    has_bias: bool = False
    offset: float = 0.0
    head_count: int = 0


@dataclass(frozen=True)
class Growth:
    """Frequencies that sink as a text grows beyond what the model was trained on.

    Source: `_compute_dynamic_ntk_parameters` in transformers' modeling_rope_utils.py.
    """

    base: float
    factor: float
    limit: int


@dataclass(frozen=True)
class Rotary:
    """Positions as rotations: pairs of numbers of a head are turned by position x frequency.

    The first half of the rotated numbers is paired with the second half.

    Attributes:
        frequencies: radians per position for each pair; numbers beyond these pairs stay.
        magnitude: factor on cosines and sines.
        long_frequencies: used instead where a text has more than `long_over` tokens; or empty.
        long_over: see `long_frequencies`.
        growth: how frequencies follow the length of a text; `frequencies` holds up to its limit.
    """

    frequencies: tuple[float, ...]
    magnitude: float = 1.0
    long_frequencies: tuple[float, ...] = ()
    long_over: int = 0
    growth: Growth | None = None

    @property
    def width(self) -> int:
        """Numbers of a head that are turned."""
        return 2 * len(self.frequencies)


@dataclass(frozen=True)
class Attention:
    """Causal attention with grouped heads.

    Attributes:
        heads: of queries.
        kv_heads: of keys and values.
        size: numbers of a head.
        scale: factor on scores.
        projections: of queries, keys and values; or one that gives all three.
        is_interleaved: a joint projection gives, for each head of keys, its queries, the key and
            the value (Falcon); else all queries, then all keys, then all values.
        output: the projection back.
        rotary: how positions enter; None where they enter with the embedding.
        window: how many tokens back may be seen, the token itself counted; None for all.
        softcap: scores are bent to stay within it.
        query_norm, key_norm: applied to each head before rotation.
    """

    heads: int
    kv_heads: int
    size: int
    scale: float
    projections: tuple[Linear, ...]
    output: Linear
    is_interleaved: bool = False
    rotary: Rotary | None = None
    window: int | None = None
    softcap: float | None = None
    query_norm: Norm | None = None
    key_norm: Norm | None = None

    @property
    def group(self) -> int:
        """Heads of queries that share a head of keys."""
        return self.heads // self.kv_heads


@dataclass(frozen=True)
class FeedForward:
    """down(act(up(x))), or down(act(gate(x)) * up(x)).

    Attributes:
        activation: its name in transformers.
        up, down: projections.
        gate: projection that is activated instead of `up`.
        is_joint: `up` gives gate and up behind each other (Phi-3).
    """

    activation: str
    up: Linear
    down: Linear
    gate: Linear | None = None
    is_joint: bool = False


@dataclass(frozen=True)
class Experts:
    """Feed-forward networks of which each token visits the few that a router chooses.

    Attributes:
        count: how many there are.
        chosen: how many a token visits.
        router: gives a score per expert.
        expert: one of them; its names hold `{}`.
        stacked: names of tensors that hold gates and ups, and downs, of all experts, as newer
            checkpoints have them.
        is_normalized: the chosen experts' shares add up to 1.
        shared: one that every token visits.
        shared_gate: gives the share of `shared`, before a sigmoid.
    """

    count: int
    chosen: int
    router: Linear
    expert: FeedForward
    stacked: tuple[str, str]
    is_normalized: bool
    shared: FeedForward | None = None
    shared_gate: Linear | None = None


@dataclass(frozen=True)
class Layer:
    """Attention and feed-forward, each beside a residual path.

    Attributes:
        prefix: of its tensors' names, with the dot.
        attention_norm: before attention.
        feed_forward_norm: before the feed-forward; None where it gets what attention gets.
        after_attention, after_feed_forward: norms of what is added to the residual path.
        is_parallel: the feed-forward does not see what attention gave.
    """

    prefix: str
    attention: Attention
    feed_forward: FeedForward | Experts
    attention_norm: Norm
    feed_forward_norm: Norm | None
    after_attention: Norm | None = None
    after_feed_forward: Norm | None = None
    is_parallel: bool = False


@dataclass(frozen=True)
class Blueprint:
    """A decoder language model.

    Attributes:
        family: the `model_type` of its configuration.
        vocabulary: number of tokens.
        width: of the residual path.
        embedding: name of the table of tokens.
        embedding_scale: factor on embeddings; 1 for none.
        positions: name and length of a table of learned positions.
        layers: in order.
        final_norm: before the head.
        head: from width to vocabulary.
        is_tied: the head's matrix is the embedding, unless the checkpoint has another.
        softcap: logits are bent to stay within it.
        unused: patterns (fnmatch) for tensors that checkpoints hold and the network does not use.
        unread: keys of the configuration that mean nothing to this family.
    """

    family: str
    vocabulary: int
    width: int
    embedding: str
    layers: tuple[Layer, ...]
    final_norm: Norm
    head: Linear
    is_tied: bool
    embedding_scale: float = 1.0
    positions: tuple[str, int] | None = None
    softcap: float | None = None
    unused: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()

    @property
    def has_positions(self) -> bool:
        """Whether the network looks at positions at all."""
        return self.positions is not None or any(
            layer.attention.rotary is not None for layer in self.layers
        )
