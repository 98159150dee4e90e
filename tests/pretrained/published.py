"""Small language models of every family that is read, with numbers that follow from their tensors' names.

The real implementations of them need packages that tests do without: `golden_language_models.json` has what they say,
with the config.json that transformers 4 and 5 write. To make it anew after a change of CASES, once for each of the two
(the second keeps what the first wrote):

    pip install 'torch==2.13.0' 'transformers==4.57.6'    # then the same with transformers==5.24.0
    python -m tests.pretrained.published
"""

import copy
import json
import tempfile
import zlib
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).with_name("golden_language_models.json")

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 61}
SMALL |= {"max_position_embeddings": 64, "num_key_value_heads": 2}
GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 61, "n_positions": 64, "eos_token_id": 0}
GPT2 |= {"bos_token_id": 0}
GEMMA = {**SMALL, "head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 12}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 16}
LINEAR = {"rope_type": "linear", "factor": 8.0}
CASES = {
    "gpt2": ("GPT2", GPT2),
    "gpt2 untied": ("GPT2", {**GPT2, "tie_word_embeddings": False, "n_inner": 40, "activation_function": "relu"}),
    "llama": ("Llama", SMALL),
    "llama tied, scaled": ("Llama", {**SMALL, "tie_word_embeddings": True, "rope_scaling": LLAMA3, "rope_theta": 5e5}),
    "llama with biases": ("Llama", {**SMALL, "attention_bias": True, "mlp_bias": True, "rope_scaling": LINEAR}),
    "mistral": ("Mistral", {**SMALL, "sliding_window": None}),
    "mistral with a window": ("Mistral", {**SMALL, "sliding_window": 4}),
    "qwen2": ("Qwen2", SMALL),
    "qwen3": ("Qwen3", {**SMALL, "head_dim": 16, "rope_theta": 1e6}),
    "gemma": ("Gemma", {**SMALL, "head_dim": 16, "rms_norm_eps": 1e-5}),
    "gemma2": ("Gemma2", {**GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 9.0}),
    "gemma3": ("Gemma3Text", {**GEMMA, "sliding_window_pattern": 3, "rope_local_base_freq": 100.0}),
    "gemma3, scaled": ("Gemma3Text", {**GEMMA, "num_hidden_layers": 6, "rope_scaling": LINEAR, "rope_theta": 1e6}),
}
# The real classes have other names than their configs.
CLASSES = {"GPT2": "GPT2LMHeadModel", "Gemma3Text": "Gemma3ForCausalLM"}
TEXT = np.random.default_rng(0).integers(1, 61, (2, 20))
PROMPT, NEW = 6, 9
# Of the ids, every so many are kept of the logits.
EVERY = 8


def numbers(name, shape):
    """A tensor's numbers: the same wherever it is made."""
    drawn = np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape)
    if len(shape) > 1:  # words are small, for models not to repeat the last one
        return (drawn * (0.1 if "embed" in name or "wte" in name else 0.15)).astype(np.float32)
    return (0.2 * drawn + name.endswith("weight")).astype(np.float32)


def real(case):
    """The real model of a case."""
    import torch
    import transformers

    name, options = copy.deepcopy(CASES[case])  # a config keeps the mappings that it is given, and writes into them
    config = getattr(transformers, f"{name}Config")(**options)
    config._attn_implementation = "eager"
    model = getattr(transformers, CLASSES.get(name, f"{name}ForCausalLM"))(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.tensor(numbers(name, tuple(parameter.shape))))
    return model


def answers(model):
    """(logits of TEXT, what the model goes on with after the first tokens of it)."""
    import torch

    with torch.no_grad():
        logits_BLV = model(torch.tensor(TEXT)).logits.numpy()
        prompt = torch.tensor(TEXT[:, :PROMPT])
        made = model.generate(prompt, max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0)
    return logits_BLV, made[:, PROMPT:].numpy()


def main():
    """Writes what the installed transformers says, beside what another said before."""
    import transformers

    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    for case in CASES:
        model = real(case)
        logits_BLV, made = answers(model)
        kept = {
            "tensors": {name: list(tensor.shape) for name, tensor in model.named_parameters()},
            "logits": [[[round(float(x), 6) for x in row[::EVERY]] for row in text] for text in logits_BLV],
            "greedy": made.tolist(),
        }
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            config = json.loads((Path(folder) / "config.json").read_text())
        configs = golden.get(case, {}).get("configs", {})
        golden[case] = {"configs": {**configs, transformers.__version__.split(".")[0]: config}, **kept}
    lines = ",\n".join(f"{json.dumps(case)}: {json.dumps(golden[case])}" for case in CASES)
    GOLDEN.write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main()
