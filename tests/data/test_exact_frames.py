"""Each frame of a clip is the one shown at its time: numbers are drawn into the pixels and read back.

From sources of many kinds, by way of precut and a store, for every rule of sampling, over chunk boundaries and to the
last frame. What is expected comes from the times of the source's frames alone.
"""

import io
from fractions import Fraction

import av
import numpy as np
import pytest

from vidlang.data.chunks import open_store
from vidlang.data.crops import CropBox
from vidlang.data.cutting.video import CutVideo, PrecutSettings, cut_video
from vidlang.data.encode import ENCODINGS, EncodeSettings
from vidlang.data.frames import TIMES, choose_times
from vidlang.data.stores.writer import write_store

HEIGHT, WIDTH, BLOCK, FPS = 48, 64, 16, 30
FULL = CropBox(0, 0, HEIGHT, WIDTH)
NTSC = Fraction(30000, 1001)
SETTINGS = PrecutSettings(
    chunk_seconds=1, fps=FPS, short_side=HEIGHT, encode=EncodeSettings(crf=16, preset="ultrafast", gop_seconds=0.5)
)
QUICK = {"preset": "ultrafast", "crf": "12"}
X265 = {"preset": "ultrafast", "crf": "12", "x265-params": "log-level=none:pools=none:frame-threads=1"}
# codec, container, rate, pixel format, options
SOURCES = {
    "film": ("libx264", "mp4", Fraction(24), "yuv420p", QUICK | {"bf": "3"}),
    "ntsc": ("libx264", "mp4", NTSC, "yuv420p", QUICK | {"bf": "3", "preset": "veryfast"}),
    "60_fps": ("libx264", "mp4", Fraction(60), "yuv420p", QUICK),
    "hevc_10_bit": ("libx265", "mp4", Fraction(30), "yuv420p10le", X265),
    "vp9": ("libvpx-vp9", "webm", NTSC, "yuv420p", {"crf": "20", "b:v": "0", "cpu-used": "8", "deadline": "realtime"}),
    "av1_10_bit": ("libsvtav1", "mkv", Fraction(30), "yuv420p10le", {"preset": "12", "crf": "20"}),
}
# Chunks of other makers, 40 frames each, put into the store as they are.
X264 = "scenecut=0:bframes=5:b-adapt=0:threads=1"
CHUNKS = {
    "open_gop": X264 + ":keyint=12:min-keyint=12:open-gop=1:b-pyramid=normal",
    "one_gop": X264 + ":keyint=250:b-pyramid=normal",
    "all_intra": "keyint=1:threads=1",
}
OPTIONS = {
    "fps": [{"rate": 4.0}, {"rate": 7.5, "anchor": "center"}, {"rate": 2.0, "past": "spread"}],
    "stride": [{"step": 1}, {"step": 3}],
    "groups": [{"groups": 2}, {"groups": 2, "rate": 15.0}],
}


def picture(number):
    """Twelve blocks, black or white as the bits of the number."""
    bits = (number >> np.arange(12) & 1).reshape(3, 4)
    blocks_HW = np.kron(np.where(bits, 220, 35), np.ones((BLOCK, BLOCK)))
    return np.repeat(blocks_HW[..., None], 3, -1).astype(np.uint8)


def numbers(video_THWC):
    """The numbers in the middles of the blocks."""
    blocks = video_THWC[..., 1].reshape(-1, 3, BLOCK, 4, BLOCK)[:, :, 4:12, :, 4:12].mean((2, 4))
    return (blocks.reshape(-1, 12) > 127) @ (1 << np.arange(12))


def coded(codec, count, container, rate, pix_fmt, options):
    file = io.BytesIO()
    with av.open(file, "w", format={"mkv": "matroska"}.get(container, container)) as out:
        stream = out.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, pix_fmt
        stream.codec_context.thread_count = 1
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = number, 1 / rate
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()


def shown_at_30(rate, count):
    """The source frame of each frame of the store: the nearest in time, the earlier of two."""
    sources = [number / rate for number in range(count)]
    length = round(count / rate * FPS)
    return np.array([min(range(count), key=lambda j: (abs(sources[j] - Fraction(k, FPS)), j)) for k in range(length)])


@pytest.fixture(scope="module")
def store(tmp_path_factory, encode):
    """A store of all kinds of videos, and the number that each of its frames should carry."""
    folder, videos, expected = tmp_path_factory.mktemp("exact"), [], {}
    for name, (codec, container, rate, pix_fmt, options) in SOURCES.items():
        count = round(rate * 7 / 3)
        path = folder / f"{name}.{container}"
        path.write_bytes(encode(coded, codec, count, container, rate, pix_fmt, options))
        videos.append(cut_video(path, name, SETTINGS))
        expected[name] = shown_at_30(rate, count)
    for name, params in CHUNKS.items():
        whole = [coded("libx264", 40, "mp4", Fraction(FPS), "yuv420p", {"crf": "12", "x264-params": params})] * 2
        videos.append(CutVideo(name, FPS, WIDTH, HEIGHT, whole, (40, 40)))
        expected[name] = np.tile(np.arange(40), 2)
    for name, settings in ENCODINGS.items():
        encode = EncodeSettings(**{**vars(settings), "preset": "veryfast", "crf": 12})
        videos.append(cut_video(folder / "ntsc.mp4", name, PrecutSettings(1, FPS, HEIGHT, encode)))
        expected[name] = expected["ntsc"]
    write_store(folder / "store", videos, SETTINGS)
    return open_store(folder / "store"), expected


VIDEOS = [*SOURCES, *CHUNKS, *ENCODINGS]


@pytest.mark.parametrize("video", VIDEOS)
def test_every_frame_carries_its_number(store, video):
    opened, expected = store
    info = opened.info(video)
    assert info.frames == len(expected[video])
    for pixels in ("rgb", "yuv420"):
        got = opened.decode(video, np.arange(info.frames) / FPS, FULL, (HEIGHT, WIDTH), pixels=pixels)
        # Luma alone tells the numbers.
        got = got if pixels == "rgb" else np.repeat(got[:, :HEIGHT, :, None], 3, -1)
        np.testing.assert_array_equal(numbers(got), expected[video])


@pytest.mark.parametrize("rule", TIMES)
@pytest.mark.parametrize("video", VIDEOS)
def test_every_rule_gives_the_frames_shown_at_its_times(store, video, rule):
    opened, expected = store
    info, rng = opened.info(video), np.random.default_rng(sum(map(ord, video + rule)))
    seconds = np.arange(info.frames) / FPS
    for options in OPTIONS.get(rule, [{}]):
        for start, end in clips(info.duration, rng):
            for generator, views in ((rng, 1), (None, 1), (None, 3)):
                if generator is None and rule == "segments":
                    continue  # it is for training alone
                times_T = choose_times(
                    generator, start, end, 8, view=views - 1, views=views, duration=info.duration, source_fps=FPS,
                    name=rule, **options,
                )  # fmt: skip
                wanted = expected[video][np.searchsorted(seconds, times_T + 1e-7, side="right") - 1]
                got = opened.decode(video, times_T, FULL, (HEIGHT, WIDTH))
                np.testing.assert_array_equal(numbers(got), wanted, err_msg=f"{options} {start} {end} {times_T}")


def clips(duration, rng):
    """Over a chunk boundary, at the very end, all of it, less than a frame, and anywhere."""
    yield 0.9, 1.4
    yield duration - 0.2, duration
    yield 0.0, duration
    yield 1.0, 1.0 + 0.5 / FPS
    start = rng.uniform(0, duration - 0.5)
    yield start, start + rng.uniform(0.1, 0.5)
