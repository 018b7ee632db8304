"""Times a language model's tokens when told to, so that several take turns in processes of theirs.

python scripts/token_speed.py MODEL PROMPT_TOKENS GENERATED_TOKENS

Loads a model of any format through convkit, says "ready", and answers each line on standard input:
`pp` with the seconds that a prompt of so many tokens takes at once, `tg` with those that so many
tokens take one by one from an empty cache. Ids are random but always the same.

Source: llama.cpp, `tools/llama-bench/README.md`, for the words and what they mean. Unlike there,
logits of every token of the prompt are computed, by all formats alike.
"""

from __future__ import annotations

import sys
import time

import numpy as np

import convkit
from convkit.step import LanguageRunner


def main() -> None:
    """Answers until standard input ends."""
    model, prompt_count, generated_count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with convkit.load(model) as runner:
        assert isinstance(runner, LanguageRunner)
        vocabulary_size = runner.session().feed([0]).shape[-1]
        ids = np.random.default_rng(0).integers(0, vocabulary_size, 1024).tolist()
        print("ready", flush=True)
        for line in sys.stdin:
            session = runner.session()
            began = time.perf_counter()
            if line.strip() == "pp":
                session.feed(ids[:prompt_count])
            else:
                for token in ids[:generated_count]:
                    session.feed([token])
            print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main()
