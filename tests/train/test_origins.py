"""Where parameters come from: stages, runs and files, each giving what the model has a place for."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.core.sharding import use_mesh
from vidlang.core.tree import nest
from vidlang.nn.decoder_spec import DecoderSpec
from vidlang.pretrained import gpt2
from vidlang.pretrained._safetensors import write_file
from vidlang.pretrained._settings import check_section
from vidlang.train import stages
from vidlang.train.check import check_recipe
from vidlang.train.evaluate import restore_model
from vidlang.train.initial import combine
from vidlang.train.origins import Earlier, Run, Weights, only_run, origins
from vidlang.train.recipe import read_recipe

STAGES = [SimpleNamespace(name=name, init_from="") for name in ("image", "short", "language", "caption")]


def of(given, index=3):
    found = [*STAGES]
    found[index] = SimpleNamespace(name=STAGES[index].name, init_from=given)
    return origins(found, index)


def test_every_form_is_read():
    assert of("", 0) == () and of("") == (Earlier(2),) and of(()) == (Earlier(2),)
    assert of("scratch") == ()
    assert of("runs/a") == (Run("runs/a"),)
    weights = Weights("gpt2", "weights/gpt2", "language")
    given = ("before", "stage:image", "runs/a:b", "gpt2:weights/gpt2:language")
    assert of(given) == (Earlier(2), Earlier(0), Run("runs/a:b"), weights)
    assert of(({"name": "gpt2", "path": "weights/gpt2", "into": "language"},)) == (weights,)
    assert of(("gpt2:weights/gpt2",)) == (Weights("gpt2", "weights/gpt2"),)
    assert only_run(of(("before", "gpt2:w:language")), ["a", "b", "c", "d"]) == "c"


def test_what_names_nothing_is_said():
    with pytest.raises(ValueError, match="the stage 'shot'.*'short'.*: image, short, language"):
        of(("stage:shot",))
    with pytest.raises(ValueError, match="'before' in the first stage"):
        of(("before",), 0)
    with pytest.raises(ValueError, match="found 3"):
        of((3,))
    with pytest.raises(ValueError, match="names a family"):
        of(({"path": "x"},))
    with pytest.raises(ValueError, match="several runs"):
        only_run(of(("before", "runs/a")), ["a", "b", "c", "d"])
    with pytest.raises(ValueError, match="there is no nowhere, where gpt2 weights should be"):
        Weights("gpt2", "nowhere").check({})
    with pytest.raises(ValueError, match="'scratch' beside other sources"):
        of(("scratch", "runs/a"))
    with pytest.raises(ValueError, match="and 2 before it have that name"):
        origins([SimpleNamespace(name="a", init_from="")] * 2 + [SimpleNamespace(name="b", init_from=("stage:a",))], 2)
    with pytest.raises(ValueError, match="unknown key 'folder'"):
        of(({"name": "gpt2", "folder": "w"},))


def test_several_sources_fill_a_model_together():
    target = {"a": jnp.zeros(2), "b": {"c": jnp.zeros(3), "d": jnp.zeros(1)}}
    params, report = combine(
        target, [("one", {"a": jnp.ones(2), "x": jnp.ones(1)}), ("two", {"b": {"c": jnp.ones(3)}})], ("d$", "^x")
    )
    assert params["a"].sum() == 2 and params["b"]["c"].sum() == 3 and params["b"]["d"].sum() == 0
    assert report.unused == ("x",) and report.missing == ("b/d",)
    with pytest.raises(ValueError, match="one and two both have a"):
        combine(target, [("one", {"a": jnp.ones(2)}), ("two", {"a": jnp.ones(2)})], (".",))
    with pytest.raises(ValueError, match="one and one both have a"):  # the same files into the same part
        combine(target, [("one", {"a": jnp.ones(2)}), ("one", {"a": jnp.ones(2)})], (".",))
    with pytest.raises(ValueError, match="two gives nothing that this stage's model has, for it has x;"):
        combine(target, [("one", {"a": jnp.ones(2)}), ("two", {"x": {"a": jnp.ones(2)}})], (".",))
    with pytest.raises(ValueError, match="one does not fit this stage's model"):
        combine(target, [("one", {"a": jnp.ones(2)})], ())


CONFIG = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 32, "vocab_size": 128}
CONFIG |= {"n_positions": 12}
SECTION = {**gpt2.spec(CONFIG), "dtype": "float32"}


def weights(folder):
    """A folder as GPT-2's is, with random numbers."""
    rng = np.random.default_rng(0)
    rules = gpt2._rules(DecoderSpec(**SECTION))
    params = nest({rule.path: rng.normal(size=rule.whole).astype(np.float32) for rule in rules})
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    write_file(folder / "model.safetensors", gpt2.from_flax(params, CONFIG))
    return params


def test_weights_lie_under_their_part(tmp_path):
    language = weights(tmp_path / "gpt2")
    of_model = Weights("gpt2", str(tmp_path / "gpt2"), "a/language")
    found, shapes = of_model.load({}), of_model.shapes({})
    np.testing.assert_array_equal(found["a"]["language"]["words"]["table"], language["words"]["table"])
    assert jax.tree.map(lambda x: x.shape, found) == jax.tree.map(lambda x: x.shape, shapes)
    assert jax.tree.structure(Weights("gpt2", str(tmp_path / "gpt2")).load({})) == jax.tree.structure(
        {"language": language}
    )


@pytest.fixture
def language_stage(stage_config, corpus):
    """A language model that learns sentences, as plain values."""

    def make(**changes):
        values = {"name": "language", "model": {"name": "language", "language": SECTION}, "dials": {}}
        values |= {"clip": {"frames": 0, "text_length": 8}, "objective": {"name": "captioning"}, "batch_size": 8}
        values |= {"data": {**corpus, "split": "train"}, "tokenizer": corpus["root"] + "/tokenizer.json"}
        return stage_config(**values | {"duration": "2 steps"} | changes)

    return make


def check(*stages):
    check_recipe(read_recipe({"name": "two", "seed": 0, "stages": stages}))


def test_settings_that_no_tensor_shows_must_be_those_of_the_weights(language_stage, tmp_path):
    weights(tmp_path / "gpt2")
    given = (f"gpt2:{tmp_path}/gpt2:language",)
    check(language_stage(init_from=given))
    free = {"dtype": "bfloat16", "remat": "full", "scan": False, "rotary_base": 1.0, "global_every": 3}
    check(language_stage(init_from=given, model={"name": "language", "language": {**SECTION, **free}}))
    other = {**SECTION, "epsilon": 1e-3, "activation": "gelu"}
    with pytest.raises(ValueError) as caught:
        check(language_stage(init_from=given, model={"name": "language", "language": other}))
    assert "epsilon is 0.001 and theirs 1e-05; activation is 'gelu' and theirs 'gelu_tanh'" in str(caught.value)
    assert "stage 'language': " in str(caught.value) and "\n" not in str(caught.value)


def test_texts_may_be_shorter_than_rotary_positions_allow_and_no_longer():
    theirs = {"layers": 1, "width": 8, "heads": 2, "mlp": 8, "vocab": 9, "max_length": 12, "tied": True}
    check_section({**theirs, "max_length": 8}, theirs, "here")
    with pytest.raises(ValueError, match="max_length is 16 and theirs 12"):
        check_section({**theirs, "max_length": 16}, theirs, "here")
    with pytest.raises(ValueError, match="rotary_base is 10000.0 and theirs 500.0; window is 0 and theirs 4; glob"):
        check_section(theirs, {**theirs, "rotary_base": 500.0, "window": 4, "global_every": 2}, "here")
    learned = {**theirs, "positions": "learned"}
    with pytest.raises(ValueError, match="max_length is 8 and theirs 12"):
        check_section({**learned, "max_length": 8}, learned, "here")


def test_sources_of_a_later_stage_are_tried_before_the_first_begins(language_stage, tmp_path):
    weights(tmp_path / "gpt2")
    files = f"gpt2:{tmp_path}/gpt2:language"
    first, second = language_stage(), language_stage(name="second", init_from=("before", files))
    with pytest.raises(ValueError, match="what stage 'language' trains and gpt2 weights .* as language both have lang"):
        check(first, second)
    with pytest.raises(ValueError, match="gives nothing that this stage's model has, for it has langauge; .* the part"):
        check(first, {**second, "init_from": (f"gpt2:{tmp_path}/gpt2:langauge",)})
    path = tmp_path / "gpt2/model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="stage 'second': .*is cut off or damaged"):
        check(first, {**second, "init_from": (files,)})


def test_a_run_that_does_not_fit_is_told_before_the_first_stage_begins(recipe, stage_config, tmp_path):
    """The run is there, so that nothing has to be trained to know it."""
    stages.train(recipe(duration="1 step", evals=()), tmp_path / "run")
    other = recipe(name="second", model={"name": "tiny", "width": 16, "embed": 4}, init_from=str(tmp_path / "run"))
    both = {**other, "stages": (recipe()["stages"][0], other["stages"][0])}
    with pytest.raises(ValueError, match="(?s)stage 'second': step 1 of .*0_short does not fit .*2 mismatched:"):
        check_recipe(read_recipe(both))
    check_recipe(read_recipe({**both, "stages": (both["stages"][0], {**both["stages"][1], "init_allow": ("_out",)})}))


@pytest.mark.slow
def test_a_captioner_starts_from_a_stage_and_from_files(stage_config, dual_encoder, corpus, tmp_path, mesh_of, capfd):
    """Contrast first, then captions: the encoder is the first stage's, the language model the file's, bit for bit."""
    language = weights(tmp_path / "gpt2")
    shared = {"data": {**corpus, "split": "train"}, "tokenizer": corpus["root"] + "/tokenizer.json", "dials": {}}
    shared |= {"duration": "2 steps", "batch_size": 8, "checkpoint": {"every": "1 step", "keep": 1}}
    encoder = {**dual_encoder, "text": {**dual_encoder["text"], "vocab": 128}}
    captioner = {"name": "captioner", "video": encoder["video"], "language": SECTION}
    captioner |= {"resampler": {"layers": 1, "width": 16, "heads": 2, "mlp": 16, "latents": 2, "dtype": "float32"}}
    first = stage_config(**shared, name="contrast", model=encoder)
    second = stage_config(
        **shared,
        name="caption",
        model=captioner,
        objective={"name": "captioning"},
        init_from=("stage:contrast", f"gpt2:{tmp_path}/gpt2:language"),
        init_allow=("^text_encoder", "_projection", "log_scale", "^resampler", "^cross"),
    )
    stages.train({"name": "two", "seed": 0, "stages": (first, second)}, tmp_path / "run")
    said = capfd.readouterr().out
    assert "starts from step 2 of" in said and f"gpt2 weights {tmp_path}/gpt2 as language:\n" in said
    assert f"\n  {len(jax.tree.leaves(language))} from gpt2 weights" in said
    with use_mesh(mesh_of()):
        before, after = (restore_model(tmp_path / "run" / name)[1] for name in ("0_contrast", "1_caption"))
    for name, leaf in after["video_encoder"]["stack"]["layers"]["attention"]["query"].items():
        np.testing.assert_array_equal(leaf, before["video_encoder"]["stack"]["layers"]["attention"]["query"][name])
    np.testing.assert_array_equal(after["language"]["words"]["table"], language["words"]["table"])
    np.testing.assert_array_equal(
        after["language"]["layers"]["mlp_in"]["kernel"], language["layers"]["mlp_in"]["kernel"]
    )
