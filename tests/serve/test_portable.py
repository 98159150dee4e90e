"""A portable folder gives, away from its run, the same numbers to the last bit."""

import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import vidlang
from vidlang.pretrained._safetensors import read_file
from vidlang.serve.portable import is_portable, save_portable

TEXTS = ["a red circle slides left", "a blue square"]
VIDEO_BTHWC = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3), np.uint8)

ELSEWHERE = """
import sys
import numpy as np
import vidlang
model = vidlang.load(sys.argv[1])
np.savez(sys.argv[2], text=model.embed_text({texts}), video=model.embed_video(np.load(sys.argv[3])))
"""


@pytest.fixture(scope="module")
def loaded(dual_run):
    return vidlang.load(dual_run[0])


@pytest.fixture(scope="module")
def folder(loaded, tmp_path_factory):
    return save_portable(loaded, tmp_path_factory.mktemp("portable") / "model")


def size(folder):
    return sum(path.stat().st_size for path in folder.iterdir())


def test_it_holds_all_that_is_needed_and_nothing_else(folder, loaded):
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "params.safetensors",
        "tokenizer.json",
    ]
    assert "video_encoder/stack/layers/attention/query/kernel" in read_file(folder / "params.safetensors")
    config = json.loads((folder / "config.json").read_text())
    assert config["model"]["name"] == "dual_encoder" and config["clip"]["crop"] == {"name": "center", "share": 0.75}
    assert "mask" not in config["dials"] and "widths" not in config["dials"], "those of training"
    again = vidlang.load(folder)
    assert (again.about.model, again.about.clip, again.methods) == (
        loaded.about.model,
        loaded.about.clip,
        loaded.methods,
    )


@pytest.mark.slow
def test_the_same_bits_in_another_process_without_the_run(folder, loaded, tmp_path):
    copy = tmp_path / "copied"
    shutil.copytree(folder, copy)
    np.save(tmp_path / "video.npy", VIDEO_BTHWC)
    code = ELSEWHERE.format(texts=TEXTS)
    paths = [str(copy), str(tmp_path / "found.npz"), str(tmp_path / "video.npy")]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, "-c", code, *paths], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npz")
    np.testing.assert_array_equal(found["text"], loaded.embed_text(TEXTS))
    np.testing.assert_array_equal(found["video"], loaded.embed_video(VIDEO_BTHWC))


@pytest.mark.slow
def test_what_is_cut_narrower_takes_less_and_says_the_same(dual_run, folder, loaded, tmp_path):
    small = save_portable(dual_run[0], tmp_path / "small", widths="d-384")
    assert (small / "params.safetensors").stat().st_size < 0.8 * (folder / "params.safetensors").stat().st_size
    again = vidlang.load(small)
    np.testing.assert_allclose(
        again.embed_video(VIDEO_BTHWC), loaded.embed_video(VIDEO_BTHWC, width="d-384"), atol=1e-6
    )
    np.testing.assert_array_equal(
        vidlang.load(folder, widths="d-384").embed_video(VIDEO_BTHWC), again.embed_video(VIDEO_BTHWC)
    )
    readme = (small / "README.md").read_text()
    assert "16, 16, cut from 32" in readme


def test_saved_again_it_is_the_same(folder, tmp_path):
    again = save_portable(folder, tmp_path / "again")
    for path in folder.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name


def test_the_card_tells_what_the_run_knows_and_no_place_on_this_machine(folder, dual_run):
    text = (folder / "README.md").read_text()
    for word in ("tiny_dual", "step 2", "synthetic", "contrastive", "val/t2v_r1", "Licence", "vidlang.load", "0.5"):
        assert word in text, word
    config = (folder / "config.json").read_text()
    for place in (str(dual_run[0]), dual_run[1]["root"]):
        assert place not in text + config


def test_a_folder_is_replaced_whole_and_only_where_it_is_a_portable_one(loaded, folder, tmp_path):
    target = tmp_path / "there"
    save_portable(loaded, target)
    (target / "left.txt").write_text("from before")
    save_portable(loaded, target)
    assert not (target / "left.txt").exists() and is_portable(target)
    assert [path.name for path in tmp_path.iterdir()] == ["there"], "nothing is left beside it"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    with pytest.raises(ValueError, match="is no portable folder; give a new name"):
        save_portable(loaded, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years"


def test_one_that_is_not_finished_is_never_there(loaded, tmp_path, monkeypatch):
    from vidlang.serve import portable

    def fails(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(portable, "card", fails)
    with pytest.raises(KeyboardInterrupt):
        save_portable(loaded, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_damage_is_said(folder, tmp_path):
    def damaged(name, change):
        copy = tmp_path / name
        shutil.copytree(folder, copy)
        config = json.loads((copy / "config.json").read_text())
        change(copy, config)
        (copy / "config.json").write_text(json.dumps(config))
        return copy

    def other_version(_, config):
        config["version"] = 99

    def other_width(_, config):
        config["model"]["embed"] = 12

    def no_params(copy, _):
        (copy / "params.safetensors").unlink()

    def cut_off(copy, _):
        content = (copy / "params.safetensors").read_bytes()
        (copy / "params.safetensors").write_bytes(content[:-10])

    def unknown(_, config):
        config["colour"] = "red"

    for change, message in (
        (other_version, "another version of vidlang"),
        (other_width, r"video_projection/kernel is \(32, 16\), not \(32, 12\)"),
        (no_params, "has no params.safetensors; copy the whole folder"),
        (cut_off, "cut off or damaged"),
        (unknown, "colour"),
    ):
        with pytest.raises(ValueError, match=message):
            vidlang.load(damaged(change.__name__, change))


def test_parameters_are_the_runs_to_the_bit(folder, loaded):
    again = vidlang.load(folder)
    jax.tree.map(np.testing.assert_array_equal, again.params, loaded.params)


def test_tokenizers_of_other_kinds_become_one_file(loaded, tmp_path):
    """Words of CLIP's own file split alike from the tokenizer.json that is written."""
    from vidlang.data.tokenizer import Tokenizer

    vocabulary = {letter: place for place, letter in enumerate("abcdefgh")}
    vocabulary |= {f"{letter}</w>": len(vocabulary) + place for place, letter in enumerate("abcdefgh")}
    vocabulary |= {"ab</w>": 16, "<|startoftext|>": 17, "<|endoftext|>": 18}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    before = Tokenizer(tmp_path, 8)
    marks = before.save(tmp_path / "new" / "tokenizer.json")
    assert marks == {"begin": "<|startoftext|>", "end": "<|endoftext|>"}
    after = Tokenizer(tmp_path / "new" / "tokenizer.json", 8, **marks)
    texts = ["AB cab", "", "hgfe dcb a ab"]
    np.testing.assert_array_equal(after.encode(texts), before.encode(texts))
    assert before.encode(texts)[0].tolist()[:3] == [17, 16, 2]
