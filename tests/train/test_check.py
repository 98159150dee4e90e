"""What a config alone decides stops a run before any data is made, and says in which stage; a folder has one run."""

import copy
import fcntl
import functools
import json

import pytest

from vidlang.data.tokenizer import train_wordlevel
from vidlang.datasets import synthetic
from vidlang.train import build, check, run_files, stages
from vidlang.train.check import check_recipe
from vidlang.train.recipe import read_recipe

MODEL = {"name": "tiny", "width": 16, "embed": 8}
CLIP = {"frames": 4, "size": 16, "times": {"name": "segments"}, "crop": {"name": "center"}, "text_length": 8}
OPTIMIZER = {"learning_rate": 0.01}
MIDDLE = {"times": {"name": "middle"}}

# Changes of the second stage; evals are given as changes of its one evaluation.
STAGE = {
    "duration": ({"duration": "four steps"}, "cannot read the duration 'four steps'"),
    "no step": ({"duration": "0 epochs"}, "lasts '0 epochs', which is no step"),
    "warmup": ({"optimizer": {**OPTIMIZER, "warmup": "5 steps"}}, "warmup lasts 5 steps, but the stage only 4"),
    "warmup unit": ({"optimizer": {**OPTIMIZER, "warmup": "1 epochs"}, "duration": "9 epochs"}, "needs a dataset"),
    "checkpoint": ({"checkpoint": {"every": "2 stps"}}, "checkpoint.every: cannot read the duration '2 stps'"),
    "times": ({"clip": {**CLIP, "times": {"name": "midle"}}}, r"unknown times 'midle' \(did you mean 'middle'\?\)"),
    "times option": ({"clip": {**CLIP, "times": {"name": "fps", "rat": 2}}}, "clip.times: .*unknown key 'rat'"),
    "times kind": (
        {"clip": {**CLIP, "times": {"name": "fps", "rate": "2"}}},
        "clip.times: .*(be used|a number)",
    ),
    "crop": ({"clip": {**CLIP, "crop": {"name": "center", "share": 2}}}, "clip.crop: .*0 < share <= 1, got 2"),
    "crop kind": (
        {"clip": {**CLIP, "crop": {"name": "random_resized", "scale": 1}}},
        "clip.crop: .*(be used|a list)",
    ),
    "crop section": ({"clip": {**CLIP, "crop": "center"}}, "clip: crop must be a section of keys.*found 'center'"),
    "frames": ({"clip": {**CLIP, "frames": "4"}}, "frames must be a whole number; found '4'"),
    "text": ({"clip": {**CLIP, "text_length": 2}}, "text_length is 2; .* at least 3"),
    "batch": ({"batch_size": 12}, "batch_size 12 does not divide over the 8 devices"),
    "section": ({"optimizer": None}, "optimizer must be a section of keys.*found None"),
    "tokenizer": ({"tokenizer": {"path": ""}}, "tokenizer must be the path of a tokenizer.json file, or .*; found"),
    "no tokenizer": ({"tokenizer": ""}, "clip.text_length is 8, and the stage names no tokenizer"),
    "objective": ({"objective": {"name": "contrastive", "chunk": 0}}, "chunk must be at least 1 row; found 0"),
    "freeze": ({"optimizer": {**OPTIMIZER, "freeze": ("txt",)}}, "optimizer.freeze: 'txt' matches no parameter"),
    "freeze text": ({"optimizer": {**OPTIMIZER, "freeze": "words"}}, "optimizer.freeze must be a list"),
    "allow text": ({"init_allow": "words"}, "init_allow must be a list"),
    "fit": ({"model": {**MODEL, "embed": 4}}, "(?s)what stage 'short' trains does not fit.*2 mismatched:\n  text_out"),
}
EVALUATION = {
    "every": ({"every": "2"}, "every of the evaluation val/retrieval: cannot read the duration '2'"),
    "every unit": ({"every": "1 epoch"}, "the duration '1 epoch' needs a dataset"),
    "random times": ({"clip": {}}, "'segments' need a random generator; choose 'middle'"),
    "random crop": ({"clip": {**MIDDLE, "crop": {"name": "random_resized"}}}, "'random_resized' needs a random"),
    "other frames": (
        {"clip": {**MIDDLE, "size": 24}},
        "val/retrieval: its clips need another .*video_in",
    ),
    "options": ({"options": {"chnk": 3}}, r"unknown key 'chnk' \(did you mean 'chunk'\?\)"),
}
RUN = {
    "seed": ({"seed": -1}, "seed .*must be a whole number from 0 to 429496729[45]"),
    "large seed": ({"seed": 2**32 - 1}, "seed is 4294967295; it must be"),
    "seed kind": ({"seed": 0.5}, "seed .*must be a whole number"),
    "workers": ({"runtime": {"workers": -2}}, "runtime.workers must be a whole number from -1 on; found -2"),
    "eval workers": ({"runtime": {"eval_workers": 1.5}}, "runtime.eval_workers must be a whole number"),
    "broken": ({"runtime": {"max_broken_share": 1}}, "runtime.max_broken_share must be .* below 1; found 1"),
    "mesh": ({"mesh": {"data": 3}}, "does not divide the 8 devices here"),
    "mesh of parameters": ({"mesh": {"tensor": 8}}, "(?s)stage 'short'.*12 does not divide over the mesh axes"),
}


@pytest.fixture
def loads(monkeypatch):
    """What was asked of the dataset."""
    calls = []
    real = synthetic.load
    # With the signature of the real one, by which its keys are checked.
    monkeypatch.setattr(synthetic, "load", _counting(real, calls))
    return calls


def _counting(function, calls):
    @functools.wraps(function)
    def counting(*args, **kwargs):
        calls.append(kwargs)
        raise AssertionError("the dataset was loaded")

    return counting


@pytest.fixture
def two_stages(stage_config, tmp_path):
    """A config of two stages, the second with these changes."""

    def make(evaluation=None, **changes):
        data = {"name": "synthetic", "split": "train", "root": str(tmp_path / "corpus")}
        evals = {"name": "retrieval", "every": "2 steps", "data": data, "batch_size": 8, "clip": MIDDLE}
        first = stage_config(data=data)
        second = {**copy.deepcopy(first), "name": "second", "evals": ({**evals, **(evaluation or {})},), **changes}
        return {"name": "tiny", "seed": 0, "stages": (first, second)}

    return make


def refuse(config, message, loads, tmp_path):
    with pytest.raises(ValueError, match=message):
        stages.train(config, tmp_path / "run")
    assert not loads and not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("mistake", STAGE)
def test_a_mistake_in_a_later_stage_is_found_before_data_is_made(two_stages, loads, tmp_path, mistake):
    changes, message = STAGE[mistake]
    with pytest.raises(ValueError, match=r"^(stage 'second': |stages\[1\]\.)"):
        check_recipe(read_recipe(two_stages(**changes)))
    refuse(two_stages(**changes), message, loads, tmp_path)


@pytest.mark.parametrize("mistake", EVALUATION)
def test_a_mistake_in_an_evaluation_is_found_before_data_is_made(two_stages, loads, tmp_path, mistake):
    changes, message = EVALUATION[mistake]
    refuse(two_stages(evaluation=changes), f"(?s)^stage 'second': .*{message}", loads, tmp_path)


@pytest.mark.parametrize("mistake", RUN)
def test_a_mistake_of_the_whole_run_is_found_before_data_is_made(two_stages, loads, tmp_path, mistake):
    changes, message = RUN[mistake]
    config = two_stages() | changes
    if mistake == "mesh of parameters":
        config["stages"][0]["model"] = {**MODEL, "width": 12}
    refuse(config, message, loads, tmp_path)


def test_a_right_config_passes_and_only_then_are_clips_asked_for(two_stages, loads, tmp_path):
    check_recipe(read_recipe(two_stages()))
    assert not loads
    with pytest.raises(AssertionError, match="the dataset was loaded"):
        stages.train(two_stages(), tmp_path / "run")
    assert [call["split"] for call in loads] == ["train"]


def test_a_different_model_passes_with_init_allow_and_epochs_take_any_warmup(two_stages):
    model, optimizer = {**MODEL, "embed": 4}, {**OPTIMIZER, "warmup": "99999 steps"}
    config = two_stages(model=model, init_allow=("_out$", "_out "), duration="1 epoch", optimizer=optimizer)
    check_recipe(read_recipe(config))


def test_an_odd_batch_has_no_pairs(two_stages, monkeypatch):
    monkeypatch.setattr(check, "batch_ways", lambda mesh: 1)
    config = two_stages(clip={**CLIP, "pairs": "group"}, batch_size=9)
    with pytest.raises(ValueError, match="stage 'second': with clip.pairs 'group'.*batch_size is even; found 9"):
        check_recipe(read_recipe(config))


def test_batches_divide_over_processes(two_stages, monkeypatch):
    monkeypatch.setattr(check.jax, "process_count", lambda: 3)
    with pytest.raises(ValueError, match="stage 'short': batch_size 16 does not divide over 3 processes"):
        check_recipe(read_recipe(two_stages()))


@pytest.mark.parametrize("name", ["tiny", "dual_encoder"])
def test_a_model_has_a_row_for_every_id_of_the_tokenizer(stage, dual_encoder, tmp_path, name):
    path = str(tmp_path / "tokenizer.json")
    train_wordlevel(["a b c d e f"], path)  # ten ids, with the four special ones

    def model(vocab):
        if name == "tiny":
            return {**MODEL, "vocab": vocab}
        return {**dual_encoder, "text": {**dual_encoder["text"], "vocab": vocab}}

    enough, short = (stage(tokenizer=path, model=model(vocab)) for vocab in (10, 9))
    assert build.tokenizer(enough, build.clip_spec(enough.clip)).vocab_size == 10
    with pytest.raises(ValueError, match="has 10 ids, and the model of stage 'short' rows for 9; set its vocab to 10"):
        build.tokenizer(short, build.clip_spec(short.clip))


def test_a_folder_has_one_training_at_a_time(recipe, tmp_path, monkeypatch):
    seen = []

    def again(*args, **kwargs):
        with pytest.raises(ValueError, match=f"another process is training in {tmp_path}; .* another --workdir"):
            stages.train(recipe(), tmp_path)
        seen.append((tmp_path / "config.json").read_text())
        raise ValueError("enough")

    monkeypatch.setattr(stages, "train_stage", again)
    with pytest.raises(ValueError, match="enough"):
        stages.train(recipe(), tmp_path)
    assert len(seen) == 1
    with (tmp_path / ".lock").open() as lock:  # let go of, also after an error
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        before = (tmp_path / "config.json").read_text()
        with pytest.raises(ValueError, match="another process is training"):
            stages.train(recipe(duration="3 steps"), tmp_path)
        assert (tmp_path / "config.json").read_text() == before


def test_a_workdir_that_is_a_file_is_refused(two_stages, loads, tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(ValueError, match="run is a file; give the folder of the run as --workdir"):
        stages.train(two_stages(), tmp_path / "run")
    with pytest.raises(ValueError, match="cannot be made or written to .* as --workdir"):
        stages.train(two_stages(), tmp_path / "run/below")
    assert (tmp_path / "run").read_text() == "mine" and not loads


@pytest.mark.parametrize("content", [b'{"name": "ti', b"", b"\xff\xfe"])
def test_a_damaged_config_is_named(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match="config.json is not the JSON that a training writes"):
        run_files.read_config(tmp_path)


def test_two_writers_do_not_share_a_temporary_file(tmp_path, monkeypatch):
    run_files.write_json(tmp_path / "a.json", {"who": 1})

    def other_first(self, target):
        """Another process is half way through its own file while this one renames."""
        assert str(run_files.os.getpid()) in self.name
        return type(self).rename(self, target)

    monkeypatch.setattr(type(tmp_path), "replace", other_first)
    run_files.write_json(tmp_path / "a.json", {"who": 2})
    assert json.loads((tmp_path / "a.json").read_text()) == {"who": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
