"""Stores that know videos and their lengths and nothing else: readers of annotations look no deeper."""

import pytest

from vidlang.data.store_writer import CutVideo, write_store

FPS = 10


@pytest.fixture(scope="session")
def make_store(tmp_path_factory):
    """make_store({"video0": 12.5, ...}) gives the path of a store with videos of these seconds."""

    def make(seconds: dict[str, float]) -> str:
        path = tmp_path_factory.mktemp("stores") / "store"
        videos = [CutVideo(name, FPS, 64, 48, [b"unread"], [round(FPS * length)]) for name, length in seconds.items()]
        write_store(path, videos, {"fps": FPS})
        return str(path)

    return make
