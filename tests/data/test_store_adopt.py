"""What the videos of an adopted folder are called: as precutting calls them."""

import numpy as np
import pytest

from vidlang.data.chunks import open_store
from vidlang.data.encode import EncodeSettings, encode_mp4
from vidlang.data.precut import PrecutSettings, precut
from vidlang.data.stores.adopt import adopt

FAST = EncodeSettings(preset="ultrafast", crf=30)
# What lies in the folder, by layout, and the names of the store.
FOLDERS = {
    "index": (["plain.mkv/0.mp4", "plain.mp4/0.mp4", "b.mp4/0.mp4", "v1.5/0.mp4"], ["b.mp4", "plain.mkv", "plain.mp4"]),
    "seconds": (["a.mp4/0.mp4", "b/0.mp4", "b.MP4/0.mp4", "c.mkv/0.mp4"], ["a", "b", "b.MP4", "c.mkv"]),
    "videos": (["a.mp4", "b.mp4", "b.mkv", "d.mkv/b.mkv"], ["a", "b.mkv", "b.mp4", "d.mkv/b"]),
}


@pytest.fixture(scope="module")
def mp4():
    return encode_mp4(np.zeros((8, 32, 48, 3), np.uint8), fps=4, settings=FAST)


@pytest.mark.parametrize("layout", FOLDERS)
def test_a_suffix_goes_unless_it_is_all_that_tells_two_apart(layout, mp4, tmp_path):
    files, names = FOLDERS[layout]
    for file in files:
        (tmp_path / "f" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "f" / file).write_bytes(mp4)
    report = adopt(tmp_path / "f", tmp_path / "s", layout)
    assert not report.refused
    assert open_store(tmp_path / "s").videos == names + ["v1.5"] * (layout == "index")


def test_of_names_that_are_the_same_all_the_same_one_is_refused(mp4, tmp_path):
    (tmp_path / "f").mkdir()
    for name in ("a.mp4", "a.mkv", "a.mp4.mov"):
        (tmp_path / "f" / name).write_bytes(mp4)
    report = adopt(tmp_path / "f", tmp_path / "s", "videos")
    assert open_store(tmp_path / "s").videos == ["a.mkv", "a.mp4"]
    assert report.refused == [("a.mp4", "unsupported", "another video has the same name")]


@pytest.mark.parametrize("layout", ["index", "seconds"])
def test_what_precutting_wrote_is_adopted_under_its_names(layout, mp4, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("plain.mkv", "plain.mp4", "v1.mp4.mp4", "other.mp4"):
        (tmp_path / "in" / name).write_bytes(mp4)
    settings = PrecutSettings(chunk_seconds=1, fps=4, short_side=32, encode=FAST)
    precut(tmp_path / "in", tmp_path / "made", settings, layout=layout, workers=1)
    made = open_store(tmp_path / "made")
    report = adopt(tmp_path / "made", tmp_path / "s", layout)
    adopted = open_store(tmp_path / "s")
    assert adopted.videos == made.videos == ["other", "plain.mkv", "plain.mp4", "v1.mp4"] and not report.refused
    assert adopted.content_hash == made.content_hash
    assert not list(made.problems()) and not list(adopted.problems())
