from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convkit.checkpoint.folder import open_folder
from convkit.errors import ConvkitError, ModelError, UnsafeError, UnsupportedError
from tests.checkpoint.tiny_language_models import folder_of, gpt2, in_torch, llama

torch = pytest.importorskip("torch", reason="PyTorch makes the files")

INDEX = "model.safetensors.index.json"


def pickled(path: Path, state: dict[str, Any], shard_count: int = 1, **how: Any) -> Path:
    folder_of(path, {})
    (path / "model.safetensors").unlink()
    names = list(state)
    files = [f"pytorch_model-{n + 1:05}-of-{shard_count:05}.bin" for n in range(shard_count)]
    if shard_count == 1:
        torch.save(state, path / "pytorch_model.bin", **how)
        return path
    for number, file in enumerate(files):
        torch.save({name: state[name] for name in names[number::shard_count]}, path / file, **how)
    places = {name: files[number % shard_count] for number, name in enumerate(names)}
    (path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    return path


def save(form: str, path: Path, network: Any) -> Path:
    state = network.state_dict()
    if form == "safetensors":
        network.save_pretrained(path)
    elif form == "sharded safetensors":
        network.save_pretrained(path, max_shard_size="60KB")
        assert len(list(path.glob("model-*.safetensors"))) > 1
    elif form == "bin":
        pickled(path, state)
    elif form == "sharded bin":
        pickled(path, state, 3)
    else:
        pickled(path, state, _use_new_zipfile_serialization=False)
    return path


FORMS = ("safetensors", "sharded safetensors", "bin", "sharded bin", "bin of old PyTorch")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["F32", "BF16"])
def test_every_form_of_a_folder_gives_the_tensors_of_the_network(
    tmp_path: Path, form: str, dtype: Any
) -> None:
    network = llama().to(dtype)
    with open_folder(save(form, tmp_path / "model", network)) as checkpoint:
        state = network.state_dict()
        assert sorted(checkpoint.tensors) == sorted(state)
        for name, rows in checkpoint.tensors.items():
            assert torch.equal(in_torch(rows), state[name]), name
            half = rows.row_count // 2
            part = rows.read(half, rows.row_count)
            want = state[name].reshape(rows.row_count, -1)[half:].float().numpy()
            np.testing.assert_array_equal(part, want)
        assert checkpoint.config["model_type"] == "llama"
        assert (checkpoint.other, checkpoint.quantization, checkpoint.notes) == ({}, "", ())


def test_tensors_come_in_the_order_of_the_files(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "m", max_shard_size="60KB")
    order = []
    for file in sorted((tmp_path / "m").glob("model-*.safetensors")):
        content = file.read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        header.pop("__metadata__")
        order += sorted(header, key=lambda name: header[name]["data_offsets"])
    with open_folder(tmp_path / "m") as checkpoint:
        assert list(checkpoint.tensors) == order


@pytest.mark.parametrize("form", ["bin", "bin of old PyTorch", "save_model"])
def test_tied_embeddings_are_there_once_and_the_head_is_their_other_name(
    tmp_path: Path, form: str
) -> None:
    network = gpt2()
    if form == "save_model":
        from safetensors.torch import save_model

        save_model(network, str(folder_of(tmp_path / "m", {}) / "model.safetensors"))
    else:
        save(form, tmp_path / "m", network)
    with open_folder(tmp_path / "m") as checkpoint:
        assert checkpoint.aliases == {"lm_head.weight": "transformer.wte.weight"}
        assert "lm_head.weight" not in checkpoint.tensors
        embedding = checkpoint.tensors["transformer.wte.weight"]
        assert torch.equal(in_torch(embedding), network.transformer.wte.weight)


def test_integers_and_masks_are_listed_apart_and_scalars_have_an_axis(tmp_path: Path) -> None:
    state = {
        "embeddings.position_ids": torch.arange(5)[None],
        "attn.bias": torch.ones(1, 1, 3, 3, dtype=torch.bool).tril(),
        "scale": torch.tensor(2.5),
        "norm.weight": torch.ones(4, dtype=torch.float64),
        "empty": torch.zeros(0, 4),
    }
    with open_folder(folder_of(tmp_path / "m", state)) as checkpoint:
        shapes = {name: rows.shape for name, rows in checkpoint.tensors.items()}
        assert shapes == {"scale": (1,), "norm.weight": (4,), "empty": (0, 4)}
        assert checkpoint.tensors["scale"].array().tolist() == [2.5]
        assert checkpoint.tensors["norm.weight"].dtype == "F64"
        other = {name: (tensor.dtype, tensor.shape) for name, tensor in checkpoint.other.items()}
        assert other == {
            "embeddings.position_ids": ("I64", (1, 5)),
            "attn.bias": ("BOOL", (1, 1, 3, 3)),
        }


def test_pickled_views_of_a_storage_are_read_as_they_are(tmp_path: Path) -> None:
    base = torch.arange(48.0).reshape(6, 8)
    state = {
        "turned": base.T,
        "slice": base[2:4],
        "columns": base[:, 1:4],
        "parameter": torch.nn.Parameter(base[1]),
        "broadcast": base[0].expand(3, 8),
        "step": torch.tensor(7),
    }
    with open_folder(pickled(tmp_path / "m", state)) as checkpoint:
        for name, rows in checkpoint.tensors.items():
            assert torch.equal(in_torch(rows), state[name]), name
        assert set(checkpoint.tensors) == set(state) - {"step"}
        np.testing.assert_array_equal(checkpoint.tensors["turned"].read(3, 5), base.T[3:5])


def peak_mib(code: str) -> int:
    text = f"""
import sys
from pathlib import Path
from convkit.checkpoint.folder import open_folder
from convkit.resources import peak_rss_bytes
{code}
assert "torch" not in sys.modules and "safetensors" not in sys.modules
print(peak_rss_bytes() >> 20)
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_gigantic_tensor_takes_the_memory_of_a_few_rows_and_no_framework(
    tmp_path: Path, form: str
) -> None:
    state = {"w": torch.ones(16384, 4096, dtype=torch.bfloat16)}  # 128 MiB
    path = folder_of(tmp_path / "m", state) if form[0] == "s" else pickled(tmp_path / "m", state)
    peak = peak_mib(f"""
with open_folder(Path({str(path)!r})) as checkpoint:
    for begin in range(0, 16384, 256):
        assert checkpoint.tensors["w"].read(begin, begin + 256).min() == 1
""")
    assert peak < 80  # the interpreter with numpy takes about 45


def test_threads_read_at_the_same_time(tmp_path: Path) -> None:
    weight = torch.randn(4096, 33)
    with (
        open_folder(folder_of(tmp_path / "m", {"w": weight})) as checkpoint,
        ThreadPoolExecutor(8) as pool,
    ):
        rows = checkpoint.tensors["w"]
        parts = list(pool.map(lambda begin: rows.read(begin, begin + 8), range(0, 4096, 8)))
    np.testing.assert_array_equal(np.concatenate(parts), weight.numpy())


def _missing_shard(path: Path) -> None:
    sorted(path.glob("model-*.safetensors"))[1].unlink()


def _change_index(path: Path, name: str, place: str) -> None:
    index = json.loads((path / INDEX).read_text())
    index["weight_map"][name] = place
    (path / INDEX).write_text(json.dumps(index))


def _outside(path: Path) -> None:
    _change_index(path, "model.norm.weight", "../secret.safetensors")


def _drive(path: Path) -> None:
    _change_index(path, "model.norm.weight", "C:secret.safetensors")


def _lacking(path: Path) -> None:
    file = sorted(path.glob("model-*.safetensors"))[0].name
    _change_index(path, "model.layers.7.mlp.up_proj.weight", file)


def _truncated(path: Path) -> None:
    file = sorted(path.glob("model-*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:-5])


def _no_table(path: Path) -> None:
    (path / INDEX).write_text("[]")


def _no_config(path: Path) -> None:
    (path / "config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (_missing_shard, ModelError, r"lacks 1 of \d+ weight shards: model-00002"),
        (_outside, UnsafeError, "points outside its folder"),
        (_drive, UnsafeError, "points outside its folder"),
        (_lacking, ModelError, r"lacks the tensor 'model.layers.7.mlp.up_proj.weight'"),
        (_truncated, ModelError, "is truncated or damaged"),
        (_no_table, ModelError, "is no index"),
        (_no_config, ModelError, r"no config\.json"),
    ],
)
def test_a_damaged_folder_is_refused_with_the_reason(
    tmp_path: Path, damage: Callable[[Path], None], error: type[ConvkitError], words: str
) -> None:
    llama().save_pretrained(tmp_path / "m", max_shard_size="60KB")
    damage(tmp_path / "m")
    with pytest.raises(error, match=words):
        open_folder(tmp_path / "m")


def test_a_file_that_becomes_shorter_is_told_when_it_is_read(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "m", {"w": torch.ones(100, 100)})
    with open_folder(path) as checkpoint:
        with (path / "model.safetensors").open("r+b") as stream:
            stream.truncate(2000)
        with pytest.raises(ModelError, match="become shorter"):
            checkpoint.tensors["w"].read(0, 100)


class _Trap:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def test_code_in_a_pickle_is_refused_and_runs_with_trust_only(tmp_path: Path) -> None:
    path = pickled(tmp_path / "m", {"w": torch.ones(2), "x": _Trap(tmp_path / "ran")})
    with pytest.raises(UnsafeError, match="could run code"):
        open_folder(path)
    assert not (tmp_path / "ran").exists()
    with open_folder(path, trust=True) as checkpoint:
        assert list(checkpoint.tensors) == ["w"]
    assert (tmp_path / "ran").exists()


def test_a_pickle_whose_bytes_are_missing_is_refused(tmp_path: Path) -> None:
    path = pickled(tmp_path / "m", {"w": torch.ones(3000)})
    content = (path / "pytorch_model.bin").read_bytes()
    (path / "pytorch_model.bin").write_bytes(content[:4000])
    with pytest.raises(ModelError, match="cannot be read as PyTorch weights"):
        open_folder(path)


@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_no_damage_to_a_header_gives_more_than_an_explained_error(
    tmp_path: Path, form: str
) -> None:
    state = {"w": torch.ones(40, 30), "t": torch.ones(4, 6).T, "n": torch.arange(4)}
    path = folder_of(tmp_path / "m", state) if form[0] == "s" else pickled(tmp_path / "m", state)
    (file,) = (each for each in path.iterdir() if each.suffix in (".bin", ".safetensors"))
    content = file.read_bytes()
    draw = np.random.default_rng(4)
    refused = 0
    for _ in range(150):
        damaged = bytearray(content)
        for place in draw.integers(0, 1000, 2):
            damaged[place] = draw.integers(0, 256)
        file.write_bytes(damaged)
        try:
            with open_folder(path) as checkpoint:
                for rows in checkpoint.tensors.values():
                    rows.read(0, min(rows.row_count, 50))
        except ConvkitError:
            refused += 1
    assert refused > 20


def test_bare_8_bit_floats_are_named(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "m", {"w": torch.ones(2, 2).to(torch.float8_e4m3fn)})
    with pytest.raises(UnsupportedError, match="'w' is F8_E4M3"):
        open_folder(path)
