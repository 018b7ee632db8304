"""llama.cpp's C interface, as the wheel `xllamacpp` holds it, called without its header.

The wheel is a Python extension that also exports the C functions. Their arguments are stable; the
two structures of parameters are not: they grow and shift between releases. They pass by value as
blocks longer than any release's, of which llama.cpp fills in and reads its own part, and the few
fields that matter are found by the default values around them.

Source: llama.cpp, `include/llama.h`: `llama_model_params`, `llama_context_params`, `llama_batch`,
and the `*_default_params` functions; `include/ggml.h`: `enum ggml_log_level`.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import importlib.metadata
import importlib.util
import os
import re
from collections import deque
from collections.abc import Sequence
from ctypes import (
    c_bool,
    c_char_p,
    c_float,
    c_int32,
    c_int64,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
)
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from packaging.version import Version

from convkit.checkpoint.rows import Array
from convkit.errors import MissingRequirementError
from convkit.naming import listed

UNSPECIFIED = -1
"""`LLAMA_POOLING_TYPE_UNSPECIFIED`: as the file says. Other members of that enum follow."""
POOLING_NONE = 0
POOLING_RANK = 4

OLDEST = Version("2026.4")
"""Of the wheel; older ones are not tested, and 0.2 crashes beside PyTorch."""

F32 = 0
"""`GGML_TYPE_F32`."""

_ERROR_LEVEL, _CONTINUATION_LEVEL = 4, 5


class Parameters(ctypes.Structure):
    """Either structure of parameters, with room behind it. Of 64-bit words, as it is aligned."""

    _fields_ = (("content", ctypes.c_uint64 * 128),)

    def words(self) -> Array:
        """Its memory as int32, to be changed in place."""
        return self._array().view(np.int32)

    def octets(self) -> Array:
        """Its memory as uint8, to be changed in place."""
        return self._array().view(np.uint8)

    def _array(self) -> Array:
        return np.ctypeslib.as_array(self.content)


class Batch(ctypes.Structure):
    """`llama_batch`. Missing positions go on from the cache; missing sequences are sequence 0."""

    _fields_ = (
        ("count", c_int32),
        ("tokens", c_void_p),
        ("embeddings", c_void_p),
        ("positions", c_void_p),
        ("sequence_counts", c_void_p),
        ("sequences", c_void_p),
        ("outputs", c_void_p),
    )


_LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, c_char_p, c_void_p)

_SIGNATURES: dict[str, tuple[Any, ...]] = {
    # name: (result, arguments ...)
    "llama_backend_init": (None,),
    "llama_time_us": (c_int64,),
    "llama_log_set": (None, c_void_p, c_void_p),
    "llama_model_default_params": (Parameters,),
    "llama_context_default_params": (Parameters,),
    "llama_model_load_from_file": (c_void_p, c_char_p, Parameters),
    "llama_model_free": (None, c_void_p),
    "llama_model_get_vocab": (c_void_p, c_void_p),
    "llama_model_n_embd_out": (c_int32, c_void_p),
    "llama_model_n_params": (c_uint64, c_void_p),
    "llama_model_has_encoder": (c_bool, c_void_p),
    "llama_model_meta_val_str": (c_int32, c_void_p, c_char_p, c_void_p, c_size_t),
    "llama_model_chat_template": (c_char_p, c_void_p, c_char_p),
    "llama_vocab_type": (c_int32, c_void_p),
    "llama_vocab_n_tokens": (c_int32, c_void_p),
    "llama_vocab_get_add_bos": (c_bool, c_void_p),
    "llama_vocab_is_eog": (c_bool, c_void_p, c_int32),
    "llama_tokenize": (
        c_int32, c_void_p, c_char_p, c_int32, c_void_p, c_int32, c_bool, c_bool,
    ),
    "llama_detokenize": (
        c_int32, c_void_p, c_void_p, c_int32, c_void_p, c_int32, c_bool, c_bool,
    ),
    "llama_init_from_model": (c_void_p, c_void_p, Parameters),
    "llama_free": (None, c_void_p),
    "llama_set_n_threads": (None, c_void_p, c_int32, c_int32),
    "llama_set_embeddings": (None, c_void_p, c_bool),
    "llama_n_ctx": (c_uint32, c_void_p),
    "llama_n_batch": (c_uint32, c_void_p),
    "llama_n_ubatch": (c_uint32, c_void_p),
    "llama_pooling_type": (c_int32, c_void_p),
    "llama_get_memory": (c_void_p, c_void_p),
    "llama_memory_clear": (None, c_void_p, c_bool),
    "llama_batch_get_one": (Batch, c_void_p, c_int32),
    "llama_decode": (c_int32, c_void_p, Batch),
    "llama_get_logits": (ctypes.POINTER(c_float), c_void_p),
    "llama_get_embeddings": (ctypes.POINTER(c_float), c_void_p),
    "llama_get_embeddings_seq": (ctypes.POINTER(c_float), c_void_p, c_int32),
    "llama_state_seq_get_size": (c_size_t, c_void_p, c_int32),
    "llama_state_seq_get_data": (c_size_t, c_void_p, c_void_p, c_size_t, c_int32),
    "llama_state_seq_set_data": (c_size_t, c_void_p, c_void_p, c_size_t, c_int32),
}  # fmt: skip

_LIST_END = (c_void_p * 1)()


class Log:
    """What llama.cpp has to say: its errors are kept until taken, the rest goes nowhere."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=8)
        self._level = 0

    def write(self, level: int, text: bytes | None, _data: object = None) -> None:
        """Takes a message; one may come in several pieces, the first of which has the level."""
        line = (text or b"").decode(errors="replace").rstrip("\n")
        if level == _CONTINUATION_LEVEL and self._level == _ERROR_LEVEL and self._lines:
            self._lines[-1] += line
        elif level == _ERROR_LEVEL:
            self._lines.append(line)
        self._level = self._level if level == _CONTINUATION_LEVEL else level

    def taken(self) -> tuple[str, ...]:
        """The last errors, less the functions' names and the lines that only say "failed"."""
        prefix = r"^(\w+: |error loading model: )+"
        lines = [re.sub(prefix, "", line) for line in self._lines if line]
        self._lines.clear()
        telling = [line for line in lines if not line.startswith("failed to load model")]
        return tuple(telling or lines)


@dataclass(frozen=True)
class ModelFields:
    """Where `llama_model_params` holds what is set.

    Attributes:
        vocabulary_only: octet of `vocab_only`.
    """

    vocabulary_only: int

    @classmethod
    def found(cls, octets: Array) -> ModelFields | None:
        """Finds them by the defaults; None where the layout is another.

        Two null pointers, `n_gpu_layers` -1, enums and numbers, four null pointers, then the
        switches: the first is off, one of the next five is on.
        """
        if octets[:16].any() or octets[16:20].view(np.int32)[0] != -1:
            return None
        for begin in range(56, 96, 8):
            switches = octets[begin : begin + 6]
            if not octets[begin - 32 : begin].any() and switches.any():
                return cls(begin) if switches.max() == 1 and switches[0] == 0 else None
        return None

    def fill(self, parameters: Parameters, *, vocabulary_only: bool) -> None:
        """Sets them; the model stays on the CPU, the reference for what a file computes."""
        words = parameters.words()
        words.view(np.uint64)[0] = ctypes.addressof(_LIST_END)  # `devices`
        words[4] = 0  # `n_gpu_layers`
        parameters.octets()[self.vocabulary_only] = vocabulary_only


@dataclass(frozen=True)
class ContextFields:
    """Where `llama_context_params` holds what is set, in words of 32 bits.

    Attributes:
        enums: `rope_scaling_type`, `pooling_type`, `attention_type`, `flash_attn_type`.
        cache_types: `type_k` and `type_v`; None where they were not found: the cache stays F16.
    """

    enums: int
    cache_types: int | None

    @classmethod
    def found(cls, words: Array) -> ContextFields | None:
        """Finds them by the defaults; None where the layout is another.

        `n_ctx` 512, `n_batch` 2048 and `n_ubatch` 512 begin. The enums are the only four -1 in a
        row (a -1 of float has other bits); behind them `rope_freq_base` 0 and `rope_freq_scale` 0.
        The cache's types are two F16 = 1 between two null pointers and two more.
        """
        if words[:3].tolist() != [512, 2048, 512]:
            return None
        enums = _position(words[:32], [UNSPECIFIED] * 4 + [0, 0], step=1)
        if enums is None:
            return None
        behind = enums + 6 + enums % 2
        types = _position(words[behind : behind + 32], [0, 0, 0, 0, 1, 1, 0, 0, 0, 0], step=2)
        return cls(enums, None if types is None else behind + types + 4)

    def fill(self, parameters: Parameters, *, capacity: int, batch: int, pooling: int) -> None:
        """Sets them: the cache in F32 and no fused attention, which rounds to F16 on its way."""
        words = parameters.words()
        words[:3] = capacity, batch, batch
        words[self.enums + 1] = pooling
        if self.cache_types is not None:
            words[self.enums + 3] = 0  # `LLAMA_FLASH_ATTN_TYPE_DISABLED`
            words[self.cache_types : self.cache_types + 2] = F32


def _position(words: Array, pattern: Sequence[int], *, step: int) -> int | None:
    length = len(pattern)
    for begin in range(0, len(words) - length + 1, step):
        if words[begin : begin + length].tolist() == list(pattern):
            return begin
    return None


@dataclass(frozen=True)
class Library:
    """The library, once it is known how to call it.

    Attributes:
        call: its functions by name, with their signatures.
        version: of the wheel.
        log: what it says.
        model_fields, context_fields: how its parameters are laid out.
        callback: what it says things to; lives as long as the library.
    """

    call: Any
    version: str
    log: Log
    model_fields: ModelFields
    context_fields: ContextFields
    callback: Any = field(repr=False)

    def model_parameters(self, *, vocabulary_only: bool) -> Parameters:
        """Parameters for loading a model on the CPU."""
        parameters: Parameters = self.call.llama_model_default_params()
        self.model_fields.fill(parameters, vocabulary_only=vocabulary_only)
        return parameters

    def context_parameters(self, *, capacity: int, batch: int, pooling: int) -> Parameters:
        """Parameters of a context for `capacity` tokens, `batch` of them at a time."""
        parameters: Parameters = self.call.llama_context_default_params()
        self.context_fields.fill(parameters, capacity=capacity, batch=batch, pooling=pooling)
        return parameters

    def unknown(self, why: str) -> MissingRequirementError:
        """The error that this release is none of those that convkit can call."""
        return _unknown(self.version, why)


@functools.cache
def library() -> Library:
    """llama.cpp, loaded and looked over at the first call.

    Raises:
        MissingRequirementError: the wheel is missing, does not export llama.cpp's functions, or is
            a release that convkit cannot call.
    """
    path, version = _installed()
    if Version(version) < OLDEST:
        raise MissingRequirementError(
            f"xllamacpp {version} is too old: {OLDEST} is the oldest that convkit calls.",
            hint=_HINT,
        )
    # Threads that wait by spinning starve each other where processors are busy with other work:
    # twenty times slower was measured. OpenMP reads this when it is loaded.
    os.environ.setdefault(_WAIT_POLICY, _SLEEP)
    try:
        call: Any = ctypes.CDLL(str(path))
    except OSError as cause:
        raise MissingRequirementError(
            f"{path} cannot be loaded.", why=str(cause), hint=_HINT
        ) from cause
    missing = [name for name in _SIGNATURES if not hasattr(call, name)]
    if missing:
        raise MissingRequirementError(
            f"xllamacpp {version} does not let llama.cpp's functions be called.",
            why=[
                f"It does not export {listed(missing, 3)}.",
                "Its builds for Linux and macOS export them, those for Windows do not.",
            ],
            hint=_HINT,
        )
    for name, (result, *arguments) in _SIGNATURES.items():
        function = getattr(call, name)
        function.restype, function.argtypes = result, arguments
    return _looked_over(call, version)


def threads_sleep() -> bool:
    """Whether llama.cpp's threads sleep while they wait, as `library` has them do.

    Source: libgomp's manual, OMP_WAIT_POLICY and GOMP_SPINCOUNT.
    """
    return os.environ.get(_WAIT_POLICY) == _SLEEP and "GOMP_SPINCOUNT" not in os.environ


_WAIT_POLICY, _SLEEP = "OMP_WAIT_POLICY", "passive"
_HINT = 'pip install --upgrade "convkit-ml[gguf]"'


def _installed() -> tuple[Path, str]:
    found = importlib.util.find_spec("xllamacpp")  # found, not imported: it would run its own setup
    folders = found.submodule_search_locations if found else None
    for folder in folders or ():
        for path in sorted(Path(folder).glob("xllamacpp*")):
            if path.suffix in (".so", ".pyd"):
                return path, importlib.metadata.version("xllamacpp")
    raise MissingRequirementError(
        "Running GGUF models needs xllamacpp, which is not installed.",
        hint='pip install "convkit-ml[gguf]"',
    )


def _looked_over(call: Any, version: str) -> Library:
    """The library, after its structures were recognised."""
    tokens = (c_int32 * 7)()
    batch = call.llama_batch_get_one(tokens, len(tokens))
    rest = (batch.embeddings, batch.positions, batch.sequence_counts, batch.sequences)
    if batch.count != len(tokens) or batch.tokens != ctypes.addressof(tokens) or any(rest):
        raise _unknown(version, "Its batches of tokens are laid out in another way.")
    model = ModelFields.found(call.llama_model_default_params().octets())
    context = ContextFields.found(call.llama_context_default_params().words())
    if model is None or context is None:
        which = "model" if model is None else "context"
        raise _unknown(version, f"The parameters of a {which} are laid out in another way.")
    log = Log()
    callback = _LogCallback(log.write)
    call.llama_log_set(callback, None)
    # The library's own destructors may speak when the interpreter is gone: to a function that
    # takes no arguments, and so nothing in.
    atexit.register(call.llama_log_set, ctypes.cast(call.llama_time_us, c_void_p), None)
    call.llama_backend_init()
    return Library(call, version, log, model, context, callback)


def _unknown(version: str, why: str) -> MissingRequirementError:
    return MissingRequirementError(
        f"convkit does not know how to call llama.cpp in xllamacpp {version}.",
        why=why,
        hint=_HINT,
        version=version,
    )
