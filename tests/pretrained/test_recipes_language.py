"""The recipes' language models are those whose weights their docstrings name."""

import pytest

from configs.caption_short import LANGUAGE
from vidlang.pretrained import gpt2, llama
from vidlang.pretrained._settings import check_section

# What config.json of each says, as published.
SCALING = {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "rope_type": "llama3"}
PUBLISHED = {
    "gpt2_medium": {
        **{"model_type": "gpt2", "n_layer": 24, "n_embd": 1024, "n_head": 16, "n_positions": 1024},
        **{"vocab_size": 50_257, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5},
    },
    "smollm_360m": {
        **{"model_type": "llama", "num_hidden_layers": 32, "hidden_size": 960, "num_attention_heads": 15},
        **{"num_key_value_heads": 5, "intermediate_size": 2560, "vocab_size": 49_152, "hidden_act": "silu"},
        **{"max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 100_000, "rope_scaling": None},
        **{"tie_word_embeddings": True, "attention_bias": False},
    },
    "llama_1b": {
        **{"model_type": "llama", "num_hidden_layers": 16, "hidden_size": 2048, "num_attention_heads": 32},
        **{"num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 8192, "vocab_size": 128_256},
        **{"hidden_act": "silu", "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0},
        **{"rope_scaling": {**SCALING, "original_max_position_embeddings": 8192}, "tie_word_embeddings": True},
        **{"attention_bias": False, "mlp_bias": False},
    },
}


@pytest.mark.parametrize("name", LANGUAGE)
def test_a_recipes_section_is_that_of_its_weights(name):
    family = gpt2 if name.startswith("gpt2") else llama
    check_section(LANGUAGE[name], family.spec(PUBLISHED[name]), "the folder")
