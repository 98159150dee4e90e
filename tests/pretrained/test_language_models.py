"""Language models as the real implementations have them: small ones of every family, with the same numbers in both."""

import json
from importlib.util import find_spec

import flax.linen as nn
import jax
import ml_dtypes
import numpy as np
import pytest

from tests.pretrained.published import CASES, EVERY, GOLDEN, NEW, PROMPT, TEXT, answers, numbers, real
from vidlang.core.tree import flatten_paths
from vidlang.models.language import Model
from vidlang.nn.generation import Decoding
from vidlang.pretrained import gpt2, llama
from vidlang.pretrained._safetensors import read_folder, write_file

ANSWERS = json.loads(GOLDEN.read_text())


def family(case):
    return gpt2 if CASES[case][0] == "GPT2" else llama


def published(case):
    """The tensors of a case by their names."""
    return {name: numbers(name, tuple(shape)) for name, shape in ANSWERS[case]["tensors"].items()}


def config_of(case, version="5"):
    return ANSWERS[case]["configs"][version]


def logits(section, params):
    model = Model(language={**section, "dtype": "float32"})
    return np.asarray(model.apply({"params": {"language": params}}, TEXT, train=False).caption_BLV)


def greedy(section, params):
    model, length_B = Model(language={**section, "dtype": "float32"}), np.full(len(TEXT), PROMPT)

    def generate(params, prompt_BL, length_B):
        settings = Decoding(max_new=NEW)
        return model.apply({"params": {"language": params}}, prompt_BL, length_B, settings=settings, method="generate")

    return np.asarray(jax.jit(generate)(params, TEXT[:, :PROMPT], length_B).tokens_BSN[:, 0])


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_real_model(case):
    config = config_of(case)
    found = logits(family(case).spec(config), family(case).to_flax(published(case), config))
    np.testing.assert_allclose(found[..., ::EVERY], ANSWERS[case]["logits"], atol=2e-5)


@pytest.mark.parametrize("case", ["gpt2", "llama tied, scaled", "mistral with a window", "gemma3, scaled"])
def test_greedy_texts_are_those_of_the_real_model(case):
    config = config_of(case)
    found = greedy(family(case).spec(config), family(case).to_flax(published(case), config))
    np.testing.assert_array_equal(found, ANSWERS[case]["greedy"])


@pytest.mark.parametrize("case", CASES)
def test_both_forms_of_config_json_mean_the_same(case):
    assert family(case).spec(config_of(case, "4")) == family(case).spec(config_of(case, "5"))


@pytest.mark.parametrize("case", CASES)
def test_out_and_in_again_is_bitwise_the_same(case):
    tensors, config = published(case), config_of(case)
    back = family(case).from_flax(family(case).to_flax(tensors, config), config)
    assert set(back) == set(tensors)
    for name, tensor in back.items():
        assert tensor.dtype == tensors[name].dtype
        np.testing.assert_array_equal(tensor, tensors[name])


@pytest.mark.parametrize("case", ["gpt2", "gemma2"])
def test_a_folder_is_read_as_section_shapes_and_parameters(case, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config_of(case)))
    write_file(tmp_path / "model.safetensors", published(case))
    assert family(case).section(tmp_path) == family(case).spec(config_of(case))
    params, shapes = family(case).load(tmp_path), family(case).shapes(tmp_path)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)
    expected = family(case).to_flax(published(case), config_of(case))
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    variables = Model(language=family(case).section(tmp_path)).init(jax.random.key(0), TEXT, train=False)
    made = flatten_paths(nn.unbox(variables["params"]["language"]))
    assert {name: x.shape for name, x in made.items()} == {name: x.shape for name, x in flatten_paths(params).items()}


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_numbers_of_few_bits_become_float32_as_they_are(dtype, tmp_path):
    tensors, config = {name: x.astype(dtype) for name, x in published("llama").items()}, config_of("llama")
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_file(tmp_path / "model.safetensors", tensors)
    expected = llama.to_flax({name: x.astype(np.float32) for name, x in tensors.items()}, config)
    jax.tree.map(np.testing.assert_array_equal, llama.load(tmp_path), expected)


def test_tensors_of_the_bare_model_and_old_leftovers_are_read():
    tensors, config = published("gpt2"), config_of("gpt2")
    bare = {name.removeprefix("transformer."): x for name, x in tensors.items()}
    bare |= {"h.0.attn.bias": np.ones((1, 1, 64, 64), bool), "h.2.attn.masked_bias": np.array(-1e4, np.float32)}
    bare |= {"lm_head.weight": bare["wte.weight"]}
    params = gpt2.to_flax(bare, config)
    jax.tree.map(np.testing.assert_array_equal, params, gpt2.to_flax(tensors, config))
    with pytest.raises(ValueError, match=r"1 unused: h\.0\.attn\.bios"):
        gpt2.to_flax({**bare, "h.0.attn.bios": np.ones(1)}, config)
    with pytest.raises(ValueError, match=r"both transformer\.ln_f\.bias and ln_f\.bias"):
        gpt2.to_flax({**tensors, "ln_f.bias": bare["ln_f.bias"]}, config)
    with pytest.raises(ValueError, match=r"1 missing: h\.1\.mlp\.c_fc\.bias$"):
        gpt2.to_flax({name: x for name, x in bare.items() if name != "h.1.mlp.c_fc.bias"}, config)
    with pytest.raises(ValueError, match="3 misshapen: .*c_attn.q"):
        gpt2.to_flax({**bare, "h.1.attn.c_attn.weight": np.zeros((32, 90), np.float32)}, config)


def test_what_is_not_known_is_refused():
    def refused(match, case, family=llama, **changes):
        with pytest.raises(ValueError, match=match) as caught:
            family.to_flax({}, {**config_of(case), **changes})
        assert "\n" not in str(caught.value)

    refused("rope_type 'yarn'; it is one of linear, llama3", "llama", rope_parameters={"rope_type": "yarn"})
    refused("partial_rotary_factor", "llama", rope_parameters={"partial_rotary_factor": 0.5})
    refused("activation 'mish' is not known", "llama", hidden_act="mish")
    refused("config.json lacks vocab_size", "llama", vocab_size=None)
    refused("use_sliding_window false", "qwen2", use_sliding_window=True)
    refused("use_sliding_window false", "qwen3", use_sliding_window=True)
    refused("use_bidirectional_attention", "gemma3", use_bidirectional_attention=True)
    layer_types = ["full_attention", "sliding_attention", "sliding_attention"]
    refused("layer_types full_attention, sliding", "gemma3", layer_types=layer_types)
    refused("stretch positions", "gemma3", rope_parameters={"sliding_attention": {"rope_type": "linear", "factor": 2}})
    refused("scale_attn_weights", "gpt2", gpt2, scale_attn_weights=False)
    refused("scale_attn_by_inverse", "gpt2", gpt2, scale_attn_by_inverse_layer_idx=True)
    refused("config.json lacks n_embd, n_layer|lacks n_layer, n_embd", "gpt2", gpt2, n_embd=None, n_layer=None)


def test_gemma_of_old_files_says_gelu_and_means_the_approximation():
    old = {**config_of("gemma"), "hidden_act": "gelu", "hidden_activation": None}
    assert llama.spec(old)["activation"] == "gelu_tanh"
    assert llama.spec({**old, "model_type": "llama"})["activation"] == "gelu"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("transformers") is None, reason="the real models are in the extra 'test'")
@pytest.mark.parametrize("case", CASES)
def test_the_installed_real_model_agrees(case, tmp_path):
    model = real(case)
    model.save_pretrained(tmp_path)
    expected, texts = answers(model)
    section, params = family(case).section(tmp_path), family(case).load(tmp_path)
    np.testing.assert_allclose(logits(section, params), expected, atol=2e-5)
    np.testing.assert_array_equal(greedy(section, params), texts)
    back = family(case).from_flax(params, json.loads((tmp_path / "config.json").read_text()))
    saved = read_folder(tmp_path)
    for name in saved:
        np.testing.assert_array_equal(back[name], saved[name])
