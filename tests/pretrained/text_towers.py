"""What tests of text towers share: a real model with random numbers, texts with padding, what is computed here."""

import json

import jax
import numpy as np
import torch

from vidlang.models import fusion, text
from vidlang.nn.spec import TransformerSpec

VOCAB, LENGTH = 61, 12
# Right-padded, one with a 0 in its midst, which is a word.
TEXT = np.random.default_rng(0).integers(1, VOCAB, (3, LENGTH))
TEXT[0, 7:] = 0
TEXT[1, 4] = 0
TEXT[2, 1:] = 0
VALID = np.arange(LENGTH) < np.array([7, LENGTH, 1])[:, None]


def drawn(model, seed=0):
    """The model with random numbers everywhere: nothing stays at 0 or 1, padding's row neither."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter.add_(1)
    return model.eval()


def real_tokens(model, **options):
    with torch.no_grad():
        return model(torch.tensor(TEXT), attention_mask=torch.tensor(VALID).long(), **options)


def tower(section, text_BL=TEXT):
    """The tower of a section, in float32, as a function of its parameters."""
    settings = {**section["text"], "transformer": {**section["text"]["transformer"], "dtype": "float32"}}
    model = text.Model(**settings)
    return jax.jit(lambda params: model.apply({"params": params["text_encoder"]}, text_BL, train=False))


def guesses(section, params, tokens_BLD):
    """The word head's logits."""
    head = fusion.WordHead(TransformerSpec(**{**section["text"]["transformer"], "dtype": "float32"}))
    return head.apply({"params": params["word_head"]}, tokens_BLD, params["text_encoder"]["words"]["table"])


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def assert_same_trees(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)
