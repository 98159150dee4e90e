"""Files of weights: what is written is read, and nothing that is broken gets through."""

import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from vidlang.core.tree import nest
from vidlang.nn.decoder_spec import DecoderSpec
from vidlang.pretrained import _names, gpt2
from vidlang.pretrained import _safetensors as safetensors
from vidlang.pretrained._names import Rule, to_params, to_tensors

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array([1.5, -2.0], ml_dtypes.bfloat16),
    "c": np.array(3, np.int64),
    "d": np.zeros((0, 4), np.float16),
}


def test_what_is_written_is_read(tmp_path):
    safetensors.write_file(tmp_path / "model.safetensors", TENSORS)
    found = safetensors.read_folder(tmp_path)
    assert set(found) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name], tensor)
    assert not found["a"].flags.writeable
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_several_files_are_one_mapping(tmp_path):
    for number, names in enumerate((("a", "b"), ("c", "d"))):
        safetensors.write_file(tmp_path / f"{number}.safetensors", {name: TENSORS[name] for name in names})
    index = {"weight_map": {"a": "0.safetensors", "b": "0.safetensors", "c": "1.safetensors", "d": "1.safetensors"}}
    (tmp_path / safetensors.INDEX).write_text(json.dumps(index))
    np.testing.assert_array_equal(safetensors.read_folder(tmp_path)["c"], TENSORS["c"])
    index["weight_map"] |= {"e": "1.safetensors"}
    (tmp_path / safetensors.INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"1\.safetensors has no tensor 'e', which"):
        safetensors.read_folder(tmp_path)
    del index["weight_map"]["e"], index["weight_map"]["d"]
    (tmp_path / safetensors.INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"1\.safetensors has a tensor 'd', which"):
        safetensors.read_folder(tmp_path)
    (tmp_path / "1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks 1\.safetensors, which"):
        safetensors.read_folder(tmp_path)


def header(text, tensors=b"\0" * 8):
    return len(text).to_bytes(8, "little") + text + tensors


def described(size, **tensors):
    """A file of these tensors, (dtype, shape, start, end), with so many bytes of them."""
    keys = "dtype", "shape", "data_offsets"
    entries = {name: dict(zip(keys, (d, s, [a, b]), strict=True)) for name, (d, s, a, b) in tensors.items()}
    return header(json.dumps(entries).encode(), b"\0" * size)


F32 = ("F32", [2], 0, 8)
BROKEN = {
    "empty": (b"", "it has 0 bytes"),
    "short": (b"\0\0\0", "it has 3 bytes"),
    "header too long": (header(b"{}")[:9], "is cut off: it has 9 bytes, and .* a header of 2;"),
    "no json": (header(b"hello"), "its header is no JSON"),
    "no text": (header(b"\xff\xfe"), "its header is no JSON"),
    "a list": (header(b"[]"), "its header is no JSON"),
    "deep": (header(b"[" * 100_000), "its header is no JSON"),
    "an entry of another kind": (header(b'{"a": 3}'), "'a' is described wrongly"),
    "unknown type": (described(1, a=("F8_E4M3", [1], 0, 1)), "described wrongly"),
    "shape of texts": (described(8, a=("F32", ["2"], 0, 8)), "described wrongly"),
    "shape below zero": (described(8, a=("F32", [-1, -2], 0, 8)), "described wrongly"),
    "no whole offsets": (described(8, a=("F32", [2], 0.0, 8.0)), "described wrongly"),
    "too short": (described(8, a=("F32", [4], 0, 16)), "lie at 0 to 16 of 8"),
    "wrong size": (described(8, a=("F32", [4], 0, 8)), "takes 16 bytes"),
    "backwards": (described(8, a=("F32", [0], 4, 0)), "lie at 4 to 0"),
    "two in one place": (described(8, a=F32, b=F32), "tensor 'b' begins inside another"),
    "half over another": (described(12, a=F32, b=("F32", [2], 4, 12)), "tensor 'b' begins inside another"),
    "a gap": (described(20, a=F32, b=("F32", [2], 12, 20)), "tensor 'b' lies behind bytes of no tensor"),
    "bytes at the end": (described(9, a=F32), "has 1 bytes behind its last tensor"),
    "pickle": (b"\x80\x04\x95" + b"\x12" * 40, "it has 43 bytes, and its first eight ask for a header of"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_in_one_sentence(name, tmp_path):
    content, reason = BROKEN[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason) as caught:
        safetensors.read_folder(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_cut_anywhere_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.write_file(path, TENSORS)
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            safetensors.read_folder(tmp_path)


def test_any_header_is_refused_or_gives_tensors_that_fill_the_file(tmp_path):
    """Bytes of a good header changed at random: no other error than ours, and no tensor beyond the file."""
    rng, path = np.random.default_rng(0), tmp_path / "model.safetensors"
    safetensors.write_file(path, TENSORS)
    content = np.frombuffer(path.read_bytes(), np.uint8)
    for _ in range(300):
        damaged = content.copy()
        places = rng.integers(0, len(content), rng.integers(1, 4))
        damaged[places] = rng.integers(0, 256, len(places))
        path.write_bytes(damaged.tobytes())
        try:
            found = safetensors.read_file(path)
        except ValueError:
            continue
        assert sum(found[name].nbytes for name in found) == 36


def test_an_offset_that_is_no_multiple_of_the_number_is_read(tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = {"a": np.arange(3, dtype=np.uint8), "b": np.arange(4, dtype=np.float32), "c": np.float64(7).reshape(1)}
    safetensors.write_file(path, tensors)
    found = safetensors.read_file(path)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor)


def test_a_file_that_shrinks_after_its_header_was_read_is_an_error(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.write_file(path, TENSORS)
    found = safetensors.read_file(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="can no longer be read"):
        found["a"]


RULES = [
    Rule("words/table", "wte", (4, 2)),
    Rule("layers/kernel", "h.{}.w", (2, 3), 2, lambda x: x.T, lambda x: x.T),
]


def test_rules_go_both_ways_and_layers_are_stacked():
    rng = np.random.default_rng(0)
    tensors = {"wte": rng.normal(size=(4, 2)), "h.0.w": rng.normal(size=(3, 2)), "h.1.w": rng.normal(size=(3, 2))}
    tensors = {name: x.astype(np.float32) for name, x in tensors.items()}
    params = to_params(tensors, RULES)
    np.testing.assert_array_equal(params["layers"]["kernel"][1], tensors["h.1.w"].T)
    back = to_tensors(params, RULES)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor)


def test_tensors_of_another_model_are_all_listed():
    tensors = {"wte": np.zeros((4, 3)), "h.0.w": np.zeros((3, 2), np.int8), "more": np.zeros(1), "mask": np.zeros(1)}
    with pytest.raises(ValueError) as caught:
        to_params(tensors, RULES, left=["mask"])
    message = str(caught.value)
    assert "1 missing: h.1.w" in message and "1 unused: more" in message
    assert "1 misshapen: wte (4, 3), which does not give words/table (4, 2)" in message
    assert "1 not floating: h.0.w int8" in message


def test_parameters_of_another_model_are_all_listed():
    params = {"words": {"table": np.zeros((4, 3))}, "layers": {"kernel": np.zeros((2, 2, 3)), "bias": np.zeros(2)}}
    with pytest.raises(ValueError, match=r"layers/bias is not of it, words/table is \(4, 3\), not \(4, 2\)"):
        to_tensors(params, RULES)
    with pytest.raises(ValueError, match=r"layers/kernel is missing"):
        to_tensors({"words": {"table": np.zeros((4, 2))}}, RULES)


def test_a_folder_of_another_type_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(ValueError, match="model_type 't5'; this family reads gpt2"):
        _names.read_config(tmp_path, {"gpt2": None})
    with pytest.raises(ValueError, match="cannot be read"):
        _names.read_config(tmp_path / "none", {"gpt2": None})
    with pytest.raises(ValueError, match=r"has no model\.safetensors .* it has no file of weights"):
        safetensors.read_folder(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"has no model\.safetensors .* it has pytorch_model\.bin"):
        safetensors.read_folder(tmp_path)
    with pytest.raises(ValueError, match="there is no folder"):
        safetensors.read_folder(tmp_path / "none")


MEASURE = """
import sys

from vidlang.core.config import load_module
from vidlang.pretrained import _names, _safetensors
import jax, numpy as np

def peak():  # of this process, not of the one that started it, whose peak Linux counts too
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024

before = peak()
params = load_module("pretrained", "gpt2").load(sys.argv[1])
size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
print((peak() - before) / size, size)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks of memory are read from /proc")
def test_loading_holds_no_second_copy(tmp_path, repository):
    config = {"model_type": "gpt2", "n_layer": 12, "n_embd": 640, "n_head": 10, "vocab_size": 30_000}
    config |= {"n_positions": 512}
    spec = DecoderSpec(**gpt2.spec(config))
    rules = gpt2._rules(spec)
    params = nest({rule.path: np.ones(rule.whole, np.float32) for rule in rules})
    (tmp_path / "config.json").write_text(json.dumps(config))
    safetensors.write_file(tmp_path / "model.safetensors", gpt2.from_flax(params, config))
    del params
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, cwd=repository, check=True
    )
    ratio, size = map(float, done.stdout.split())
    assert size > 250e6 and ratio < 1.3, ratio
