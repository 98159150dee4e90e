"""Files as people have them: containers, codecs and rates of any kind, sound beside the pictures, broken ones among."""

import tempfile
from pathlib import Path

import numpy as np
import pytest

from tests.serve.tiny_captioner import write_video
from vidlang.data.chunks import open_store
from vidlang.data.crops import choose_crop
from vidlang.serve.own_videos import Parts, find_videos, own_videos


def rows_of(table):
    return [(table.cell(i, "video"), table.cell(i, "start"), table.cell(i, "end")) for i in range(len(table))]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("phone.MOV", {"sound": True, "fps": 30}),
        ("long gops.mp4", {"sound": True, "fps": 25}),
        ("screen.mkv", {"codec": "mpeg4", "fps": 5}),
        ("film.mkv", {"sound": True}),
        ("web.webm", {"codec": "libvpx"}),
        ("old.avi", {"codec": "mpeg4"}),
        ("camera.mp4", {"codec": "mpeg4"}),
        ("no_suffix", {}),
    ],
)
def test_a_file_of_any_kind_is_decoded_where_it_is_asked_and_stays_as_it_is(tmp_path, name, options):
    file = tmp_path / name
    write_video(tmp_path / f"x{file.suffix or '.mp4'}", 2, **options).rename(file)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    with own_videos(find_videos(file), Parts()) as own:
        [table], refused = own.tables, own.refused
        [(video, start, end)] = rows_of(table)
        assert video == file.stem and start == 0 and end == pytest.approx(2, abs=0.25) and not refused
        crop = choose_crop(None, 48, 48, name="full")
        # No warning of decoding from a start: tests of the package take it for an error.
        frames_THWC = open_store(table.store).decode(video, np.array([0.5, 1.5]), crop, (48, 48)).astype(float)
        # The gradient drifts by three greys a frame.
        drift = np.median((frames_THWC[1] - frames_THWC[0]) % 256)
        assert drift == pytest.approx(3 * options.get("fps", 12) % 256, abs=6)
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}


def test_a_folder_is_all_its_videos_and_what_is_broken_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    films = tmp_path / "films"
    (films / "inner").mkdir(parents=True)
    write_video(films / "a.mp4", 3)
    write_video(films / "b.c.mp4", 1)
    write_video(films / "a.mkv", 3, codec="mpeg4")
    write_video(films / "inner" / "a.mkv", 1, codec="mpeg4")
    (films / "broken.mp4").write_bytes(b"no video" * 300)
    (films / "torn.mp4").write_bytes((films / "a.mp4").read_bytes()[:-500])
    (films / "empty.webm").write_bytes(b"")
    (films / "notes.txt").write_text("not looked at")
    with own_videos(find_videos(films), Parts(seconds=2)) as own:
        cut, quick = map(rows_of, own.tables)
        assert quick == [("a.mp4", 0, 2), ("a.mp4", 2, 3), ("b.c", 0, 1)]
        assert cut == [("a.mkv", 0, 2), ("a.mkv", 2, 3), ("inner/a", 0, 1)]
        assert sorted(name for name, _ in own.refused) == ["broken", "empty", "torn"]
        assert all(why for _, why in own.refused)
        assert all(Path(table.store).is_relative_to(tmp_path / "temporary") for table in own.tables)
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize("duration", [7.0, 0.04, 61.3])
def test_parts_follow_one_another_from_start_to_end(duration):
    for parts in (Parts(1), Parts(16), Parts(seconds=2.5), Parts(seconds=100)):
        found = parts.of(duration)
        assert found[0][0] == 0 and found[-1][1] == duration
        assert [end for _, end in found[:-1]] == [start for start, _ in found[1:]]
        lengths = [end - start for start, end in found]
        if parts.seconds:
            assert np.allclose(lengths[:-1], parts.seconds) and 0 < lengths[-1] <= parts.seconds + 1e-6
        else:
            assert np.allclose(lengths, duration / parts.count) and len(found) == parts.count
    assert len(Parts(seconds=0.1).of(0.1 + 0.2)) == 3, "rounding makes no empty part"


def test_mistakes_name_what_was_given(tmp_path):
    for wrong in ({"count": 0}, {"seconds": -1.0}, {"count": 2, "seconds": 3.0}, {"seconds": float("nan")}):
        with pytest.raises(ValueError, match="give one of them, above 0"):
            Parts(**wrong)
    with pytest.raises(ValueError, match="there is no folder .*none.mp4', nor a file"):
        find_videos(tmp_path / "none.mp4")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="there are no videos in .*folder': no file .* ends in .*.mkv"):
        find_videos(tmp_path / "folder")
    (tmp_path / "folder" / "bad.mp4").write_bytes(b"nothing" * 300)
    (tmp_path / "folder" / "worse.mkv").write_bytes(b"")
    for found in (tmp_path, tmp_path / "folder" / "bad.mp4"):
        reason = "none of . video.s. can be read; the first, '(bad|folder/worse)': (it|the video) "
        with pytest.raises(ValueError, match=reason), own_videos(find_videos(found), Parts()):
            pass
