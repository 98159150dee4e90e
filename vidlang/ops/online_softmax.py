"""Attention to one piece of the keys after another: a running softmax, and a backward pass that computes it again.

What the forward pass leaves for the backward pass is its inputs, its output and one number a query, so memory does not
grow with the number of pieces. Dense attention takes its pieces from the row of keys, sparse attention a slot of the
graph at a time; both say with a function what one piece holds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Finite, so that differences of it are no NaN.
LOWEST = -1e30


class Piece(NamedTuple):
    """Some keys of each query; leading axes are those of the queries q_xNK, written x here.

    bias_xNS is added to the logits, mask_xNS is True where a query may attend; both float and bool arrays broadcast.
    """

    k_xSK: jax.Array
    v_xSK: jax.Array
    bias_xNS: jax.Array | None = None
    mask_xNS: jax.Array | None = None


class Source(NamedTuple):
    """The arrays that pieces are made from, whole; a PieceOf gets them with one piece's part of `own` and `data`.

    shared: every piece reads these, and gradients are summed into them. own: a first axis counts pieces, each of which
    has a part of its own, with gradients. data: indices and masks, counted the same way; no gradients. fixed: the same
    for all pieces, no gradients. One of `own` and `data` must hold an array, for it tells how many pieces there are.
    """

    shared: Any = None
    own: Any = None
    data: Any = None
    fixed: Any = None


PieceOf = Callable[[Source], Piece]


class Running(NamedTuple):
    """The softmax so far: largest logit, sum of weights relative to it, and weighted sum of values."""

    largest_xN: jax.Array
    sum_xN: jax.Array
    o_xNK: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def online_attention(pieces: tuple[PieceOf, ...], q_xNK: jax.Array, sources: tuple[Source, ...]) -> jax.Array:
    """One softmax over all pieces of all sources, in float32; returns q's dtype, zeros for a query without keys."""
    return _forward(pieces, q_xNK, sources)[0]


def _forward(
    pieces: tuple[PieceOf, ...], q_xNK: jax.Array, sources: tuple[Source, ...]
) -> tuple[jax.Array, tuple[Any, ...]]:
    running = start(q_xNK)
    for piece_of, source in zip(pieces, sources, strict=True):
        running = add_pieces(piece_of, q_xNK, source, running)
    o_xNK, total_xN = finish(running, q_xNK.dtype)
    return o_xNK, (q_xNK, sources, o_xNK, total_xN)


def _backward(pieces: tuple[PieceOf, ...], kept: tuple[Any, ...], do_xNK: jax.Array) -> tuple[jax.Array, Any]:
    q_xNK, sources, o_xNK, total_xN = kept
    given = Given(q_xNK, do_xNK, total_xN, delta(o_xNK, do_xNK))
    dq_xNK, d_sources = jnp.zeros(q_xNK.shape, jnp.float32), []
    for piece_of, source in zip(pieces, sources, strict=True):
        dq_xNK, d_source = pull_pieces(piece_of, given, source, dq_xNK)
        d_sources.append(d_source)
    return dq_xNK.astype(q_xNK.dtype), tuple(d_sources)


def start(q_xNK: jax.Array) -> Running:
    """The softmax of these queries over no keys."""
    shape_xN = q_xNK.shape[:-1]
    return Running(jnp.full(shape_xN, LOWEST), jnp.zeros(shape_xN), jnp.zeros(q_xNK.shape, jnp.float32))


def add_pieces(piece_of: PieceOf, q_xNK: jax.Array, source: Source, running: Running) -> Running:
    """The softmax over all pieces of a source too."""

    def add(running: Running, part: tuple[Any, Any]) -> tuple[Running, None]:
        piece = piece_of(source._replace(own=part[0], data=part[1]))
        logits_xNS = _logits(q_xNK, piece)
        largest_xN = jnp.maximum(running.largest_xN, logits_xNS.max(axis=-1))
        weights_xNS = _weights(logits_xNS, largest_xN, piece.mask_xNS)
        shrink_xN = jnp.exp(running.largest_xN - largest_xN)
        o_xNK = _matmul("...NS,...SK->...NK", weights_xNS.astype(q_xNK.dtype), piece.v_xSK)
        return Running(
            largest_xN,
            running.sum_xN * shrink_xN + weights_xNS.sum(axis=-1),
            running.o_xNK * shrink_xN[..., None] + o_xNK,
        ), None

    return jax.lax.scan(add, running, (source.own, source.data))[0]


def finish(running: Running, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """(the output, the logarithm of each query's sum of exponentials, which the backward pass needs)."""
    some_xN = running.sum_xN > 0
    sum_xN = jnp.where(some_xN, running.sum_xN, 1.0)
    # Without keys every weight of the backward pass is exp(LOWEST - 0) = 0.
    total_xN = jnp.where(some_xN, running.largest_xN + jnp.log(sum_xN), 0.0)
    return (running.o_xNK / sum_xN[..., None]).astype(dtype), total_xN


class Given(NamedTuple):
    """What the backward pass knows of its queries: they, their output's gradient, `finish`'s total, and `delta`."""

    q_xNK: jax.Array
    do_xNK: jax.Array
    total_xN: jax.Array
    delta_xN: jax.Array


def delta(o_xNK: jax.Array, do_xNK: jax.Array) -> jax.Array:
    """What each query's weights have in common in their gradients."""
    return (do_xNK.astype(jnp.float32) * o_xNK).sum(axis=-1)


def pull_pieces(piece_of: PieceOf, given: Given, source: Source, dq_xNK: jax.Array) -> tuple[jax.Array, Source]:
    """(dq with what all pieces of a source add to it, in float32; gradients of the source's `shared` and `own`)."""
    q_xNK, do_xNK, total_xN, delta_xN = given
    scale, dtype = q_xNK.shape[-1] ** -0.5, q_xNK.dtype
    shared = jax.tree.map(lambda x: x.astype(jnp.float32), source.shared)
    wide = source._replace(shared=shared)

    def add(sums: tuple[Any, Any], part: tuple[Any, Any]) -> tuple[Any, Any]:
        dq_xNK, d_shared = sums
        parts, mask_xNS, pull = _differentiable(piece_of, wide._replace(own=part[0], data=part[1]))
        piece = Piece(parts[0].astype(dtype), parts[1].astype(dtype), parts[2], mask_xNS)
        weights_xNS = _weights(_logits(q_xNK, piece), total_xN, mask_xNS)
        dv_xSK = _matmul("...NS,...NK->...SK", weights_xNS.astype(dtype), do_xNK)
        dlogits_xNS = weights_xNS * (_matmul("...NK,...SK->...NS", do_xNK, piece.v_xSK) - delta_xN[..., None])
        scaled_xNS = (dlogits_xNS * scale).astype(dtype)
        dk_xSK = _matmul("...NS,...NK->...SK", scaled_xNS, q_xNK)
        dq_xNK = dq_xNK + _matmul("...NS,...SK->...NK", scaled_xNS, piece.k_xSK)
        dbias_xNS = None if piece.bias_xNS is None else _sum_to(dlogits_xNS, piece.bias_xNS.shape)
        d_here, d_own = pull((_sum_to(dk_xSK, parts[0].shape), _sum_to(dv_xSK, parts[1].shape), dbias_xNS))
        d_own = jax.tree.map(lambda d, x: d.astype(x.dtype), d_own, part[0])
        return (dq_xNK, jax.tree.map(jnp.add, d_shared, d_here)), d_own

    zeros = jax.tree.map(jnp.zeros_like, shared)
    (dq_xNK, d_shared), d_own = jax.lax.scan(add, (dq_xNK, zeros), (source.own, source.data))
    return dq_xNK, Source(jax.tree.map(lambda d, x: d.astype(x.dtype), d_shared, source.shared), d_own)


online_attention.defvjp(_forward, _backward)


def _differentiable(piece_of: PieceOf, source: Source) -> tuple[Any, Any, Any]:
    """(k, v and bias of a piece in float32, its mask, and the function from their gradients to those of its inputs).

    The inputs are float32 here, so that gradients of keys that several queries share are summed in it.
    """

    def parts(shared: Any, own: Any) -> tuple[Any, Any]:
        piece = piece_of(source._replace(shared=shared, own=own))
        return (piece.k_xSK, piece.v_xSK, piece.bias_xNS), piece.mask_xNS

    own = jax.tree.map(lambda x: x.astype(jnp.float32), source.own)
    found, pull, mask_xNS = jax.vjp(parts, source.shared, own, has_aux=True)
    return found, mask_xNS, pull


def _logits(q_xNK: jax.Array, piece: Piece) -> jax.Array:
    logits_xNS = _matmul("...NK,...SK->...NS", q_xNK, piece.k_xSK) * q_xNK.shape[-1] ** -0.5
    if piece.bias_xNS is not None:
        logits_xNS = logits_xNS + piece.bias_xNS.astype(jnp.float32)
    return logits_xNS if piece.mask_xNS is None else jnp.where(piece.mask_xNS, logits_xNS, LOWEST)


def _weights(logits_xNS: jax.Array, reference_xN: jax.Array, mask_xNS: jax.Array | None) -> jax.Array:
    """exp(logits - reference), and exactly 0 where masked, even in rows where nothing else is there."""
    weights_xNS = jnp.exp(logits_xNS - reference_xN[..., None])
    return weights_xNS if mask_xNS is None else jnp.where(mask_xNS, weights_xNS, 0.0)


def _matmul(equation: str, one: jax.Array, other: jax.Array) -> jax.Array:
    return jnp.einsum(equation, one, other, preferred_element_type=jnp.float32)


def _sum_to(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Sums over the axes along which an array of `shape` was broadcast to that of `x`."""
    x = x.sum(axis=tuple(range(x.ndim - len(shape))))
    axes = tuple(axis for axis, size in enumerate(shape) if size == 1 and x.shape[axis] != 1)
    return x.sum(axis=axes, keepdims=True)
