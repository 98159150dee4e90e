"""The text encoder: token ids, right-padded with 0, through one transformer that never attends to padding.

Padding is the trailing run of zeros. A 0 before the last other id is a word: CLIP's "!" has that id.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from vidlang.core.config import call
from vidlang.core.sharding import constrain
from vidlang.nn.layers import TABLE_STD, Embed, LayerNorm, table
from vidlang.nn.spec import TransformerSpec
from vidlang.nn.transformer import Stack
from vidlang.ops.dials import OFF, Dials

POOLS = ("cls", "eos", "mean")
PAD = 0


@flax.struct.dataclass
class Output:
    """Tokens as the last layer leaves them, normalised; the text's one vector in float32; what is no padding."""

    tokens_BLD: jax.Array
    pooled_BD: jax.Array
    valid_BL: jax.Array


class Model(nn.Module):
    """Bidirectional or causal text encoder.

    vocab: number of token ids. max_length: positions that are learned; shorter texts use the first of them.
    transformer: the keys of TransformerSpec. pool: the first token ("cls"), the last that is no padding ("eos"), or
    the "mean" of those that are none. table_std: how large the rows of words and positions start.

    final_norm: whether tokens are normalised after the last layer, which layers with norm "post" have done. As in BERT
    (and DistilBERT, without token types): norm_embeddings, a norm of the sum of embeddings; token_types, how many rows
    it has of which the first is added to every token, 0 for none. pad_word: the id that padding is read as, a word like
    others, so that nothing is padding any more, and the last token is that in the last place (SigLIP, whose texts have
    max_length tokens); None for padding that nothing attends to. CLIP's is causal, with pool "eos": its last token has
    the largest id.
    """

    vocab: int
    max_length: int
    transformer: Mapping[str, Any]
    pool: str
    table_std: float = TABLE_STD
    final_norm: bool = True
    norm_embeddings: bool = False
    token_types: int = 0
    pad_word: int | None = None

    inputs: ClassVar[tuple[str, ...]] = ("text_BL",)

    def setup(self) -> None:
        spec = call(TransformerSpec, self.transformer, what="text.transformer")
        if self.pool not in POOLS:
            raise ValueError(f"text.pool is {self.pool!r}; it is one of {', '.join(POOLS)}")
        if self.pool == "cls" and spec.causal:
            raise ValueError(
                "text.pool 'cls' takes the first token, which sees nothing else in a causal transformer; "
                "use pool 'eos' or 'mean', or causal=False"
            )
        if self.token_types < 0:
            raise ValueError(f"text.token_types is {self.token_types}; it is a number of rows, 0 for none")
        word = self.pad_word
        if word is not None and (isinstance(word, bool) or not isinstance(word, int) or not 0 <= word < self.vocab):
            raise ValueError(f"text.pad_word is {word!r}; it is an id below the vocabulary's {self.vocab}, or None")
        if not self.final_norm and spec.norm == "pre":
            raise ValueError(
                "text.final_norm is False, and layers with transformer.norm 'pre' leave tokens as they are; set "
                "final_norm=True, or norm='post'"
            )
        self.spec = spec
        self.words = Embed(self.vocab, spec.width, spec.compute_dtype, self.table_std)
        self.stack = Stack(spec)
        how = spec.width, spec.compute_dtype, spec.epsilon
        if self.final_norm:
            self.norm = LayerNorm(*how)
        if self.norm_embeddings:
            self.embedding_norm = LayerNorm(*how)

    @nn.compact
    def __call__(self, text_BL: jax.Array, *, train: bool, dials: Dials = OFF) -> Output:
        if text_BL.ndim != 2 or not jnp.issubdtype(text_BL.dtype, jnp.integer):
            raise ValueError(f"texts are integer ids [B, L]; found {text_BL.dtype} of shape {text_BL.shape}")
        length = text_BL.shape[1]
        if not 1 <= length <= self.max_length:
            raise ValueError(
                f"texts of {length} tokens; this model takes 1 to {self.max_length} (text.max_length): "
                "shorten the tokenizer's length or raise max_length"
            )
        valid_BL = not_padding(text_BL)
        if self.pad_word is not None:
            text_BL, valid_BL = jnp.where(valid_BL, text_BL, self.pad_word), jnp.ones_like(valid_BL)
        positions_LD = table(
            self, "positions", (self.max_length, self.spec.width), ("position", "embed"), self.table_std
        )
        dtype = self.spec.compute_dtype
        x_BLD = self.words(text_BL) + positions_LD[None, :length].astype(dtype)
        if self.token_types:
            names = ("position", "embed")
            types_TD = table(self, "token_types", (self.token_types, self.spec.width), names, self.table_std)
            x_BLD = x_BLD + types_TD[None, :1].astype(dtype)
        if self.norm_embeddings:
            x_BLD = self.embedding_norm(x_BLD)
        x_BLD = constrain(x_BLD, "batch", "tokens", "act_embed")
        rows = Dials(rows_B=dials.rows_B)  # what the dials set is about videos
        x_BLD = self.stack(x_BLD, valid_BL[:, None, None, :], dials=rows, train=train).x_BMD
        if self.final_norm:
            x_BLD = self.norm(x_BLD)
        return Output(x_BLD, constrain(_pool(x_BLD, valid_BL, self.pool), "batch", "act_embed"), valid_BL)


def not_padding(text_BL: jax.Array) -> jax.Array:
    """True up to the last id that is not 0."""
    places_L = jnp.arange(1, text_BL.shape[1] + 1)
    return places_L[None] <= jnp.max(places_L[None] * (text_BL != PAD), axis=1, keepdims=True)


def _pool(x_BLD: jax.Array, valid_BL: jax.Array, pool: str) -> jax.Array:
    """One float32 vector a text; a text of padding only gives its first token or, for "mean", zeros."""
    x_BLD = x_BLD.astype(jnp.float32)
    length = x_BLD.shape[1]
    if pool == "cls":
        return x_BLD[:, 0]
    if pool == "eos":
        last_B = jnp.max(jnp.arange(length)[None] * valid_BL, axis=1)
        return jnp.take_along_axis(x_BLD, last_B[:, None, None], axis=1)[:, 0]
    valid_BL1 = valid_BL[..., None].astype(jnp.float32)
    return (x_BLD * valid_BL1).sum(axis=1) / jnp.maximum(valid_BL1.sum(axis=1), 1.0)
