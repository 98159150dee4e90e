"""Every file in an extension folder exposes exactly what its folder's contract says."""

import dataclasses
import inspect

import flax.linen as nn
import pytest

from vidlang.core import config


def files(kind):
    return [(kind, name) for name in config.extension_names(kind)]


def check_model(module):
    model = module.Model
    assert issubclass(model, nn.Module), "Model must be a Linen module"
    inputs = model.inputs
    assert isinstance(inputs, tuple) and inputs and all("_" in name for name in inputs), "inputs: batch field names"
    parameters = inspect.signature(model.__call__).parameters
    positional = [p for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"]
    assert tuple(p.name for p in positional) == inputs, "__call__ takes the batch fields of `inputs`, by these names"
    for name in ("train", "dials"):
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY, f"{name} must be keyword-only"
    assert dataclasses.is_dataclass(module.Output), "Output must be a struct with named fields"


def check_objective(module):
    parameters = list(inspect.signature(module.loss).parameters.values())
    assert [p.name for p in parameters[:2]] == ["outputs", "batch"]
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[2:]), "options of an objective are keyword-only"


def check_dataset(module):
    parameters = list(inspect.signature(module.load).parameters.values())
    assert parameters[0].name == "split"
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[1:])


def check_evaluator(module):
    parameters = list(inspect.signature(module.Evaluator).parameters.values())
    assert [p.name for p in parameters[:2]] == ["predict", "data"]
    assert list(inspect.signature(module.Evaluator.run).parameters) == ["self", "params"]


def check_family(module):
    assert list(inspect.signature(module.to_flax).parameters) == ["tensors", "config"]
    assert list(inspect.signature(module.from_flax).parameters) == ["params", "config"]
    for name in ("load", "shapes", "section"):
        assert list(inspect.signature(getattr(module, name)).parameters) == ["path"]
    if hasattr(module, "PART"):  # the section of a part, which only its family can compare
        assert list(inspect.signature(module.check).parameters) == ["path", "given"]


CHECKS = {"models": check_model, "objectives": check_objective, "datasets": check_dataset, "evals": check_evaluator}
CHECKS |= {"pretrained": check_family}


@pytest.mark.parametrize(("kind", "name"), [case for kind in CHECKS for case in files(kind)])
def test_extension_keeps_its_contract(kind, name):
    module = config.load_module(kind, name)
    assert module.__doc__, "an extension says in its docstring what it is"
    CHECKS[kind](module)


@pytest.mark.parametrize("kind", CHECKS)
def test_every_folder_has_an_extension(kind):
    assert config.extension_names(kind)


@pytest.mark.parametrize("kind", CHECKS)
def test_an_empty_module_breaks_every_contract(kind):
    class Empty:
        pass

    with pytest.raises((AttributeError, AssertionError)):
        CHECKS[kind](Empty)
