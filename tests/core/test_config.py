import ml_collections
import pytest

from vidlang.core import config


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
