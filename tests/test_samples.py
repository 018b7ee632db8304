"""Inputs: drawn, resized, read from files, described on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from convkit import samples
from convkit.artifact import TensorSpec
from convkit.errors import SamplesError, UsageError

IDS = TensorSpec("ids", "int64", ("batch", "sequence"))
IMAGE = TensorSpec("image", "float32", ("batch", 3, "height", "width"))


def test_the_same_seed_draws_the_same() -> None:
    first, second = (samples.draw([IDS, IMAGE], {}, 5) for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_ranges_hold_for_integers_and_floats() -> None:
    drawn = samples.draw([IDS, IMAGE], {"batch": 50}, 0, {"ids": (0, 2), "image": (0.0, 1.0)})
    assert set(np.unique(drawn["ids"])) == {0, 1, 2}
    assert 0 <= drawn["image"].min() < 0.01
    assert 0.99 < drawn["image"].max() <= 1


def test_shape_sets_begin_with_batch_one_a_larger_batch_and_an_odd_length() -> None:
    one, many, odd = list(samples.shape_sets([IDS]))[:3]
    assert (one["batch"], many["batch"]) == (1, 3)
    assert odd["sequence"] % 2 == 1


def test_a_first_dimension_without_a_telling_name_is_the_batch() -> None:
    sets = list(samples.shape_sets([TensorSpec("x", "float32", ("unk__214", "time"))]))
    assert [sizes["unk__214"] for sizes in sets[:3]] == [1, 3, 2]


def test_a_dimension_called_batch_is_the_only_one_where_there_is_one() -> None:
    specs = [TensorSpec("h", "float32", ("layers", "batch", 8))]
    assert samples.batch_names(specs) == {"batch"}


def test_dimensions_of_different_names_differ_in_every_early_set() -> None:
    decoder = TensorSpec("decoder_ids", "int64", ("batch", "decoder_sequence"))
    for sizes in list(samples.shape_sets([IDS, decoder, IMAGE]))[:3]:
        assert sizes["sequence"] != sizes["decoder_sequence"]
        assert sizes["height"] != sizes["width"]


def test_odd_lengths_and_sides_stay_odd_for_every_name() -> None:
    decoder = TensorSpec("decoder_ids", "int64", ("batch", "decoder_sequence"))
    odd = list(samples.shape_sets([IDS, decoder, IMAGE]))[2]
    assert all(size % 2 for name, size in odd.items() if name != "batch")


def test_models_that_want_sizes_alike_are_offered_batch_one_three_and_an_odd_length_too() -> None:
    alike = [s for s in samples.shape_sets([IMAGE]) if s["height"] == s["width"]]
    assert [sizes["batch"] for sizes in alike[:2]] == [1, 3]
    assert alike[2]["height"] % 2 == 1


def test_nameless_dimensions_are_taken_for_one_and_the_same() -> None:
    specs = [TensorSpec(n, "int64", ("batch", f"{n}_dim1")) for n in ("ids", "mask")]
    assert all(s["ids_dim1"] == s["mask_dim1"] for s in samples.shape_sets(specs))


def test_models_that_want_long_inputs_are_offered_some() -> None:
    assert max(sizes["sequence"] for sizes in samples.shape_sets([IDS])) > 1000


def test_image_sides_are_larger_than_sequences() -> None:
    assert all(sizes["height"] >= 64 for sizes in samples.shape_sets([IMAGE]))


def test_without_dynamic_dimensions_there_is_one_shape_set() -> None:
    assert list(samples.shape_sets([TensorSpec("x", "float32", (2, 3))])) == [{}]


def test_resize_cuts_and_repeats_along_dynamic_dimensions_only() -> None:
    feeds = {"ids": np.arange(6).reshape(2, 3)}
    resized = samples.resize(feeds, [IDS], {"batch": 3, "sequence": 2})["ids"]
    assert resized.tolist() == [[0, 1], [3, 4], [0, 1]]


def test_specs_read_off_samples_call_the_shared_first_dimension_batch() -> None:
    feeds = {"a": np.zeros((2, 3), np.float32), "n": np.zeros((), np.int64)}
    assert [str(spec) for spec in samples.specs_of([feeds])] == [
        "a: float32[batch, 3]",
        "n: int64[]",
    ]


def test_sizes_that_differ_between_samples_are_dynamic() -> None:
    lengths = [{"a": np.zeros((2, length), np.float32)} for length in (5, 9)]
    (spec,) = samples.specs_of(lengths)
    assert spec.shape == ("batch", "a_dim1")


def test_npz_jsonl_and_folders_are_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", x=np.ones((2, 2), np.float32))
    (tmp_path / "two.jsonl").write_text('{"x": [[1, 2]]}\n{"x": [[0.5, 2]]}\n')
    assert len(samples.read(tmp_path)) == 1
    assert samples.read(tmp_path / "one.npz")[0]["x"].shape == (2, 2)
    integers, floats = samples.read(tmp_path / "two.jsonl")
    assert integers["x"].dtype == np.int64
    assert floats["x"].dtype == np.float32


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.npz", b"not a zip", "cannot be read"),
        ("a.npz", b"", "cannot be read"),
        ("a.jsonl", b"{broken", "cannot be read"),
        ("a.jsonl", b'{"x": ["text"]}', "numbers are expected"),
        ("a.jsonl", b"", "holds no samples"),
        ("a.jsonl", b'{"x": [NaN]}', "NaN"),
        ("a.txt", b"1 2 3", "no samples file"),
    ],
)
def test_bad_sample_files_are_refused(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SamplesError, match=words):
        samples.read(path)


def test_missing_samples_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SamplesError, match="There is no samples file"):
        samples.read(tmp_path / "none.npz")


def test_pickled_arrays_in_npz_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "evil.npz", x=np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(SamplesError, match="cannot be read"):
        samples.read(tmp_path / "evil.npz")


def test_specs_are_parsed_as_the_command_line_writes_them() -> None:
    spec = samples.parse_spec("x=float32[batch, 3,224,224]")
    assert spec == TensorSpec("x", "float32", ("batch", 3, 224, 224))
    assert samples.parse_spec("sr=int64[]").shape == ()
    assert samples.parse_spec("a.b/c=bool[2]").name == "a.b/c"


@pytest.mark.parametrize("text", ["x", "x=float32", "x=float99[1]", "x=float32[a b]", "=f[1]"])
def test_specs_written_otherwise_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="does not describe an input"):
        samples.parse_spec(text)


def test_json_of_a_spec_keeps_names_of_dimensions() -> None:
    assert json.loads(json.dumps(IDS.to_json()))["shape"] == ["batch", "sequence"]


def test_dimensions_beside_the_channels_of_an_image_are_sides_whatever_their_names() -> None:
    for shape in (("n", 3, "x_dim2", "q"), ("n", "x_dim2", "q", 3)):
        sets = list(samples.shape_sets([TensorSpec("x", "float32", shape)]))
        assert all(sizes["x_dim2"] >= 64 and sizes["q"] >= 64 for sizes in sets)
        assert sets[0]["x_dim2"] != sets[0]["q"]
