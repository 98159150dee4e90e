"""The commands in the docstrings of configs: what they change is there, and becomes what is meant."""

import importlib
import inspect
import re
import shlex

import pytest
from absl import flags
from ml_collections import config_flags

from tests.test_configs import NAMES
from vidlang.train.origins import Run, Weights, origins
from vidlang.train.recipe import read_recipe


def commands():
    """Those of training that change something of their config."""
    found = []
    for name in NAMES:
        text = inspect.getdoc(importlib.import_module(f"configs.{name}")).replace("\\\n", " ")
        for line in re.findall(r"python -m launch\.train (.*)", text):
            if "--config." in line:
                found.append(tuple(word for word in shlex.split(line) if word.startswith("--config")))
    return sorted(found)


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_a_documented_command_changes_its_config(words, repository, monkeypatch):
    monkeypatch.chdir(repository)
    monkeypatch.setattr("sys.argv", ["launch.train", *words])  # where overrides are looked for
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", flag_values=values)
    values(["launch.train", *words])
    recipe = read_recipe(config.value)
    for index, given in re.findall(r"stages\[(\d)\]\.init_from=(.*)", " ".join(words)):
        found = origins(recipe.stages, int(index))
        assert [origin.path for origin in found if isinstance(origin, Run)] == re.findall(r"runs/\w+", given)
        weights = [(one.family, one.path, one.into) for one in found if isinstance(one, Weights)]
        assert weights == re.findall(r"(\w+):([\w/.-]+)(?::(\w+))?", given)


def test_there_are_such_commands():
    assert len(commands()) > 10
