"""SigLIP as transformers has it: read, compared, and written again."""

import json

import flax.linen as nn
import jax
import numpy as np
import pytest
import torch
import transformers

from tests.pretrained.clips import LENGTH, PADDED, VALID, VOCAB, computed, draw, frames_of, pixels
from tests.pretrained.text_towers import assert_same_trees, config_of
from vidlang.core.tree import flatten_paths
from vidlang.models import dual_encoder
from vidlang.pretrained import siglip
from vidlang.pretrained._safetensors import read_folder, write_file
from vidlang.train.origins import Weights

TOWER = {"num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {**TOWER, "hidden_size": 32, "intermediate_size": 48, "image_size": 24, "patch_size": 8}
WORDS = {**TOWER, "hidden_size": 16, "intermediate_size": 40, "vocab_size": VOCAB, "max_position_embeddings": LENGTH}
WORDS |= {"projection_size": 32}
CLIP = (1, 24, 24)


def real(vision=None, words=None):
    config = transformers.SiglipConfig(
        vision_config={**VISION, **(vision or {})}, text_config={**WORDS, **(words or {})}
    )
    config._attn_implementation = "eager"
    model = draw(transformers.SiglipModel(config))
    torch.nn.init.constant_(model.logit_bias, -3.5)
    return model


@pytest.fixture
def folder(tmp_path):
    model = real()
    model.save_pretrained(tmp_path)
    return model, tmp_path


def assert_the_same(model, section, params, pad=1):
    video_BTHWC = frames_of(CLIP)
    with torch.no_grad():
        expected = model(
            pixel_values=pixels(video_BTHWC, section)[:, 0], input_ids=torch.tensor(np.where(VALID, PADDED, pad))
        )
    whole, video, text = computed(section, params, video_BTHWC)
    np.testing.assert_allclose(video.tokens_BMD, expected.vision_model_output.last_hidden_state, atol=2e-5)
    np.testing.assert_allclose(video.pooled_BD, expected.vision_model_output.pooler_output, atol=2e-5)
    np.testing.assert_allclose(text.tokens_BLD, expected.text_model_output.last_hidden_state, atol=2e-5)
    np.testing.assert_allclose(whole.video_BE, expected.image_embeds, atol=2e-5)
    np.testing.assert_allclose(whole.text_BE, expected.text_embeds, atol=2e-5)
    logits = whole.scale * whole.text_BE @ whole.video_BE.T + whole.bias
    np.testing.assert_allclose(logits, expected.logits_per_text, atol=1e-4)


def test_tokens_vectors_and_logits_are_those_of_the_real_model(folder):
    model, path = folder
    assert siglip.clip(path) == CLIP
    assert_the_same(model, siglip.section(path), siglip.load(path))


@pytest.mark.parametrize("changes", [{"hidden_act": "gelu", "layer_norm_eps": 1e-2}, {"hidden_act": "relu"}])
def test_other_settings_are_those_of_the_real_model(changes, tmp_path):
    model = real(changes, {**changes, "pad_token_id": 0})
    model.save_pretrained(tmp_path)
    assert_the_same(model, siglip.section(tmp_path), siglip.load(tmp_path), pad=0)


def test_shapes_are_those_of_the_parameters_and_of_the_model(folder):
    _, path = folder
    params, shapes = siglip.load(path), siglip.shapes(path)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)
    options = {key: value for key, value in siglip.section(path).items() if key != "name"}
    made = jax.eval_shape(
        lambda: dual_encoder.Model(**options).init(jax.random.key(0), frames_of(CLIP), PADDED, train=False)
    )
    made = flatten_paths(nn.unbox(made["params"]))
    assert {name: x.shape for name, x in made.items()} == {name: x.shape for name, x in flatten_paths(params).items()}


def test_out_and_in_again_is_bitwise_the_same(folder):
    _, path = folder
    config, params, published = config_of(path), siglip.load(path), read_folder(path)
    tensors = siglip.from_flax(params, config)
    assert set(tensors) == set(published)
    for name, tensor in tensors.items():
        assert tensor.shape == published[name].shape
        np.testing.assert_array_equal(tensor, published[name])
    assert_same_trees(siglip.to_flax(tensors, config), params)


def test_what_is_written_is_read_by_the_real_model(folder, tmp_path):
    _, path = folder
    section, params, new = siglip.section(path), siglip.load(path), tmp_path / "new"
    config = siglip.config_of(section, CLIP)
    assert siglip.spec(config) == section
    new.mkdir()
    (new / "config.json").write_text(json.dumps(config))
    write_file(new / "model.safetensors", siglip.from_flax(params, config))
    model, info = transformers.SiglipModel.from_pretrained(new, output_loading_info=True, attn_implementation="eager")
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert_the_same(model.eval(), section, params)


def test_what_has_no_counterpart_is_named(folder):
    _, path = folder
    section, params = siglip.section(path), siglip.load(path)

    def refused(match, clip_THW=CLIP, **changes):
        with pytest.raises(ValueError, match=match):
            siglip.config_of({**section, **changes}, clip_THW)

    video, text = section["video"], section["text"]
    refused("clips .4, 24, 24., of which there is none", (4, 24, 24))
    refused("video.pool is 'mean'", video={**video, "pool": "mean"})
    refused("video.cls is True", video={**video, "cls": True})
    refused("causal is True", text={**text, "transformer": {**text["transformer"], "causal": True}})
    refused("text.pad_word is None", text={key: value for key, value in text.items() if key != "pad_word"})
    refused("text_projection is", text_projection={})
    refused("temperature is", temperature={**section["temperature"], "bias": None})
    refused("projection_size 20 of texts and hidden_size 32", embed=20)
    params["video_encoder"]["temporal"] += 1
    with pytest.raises(ValueError, match="an image has no position in time"):
        siglip.from_flax(params, config_of(path))


def test_settings_that_are_not_known_are_refused():
    config = {"model_type": "siglip", "vision_config": VISION, "text_config": WORDS}
    assert siglip.spec(config)["text"]["pad_word"] == 1
    assert siglip.spec({**config, "text_config": {**WORDS, "vocab_size": 256_000}})["text"]["pad_word"] == 0
    for match, changes in {
        "has vision_use_head False": {"vision_config": {**VISION, "vision_use_head": False}},
        "text_config has num_experts 4": {"text_config": {**WORDS, "num_experts": 4}},
        "has logit_cap 3": {"logit_cap": 3},
        "of a SiglipForImageClassification": {"architectures": ["SiglipForImageClassification"]},
    }.items():
        with pytest.raises(ValueError, match=match):
            siglip.spec({**config, **changes})


def test_a_model_that_pads_otherwise_does_not_start_from_it(folder):
    _, path = folder
    section, weights = siglip.section(path), Weights("siglip", str(path))
    weights.check(section)
    text = {key: value for key, value in section["text"].items() if key != "pad_word"}
    with pytest.raises(ValueError, match="text.pad_word is None and theirs 1; give theirs"):
        weights.check({**section, "text": text})
