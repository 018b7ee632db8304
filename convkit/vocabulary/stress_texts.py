"""Texts that tell tokenizers apart: each is there because some two of them cut it differently."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

_SPACES = (
    "", "a", " ", "  ", "   x", "x   ", "\n", "\n\n\n", "\t", "\t\t x", "a\n b\n\n  c\n", "a \n",
    "a  \n  \n b", "\r\n", "x\r\ny\r\n\r\nz", "Hello world", "Hello  world", "  leading",
    "trailing  ", "x  y   z    w     v\t\t\tu\n\n\n\nt", "\v\f\x1c\x1f x", "\n \n", " \n x",
    "x \n\n y", "\n\tx", " " * 130 + "x", "\n" * 50,
    "a\u00a0b \u2003c\u3000d\u200b e\u2028f \u0085g", "\u3000\u3000x", "a\u3000\n",
)  # fmt: skip
_DIGITS = (
    "1", "12", "123", "1234", "12345", "123456", "1234567",
    "3.14159 1,000,000 0x1F 2024-01-31T12:00", "a1b2c3 abc123def", "1's", "$5.00 \u20ac10",
    "\uff11\uff12\uff13\uff14\uff15 \u0663\u0664\u0665\u0666 \u00bd\u00b2\u00b3 \u2167 \u2460",
    "\u0660\u0661\u0662\u0663", "1\u06602", "\u00b2\u00b3x 5\u00b2",
)  # fmt: skip
_WORDS = (
    "HELLO World hELLO McDonald iPhone camelCaseWord XMLHttpRequest",
    "I've I'M don't WE'LL they'Re 'tis 's 'S 'D x's it's''s 'Ll", "Don\u2019t", "I\u2019M", "' s",
    "'", " '", "x'", "'t t'", "a 'll", "\u00e9's", "\n's", "ab " * 100, "x" * 300,
    "Pneumonoultramicroscopicsilicovolcanoconiosis Donaudampfschifffahrtsgesellschaft",
)  # fmt: skip
_SIGNS = (
    "''''```\"\"\"...!!!??? ------=====", "+=<>^~|", "(a)[b]{c}", "#@%&*_ __init__ a_b", "-" * 100,
    "\u2026\u2014\u2013\u2018\u2019\u201c\u201d\u00ab\u00bb", "a\uff0eb\uff0cc", "~`^$+=<>|",
    "\u00a7\u00a9\u00ae \u2022 \u061f\u060c \u0964 \u1362", "\x01\x02\x7f", "\u00ad soft",
    "\ufeffbom", "\u202eRTL\u202c",
)  # fmt: skip
_CODE = (
    "def f(x):\n    return x**2  # comment\n\tif a!=b: pass\n",
    '{"a": [1, 2, null], "b": "c\\n"}', '<div class="x">&nbsp;</div>',
    "https://example.com/a/b?q=1&r=2#frag user@mail.org", "C:\\Users\\x\\y.txt",
    "a/b//c ///\n/\n", "foo.bar(baz);\n\n\nqux",
)  # fmt: skip
_SCRIPTS = (
    "\u6211\u60f3\u5728apple\u5de5\u4f5c1314151\u5929\uff5e\u3002\uff0c\u4e2d\u6587",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30b9\u30c8\u3001\u30ab\u30bf\u30ab\u30ca\u30fb\u3072\u3089",
    "\ud55c\uad6d\uc5b4 \ud14c\uc2a4\ud2b8", "\u304c \uff76\uff9e",
    "\u041f\u0440\u0438\u0432\u0435\u0442 \u041c\u0418\u0420 \u041f\u0440\u0418\u0432\u0435\u0442",
    "\u00dcn\u00efc\u00f6d\u00e9 \u00c0\u00c9\u00ce stra\u00dfe \u015e\u0130\u011e \u00c0B a\u00c0",
    "\u0391\u0392\u0393 \u03b1\u03b2\u03b3 \u03a3\u03c3\u03c2",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645 \u0661\u0662\u0663",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd", "\u01c5 \u02b0 \u00aa \u017f \u212a",
    "\U0001d49c\U0001d4c1\U0001d4c5 \U00010400\U00010428", "\ufb01 \ufb02 \uff21",
)  # fmt: skip
_MARKS = (
    "\u0e01\u0e32\u0e25\u0e04\u0e23\u0e31\u0e49\u0e07\u0e2b\u0e19\u0e36\u0e48\u0e07",
    "\u1780\u17b6\u1793\u17cb\u178f\u17c2\u1796\u17b7\u179f\u17c1\u179f\u17a2\u17b6\u1785",
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u092a\u0930\u0940\u0915\u094d\u0937\u0923",
    "\u09ac\u09be\u0982\u09b2\u09be", "\u0ba4\u0bae\u0bbf\u0bb4\u0bcd",
    "cafe\u0301 n\u0303 A\u030a e\u0301\u0301", "a\u0300\u0301b 1\u0301 \u0301x", " \u0301",
)  # fmt: skip
_EMOJI = (
    "\U0001f600\U0001f601 \U0001f680\U0001f680\U0001f680 \U0001f44d\U0001f3fd",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f3f3\ufe0f\u200d\U0001f308",
    "\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7 \U0001f636\u200d\U0001f32b\ufe0f",
    "\U0001f44da \U0001f44d1 \U0001f44d ",
)  # fmt: skip

PLAIN = (*_SPACES, *_DIGITS, *_WORDS, *_SIGNS, *_CODE, *_SCRIPTS, *_MARKS, *_EMOJI)
"""Texts without control tokens."""

_MOST_TOKENS = 12


def with_tokens(tokens: Sequence[str]) -> Iterator[str]:
    """Texts around added tokens; of many tokens a few from everywhere are taken."""
    step = max(1, -(-len(tokens) // _MOST_TOKENS))
    for token in tokens[::step]:
        yield token
        yield f"x{token}y"
        yield f"a {token} b"
        yield f"1{token}{token}\n"
