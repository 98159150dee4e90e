from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import flax.linen as nn
import ml_collections
import pytest

from vidlang.core import config

if TYPE_CHECKING:
    from nowhere import Unknown


def test_durations_mean_steps():
    assert config.steps("600 steps", batch_size=7) == 600
    assert config.steps("1 step", batch_size=7) == 1
    assert config.steps("2 epochs", batch_size=32, dataset_size=100) == 7  # 200 / 32, rounded up
    assert config.steps("1e3 examples", batch_size=64) == 16
    assert config.steps("5 percent", batch_size=1, total=200) == 10
    assert config.steps("10 percent", batch_size=1, total=30) == 3  # not 4 by floating point


@pytest.mark.parametrize("duration", ["600", "six steps", "6 weeks", "-1 steps", "nan epochs", 600, "", "1 2 steps"])
def test_an_unreadable_duration_says_how_to_write_one(duration):
    with pytest.raises(ValueError, match="600 steps"):
        config.steps(duration, batch_size=1)


def test_epochs_without_a_dataset_are_an_error():
    with pytest.raises(ValueError, match="needs a dataset"):
        config.steps("1 epoch", batch_size=1)


def test_an_unknown_name_lists_what_exists():
    with pytest.raises(ValueError, match=r"did you mean 'synthetic'.*there are: .*synthetic"):
        config.load_module("datasets", "sythetic")
    with pytest.raises(ValueError, match="unknown kind"):
        config.load_module("datasetz", "synthetic")


def test_call_checks_keys_against_the_signature():
    def function(width, depth=2, *, secret):
        return width * depth + secret

    assert config.call(function, {"width": 3}, what="model", secret=1) == 7
    with pytest.raises(
        ValueError, match=r"model has an unknown key 'widht' \(did you mean 'width'\?\); it takes: width"
    ):
        config.call(function, {"widht": 3}, what="model", secret=1)
    with pytest.raises(ValueError, match="lacks 'width'"):
        config.call(function, {}, what="model", secret=1)
    with pytest.raises(ValueError, match="unknown key 'secret'"):
        config.call(function, {"width": 1, "secret": 2}, what="model", secret=1)


def a_function(
    whole: int = 1,
    number: float = 1.0,
    text: str = "",
    flag: bool = False,
    maybe: int | None = 1,
    either: int | str = 1,
    pair: tuple[int, int] = (1, 1),
    items: Sequence[str] = (),
    section: Mapping[str, Any] | None = None,
    own: Annotated[Mapping[str, Any] | None, "a rule such as {'name': 'x'}"] = None,
    anything: Any = 0,
    unresolved: Unknown | None = None,
    late: int = None,
):
    return True


@dataclasses.dataclass(frozen=True)
class ADataclass:
    unresolved: Unknown | None = None
    whole: int = 1
    number: float = 1.0
    text: str = ""
    flag: bool = False
    maybe: int | None = 1
    either: int | str = 1


class AModule(nn.Module):
    whole: int = 1
    number: float = 1.0
    pair: tuple[int, int] = (1, 1)
    items: Sequence[str] = ()
    section: Mapping[str, Any] | None = None


class Heir(AModule):
    more: int = 1


class AClass:
    def __init__(self, whole: int = 1, text: str = "", flag: bool = False):
        pass

    def method(self, whole: int = 1, number: float = 1.0, items: Sequence[str] = ()):
        pass


CALLABLES = [a_function, ADataclass, AModule, Heir, AClass, AClass().method]
WRONG = [
    ("whole", "64", "a whole number"),
    ("whole", True, "a whole number"),
    ("whole", 1.5, "a whole number"),
    ("whole", None, "a whole number"),
    ("number", "0.1", "a number"),
    ("number", False, "a number"),
    ("text", 3, "a text"),
    ("flag", "no", "true or false"),
    ("flag", 0, "true or false"),
    ("maybe", "1", "a whole number or None"),
    ("either", 1.5, "a whole number or a text"),
    ("pair", "16", "a list"),
    ("pair", 16, "a list"),
    ("items", "bias", "a list"),
    ("items", {"bias": 1}, "a list"),
    ("section", "x", "a section of keys or None"),
    ("section", (1, 2), "a section of keys or None"),
    ("own", "x", "a rule such as {'name': 'x'}"),
]
RIGHT = [
    ("whole", 64),
    ("number", 1),
    ("number", 0.5),
    ("text", "x"),
    ("flag", True),
    ("maybe", None),
    ("either", "x"),
    ("pair", [1, 2]),
    ("items", ()),
    ("section", ml_collections.ConfigDict()),
    ("own", {"name": "y"}),
    ("anything", "whatever"),
    ("unresolved", "whatever"),
    ("late", None),
]


def takers(key):
    return [function for function in CALLABLES if key in inspect.signature(function).parameters]


@pytest.mark.parametrize(("key", "value", "words"), WRONG)
def test_a_value_of_another_type_is_named(key, value, words):
    assert len(takers(key)) >= (1 if key == "own" else 2)
    for function in takers(key):
        with pytest.raises(ValueError) as error:
            config.call(function, {key: value}, what="model")
        assert str(error.value) == f"model.{key} must be {words}; found {value!r}"


@pytest.mark.parametrize(("key", "value"), RIGHT)
def test_a_value_of_the_right_type_passes(key, value):
    assert takers(key)
    for function in takers(key):
        config.call(function, {key: value}, what="model")


def test_types_are_checked_for_what_a_config_gives_only():
    config.call(a_function, {}, what="model", whole="the code knows what it does")
    with pytest.raises(ValueError, match=r"^whole of options of an evaluation must be a whole number; found 'x'"):
        config.check_keys(a_function, {"whole": "x"}, what="options of an evaluation", extra=())


def test_paths_become_texts():
    assert config.to_dict({"root": Path("a") / "b"}) == {"root": "a/b"}
    assert config.fingerprint({"root": Path("a")}) == config.fingerprint({"root": "a"})


def test_to_dict_reaches_configs_inside_tuples():
    inner = ml_collections.ConfigDict({"a": 1})
    outer = ml_collections.ConfigDict({"stages": (inner, inner), "b": [1, 2]})
    assert config.to_dict(outer) == {"stages": ({"a": 1}, {"a": 1}), "b": (1, 2)}


def test_fingerprint_sees_values_and_not_order():
    one = {"a": 1, "b": {"c": (1, 2)}}
    assert config.fingerprint(one) == config.fingerprint({"b": {"c": [1, 2]}, "a": 1})
    assert config.fingerprint(one) != config.fingerprint({"a": 1, "b": {"c": (1, 3)}})


def test_differing_keys_names_paths():
    one = {"a": 1, "s": ({"x": 1}, {"x": 2}), "only": 1}
    assert config.differing_keys(one, {"a": 2, "s": ({"x": 1}, {"x": 3})}) == ["a", "only", "s[1].x"]
    assert config.differing_keys(one, one) == []
