from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from convkit import samples  # noqa: E402
from convkit.converters.torchscript_attention import (  # noqa: E402
    encoder_layer,
    multi_head_attention,
)
from convkit.converters.torchscript_interpreter import interpreted  # noqa: E402
from convkit.errors import UnsupportedError  # noqa: E402
from tests import material, script_models, tiny_models  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

# The fused kernel sums in another order than separate operators do: measured 2e-7 to 6e-7.
_FUSED = 1e-5

_SCRIPTABLE = [
    model for model in tiny_models.TINY_MODELS if model.name not in ("branch", "iterate")
]


def leaves(result: object) -> list[torch.Tensor]:
    found: list[torch.Tensor] = torch.utils._pytree.tree_leaves(result)
    return found


@pytest.mark.parametrize("way", script_models.WAYS)
@pytest.mark.parametrize("model", _SCRIPTABLE, ids=lambda model: model.name)
def test_interpreting_a_graph_gives_what_torchscript_gives(
    model: tiny_models.TinyModel, way: str
) -> None:
    feeds = samples.draw(model.inputs, {"batch": 3}, 1)
    example = tuple(torch.from_numpy(array) for array in feeds.values())
    module = script_models.compile_network(model.factory(), way, example)
    with torch.no_grad():
        expected, got = leaves(module(*example)), leaves(interpreted(module)(*example))
    for left, right in zip(expected, got, strict=True):
        assert left.shape == right.shape
        torch.testing.assert_close(right, left, rtol=_FUSED, atol=_FUSED)


def test_weights_keep_their_names() -> None:
    network = tiny_models.Lstm().eval()
    module = script_models.compile_network(network, "script")
    assert set(interpreted(module).state_dict()) == set(network.state_dict())


def test_state_lives_for_one_call() -> None:
    module = script_models.compile_network(script_models.RunningMean().eval(), "script")
    program = interpreted(module)
    rows = torch.ones(3, 6)
    with torch.no_grad():
        assert torch.equal(program(rows), program(rows))
        assert torch.equal(program(rows), module(rows))


def test_refusals_of_the_source_stay_refusals() -> None:
    module = script_models.compile_network(script_models.RunningMean().eval(), "script")
    with pytest.raises(ValueError, match="six features are expected"):
        interpreted(module)(torch.ones(3, 5))


def test_a_loop_that_the_data_end_is_refused_by_name_and_place() -> None:
    module = script_models.compile_network(script_models.WhileLarge().eval(), "script")
    with pytest.raises(UnsupportedError, match="prim::Loop") as caught:
        interpreted(module)(torch.ones(3, 6))
    assert "while bool" in str(caught.value)


@pytest.mark.parametrize(("rate", "size"), [(16000, 512), (8000, 256)])
def test_silero_vad_is_interpreted_exactly(rate: int, size: int) -> None:
    module = torch.jit.load(material.silero_vad_file()).eval()
    module.reset_states()
    program = interpreted(module)
    sound = torch.randn(3, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(program(sound, rate), module(sound, rate))


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("kind", [None, 0, 1])
def test_attention_equals_pytorchs_fused_kernel(kind: int | None, average: bool) -> None:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    x, weights = normal(2, 5, 8), (normal(24, 8), normal(24), normal(8, 8), normal(8))
    mask = None
    if kind == 0:
        mask = torch.ones(5, 5, dtype=torch.bool).triu(1)
    elif kind == 1:
        mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    arguments = (x, x, x, 8, 2, *weights, mask, True, average, kind)
    expected = torch.ops.aten._native_multi_head_attention(*arguments)
    for left, right in zip(expected, multi_head_attention(*arguments), strict=True):
        torch.testing.assert_close(right, left, rtol=_FUSED, atol=_FUSED)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("gelu", [True, False])
def test_an_encoder_layer_equals_pytorchs_fused_kernel(norm_first: bool, gelu: bool) -> None:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    x = normal(2, 5, 8)
    attention = (normal(24, 8), normal(24), normal(8, 8), normal(8))
    rest = (normal(8), normal(8), normal(8), normal(8), normal(16, 8), normal(16), normal(8, 16))
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    arguments = (x, 8, 2, *attention, gelu, norm_first, 1e-5, *rest, normal(8), mask, 1)
    expected = torch.ops.aten._transformer_encoder_layer_fwd(*arguments)
    got = encoder_layer(*arguments)
    seen = ~mask  # the kernel may leave anything at hidden positions
    torch.testing.assert_close(got[seen], expected[seen], rtol=_FUSED, atol=1e-4)
