"""Files of weights: what is written is read, and nothing that is broken gets through."""

import json

import ml_dtypes
import numpy as np
import pytest

from vidlang.pretrained import _names
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
    (tmp_path / "1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks 1\.safetensors, which"):
        safetensors.read_folder(tmp_path)


def header(text, tensors=b"\0" * 8):
    return len(text).to_bytes(8, "little") + text + tensors


BROKEN = {
    "empty": (b"", "cannot be read|has 0 bytes"),
    "short": (b"\0\0\0", "it has 3 bytes"),
    "header too long": (header(b"{}")[:9], "is cut off: its header should have 2 bytes"),
    "no json": (header(b"hello"), "its header is no JSON"),
    "a list": (header(b"[]"), "its header is no JSON"),
    "unknown type": (header(b'{"a": {"dtype": "F8", "shape": [1], "data_offsets": [0, 1]}}'), "described wrongly"),
    "too short": (header(b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}'), "lie at 0 to 16 of 8"),
    "wrong size": (header(b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}'), "takes 16 bytes"),
    "backwards": (header(b'{"a": {"dtype": "F32", "shape": [0], "data_offsets": [4, 4]}}'), None),
    "pickle": (b"\x80\x04\x95" + b"\x12" * 40, "its header should have"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_in_one_sentence(name, tmp_path):
    content, reason = BROKEN[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    if reason is None:
        assert safetensors.read_file(path)["a"].shape == (0,)
        return
    with pytest.raises(ValueError, match=reason) as caught:
        safetensors.read_folder(tmp_path)
    assert "\n" not in str(caught.value)


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
    tensors = {"wte": np.zeros((4, 3)), "h.0.w": np.zeros((3, 2)), "more": np.zeros(1), "mask": np.zeros(1)}
    with pytest.raises(ValueError) as caught:
        to_params(tensors, RULES, left=["mask"])
    message = str(caught.value)
    assert "1 missing: h.1.w" in message and "1 unused: more" in message
    assert "1 misshapen: wte (4, 3), which does not give words/table (4, 2)" in message


def test_a_folder_of_another_type_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(ValueError, match="model_type 't5'; this family reads gpt2"):
        _names.read_config(tmp_path, {"gpt2": None})
    with pytest.raises(ValueError, match="cannot be read"):
        _names.read_config(tmp_path / "none", {"gpt2": None})
    with pytest.raises(ValueError, match="has no model.safetensors"):
        safetensors.read_folder(tmp_path)
