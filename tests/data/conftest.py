"""A small real chunk store whose pixels say which video and which second they are of, and a table of its clips."""

import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vidlang.data.clips import ClipTable
from vidlang.data.encode import EncodeSettings, encode_mp4
from vidlang.data.precut import PrecutSettings, cut_video
from vidlang.data.stores.writer import write_store
from vidlang.data.tokenizer import Tokenizer, train_wordlevel

SECONDS, FPS, HEIGHT, WIDTH = 4, 8, 48, 64
VIDEOS = ("north", "east", "south", "west")
SETTINGS = PrecutSettings(
    chunk_seconds=2, fps=FPS, short_side=HEIGHT, encode=EncodeSettings(crf=10, preset="ultrafast")
)


def colour(video: int, seconds: float) -> tuple[int, int, int]:
    """Red tells the video, green the second."""
    return 40 + 50 * video, 20 + int(seconds * FPS) * 6, 60


def cut_tiny_video(number: int, folder: Path):
    """Video `number` as the precutter makes it: flat colours, two chunks of two seconds."""
    frames = [np.full((HEIGHT, WIDTH, 3), colour(number, k / FPS), np.uint8) for k in range(SECONDS * FPS)]
    path = folder / f"{VIDEOS[number]}.mp4"
    path.write_bytes(encode_mp4(frames, fps=FPS, settings=SETTINGS.encode))
    return cut_video(path, VIDEOS[number], SETTINGS)


@pytest.fixture(scope="session")
def encode(repository):
    """`encode(make, codec, ...)` is make(codec, ...), in a process of its own where the codec is SVT-AV1.

    Started by root, that gives its process, and all that this starts later, the highest real-time priority for ever:
    a few busy ones then leave nothing of a small machine to anybody else, and tests hang far from here.
    """

    def run(make, codec, *args, **kwargs):
        if codec != "libsvtav1":
            return make(codec, *args, **kwargs)
        script, file = Path(__file__).with_name("_apart.py"), sys.modules[make.__module__].__file__
        result = subprocess.run(
            [sys.executable, str(script), file, make.__name__],
            input=pickle.dumps(((codec, *args), kwargs)),
            capture_output=True,
            env={**os.environ, "PYTHONPATH": str(repository)},
            timeout=120,
        )
        assert result.returncode == 0, result.stderr.decode()
        return pickle.loads(result.stdout)

    return run


@pytest.fixture(scope="session")
def tiny_videos(tmp_path_factory):
    """Four cut videos, north, east, south and west."""
    folder = tmp_path_factory.mktemp("videos")
    return [cut_tiny_video(number, folder) for number in range(len(VIDEOS))]


@pytest.fixture(scope="session")
def make_store(tmp_path_factory, tiny_videos):
    """Writes a store in which the frames of the named (video, chunk) pairs are zeros."""

    def make(*garbage: tuple[str, int]) -> str:
        path = tmp_path_factory.mktemp("stores") / "store"
        videos = []
        for video in tiny_videos:
            chunks = enumerate(video.chunks)
            chunks = [zero_frames(chunk) if (video.name, k) in garbage else chunk for k, chunk in chunks]
            videos.append(replace(video, chunks=chunks))
        write_store(path, videos, SETTINGS)
        return str(path)

    return make


def zero_frames(mp4: bytes) -> bytes:
    """The same index, and nothing in the frames that it points to."""
    first = mp4.index(b"mdat") + 4
    return mp4[:first] + bytes(len(mp4) - first)


@pytest.fixture(scope="session")
def tiny_table(tmp_path_factory, make_store):
    """50 clips of half a second to three, in groups of three, each with two texts that name its row."""
    return clip_table(make_store()).save(tmp_path_factory.mktemp("table") / "clips.arrow")


def clip_table(store: str, rows: int = 50) -> ClipTable:
    rng = np.random.default_rng(0)
    start = rng.uniform(0, 1, rows)
    return ClipTable.from_columns(
        {
            "video": [VIDEOS[i % 4] for i in range(rows)],
            "start": start,
            "end": start + rng.uniform(0.5, 3, rows),
            "texts": [[f"first {i}", f"second {i} again"] for i in range(rows)],
            "group": [i // 3 for i in range(rows)],
            "label": [100 + i for i in range(rows)],
        },
        store=store,
    )


@pytest.fixture(scope="session")
def make_table():
    return clip_table


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory, tiny_table):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_wordlevel([text for texts in tiny_table.column("texts") for text in texts], path)
    return Tokenizer(path, 6)
