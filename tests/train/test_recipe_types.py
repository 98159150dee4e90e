"""A value of another type in a config is named with its place, before anything is built from it."""

import copy

import pytest

from vidlang.core.config import call
from vidlang.data.plan import ClipSpec
from vidlang.train.recipe import read_recipe

EVALUATION = {"name": "retrieval", "every": "1 step", "data": {"name": "synthetic"}, "batch_size": 4}


def config_of(stage_config):
    return {"name": "tiny", "seed": 0, "stages": (stage_config(evals=(EVALUATION,)),)}


WRONG = [
    (("stages",), "short", "stages must be a list of sections; found 'short'"),
    (("stages",), {"name": "short"}, "stages must be a list of sections; found {'name': 'short'}"),
    (("stages",), (3,), "stages[0] must be a section of keys; found 3"),
    (("stages", 0, "evals"), "retrieval", "stages[0].evals must be a list of sections; found 'retrieval'"),
    (("stages", 0, "evals"), EVALUATION, "stages[0].evals must be a list of sections; found {"),
    (("stages", 0, "evals"), ("x",), "stages[0].evals[0] must be a section of keys; found 'x'"),
    (("stages", 0, "evals", 0, "batch_size"), "4", "stages[0].evals[0].batch_size must be a whole number; found '4'"),
    (("stages", 0, "evals", 0, "at_start"), 1, "stages[0].evals[0].at_start must be true or false; found 1"),
    (("stages", 0, "clip"), 3, "stages[0].clip must be a section of keys; found 3"),
    (("stages", 0, "batch_size"), "8", "stages[0].batch_size must be a whole number; found '8'"),
    (("stages", 0, "duration"), 60, "stages[0].duration must be a text; found 60"),
    (("stages", 0, "init_allow"), "head", "stages[0].init_allow must be a list; found 'head'"),
    (("stages", 0, "checkpoint"), "best", "stages[0].checkpoint must be a section of keys; found 'best'"),
    (("stages", 0, "checkpoint"), {"keep": "2"}, "stages[0].checkpoint.keep must be a whole number; found '2'"),
    (("runtime",), 3, "runtime must be a section of keys; found 3"),
    (("runtime",), {"workers": "2"}, "runtime.workers must be a whole number; found '2'"),
    (("mesh",), 8, "mesh of the config must be a section of keys; found 8"),
    (("mesh",), {"data": "8"}, "mesh.data must be a whole number; found '8'"),
    (("mesh",), {"data": True}, "mesh.data must be a whole number; found True"),
    (("seed",), "0", "seed of the config must be a whole number; found '0'"),
    (("seed",), -1, "seed of the config must be a whole number from 0 to 4294967295; found -1"),
    (("seed",), 2**32, "seed of the config must be a whole number from 0 to 4294967295; found 4294967296"),
]


@pytest.mark.parametrize(("path", "value", "sentence"), WRONG)
def test_a_wrong_type_is_named_with_its_place(stage_config, path, value, sentence):
    config = copy.deepcopy(config_of(stage_config))
    read_recipe(config)
    place = config
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ValueError) as error:
        read_recipe(config)
    assert str(error.value).startswith(sentence)


def test_the_largest_seed_is_one(stage_config):
    assert read_recipe({**config_of(stage_config), "seed": 2**32 - 1}).seed == 4294967295


@pytest.mark.parametrize("rule", [("times", "segments"), ("crop", "center")])
def test_the_rules_of_a_clip_are_sections(rule):
    name, found = rule
    clip = {"frames": 2, "size": 16, "times": {"name": "middle"}, "crop": {"name": "center"}, "text_length": 4}
    for make in (lambda **values: call(ClipSpec, values, what="clip"), ClipSpec):
        make(**clip)
        with pytest.raises(ValueError) as error:
            make(**{**clip, name: found})
        assert str(error.value) == f"clip.{name} must be a section such as {{'name': {found!r}}}; found {found!r}"
