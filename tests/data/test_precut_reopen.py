"""Videos that failed, or came later, go into a finished store; it becomes the one that a run of all would make."""

import os
import shutil

import numpy as np
import pytest

from vidlang.data import precut as precut_module
from vidlang.data.encode import EncodeSettings, encode_mp4
from vidlang.data.precut import PrecutSettings, precut
from vidlang.data.stores import record_writer

FAST = EncodeSettings(preset="ultrafast")
SETTINGS = PrecutSettings(chunk_seconds=1, fps=8, short_side=32, encode=FAST)


def source(path, number):
    frames = [np.full((32, 48, 3), 5 * k + number, np.uint8) for k in range(14)]
    path.write_bytes(encode_mp4(frames, fps=8, settings=FAST))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Seven videos, of which "3" is broken, in a store of two videos a shard."""
    monkeypatch.setattr(record_writer, "CHUNKS_PER_SHARD", 4)
    (tmp_path / "in").mkdir()
    for number in range(7):
        source(tmp_path / "in" / f"{number}.mp4", number)
    (tmp_path / "in" / "3.mp4").write_bytes(b"no video")
    assert len(precut(tmp_path / "in", tmp_path / "store", SETTINGS).failed) == 1
    return tmp_path / "in"


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("links", [True, False])
def test_what_is_missing_is_cut_and_nothing_else(links, folder, tmp_path, monkeypatch):
    source(folder / "3.mp4", 3)
    source(folder / "9.mp4", 9)
    cut, real = [], precut_module.cut_to_spool
    monkeypatch.setattr(precut_module, "cut_to_spool", lambda job, sign: cut.append(job.video.name) or real(job, sign))
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(18, "another disk")))
    assert precut(folder, tmp_path / "store", SETTINGS, retry_failed=True).failed == []
    assert cut == ["3", "9"]
    precut(folder, tmp_path / "anew", SETTINGS)
    assert content(tmp_path / "store") == content(tmp_path / "anew")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["anew", "in", "store"]


def test_a_kill_leaves_the_store_and_is_gone_on_from(folder, tmp_path, monkeypatch):
    source(folder / "3.mp4", 3)
    before = content(tmp_path / "store")
    precut(folder, tmp_path / "anew", SETTINGS)
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    step, killed = 0, True
    while killed:
        step, left = step + 1, [step]
        shutil.rmtree(tmp_path / "store")
        shutil.copytree(tmp_path / "copy", tmp_path / "store")
        with monkeypatch.context() as patch:
            for name in ("replace", "fsync", "link"):
                patch.setattr(os, name, counted(getattr(os, name), left))
            try:
                precut(folder, tmp_path / "store", SETTINGS, retry_failed=True)
                killed = False
            except KeyboardInterrupt:
                killed = True
        if killed and (tmp_path / "store").exists() and content(tmp_path / "store") != content(tmp_path / "anew"):
            assert content(tmp_path / "store") == before
        try:
            precut(folder, tmp_path / "store", SETTINGS, retry_failed=True)
        except ValueError as error:
            assert "there is none to try again" in str(error)
        assert content(tmp_path / "store") == content(tmp_path / "anew"), step
    assert step > 20


def counted(function, left):
    def call(*arguments, **options):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return function(*arguments, **options)

    return call


def test_what_cannot_be_gone_on_with_is_told(folder, tmp_path):
    store, other = tmp_path / "store", PrecutSettings(chunk_seconds=1, fps=8, short_side=30, encode=FAST)
    before = content(store)
    with pytest.raises(ValueError, match=r"other settings \(short_side\); cut it anew with --overwrite"):
        precut(folder, store, other, retry_failed=True)
    with pytest.raises(ValueError, match="in the layout 'records' only"):
        precut(folder, store, SETTINGS, retry_failed=True, layout="index")
    (folder / "0.mp4").unlink()
    with pytest.raises(ValueError, match="not given, '0' first"):
        precut(folder, store, SETTINGS, retry_failed=True)
    pairs = [(f"{n}", folder / f"{n}.mp4") for n in (0, 1, 2, 4, 5, 6)]
    with pytest.raises(ValueError, match="holds all 6 videos; there is none to try again"):
        precut(pairs, store, SETTINGS, retry_failed=True)
    assert content(store) == before and sorted(path.name for path in tmp_path.iterdir()) == ["in", "store"]
