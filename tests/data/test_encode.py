"""Encoded chunks hold exactly the frames given, in the layout that makes reading a few of them cheap."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.frame import PictureType

from vidlang.data.encode import ENCODINGS, EncodeSettings, encode_mp4, encode_x264
from vidlang.data.mp4 import boxes, read_index


def scene(count, height=48, width=64):
    """Smooth moving colours."""
    y, x = np.mgrid[:height, :width]
    for t in range(count):
        waves = (np.sin(x / 7 + t / 5), np.cos(y / 6 + x / 11 - t / 7), np.sin((x + y) / 9 + t / 3))
        yield np.stack([127 + 100 * wave for wave in waves], -1).astype(np.uint8)


def read_all(mp4):
    with av.open(io.BytesIO(mp4)) as container:
        stream = container.streams.video[0]
        packets = [packet.is_keyframe for packet in container.demux(stream) if packet.size]
        container.seek(0)
        return stream.average_rate, packets, list(container.decode(stream))


@pytest.mark.parametrize("name", ENCODINGS)
def test_same_frames_same_bytes_whatever_was_encoded_before(name):
    rng, found = np.random.default_rng(0), set()
    picture, *others = rng.integers(0, 256, (4, 64, 96, 3), np.uint8)
    for number in range(20):
        moving = [np.roll(picture, 3 * k, 1) for k in range(10)]
        found.add(encode_mp4(moving, fps=10, settings=ENCODINGS[name]))
        encode_mp4([others[number % 3]] * (number % 5 + 1), fps=10, settings=ENCODINGS[name])
    assert len(found) == 1


@pytest.mark.parametrize("fps", [8, 30, Fraction(30000, 1001), Fraction(1, 2)])
def test_every_frame_at_its_time(fps):
    rate, _, frames = read_all(encode_mp4(scene(37), fps=fps))
    assert len(frames) == 37
    assert rate == fps
    assert [frame.pts * frame.time_base for frame in frames] == [number / Fraction(fps) for number in range(37)]


def test_colours_survive():
    """Also at full colour resolution: a misplaced chroma sample would cost three levels here."""
    source = list(scene(6))
    _, _, frames = read_all(encode_mp4(source, fps=8, settings=EncodeSettings(crf=4)))
    frame = frames[3]
    assert (frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc) == (1, 1, 1, 1)
    flags = "BILINEAR", "ACCURATE_RND", "FULL_CHR_H_INT", "FULL_CHR_H_INP"
    scaler = 0
    for flag in flags:
        scaler |= getattr(av.video.reformatter.Interpolation, flag)
    rgb_HWC = frame.reformat(format="rgb24", interpolation=scaler).to_ndarray().astype(int)
    assert np.abs(rgb_HWC - source[3]).mean() < 1.2
    assert np.abs((rgb_HWC - source[3]).mean((0, 1))).max() < 0.5


@pytest.mark.parametrize(
    "settings, fps, gop",
    [
        (EncodeSettings(), 30, 15),
        (EncodeSettings(), 8, 4),
        (EncodeSettings(), 1, 1),
        (EncodeSettings(keyint=15), 8, 15),
        (EncodeSettings(gop_seconds=1, b_frames=0), 10, 10),
    ],
)
def test_keyframes_lie_on_an_even_grid_of_closed_gops(settings, fps, gop):
    """Also where scenes change, at frames 14 and 29 and in colours that share nothing."""
    frames = (frame // 3 + 80 * part for part in range(3) for frame in scene(14 + part))
    mp4 = encode_mp4((np.uint8(frame) for frame in frames), fps=fps, settings=settings)
    index = read_index(mp4)
    np.testing.assert_array_equal(index.keys, np.arange(0, 45, gop))
    # Closed: no frame of a GOP is shown before its keyframe.
    np.testing.assert_array_equal(index.ranks[index.keys], index.keys)


def test_fixed_b_frames_come_always_in_the_same_number():
    """Where x264 would choose fewer: while a picture fades in."""
    fade = [next(scene(1)) // 16 * k for k in range(16)]
    kinds = {}
    for fixed in (True, False):
        settings = EncodeSettings(keyint=8, b_frames=3, fixed_b=fixed)
        _, _, frames = read_all(encode_mp4(fade, fps=8, settings=settings))
        kinds[fixed] = "".join(PictureType(frame.pict_type).name for frame in frames)
    assert kinds[True] == "IBBBPBBP" * 2
    assert kinds[False].count("B") < kinds[True].count("B")


def test_nothing_refers_to_a_b_frame():
    """So that a reader may leave them out."""
    for settings in ENCODINGS.values():
        mp4 = encode_mp4(scene(32), fps=16, settings=settings)
        index = read_index(mp4)
        _, _, frames = read_all(mp4)
        for rank, frame in enumerate(frames):
            place = int(index.offsets[index.samples[rank]])
            headers = [mp4[place + 4]] if mp4[place + 4] & 31 != 6 else []  # the first frame begins with text
            if frame.pict_type == PictureType.B:
                assert headers and not headers[0] & 0x60
        assert any(frame.pict_type == PictureType.B for frame in frames)


def test_the_default_is_the_balanced_encoding():
    assert EncodeSettings() == ENCODINGS["balanced"]
    options = {"preset": "medium", "crf": "21.5", "bf": "3", "tune": "fastdecode"}
    grid = "keyint=4:min-keyint=4:scenecut=0:open-gop=0:b-pyramid=none:chromaloc=1:threads=1:cpu-independent=1"
    by_hand = encode_x264(scene(12), fps=8, options={**options, "x264-params": grid})
    assert encode_mp4(scene(12), fps=8) == by_hand, "the default encoding changed: measure anew with benchmarks.decode"


def test_index_comes_before_the_frames():
    mp4 = encode_mp4(scene(20), fps=8)
    kinds = [kind for kind, _, _ in boxes(memoryview(mp4), 0, len(mp4))]
    assert kinds.index(b"moov") < kinds.index(b"mdat")


def test_fast_decode_drops_cabac_and_the_loop_filter():
    fast, slow = (encode_mp4(scene(8), fps=8, settings=EncodeSettings(fast_decode=fast)) for fast in (True, False))
    assert b"cabac=0" in fast and b"deblock=0" in fast
    assert b"cabac=1" in slow and b"deblock=1" in slow


@pytest.mark.parametrize(
    "frames, sentence",
    [
        ([], "no frames"),
        ([np.zeros((5, 4, 3), np.uint8)], "must be even, got 5 x 4"),
        ([np.zeros((4, 4, 3), np.float32)], "frame 0 must be uint8"),
        ([np.zeros((4, 4), np.uint8)], "frame 0 must be uint8"),
        ([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 6, 3), np.uint8)], r"frame 1 is \[4, 6, 3\]"),
    ],
)
def test_bad_frames_have_a_sentence(frames, sentence):
    with pytest.raises(ValueError, match=sentence):
        encode_mp4(iter(frames), fps=8)


@pytest.mark.parametrize(
    "options, sentence",
    [
        (dict(crf=60), "crf must lie in 0..51"),
        (dict(preset="quick"), "unknown preset 'quick'"),
        (dict(gop_seconds=0), "a GOP needs a length"),
        (dict(keyint=0), "a GOP needs a length"),
        (dict(b_frames=-1), "b_frames must lie in 0..16"),
    ],
)
def test_bad_settings_have_a_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        EncodeSettings(**options)


def test_bad_rate_has_a_sentence():
    with pytest.raises(ValueError, match="fps must be above 0"):
        encode_mp4(scene(2), fps=0)
