"""Continues a text with any language model: token by token, as it comes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convkit.errors import ModelError, UsageError
from convkit.step import LanguageRunner, Runner, Session
from convkit.vocabulary import chat_prompt

if TYPE_CHECKING:
    import numpy as np

_PROMPT_TOKENS_AT_ONCE = 512
"""A prompt is fed in pieces, since logits of a vocabulary are kept for each of its tokens."""

_INCOMPLETE = "\ufffd"
"""What decoders write for bytes that are no whole character yet."""

_DECODED_BEFORE = 8
"""At most so many tokens are decoded again before a new one."""


@dataclass(frozen=True)
class Speed:
    """How fast it went so far.

    Attributes:
        prompt_token_count: tokens of the prompt.
        prompt_s: time the model took for them.
        token_count: tokens that were generated.
        step_count: of those, how many were fed back to the model for the next.
        steps_s: time that took, sampling included.
    """

    prompt_token_count: int
    prompt_s: float
    token_count: int
    step_count: int
    steps_s: float

    @property
    def prompt_tokens_per_s(self) -> float:
        """Rate at which the prompt was read."""
        return self.prompt_token_count / self.prompt_s

    @property
    def tokens_per_s(self) -> float | None:
        """Rate of generation; None where only one token was made."""
        return self.step_count / self.steps_s if self.steps_s else None

    def __str__(self) -> str:
        """As llama-bench puts it: pp is prompt processing, tg is text generation."""
        read = f"pp{self.prompt_token_count} {self.prompt_tokens_per_s:.1f} t/s"
        rate = self.tokens_per_s
        return read if rate is None else f"{read}   tg{self.token_count} {rate:.1f} t/s"


@dataclass(frozen=True)
class Piece:
    """What one token adds.

    Attributes:
        text: whole characters only; may be empty.
        token: its id.
        end: why the text ends here: "end" (the model says so), "length" (as many tokens as were
            asked for) or "context" (the model takes no more); "" where it goes on.
        speed: up to here.
    """

    text: str
    token: int
    end: str
    speed: Speed


def generate(
    runner: LanguageRunner,
    prompt: str,
    *,
    max_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    is_chat: bool = False,
) -> Iterator[Piece]:
    """Continues a prompt; each piece is given as soon as it is known.

    Args:
        runner: the model.
        prompt: a text to go on with, or what a user says.
        max_tokens: at most so many are generated.
        temperature: 0 takes the most likely token; above, tokens are drawn.
        top_p: drawn from the most likely tokens that have this share of the probability together.
        seed: the same seed gives the same text.
        is_chat: the prompt is put into the model's chat template.

    Raises:
        UsageError: the prompt is empty or too long, or a number is out of its range.
        ModelError: there is no tokenizer, or no chat template where one is asked for.
        MissingRequirementError: the package that reads tokenizer or template is missing.
    """
    _check(max_tokens, temperature, top_p)
    tokens = prompt_tokens(runner, prompt, is_chat=is_chat)
    sampler = _Sampler(temperature, top_p, seed)
    return _pieces(runner, tokens, max_tokens, sampler)


def document(prompt: str, pieces: Iterable[Piece]) -> dict[str, Any]:
    """The JSON of `convkit generate`, once the text has ended."""
    given = list(pieces)
    last = given[-1]
    return {
        "prompt": prompt,
        "text": "".join(piece.text for piece in given),
        "tokens": [piece.token for piece in given],
        "end": last.end,
        "prompt_token_count": last.speed.prompt_token_count,
        "prompt_tokens_per_s": last.speed.prompt_tokens_per_s,
        "tokens_per_s": last.speed.tokens_per_s,
    }


def require_language(runner: Runner, model: str, architecture: str = "") -> LanguageRunner:
    """The runner of a language model.

    Args:
        runner: of any model.
        model: how the user calls it.
        architecture: as its headers name it, where they do.

    Raises:
        UsageError: it is none.
    """
    if isinstance(runner, LanguageRunner):
        return runner
    sides = [("takes", runner.inputs), ("gives", runner.outputs)]
    said = [f"{verb} {', '.join(map(str, specs))}" for verb, specs in sides if specs]
    raise UsageError(
        f"{model} is no language model{f' but {architecture}' if architecture else ''}.",
        why=f"It {' and '.join(said) or 'does not say what it takes'}.",
        hint="Texts are made by models that take input_ids and give logits for the next token.",
    )


def prompt_tokens(runner: LanguageRunner, prompt: str, *, is_chat: bool) -> list[int]:
    """Token ids that a model is fed for a prompt.

    Raises:
        UsageError: there are none, or as many as the model takes at all.
        ModelError: no chat template is there, or it refuses the prompt.
    """
    if is_chat:
        if not runner.chat_template:
            raise ModelError(
                "The model has no chat template.",
                why="It was trained to go on with a text, or its template was left behind.",
                hint="Give the beginning of a text instead:  --raw",
            )
        said = [{"role": "user", "content": prompt}]
        rendered = chat_prompt.render(runner.chat_template, said, runner.special_tokens)
        tokens = runner.encode(rendered, is_prompt=False)  # the template has the beginning
    else:
        tokens = runner.encode(prompt)
    if not tokens:
        raise UsageError("The prompt is empty.", hint='convkit generate MODEL "Once upon a time"')
    limit = runner.context_length
    if limit is not None and len(tokens) >= limit:
        raise UsageError(
            f"The prompt has {len(tokens)} tokens; the model takes {limit}, its answer included.",
            hint="Shorten the prompt.",
        )
    return tokens


def _check(max_tokens: int, temperature: float, top_p: float) -> None:
    if max_tokens < 1:
        raise UsageError(f"{max_tokens} tokens cannot be generated.", hint="Ask for some:  -n 64")
    if not 0 <= temperature < float("inf"):
        raise UsageError(
            f"A temperature of {temperature} means nothing.", hint="0 is greedy, 1 as trained."
        )
    if not 0 < top_p <= 1:
        raise UsageError(
            f"A top-p of {top_p} means nothing.", hint="It is a share of probability:  --top-p 0.9"
        )


def _pieces(
    runner: LanguageRunner, tokens: Sequence[int], max_tokens: int, sampler: _Sampler
) -> Iterator[Piece]:
    session, decoder = runner.session(), _Decoder(runner, tokens)
    began = time.perf_counter()
    scores = _fed(session, tokens)
    prompt_s = time.perf_counter() - began
    steps_s = 0.0
    room = max_tokens if runner.context_length is None else runner.context_length - len(tokens)
    for made in range(1, max_tokens + 1):
        began = time.perf_counter()
        token = sampler.choose(scores)
        end = _end(token, made, runner, max_tokens, room)
        if not end:
            scores = session.feed([token])[-1]
        steps_s += time.perf_counter() - began if not end else 0.0
        text = "" if end == "end" else decoder.add(token)
        text += decoder.rest() if end else ""
        speed = Speed(len(tokens), prompt_s, made, made if not end else made - 1, steps_s)
        yield Piece(text, token, end, speed)
        if end:
            return


def _end(token: int, made: int, runner: LanguageRunner, max_tokens: int, room: int) -> str:
    if token in runner.end_tokens:
        return "end"
    if made == max_tokens:
        return "length"
    return "context" if made == room else ""


def _fed(session: Session, tokens: Sequence[int]) -> np.ndarray[Any, Any]:
    """Logits (vocabulary) after all of these tokens."""
    for begin in range(0, len(tokens), _PROMPT_TOKENS_AT_ONCE):
        scores = session.feed(tokens[begin : begin + _PROMPT_TOKENS_AT_ONCE])
    last: np.ndarray[Any, Any] = scores[-1]
    return last


class _Sampler:
    """Chooses the next token.

    Source: Holtzman et al., The Curious Case of Neural Text Degeneration, 2020 (top-p).
    """

    def __init__(self, temperature: float, top_p: float, seed: int) -> None:
        import numpy as np

        self._temperature = temperature
        self._top_p = top_p
        self._random = np.random.default_rng(seed)

    def choose(self, scores: np.ndarray[Any, Any]) -> int:
        """A token id, from logits (vocabulary).

        Raises:
            ModelError: the logits are no numbers.
        """
        import numpy as np

        if np.isnan(scores).any():
            raise ModelError(
                "The model computes NaN instead of probabilities.",
                why="Its weights are damaged, or numbers grow beyond what its precision holds.",
            )
        if self._temperature == 0:
            return int(np.argmax(scores))
        scaled = (scores - scores.max()).astype(np.float64) / self._temperature
        order = np.argsort(-scaled, kind="stable")
        shares = np.exp(scaled[order])
        shares /= shares.sum()
        # The token that crosses the share is kept, so at least one always is.
        kept = int(np.searchsorted(np.cumsum(shares), self._top_p)) + 1
        shares = shares[:kept] / shares[:kept].sum()
        return int(self._random.choice(order[:kept], p=shares))


class _Decoder:
    """Turns tokens into text as they come, whole characters at a time.

    Tokens are decoded behind some before them: a decoder may drop a space at the beginning of what
    it is given. A character may take several tokens.
    """

    def __init__(self, runner: LanguageRunner, prompt: Sequence[int]) -> None:
        self._runner = runner
        self._tokens = list(prompt[-_DECODED_BEFORE:])
        self._begin = 0  # of what is decoded
        self._given = len(self._tokens)  # up to here the text was given out

    def add(self, token: int) -> str:
        """What this token completes."""
        self._tokens.append(token)
        text = self._pending()
        if text.endswith(_INCOMPLETE):
            return ""
        if text:
            self._begin = self._given
        self._given = len(self._tokens)
        self._begin = max(self._begin, self._given - _DECODED_BEFORE)
        return text

    def rest(self) -> str:
        """What is left at the end, incomplete characters included."""
        return self._pending()

    def _pending(self) -> str:
        before = self._runner.decode(self._tokens[self._begin : self._given])
        return self._runner.decode(self._tokens[self._begin :])[len(before) :]
