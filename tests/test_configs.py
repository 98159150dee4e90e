"""Every config is a recipe that builds and steps, at its true size, in shapes only, on a mesh of eight devices.

So does every variant that its docstring has a command for, and that its table of variants names.
"""

import dataclasses
import importlib
import inspect
import pkgutil
import re

import pytest

import configs
from vidlang.train.check import check_recipe
from vidlang.train.recipe import read_recipe

NAMES = [module.name for module in pkgutil.iter_modules(configs.__path__) if module.name != "parts"]


def commands():
    """(config, variant) of every command in a docstring, and of every line of a table of variants."""
    found = set()
    for name in NAMES:
        module = importlib.import_module(f"configs.{name}")
        text = inspect.getdoc(module)
        words = re.findall(rf"--config=configs/{name}\.py(?::([\w,/]+))?", text)
        words += re.findall(r"^    (\w+)  +\w", text, re.MULTILINE)
        # Tiny variants are trained, see test_recipes.
        found |= {(name, word) for word in words if "/" not in word and "tiny" not in word}
    return sorted(found)


def without_runs(recipe):
    """The recipe whose stages start from scratch where they name a run, which nobody has made here."""

    def known(item):
        return item == "before" or item.startswith("stage:")

    stages = (
        stage if all(map(known, stage.init_from)) else dataclasses.replace(stage, init_from="scratch")
        for stage in recipe.stages
    )
    return dataclasses.replace(recipe, stages=tuple(stages))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "words"), commands())
def test_config_builds_and_steps(name, words):
    """Each stage takes a step, fits the stage before, and its evaluations can be called, all in shapes."""
    module = importlib.import_module(f"configs.{name}")
    check_recipe(without_runs(read_recipe(module.get_config(*filter(None, [words])))))


@pytest.mark.parametrize("name", NAMES)
def test_config_says_command_cost_and_result(name):
    text = inspect.getdoc(importlib.import_module(f"configs.{name}"))
    assert re.search(rf"--config=configs/{name}\.py", text), "the docstring begins with the command"
    assert re.search(r"^Cost: .*\d", text, re.MULTILINE) and re.search(r"^Result: .*\d", text, re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_config_is_locked(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    with pytest.raises(AttributeError):
        config.stagez = ()


@pytest.mark.parametrize("name", NAMES)
def test_what_clusters_need_can_be_set_by_a_flag(name):
    """A flag changes only what a config says."""
    config = importlib.import_module(f"configs.{name}").get_config()
    assert {"workers", "log_every", "compile_cache", "wandb"} <= set(config.runtime)
    assert {"data", "fsdp", "tensor", "context", "slices"} <= set(config.mesh)
    for stage in config.stages:
        assert {"skip", "spike"} <= set(stage.guard) and {"every", "keep"} <= set(stage.checkpoint)


def test_a_config_that_does_not_fit_fails():
    config = importlib.import_module("configs.demo").get_config().copy_and_resolve_references()
    config.stages[0].clip.text_length = 17  # the text encoder has 16 positions
    with pytest.raises(ValueError, match="17 tokens"):
        check_recipe(read_recipe(config))
