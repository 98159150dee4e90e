"""VideoMAE as the real implementation has it: its encoder, its classifier, and what its pretraining rebuilds."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers

from tests.pretrained.towers import check_protocol, clip_of, drawn, model_of, real_again, torch_pixels, tower_output
from vidlang.core.config import load_module
from vidlang.ops.dials import Dials
from vidlang.pretrained import videomae
from vidlang.pretrained._safetensors import read_folder

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SIZES |= {"image_size": 16, "patch_size": 8, "num_frames": 4, "tubelet_size": 2}
DECODER = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
DECODER |= {"decoder_intermediate_size": 24}
CLIPS = clip_of((2, 4, 16, 16))


def saved(folder, name="VideoMAEModel", **changes):
    """A small real model in a folder."""
    config = transformers.VideoMAEConfig(**{**SIZES, **DECODER, "num_labels": 5, **changes})
    config._attn_implementation = "eager"
    model = drawn(getattr(transformers, name)(config))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    "changes", [{}, {"use_mean_pooling": False}, {"qkv_bias": False, "hidden_act": "relu", "layer_norm_eps": 1e-3}]
)
def test_tokens_are_those_of_the_real_tower(changes, tmp_path):
    model = saved(tmp_path, **changes)
    if "qkv_bias" not in changes:
        check_protocol(videomae, tmp_path, CLIPS)
    section, params = videomae.section(tmp_path), videomae.load(tmp_path)
    with torch.no_grad():
        expected = model(torch_pixels(CLIPS, section)).last_hidden_state.numpy()
    found = tower_output(section, params, CLIPS)
    np.testing.assert_allclose(found.tokens_BMD, expected, atol=2e-5)
    np.testing.assert_allclose(found.pooled_BD, expected.mean(axis=1), atol=2e-5)


def test_logits_are_those_of_the_real_classifier_and_of_what_leaves(tmp_path):
    model = saved(tmp_path, "VideoMAEForVideoClassification")
    section, params, config = check_protocol(videomae, tmp_path, CLIPS)
    pixels = torch_pixels(CLIPS, section)
    with torch.no_grad():
        expected = model(pixels).logits.numpy()
        again = real_again(videomae, params, config, tmp_path / "again")(pixels).logits.numpy()
    found = jax.jit(lambda p: model_of(section).apply({"params": p}, CLIPS, train=False).logits["label"])(params)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    np.testing.assert_allclose(again, expected, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mean", [False, True])
def test_hidden_tubelets_are_rebuilt_as_the_real_model_does(mean, tmp_path):
    model = saved(tmp_path, "VideoMAEForPreTraining", use_mean_pooling=mean)
    section, params, config = check_protocol(videomae, tmp_path, CLIPS)
    mae, dials = model_of(section), Dials(mask=0.5, mask_kind="random")

    def run(params):
        return mae.apply({"params": params}, CLIPS, train=False, dials=dials, rngs={"mask": jax.random.key(3)})

    found = jax.jit(run)(params)
    hidden = np.ones((2, 8), bool)
    np.put_along_axis(hidden, np.asarray(found.kept_BM), False, axis=1)
    assert (hidden[0] != hidden[1]).any()
    pixels, hidden = torch_pixels(CLIPS, section), torch.tensor(hidden)
    with torch.no_grad():
        expected = model(pixels, bool_masked_pos=hidden)
        again = real_again(videomae, params, config, tmp_path / "again")(pixels, bool_masked_pos=hidden)
    np.testing.assert_allclose(found.predicted_BMP, expected.logits, atol=2e-5)
    np.testing.assert_allclose(again.logits, expected.logits, atol=2e-5)
    # The same pixels in the same order: their loss is the objective's.
    objective = load_module("objectives", "reconstruction")
    loss, _ = objective.loss(found, {"valid_B": np.ones(2, bool)})
    np.testing.assert_allclose(loss, expected.loss, rtol=1e-4)


@pytest.mark.parametrize("name", ["VideoMAEModel", "VideoMAEForVideoClassification", "VideoMAEForPreTraining"])
def test_what_leaves_is_what_came(name, tmp_path):
    saved(tmp_path, name)
    tensors, config = read_folder(tmp_path), json.loads((tmp_path / "config.json").read_text())
    params = videomae.to_flax(tensors, config)
    back = videomae.from_flax(params, config)
    assert back.keys() == set(tensors)
    for key, tensor in back.items():
        np.testing.assert_array_equal(tensor, tensors[key])
    params["video_encoder"]["stack"]["layers"]["attention"]["key"]["bias"][1, 2, 3] = 0.5
    moved = videomae.from_flax(params, config)  # as training does, and attention does not notice
    jax.tree.map(np.testing.assert_array_equal, moved, back)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["VideoMAEForVideoClassification"], "use_mean_pooling": False}, "by its first token alone"),
        ({"architectures": ["VideoMAEForPreTraining"], "decoder_hidden_size": None}, "lacks decoder_hidden_size"),
        ({"tubelet_size": None}, "lacks tubelet_size"),
        ({"mask_ratio": 0.9}, "has mask_ratio 0.9, which this family does not know"),
    ],
)
def test_settings_that_are_not_known_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        videomae.spec({"model_type": "videomae", **SIZES, **DECODER, **changes})


def test_other_epsilons_and_decoders_have_no_counterpart(tmp_path):
    saved(tmp_path, "VideoMAEForPreTraining")
    section = videomae.section(tmp_path)
    for changes, words in (
        ({"norm_epsilon": 1e-6}, "model.norm_epsilon is 1e-06, and in a VideoMAE folder 1e-05"),
        ({"decoder": {**section["decoder"], "activation": "relu"}}, "model.decoder.activation is 'relu'"),
    ):
        with pytest.raises(ValueError, match=words):
            videomae.config_of(section | changes, (4, 16, 16))
