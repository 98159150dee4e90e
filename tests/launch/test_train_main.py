"""Training from the command line: it works, and every mistake is one sentence and exit code 2."""

import json

import pytest


def test_training_from_the_command_line(launch, tiny_config, tmp_path):
    arguments = (tiny_config, f"--workdir={tmp_path}/run", "--config.stages[0].duration=2 steps")
    arguments += ("--config.stages[0].optimizer.warmup=1 step", "--config.stages[0].evals=()")
    done = launch("launch.train", *arguments)
    assert (done.code, done.err) == (0, "")
    assert "starts from scratch" in done.out and "loss" in done.out.splitlines()[-1]
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["stages"][0]["duration"] == "2 steps" and config["stages"][0]["evals"] == []
    again = launch("launch.train", *arguments)
    assert again.code == 0 and "starts" not in again.out
    assert again.out.splitlines()[-1] == done.out.splitlines()[-1]


MISTAKES = {
    "no config": (["--config=nowhere.py"], "No such file or directory: 'nowhere.py'"),
    "no workdir": (["--workdir="], "the workdir is empty"),
    "no such flag": (["--wrokdir=x"], "Unknown command line flag 'wrokdir'"),
    "no flag at all": (["run"], "Unexpected argument 'run'"),
    "unknown key": (["--config.stages[0].modl=x"], 'Did you mean "model" instead of "modl"'),
    "unknown model": (["--config.stages[0].model.name=tiyn"], "unknown name 'tiyn' in vidlang/models/"),
    "unknown dataset": (["--config.stages[0].data.name=imagenet"], "unknown name 'imagenet' in vidlang/datasets/"),
    "unknown objective": (["--config.stages[0].objective.name=x"], "unknown name 'x' in vidlang/objectives/"),
    "unknown split": (["--config.stages[0].data.split=trian"], "unknown split 'trian' (did you mean 'train'?)"),
    "wrong type": (["--config.seed=abc"], "invalid literal for int() with base 10: 'abc'"),
    "bad duration": (["--config.stages[0].duration=60"], "cannot read the duration '60'"),
    "no step": (["--config.stages[0].duration=0 steps"], "which is no step"),
    "mesh": (["--config.mesh.data=3"], "does not divide the 8 devices here"),
    "batch": (["--config.stages[0].batch_size=12"], "12 does not divide"),
    "warmup": (["--config.stages[0].optimizer.warmup=99 steps"], "warmup lasts 99 steps, but the stage only 60"),
    "tokenizer": (["--config.stages[0].tokenizer=x.json"], "There is no tokenizer at 'x.json'"),
    "freeze": (["--config.stages[0].optimizer.freeze=('txt',)"], "optimizer.freeze: 'txt' matches no parameter"),
    "init_from": (["--config.stages[0].init_from=runs/none"], "there is no folder runs/none"),
    "no range to trace": (["--profile=9:3"], "--profile is FIRST:LAST, as in 100:105"),
    "steps to trace": (["--profile=50:70"], "--profile=50:70 names steps that stage 0_short will not take"),
    "nothing to draw again": (["--replay=3"], "no stage of this config was begun in"),
    "empty table": (["--config.stages[0].data={'name': 'nothing', 'split': 'train'}"], "at least one clip, found none"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(launch, tiny_config, tmp_path, mistake):
    arguments, sentence = MISTAKES[mistake]
    defaults = [tiny_config, f"--workdir={tmp_path}"]
    done = launch("launch.train", *defaults, *arguments)
    assert done.code == 2
    assert sentence in done.err
    assert done.err.startswith("error: ") and done.err.count("\n") == 1, "one line, no traceback"
