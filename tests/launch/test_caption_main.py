"""launch.caption on real files: sentences, parts, narrating a table twice, and what it says of mistakes."""

import json
import os
import re
import subprocess
import sys

import av
import numpy as np
import pytest

from vidlang.datasets import narrated, synthetic
from vidlang.train import stages


def write_video(path, seconds, codec="libx264", fps=12, size=48):
    """A drifting gradient; an mp4 or mkv as any camera's."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for number in range(int(seconds * fps)):
            rows = (np.arange(size) * 4 + number * 3) % 256
            frame = np.broadcast_to(rows[:, None, None], (size, size, 3)).astype(np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


TRANSFORMER = {"layers": 1, "width": 16, "heads": 2, "mlp": 16, "dtype": "float32"}
LANGUAGE = {"layers": 1, "width": 16, "heads": 2, "mlp": 16, "vocab": 128, "max_length": 16, "dtype": "float32"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A captioner of two steps, on the corpus of this module."""
    root = tmp_path_factory.mktemp("corpus")
    corpus = {"name": "synthetic", "root": str(root), "train_videos": 4, "val_videos": 8, "long_videos": 0}
    corpus |= {"scenes_per_video": 4, "scene_seconds": 1.0, "size": 32, "workers": 1}
    clip = {"frames": 2, "size": 16, "times": {"name": "segments"}, "crop": {"name": "center"}, "text_length": 12}
    stage = {
        "name": "caption",
        "duration": "2 steps",
        "batch_size": 8,
        "model": {
            "name": "captioner",
            "video": {"transformer": TRANSFORMER, "tubelet": (2, 8, 8)},
            "language": LANGUAGE,
            "resampler": None,
        },
        "data": {**corpus, "split": "train"},
        "clip": clip,
        "tokenizer": f"{root}/tokenizer.json",
        "objective": {"name": "captioning"},
        "optimizer": {"learning_rate": 0.01},
    }
    workdir = tmp_path_factory.mktemp("run")
    stages.train({"name": "tiny", "seed": 0, "stages": (stage,)}, workdir)
    return workdir, corpus


def launch(repository, *arguments, code=0):
    process = subprocess.run(
        [sys.executable, "-m", "launch.caption", *map(str, arguments), "--max_new=5"],
        cwd=repository,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == code, process.stdout + process.stderr
    return process.stdout if code == 0 else process.stderr


@pytest.mark.slow
def test_files_and_folders_and_parts(repository, run, tmp_path):
    workdir, _ = run
    (tmp_path / "films").mkdir()
    write_video(tmp_path / "films" / "one.mp4", 3)
    write_video(tmp_path / "films" / "two.mkv", 2, codec="mpeg4")
    (tmp_path / "films" / "broken.mp4").write_bytes(b"not a video" * 50)
    out = tmp_path / "captions.jsonl"
    said = launch(repository, f"--run={workdir}", f"--video={tmp_path}/films", "--segments=2", f"--out={out}")
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["video"], round(line["start"], 1), round(line["end"], 1)) for line in lines] == [
        ("one", 0.0, 1.5),
        ("one", 1.5, 3.0),
        ("two", 0.0, 1.0),
        ("two", 1.0, 2.0),
    ]
    assert "left out: broken" in said and "4 clips; looked for" in said and "tokens/s" in said
    one = launch(repository, f"--run={workdir}", f"--video={tmp_path}/films/one.mp4", "--segment_seconds=2")
    assert one.count("one ") == 2 and "two" not in one


@pytest.mark.slow
def test_narrating_goes_on_and_can_be_trained_on(repository, run, tmp_path):
    workdir, corpus = run
    data = f"--data={ {**corpus, 'split': 'train', 'annotations': 'narrations'} }"
    whole, out = tmp_path / "whole.jsonl", tmp_path / "train.jsonl"
    launch(repository, f"--run={workdir}", data, f"--out={whole}")
    lines = whole.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:3]) + lines[3][:20])  # killed in the fourth
    assert "3 are there" in launch(repository, f"--run={workdir}", data, f"--out={out}")
    assert out.read_text() == whole.read_text()
    assert "all that this part has to make is there" in launch(repository, f"--run={workdir}", data, f"--out={out}")
    for part in (0, 1):
        launch(repository, f"--run={workdir}", data, f"--out={tmp_path}/part.{part}.jsonl", f"--part={part}/2")
    options = {key: value for key, value in corpus.items() if key != "name"}
    store = synthetic.load("train", annotations="narrations", **options)
    one, other = (narrated.load(name, root=str(tmp_path), store=store.store, min_words=0) for name in ("train", "part"))
    cells = [
        [(t.cell(r, "video"), t.cell(r, "start"), t.cell(r, "texts")) for r in range(len(t))] for t in (one, other)
    ]
    assert sorted(cells[0]) == sorted(cells[1]) and len(one) <= len(store)


@pytest.mark.slow
def test_mistakes_are_one_sentence(repository, run, tmp_path):
    workdir, _ = run
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.mp4").write_bytes(b"nothing" * 100)
    for arguments, reason in {
        (f"--video={tmp_path}/none.mp4",): "there is no video",
        (f"--video={tmp_path}/empty",): "there is no video in the folder",
        (f"--video={tmp_path}/bad.mp4",): "nothing in .* can be adopted",
        (): "give --video=FILE or --video=FOLDER",
        (f"--video={tmp_path}/bad.mp4", "--segments=2", "--segment_seconds=3"): "give one of them",
    }.items():
        error = launch(repository, f"--run={workdir}", *arguments, code=2)
        assert re.search(reason, error) and "Traceback" not in error, error


def test_narrations_are_filtered():
    said = [("a dog runs", -3.0), ("a dog", -9.0), ("a cat sits there", -1.0), ("a dog runs", -6.0), ("", 0.0)]
    lines = [
        (str(i), f"v{i}", 0.0, 1.0, text, score / max(1, len(text.split()))) for i, (text, score) in enumerate(said)
    ]
    assert narrated._chosen(lines, None, 1, 0, 1.0) == [0, 1, 2, 3]
    assert narrated._chosen(lines, -1.5, 1, 0, 1.0) == [0, 2]
    assert narrated._chosen(lines, None, 3, 1, 1.0) == [2]
    assert narrated._chosen(lines, None, 1, 0, 0.5) == [0, 2]
    with pytest.raises(ValueError, match="none of 5 captions is left"):
        narrated._chosen(lines, None, 9, 0, 1.0)
