"""Language models as the real implementation has them: small random ones, saved by it and read here."""

import json

import jax
import numpy as np
import pytest

from vidlang.models.language import Model
from vidlang.nn.generation import Decoding
from vidlang.pretrained import gpt2, llama
from vidlang.pretrained._safetensors import read_folder

torch = pytest.importorskip("torch", reason="the real implementations are in the extra 'parity'")
transformers = pytest.importorskip("transformers", reason="the real implementations are in the extra 'parity'")

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 61}
SMALL |= {"max_position_embeddings": 64, "num_key_value_heads": 2}
GEMMA = {**SMALL, "head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 12}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 16}
CASES = {
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 61, "n_positions": 64}),
    "llama": ("Llama", SMALL),
    "llama tied, scaled": ("Llama", {**SMALL, "tie_word_embeddings": True, "rope_scaling": LLAMA3, "rope_theta": 5e5}),
    "llama with biases": ("Llama", {**SMALL, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", {**SMALL, "sliding_window": None}),
    "qwen2": ("Qwen2", SMALL),
    "qwen3": ("Qwen3", {**SMALL, "head_dim": 16}),
    "gemma": ("Gemma", {**SMALL, "head_dim": 16}),
    "gemma2": ("Gemma2", {**GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}),
    "gemma3": ("Gemma3Text", {**GEMMA, "sliding_window_pattern": 3, "rope_local_base_freq": 100.0}),
}
# The real classes have other names than their configs.
CLASSES = {"GPT2": "GPT2LMHeadModel", "Gemma3Text": "Gemma3ForCausalLM"}


@pytest.fixture(scope="module", params=list(CASES))
def pair(request, tmp_path_factory):
    """(the real model, its folder, the family here)."""
    name, options = CASES[request.param]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**options)
    config._attn_implementation = "eager"
    real = getattr(transformers, CLASSES.get(name, f"{name}ForCausalLM"))(config).eval()
    with torch.no_grad():  # norms and biases away from what they start as
        for parameter in real.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("weights") / name
    real.save_pretrained(folder)
    return real, folder, gpt2 if name == "GPT2" else llama


def ours(pair):
    _, folder, family = pair
    config = json.loads((folder / "config.json").read_text())
    model = Model(language={**family.spec(config), "dtype": "float32"})
    return model, {"params": {"language": family.load(folder)}}


def test_logits_are_those_of_the_real_model(pair):
    text = np.random.default_rng(0).integers(1, 61, (2, 20))
    with torch.no_grad():
        expected = pair[0](torch.tensor(text)).logits.numpy()
    model, variables = ours(pair)
    found = model.apply(variables, text, train=False).caption_BLV
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_greedy_texts_are_those_of_the_real_model(pair):
    prompt = np.random.default_rng(1).integers(1, 61, (2, 6))
    with torch.no_grad():
        expected = pair[0].generate(
            torch.tensor(prompt), max_new_tokens=9, do_sample=False, eos_token_id=None, pad_token_id=0
        )[:, 6:]
    model, variables = ours(pair)
    made = jax.jit(
        lambda v, p, n: model.apply(v, p, n, settings=Decoding(max_new=9), method="generate"),
    )(variables, prompt, np.array([6, 6]))
    np.testing.assert_array_equal(made.tokens_BSN[:, 0], expected.numpy())


def test_out_and_in_again_is_bitwise_the_same(pair):
    _, folder, family = pair
    config = json.loads((folder / "config.json").read_text())
    published = {name: np.asarray(x) for name, x in read_folder(folder).items()}
    back = family.from_flax(family.to_flax(published, config), config)
    assert set(back) == set(published) - {"lm_head.weight"} | ({"lm_head.weight"} & set(back))
    for name, tensor in back.items():
        np.testing.assert_array_equal(tensor, published[name])
