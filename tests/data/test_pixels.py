"""Cut, converted and scaled frames are what float64 arithmetic on the decoded planes gives."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter

from benchmarks import _reference as reference
from vidlang.data.crops import CropBox
from vidlang.data.decode import decode
from vidlang.data.encode import encode_x264
from vidlang.data.failures import BrokenVideo
from vidlang.data.mp4 import boxes
from vidlang.data.pixels import MOST_PIXELS, SCALER, Cutter, clip_shape, to_rgb

HEIGHT, WIDTH, COUNT = 96, 128, 5
BOX, SIZE = CropBox(10, 22, 72, 90), (48, 64)
# matrix, full range, chroma on the left, and how x264 is told.
TAGS = {
    "house": ("bt709", False, False, "colormatrix=bt709:chromaloc=1", "yuv420p"),
    "left": ("bt709", False, True, "colormatrix=bt709:chromaloc=0", "yuv420p"),
    "untagged": ("bt601", False, True, "", "yuv420p"),
    "full_range": ("bt709", True, False, "colormatrix=bt709:chromaloc=1:fullrange=on", "yuvj420p"),
}


def scene(number):
    """Colours that vary over a few pixels and move."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = [np.sin((x * (c + 1) + y * (2 - c)) / 18 + number / (2 + c)) for c in range(3)]
    return np.stack([127 + 95 * wave for wave in waves], -1).astype(np.uint8)


def tagged(params, pix_fmt, count=COUNT):
    file = io.BytesIO()
    options = {"crf": "4", "preset": "ultrafast", "x264-params": params}
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=10, options=options)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, pix_fmt
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(scene(number), format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = number, Fraction(1, 10)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()


@pytest.fixture(scope="module", params=TAGS)
def video(request):
    matrix, full, left, params, pix_fmt = TAGS[request.param]
    return tagged(params, pix_fmt), dict(matrix=matrix, full=full, left=left)


def cut_planes(mp4, box):
    """The planes of each frame inside the box, float64."""
    with av.open(io.BytesIO(mp4)) as container:
        for frame in container.decode(video=0):
            luma, *chroma = reference.planes(frame)
            rows, columns = slice(box.top, box.top + box.height), slice(box.left, box.left + box.width)
            half = slice(rows.start // 2, rows.stop // 2), slice(columns.start // 2, columns.stop // 2)
            yield [luma[rows, columns], *(plane[half] for plane in chroma)]


def yuv_709(planes, size, *, matrix, full, left):
    """Planes at the target size as BT.709 in limited range, in float64; chroma keeps its side."""
    height, width = size
    rows, columns = planes[0].shape
    shift = 0.0 if left else 0.5
    down = reference.resampling(rows // 2, height // 2, step=2, shift=0.5, to=(2, 0.5))
    across = reference.resampling(columns // 2, width // 2, step=2, shift=shift, to=(2, shift))
    small = [down @ plane @ across.T for plane in planes[1:]]
    wide_down = reference.resampling(rows // 2, height, step=2, shift=0.5)
    wide_across = reference.resampling(columns // 2, width, step=2, shift=shift)
    wide = [wide_down @ plane @ wide_across.T for plane in planes[1:]]
    luma = reference.resampling(rows, height) @ planes[0] @ reference.resampling(columns, width).T
    if full:
        limited = [128 + (plane - 128) * 224 / 255 for plane in (*small, *wide)]
        luma, small, wide = 16 + luma * 219 / 255, limited[:2], limited[2:]
    if matrix == "bt709":
        return [luma, *small]
    # Of BT.601 differences: red and blue stay, and luma is weighed anew.
    (red_601, blue_601), (red, blue) = reference.WEIGHTS["bt601"], reference.WEIGHTS["bt709"]
    green_601, green = 1 - red_601 - blue_601, 1 - red - blue

    def moved(u, v):
        """What BT.709 luma has more than that of BT.601, in the scale of luma, and the new differences."""
        u, v = (u - 128) * 219 / 224, (v - 128) * 219 / 224
        from_red, from_blue = 2 * (1 - red_601) * v, 2 * (1 - blue_601) * u
        from_green = -(red_601 * from_red + blue_601 * from_blue) / green_601
        more = red * from_red + green * from_green + blue * from_blue
        scale = 224 / 219
        return more, 128 + scale * (from_blue - more) / (2 - 2 * blue), 128 + scale * (from_red - more) / (2 - 2 * red)

    return [luma + moved(*wide)[0], *moved(*small)[1:]]


@pytest.mark.parametrize("size", [SIZE, (72, 90), (96, 136)])
def test_rgb_is_within_half_a_level_of_exact_scaling(video, size):
    mp4, tags = video
    got = decode(mp4, np.arange(COUNT), BOX, size).astype(float)
    exact = np.stack([reference.scaled(reference.rgb(cut, **tags), *size) for cut in cut_planes(mp4, BOX)])
    assert np.abs(got - exact).mean() < 0.5
    assert np.abs((got - exact).mean((0, 1, 2))).max() < 0.15


@pytest.mark.parametrize("size", [SIZE, (72, 90), (96, 136)])
def test_yuv_is_within_half_a_level_of_exact_scaling(video, size):
    mp4, tags = video
    got = decode(mp4, np.arange(COUNT), BOX, size, pixels="yuv420").astype(float)
    assert got.shape == (COUNT, size[0] * 3 // 2, size[1])
    for frame_XW, cut in zip(got, cut_planes(mp4, BOX), strict=True):
        for plane, exact in zip(unpacked(frame_XW, size), yuv_709(cut, size, **tags), strict=True):
            # Another matrix goes by way of RGB, which blurs chroma a little; another range is rounded up by sws.
            assert np.abs(plane - exact).mean() < (0.5 if tags["matrix"] == "bt709" else 0.6)
            assert abs((plane - exact).mean()) < (0.5 if tags["full"] else 0.05)


def unpacked(frame_XW, size):
    """Luma and chroma planes out of the rows of one frame, by counting bytes."""
    flat, luma = frame_XW.reshape(-1), size[0] * size[1]
    half = size[0] // 2, size[1] // 2
    chroma = flat[luma : luma + luma // 4], flat[luma + luma // 4 :]
    return flat[:luma].reshape(size), *(plane.reshape(half) for plane in chroma)


def turned_file(mp4, quarter):
    """The same video with a display matrix of so many quarter turns."""
    start, end = 0, len(mp4)
    for wanted in (b"moov", b"trak", b"tkhd"):
        start, end = next((a, b) for kind, a, b in boxes(memoryview(mp4), start, end) if kind == wanted)
    one = 0x10000
    matrix = [(one, 0, 0, 0, one), (0, one, 0, -one, 0), (-one, 0, 0, 0, -one), (0, -one, 0, one, 0)][quarter]
    place = start + 40
    return mp4[:place] + np.array(matrix, ">i4").tobytes() + mp4[place + 20 :]


@pytest.mark.parametrize("pixels", ["rgb", "yuv420"])
@pytest.mark.parametrize("quarter", [0, 1, 2, 3])
@pytest.mark.parametrize("flip", [False, True])
def test_turns_and_flips_move_pixels_and_change_none(pixels, quarter, flip):
    """Of a crop at its own size, where nothing is scaled."""
    plain = tagged(TAGS["house"][3], "yuv420p", 1)
    whole = decode(plain, np.array([0]), CropBox(0, 0, HEIGHT, WIDTH), (HEIGHT, WIDTH), pixels=pixels)[0]
    planes = [whole] if pixels == "rgb" else unpacked(whole, (HEIGHT, WIDTH))
    turns = {0: 0, 1: 3, 2: 2, 3: 1}[quarter]
    upright = [np.rot90(plane, turns) for plane in planes]
    box = CropBox(12, 20, 64, 60, flip)
    got = decode(turned_file(plain, quarter), np.array([0]), box, (64, 60), pixels=pixels)[0]
    parts = [got] if pixels == "rgb" else unpacked(got, (64, 60))
    for number, (plane, whole) in enumerate(zip(parts, upright, strict=True)):
        half = 2 if number else 1
        expected = whole[12 // half : 76 // half, 20 // half : 80 // half]
        expected = expected[:, ::-1] if flip else expected
        # The scaler of chroma sees the edge of the cut, so the outermost pixels of RGB may differ.
        inner = (slice(2, -2), slice(2, -2)) if pixels == "rgb" else ...
        np.testing.assert_array_equal(plane[inner], expected[inner])


def test_it_writes_to_any_strides_and_repeats():
    mp4 = tagged(TAGS["house"][3], "yuv420p")
    ranks = np.array([3, 1, 3])
    for pixels in ("rgb", "yuv420"):
        plain = decode(mp4, ranks, BOX, SIZE, pixels=pixels)
        np.testing.assert_array_equal(plain[0], plain[2])
        wide = np.zeros((3, 2, *plain.shape[1:-1], 2 * plain.shape[-1]), np.uint8)
        target = wide[:, 1, ..., : plain.shape[-1]]
        assert decode(mp4, ranks, BOX, SIZE, target, pixels=pixels) is target
        np.testing.assert_array_equal(target, plain)
        assert not wide[:, 0].any() and not wide[..., plain.shape[-1] :].any()


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p10le", "gray", "nv12", "rgb24", "yuva420p"])
def test_any_pixel_format_is_cut_as_if_converted_whole(pix_fmt):
    """At its own size the cut is the part of the whole, but for the edge where colour is interpolated."""
    frame = av.VideoFrame.from_ndarray(scene(0), format="rgb24").reformat(format=pix_fmt)
    clip = np.zeros((1, BOX.height, BOX.width, 3), np.uint8)
    Cutter().paste(frame, 0, BOX, clip, [0], "rgb")
    whole = to_rgb(frame, 0, HEIGHT, WIDTH, VideoReformatter(), SCALER)
    part = whole[BOX.top : BOX.top + BOX.height, BOX.left : BOX.left + BOX.width]
    np.testing.assert_array_equal(clip[0, 2:-2, 2:-2], part[2:-2, 2:-2])


def test_a_cutter_follows_changes_of_size_and_format():
    cutter = Cutter()
    for pix_fmt, size in (
        ("yuv420p", (96, 128)),
        ("yuv444p", (96, 128)),
        ("yuv420p", (64, 80)),
        ("yuv420p", (96, 128)),
    ):
        picture = np.ascontiguousarray(scene(1)[: size[0], : size[1]])
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pix_fmt)
        box, clip = CropBox(4, 6, 50, 60), np.zeros((1, 50, 60, 3), np.uint8)
        cutter.paste(frame, 0, box, clip, [0], "rgb")
        assert np.abs(clip[0].astype(int) - picture[4:54, 6:66]).mean() < 6


@pytest.mark.parametrize(
    "size, pixels, sentence",
    [
        ((30, 20), "yuv420", "a height divisible by 4 and an even width, got 30 x 20"),
        ((32, 21), "yuv420", "an even width, got 32 x 21"),
        ((32, 20), "yuv", "unknown pixels 'yuv'; there are: rgb, yuv420"),
        ((0, 20), "rgb", "a height and a width of 1 or more, got 0 x 20"),
    ],
)
def test_shapes_that_cannot_be_have_a_sentence(size, pixels, sentence):
    with pytest.raises(ValueError, match=sentence):
        clip_shape(4, size, pixels)


def test_frames_larger_than_told_are_not_allocated():
    """A header that asks for a frame of gigabytes, and one whose stream is larger than its header."""
    mp4 = encode_x264([scene(0)], fps=10, options={"preset": "ultrafast"})
    place = mp4.index(b"avc1", mp4.index(b"stsd")) + 4 + 24
    huge = mp4[:place] + (16384).to_bytes(2, "big") * 2 + mp4[place + 4 :]
    assert 16384 * 16384 > MOST_PIXELS
    with pytest.raises(BrokenVideo, match="16384 x 16384 pixels are larger than is read") as caught:
        decode(huge, np.array([0]), CropBox(0, 0, 2, 2), (8, 8))
    assert caught.value.kind == "unsupported"
    small = mp4[:place] + (16).to_bytes(2, "big") * 2 + mp4[place + 4 :]
    with pytest.raises(BrokenVideo, match="damaged"):
        decode(small, np.array([0]), CropBox(0, 0, 2, 2), (8, 8))
