"""Where each frame of an H.264 MP4 lies, read from its tables with numpy and no decoder.

A damaged or hostile file can claim billions of samples in a few bytes, so every count is held against the bytes that
are there before anything is allocated. Glossary: a *box* is a length, four letters and a body; a *sample* is one coded
frame, in decoding order; a frame's *rank* is its place in presentation order; a *sync* sample starts a GOP.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from vidlang.data.failures import BrokenVideo

BOX = struct.Struct(">I4s").unpack_from
# Rows of the tables, big-endian.
U4, U8, RUNS, SIGNED_RUNS = (np.dtype(row) for row in (">u4", ">u8", ">u4,>u4", ">u4,>i4"))
CHUNK_RUNS, EDITS, WIDE_EDITS = (np.dtype(row) for row in (">u4,>u4,>u4", ">u4,>i4,>u4", ">u8,>i8,>u4"))


class NotIndexed(Exception):
    """A video that may well be fine, but is not a plain progressive H.264 MP4: read it through its container."""


@dataclass(slots=True, eq=False)
class Mp4Index:
    """The tables of one H.264 track; all arrays are in decoding order."""

    configuration: bytes  # the avcC body: parameter sets, the decoder's extradata
    length_size: int  # bytes of the length in front of each NAL unit
    offsets: np.ndarray
    sizes: np.ndarray
    ranks: np.ndarray
    samples: np.ndarray  # the inverse of ranks: samples[rank] is the sample shown at that rank
    keys: np.ndarray  # the sync samples, increasing
    starts: list[int]  # those that decoding can start at for every sample from there on
    width: int  # as stored, before rotation
    height: int
    rotation: int  # quarter turns counter-clockwise that bring the stored frame upright
    ticks: np.ndarray  # when the frame of each rank is shown
    timescale: int  # ticks a second
    seconds: float  # from the first frame's start to the last frame's end

    @property
    def times(self) -> np.ndarray:
        """When the frame of each rank is shown, in seconds after the first."""
        return (self.ticks - self.ticks[0]) / self.timescale


def boxes(data: memoryview, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """The boxes in data[start:end] as (kind, first byte of the body, end); stops at the first that does not fit."""
    while start + 8 <= end:
        size, kind = BOX(data, start)
        body = start + 8
        if size == 1:
            if start + 16 > end:
                return
            size = struct.unpack_from(">Q", data, start + 8)[0]
            body = start + 16
        stop = end if size == 0 else start + size
        if stop < body or stop > end:
            return
        yield kind, body, stop
        start = stop


def read_index(mp4: bytes | memoryview) -> Mp4Index:
    """The index of the first video track; BrokenVideo when damaged, NotIndexed when of another kind."""
    data = memoryview(mp4)
    if len(data) == 0:
        raise BrokenVideo("the video is empty: 0 bytes", "empty")
    if len(data) < 16 or bytes(data[4:8]) not in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
        raise NotIndexed("it is not an MP4")
    top = {kind: (start, end) for kind, start, end in boxes(data, 0, len(data))}
    if b"moof" in top:
        raise NotIndexed("it is a fragmented MP4")
    if b"moov" not in top:
        sentence = f"the MP4 has no index (moov box) in its {len(data)} bytes: it is truncated or not closed"
        raise BrokenVideo(sentence, "truncated")
    movie = list(boxes(data, *top[b"moov"]))
    header = {kind: (start, end) for kind, start, end in movie if kind != b"trak"}
    if b"mvex" in header:
        raise NotIndexed("it is a fragmented MP4")
    handlers = set()
    for kind, start, end in movie:
        if kind == b"trak":
            track = _track(data, start, end)
            handler, _ = track.get(b"hdlr", (len(data), 0))
            handlers.add(bytes(data[handler + 8 : handler + 12]))
            if b"vide" in handlers:
                return _index(data, {**header, **track})
    if handlers and b"" not in handlers and movie[-1][2] == top[b"moov"][1]:
        raise BrokenVideo("it has no video stream", "unsupported")
    raise BrokenVideo("the MP4 has no complete video track in its index")


def _track(data: memoryview, start: int, end: int) -> dict[bytes, tuple[int, int]]:
    """The boxes of a track that the index needs, flattened."""
    found: dict[bytes, tuple[int, int]] = {}
    pending = [(start, end)]
    while pending:
        for kind, body, stop in boxes(data, *pending.pop()):
            if kind in (b"mdia", b"minf", b"stbl", b"edts"):
                pending.append((body, stop))
            else:
                found.setdefault(kind, (body, stop))
    return found


def _index(data: memoryview, track: dict[bytes, tuple[int, int]]) -> Mp4Index:
    configuration, width, height = _description(data, *_need(track, b"stsd"))
    sizes = _sizes(data, *_need(track, b"stsz"))
    count = len(sizes)
    offsets = _offsets(data, track, sizes)
    shown, length = _decode_times(data, *_need(track, b"stts"), count)
    if b"ctts" in track:
        shown += _runs(_table(data, *track[b"ctts"], SIGNED_RUNS), count, "ctts")
    samples = np.argsort(shown)
    ticks = shown[samples]
    if (ticks[1:] <= ticks[:-1]).any():
        raise NotIndexed("two of its frames have the same time")
    ranks = np.empty(count, np.int64)
    ranks[samples] = keys = np.arange(count)
    if b"stss" in track:
        keys = _table(data, *track[b"stss"], U4).astype(np.int64) - 1
        if not len(keys) or keys[0] != 0 or (keys[1:] <= keys[:-1]).any() or keys[-1] >= count:
            raise NotIndexed("its first frame is not a keyframe or its keyframe table is out of order")
    timescale = _timescale(data, *_need(track, b"mdhd"))
    _check_edit(data, track, ticks, timescale)
    return Mp4Index(
        configuration=configuration,
        length_size=(configuration[4] & 3) + 1,
        offsets=offsets,
        sizes=sizes,
        ranks=ranks,
        samples=samples,
        keys=keys,
        # Open GOPs start with a keyframe that is not the first shown; frames around it refer to the GOP before.
        # Decoding starts where as many frames are shown before as are stored before.
        starts=keys[ranks[keys] == keys].tolist(),
        width=width,
        height=height,
        rotation=_rotation(data, *_need(track, b"tkhd")),
        ticks=ticks,
        timescale=timescale,
        seconds=length / timescale,
    )


def _fail(what: str) -> NoReturn:
    raise BrokenVideo(f"the MP4 index is damaged: {what}")


def _need(track: dict[bytes, tuple[int, int]], kind: bytes) -> tuple[int, int]:
    if kind not in track:
        if kind == b"stsz" and b"stz2" in track:
            raise NotIndexed("it has compact sample sizes")
        _fail(f"the video track has no {kind.decode()} box")
    return track[kind]


def _table(data: memoryview, start: int, end: int, dtype: np.dtype, header: int = 4) -> np.ndarray:
    """The rows of a full box: version and flags, further header bytes, a count, then rows of the given dtype."""
    first = start + header + 4
    if first > end:
        _fail("a table is shorter than its header")
    count = struct.unpack_from(">I", data, first - 4)[0]
    if count * dtype.itemsize > end - first:
        _fail(f"a table claims {count} rows but has {end - first} bytes")
    return np.frombuffer(data, dtype, count, first)


def _decode_times(data: memoryview, start: int, end: int, count: int) -> tuple[np.ndarray, int]:
    """When each sample is decoded, and when the last one ends."""
    if end - start >= 16:
        runs, samples, each = struct.unpack_from(">3I", data, start + 4)
        if runs == 1 and samples == count and each:  # nearly always: all frames last equally long
            return np.arange(0, each * count, each), each * count
    durations = _runs(_table(data, start, end, RUNS), count, "stts")
    ends = np.cumsum(durations)
    return ends - durations, int(ends[-1])


def _runs(table: np.ndarray, count: int, name: str) -> np.ndarray:
    """Run lengths and values spread out to one value a sample."""
    lengths, values = table["f0"].astype(np.int64), table["f1"].astype(np.int64)
    if int(lengths.sum()) != count:
        _fail(f"{name} describes {int(lengths.sum())} samples, there are {count}")
    return np.repeat(values, lengths)


def _description(data: memoryview, start: int, end: int) -> tuple[bytes, int, int]:
    """The avcC body and the stored frame size from the one sample description."""
    entries = list(boxes(data, start + 8, end))
    if not entries:
        _fail("it describes no codec")
    if len(entries) > 1 or entries[0][0] != b"avc1":
        raise NotIndexed(f"its codec is {entries[0][0].decode('ascii', 'replace')!r}, not one H.264 stream")
    _, body, stop = entries[0]
    if stop - body < 78:
        _fail("its codec description is too short")
    height_width = struct.unpack_from(">2H", data, body + 24)
    for kind, first, last in boxes(data, body + 78, stop):
        if kind == b"avcC" and last - first >= 7:
            return bytes(data[first:last]), height_width[0], height_width[1]
    _fail("it has no H.264 configuration (avcC box)")


def _sizes(data: memoryview, start: int, end: int) -> np.ndarray:
    if end - start < 12:
        _fail("its sample size table is too short")
    same, count = struct.unpack_from(">2I", data, start + 4)
    if same == 0:
        sizes = _table(data, start, end, U4, header=8).astype(np.int64)
    elif same * count <= len(data):
        sizes = np.full(count, same, np.int64)
    else:
        _fail(f"it claims {count} samples of {same} bytes in a file of {len(data)} bytes")
    if not len(sizes):
        raise BrokenVideo("the video has no frames", "empty")
    return sizes


def _offsets(data: memoryview, track: dict[bytes, tuple[int, int]], sizes: np.ndarray) -> np.ndarray:
    """Where each sample starts: chunks of consecutive samples, each chunk at an offset of its own."""
    wide = b"co64" in track
    chunk_starts = _table(data, *_need(track, b"co64" if wide else b"stco"), U8 if wide else U4)
    layout = _table(data, *_need(track, b"stsc"), CHUNK_RUNS)
    chunks, count = len(chunk_starts), len(sizes)
    rows = [*layout.tolist(), (chunks + 1, 0, 1)]
    if len(rows) < 2 or rows[0][0] != 1 or any(row[0] >= after[0] for row, after in itertools.pairwise(rows)):
        _fail("its chunk table is out of order")
    if any(row[2] != 1 for row in rows):
        raise NotIndexed("it switches between sample descriptions")
    # Of a chunk there are no more than its offsets take bytes, but of samples in it there may be told any number.
    samples_each = [
        samples for (first, samples, _), (after, *_) in itertools.pairwise(rows) for _ in range(first, after)
    ]
    if sum(samples_each) != count:
        _fail("its chunks and its sample sizes disagree on the number of samples")
    # Offsets may be any 64-bit number in a damaged file: compare before narrowing.
    if int(chunk_starts.max()) > len(data):
        raise BrokenVideo(f"the video is truncated: its frames lie beyond its {len(data)} bytes", "truncated")
    in_chunk = np.array(samples_each)
    first_sample = np.cumsum(in_chunk) - in_chunk
    before = np.cumsum(sizes) - sizes
    offsets = np.repeat(chunk_starts.astype(np.int64) - before[np.minimum(first_sample, count - 1)], in_chunk) + before
    last = int((offsets + sizes).max())
    if last > len(data):
        raise BrokenVideo(f"the video is truncated: its frames reach to byte {last}, it has {len(data)}", "truncated")
    return offsets


def _timescale(data: memoryview, start: int, end: int) -> int:
    """Ticks a second of a mdhd or mvhd box."""
    place = start + (20 if data[start : start + 1] == b"\x01" else 12)
    if place + 4 > end or (timescale := struct.unpack_from(">I", data, place)[0]) == 0:
        _fail("it has no time scale")
    return timescale


def _check_edit(data: memoryview, track: dict[bytes, tuple[int, int]], shown: np.ndarray, timescale: int) -> None:
    """Leaves a track whose edit list hides frames to the container path; most only shift the start."""
    if b"elst" not in track:
        return
    start, end = track[b"elst"]
    wide = data[start : start + 1] == b"\x01"
    table = _table(data, start, end, WIDE_EDITS if wide else EDITS).tolist()
    edits = [edit for edit in table if edit[1] != -1]  # an empty edit only delays the start
    if len(edits) != 1 or edits[0][2] != 0x10000:
        raise NotIndexed("its edit list cuts or reorders frames")
    duration, begin, _ = edits[0]
    movie_scale = _timescale(data, *_need(track, b"mvhd"))
    length = duration * timescale / movie_scale
    if shown[0] < begin or (length and shown[-1] >= begin + length):
        raise NotIndexed("its edit list hides frames")


def _rotation(data: memoryview, start: int, end: int) -> int:
    """Quarter turns counter-clockwise that bring the stored frame upright, from the track's matrix."""
    place = start + (52 if data[start : start + 1] == b"\x01" else 40)
    if place + 20 > end:
        _fail("its track header is too short")
    a, b, _, c, d = struct.unpack_from(">5i", data, place)
    one = 0x10000
    turns = {(one, 0, 0, one): 0, (0, one, -one, 0): 3, (-one, 0, 0, -one): 2, (0, -one, one, 0): 1}
    if (a, b, c, d) not in turns:
        raise NotIndexed("its picture is turned by no multiple of 90 degrees")
    return turns[a, b, c, d]
