"""How models are to be opened, as far as the user says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from convkit.artifact import Opening, TensorSpec
from convkit.errors import UsageError
from convkit.step import Format

_FLAGS = {
    "signature": "--signature",
    "input_names": "--inputs",
    "output_names": "--outputs",
    "adapter": "--adapter",
}
"""Fields of an opening that only some formats heed."""

_ADVICE = {
    "adapter": "Adapters are merged into Hugging Face folders:  "
    "convkit convert FOLDER --adapter {value} --to FORMAT"
}


def opening_of(
    inputs: Sequence[str] = (),
    examples: Path | None = None,
    trust: bool = False,
    signature: str | None = None,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
    adapter: Path | None = None,
) -> Opening:
    """How a model is to be opened: inputs as the user described them, else read off examples."""
    specs: tuple[TensorSpec, ...] = ()
    if inputs or examples:
        from convkit import samples

        specs = tuple(samples.parse_spec(text) for text in inputs)
        if examples and not specs and not samples.is_text(examples):
            given = samples.read(examples)
            specs = samples.specs_of([samples.without_labels(feeds) for feeds in given])
    return Opening(
        inputs=specs,
        signature=signature,
        input_names=tuple(input_names),
        output_names=tuple(output_names),
        adapter=adapter,
        trust=trust,
    )


def check_is_heeded(opening: Opening, formats: Iterable[Format], words: str) -> None:
    """Sees to it that nothing the user says of opening a model is passed over in silence.

    Args:
        opening: what is said.
        formats: of the models it is said of; one that heeds it is enough.
        words: how the user names the model.

    Raises:
        UsageError: none heeds it.
    """
    formats = list(formats)
    for field, flag in _FLAGS.items():
        value = getattr(opening, field)
        if value and not any(field in each.heeds for each in formats):
            names = " and ".join(dict.fromkeys(each.name for each in formats))
            raise UsageError(
                f"{flag} has no effect: {words} is {names}.",
                hint=_ADVICE.get(field, f"Leave {flag} out.").format(value=value),
            )
