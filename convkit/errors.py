"""The error tree; one exit code per class of failure.

    ConvkitError                  1   a bug in convkit
    ├── UsageError                2   unknown command, option, format; a result that exists
    │   ├── UnknownNameError      2   ... with the nearest match
    │   ├── InputsUnknownError    2   nobody said what the model's inputs look like
    │   └── SamplesError          2   the samples do not fit the model
    ├── NoRouteError              3
    ├── MissingRequirementError   4   a package or device
    ├── ModelError                5   missing, empty, truncated, not a model
    │   ├── WeightsMismatchError  5   a state dict that does not fit its network
    │   └── UnsupportedError      5   an operator or architecture without translation
    ├── StepError                 6
    ├── VerificationError         7
    ├── GateError                 8
    ├── UnsafeError               9   pickle with code, path traversal, untrusted code
    └── ResourceError             10  disk or memory, a destination that cannot be written

`RungSkipped` is no failure: a rung of a converter's ladder says with it that it does not apply.

Every message has one shape. First line: what happened, with the user's own values. Indented:
where and why. Last: what to do, as something that can be pasted.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar


class ConvkitError(Exception):
    """A failure that convkit can explain.

    Args:
        what: what happened, with the user's own values.
        why: where and why, a line each.
        hint: what to do, as something that can be pasted; may hold several lines.
        details: objects behind the message, JSON values, for `--json`.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self, what: str, *, why: str | Sequence[str] = (), hint: str = "", **details: Any
    ) -> None:
        super().__init__(what)
        self.what = what
        self.why = (why,) if isinstance(why, str) else tuple(why)
        self.hint = hint
        self.details = details

    def __reduce__(self) -> tuple[Any, ...]:
        """Travels between processes whatever its constructor takes."""
        return _rebuilt, (type(self), self.what, self.why, self.hint, self.details)

    def __str__(self) -> str:
        indented = [*self.why, *self.hint.splitlines()]
        return "\n".join([self.what, *(f"  {line}" for line in indented)])


def _rebuilt(
    kind: type[ConvkitError], what: str, why: Sequence[str], hint: str, details: dict[str, Any]
) -> ConvkitError:
    error = kind.__new__(kind)
    ConvkitError.__init__(error, what, why=why, hint=hint, **details)
    return error


class UsageError(ConvkitError):
    """The command, an option or a recipe field cannot be meant as it stands."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that is none of the known ones; the message offers the nearest."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
        hint = f"Did you mean '{near[0]}'?" if near else ""
        why = f"Known: {', '.join(known)}" if known else ()
        super().__init__(f"Unknown {kind} '{name}'.", why=why, hint=hint, known=known)


class InputsUnknownError(UsageError):
    """Nothing says what the model's inputs look like, so it can be neither run nor traced."""

    def __init__(self, model: str, names: Sequence[str] = (), why: str = "") -> None:
        name = names[0] if names else "x"
        super().__init__(
            f"The inputs of {model} are unknown.",
            why=why
            or "A network built by a factory, or TorchScript, does not carry its input shapes.",
            hint=(
                f'Describe them:  --input "{name}=float32[batch,3,224,224]"   (names: dynamic)\n'
                f"or give examples:  --samples inputs.npz   (arrays named "
                f"{', '.join(names) or 'like the inputs'})"
            ),
            names=list(names),
        )


class SamplesError(UsageError):
    """The samples cannot be read or do not fit the model's inputs."""


class NoRouteError(ConvkitError):
    """No chain of steps leads to the format and precision asked for."""

    exit_code = 3


class MissingRequirementError(ConvkitError):
    """A package or device that the route needs is missing."""

    exit_code = 4


class ModelError(ConvkitError):
    """The model cannot be used: missing, empty, truncated, or not a model."""

    exit_code = 5


class WeightsMismatchError(ModelError):
    """A state dict does not fit its network; names the first five keys that differ."""

    def __init__(
        self,
        weights: str,
        *,
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        shapes: Sequence[str] = (),
        hint: str = "",
    ) -> None:
        differing = [
            *(f"wrong shape  {line}" for line in shapes),
            *(f"missing      {key}" for key in missing),
            *(f"unexpected   {key}" for key in unexpected),
        ]
        more = [f"... and {len(differing) - 5} more"] if len(differing) > 5 else []
        super().__init__(
            f"The weights in {weights} do not fit the network: {len(differing)} keys differ.",
            why=[*differing[:5], *more],
            hint=hint
            or "Nested checkpoint? Name the key that holds the weights:  --weights FILE:KEY",
            missing=list(missing),
            unexpected=list(unexpected),
            shapes=list(shapes),
        )


class UnsupportedError(ModelError):
    """An operator or architecture has no translation; named, with the place it comes from."""


class StepError(ConvkitError):
    """A step failed although its input was usable."""

    exit_code = 6


class VerificationError(ConvkitError):
    """The result does not compute what the source computes."""

    exit_code = 7


class GateError(ConvkitError):
    """A limit on accuracy, latency or size was not met."""

    exit_code = 8


class UnsafeError(ConvkitError):
    """Refused: opening the file would run code, or reach outside its folder."""

    exit_code = 9


class ResourceError(ConvkitError):
    """Disk or memory do not suffice, or the destination cannot be written."""

    exit_code = 10


class RungSkipped(Exception):
    """A rung of a converter's ladder does not apply to this model; the text says why."""
