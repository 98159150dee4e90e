"""A Beam pipeline makes the store that the local pool makes, byte for byte."""

import json
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest

from vidlang.data.encode import EncodeSettings, encode_mp4
from vidlang.data.precut import PrecutSettings, precut
from vidlang.data.stores import record_writer

pytest.importorskip("apache_beam")
pytestmark = pytest.mark.filterwarnings("default")

from vidlang.data.cutting.beam import precut_with_beam  # noqa: E402

FAST = EncodeSettings(preset="ultrafast")
SETTINGS = PrecutSettings(chunk_seconds=1.5, fps=8, short_side=32, encode=FAST)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos")
    for number in range(4):
        frames = [np.full((32, 48, 3), 5 * k + number, np.uint8) for k in range(14 + 6 * number)]
        (path / f"v{number}.mp4").write_bytes(encode_mp4(frames, fps=8, settings=FAST))
    (path / "broken.mp4").write_bytes((path / "v1.mp4").read_bytes()[:900])
    return path


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(record_writer, "CHUNKS_PER_SHARD", 4)


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("layout", ["records", "index"])
def test_same_store_as_the_local_pool(layout, folder, tmp_path):
    expected = precut(folder, tmp_path / "local", SETTINGS, layout=layout)
    report = precut_with_beam(folder, tmp_path / "beam", SETTINGS, runner="DirectRunner", layout=layout)
    assert report == expected and len(report.failed) == 1
    assert content(tmp_path / "beam") == content(tmp_path / "local")
    if layout == "records":
        assert len(json.loads((tmp_path / "beam" / "store.json").read_text())["shards"]) > 1
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["beam", "local"]


def test_relative_paths_options_and_processes_of_their_own(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").symlink_to(folder)
    options = ["direct_num_workers=1", "--job_name=cut"]
    precut_with_beam(
        [("a", "in/v0.mp4")], "beam", SETTINGS, runner="DirectRunner", beam_options=options, video_timeout=60
    )
    precut([("a", "in/v0.mp4")], "local", SETTINGS)
    assert content(tmp_path / "beam") == content(tmp_path / "local")


def test_what_the_local_pool_began_a_pipeline_goes_on_with(folder, tmp_path, monkeypatch):
    output = tmp_path / "store"

    def stop(progress):
        if progress.done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        precut(folder, output, SETTINGS, progress=stop)
    journal = tmp_path / "store.partial" / "journal.jsonl"
    assert journal.read_text().count("\n") == 1
    precut_with_beam(folder, output, SETTINGS, runner="DirectRunner")
    precut(folder, tmp_path / "local", SETTINGS)
    assert content(output) == content(tmp_path / "local")


def test_workers_without_a_common_file_system(folder, tmp_path):
    """Cut videos, shards and the store lie on an object store; a kill between the two pipelines loses nothing."""
    system, settings = fsspec.filesystem("memory"), dict(runner="DirectRunner", work=tmp_path / "work")
    expected = precut(folder, tmp_path / "local", SETTINGS)

    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        precut_with_beam(folder, "memory://out/s", SETTINGS, **settings, spool="memory://tmp", progress=stop)
    cut = sorted(system.find("/tmp"))
    assert len(cut) == 5 + 10 and not system.exists("/out/s/store.json")
    before = system.modified(cut[0])  # of the video that is broken
    with pytest.raises(KeyboardInterrupt):
        options = {**settings, "progress": stop, "retry_failed": True}
        precut_with_beam(folder, "memory://out/s", SETTINGS, **options, spool="memory://tmp")
    times = {path: system.modified(path) for path in cut}
    assert times[cut[0]] > before and min(times, key=times.get) != cut[0]

    def look(progress):
        assert progress.finished or {path: system.modified(path) for path in cut} == times

    report = precut_with_beam(folder, "memory://out/s", SETTINGS, **settings, spool="memory://tmp", progress=look)
    assert report == expected
    there = {Path(name).name: system.cat_file(name) for name in system.find("/out/s")}
    assert there == content(tmp_path / "local")
    assert not system.find("/tmp") and [entry.name for entry in tmp_path.iterdir()] == ["local"]
    with pytest.raises(ValueError, match="a spool on an object store serves a store on one"):
        precut_with_beam(folder, tmp_path / "s", SETTINGS, runner="DirectRunner", spool="memory://tmp")


def test_mistakes_have_a_sentence(folder, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="an option of Beam is given as key=value, got 'region'"):
        precut_with_beam(folder, tmp_path / "s", SETTINGS, runner="DirectRunner", beam_options=["region"])
    for runner, option, sentence in (
        ("Nonesuch", "job_name=cut", "Beam cannot use the runner 'Nonesuch' so: .*Nonesuch"),
        ("DirectRunner", "direct_num_wokers=2", "Beam's DirectRunner knows no option direct_num_wokers"),
        ("DirectRunner", "direct_num_workers=many", "--direct_num_workers: invalid int value: 'many'$"),
    ):
        with pytest.raises(ValueError, match=sentence):
            precut_with_beam(folder, tmp_path / "s", SETTINGS, runner=runner, beam_options=[option])
    assert not list(tmp_path.iterdir())
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(ValueError, match=r"Apache Beam, which is not installed: pip install 'vidlang\[beam\]'"):
        precut_with_beam(folder, tmp_path / "s", SETTINGS, runner="DirectRunner")
    assert not list(tmp_path.iterdir())
