"""The whole corpus on disk: made once, never half, and its decoded videos show what its captions say."""

import subprocess
import sys

import numpy as np
import pytest

from vidlang.data.chunks import open_store
from vidlang.data.clips import ClipTable
from vidlang.data.crops import CropBox
from vidlang.data.tokenizer import Tokenizer
from vidlang.datasets import synthetic
from vidlang.datasets.synthetic import corpus
from vidlang.datasets.synthetic.annotations import KINDS, SPLITS
from vidlang.datasets.synthetic.grammar import COLOURS
from vidlang.datasets.synthetic.render import RGB

SETTINGS = {
    "train_videos": 10,
    "val_videos": 6,
    "long_videos": 1,
    "scenes_per_video": 5,
    "scene_seconds": 4.0,
    "long_seconds": 32.0,
    "size": 64,
    "fps": 8,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("synthetic")
    synthetic.load("train", root=str(root), workers=1, **SETTINGS)
    return root


def contents(root):
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in root.rglob("*")}


def test_second_load_only_opens(root):
    before = contents(root)
    for split in SPLITS:
        for kind in KINDS:
            table = synthetic.load(split, root=str(root), annotations=kind, workers=1, **SETTINGS)
            assert isinstance(table, ClipTable) and len(table) > 0
            assert set(table.videos()) <= set(open_store(table.store).videos)
    after = contents(root)
    assert {name: after[name] for name in before} == before


def test_store_holds_every_frame(root):
    store = open_store(synthetic.load("train", root=str(root), annotations="pairs", **SETTINGS).store)
    assert len(store.videos) == 10 + 6 + 2
    for name, seconds in (("train_00000", 20), ("val_00003", 4), ("train_long_000", 32)):
        info = store.info(name)
        assert (info.frames, info.width, info.height) == (seconds * 8, 64, 64) and info.fps == 8


@pytest.mark.parametrize("split", SPLITS)
def test_decoded_colours_are_those_of_the_caption_in_its_order(root, split):
    table = synthetic.load(split, root=str(root), annotations="pairs", **SETTINGS)
    store = open_store(table.store)
    directions = RGB / np.linalg.norm(RGB, axis=1, keepdims=True)
    across = 0
    for i in range(len(table)):
        row = table.row(i)
        times = row["start"] + (np.arange(8) + 0.5) / 8 * (row["end"] - row["start"])
        video_THWC = store.decode(row["video"], times, CropBox(0, 0, 64, 64), (64, 64)).astype(np.float32)
        across += row["start"] < 15 < row["end"]
        for half, words in zip((video_THWC[:4], video_THWC[4:]), row["texts"][0].split(" then "), strict=True):
            colour = COLOURS.index(words.split()[1])
            # Backgrounds are dull, so the most saturated pixels are the object's; white is the brightest of all.
            spread = half.max(-1) - half.min(-1)
            if COLOURS[colour] == "white":
                assert half.min(-1).max() > 225 and np.quantile(spread, 0.99) < 60, row
            else:
                mean = half[spread >= np.quantile(spread, 0.99)].mean(0)
                assert np.argmax(directions @ (mean / np.linalg.norm(mean))) == colour, (row, mean)
    assert across > 0 or split == "val"


def test_tokenizer_lies_beside_and_is_guarded(root, tmp_path):
    path = synthetic.tokenizer_path(str(root))
    assert path == root / "tokenizer.json" and Tokenizer(path, 16).vocab_size > 60
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="not the tokenizer of the synthetic corpus"):
        synthetic.load("train", root=str(tmp_path), **SETTINGS)
    assert not list(tmp_path.glob("*/store"))


def test_unknown_names_list_what_exists(root):
    with pytest.raises(ValueError, match="unknown split 'test'.*train, val"):
        synthetic.load("test", root=str(root), **SETTINGS)
    with pytest.raises(ValueError, match="did you mean 'pairs'.*multiple_choice"):
        synthetic.load("train", root=str(root), annotations="pair", **SETTINGS)
    with pytest.raises(ValueError, match="workers=0, expected 1"):
        synthetic.load("train", root=str(root), workers=0, **SETTINGS)


TINY = SETTINGS | {"train_videos": 6, "val_videos": 2, "long_videos": 0, "scenes_per_video": 2, "scene_seconds": 1.0}


def folders(root):
    return [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]


def test_a_corpus_that_was_killed_is_made_anew(tmp_path, monkeypatch):
    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(corpus, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            synthetic.load("train", root=str(tmp_path), workers=1, **TINY)
    assert not folders(tmp_path) and list(tmp_path.glob(".*.partial"))
    synthetic.load("train", root=str(tmp_path), workers=1, **TINY)
    assert len(folders(tmp_path)) == 1 and not list(tmp_path.glob(".*.partial"))
    with pytest.raises(ValueError, match="give no 'summaries' for 'train'.*long_videos=0"):
        synthetic.load("train", root=str(tmp_path), annotations="summaries", workers=1, **TINY)


def test_other_settings_are_another_corpus_with_other_pixels(tmp_path):
    crop, times = CropBox(0, 0, 64, 64), np.array([0.0, 0.5])
    clips = []
    for seed in (0, 1):
        table = synthetic.load("val", root=str(tmp_path), workers=1, **TINY, seed=seed)
        clips.append(open_store(table.store).decode("val_00000", times, crop, (64, 64)))
    assert len(folders(tmp_path)) == 2
    assert (clips[0] != clips[1]).any()


@pytest.mark.slow
def test_two_processes_at_once_make_one_corpus_without_jax(tmp_path, repository):
    code = (
        "import sys; from vidlang.datasets import synthetic\n"
        f"table = synthetic.load('val', root={str(tmp_path)!r}, workers=2, **{TINY})\n"
        "print(table.store, len(table), 'jax' in sys.modules or 'tensorflow' in sys.modules)"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code], cwd=repository, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    found = [process.communicate(timeout=100)[0].split() for process in processes]
    ((folder,),) = {tuple(folders(tmp_path))}
    assert found == [[str(folder / "store"), "2", "False"]] * 2
    assert not list(tmp_path.glob(".*.partial"))
