"""Every config is a recipe that builds and steps, at its true size, in shapes only."""

import importlib
import inspect
import pkgutil
import re

import jax
import jax.numpy as jnp
import pytest

import configs
from vidlang.core.config import steps
from vidlang.train import build, sources
from vidlang.train.loop import build_optimizer
from vidlang.train.recipe import read_recipe
from vidlang.train.step import TrainState, abstract_params

NAMES = [module.name for module in pkgutil.iter_modules(configs.__path__) if module.name != "parts"]


def eval_shape_step(config):
    """Shapes of every stage's scalars after one step."""
    recipe = read_recipe(config)
    results = []
    for index, stage in enumerate(recipe.stages):
        build.check(stage)
        sources.check(stage)
        fields, *_ = sources.batch_fields(stage, None).values()
        model = build.model(stage)
        total = steps(stage.duration, batch_size=stage.batch_size, dataset_size=10**6)
        optimizer = build_optimizer(model, fields, stage, total)
        step = build.train_step(recipe, index, model, optimizer)
        params = abstract_params(model, fields)
        trained, _ = optimizer.split(params)
        state = TrainState(
            jax.ShapeDtypeStruct((), jnp.int32), params, jax.eval_shape(optimizer.transform.init, trained)
        )
        after, scalars = jax.eval_shape(step, state, fields)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
        results.append(scalars)
    return results


@pytest.mark.parametrize("name", NAMES)
def test_config_builds_and_steps(name):
    module = importlib.import_module(f"configs.{name}")
    for scalars in eval_shape_step(module.get_config()):
        assert scalars["loss"].shape == () and scalars["loss"].dtype == jnp.float32


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


def test_a_config_that_does_not_fit_fails():
    config = importlib.import_module("configs.demo").get_config().copy_and_resolve_references()
    config.stages[0].clip.text_length = 17  # the text encoder has 16 positions
    with pytest.raises(ValueError, match="17 tokens"):
        eval_shape_step(config)
