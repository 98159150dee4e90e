"""ViViT as the real implementation has it, on clips of several frames."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers

from tests.pretrained.towers import check_protocol, clip_of, drawn, model_of, real_again, torch_pixels, tower_output
from vidlang.pretrained import vivit
from vidlang.pretrained._safetensors import read_folder

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SIZES |= {"image_size": 16, "num_frames": 6, "tubelet_size": [2, 8, 8]}
CLIPS = clip_of((2, 6, 16, 16))


def saved(folder, name="VivitModel", **changes):
    """A small real model in a folder."""
    config = transformers.VivitConfig(**{**SIZES, "num_labels": 2, **changes})
    config._attn_implementation = "eager"
    model = drawn(getattr(transformers, name)(config))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("changes", [{}, {"qkv_bias": False, "hidden_act": "gelu", "tubelet_size": [3, 4, 4]}])
def test_tokens_and_cls_are_those_of_the_real_tower(changes, tmp_path):
    model = saved(tmp_path, **changes)
    if not changes:
        check_protocol(vivit, tmp_path, CLIPS)
    section, params = vivit.section(tmp_path), vivit.load(tmp_path)
    with torch.no_grad():
        expected = model(torch_pixels(CLIPS, section)).last_hidden_state.numpy()
    found = tower_output(section, params, CLIPS)
    np.testing.assert_allclose(found.tokens_BMD, expected[:, 1:], atol=2e-5)
    np.testing.assert_allclose(found.pooled_BD, expected[:, 0], atol=2e-5)


def test_logits_are_those_of_the_real_classifier_and_of_what_leaves(tmp_path):
    model = saved(tmp_path, "VivitForVideoClassification")
    section, params, config = check_protocol(vivit, tmp_path, CLIPS)
    assert section["heads"] == {"label": 2} and section["video"]["transformer"]["activation"] == "gelu_tanh"
    pixels = torch_pixels(CLIPS, section)
    with torch.no_grad():
        expected = model(pixels).logits.numpy()
        again = real_again(vivit, params, config, tmp_path / "again")(pixels).logits.numpy()
    found = jax.jit(lambda p: model_of(section).apply({"params": p}, CLIPS, train=False).logits["label"])(params)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    np.testing.assert_allclose(again, expected, atol=2e-5)


def test_what_leaves_is_what_came_but_for_the_position_of_cls(tmp_path):
    saved(tmp_path)
    tensors, config = read_folder(tmp_path), json.loads((tmp_path / "config.json").read_text())
    back = vivit.from_flax(vivit.to_flax(tensors, config), config)
    assert back.keys() == {name for name in tensors if not name.startswith("pooler.")}
    cls, positions = "embeddings.cls_token", "embeddings.position_embeddings"
    for name in back.keys() - {cls, positions}:
        np.testing.assert_array_equal(back[name], tensors[name])
    np.testing.assert_array_equal(back[positions][:, 1:], tensors[positions][:, 1:])
    np.testing.assert_array_equal(back[cls], tensors[cls] + tensors[positions][:, :1])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"video_size": [8, 16, 16]}, r"video_size \[8, 16, 16\], and clips of \(6, 16, 16\)"),
        ({"tubelet_size": None}, "lacks tubelet_size"),
        ({"factorised": True}, "has factorised True, which this family does not know"),
    ],
)
def test_settings_that_are_not_known_are_refused(changes, words):
    known = {"model_type": "vivit", **SIZES}
    assert vivit.spec(known | {"video_size": [6, 16, 16]}) == vivit.spec(known)
    assert vivit.spec(known)["video"]["transformer"]["activation"] == "gelu_tanh"  # as the real config has it
    with pytest.raises(ValueError, match=words):
        vivit.spec(known | changes)


def test_two_tables_of_positions_have_no_counterpart(tmp_path):
    saved(tmp_path)
    section = vivit.section(tmp_path)
    section["video"]["positions"] = "learned"
    with pytest.raises(ValueError, match="positions is 'learned', and in a ViViT folder 'joint'"):
        vivit.config_of(section, (6, 16, 16))
