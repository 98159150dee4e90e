"""A config is read whole, and every mistake in it is named with what would be right."""

import copy

import ml_collections
import pytest

from vidlang.data.workers.patience import Patience
from vidlang.train import build, sources, stages
from vidlang.train.recipe import Evaluation, read_recipe, result_config
from vidlang.train.signals import StopRequest


def test_the_demo_is_a_recipe():
    from configs import demo

    recipe = read_recipe(demo.get_config())
    for stage in recipe.stages:
        sources.check(stage)
        build.check(stage)


def test_a_config_dict_and_plain_values_are_the_same_recipe(stage_config):
    plain = {"name": "tiny", "seed": 0, "stages": (stage_config(),), "runtime": {"log_every": 3}}
    inner = ml_collections.ConfigDict(stage_config())
    config = ml_collections.ConfigDict({**plain, "stages": (inner,)}).lock()
    assert read_recipe(config) == read_recipe(plain)
    assert read_recipe(plain).runtime.log_every == 3


def test_patience_reaches_training_and_evaluation(stage_config, monkeypatch):
    patience = {"decode_timeout": 1.5, "store_patience": 2.0, "stall_timeout": 9.0}
    plain = {"name": "tiny", "seed": 0, "stages": (stage_config(),), "runtime": {"patience": patience, "workers": 2}}
    recipe = read_recipe(plain)
    assert recipe.runtime.workers == 2 and recipe.runtime.patience == Patience(**patience)
    given = []
    monkeypatch.setattr(sources.pipeline, "train_stream", lambda *_, **options: given.append(options["patience"]))
    monkeypatch.setattr(build, "EvalData", lambda *_, **options: given.append(options["patience"]))
    monkeypatch.setattr(build, "tokenizer", lambda *_: None)
    monkeypatch.setattr(build, "table", lambda *_: None)
    sources.train_stream(recipe, 0, [None], start_step=0)
    clip = {"times": {"name": "middle"}, "crop": {"name": "center"}}
    build.eval_data(recipe.stages[0], Evaluation("retrieval", "1 step", {}, 8, clip=clip), recipe.runtime)
    assert given == [Patience(**patience)] * 2


def changed(config, path, value):
    """A deep copy with one place set; a path is keys and indices."""
    config = copy.deepcopy(config)
    place = config
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return config


MISTAKES = [
    (("stges",), (), r"the config has an unknown key 'stges' \(did you mean 'stages'\?\); it takes: seed, stages"),
    (("name",), 3, "the config lacks 'name', a text"),
    (("stages",), (), "the config has no stages"),
    (("runtime",), {"worker": 1}, r"runtime has an unknown key 'worker' \(did you mean 'workers'\?\)"),
    (("runtime",), {"patience": {"stall": 5}}, r"runtime.patience has an unknown key 'stall'"),
    (("runtime",), {"patience": {"decode_timeout": 0}}, "decode_timeout must be above 0"),
    (("runtime",), {"patience": 5}, "runtime.patience must be a section of keys; found 5"),
    (("stages", 0, "duratoin"), "1 step", r"stages\[0\] has an unknown key 'duratoin' \(did you mean 'duration'\?\)"),
    (("stages", 0, "name"), "a/b", "letters, digits, - and _; found 'a/b'"),
    (("stages", 0, "batch_size"), 0, "batch_size of stage 'short' must be a positive whole number; found 0"),
    (("stages", 0, "checkpoint"), {"evry": "1 step"}, r"stages\[0\].checkpoint has an unknown key 'evry'"),
    (("stages", 0, "checkpoint"), {"best": "val/r1"}, "but its evals write metrics under: nothing, there are no evals"),
    (("stages", 0, "checkpoint"), {"best_mode": "least"}, 'must be "max" or "min"; found \'least\''),
    (("stages", 0, "checkpoint"), {"keep": 0}, "checkpoint.keep must be at least 1; found 0"),
    (("stages", 0, "evals"), ({"name": "retrieval"},), r"stages\[0\].evals\[0\] lacks 'every', 'data', 'batch_size'"),
]


@pytest.mark.parametrize(("path", "value", "message"), MISTAKES)
def test_a_mistake_in_a_config_is_named(stage_config, path, value, message):
    config = {"name": "tiny", "seed": 0, "stages": (stage_config(),)}
    with pytest.raises(ValueError, match=message):
        read_recipe(changed(config, path, value))


UNKNOWN = [
    ("model", {"name": "dual_encodr"}, r"'dual_encodr' in vidlang/models/ \(did you mean 'dual_encoder'\?\)"),
    ("model", {"width": 3}, "model must say its name"),
    ("model", {"name": "tiny", "widht": 3}, r"model has an unknown key 'widht' \(did you mean 'width'\?\)"),
    ("objective", {"name": "contrastiv"}, r"'contrastiv' in vidlang/objectives/ \(did you mean 'contrastive'\?\)"),
    ("data", {"name": "synthetics"}, r"'synthetics' in vidlang/datasets/ \(did you mean 'synthetic'\?\)"),
    ("dials", {"masc": 0.5}, r"dials has an unknown key 'masc' \(did you mean 'mask'\?\)"),
    ("dials", {"mask": 1.5}, r"the dial mask is 1.5.*a number in \[0, 1\)"),
    ("clip", {"frames": 4}, "clip lacks 'size', 'times', 'crop'"),
]


@pytest.mark.parametrize(("section", "value", "message"), UNKNOWN)
def test_an_unknown_name_stops_a_run_before_it_leaves_a_trace(stage_config, tmp_path, section, value, message):
    data = {"name": "synthetic", "split": "train", "root": str(tmp_path / "corpus")}
    second = {"name": "b", "data": data, section: value}
    config = {"name": "tiny", "seed": 0, "stages": (stage_config(data=data), stage_config(**second))}
    with pytest.raises(ValueError, match=f"stage 'b': .*{message}"):
        stages.train(config, tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_two_evaluations_may_not_share_a_prefix(stage_config):
    evaluation = {"name": "retrieval", "every": "1 step", "data": {"name": "synthetic"}, "batch_size": 4}
    config = {"name": "tiny", "seed": 0, "stages": (stage_config(evals=(evaluation, evaluation)),)}
    with pytest.raises(ValueError, match="have the prefixes val, val; each needs its own"):
        read_recipe(config)


def test_only_what_decides_a_result_counts_for_continuing(stage_config):
    stages_ = (stage_config(), stage_config(name="second"))
    config = {"name": "tiny", "seed": 0, "mesh": {"data": -1}, "runtime": {"workers": 0}, "stages": stages_}
    first = result_config(config, 0)
    for path, value in [
        (("name",), "other"),
        (("mesh",), {"fsdp": 8}),
        (("runtime",), {"workers": 4}),
        (("stages", 0, "checkpoint"), {"every": "1 step"}),
        (("stages", 0, "evals"), ()),
        (("stages", 0, "init_from"), ""),
        (("stages", 1, "duration"), "9 steps"),
    ]:
        assert result_config(changed(config, path, value), 0) == first, path
    for path, value in [(("seed",), 1), (("stages", 0, "duration"), "9 steps"), (("stages", 0, "dials"), {})]:
        assert result_config(changed(config, path, value), 0) != first, path
    assert result_config(changed(config, ("stages", 0, "dials"), {}), 1) != result_config(config, 1)


def test_features_are_extracted_by_something_trained_before(stage_config, tmp_path):
    section = {"data": {"name": "synthetic", "split": "train"}, "out": "features", "segments": 4, "frames": 2}
    with pytest.raises(ValueError, match="segments of extract must be a positive whole number; found 0"):
        read_recipe({"name": "tiny", "seed": 0, "stages": (stage_config(extract=({**section, "segments": 0},)),)})
    recipe = read_recipe({"name": "tiny", "seed": 0, "stages": (stage_config(extract=(section,)),)})
    with pytest.raises(ValueError, match="extracts features, and nothing was trained before it; name a run"):
        stages._extract(recipe, 0, "", StopRequest())
