"""Weights in folders and files as torch.save and safetensors write them: what is saved is read, lazily."""

import argparse
import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import torch

from vidlang.pretrained import _safetensors
from vidlang.pretrained._files import read_checkpoint, read_weights

FORMATS = pytest.mark.parametrize("old", [False, True], ids=["archive", "before archives"])


def save(path, whole, old=False):
    torch.save(whole, path, _use_new_zipfile_serialization=not old)
    return path


def tensors():
    """Of every type, and laid out in every way."""
    base = torch.arange(24.0)
    state = {str(t): base[:4].to(t) for t in (torch.float64, torch.float16, torch.int64, torch.int8, torch.uint8)}
    state |= {"bool": base[:3] > 1, "int16": base[:3].short(), "int32": base[:3].int(), "scalar": torch.tensor(2.5)}
    state |= {"turned": base.reshape(4, 6).T, "part": base[5:11], "every other": base.reshape(4, 6)[1:, ::2]}
    state |= {"none": torch.zeros(0, 3), "row": base[:6].expand(1, 6), "parameter": torch.nn.Parameter(base[:2])}
    return {**state, "whole": base}


@FORMATS
def test_what_torch_saves_is_read(old, tmp_path):
    state = tensors()
    found = read_weights(save(tmp_path / "x.pt", state, old))
    assert list(found) == list(state)
    for name, tensor in state.items():
        expected = tensor.detach().numpy()
        assert found[name].dtype == expected.dtype and not found[name].flags.writeable
        np.testing.assert_array_equal(found[name], expected)


@FORMATS
def test_numbers_of_16_bits_are_those_that_were_saved(old, tmp_path):
    drawn = torch.randn(40, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = read_weights(save(tmp_path / "x.pt", {"a": drawn}, old))["a"]
    assert found.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found.astype(np.float32), drawn.float().numpy())


def test_tensors_that_share_their_numbers_share_the_file(tmp_path):
    state = tensors()
    size = save(tmp_path / "x.pt", state).stat().st_size
    alone = save(tmp_path / "y.pt", {name: tensor.clone() for name, tensor in state.items()}).stat().st_size
    assert size < alone
    found = read_weights(tmp_path / "x.pt")
    np.testing.assert_array_equal(found["part"], found["whole"][5:11])


@FORMATS
@pytest.mark.parametrize("key", ["state_dict", "model", "module", None])
def test_a_checkpoint_gives_its_state_and_what_is_plain(key, old, tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    args = argparse.Namespace(lr=1e-3, betas=(0.9, 0.98), names=["a"], inner=argparse.Namespace(x=None))
    others = {"epoch": 3, "args": args, "best": np.float32(0.5), "optimizer": optimizer.state_dict()}
    whole = state if key is None else {**others, key: state}
    found, plain = read_checkpoint(save(tmp_path / "x.pt", whole, old))
    assert set(found) == {"weight", "bias"}
    np.testing.assert_array_equal(found["weight"], model.weight.detach().numpy())
    expected = {"lr": 1e-3, "betas": (0.9, 0.98), "names": ["a"], "inner": {"x": None}}
    assert plain == ({} if key is None else {"epoch": 3, "args": expected, "best": 0.5})


def test_a_prefix_of_some_names_is_part_of_them(tmp_path):
    state = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert set(read_weights(save(tmp_path / "x.pt", state))) == {"module.a", "b"}


def test_a_model_inside_a_checkpoint_inside_another_is_found(tmp_path):
    whole = {"model": {"state_dict": {"a": torch.ones(1)}, "n": 1}, "m": 2}
    found, plain = read_checkpoint(save(tmp_path / "x.pt", whole))
    assert set(found) == {"a"} and plain == {"n": 1, "m": 2}


def test_files_without_one_state_say_what_they_have(tmp_path):
    for whole, match in (
        ({"epoch": 1}, "has no state dict .* it has epoch"),
        ({}, "it has nothing"),
        (torch.ones(1), "it has Entry"),
        ({"model": {"a": torch.ones(1)}, "module": {"a": torch.ones(1)}}, "it has model, module"),
        ({3: torch.ones(1)}, "a tensor called 3"),
    ):
        with pytest.raises(ValueError, match=match):
            read_checkpoint(save(tmp_path / "x.pt", whole))
    with pytest.raises(ValueError, match="is not there"):
        read_checkpoint(tmp_path / "none.pt")
    with pytest.raises(ValueError, match="is a folder"):
        read_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r"has no model\.safetensors .* it has x\.pt"):
        read_weights(tmp_path)


def test_what_is_in_itself_is_no_plain_value(tmp_path):
    ring, shared = [1], {"x": [1]}
    ring.append(ring)
    whole = {"model": {"a": torch.ones(1)}, "ring": ring, "twice": [shared, shared]}
    many = [1]
    for _ in range(30):  # a list of two lists of two lists ... which is small in the file, and in memory
        many = [many, many]
    _, plain = read_checkpoint(save(tmp_path / "x.pt", {**whole, "many": many}))
    assert set(plain) == {"twice", "many"} and plain["twice"] == [{"x": [1]}, {"x": [1]}]
    assert plain["many"][0] is plain["many"][1]


def test_folders_of_either_kind_are_read(tmp_path):
    state = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}
    save(tmp_path / "pytorch_model.bin", state)
    np.testing.assert_array_equal(read_weights(tmp_path)["a"], [0, 1, 2])
    _safetensors.write_file(tmp_path / "model.safetensors", {"a": np.zeros(3, np.float32)})  # and this one goes first
    np.testing.assert_array_equal(read_weights(tmp_path)["a"], np.zeros(3))
    np.testing.assert_array_equal(read_weights(tmp_path / "model.safetensors")["a"], np.zeros(3))
    assert read_checkpoint(tmp_path / "model.safetensors")[1] == {}


def test_a_folder_of_several_files_is_what_its_index_says(tmp_path):
    save(tmp_path / "1.bin", {"a": torch.arange(3.0)})
    save(tmp_path / "2.bin", {"b": torch.ones(2)})
    index = tmp_path / "pytorch_model.bin.index.json"

    def says(**files):
        index.write_text(json.dumps({"weight_map": files}))
        return tmp_path

    found = read_weights(says(a="1.bin", b="2.bin"))
    assert set(found) == {"a", "b"}
    np.testing.assert_array_equal(found["b"], [1, 1])
    for files, match in (
        ({"a": "1.bin", "b": "3.bin"}, r"lacks 3\.bin"),
        ({"a": "1.bin", "b": "1.bin"}, r"1\.bin has no tensor 'b'"),
        ({"a": "1.bin", "c": "2.bin"}, r"2\.bin has a tensor 'b'"),
        ({"a": "../1.bin", "b": 3}, "is no index of files"),
    ):
        with pytest.raises(ValueError, match=match):
            read_weights(says(**files))


READ = """
import sys
from vidlang.pretrained._files import read_weights

def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024

before = resident()
tensors = read_weights(sys.argv[1])
shapes = {name: tensors[name].shape for name in tensors}
assert "torch" not in sys.modules
print(len(shapes), resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks of memory are read from /proc")
@FORMATS
def test_shapes_are_read_without_numbers_and_without_torch(old, tmp_path, repository):
    save(tmp_path / "x.pt", {f"layer.{i}": torch.zeros(1 << 20) for i in range(16)}, old)
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path / "x.pt")], capture_output=True, text=True, cwd=repository, check=True
    )
    count, grown = map(int, done.stdout.split())
    assert count == 16 and grown < 16 << 20, grown  # of 64 MiB
