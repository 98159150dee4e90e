"""Pickles that do harm: none runs anything, and each is refused in one sentence that says what it asked for."""

import argparse
import builtins
import functools
import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch

from vidlang.pretrained import _known, _torch
from vidlang.pretrained._safetensors import Entry


class Calls:
    """An object that a pickle makes by calling this."""

    def __init__(self, called, *arguments):
        self.called, self.arguments = called, arguments

    def __reduce__(self):
        return self.called, self.arguments


def archive(path, whole, **members):
    """An archive as torch.save makes it, of any pickle and any other members."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x/data.pkl", whole if isinstance(whole, bytes) else pickle.dumps(whole, 2))
        for name, content in members.items():
            file.writestr(f"x/{name}", content)
    return path


def saved(path, state, **options):
    torch.save(state, path, **options)
    return path


def refused(path, match):
    with pytest.raises(ValueError, match=match) as caught:
        _torch.read(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("old", [False, True], ids=["archive", "before archives"])
def test_nothing_that_a_file_asks_for_is_run(old, tmp_path):
    canary = tmp_path / "canary"
    attacks = {
        "posix.system": Calls(os.system, f"touch {canary}"),
        "builtins.eval|__builtin__.eval": Calls(eval, f"open({str(canary)!r}, 'w')"),
        "builtins.exec|__builtin__.exec": Calls(exec, f"open({str(canary)!r}, 'w')"),
        "builtins.getattr|__builtin__.getattr": Calls(getattr, "a", "upper"),
        "functools.partial": Calls(functools.partial(os.system, f"touch {canary}")),
        "io.open|_io.open": Calls(builtins.open, str(canary), "w"),
        r"torch\.hub\.load": Calls(torch.hub.load, "a/b", "c"),
        "torch.serialization.load|torch.load": Calls(torch.load, str(canary)),
        "numpy.*load": Calls(np.load, str(canary), None, True),
    }
    for name, attack in attacks.items():
        for whole in (
            attack,
            {"state_dict": {"a": torch.ones(2), "b": [attack]}},
            {"args": argparse.Namespace(a=attack)},
        ):
            path = tmp_path / "x.pt"
            torch.save(whole, path, _use_new_zipfile_serialization=not old)
            refused(path, rf"would run or make '({name})', which weights need not")
    assert not canary.exists()


def test_the_same_attacks_do_run_where_pickle_reads(tmp_path):
    canary = tmp_path / "canary"
    pickle.loads(pickle.dumps(Calls(os.system, f"touch {canary}"), 2))
    assert canary.exists()


def test_instructions_that_call_in_other_ways_are_refused(tmp_path):
    command = b"(S'touch canary'\n"
    cases = {
        "INST": b"\x80\x02" + command + b"ios\nsystem\n.",
        "OBJ": b"\x80\x02(cargparse\nNamespace\no.",
        "NEWOBJ_EX": b"\x80\x04cargparse\nNamespace\n)}\x92.",
        "EXT1": b"\x80\x02\x82\x01.",
        "PERSID": b"\x80\x02Pstorage\n.",
        "BYTEARRAY8": b"\x80\x05\x96" + struct.pack("<Q", 3) + b"abc.",
    }
    for name, whole in cases.items():
        refused(archive(tmp_path / "x.pt", whole), rf"has the instruction {name}, which files of weights do without")


def test_an_allowed_name_is_no_way_to_another(tmp_path):
    """A name with dots inside, a dtype of objects, a class that is only named, and calls of what is no name."""
    path = tmp_path / "x.pt"
    refused(archive(path, b"\x80\x04\x8c\x05numpy\x8c\x11dtype.__class__.x\x93."), r"'numpy\.dtype\.__class__\.x'")
    objects = np.array([os.system], object)
    refused(archive(path, {"a": objects}), "posix.system")
    raw = b"\x80\x02cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nX\x01\0\0\0O\x85RU\x08\1\2\3\4\5\6\7\x08\x86R."
    refused(archive(path, raw), "has an array of 'O'; arrays of little-endian numbers are read")
    refused(archive(path, b"\x80\x02ctorch\nFloatStorage\n)R."), "calls torch.FloatStorage, which is nothing to call")
    refused(archive(path, b"\x80\x02X\x01\0\0\0a)R."), "calls what is no name")
    refused(archive(path, b"\x80\x02c__torch__\nModule\n)\x81."), r"'__torch__\.Module'")


def storage_of(kind, count, key="0"):
    """The start of a pickle of one tensor."""
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storage"
        + b"c"
        + kind
        + b"X\x01\0\0\0"
        + (key.encode() + b"X\x03\0\0\0cpu" + b"\x8a\x08" + struct.pack("<q", count) + b"tQ")
    )


def tensor(kind=b"torch\nFloatStorage\n", count=4, first=0, shape=(4,), strides=(1,)):
    whole = b"\x80\x02" + storage_of(kind, count)
    for numbers in ((first,), shape, strides):
        packed = b"".join(b"\x8a\x08" + struct.pack("<q", n) for n in numbers)
        whole += packed if numbers is not shape and numbers is not strides else b"(" + packed + b"t"
    return whole + b"\x89N" + b"tR."


def test_tensors_that_are_not_in_their_storage_are_refused(tmp_path):
    path, four = tmp_path / "x.pt", {"data/0": np.arange(4, dtype=np.float32).tobytes()}
    found = _torch.read(archive(path, tensor(), **four)).read()
    np.testing.assert_array_equal(found, np.arange(4, dtype=np.float32))
    found = _torch.read(archive(path, tensor(first=1, shape=(2, 1), strides=(2, 1)), **four)).read()
    np.testing.assert_array_equal(found, [[1], [3]])
    refused(archive(path, tensor(count=1 << 40), **four), f"claims {4 << 40} bytes of numbers where it has 16")
    refused(archive(path, tensor(count=1 << 62), **four), "which is no whole number")
    refused(archive(path, tensor(first=1), **four), "which does not hold it")
    refused(archive(path, tensor(strides=(2,)), **four), "which does not hold it")
    refused(archive(path, tensor(first=-1), **four), "'-1', which is no whole number")
    refused(archive(path, tensor(strides=(-1,)), **four), "'-1', which is no whole number")
    refused(archive(path, tensor(shape=(1 << 40,), strides=(0,)), **four), "which does not hold it")
    refused(archive(path, tensor(shape=(4,) * 20, strides=(0,) * 20), **four), "of 20 axes")
    refused(archive(path, tensor(kind=b"torch\nQInt8Storage\n"), **four), r"'torch\.QInt8Storage'")
    refused(archive(path, tensor(kind=b"argparse\nNamespace\n"), **four), "has a storage of")
    refused(archive(path, tensor()), "lacks its part 'data/0'")


@pytest.mark.parametrize("old", [False, True], ids=["archive", "before archives"])
def test_a_file_cut_anywhere_is_refused(old, tmp_path):
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.float16), "epoch": 3}
    content = saved(tmp_path / "x.pt", state, _use_new_zipfile_serialization=not old).read_bytes()
    path = tmp_path / "cut.pt"
    for size in [*range(0, len(content), 7), len(content) - 1]:
        path.write_bytes(content[:size])
        refused(path, "x|cut.pt")


@pytest.mark.parametrize("old", [False, True], ids=["archive", "before archives"])
def test_any_damage_is_refused_or_gives_tensors_inside_the_file(old, tmp_path):
    """Bytes of a good file changed at random: no other error than ours."""
    rng = np.random.default_rng(0)
    state = {"a": torch.arange(6.0).reshape(2, 3), "args": argparse.Namespace(a=1), "best": np.float64(2)}
    path = saved(tmp_path / "x.pt", state, _use_new_zipfile_serialization=not old)
    content = np.frombuffer(path.read_bytes(), np.uint8)
    for _ in range(400):
        damaged = content.copy()
        places = rng.integers(0, min(len(content), 700), rng.integers(1, 4))
        damaged[places] = rng.integers(0, 256, len(places))
        path.write_bytes(damaged.tobytes())
        try:
            found = _torch.read(path)
        except ValueError:
            continue
        if isinstance(found, dict) and isinstance(entry := found.get("a"), Entry):
            assert entry.read().nbytes <= len(content)


def test_files_of_other_kinds_are_refused(tmp_path):
    path = tmp_path / "x.pt"
    for content, match in {
        b"": "begins with b''",
        b"hello": "neither an archive nor a pickle",
        pickle.dumps({"a": 1}, 2): "the wrong magic number",
        pickle.dumps(_torch.MAGIC, 2) + pickle.dumps(7, 2): "version 7",
        pickle.dumps(_torch.MAGIC, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": False}, 2): "order",
        b"\x80\x02": "is damaged",
        b"\x80\x02U\xff": "is damaged",
        b"\x80\x02\x8a\xff": "is damaged",
        b"\x80\x02" + b"\x95" + b"\xff" * 8: "is damaged|magic",
        b"PK\x03\x04": "is no whole archive",
    }.items():
        path.write_bytes(content)
        refused(path, match)
    with pytest.raises(ValueError, match="cannot be read"):
        _torch.read(tmp_path / "none.pt")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/b.txt", "")
    refused(path, r"without one data\.pkl")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:  # what could be a thousand times as large
        file.writestr("x/data.pkl", b"\0" * 100_000)
    refused(path, "packed, which PyTorch never does")
    refused(archive(path, {"a": 1}, byteorder=b"big"), "in the order b'big'")


def test_numbers_as_large_as_they_claim_are_never_asked_for(tmp_path):
    """Lengths of texts, bytes and numbers of which there is no such number in the file."""
    huge = struct.pack("<Q", 1 << 60)
    for opcode in (b"\x8d", b"\x8e", b"\x95"):
        refused(archive(tmp_path / "x.pt", b"\x80\x04" + opcode + huge + b"abc."), "is damaged")
    for opcode in (b"X", b"B", b"T", b"\x8b"):
        refused(archive(tmp_path / "x.pt", b"\x80\x04" + opcode + b"\xff\xff\xff\x7fabc."), "is damaged")
    path = archive(tmp_path / "x.pt", b"\x80\x02]r\xff\xff\xff\x7f.")  # a place in the memo far away is only a place
    assert _torch.read(path) == []


def test_keys_are_plain(tmp_path):
    deep = b"\x80\x02)" + b"\x85" * 200_000  # a tuple in a tuple, whose hash would be a call in a call
    refused(archive(tmp_path / "x.pt", b"\x80\x02}" + deep[2:] + b"Ns."), "a dict whose key is a tuple")


class Scripted(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3))
        self.shared = self.inner[0]
        self.table = torch.nn.Parameter(torch.arange(4.0))
        self.resolution = 224
        self.sizes = [1, 2]

    def forward(self, x):
        return self.inner(x).sum() * self.resolution + self.table.sum()


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_scripted_model_is_its_state_and_its_code_is_not_read(tmp_path):
    path = tmp_path / "x.pt"
    model = torch.jit.script(Scripted())
    model.save(str(path))
    members = zipfile.ZipFile(path)
    with zipfile.ZipFile(tmp_path / "broken.pt", "w") as broken:  # code that cannot be, and constants that are none
        for info in members.infolist():
            is_code = "/code/" in info.filename or info.filename.endswith("constants.pkl")
            broken.writestr(info.filename, b"import os; os.abort()" if is_code else members.read(info))
    for file in (path, tmp_path / "broken.pt"):
        found = _torch.read(file)
        tensors = {name: entry.read() for name, entry in found.items() if isinstance(entry, Entry)}
        assert set(tensors) == set(model.state_dict())
        for name, tensor in model.state_dict().items():
            np.testing.assert_array_equal(tensors[name], tensor.numpy())
        assert found["resolution"] == 224 and found["sizes"] == [1, 2]


def test_a_scripted_model_may_not_run_either(tmp_path):
    canary = tmp_path / "canary"
    whole = pickle.dumps({"a": Calls(os.system, f"touch {canary}")}, 2)
    refused(archive(tmp_path / "x.pt", whole, **{"constants.pkl": b""}), "posix.system")
    ring = b"\x80\x02c__torch__\nM\n)\x81q\0}X\x01\0\0\0ah\0sb."  # a module that is in itself
    refused(archive(tmp_path / "x.pt", ring, **{"constants.pkl": b""}), "modules in modules without end")
    assert not canary.exists()


def test_classes_that_are_skipped_leave_nothing(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"a": torch.ones(2), "config": io.BytesIO(), "inner": Calls(os.getenv, "b")}, path)
    refused(path, "would run or make")
    found = _torch.read(path, skip=[r"_io\.BytesIO", r"os\.getenv"])
    assert isinstance(found["config"], _known.Skipped) and isinstance(found["inner"], _known.Skipped)
