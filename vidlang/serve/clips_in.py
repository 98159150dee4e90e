"""What people have of videos, as batches of clips that a model can be called with: files, frames, tables of clips."""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np

from vidlang.data.broken import describe
from vidlang.data.clips import ClipTable
from vidlang.data.crops import choose_crop
from vidlang.data.cutting.inputs import find_inputs
from vidlang.data.failures import KINDS
from vidlang.data.pipeline import ClipSpec, EvalData
from vidlang.data.pixels import Cutter
from vidlang.evals._embed import VIDEO_FIELDS
from vidlang.serve.own_videos import NoneReadable, Parts, own_videos

# A file that cannot be read is told by name, however many there are; nothing else stops at them.
ALL_MAY_BE_BROKEN = 0.999999
LEAST_SHORT_SIDE = 288
# Between two lines of progress.
LINE_SECONDS = 5.0
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Batch:
    """Clips in arrays of as many rows as every batch has: valid_B, which of them count; index_V, which videos these
    are."""

    arrays: dict[str, np.ndarray]
    valid_B: np.ndarray
    index_V: np.ndarray


@dataclass
class Videos:
    """Some videos in the order given; `unreadable` says why of those, by place, that could not be read.

    table: clips of a store in place of videos.
    """

    given: list[Path | np.ndarray]
    table: ClipTable | None = None
    unreadable: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.given) if self.table is None else len(self.table)

    def name(self, place: int) -> str:
        """How messages call one of them."""
        if self.table is not None:
            return describe(self.table, place)
        return str(self.given[place]) if isinstance(self.given[place], Path) else f"video {place}"

    def require_readable(self) -> None:
        """ValueError that names what could not be read."""
        if self.unreadable:
            place, why = min(self.unreadable.items())
            more = f", nor can {len(self.unreadable) - 1} more" if len(self.unreadable) > 1 else ""
            raise ValueError(f"{self.name(place)} cannot be read{more}: {why}. Leave it out, or give unreadable='nan'")


def read_videos(given: Any) -> Videos:
    """What a user calls videos: a path, frames [T, H, W, 3] or [B, T, H, W, 3], a list of these, a table of clips."""
    if isinstance(given, ClipTable):
        return Videos([], given)
    if isinstance(given, np.ndarray) and given.ndim == 5:
        given = list(given)
    items = [given] if isinstance(given, str | Path | np.ndarray) else list(given)
    if not items:
        raise ValueError("there are no videos; give a path, frames [T, H, W, 3], or a list of these")
    found: list[Path | np.ndarray] = []
    for place, item in enumerate(items):
        if isinstance(item, str | Path):
            path = Path(item).expanduser()
            if not path.is_file():
                what = "a folder" if path.is_dir() else "not there"
                raise ValueError(f"{path} is {what}; give the path of a video file, or a list of such paths")
            found.append(path)
        elif isinstance(item, np.ndarray) and item.ndim == 4 and item.shape[3] == 3 and item.dtype == np.uint8:
            if not min(item.shape):
                raise ValueError(f"video {place} has no frames or no pixels: its shape is {list(item.shape)}")
            found.append(item)
        else:
            what = f"{item.dtype} {list(item.shape)}" if hasattr(item, "shape") else repr(item)
            raise ValueError(f"video {place} is {what}; give a path, or frames as uint8 [T, H, W, 3] (RGB)")
    return Videos(found)


def batches(
    videos: Videos, spec: ClipSpec, *, rows: int, workers: int = 0, progress: Progress | None = None
) -> Iterator[Batch]:
    """All videos that can be read, each once for every view, in batches of `rows` rows."""
    arrays = [place for place, item in enumerate(videos.given) if isinstance(item, np.ndarray)]
    paths = [place for place, item in enumerate(videos.given) if isinstance(item, Path)]
    done = set[int]()
    parts = [_of_arrays(videos, arrays, spec, rows), _of_files(videos, paths, spec, rows, workers)]
    if videos.table is not None:
        parts = [_of_table(videos, videos.table, np.arange(len(videos)), spec, rows, workers)]
    for batch in itertools.chain(*parts):
        yield batch
        done |= set(batch.index_V.tolist())
        if progress is not None:
            progress(len(done) + len(videos.unreadable), len(videos))


def _of_arrays(videos: Videos, places: Sequence[int], spec: ClipSpec, rows: int) -> Iterator[Batch]:
    views = [(place, view) for place in places for view in range(spec.crops)]
    for start in range(0, len(views), rows):
        some = views[start : start + rows]
        clips = [fit_frames(videos.given[place], spec, view) for place, view in some]  # type: ignore[arg-type]
        clips += clips[-1:] * (rows - len(clips))
        valid_B = np.arange(rows) < len(some)
        yield Batch({"video_BTHWC": np.stack(clips)}, valid_B, np.array([place for place, _ in some]))


def fit_frames(video_THWC: np.ndarray, spec: ClipSpec, view: int = 0) -> np.ndarray:
    """Frames as a model sees them: those in the middle of equal parts, cropped and scaled as those of files are.

    Frames that have the model's size already are left as they are.
    """
    count, height, width, _ = video_THWC.shape
    ranks = ((np.arange(spec.frames) + 0.5) * count / spec.frames).astype(np.int64)
    if (height, width) == (spec.size, spec.size):
        return video_THWC[ranks]
    crop = choose_crop(None, height, width, view=view, views=spec.crops, **spec.crop)
    clip = np.empty((spec.frames, spec.size, spec.size, 3), np.uint8)
    cutter = Cutter()
    for rank in np.unique(ranks).tolist():
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(video_THWC[rank]), format="rgb24")
        cutter.paste(frame, 0, crop, clip, np.flatnonzero(ranks == rank).tolist(), "rgb")
    return clip


def _of_files(videos: Videos, places: Sequence[int], spec: ClipSpec, rows: int, workers: int) -> Iterator[Batch]:
    if not places:
        return
    # Files are told apart by their place, and one may come twice; its own name is for messages.
    named = {f"{place}/{_letters(videos.name(place))}": place for place in places}
    inputs = find_inputs([(name, str(videos.given[place])) for name, place in named.items()])
    short_side = max(LEAST_SHORT_SIDE, spec.size)
    with contextlib.ExitStack() as stack:
        try:
            own = stack.enter_context(own_videos(inputs, Parts(), short_side=short_side, workers=max(1, workers)))
        except NoneReadable as error:
            videos.unreadable |= {named[name]: why for name, why in error.refused}
            return
        videos.unreadable |= {named[name]: why for name, why in own.refused}
        for table in own.tables:
            place_N = np.array([named[name] for name in table.column("video")])
            yield from _of_table(videos, table, place_N, spec, rows, workers)


def _of_table(
    videos: Videos, table: ClipTable, place_N: np.ndarray, spec: ClipSpec, rows: int, workers: int
) -> Iterator[Batch]:
    data = EvalData(table, None, spec, batch_size=rows, workers=workers, max_broken_share=ALL_MAY_BE_BROKEN)
    try:
        for batch in data.batches():
            _note_broken(videos, batch, place_N)
            valid_B = batch["valid_B"].astype(bool)
            arrays = {name: batch[name] for name in VIDEO_FIELDS if name in batch}
            yield Batch(arrays, valid_B, place_N[batch["index_B"][valid_B]])
    except ValueError:
        # A pass over nothing but broken clips ends so, and what they are is known by then.
        if not videos.unreadable.keys() >= set(place_N.tolist()):
            raise


def _note_broken(videos: Videos, batch: Any, place_N: np.ndarray) -> None:
    for row in np.flatnonzero((batch["index_B"] >= 0) & (batch["broken_B"] >= 0)).tolist():
        kind = KINDS[int(batch["broken_kind_B"][row])]
        videos.unreadable[int(place_N[batch["index_B"][row]])] = f"it is {kind}"


def _letters(path: str) -> str:
    """The name of a file without its suffix and without what names of videos may not have."""
    return "".join(letter if letter.isalnum() else "_" for letter in Path(path).stem)[:60] or "video"


def lines(what: str, told: bool | Progress) -> Progress | None:
    """What tells how far it is: nothing, somebody's own function, or a line every few seconds."""
    if not isinstance(told, bool):
        return told
    if not told:
        return None
    begun = shown = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if done < total and now - shown < LINE_SECONDS:
            return
        shown = now
        print(f"{done} of {total} {what}, {done / max(now - begun, 1e-9):.3g} a second", file=sys.stderr, flush=True)

    return tell
