"""What llama.cpp's pre-tokenizers do, and how `tokenizer.json` says the same.

A pre-tokenizer cuts text into the pieces within which bytes are merged. llama.cpp has names for its
own; `tokenizer.json` spells them out. Names that cut alike stand in one row, the commonest first.

Source: llama.cpp, `src/llama-vocab.cpp` (the expressions of each `LLAMA_VOCAB_PRE_TYPE`, and what a
name implies); the published `tokenizer.json` of the models the names come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PUNCTUATION = "punctuation"
"""The step that cuts runs of punctuation off; every other step is a regular expression."""

WORDS_OF_BYTES = "words of bytes"
"""GPT-2's words, and from here on the text is the characters that stand for its bytes."""

WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""GPT-2's words, which `ByteLevel` cuts by itself unless it is told not to."""

DIGIT = r"\p{N}"
DIGITS = r"\p{N}+"
CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"


@dataclass(frozen=True)
class PreTokenizer:
    """A way of cutting text.

    Attributes:
        names: in llama.cpp; the first is written where nothing tells them apart.
        steps: regular expressions in Oniguruma's syntax, each of which cuts what it matches off
            the rest; or one of the constants above. The pieces are then merged as bytes.
        ignores_merges: whether a piece that is a token is taken whole, whatever the merges say.
        adds_bos: whether llama.cpp puts a token in front unless the file says otherwise.
        cases_are_ascii: whether llama.cpp tells capitals from small letters in ASCII only, and
            takes combining marks for no letters, although the expressions do both.
    """

    names: tuple[str, ...]
    steps: tuple[str, ...]
    ignores_merges: bool = False
    adds_bos: bool = False
    cases_are_ascii: bool = False


def _words_of(letters: str, digits: str, tail: str = r"\s+(?!\S)|\s+") -> str:
    """Llama 3's words and those like them."""
    return (
        rf"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?{letters}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
        rf"|\s*[\r\n]+|{tail}"
    )


def _cased_words_of(digits: str, contraction: str = "") -> str:
    """Words that end where small letters are followed by a capital."""
    capital, small = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    return (
        rf"[^\r\n\p{{L}}\p{{N}}]?{capital}*{small}+{contraction}"
        rf"|[^\r\n\p{{L}}\p{{N}}]?{capital}+{small}*{contraction}"
        rf"|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


_LLAMA3 = _words_of(r"\p{L}+", r"\p{N}{1,3}")
_QWEN2 = _words_of(r"\p{L}+", DIGIT)
_QWEN35 = _words_of(r"[\p{L}\p{M}]+", DIGIT).replace(
    r"[^\s\p{L}\p{N}]+[\r\n]*", r"[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
)
_RUNS = "".join(rf"\s{{{length}}}(?!\S)|" for length in (512, 256, 128, 64, 32, 16, 8, 4))
_JAIS2 = _words_of(r"\p{L}+", r"\p{N}{1,3}", rf"{_RUNS}\s{{1,2}}(?!\S)|\s{{1}}")
_MINICPM5 = _words_of(r"\p{L}+", DIGITS)
_EXAONE_MOE = (
    rf"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|{DIGIT}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SEED_CODER = _QWEN2.replace(r"[^\s\p{L}\p{N}]+[\r\n]*", r"[^\s\p{L}\p{N}\r\n]+")
_BLOOM = " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"

# DeepSeek's: letters of scripts that know capitals, then East Asian ones.
_CASED_LETTERS = (
    "A-Za-z\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481"
    "\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf"
    "\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d"
    "\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4"
    "\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107"
    "\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f"
    "\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    "\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17"
    "\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb"
    "\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_DEEPSEEK_SIGNS = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
_EAST_ASIAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_HAN_AND_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_DEEPSEEK_V3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
).replace(r"\"", '"')

TABLE = (
    PreTokenizer(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2",
         "jina-v5-nano"),
        (_LLAMA3,), ignores_merges=True, adds_bos=True,
    ),
    PreTokenizer(("smaug-bpe", "dbrx", "glm4", "chatglm-bpe"), (_LLAMA3,)),
    PreTokenizer(
        ("qwen2", "stablelm2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "hunyuan",
         "solar-open", "grok-2"),
        (_QWEN2,),
    ),
    PreTokenizer(("qwen35",), (_QWEN35,)),
    PreTokenizer(
        ("tekken",), (_cased_words_of(DIGIT),),
        ignores_merges=True, adds_bos=True, cases_are_ascii=True,
    ),
    PreTokenizer(
        ("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"),
        (_cased_words_of(r"\p{N}{1,3}", f"{CONTRACTION}?"),), cases_are_ascii=True,
    ),
    PreTokenizer(
        ("gpt-2", "phi-2", "olmo", "mpt", "roberta-bpe", "modern-bert", "jina-es", "jina-de",
         "jina-v1-en", "jina-v2-es", "jina-v2-de", "jina-v2-code", "gigachat", "a.x-4.0", "mellum",
         "exaone4", "jais", "trillion", "granite-docling"),
        (WORDS,),
    ),
    PreTokenizer(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b",
         "mellum2"),
        (DIGIT, WORDS),
    ),
    PreTokenizer(("falcon",), (PUNCTUATION, WORDS_OF_BYTES, DIGITS, "[0-9][0-9][0-9]")),
    PreTokenizer(
        ("deepseek-llm",),
        (r"[\r\n]", rf"\s?[{_CASED_LETTERS}]+", _DEEPSEEK_SIGNS, r"\s+$", _EAST_ASIAN, DIGIT),
    ),
    PreTokenizer(
        ("deepseek-coder",), (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _EAST_ASIAN, DIGIT)
    ),
    PreTokenizer(
        ("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"),
        (r"\p{N}{1,3}", _HAN_AND_KANA, _DEEPSEEK_V3),
    ),
    PreTokenizer(("bloom", "gpt3-finnish", "poro-chat"), (_BLOOM,)),
    PreTokenizer(("viking",), (_BLOOM, DIGIT)),
    PreTokenizer(("jais-2",), (_JAIS2,)),
    PreTokenizer(("seed-coder",), (_SEED_CODER,)),
    PreTokenizer(("exaone-moe",), (_EXAONE_MOE,)),
    PreTokenizer(("ufakzeka",), (_QWEN2.removeprefix(f"{CONTRACTION}|"),)),
    PreTokenizer(("minicpm5",), (r"\p{N}{1,3}", _MINICPM5), ignores_merges=True),
    # No model is matched with it by guess: it is what llama.cpp does for files that name none.
    PreTokenizer(("default",), (r"[\p{P}\$\+<=>\^~\|]+", WORDS, DIGITS, "[0-9][0-9][0-9]")),
)  # fmt: skip
"""All of them."""

PREFERRED: Mapping[str, str] = {
    "cohere": "command-r",
    "dbrx": "dbrx",
    "glm": "glm4",
    "glm4": "glm4",
    "gpt_refact": "refact",
    "mpt": "mpt",
    "olmo": "olmo",
    "phi": "phi-2",
    "stablelm": "stablelm2",
    "starcoder2": "starcoder",
}
"""`model_type` of a configuration -> the name that belongs to it among those that cut alike."""
