"""How attention is laid out over space and time, where that changes which parameters a layer has.

joint: every token attends to every token. divided: time, then space, with one residual from before both (EgoVLP's and
Frozen in Time's block). timesformer: the same with a residual after each. timesformer_cls: as that was published, where
cls has no part in time, and in space is a token of each frame, of which the mean is taken. factorized: space, then time
behind a gate that starts closed (LongViViT). frames: every frame by itself, and frames are pooled after the last layer.

In all but the first and the last, tokens form a grid of times x places: a token attends to those of its place over
time, or of its time over space, and, where not said otherwise, cls attends to and is seen by all in both. What these
layouts have in common with joint attention has the same names, so its parameters load into theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlang.core.sharding import constrain
from vidlang.nn.layers import KERNEL_INIT, LayerNorm, Linear, table
from vidlang.ops.attention import attend as attend_tokens
from vidlang.ops.dials import Dials

LAYOUTS = ("joint", "divided", "timesformer", "timesformer_cls", "factorized", "frames")
# Those whose layers have an attention over time of their own, and with it need a grid of tokens.
GRIDDED = ("divided", "timesformer", "timesformer_cls", "factorized")
# That where cls is a token of each frame.
CLS_BY_FRAME = "timesformer_cls"
# How kernels of the attention over time start: (query, key and value, output). Biases are zero.
# divided, as published: all zeros, then ones. It adds nothing at the start, and its queries and keys, each the factor
# in the other's gradient, stay zero for good: what is learned is a mean over time. timesformer: only the output is
# zero, so everything can be learned.
TIME_INITS = {
    "divided": (nn.initializers.zeros, nn.initializers.ones),
    "timesformer": (KERNEL_INIT, nn.initializers.zeros),
    "timesformer_cls": (KERNEL_INIT, nn.initializers.zeros),
    "factorized": (KERNEL_INIT, KERNEL_INIT),
}
# Parameters of a layer: the attention that all layouts have, the one over time, the latter's gate, and the mlp.
SPACE, TIME, GATE, MLP = "attention", "time_attention", "time_gate", "mlp"
POOLS = ("mean", "attention")


def mix(
    layout: str, x_BND: jax.Array, attend: Callable[[str, jax.Array, str], jax.Array], gate: Callable[[], jax.Array]
) -> jax.Array:
    """The tokens after both attentions of a layer.

    `attend(name, x, along)` is norm and attention by the parameters of that name; `gate()` the number that opens time.
    """
    if layout == "factorized":
        h_BND = x_BND + attend(SPACE, x_BND, "space")
        return h_BND + jnp.tanh(gate()).astype(h_BND.dtype) * attend(TIME, h_BND, "time")
    t_BND = x_BND + attend(TIME, x_BND, "time")
    s_BND = attend(SPACE, t_BND, "space")
    return (x_BND if layout == "divided" else t_BND) + s_BND


def attend_by_frame(
    x_BND: jax.Array, attend: Callable[..., jax.Array], along: str, *, times: int, globals: int
) -> jax.Array:
    """Attention along one axis in which the `globals` tokens in front are no part of time, and of every frame in space.

    `attend(x, **options)` is that of the tokens that it gets. What the global tokens become in each frame is averaged.
    """
    cls_BGD, tokens_BND = x_BND[:, :globals], x_BND[:, globals:]
    if along == "time":
        y_BND = attend(tokens_BND, along=along, times=times, globals=0)
        return jnp.pad(y_BND, ((0, 0), (globals, 0), (0, 0)))
    batch, _, width = x_BND.shape
    frames_BTPD = tokens_BND.reshape(batch, times, -1, width)
    cls_BTGD = jnp.broadcast_to(cls_BGD[:, None], (batch, times, globals, width))
    rows_RND = jnp.concatenate([cls_BTGD, frames_BTPD], axis=2).reshape(batch * times, -1, width)
    y_BTND = attend(rows_RND).reshape(batch, times, -1, width)
    cls_BGD = y_BTND[:, :, :globals].astype(jnp.float32).mean(axis=1).astype(y_BTND.dtype)
    return jnp.concatenate([cls_BGD, y_BTND[:, :, globals:].reshape(batch, -1, width)], axis=1)


def check_dials(layout: str, dials: Dials) -> None:
    """ValueError for a dial that leaves no shape that the layout could work on."""
    if layout == "joint":
        return
    needs = "every frame by itself" if layout == "frames" else "along the rows and columns of a whole grid of tokens"
    reason = f"the layout {layout!r} attends {needs}"
    if dials.edges is not None:
        raise ValueError(f"{reason}, and the dial edges draws a graph over all; take 'joint', or no edges")
    if dials.keep:
        raise ValueError(
            f"{reason}, and the dial keep leaves frames of unequal size; take the layout 'joint', or no keep"
        )
    kinds = ("tube", "cell") if layout == "frames" else ("tube",)
    if dials.mask and dials.mask_kind not in kinds:
        raise ValueError(
            f"{reason}, which a mask of kind {dials.mask_kind!r} would tear holes into; set the dial mask_kind to "
            f"{' or '.join(map(repr, kinds))}, or take the layout 'joint'"
        )


def factorize_params(params: Any) -> Any:
    """Parameters of joint or spatial layers as those of factorized ones: time starts as a copy of space, gates closed.

    Works on a stack, a model or anything that holds some; shapes become shapes. What is factorized already stays.
    """
    if not isinstance(params, Mapping):
        return params
    found = {name: factorize_params(value) for name, value in params.items()}
    norm = f"{SPACE}_norm"
    if SPACE in found and norm in found and TIME not in found:
        like = found[norm]["scale"]
        shape = like.shape[:-1]  # one number a layer
        is_shape = isinstance(like, jax.ShapeDtypeStruct)
        gate = jax.ShapeDtypeStruct(shape, like.dtype) if is_shape else jnp.zeros(shape, like.dtype)
        found |= {TIME: found[SPACE], f"{TIME}_norm": found[norm], GATE: gate}
        if (scale := f"{SPACE}_scale") in found:
            found[f"{TIME}_scale"] = found[scale]
    return found


class AttentionPool(nn.Module):
    """One vector from several: what a learned query attends to among them, normalised. Their order does not matter.

    As everywhere, narrower inputs meet the first channels and heads of the parameters, and inputs that are zero beyond
    `valid` channels give an output that is.
    """

    width: int
    heads: int
    dtype: Any
    groups: int = 1

    @nn.compact
    def __call__(self, x_BTD: jax.Array, *, valid: jax.Array | None = None) -> jax.Array:
        y_BD = attend_latent(self, x_BTD, self.width, self.heads, self.dtype, self.groups, valid)
        return LayerNorm(self.width, jnp.float32, name="norm")(y_BD, valid=valid)


def attend_latent(
    module: nn.Module, x_BND: jax.Array, width: int, heads: int, dtype: Any, groups: int, valid: jax.Array | None
) -> jax.Array:
    """What a learned query of `module` attends to among tokens; called while it is set up or run."""
    size, given = width // heads, x_BND.shape[-1]
    whole, split = (heads, size), (given // size, size)

    def project(name: str, x: jax.Array) -> jax.Array:
        names = ("embed", "heads", "head_dim")
        return Linear((width,), whole, names, dtype, groups=groups, name=name)(x, take=split)

    latent_D = constrain(table(module, "latent", (width,), ("embed",)), None)[:given]
    if valid is not None:
        latent_D = jnp.where(jnp.arange(given) < valid, latent_D, 0.0)
    q_11AK = project("query", latent_D[None, None])
    q_B1AK = jnp.broadcast_to(q_11AK, (x_BND.shape[0], *q_11AK.shape[1:]))
    o_B1AK = attend_tokens(q_B1AK, project("key", x_BND), project("value", x_BND))
    if valid is not None:
        # Heads that a layer of that width lacks; of each group the last ones.
        head_A = jnp.arange(split[0]) % (split[0] // groups)
        o_B1AK = jnp.where((head_A < valid // size // groups)[None, None, :, None], o_B1AK, 0)
    out = Linear(whole, (width,), ("heads", "head_dim", "embed"), dtype, groups=groups, name="out")
    y_BD = out(o_B1AK, take=(given,))[:, 0]
    return y_BD if valid is None else jnp.where((jnp.arange(given) < valid)[None], y_BD, 0.0)
