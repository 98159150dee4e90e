"""The calculator: flags in, an answer and an exit code out."""

import pytest

from vidlang.data.stores.writer import CutVideo, write_store


@pytest.fixture
def store(tmp_path):
    """Two videos in chunks of 10 s at 1 Mb/s, the second with a short last chunk."""
    full, rest = bytes(1_250_000), bytes(125_000)
    videos = [CutVideo("a", 10, 64, 48, [full], [100]), CutVideo("b", 10, 64, 48, [full, rest], [100, 10])]
    write_store(tmp_path / "store", videos, {"fps": 10})
    return tmp_path / "store"


def test_a_fast_machine_gets_a_yes(launch):
    end = launch("launch.sizing", "--batch=256", "--step_s=1", "--disk=3000", "--cores=64")
    assert (end.code, end.err) == (0, "")
    assert "the accelerators will not wait" in end.out


def test_a_store_brings_its_own_bitrate_and_the_answer_may_be_no(launch, store):
    end = launch("launch.sizing", f"--store={store}", "--batch=512", "--step_s=1", "--disk=80", "--cores=64")
    assert end.code == 1
    assert "1.00 Mb/s in chunks of 10 s" in end.out
    assert "cut chunks of at most 1 s" in end.out


def test_a_wrong_number_is_one_sentence(launch):
    end = launch("launch.sizing", "--batch=256", "--step_s=0")
    assert (end.code, end.err) == (2, "error: step_seconds must be above 0, found 0.0\n")
