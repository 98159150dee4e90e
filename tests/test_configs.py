"""Every config is a recipe that builds and steps, at its true size, in shapes only, on a mesh of eight devices.

So does every variant that its docstring has a command for, and that its table of variants names.
"""

import importlib
import inspect
import pkgutil
import re

import jax
import jax.numpy as jnp
import pytest

import configs
from vidlang.core.config import steps
from vidlang.core.sharding import batch_ways, make_mesh, use_mesh
from vidlang.train import build, sources
from vidlang.train.loop import build_optimizer
from vidlang.train.recipe import read_recipe
from vidlang.train.step import TrainState, abstract_params

NAMES = [module.name for module in pkgutil.iter_modules(configs.__path__) if module.name != "parts"]


# What columns of tables are like that only data tells.
COLUMNS = {"verbs": (3,), "nouns": (3,), "relevancy": ()}


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


def eval_shape_step(config):
    """Shapes of every stage's scalars after one step."""
    recipe = read_recipe(config)
    mesh = make_mesh(recipe.mesh)
    with use_mesh(mesh):
        return [stage_scalars(recipe, index, mesh) for index in range(len(recipe.stages))]


def stage_scalars(recipe, index, mesh):
    stage = recipe.stages[index]
    build.check(stage)
    sources.check(stage)
    assert stage.batch_size % (batch_ways(mesh) * build.micro(stage).batches) == 0
    (fields, *_), (spec, *_) = sources.batch_fields(stage, None).values(), sources.specs(stage)
    for name in spec.fields:
        shape, dtype = COLUMNS.get(name, ()), jnp.float32 if name == "relevancy" else jnp.int32
        field = f"{name}_BK" if shape else f"{name}_B"
        fields = fields | {field: jax.ShapeDtypeStruct((stage.batch_size, *shape), dtype)}
    model = build.model(stage)
    total = steps(stage.duration, batch_size=stage.batch_size, dataset_size=10**6)
    optimizer = build_optimizer(model, fields, stage, total)
    step = build.train_step(recipe, index, model, optimizer)
    params = abstract_params(model, fields)
    moments = jax.eval_shape(lambda params: optimizer.transform.init(optimizer.split(params)[0]), params)
    state = TrainState(jax.ShapeDtypeStruct((), jnp.int32), params, moments)
    after, scalars = jax.eval_shape(step, state, fields)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    return scalars


@pytest.mark.slow
@pytest.mark.parametrize(("name", "words"), commands())
def test_config_builds_and_steps(name, words):
    module = importlib.import_module(f"configs.{name}")
    for scalars in eval_shape_step(module.get_config(*filter(None, [words]))):
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
