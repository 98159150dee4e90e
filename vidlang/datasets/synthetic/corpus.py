"""Makes a corpus once and keeps it: videos rendered, cut into a chunk store as a user's would be, tables beside it.

    root/tokenizer.json                  every word the grammar knows, the same for all settings
    root/<fingerprint>/store/            the chunk store
    root/<fingerprint>/<split>_<kind>.arrow
    root/<fingerprint>/settings.json     what the fingerprint stands for

A corpus is made in a folder of another name and renamed when it is whole, under a lock: a process killed in the middle
leaves nothing that looks like a corpus, and of two that start together one makes it and the other waits.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from vidlang.core.config import fingerprint
from vidlang.data.clips import ClipTable
from vidlang.data.encode import EncodeSettings, encode_mp4
from vidlang.data.precut import PrecutSettings, precut
from vidlang.data.tokenizer import train_wordlevel
from vidlang.data.workers.processes import worker_pool
from vidlang.datasets.synthetic.annotations import KINDS, SPLITS, write
from vidlang.datasets.synthetic.grammar import Video
from vidlang.datasets.synthetic.render import render_video
from vidlang.datasets.synthetic.scenes import draw_videos
from vidlang.datasets.synthetic.sentences import vocabulary
from vidlang.datasets.synthetic.settings import Settings

VERSION = 2  # raise it when the same settings make other videos or annotations
SOURCE = EncodeSettings(crf=10, preset="ultrafast", gop_seconds=1.0, b_frames=0)  # what precut reads: nearly lossless
CHUNKS = EncodeSettings(preset="veryfast")  # what the store holds
CHUNK_SECONDS = 15


def ensure(root: Path, settings: Settings, workers: int) -> Path:
    """Folder of the corpus with these settings, made now if it does not exist."""
    encodings = {"source": dataclasses.asdict(SOURCE), "chunks": dataclasses.asdict(CHUNKS)}
    description = {"version": VERSION, "encodings": encodings, **dataclasses.asdict(settings)}
    folder = root / fingerprint(description)
    if not folder.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        with _lock(root / f".{folder.name}.lock"):
            if not folder.is_dir():  # another process may have made it while this one waited
                partial = root / f".{folder.name}.partial"
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                _make(partial, settings, workers)
                (partial / "settings.json").write_text(json.dumps(description, indent=1) + "\n")
                partial.rename(folder)
    return folder


def ensure_tokenizer(path: Path) -> None:
    """Writes the grammar's tokenizer where there is none; another tokenizer in its place is an error."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / "tokenizer.json"
        train_wordlevel(vocabulary(), fresh)
        content = fresh.read_bytes()
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_bytes(content)
        partial.replace(path)
    elif path.read_bytes() != content:
        raise ValueError(
            f"{path} is not the tokenizer of the synthetic corpus, so its token ids would mean other words; "
            "choose another root or move that file away"
        )


def table_path(folder: Path, split: str, annotations: str) -> Path:
    """Where the clips of one split and kind of annotation lie."""
    return folder / f"{split}_{annotations}.arrow"


def _make(folder: Path, settings: Settings, workers: int) -> None:
    videos = draw_videos(settings)
    seconds = sum(video.frames for video in videos) / settings.fps
    logging.info("synthetic corpus: making %d videos, %.0f minutes, once for %s", len(videos), seconds / 60, settings)
    sources = folder / "sources"
    sources.mkdir()
    tasks = [(video, settings, sources / f"{video.name}.mp4") for video in videos]
    if workers > 1:
        with worker_pool(workers) as pool:
            list(pool.map(_render, tasks, chunksize=4))
    else:
        list(map(_render, tasks))
    logging.info("synthetic corpus: rendered, now cutting into chunks")
    cut = PrecutSettings(chunk_seconds=CHUNK_SECONDS, fps=settings.fps, short_side=settings.size, encode=CHUNKS)
    report = precut([(video.name, path) for video, _, path in tasks], folder / "store", cut, workers=workers)
    if report.failed:
        raise RuntimeError(f"synthetic corpus: precut refused {len(report.failed)} videos, first {report.failed[0]}")
    shutil.rmtree(sources)
    for split in SPLITS:
        for kind in KINDS:
            if columns := write(kind, split, videos, settings):
                ClipTable.from_columns(columns, store=folder / "store").save(table_path(folder, split, kind))


def _render(task: tuple[Video, Settings, Path]) -> None:
    video, settings, path = task
    frames = render_video(video, settings.size, settings.fps)
    path.write_bytes(encode_mp4(frames, fps=settings.fps, settings=SOURCE))


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Waits until no other process holds the file; a killed holder frees it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
