"""Where parameters come from: stages, runs and files, each giving what the model has a place for."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.core.sharding import use_mesh
from vidlang.nn.decoder_spec import DecoderSpec
from vidlang.pretrained import gpt2
from vidlang.pretrained._names import _put
from vidlang.pretrained._safetensors import write_file
from vidlang.train import stages
from vidlang.train.evaluate import restore_model
from vidlang.train.initial import combine
from vidlang.train.origins import Earlier, Run, Weights, only_run, origins

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
        Weights("gpt2", "nowhere").check()


def test_several_sources_fill_a_model_together():
    target = {"a": jnp.zeros(2), "b": {"c": jnp.zeros(3), "d": jnp.zeros(1)}}
    params, report = combine(
        target, {"one": {"a": jnp.ones(2), "x": jnp.ones(1)}, "two": {"b": {"c": jnp.ones(3)}}}, ("d$", "^x")
    )
    assert params["a"].sum() == 2 and params["b"]["c"].sum() == 3 and params["b"]["d"].sum() == 0
    assert report.unused == ("x",) and report.missing == ("b/d",)
    with pytest.raises(ValueError, match="one and two both have a"):
        combine(target, {"one": {"a": jnp.ones(2)}, "two": {"a": jnp.ones(2)}}, (".",))
    with pytest.raises(ValueError, match="two gives nothing"):
        combine(target, {"one": {"a": jnp.ones(2)}, "two": {"x": jnp.ones(2)}}, (".",))
    with pytest.raises(ValueError, match="one does not fit this stage's model"):
        combine(target, {"one": {"a": jnp.ones(2)}}, ())


LANGUAGE = {"layers": 2, "width": 16, "heads": 2, "mlp": 32, "vocab": 128, "max_length": 12, "dtype": "float32"}
CONFIG = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 32, "vocab_size": 128}
CONFIG |= {"n_positions": 12}


def weights(folder):
    """A folder as GPT-2's is, with random numbers."""
    import json

    rng = np.random.default_rng(0)
    params = {
        rule.path: rng.normal(size=rule.whole).astype(np.float32)
        for rule in gpt2._rules(DecoderSpec(**gpt2.spec(CONFIG)))
    }
    nested = {}
    for path, leaf in params.items():
        _put(nested, path, leaf)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    write_file(folder / "model.safetensors", gpt2.from_flax(nested, CONFIG))
    return nested


@pytest.mark.slow
def test_a_captioner_starts_from_a_stage_and_from_files(stage_config, dual_encoder, corpus, tmp_path, mesh_of):
    """Contrast first, then captions: the encoder is the first stage's, the language model the file's, bit for bit."""
    language = weights(tmp_path / "gpt2")
    section = {**gpt2.spec(CONFIG), "dtype": "float32"}
    shared = {"data": {**corpus, "split": "train"}, "tokenizer": corpus["root"] + "/tokenizer.json", "dials": {}}
    shared |= {"duration": "2 steps", "batch_size": 8, "checkpoint": {"every": "1 step", "keep": 1}}
    encoder = {**dual_encoder, "text": {**dual_encoder["text"], "vocab": 128}}
    captioner = {"name": "captioner", "video": encoder["video"], "language": section}
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
    with use_mesh(mesh_of()):
        before, after = (restore_model(tmp_path / "run" / name)[1] for name in ("0_contrast", "1_caption"))
    for name, leaf in after["video_encoder"]["stack"]["layers"]["attention"]["query"].items():
        np.testing.assert_array_equal(leaf, before["video_encoder"]["stack"]["layers"]["attention"]["query"][name])
    np.testing.assert_array_equal(after["language"]["words"]["table"], language["words"]["table"])
    np.testing.assert_array_equal(
        after["language"]["layers"]["mlp_in"]["kernel"], language["layers"]["mlp_in"]["kernel"]
    )
