"""launch.caption on real files: sentences, parts, narrating a table twice, and what it says of mistakes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.serve.tiny_captioner import corpus_at, train_captioner, write_video
from vidlang.datasets import narrated, synthetic

SHORT = ("--max_new=5", "--batch_size=4")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder of the run, data section of its corpus)."""
    corpus = corpus_at(tmp_path_factory.mktemp("corpus"))
    return train_captioner(tmp_path_factory.mktemp("run"), corpus), corpus


@pytest.fixture
def caption(launch, run):
    def made(*arguments, code=0):
        done = launch("launch.caption", f"--run={run[0]}", *map(str, arguments))
        assert done.code == code, done.out + done.err
        return done.out if code == 0 else done.err

    return made


def places(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line["video"], round(line["start"], 1), round(line["end"], 1)) for line in lines]


@pytest.mark.slow
def test_files_and_folders_and_parts(caption, tmp_path):
    films, out = tmp_path / "films", tmp_path / "captions.jsonl"
    films.mkdir()
    write_video(films / "one.mp4", 3, sound=True)
    write_video(films / "two.mkv", 2, codec="mpeg4")
    (films / "broken.mp4").write_bytes(b"not a video" * 50)
    said = caption(f"--video={films}", "--segments=2", f"--out={out}", "--prompt=red", *SHORT)
    expected = [("two", 0.0, 1.0), ("two", 1.0, 2.0), ("one", 0.0, 1.5), ("one", 1.5, 3.0)]
    assert places(out) == expected and "cutting 2 file(s) first" in said
    assert "left out: broken: it cannot be read as a video" in said
    lines = out.read_text().splitlines()
    for line in map(json.loads, lines):
        score = f"({line['score']:.2f})"
        assert f"{line['video']}  {line['start']:.1f} to {line['end']:.1f} s  {line['caption']}  {score}" in said
        assert line["prompt"] == "red"
    assert "4 clips; waited" in said
    beams = ("--how=beam", "--beams=3", "--samples=2", "--segment_seconds=2")
    one = caption(f"--video={films}/one.mp4", *beams, *SHORT)
    assert one.count("one  0.0 to 2.0 s") == 2 and one.count("one  2.0 to 3.0 s") == 2 and "two" not in one
    # Other parts of the same films are added, and those that are there stay.
    again = caption(f"--video={films}/one.mp4", "--segments=2", f"--out={out}", "--prompt=red", *SHORT)
    assert "2 of 2 clips are there" in again and out.read_text().splitlines() == lines
    caption(f"--video={films}/one.mp4", f"--out={out}", "--prompt=red", *SHORT)
    assert places(out) == [*expected, ("one", 0.0, 3.0)]


@pytest.mark.slow
def test_narrating_goes_on_where_it_was_killed_and_can_be_trained_on(caption, run, repository, tmp_path):
    workdir, corpus = run
    data = f"--data={ {**corpus, 'split': 'train', 'annotations': 'narrations'} }"
    narrate = (data, "--how=nucleus", "--samples=2", "--seed=5", "--max_new=5", "--batch_size=2")
    whole, out = tmp_path / "train.jsonl", tmp_path / "killed.jsonl"
    said = caption(*narrate, f"--out={whole}")
    count = whole.read_bytes().count(b"\n") // 2
    assert f"{count} clips; waited" in said
    command = [sys.executable, "-m", "launch.caption", f"--run={workdir}", *narrate, f"--out={out}"]
    process = subprocess.Popen(command, cwd=repository, env=os.environ, start_new_session=True)
    while process.poll() is None and (not out.exists() or not out.stat().st_size):
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=60)
    torn = out.read_bytes()
    assert torn and whole.read_bytes().startswith(torn)
    out.write_bytes(torn[:-7])  # not even the last line was written to its end
    caption(*narrate, f"--out={out}")
    assert out.read_bytes() == whole.read_bytes()
    assert f"{count} of {count} clips are there" in caption(*narrate, f"--out={out}")
    for part in (0, 1):
        caption(*narrate, f"--out={tmp_path}/part.{part}.jsonl", f"--part={part}/2")
    parts = [(tmp_path / f"part.{part}.jsonl").read_text().splitlines() for part in (0, 1)]
    assert sorted(parts[0] + parts[1]) == sorted(whole.read_text().splitlines()) and all(parts)
    options = {key: value for key, value in corpus.items() if key != "name"}
    store = synthetic.load("train", annotations="narrations", **options).store
    one, other = (narrated.load(name, root=str(tmp_path), store=store, min_words=0) for name in ("train", "part"))
    cells = [
        [(t.cell(r, "video"), t.cell(r, "start"), t.cell(r, "texts")) for r in range(len(t))] for t in (one, other)
    ]
    assert sorted(cells[0]) == sorted(cells[1])


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}


def rows_of(table):
    return [table.row(row) for row in range(len(table))]


@pytest.mark.slow
def test_a_folder_is_made_in_parts_and_by_two_processes_and_trained_on_as_lines_are(caption, run, repository, tmp_path):
    workdir, corpus = run
    data = f"--data={ {**corpus, 'split': 'train', 'annotations': 'narrations'} }"
    narrate = (data, "--how=nucleus", "--samples=2", "--seed=5", "--max_new=5", "--batch_size=4")
    folder = (*narrate, "--shard_rows=12", "--columns=verbs")
    whole, both = tmp_path / "train", tmp_path / "both"
    said = caption(*folder, f"--out={whole}", "--part=1/2")
    assert "12 clips, 24 sentences in " in said and "clips/s\ncaptions: 1 of 3 files\n12 clips; waited" in said
    done = caption(f"--out={whole}", "--check", code=2)
    assert "captions: 1 of 3 files, 24 lines; missing are 00000, 00002" in done
    caption(*folder, f"--out={whole}", "--part=0/2")
    assert caption(*folder, f"--out={whole}").startswith(f"{whole}: all that this part has to make is there\n")
    assert caption(f"--out={whole}", "--check") == "captions: 3 of 3 files, 64 lines\ncomplete\n"
    assert "different are: decoding.seed" in caption(*folder, "--seed=6", f"--out={whole}", code=2)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = {"VIDLANG_COORDINATOR": f"localhost:{free.getsockname()[1]}", "VIDLANG_PROCESSES": "2"}
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=4")
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "launch.caption", f"--run={workdir}", *folder, f"--out={both}/"],
            cwd=repository,
            env={**os.environ, "XLA_FLAGS": flags, **place, "VIDLANG_PROCESS": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        told = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], told
    assert "32 clips, 64 sentences" in told[0][0] and "32 clips; waited" in told[0][0] and "clips" not in told[1][0]
    assert content(both) == content(whole)
    caption(*narrate, f"--out={tmp_path}/lines.jsonl")
    options = {key: value for key, value in corpus.items() if key != "name"}
    store = synthetic.load("train", annotations="narrations", **options).store
    files, lines = (narrated.load(name, root=str(tmp_path), store=store, min_words=0) for name in ("train", "lines"))
    assert rows_of(files) == rows_of(lines)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--video={here}/none.mp4",), "there is no folder"),
        (("--video={here}",), "there are no videos in"),
        ((), "give --video=FILE or --video=FOLDER, or else --data"),
        (("--video=x", "--data={{}}"), "give --video=FILE or --video=FOLDER, or else --data"),
        (("--video=x", "--segments=2", "--segment_seconds=3"), "give one of them, above 0"),
        (("--video=x", "--part=0/2"), "--part is for --data"),
        (("--data={{}}", "--segments=2"), "--segments is for --video"),
        (("--data={{}}",), "narrating a table takes --out"),
        (("--data={{}}", "--out={here}/x.parquet"), "x.parquet/ for a folder of Parquet files"),
        (("--data={{}}", "--out=setup.py"), "--out=setup.py is a file: give a folder, or"),
        (("--data={{}}", "--out={here}/x.jsonl", "--shard_rows=2"), "--shard_rows is for --out=FOLDER"),
        (("--check",), "--check is for --out=FOLDER"),
        (("--check", "--out={here}/x"), "holds no captions: it has no captions.json; launch.caption makes one"),
        (("--video=x", "--out={here}/x"), "x is a folder, which is for --data; with --video give a FILE.jsonl"),
        (("--data={{}}", "--out={here}/x", "--part=2/2"), "part 2 of 2 does not exist"),
        (("--video=x", "--beams=3"), "--beams is for --how=beam"),
        (("--video=x", "--how=beam", "--seed=3"), "--seed is for --how=nucleus"),
        (("--video=x", "--samples=3"), "greedy search gives 1 text"),
        (("--video=x", "--max_new=0"), "decoding.max_new is 0"),
    ],
)
def test_mistakes_are_one_sentence_before_a_model_is_read(launch, tmp_path, arguments, reason):
    done = launch("launch.caption", "--run=no_run", *(argument.format(here=tmp_path) for argument in arguments))
    assert done.code == 2 and reason in done.err and done.err.count("\n") == 1, done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [("--data={}", "--out=x.jsonl"), ("--video=setup.py",)])
def test_several_processes_make_one_folder_and_nothing_else(launch, monkeypatch, arguments):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    done = launch("launch.caption", "--run=no_run", *arguments)
    assert done.code == 2 and "several JAX processes make one folder together: give --data and --out=" in done.err


@pytest.mark.slow
def test_mistakes_that_only_the_run_can_tell(caption, launch, tmp_path):
    video, out = write_video(tmp_path / "a.mp4", 1), tmp_path / "out.jsonl"
    for arguments, reason in {
        ("--prompt={colour}",): "asks for the column 'colour'",
        ("--prompt={",): "is no template",
        (f"--prompt={'red ' * 20}",): "has 21 tokens, and there is room for 12",
        ("--max_new=50",): "do not fit into the 20",
        ("--step=7",): "has no checkpoint of step 7",
        ("--clip={'frame': 3}",): "frame",
        ("--dials={'mask': 3}",): "the dial mask is 3",
        ("--batch_size=0",): "batch",
    }.items():
        error = caption(f"--video={video}", f"--out={out}", *arguments, code=2)
        assert reason in error and "Traceback" not in error, error
    assert not out.exists()
    done = launch("launch.caption", f"--run={tmp_path}", f"--video={video}")
    assert done.code == 2 and "Traceback" not in done.err
