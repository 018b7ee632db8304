"""The options that commands share, and how they become a recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from convkit.recipe import Recipe


_PRECISIONS = ("fp32", "fp16", "bf16", "int8", "q4")


def common(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options every command has."""
    for option in (
        click.option("-v", "--verbose", is_flag=True, help="Say more; show traces of failures."),
        click.option("-q", "--quiet", is_flag=True, help="Print results only."),
        click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout."),
    ):
        function = option(function)
    return function


def _names(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[str, ...]:
    """Names between commas."""
    if text and "=" in text:
        raise click.BadParameter(f"takes names only; a shape goes to  --input '{text}'")
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def model_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say how a model is to be opened."""
    for option in (
        click.option("--trust", is_flag=True, help="Open files that run code."),
        click.option("--adapter", type=click.Path(path_type=Path), metavar="DIR",
                     help="A LoRA adapter, merged into the weights."),
        click.option("--outputs", "output_names", metavar="A,B", callback=_names,
                     help="Tensors where a TensorFlow graph ends."),
        click.option("--inputs", "input_names", metavar="A,B", callback=_names,
                     help="Tensors where a TensorFlow graph begins."),
        click.option("--signature", metavar="NAME", help="Which signature of a SavedModel."),
        click.option(
            "--input", "inputs", multiple=True, metavar="SPEC",
            help='An input: "x=float32[batch,3,224,224]"; names are dynamic sizes.',
        ),
        click.option("--samples", type=click.Path(path_type=Path),
                     help="Inputs: .npz, .jsonl; of language models .txt."),
        click.option("--weights", metavar="FILE[:KEY]", help="Weights of a factory's network."),
    ):  # fmt: skip
        function = option(function)
    return function


def target_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say what a model is to become."""
    for option in (
        click.option("--force", is_flag=True, help="Replace an existing result."),
        click.option("--no-verify", is_flag=True, help="Skip the comparison with the source."),
        click.option("--layout", type=click.Choice(["preserve", "nhwc-io"]),
                     help="Layout of a SavedModel's images; as in the source by default."),
        click.option("--opset", type=int, help="ONNX opset of the result."),
        click.option("--tensor-type", "tensor_types", multiple=True, metavar="REGEX=TYPE",
                     help="Type of the tensors whose names match: attn_v=q6_k."),
        click.option("--metric", metavar="NAME",
                     help="What accuracy is, for --max-drop; a name or module:function."),
        click.option("--max-drop", metavar="1%",
                     help="How far accuracy may fall; layers are given back until it holds."),
        click.option("--for", "target", metavar="TARGET",
                     help="Quantize for: cpu, cpu-avx2, arm, cuda, tensorrt."),
        click.option("--pure", is_flag=True, help="The scheme's own type for every tensor."),
        click.option("--calibration", type=click.Path(path_type=Path),
                     help="Representative data: .npz, a folder of them; of GGUF a text."),
        click.option("--set", "settings", multiple=True, metavar="STEP.OPTION=VALUE",
                     help="An option of a step: onnx-fp16.keep_io=false."),
        click.option("-o", "--out", type=click.Path(path_type=Path), help="Where the result goes."),
        *(click.option(f"--{name}", is_flag=True, help=f"At {name} precision.")
          for name in reversed(_PRECISIONS)),
        click.option("--scheme", metavar="NAME", help="How to quantize: static, dynamic, q4_k_m."),
        click.option("--to", required=True, metavar="FORMAT", help="Target format."),
    ):  # fmt: skip
        function = option(function)
    return function


def recipe_from(options: dict[str, Any]) -> Recipe:
    """The recipe that a command line means."""
    from convkit import recipe

    return recipe.make(
        model=options["model"],
        to=options["to"],
        precision=_precision(options),
        scheme=options["scheme"],
        out=options["out"],
        weights=options["weights"],
        samples=options["samples"],
        calibration=options["calibration"],
        adapter=options["adapter"],
        target=options["target"],
        max_drop=options["max_drop"],
        metric=options["metric"],
        pure=options["pure"],
        tensor_types=options["tensor_types"],
        inputs=options["inputs"],
        signature=options["signature"],
        input_names=options["input_names"],
        output_names=options["output_names"],
        settings={**_layout(options["layout"]), **settings_from(options["settings"])},
        opset=options["opset"],
        verify=not options["no_verify"],
        trust=options["trust"],
        force=options["force"],
    )


def _precision(options: dict[str, Any]) -> str | None:
    """The precision that a flag asks for.

    Raises:
        UsageError: several do.
    """
    from convkit.errors import UsageError

    asked = [name for name in _PRECISIONS if options[name]]
    if len(asked) > 1:
        flags = " and ".join(f"--{name}" for name in asked)
        raise UsageError(f"{flags} do not go together.", hint=f"Choose one:  --{asked[0]}")
    return asked[0] if asked else None


def _layout(name: str | None) -> dict[str, str]:
    """The option that `--layout` is short for."""
    return {"onnx-to-savedmodel.layout": name} if name else {}


def settings_from(texts: tuple[str, ...]) -> dict[str, Any]:
    """`onnx-fp16.keep_io=false` as name and typed value, read as YAML reads it."""
    import yaml

    from convkit.errors import UsageError

    settings = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            hint = "Write it as  --set onnx-fp16.keep_io=false"
            raise UsageError(f"'{text}' does not set an option.", hint=hint)
        try:
            settings[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as cause:
            raise UsageError(
                f"The value in '{text}' cannot be read.",
                why=str(getattr(cause, "problem", None) or cause),
                hint=f"Quote it:  --set '{name.strip()}=\"text\"'",
            ) from cause
    return settings
