"""BERT as transformers has it, with random numbers; read, written, and split over a text tower and a fusion encoder."""

import flax.linen as nn
import jax
import numpy as np
import pytest
import torch
import transformers

from tests.pretrained.text_towers import (
    LENGTH,
    TEXT,
    VALID,
    VOCAB,
    assert_same_trees,
    config_of,
    drawn,
    guesses,
    real_tokens,
    tower,
)
from vidlang.core.tree import flatten_paths
from vidlang.models import fusion
from vidlang.nn.cross_attention import Fusion, fusion_spec
from vidlang.nn.spec import TransformerSpec
from vidlang.pretrained import bert
from vidlang.pretrained._blocks import blocks
from vidlang.pretrained._names import to_params
from vidlang.pretrained._safetensors import read_folder

SMALL = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
SMALL |= {"intermediate_size": 48, "max_position_embeddings": 16}


def real(name="BertForPreTraining", **changes):
    config = transformers.BertConfig(**{**SMALL, **changes})
    config._attn_implementation = "eager"
    return drawn(getattr(transformers, name)(config))


@pytest.fixture
def folder(tmp_path):
    model = real()
    model.save_pretrained(tmp_path)
    return model, tmp_path


def test_tokens_and_words_are_those_of_the_real_model(folder):
    model, path = folder
    section, params = bert.section(path), bert.load(path)
    expected = real_tokens(model, output_hidden_states=True)
    found = tower(section)(params)
    last_BLD = expected.hidden_states[-1].numpy()
    np.testing.assert_allclose(found.tokens_BLD, last_BLD, atol=2e-5)
    np.testing.assert_allclose(found.pooled_BD, last_BLD[:, 0], atol=2e-5)
    np.testing.assert_array_equal(found.valid_BL, VALID)
    words = guesses(section, params, found.tokens_BLD)
    np.testing.assert_allclose(words, expected.prediction_logits.numpy(), atol=2e-5)


@pytest.mark.parametrize("activation", ["gelu_new", "relu", "silu"])
def test_other_settings_are_those_of_the_real_model(activation, tmp_path):
    model = real("BertModel", hidden_act=activation, layer_norm_eps=1e-2, type_vocab_size=3)
    model.save_pretrained(tmp_path)
    found = tower(bert.section(tmp_path))(bert.load(tmp_path))
    np.testing.assert_allclose(found.tokens_BLD, real_tokens(model).last_hidden_state.numpy(), atol=2e-5)


def test_shapes_are_those_of_the_parameters_and_of_the_model(folder):
    _, path = folder
    params, shapes, section = bert.load(path), bert.shapes(path), bert.section(path)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)
    whole = {**section, "name": "dual_encoder"}
    assert set(flatten_paths(params)) - set(flatten_paths(bert.place(params, whole))) == {
        f"word_head/{name}" for name in ("bias", "dense/bias", "dense/kernel", "norm/bias", "norm/scale")
    }


@pytest.mark.parametrize("name", ["BertModel", "BertForMaskedLM"])
def test_out_and_in_again_is_bitwise_the_same(name, tmp_path):
    real(name).save_pretrained(tmp_path)
    params, config = bert.load(tmp_path), config_of(tmp_path)
    assert ("word_head" in params) == (name == "BertForMaskedLM")
    assert bert.architecture(params) == name
    tensors, saved = bert.from_flax(params, config), read_folder(tmp_path)
    assert {key for key in saved if key not in tensors} <= {"pooler.dense.weight", "pooler.dense.bias"}
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, saved[key])
    assert_same_trees(bert.to_flax(tensors, config), params)


def test_old_names_of_norms_and_leftovers_are_read(folder):
    _, path = folder
    config, tensors = config_of(path), dict(read_folder(path))
    old = {}
    for name, tensor in tensors.items():
        old[name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")] = tensor
    assert set(old) != set(tensors)
    old |= {"bert.embeddings.position_ids": np.arange(16)[None]}
    old |= {"cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"]}
    assert_same_trees(bert.to_flax(old, config), bert.to_flax(tensors, config))
    with pytest.raises(ValueError, match=r"1 unused: encoder\.layer\.0\.adapter"):
        bert.to_flax({**old, "bert.encoder.layer.0.adapter": np.ones(2, np.float32)}, config)
    with pytest.raises(ValueError, match=r"1 missing: encoder\.layer\.2\.output\.dense\.bias"):
        bert.to_flax({k: x for k, x in old.items() if not k.endswith("layer.2.output.dense.bias")}, config)
    with pytest.raises(ValueError, match=r"both .*LayerNorm\.(gamma|weight) and .*LayerNorm\.(gamma|weight)"):
        bert.to_flax({**old, "bert.embeddings.LayerNorm.weight": np.ones(32, np.float32)}, config)
    with pytest.raises(ValueError, match="is not embeddings.word_embeddings.weight"):
        bert.to_flax({**old, "cls.predictions.decoder.weight": np.ones((VOCAB, 32), np.float32)}, config)


def test_what_is_not_known_is_refused(folder):
    config = config_of(folder[1])
    for changes, match in (
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
        ({"is_decoder": True}, "is_decoder True"),
        ({"pad_token_id": 1}, "pad_token_id 1"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings False"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"hidden_act": "mish"}, "activation 'mish'"),
        ({"hidden_size": None}, "lacks hidden_size"),
    ):
        with pytest.raises(ValueError, match=match):
            bert.spec({**config, **changes})


def test_a_section_and_its_config_json_mean_the_same(folder):
    section = bert.section(folder[1])
    assert bert.spec(bert.config_of(section)) == section
    real_config = transformers.BertConfig(**bert.config_of(section))
    assert bert.spec(real_config.to_dict()) == section
    text = section["text"]
    for changes, match in (
        ({"pool": "mean"}, "model.text.pool is 'mean', and in every BERT it is 'cls'"),
        ({"token_types": 0}, "token_types is 0"),
        ({"transformer": {**text["transformer"], "causal": True}}, "model.text.transformer.causal is True"),
        ({"transformer": {**text["transformer"], "norm": "pre"}, "final_norm": True}, "transformer.norm is 'pre'"),
        ({"transformer": {**text["transformer"], "lora_rank": 2}}, "lora_rank is 2"),
    ):
        with pytest.raises(ValueError, match=match):
            bert.config_of({"text": {**text, **changes}})
    fast = {"text": {**text, "transformer": {**text["transformer"], "dtype": "float32", "remat": "full"}}}
    assert bert.config_of(fast) == bert.config_of(section)


def fused_model(section, layers, fused):
    """A fusion model's section with the layers split."""
    transformer = {**section["text"]["transformer"], "layers": layers, "dtype": "float32"}
    return {
        "name": "fusion",
        "video": {
            "transformer": {"layers": 1, "width": 32, "heads": 2, "mlp": 32, "dtype": "float32"},
            "tubelet": (1, 16, 16),
        },
        "text": {**section["text"], "transformer": transformer},
        "embed": 8,
        "temperature": {"init": 0.07, "max_scale": 100.0, "learnable": True},
        "fusion": {"layers": fused},
        "words": {"rate": 0.5, "mask_id": 3},
    }


def test_layers_are_split_over_text_tower_and_fusion_encoder(folder):
    model, path = folder
    section = bert.section(path)
    whole = fused_model(section, 2, 1)
    params = bert.place(bert.load(path), whole)
    settings = {name: value for name, value in whole.items() if name != "name"}
    keys, video = {"params": jax.random.key(0), "words": jax.random.key(1)}, np.zeros((1, 1, 16, 16, 3), np.uint8)
    module = fusion.Model(**settings)
    made = jax.eval_shape(lambda: nn.unbox(module.init(keys, video, TEXT[:1], train=False)["params"]))
    known, given = flatten_paths(made), flatten_paths(params)
    assert {name: x.shape for name, x in given.items()} == {name: known[name].shape for name in given}
    shapes = bert.place(bert.shapes(path), whole)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)
    rest = {name.split("/")[0] for name in known if name not in given}
    assert rest == {"video_encoder", "fusion_encoder", "log_scale", "match_head", "text_projection", "video_projection"}
    assert all("cross_attention" in n for n in known if n not in given and n.startswith("fusion_encoder"))
    read = tower(whole)(params)
    expected = real_tokens(model, output_hidden_states=True)
    np.testing.assert_allclose(read.tokens_BLD, expected.hidden_states[2].numpy(), atol=2e-5)


def test_a_layer_of_the_fusion_encoder_is_the_real_one_with_its_cross_attention(folder):
    model, path = folder
    section = bert.section(path)
    whole = fused_model(section, 2, 1)
    params = bert.place(bert.load(path), whole)
    config = transformers.BertConfig(**{**SMALL, "is_decoder": True, "add_cross_attention": True})
    config._attn_implementation = "eager"
    real_layer = drawn(transformers.models.bert.modeling_bert.BertLayer(config), seed=7)
    real_layer.load_state_dict(model.bert.encoder.layer[2].state_dict(), strict=False)
    cross = {"query": "self.query", "key": "self.key", "value": "self.value", "out": "output.dense"}
    names = {f"cross_attention/{ours}": f"{{}}.crossattention.{theirs}" for ours, theirs in cross.items()}
    names["cross_attention_norm"] = "{}.crossattention.output.LayerNorm"
    spec = fusion_spec(TransformerSpec(**whole["text"]["transformer"]), layers=1)
    tensors = {f"0.{k}": x.numpy() for k, x in real_layer.state_dict().items() if k.startswith("crossattention")}
    new = to_params(tensors, blocks("layers", names, spec, read_width=32))
    layers = {**params["fusion_encoder"]["layers"], **new["layers"]}
    draw = np.random.default_rng(3)
    words_BLD, tokens_BND = (draw.normal(size=(3, n, 32)).astype(np.float32) for n in (LENGTH, 5))
    with torch.no_grad():
        mask = torch.tensor(np.where(VALID, 0, -1e30)[:, None, None], dtype=torch.float32)
        expected = real_layer(torch.tensor(words_BLD), mask, encoder_hidden_states=torch.tensor(tokens_BND))[0]
    found = Fusion(spec, 32).apply({"params": {"layers": layers}}, words_BLD, VALID, tokens_BND)
    np.testing.assert_allclose(found.x_BLD, expected.numpy(), atol=2e-5)


def test_layers_that_do_not_add_up_are_refused(folder):
    params, section = bert.load(folder[1]), bert.section(folder[1])
    with pytest.raises(ValueError, match="has 3 layers, and model.text.transformer.layers is 2; give 3 in all"):
        bert.place(params, {**fused_model(section, 2, 1), "name": "dual_encoder", "fusion": {"layers": 0}})
    with pytest.raises(ValueError, match=r"layers is 2 and model\.fusion\.layers 2; give 3 in all"):
        bert.place(params, fused_model(section, 2, 2))
    with pytest.raises(ValueError, match="a section text, which this stage's model lacks"):
        bert.place(params, {"name": "classifier", "video": {}})
