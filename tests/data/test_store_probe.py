"""Which folders of chunks make a video, and why others do not."""

import av
import numpy as np
import pytest

from vidlang.data.encode import EncodeSettings, encode_mp4
from vidlang.data.stores.probe import Task, probe

FAST = EncodeSettings(preset="ultrafast", crf=30)


@pytest.fixture(scope="module")
def chunks():
    """Chunks of two seconds by their frames a second."""
    return {fps: encode_mp4(np.zeros((2 * fps, 32, 48, 3), np.uint8), fps=fps, settings=FAST) for fps in (5, 10)}


def look(folder, layout, names, content):
    (folder / "v").mkdir(exist_ok=True)
    for name in names:
        (folder / "v" / f"{name}.mp4").write_bytes(content)
    return probe(Task(str(folder), layout, "v", [f"v/{name}.mp4" for name in names]))


@pytest.mark.parametrize(
    ("layout", "names", "missing"),
    [
        ("index", [0, 1, 3], 2),
        ("index", [1, 2], 0),
        ("index", [3], 0),
        ("seconds", [0, 2, 6], 4),
        ("seconds", [2, 4, 6], 0),
        ("seconds", [0, 2, 4, 6, 10, 12], 8),
    ],
)
def test_a_chunk_that_is_missing_is_named(layout, names, missing, chunks, tmp_path):
    found = look(tmp_path, layout, names, chunks[5])
    assert found.row is None and found.kind == "missing"
    assert found.reason == f"its chunk '{missing}.mp4' is missing"


def test_numbers_are_ordered_as_numbers(chunks, tmp_path):
    found = look(tmp_path, "index", [10, 9, *range(9)], chunks[5])
    assert found.row["file"] == [f"v/{number}.mp4" for number in range(11)]
    assert found.row["chunk_frames"] == [10] * 11 and found.cut_seconds == 2
    assert look(tmp_path, "seconds", [*range(0, 22, 2)], chunks[5]).cut_seconds == 2


def test_chunks_must_last_as_long_as_their_names_say(chunks, tmp_path):
    found = look(tmp_path, "seconds", [0, 15, 30], chunks[5])
    assert found.kind == "truncated" and "its chunk 0 lasts 2.00 s and the next begins 15 s after it" in found.reason
    assert look(tmp_path, "seconds", [0], chunks[5]).row["duration"] == 2


def test_all_chunks_have_one_frame_rate(chunks, tmp_path):
    look(tmp_path, "index", [0, 1], chunks[5])
    (tmp_path / "v" / "1.mp4").write_bytes(chunks[10])
    found = probe(Task(str(tmp_path), "index", "v", ["v/0.mp4", "v/1.mp4"]))
    assert "its chunk 1 has 10.00 frames a second, its first 5.00" in found.reason


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    found = probe(Task(str(tmp_path), "videos", "v.mp4", ["v.mp4"]))
    assert found.kind == "missing" and "No such file" in found.reason
    (tmp_path / "empty.mp4").write_bytes(b"")
    assert probe(Task(str(tmp_path), "videos", "empty.mp4", ["empty.mp4"])).kind == "empty"


def test_a_video_too_small_for_any_crop_is_refused(tmp_path):
    with av.open(str(tmp_path / "dot.mkv"), "w") as container:
        stream = container.add_stream("ffv1", 5, width=1, height=1, pix_fmt="bgr0")
        for frame in (av.VideoFrame.from_ndarray(np.zeros((1, 1, 3), np.uint8), "rgb24"), None):
            container.mux(stream.encode(frame))
    found = probe(Task(str(tmp_path), "videos", "dot.mkv", ["dot.mkv"]))
    assert found.row is None and found.kind == "unsupported" and "1 x 1 pixels" in found.reason
