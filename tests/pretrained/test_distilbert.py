"""DistilBERT as transformers has it, with random numbers."""

import jax
import numpy as np
import pytest
import transformers

from tests.pretrained.text_towers import (
    VOCAB,
    assert_same_trees,
    config_of,
    drawn,
    guesses,
    real_tokens,
    tower,
)
from vidlang.pretrained import distilbert
from vidlang.pretrained._safetensors import read_folder

SMALL = {"vocab_size": VOCAB, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 16}


def real(name="DistilBertForMaskedLM", **changes):
    config = transformers.DistilBertConfig(**{**SMALL, **changes})
    config._attn_implementation = "eager"
    return drawn(getattr(transformers, name)(config))


@pytest.mark.parametrize("changes", [{}, {"activation": "relu", "sinusoidal_pos_embds": True}])
def test_tokens_and_words_are_those_of_the_real_model(changes, tmp_path):
    model = real(**changes)
    model.save_pretrained(tmp_path)
    section, params = distilbert.section(tmp_path), distilbert.load(tmp_path)
    expected = real_tokens(model, output_hidden_states=True)
    found = tower(section)(params)
    last_BLD = expected.hidden_states[-1].numpy()
    np.testing.assert_allclose(found.tokens_BLD, last_BLD, atol=2e-5)
    np.testing.assert_allclose(found.pooled_BD, last_BLD[:, 0], atol=2e-5)
    np.testing.assert_allclose(guesses(section, params, found.tokens_BLD), expected.logits.numpy(), atol=2e-5)


@pytest.mark.parametrize("name", ["DistilBertModel", "DistilBertForMaskedLM"])
def test_out_and_in_again_is_bitwise_the_same(name, tmp_path):
    real(name).save_pretrained(tmp_path)
    params, shapes, config = distilbert.load(tmp_path), distilbert.shapes(tmp_path), config_of(tmp_path)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)
    assert distilbert.architecture(params) == name
    tensors, saved = distilbert.from_flax(params, config), read_folder(tmp_path)
    assert set(tensors) == set(saved)
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, saved[key])
    assert_same_trees(distilbert.to_flax(tensors, config), params)


def test_a_stage_without_a_word_head_gets_the_tower_alone(tmp_path):
    real().save_pretrained(tmp_path)
    section, params = distilbert.section(tmp_path), distilbert.load(tmp_path)
    placed = distilbert.place(params, {**section, "name": "dual_encoder"})
    assert_same_trees(placed, {"text_encoder": params["text_encoder"]})


def test_a_section_and_its_config_json_mean_the_same(tmp_path):
    model = real(activation="relu")
    model.save_pretrained(tmp_path)
    section = distilbert.section(tmp_path)
    assert distilbert.spec(distilbert.config_of(section)) == section
    assert distilbert.spec(transformers.DistilBertConfig(**distilbert.config_of(section)).to_dict()) == section
    text = section["text"]
    for changes, match in (
        ({"token_types": 2}, "model.text.token_types is 2, and in every DistilBERT it is 0"),
        ({"transformer": {**text["transformer"], "epsilon": 1e-6}}, "model.text.transformer.epsilon is 1e-06"),
    ):
        with pytest.raises(ValueError, match=match):
            distilbert.config_of({"text": {**text, **changes}})


def test_what_is_not_known_is_refused(tmp_path):
    real().save_pretrained(tmp_path)
    config, tensors = config_of(tmp_path), dict(read_folder(tmp_path))
    for changes, match in (
        ({"activation": "mish"}, "activation 'mish'"),
        ({"tie_weights_": False}, "tie_weights_ False"),
        ({"dim": None}, "lacks dim"),
    ):
        with pytest.raises(ValueError, match=match):
            distilbert.spec({**config, **changes})
    with pytest.raises(ValueError, match="vocab_projector.weight is not"):
        distilbert.to_flax({**tensors, "vocab_projector.weight": np.ones((VOCAB, 32), np.float32)}, config)
    with pytest.raises(ValueError, match="1 unused: pre_classifier.bias"):
        distilbert.to_flax({**tensors, "pre_classifier.bias": np.ones(32, np.float32)}, config)
