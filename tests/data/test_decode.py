"""Decoding at random gives the very pixels of decoding in order, and damage is always told."""

import io
import struct
import threading
from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.reformatter import Interpolation, VideoReformatter

from vidlang.data import decode as decode_module
from vidlang.data.crops import CropBox
from vidlang.data.decode import BrokenVideo, decode, probe
from vidlang.data.encode import EncodeSettings, encode_mp4
from vidlang.data.mp4 import boxes, read_index

HEIGHT, WIDTH, COUNT = 64, 96, 70
FULL = CropBox(0, 0, HEIGHT, WIDTH)


def burnt(number):
    """A frame that carries its number as twelve black or white blocks, over colours that move with it."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = [127 + 90 * np.sin((x * (c + 1) + y * (3 - c)) / 23 + number / (4 + c)) for c in range(3)]
    frame_HWC = np.stack(waves, -1).astype(np.uint8)
    for bit in range(12):
        row, column = divmod(bit, 6)
        frame_HWC[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] = 225 if number >> bit & 1 else 30
    return frame_HWC


def numbers(video_THWC):
    """Reads the burnt numbers back."""
    corners = [(16 * row, 16 * column) for row in range(2) for column in range(6)]
    blocks = [video_THWC[:, top + 4 : top + 12, left + 4 : left + 12].mean((1, 2, 3)) for top, left in corners]
    return (np.stack(blocks, 1) > 127) @ (1 << np.arange(12))


def encode_with(options, pix_fmt="yuv420p", pts=None):
    """An MP4 of burnt numbers with any options of x264."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=10, options=options)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, pix_fmt
        for number in range(COUNT):
            frame = av.VideoFrame.from_ndarray(burnt(number), format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = (number if pts is None else pts[number]), Fraction(1, 10)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()


def in_order(video, crop, size):
    """The reference: everything decoded in order through the container, cut by libavfilter, the same scaler flags."""
    flags = Interpolation.BILINEAR | Interpolation.ACCURATE_RND
    flags |= Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
    frames, scaler, graph = [], VideoReformatter(), None
    with av.open(io.BytesIO(video)) as container:
        stream = container.streams.video[0]
        for frame in container.decode(stream):
            if graph is None:
                graph = av.filter.Graph()
                source = graph.add_buffer(template=stream)
                cut = graph.add("crop", f"{crop.width}:{crop.height}:{crop.left}:{crop.top}:exact=1")
                sink = graph.add("buffersink")
                source.link_to(cut)
                cut.link_to(sink)
                graph.configure()
            graph.push(frame)
            piece = graph.pull()
            small = scaler.reformat(piece, width=size[1], height=size[0], format="gbrp", interpolation=flags, threads=1)
            frames.append(small.to_ndarray())
    return np.stack(frames)


X264 = {"preset": "veryfast"}
ENCODINGS = {
    "house": None,
    "one_gop": {**X264, "x264-params": "keyint=250:scenecut=0:b-pyramid=normal:bframes=5:b-adapt=0"},
    "open_gop": {**X264, "x264-params": "keyint=12:min-keyint=12:scenecut=0:open-gop=1:bframes=3:b-adapt=0"},
    "no_b": {**X264, "x264-params": "keyint=10:bframes=0"},
    "all_intra": {**X264, "g": "1"},
}


@pytest.fixture(scope="module", params=ENCODINGS)
def video(request):
    options = ENCODINGS[request.param]
    return encode_mp4(map(burnt, range(COUNT)), fps=10) if options is None else encode_with(options)


@pytest.fixture(scope="module")
def house():
    return encode_mp4(map(burnt, range(COUNT)), fps=10)


def test_each_frame_is_the_one_asked_for(video):
    rng = np.random.default_rng(0)
    wanted = [np.arange(COUNT), np.array([COUNT - 1]), np.array([], int), *rng.integers(0, COUNT, (12, 5))]
    for frames_T in wanted:
        got = decode(video, frames_T, FULL, (HEIGHT, WIDTH))
        np.testing.assert_array_equal(numbers(got), frames_T)


def test_bit_identical_to_decoding_in_order(video):
    rng = np.random.default_rng(1)
    crops = [
        (CropBox(6, 10, 44, 60), (32, 48)),
        (CropBox(0, 0, 64, 96), (40, 40)),
        (CropBox(20, 30, 30, 66), (96, 128)),
    ]
    for crop, size in crops:
        expected = in_order(video, crop, size)
        for frames_T in (np.arange(COUNT), rng.integers(0, COUNT, 4), rng.integers(0, COUNT, 4)):
            np.testing.assert_array_equal(decode(video, frames_T, crop, size), expected[frames_T])


@pytest.mark.parametrize("pix_fmt", ["yuv422p", "yuv444p", "yuv420p10le", "yuvj420p", "gray"])
def test_pixel_formats_are_bit_identical(pix_fmt):
    video = encode_with(X264, pix_fmt=pix_fmt)
    crop, size = CropBox(6, 10, 44, 60), (32, 48)
    frames_T = np.array([3, 40, 69])
    got = decode(video, frames_T, crop, size)
    if pix_fmt != "gray":  # gray is converted before it is cut, so only the burnt numbers compare
        np.testing.assert_array_equal(got, in_order(video, crop, size)[frames_T])
    np.testing.assert_array_equal(numbers(decode(video, frames_T, FULL, (HEIGHT, WIDTH))), frames_T)


def test_variable_frame_rate_counts_ranks():
    pts = np.cumsum(np.random.default_rng(0).integers(1, 9, COUNT)).tolist()
    video = encode_with(X264, pts=pts)
    frames_T = np.array([0, 7, 33, 69])
    np.testing.assert_array_equal(numbers(decode(video, frames_T, FULL, (HEIGHT, WIDTH))), frames_T)


def test_flip_mirrors(house):
    plain = decode(house, np.array([5]), CropBox(2, 4, 40, 60), (30, 20))
    mirrored = decode(house, np.array([5]), CropBox(2, 4, 40, 60, flip=True), (30, 20))
    np.testing.assert_array_equal(mirrored, plain[:, :, ::-1])
    assert (mirrored != plain).any()


def test_writes_into_out(house):
    batch = np.zeros((3, 2, 30, 20, 3), np.uint8)
    result = decode(house, np.array([5, 9]), FULL, (30, 20), out=batch[1])
    assert result.base is batch
    np.testing.assert_array_equal(batch[1], decode(house, np.array([5, 9]), FULL, (30, 20)))
    assert not batch[0].any() and not batch[2].any()


def test_only_needed_frames_are_decoded(monkeypatch):
    video = encode_mp4(map(burnt, range(COUNT)), fps=10, settings=EncodeSettings(keyint=15))
    index, sent = read_index(video), []
    plain = decode_module._packets
    monkeypatch.setattr(decode_module, "_packets", lambda *a: (sent.append(p) or p for p in plain(*a)))

    with av.open(io.BytesIO(video)) as container:
        kinds = [frame.pict_type for frame in container.decode(video=0)]
    references = [rank for rank, kind in enumerate(kinds) if kind != av.video.frame.PictureType.B]
    assert 10 < len(references) < 50
    for wanted in (range(15, 30), [69, 1]):
        for rank in wanted:
            sent.clear()
            decode(video, np.array([rank]), FULL, (30, 20))
            stored = index.samples
            needed = {r for r in references if r >= rank // 15 * 15 and stored[r] < stored[rank]}
            assert {packet.pts for packet in sent if packet is not None} == needed | {rank}
    sent.clear()
    decode(video, np.arange(COUNT), FULL, (30, 20))
    assert len([packet for packet in sent if packet is not None]) == COUNT


def test_threads_and_interleaved_videos_do_not_disturb_each_other(house):
    other = encode_with(ENCODINGS["one_gop"])
    expected = {video: decode(video, np.arange(0, COUNT, 3), FULL, (40, 60)) for video in (house, other)}
    failures = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(12):
            video = (house, other)[rng.integers(2)]
            picks = rng.integers(0, len(expected[video]), 3)
            if not np.array_equal(decode(video, picks * 3, FULL, (40, 60)), expected[video][picks]):
                failures.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not failures
    assert len(decode_module._idle) <= decode_module.CACHED_DECODERS


def test_hidden_frames_are_not_counted():
    """An edit list that starts late hides frames; ranks then count what a player shows."""
    video = encode_with(X264)
    start, end = 0, len(video)
    for wanted in (b"moov", b"trak", b"edts", b"elst"):
        start, end = next((a, b) for kind, a, b in boxes(memoryview(video), start, end) if kind == wanted)
    begin = struct.unpack_from(">I", video, start + 12)[0]
    ticks = 20 * 1024  # the muxer's time scale is 10240
    cut = video[: start + 12] + struct.pack(">I", begin + ticks) + video[start + 16 :]
    shown = in_order(cut, FULL, (HEIGHT, WIDTH))
    assert numbers(shown)[0] == 20
    with pytest.warns(UserWarning, match="edit list"):
        np.testing.assert_array_equal(decode(cut, np.array([0, 10]), FULL, (HEIGHT, WIDTH)), shown[[0, 10]])


def test_a_path_is_probed_like_bytes(house, tmp_path):
    (tmp_path / "a.mp4").write_bytes(house)
    assert probe(tmp_path / "a.mp4") == probe(str(tmp_path / "a.mp4")) == probe(house)
    assert probe(house).fps == 10 and probe(house).frames == COUNT
    with pytest.raises(ValueError, match="cannot read the video .*nothing.mp4.*No such file"):
        probe(tmp_path / "nothing.mp4")


@pytest.mark.parametrize(
    "change, sentence",
    [
        (dict(frames=np.array([0, COUNT])), f"frames 0..{COUNT} asked of a video of {COUNT} frames"),
        (dict(frames=np.array([-1])), "frames -1..-1"),
        (dict(frames=np.array([0.5])), "list of integers"),
        (dict(crop=CropBox(0, 0, HEIGHT + 2, 4)), "does not lie inside"),
        (dict(out=np.zeros((1, 30, 20, 3), np.float32)), "out must be uint8"),
        (dict(out=np.zeros((2, 30, 20, 3), np.uint8)), "out must be uint8"),
    ],
)
def test_mistakes_have_a_sentence(house, change, sentence):
    valid = dict(frames=np.array([3]), crop=FULL, size=(30, 20))
    with pytest.raises(ValueError, match=sentence) as caught:
        decode(house, **{**valid, **change})
    assert not isinstance(caught.value, BrokenVideo)


def test_real_clips_are_bit_identical(repository):
    folder = repository.parent / "shared" / "clips"
    if not folder.is_dir():
        pytest.skip("the folder of real clips is not there")
    rng = np.random.default_rng(0)
    for name in ("skv_carphone.mp4", "decord_unordered.mov", "tc_h264_10b.mp4", "tc_nasa.mp4", "mma2_stdet.mp4"):
        video = (folder / name).read_bytes()
        info = probe(video)
        crop, size = CropBox(4, 6, info.height // 4 * 2, info.width // 4 * 2), (48, 56)
        frames_T = rng.integers(0, info.frames, 5)
        expected = in_order(video, crop, size)
        assert len(expected) == info.frames, name
        np.testing.assert_array_equal(decode(video, frames_T, crop, size), expected[frames_T], err_msg=name)
    with pytest.raises(BrokenVideo, match="damaged near frame"):
        decode((folder / "decord_corrupted.mp4").read_bytes(), np.array([49]), CropBox(0, 0, 2, 2), (8, 8))


def test_a_decoder_is_used_again_by_videos_like_its_own(house):
    decode(house, np.array([3]), FULL, (30, 20))
    before = list(decode_module._idle)
    decode(house, np.array([50, 7]), FULL, (30, 20), pixels="rgb")
    assert before and [id(one) for one in decode_module._idle] == [id(one) for one in before]
