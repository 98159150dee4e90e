"""TimeSformer as the real implementation has it, on clips of several frames."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers

from tests.pretrained.towers import check_protocol, clip_of, drawn, model_of, real_again, torch_pixels, tower_output
from vidlang.pretrained import timesformer
from vidlang.pretrained._safetensors import read_folder

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
CLIPS = clip_of((2, 3, 16, 16))


def saved(folder, name="TimesformerModel", **changes):
    """A small real model in a folder."""
    sizes = {**SIZES, "image_size": 16, "patch_size": 8, "num_frames": 3, "num_labels": 5}
    model = drawn(getattr(transformers, name)(transformers.TimesformerConfig(**{**sizes, **changes})))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    "changes",
    [{}, {"attention_type": "joint_space_time"}, {"qkv_bias": False, "hidden_act": "relu", "layer_norm_eps": 1e-3}],
)
def test_tokens_and_cls_are_those_of_the_real_tower(changes, tmp_path):
    model = saved(tmp_path, **changes)
    if "qkv_bias" not in changes:
        check_protocol(timesformer, tmp_path, CLIPS)
    section, params = timesformer.section(tmp_path), timesformer.load(tmp_path)
    with torch.no_grad():
        expected = model(torch_pixels(CLIPS, section)).last_hidden_state.numpy()
    found = tower_output(section, params, CLIPS)
    # Theirs run over time first, ours over places.
    tokens = np.asarray(found.tokens_BMD).reshape(2, 3, 4, 32).swapaxes(1, 2).reshape(2, 12, 32)
    np.testing.assert_allclose(tokens, expected[:, 1:], atol=2e-5)
    np.testing.assert_allclose(found.pooled_BD, expected[:, 0], atol=2e-5)


def test_logits_are_those_of_the_real_classifier_and_of_what_leaves(tmp_path):
    model = saved(tmp_path, "TimesformerForVideoClassification")
    section, params, config = check_protocol(timesformer, tmp_path, CLIPS)
    assert section["video"]["transformer"]["layout"] == "timesformer_cls" and section["video"]["mean"] == (0.45,)
    pixels = torch_pixels(CLIPS, section)
    with torch.no_grad():
        expected = model(pixels).logits.numpy()
        again = real_again(timesformer, params, config, tmp_path / "again")(pixels).logits.numpy()
    found = jax.jit(lambda p: model_of(section).apply({"params": p}, CLIPS, train=False).logits["label"])(params)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    np.testing.assert_allclose(again, expected, atol=2e-5)


def test_what_leaves_is_what_came_but_for_what_is_one_here(tmp_path):
    saved(tmp_path)
    tensors, config = read_folder(tmp_path), json.loads((tmp_path / "config.json").read_text())
    back = timesformer.from_flax(timesformer.to_flax(tensors, config), config)
    assert back.keys() == set(tensors)
    one = ("temporal_dense", "temporal_attention.output.dense", "cls_token", "position_embeddings")
    for name in back:
        if not any(part in name for part in one):
            np.testing.assert_array_equal(back[name], tensors[name])
    layer = "encoder.layer.1."
    np.testing.assert_array_equal(back[f"{layer}temporal_dense.weight"], np.eye(32))
    both = tensors[f"{layer}temporal_dense.weight"] @ tensors[f"{layer}temporal_attention.output.dense.weight"]
    np.testing.assert_allclose(back[f"{layer}temporal_attention.output.dense.weight"], both, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attention_type": "space_only"}, "attention_type 'space_only' is not known; there are divided_space_time"),
        ({"rotary": True}, "has rotary True, which this family does not know"),
        ({"architectures": ["VivitModel"]}, "is of a VivitModel; this family reads TimesformerModel"),
    ],
)
def test_settings_that_are_not_known_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        timesformer.spec({"model_type": "timesformer", **SIZES, "image_size": 16, "patch_size": 8, **changes})


def test_a_layout_without_a_counterpart_is_refused(tmp_path):
    saved(tmp_path)
    section = timesformer.section(tmp_path)
    section["video"]["transformer"]["layout"] = "divided"
    with pytest.raises(ValueError, match="layout is 'divided', and in a TimeSformer folder 'timesformer_cls'"):
        timesformer.config_of(section, (3, 16, 16))
