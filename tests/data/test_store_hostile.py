"""Whatever bytes a store is made of, it gives the right frames or a named error: no crash, no wrong frame."""

import contextlib
import hashlib
import json
import os
import shutil
import zlib

import numpy as np
import pyarrow as pa
import pytest

from vidlang.data.chunks import StoreAway, open_store
from vidlang.data.crops import CropBox
from vidlang.data.encode import EncodeSettings, encode_mp4
from vidlang.data.failures import KINDS, BrokenVideo
from vidlang.data.stores.adopt import adopt
from vidlang.data.stores.index import checksum, is_intact, stamp
from vidlang.data.stores.writer import CutVideo, write_store

FPS, FULL, SIZE = 8, CropBox(0, 0, 32, 48), (16, 16)


def video():
    frames = np.random.default_rng(0).integers(0, 256, (15, 32, 48, 3), dtype=np.uint8)
    settings = EncodeSettings(preset="ultrafast", crf=12)
    chunks = [encode_mp4(part, fps=FPS, settings=settings) for part in (frames[:6], frames[6:12], frames[12:])]
    return CutVideo("one", FPS, 48, 32, chunks, (6, 6, 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / "store"
    write_store(path, [video()], {"fps": FPS})
    return path


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def edit_header(path, **changes):
    header = json.loads((path / "store.json").read_text())
    (path / "store.json").write_text(json.dumps({**header, **changes}))


def rename_file(path, name):
    """Lets the index of a store of one file name another, with a store.json that vouches for it."""
    with pa.memory_map(str(path / "index.arrow")) as file:
        table = pa.ipc.open_file(file).read_all()
        rows, schema = table.to_pylist(), table.schema
    with pa.OSFile(str(path / "index.new"), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_table(pa.Table.from_pylist([rows[0] | {"file": [name]}], schema))
    (path / "index.new").replace(path / "index.arrow")
    edit_header(path, index=stamp(path / "index.arrow"))


def outcome(path, expected):
    """Whether a store still gives the right frames; anything but them and a named error raises."""
    try:
        store = open_store(path)
        assert list(store.videos) == ["one"]
        got = store.decode("one", np.array([0.0, 0.6]), FULL, SIZE)
    except (ValueError, StoreAway) as error:
        assert str(error) and (not isinstance(error, BrokenVideo) or error.kind in KINDS)
        return False
    np.testing.assert_array_equal(got, expected)
    return True


def mutations(content, rng, count):
    for number in range(count):
        noisy = bytearray(content)
        place = int(rng.integers(len(noisy)))
        if number % 4 == 0:
            noisy = noisy[:place]
        elif number % 4 == 1:
            noisy[place : place + 8] = rng.bytes(8)
        else:
            noisy[place] ^= 1 << rng.integers(8)
        yield bytes(noisy)


@pytest.mark.parametrize("stamped", [True, False])
@pytest.mark.parametrize("name", ["store.json", "index.arrow", "shard"])
def test_hostile_bytes_end_as_the_right_frames_or_a_named_error(name, stamped, copy):
    expected = open_store(copy).decode("one", np.array([0.0, 0.6]), FULL, SIZE)
    if not stamped:  # as older stores are: nothing vouches for the index but Arrow's own checks
        header = json.loads((copy / "store.json").read_text())
        del header["index"]
        (copy / "store.json").write_text(json.dumps(header))
    (path,) = copy.glob("*array_record*") if name == "shard" else [copy / name]
    content, rng = path.read_bytes(), np.random.default_rng(0)
    right = 0
    for noisy in mutations(content, rng, 120):
        path.write_bytes(noisy)
        if name == "index.arrow" and not stamped:
            with contextlib.suppress(ValueError, StoreAway):
                open_store(copy).check()  # wrong numbers may pass unseen, but nothing may crash
            continue
        right += outcome(copy, expected)
    path.write_bytes(content)
    assert outcome(copy, expected)
    assert right < 120


def test_names_in_a_store_do_not_lead_out_of_it(copy, tmp_path):
    for name in ("../shard", "/etc/passwd", "", "a/b", ".."):
        edit_header(copy, shards={name: 3})
        with pytest.raises(ValueError, match="store.json names a shard"):
            open_store(copy)
    (tmp_path / "f" / "v").mkdir(parents=True)
    (tmp_path / "f" / "v" / "0.mp4").write_bytes(next(iter(video().chunks)))
    adopt(tmp_path / "f", tmp_path / "s", "index")
    rename_file(tmp_path / "s", "../f/v/0.mp4")
    with pytest.raises(BrokenVideo, match="is not below"):
        open_store(tmp_path / "s").read("v", 0)
    edit_header(tmp_path / "s", index={"bytes": 1, "sha256": "../" + hashlib.sha256(b"").hexdigest()})
    with pytest.raises(ValueError, match="no good checksum of index.arrow"):
        open_store(tmp_path / "s")
    assert os.path.exists(tmp_path / "f" / "v" / "0.mp4")


def test_checksums_tell_every_flipped_bit_and_older_ones_are_still_read():
    content = np.random.default_rng(0).bytes(300)
    older = hashlib.blake2b(content, digest_size=16).hexdigest()
    assert checksum(content) == older + f"{zlib.crc32(content):08x}"
    for known in (checksum(content), older):
        assert is_intact(content, known) and is_intact(memoryview(content), known)
        for bit in range(8 * len(content)):
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            assert not is_intact(bytes(flipped), known)
        assert not is_intact(content[:-1], known) and not is_intact(b"", known)
    assert not is_intact(content, "") and not is_intact(content, "0" * 40)


def test_a_store_of_the_first_days_is_read(copy):
    """Without a kind, a stamp of the index, and a CRC."""
    expected = open_store(copy).decode("one", np.array([0.0, 0.6]), FULL, SIZE)
    with pa.memory_map(str(copy / "index.arrow")) as file:
        table = pa.ipc.open_file(file).read_all()
        row, schema = table.to_pylist()[0], table.schema
    row["checksum"] = [known[:32] for known in row["checksum"]]
    with pa.OSFile(str(copy / "index.new"), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_table(pa.Table.from_pylist([row], schema))
    (copy / "index.new").replace(copy / "index.arrow")
    header = json.loads((copy / "store.json").read_text())
    header = {name: header[name] for name in ("format_version", "videos", "settings", "shards")}
    header["content_hash"] = hashlib.blake2b(json.dumps(row).encode(), digest_size=16).hexdigest()
    (copy / "store.json").write_text(json.dumps(header))
    store = open_store(copy)
    assert store.kind == "records" and not list(store.problems())
    np.testing.assert_array_equal(store.decode("one", np.array([0.0, 0.6]), FULL, SIZE), expected)
