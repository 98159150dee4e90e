"""BEiT as the real implementation has it, and what becomes of it when it is made a video model."""

import json
import math

import jax
import numpy as np
import pytest
import torch
import transformers

from tests.pretrained.towers import check_protocol, clip_of, drawn, model_of, real_again, torch_pixels, tower_output
from vidlang.models import video
from vidlang.pretrained import beit
from vidlang.pretrained._safetensors import read_folder, write_file
from vidlang.train.carry import Tower, carry

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
IMAGES = clip_of((2, 1, 24, 24))
RELATIVE = {"use_relative_position_bias": True}
CASES = {
    "relative": RELATIVE,
    "shared": {"use_shared_relative_position_bias": True, "use_mask_token": True},
    "absolute, cls": {"use_absolute_position_embeddings": True, "use_mean_pooling": False, "hidden_act": "relu"},
    "without scales": {"layer_scale_init_value": 0.0, "layer_norm_eps": 1e-3, **RELATIVE},
}


def saved(folder, name="BeitModel", **changes):
    """A small real model in a folder, whose scales of branches matter."""
    config = transformers.BeitConfig(**{**SIZES, "image_size": 24, "patch_size": 8, "num_labels": 5, **changes})
    config._attn_implementation = "eager"
    model = drawn(getattr(transformers, name)(config))
    model.save_pretrained(folder)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_tokens_and_pooled_vectors_are_those_of_the_real_tower(case, tmp_path):
    model = saved(tmp_path, **CASES[case])
    section, params, config = check_protocol(beit, tmp_path, IMAGES)
    pixels = torch_pixels(IMAGES, section)[:, 0]
    again = real_again(beit, params, config, tmp_path / "again")
    with torch.no_grad():
        expected, leaving = model(pixels), again(pixels)
    found = tower_output(section, params, IMAGES)
    np.testing.assert_allclose(found.tokens_BMD, expected.last_hidden_state[:, 1:], atol=2e-5)
    np.testing.assert_allclose(found.cls_BD, expected.last_hidden_state[:, 0], atol=2e-5)
    np.testing.assert_allclose(found.pooled_BD, expected.pooler_output, atol=2e-5)
    np.testing.assert_allclose(leaving.pooler_output, expected.pooler_output, atol=2e-5)


def test_logits_are_those_of_the_real_classifier(tmp_path):
    model = saved(tmp_path, "BeitForImageClassification", **RELATIVE)
    section, params, config = check_protocol(beit, tmp_path, IMAGES)
    pixels = torch_pixels(IMAGES, section)[:, 0]
    with torch.no_grad():
        expected = model(pixels).logits.numpy()
        again = real_again(beit, params, config, tmp_path / "again")(pixels).logits.numpy()
    found = jax.jit(lambda p: model_of(section).apply({"params": p}, IMAGES, train=False).logits["label"])(params)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    np.testing.assert_allclose(again, expected, atol=2e-5)


def test_the_tower_of_pretraining_has_the_norm_before_visual_words(tmp_path):
    model = saved(tmp_path, "BeitForMaskedImageModeling", use_mask_token=True, use_shared_relative_position_bias=True)
    section, params, _ = check_protocol(beit, tmp_path, IMAGES)
    with torch.no_grad():
        raw = model.beit(torch_pixels(IMAGES, section)[:, 0]).last_hidden_state
        expected = model.layernorm(raw)[:, 1:].numpy()
    np.testing.assert_allclose(tower_output(section, params, IMAGES).tokens_BMD, expected, atol=2e-5)


@pytest.mark.parametrize("case", ["relative", "shared"])
def test_what_leaves_is_what_came_and_shared_tables_stay_one(case, tmp_path):
    saved(tmp_path, **CASES[case])
    tensors, config = dict(read_folder(tmp_path)), json.loads((tmp_path / "config.json").read_text())
    buffers = {"encoder.layer.0.attention.attention.relative_position_bias.relative_position_index": np.ones(1, int)}
    params = beit.to_flax({**tensors, **buffers}, config)
    back = beit.from_flax(params, config)
    assert back.keys() == tensors.keys() - {"embeddings.mask_token"}
    for name, tensor in back.items():
        np.testing.assert_array_equal(tensor, tensors[name])
    attention = params["video_encoder"]["stack"]["layers"]["attention"]
    table = attention["relative"].copy()
    attention["relative"][1, 0, 0] += 1
    if case == "shared":
        with pytest.raises(ValueError, match="is not the same in all layers"):
            beit.from_flax(params, config)
    attention["relative"] = table
    attention["key"]["bias"][0, 0, 0] = 0.5
    moved = beit.from_flax(params, config)  # as training does, and attention does not notice
    assert moved.keys() == back.keys()
    for name, tensor in moved.items():
        np.testing.assert_array_equal(tensor, tensors[name])


def inflated(section, params, clip, tubelet):
    """(section, parameters) of the video model that training makes of an image model."""
    tower = {**section["video"], "tubelet": tubelet}
    model = model_of({"video": tower})
    target = jax.eval_shape(lambda: model.init(jax.random.key(0), clip, train=False))["params"]
    target = jax.tree.map(lambda box: box.value, target, is_leaf=lambda leaf: hasattr(leaf, "value"))
    image = model_of({"video": section["video"]})
    before = Tower(image, video.grid_of(image, (1, *clip.shape[2:4])))
    here = Tower(model, video.grid_of(model, clip.shape[1:4]))
    found, changes = carry(params["video_encoder"], target, before, here)
    assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, target) and changes
    return {"video": tower}, {"video_encoder": found}


@pytest.mark.parametrize("tubelet", [(1, 8, 8), (2, 8, 8)])
def test_inflated_it_sees_in_a_clip_that_stands_still_the_image_at_every_time(tubelet, tmp_path):
    """Exactly so where cls, one key among T copies of every other, counts T times, that is by log T in its logits."""
    saved(tmp_path, **RELATIVE)
    section, params = beit.section(tmp_path), beit.load(tmp_path)
    image = tower_output(section, params, IMAGES)
    clip = np.repeat(IMAGES, 3 * tubelet[0], axis=1)
    video_section, video_params = inflated(section, params, clip, tubelet)
    plain = tower_output(video_section, video_params, clip)
    attention = video_params["video_encoder"]["stack"]["layers"]["attention"]
    # The last three rows are of cls to tokens, tokens to cls, and cls to itself: the latter two have cls as the key.
    attention["relative"] = attention["relative"].at[:, -2:].add(math.log(3))
    found = tower_output(video_section, video_params, clip)
    times = np.asarray(found.tokens_BMD).reshape(2, 3, *image.tokens_BMD.shape[1:])
    for t in range(3):
        np.testing.assert_allclose(times[:, t], image.tokens_BMD, atol=1e-4)
    np.testing.assert_allclose(found.cls_BD, image.cls_BD, atol=1e-4)
    np.testing.assert_allclose(found.pooled_BD, image.pooled_BD, atol=1e-4)
    assert np.abs(np.asarray(plain.tokens_BMD) - np.asarray(found.tokens_BMD)).max() > 1e-2


def test_inflated_without_cls_it_is_the_image_as_it_is(tmp_path):
    saved(tmp_path, **RELATIVE)
    section, params = beit.section(tmp_path), beit.load(tmp_path)
    section["video"]["cls"] = False
    del params["video_encoder"]["cls"]
    image, clip = tower_output(section, params, IMAGES), np.repeat(IMAGES, 3, axis=1)
    found = tower_output(*inflated(section, params, clip, (1, 8, 8)), clip)
    for tokens in np.split(np.asarray(found.tokens_BMD), 3, axis=1):
        np.testing.assert_allclose(tokens, image.tokens_BMD, atol=1e-4)
    np.testing.assert_allclose(found.pooled_BD, image.pooled_BD, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({**RELATIVE, "use_shared_relative_position_bias": True}, "both use_relative_position_bias and use_shared"),
        ({"architectures": ["BeitForMaskedImageModeling"], "use_mean_pooling": False}, "two norms after its layers"),
        ({"architectures": ["BeitForSemanticSegmentation"]}, "is of a BeitForSemanticSegmentation; this family reads"),
        ({**RELATIVE, "image_size": [24, 16]}, "are of square images"),
        ({"use_swiglu_ffn": True}, "has use_swiglu_ffn True, which this family does not know"),
    ],
)
def test_settings_that_are_not_known_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        beit.spec({"model_type": "beit", **SIZES, "image_size": 24, "patch_size": 8, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pooled_epsilon": 1e-3}, "model.video.pooled_epsilon is 0.001, and in a BEiT folder None"),
        ({"final_norm": True}, "model.video.final_norm is True|norm_pooled is True, and in a BEiT folder False"),
        ({"positions": "sincos"}, "model.video.positions is 'sincos', and in a BEiT folder 'none'"),
    ],
)
def test_sections_without_a_counterpart_are_refused_by_setting(changes, words, tmp_path):
    saved(tmp_path, **RELATIVE)
    section = beit.section(tmp_path)
    with pytest.raises(ValueError, match=words):
        beit.config_of({"video": {**section["video"], **changes}}, (1, 24, 24))
    with pytest.raises(ValueError, match="a BEiT is of images"):
        beit.config_of(section, (4, 24, 24))


def test_a_folder_with_a_tensor_less_is_refused(tmp_path):
    saved(tmp_path, **RELATIVE)
    tensors = dict(read_folder(tmp_path))
    del tensors["encoder.layer.1.lambda_2"]
    write_file(tmp_path / "model.safetensors", tensors)
    with pytest.raises(ValueError, match=r"1 missing: encoder\.layer\.1\.lambda_2$"):
        beit.shapes(tmp_path)
