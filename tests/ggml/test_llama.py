"""GGUF files in llama.cpp compute what transformers computes with the same weights."""

from __future__ import annotations

import gc
import struct
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convkit.errors import ConvkitError, ModelError, SamplesError, StepError, UnsupportedError
from convkit.ggml.llama import LlamaModel
from tests.ggml import llama_files
from tests.ggml.llama_files import log_probabilities

pytestmark = pytest.mark.skipif(
    find_spec("xllamacpp") is None or find_spec("gguf") is None,
    reason="xllamacpp holds llama.cpp, gguf writes the files",
)

Array = np.ndarray[Any, Any]

TOKENS = np.random.default_rng(0).integers(0, llama_files.LLAMA_VOCABULARY, 600)
"""More than llama.cpp computes at a time, which is 512 here."""

ROUNDING = 2e-4
"""Of log-probabilities: F32 sums of logits up to 8, in another order than PyTorch's."""


@pytest.fixture(scope="module")
def llama_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    return llama_files.write_llama(llama_files.llama_network(), folder / "tiny.gguf")


@pytest.fixture
def llama(llama_path: Path) -> Iterator[LlamaModel]:
    with LlamaModel(llama_path) as model:
        yield model


@pytest.fixture(scope="module")
def reference() -> dict[str, Array]:
    with torch.no_grad():
        found = llama_files.llama_network()(torch.tensor(TOKENS)[None], output_hidden_states=True)
    return {"logits": found.logits[0].numpy(), "hidden": found.hidden_states[-1][0].numpy()}


def assert_same_model(logits: Array, expected: Array) -> None:
    found, wanted = log_probabilities(logits), log_probabilities(expected)
    assert np.abs(found - wanted).max() < ROUNDING
    assert (np.exp(wanted) * (wanted - found)).sum(-1).max() < 1e-8


def test_logits_of_an_f32_file_are_those_of_transformers(
    llama: LlamaModel, reference: dict[str, Array]
) -> None:
    logits = llama.logits(TOKENS.tolist())
    assert logits.dtype == np.float32
    assert_same_model(logits, reference["logits"])


def test_logits_begin_a_text_each_time(llama: LlamaModel, reference: dict[str, Array]) -> None:
    llama.logits(TOKENS[100:400])
    assert_same_model(llama.logits(TOKENS[:50]), reference["logits"][:50])
    assert llama.logits([]).shape == (0, llama_files.LLAMA_VOCABULARY)


def test_a_session_fed_in_pieces_computes_what_the_whole_text_does(
    llama: LlamaModel, reference: dict[str, Array]
) -> None:
    session = llama.session()
    pieces = [TOKENS[:3], *TOKENS[3:20, None], TOKENS[20:255], *TOKENS[255:260, None], TOKENS[260:]]
    logits = np.concatenate([session.feed(piece.tolist()) for piece in pieces])
    assert session.position == len(TOKENS)
    assert_same_model(logits, reference["logits"])


def test_sessions_keep_out_of_each_other_s_way(
    llama: LlamaModel, reference: dict[str, Array]
) -> None:
    session, other = llama.session(), llama.session()
    session.feed(TOKENS[:10])
    other.feed(TOKENS[300:330])
    llama.logits(TOKENS[200:210])
    assert_same_model(session.feed(TOKENS[10:30]), reference["logits"][10:30])
    session.close()
    assert session.position == 0
    assert_same_model(session.feed(TOKENS[:5]), reference["logits"][:5])


def test_embeddings_of_a_decoder_are_its_last_hidden_states(
    llama: LlamaModel, reference: dict[str, Array]
) -> None:
    np.testing.assert_allclose(llama.embeddings(TOKENS), reference["hidden"], atol=ROUNDING)
    with pytest.raises(UnsupportedError, match="how embeddings are pooled"):
        llama.pooled(TOKENS)


@pytest.mark.parametrize("pooling", [llama_files.MEAN, llama_files.CLS])
def test_embeddings_of_an_encoder_are_those_of_transformers(tmp_path: Path, pooling: int) -> None:
    network = llama_files.bert_network()
    path = llama_files.write_bert(network, tmp_path / "bert.gguf", pooling=pooling)
    with LlamaModel(path) as model:
        assert not model.has_decoder
        short = model.tokenize("The houses, red", add_special=True, parse_special=False)
        assert [llama_files.BERT_WORDS[token] for token in short] == (
            ["[CLS]", "the", "house", "##s", "[UNK]", "red", "[SEP]"]
        )
        for tokens in (short, list(range(10)) * 60):
            with torch.no_grad():
                hidden = network(torch.tensor(tokens)[None]).last_hidden_state[0].numpy()
            pooled = hidden.mean(0) if pooling == llama_files.MEAN else hidden[0]
            for compute, wanted in ((model.embeddings, hidden), (model.pooled, pooled)):
                difference = np.abs(compute(tokens) - wanted)
                # GELU comes from a table of F16: here and there, a sum that rounds otherwise than
                # PyTorch's is a step of that table away.
                assert difference.max() < 2e-3
                assert difference.mean() < 3e-5
        with pytest.raises(SamplesError, match="no tokens to pool"):
            model.pooled([])
        with pytest.raises(UnsupportedError, match="gives embeddings, no logits"):
            model.logits(short)


def test_a_file_says_what_it_is(llama: LlamaModel) -> None:
    assert llama.architecture == "llama"
    assert llama.vocabulary_size == llama_files.LLAMA_VOCABULARY
    assert llama.training_context == llama_files.CONTEXT
    assert llama.embedding_length == 64
    assert llama.add_bos
    assert (llama.end_of_generation, llama.chat_template) == ({2}, None)
    assert llama.has_decoder
    assert llama.metadata("ARCH.attention.head_count") == "4"
    assert llama.metadata("ARCH.none") is None


def test_tokens_are_spelled_out_as_asked(llama: LlamaModel) -> None:
    def tokens(text: str, **how: bool) -> list[int]:
        return llama.tokenize(text, **{"add_special": False, "parse_special": False, **how})

    assert tokens("ab\0", add_special=True)[0] == 1
    assert tokens("<|turn|>", parse_special=True) == [0]
    text = "abc<|turn|> grün 👋\0"
    assert llama.detokenize(tokens(text)) == text
    ids = tokens(text, parse_special=True)
    assert llama.detokenize(ids) == text.replace("<|turn|>", "")
    assert llama.detokenize(ids, special=True) == text
    assert tokens("") == []
    assert llama.detokenize([]) == ""
    assert llama.detokenize(tokens("👋")[:2]) == "\ufffd"


@pytest.mark.parametrize("token", [-1, llama_files.LLAMA_VOCABULARY, 1 << 40])
def test_a_token_out_of_the_vocabulary_does_not_reach_llama_cpp(
    llama: LlamaModel, token: int
) -> None:
    calls = (llama.logits, llama.embeddings, llama.detokenize, llama.session().feed)
    for call in calls:
        with pytest.raises(SamplesError, match=f"no token {token} in "):
            call([1, token])


def test_tokens_are_whole_numbers_in_a_row(llama: LlamaModel) -> None:
    for tokens in ([1.5], [[1, 2]], ["a"]):
        with pytest.raises(SamplesError, match="whole numbers in a row"):
            llama.logits(tokens)  # type: ignore[arg-type]


def test_more_tokens_than_the_model_was_trained_on_are_refused(llama: LlamaModel) -> None:
    session = llama.session()
    session.feed(TOKENS)
    session.feed([1] * (llama_files.CONTEXT - len(TOKENS)))
    full = "context is full: 641 tokens are too many"
    with pytest.raises(StepError, match=full):
        session.feed([1])
    assert session.position == llama_files.CONTEXT
    for call in (llama.logits, llama.embeddings):
        with pytest.raises(StepError, match=full):
            call([1] * (llama_files.CONTEXT + 1))


def test_a_closed_model_answers_nothing(llama_path: Path) -> None:
    with LlamaModel(llama_path) as model:
        session = model.session()
        session.feed([1, 2])
    model.close()
    calls = (
        lambda: model.logits([1]),
        lambda: session.feed([1]),
        model.session,
        lambda: model.add_bos,
        lambda: model.tokenize("a", add_special=False, parse_special=False),
        lambda: model.metadata("general.name"),
    )
    for call in calls:
        with pytest.raises(StepError, match="This model was closed"):
            call()
    session.close()


def test_a_file_opened_for_its_vocabulary_needs_no_weights(tmp_path: Path) -> None:
    path = llama_files.write_llama(
        llama_files.llama_network(), tmp_path / "cut.gguf", leave_out="blk.1.attn_q.weight"
    )
    with LlamaModel(path, vocab_only=True) as model:
        assert model.tokenize("ab", add_special=True, parse_special=False) == [1, 260]
        assert model.vocabulary_size == llama_files.LLAMA_VOCABULARY
        with pytest.raises(StepError, match="opened for its vocabulary only"):
            model.logits([1])
    with pytest.raises(ModelError, match="cannot load") as caught:
        LlamaModel(path)
    assert "'blk.1.attn_q.weight'" in str(caught.value)


def test_a_file_without_tokenizer_computes_and_says_so(
    tmp_path: Path, reference: dict[str, Array]
) -> None:
    path = llama_files.write_llama(
        llama_files.llama_network(), tmp_path / "bare.gguf", tokenizer="no_vocab"
    )
    with LlamaModel(path) as model:
        assert_same_model(model.logits(TOKENS[:20]), reference["logits"][:20])
        for call in (
            lambda: model.tokenize("a", add_special=True, parse_special=True),
            lambda: model.detokenize([1]),
        ):
            with pytest.raises(ModelError, match="has no tokenizer"):
                call()


def test_a_text_that_the_vocabulary_cannot_spell_is_refused(tmp_path: Path) -> None:
    path = llama_files.write_llama(
        llama_files.llama_network(), tmp_path / "letters.gguf", tokenizer="llama"
    )
    with LlamaModel(path) as model:
        tokens = model.tokenize("ab d", add_special=False, parse_special=False)
        assert [model.detokenize([token]) for token in tokens] == ["ab", " ", "d"]
        # llama.cpp itself would end the process.
        with pytest.raises(SamplesError, match="has no token for 'x'"):
            model.tokenize("ax", add_special=False, parse_special=False)


def test_files_that_llama_cpp_refuses_are_refused_with_its_reason(
    tmp_path: Path, llama_path: Path
) -> None:
    whole = llama_path.read_bytes()

    def changed(key: bytes, layout: str, *value: float) -> bytes:
        begin = whole.index(key) + len(key)
        return whole[:begin] + struct.pack(layout, *value) + whole[begin + 8 :]

    damages = {
        "truncated": (whole[:-4000], "data is not within the file bounds"),
        "cut_in_its_header": (whole[:5000], "failed to read key-value pairs"),
        "other": (b"PK\3\4" + whole[4:], "invalid magic characters: 'PK"),
        "unknown": (whole.replace(b"\5" + bytes(7) + b"llama", b"\5" + bytes(7) + b"lamma"),
                    "unknown model architecture: 'lamma'"),
        "empty": (b"", "failed to read magic"),
        # llama.cpp itself would end the process over these.
        "doubled": (whole.replace(b"<unused2>", b"<unused3>"), "'<unused3>', was there before"),
        "blocks": (changed(b"block_count", "<II", 4, 0), "It has 0 blocks"),
        "norms": (changed(b"layer_norm_rms_epsilon", "<If", 6, -1.0), "epsilon is -1.0"),
    }  # fmt: skip
    for name, (content, reason) in damages.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(content)
        with pytest.raises(ModelError, match=f"{name}.gguf") as caught:
            LlamaModel(path)
        assert reason in str(caught.value)
        assert caught.value.exit_code == 5


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"There is no file {tmp_path / 'none.gguf'}"):
        LlamaModel(tmp_path / "none.gguf")
    with pytest.raises(ConvkitError, match="There is no file"):
        LlamaModel(tmp_path)


def test_llama_cpp_is_silent_and_the_process_ends_in_order(llama_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from convkit.ggml.llama import LlamaModel\n"
        "model = LlamaModel(Path(sys.argv[1])); session = model.session(); session.feed([1])\n"
        "model.logits([1, 2])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, llama_path], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_models_and_sessions_that_are_forgotten_give_their_memory_back(llama_path: Path) -> None:
    def use() -> None:
        model = LlamaModel(llama_path)
        model.logits(TOKENS)
        model.session().feed(TOKENS)

    def resident_mib() -> float:
        fields = Path("/proc/self/statm").read_text().split()
        return int(fields[1]) * 4096 / 2**20

    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc to say how much memory the process has")
    use()
    gc.collect()
    before = resident_mib()
    for _ in range(20):
        use()
    gc.collect()
    # A use takes 18 MiB for its two contexts; what is left is the allocator's.
    assert resident_mib() - before < 60
