"""The kernels of block-sparse attention on TPUs: a step is one edge of the graph for all heads.

`ops/splash.py` calls them. References are blocks [rows, heads x head size], or [rows, heads] for what is a number a
query and head. Scratch memory carries a sum from step to step.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from vidlang.ops.kernel_parts import precision

# A tile of half precision holds 16 rows.
ROWS = 16
LOWEST = -1e30  # finite, so that differences of it are no NaN


@dataclasses.dataclass(frozen=True)
class Layout:
    """What the kernels are compiled for."""

    globals: int
    tokens: int
    block: int
    blocks: int
    slots: int
    heads: int
    head: int
    interpret: bool

    @property
    def rows(self) -> int:
        return -(-self.block // ROWS) * ROWS

    @property
    def columns(self) -> int:
        return self.heads * self.head

    def own(self, block: jax.Array) -> jax.Array:
        """How many rows of a block are tokens."""
        return jnp.minimum(self.block, self.tokens - block * self.block)

    def of_heads(self) -> list[tuple[slice, slice]]:
        """The columns of each head where rows hold all heads, and where they hold a number for each."""
        return [(slice(a * self.head, (a + 1) * self.head), slice(a, a + 1)) for a in range(self.heads)]


def forward_kernel(
    index_ref: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    k_globals_ref: Any,
    v_globals_ref: Any,
    o_ref: Any,
    lse_ref: Any,
    top_ref: Any,
    sum_ref: Any,
    acc_ref: Any,
    *,
    layout: Layout,
) -> None:
    s = pl.program_id(2)
    j = index_ref[pl.program_id(1) * layout.slots + s]

    def onto(k_ref: Any, v_ref: Any, keys: Any) -> None:
        for head, a in layout.of_heads():
            logits_NS = _product(q_ref[:, head], k_ref[:, head], over=(1, 1)) * layout.head**-0.5
            logits_NS = jnp.where(_among(logits_NS, keys), logits_NS, LOWEST)
            top_N1 = top_ref[:, a]
            new_N1 = jnp.maximum(top_N1, logits_NS.max(axis=1, keepdims=True))
            p_NS, shrink_N1 = jnp.exp(logits_NS - new_N1), jnp.exp(top_N1 - new_N1)
            more_NK = _product(p_NS.astype(v_ref.dtype), v_ref[:, head], over=(1, 0))
            top_ref[:, a] = new_N1
            sum_ref[:, a] = sum_ref[:, a] * shrink_N1 + p_NS.sum(axis=1, keepdims=True)
            acc_ref[:, head] = acc_ref[:, head] * shrink_N1 + more_NK

    @pl.when(s == 0)
    def _begin() -> None:
        top_ref[...] = jnp.full_like(top_ref, LOWEST)
        sum_ref[...] = jnp.zeros_like(sum_ref)
        acc_ref[...] = jnp.zeros_like(acc_ref)
        if layout.globals:
            onto(k_globals_ref, v_globals_ref, layout.globals)

    @pl.when((j >= 0) & (j < layout.blocks))
    def _edge() -> None:
        onto(k_ref, v_ref, layout.own(j))

    @pl.when(s == layout.slots - 1)
    def _end() -> None:
        some_NA = jnp.where(sum_ref[...] > 0, sum_ref[...], 1.0)  # a block that attends to nothing gets zeros
        lse_ref[...] = top_ref[...] + jnp.log(some_NA)
        for head, a in layout.of_heads():
            o_ref[:, head] = (acc_ref[:, head] / some_NA[:, a]).astype(o_ref.dtype)


def dq_kernel(
    index_ref: Any,
    q_ref: Any,
    do_ref: Any,
    lse_ref: Any,
    delta_ref: Any,
    k_ref: Any,
    v_ref: Any,
    k_globals_ref: Any,
    v_globals_ref: Any,
    dq_ref: Any,
    dk_globals_ref: Any,
    dv_globals_ref: Any,
    acc_ref: Any,
    *,
    layout: Layout,
) -> None:
    i, s = pl.program_id(1), pl.program_id(2)
    j = index_ref[i * layout.slots + s]

    def onto(k_ref: Any, v_ref: Any, keys: Any, *, of_globals: bool = False) -> None:
        refs = (q_ref, do_ref, lse_ref, delta_ref, k_ref, v_ref)
        for head, a in layout.of_heads():
            p_NS, ds_NS = _weights_and_slopes(refs, head, a, keys)
            ds_NS = ds_NS.astype(k_ref.dtype)
            acc_ref[:, head] += _product(ds_NS, k_ref[:, head], over=(1, 0))
            if of_globals:
                dk_globals_ref[:, head] += _product(ds_NS, q_ref[:, head], over=(0, 0)) * layout.head**-0.5
                dv_globals_ref[:, head] += _product(p_NS.astype(do_ref.dtype), do_ref[:, head], over=(0, 0))

    # These stay in vector memory through all steps of a batch row.
    @pl.when((i == 0) & (s == 0))
    def _begin_globals() -> None:
        dk_globals_ref[...] = jnp.zeros_like(dk_globals_ref)
        dv_globals_ref[...] = jnp.zeros_like(dv_globals_ref)

    @pl.when(s == 0)
    def _begin() -> None:
        acc_ref[...] = jnp.zeros_like(acc_ref)
        if layout.globals:
            onto(k_globals_ref, v_globals_ref, layout.globals, of_globals=True)

    @pl.when((j >= 0) & (j < layout.blocks))
    def _edge() -> None:
        onto(k_ref, v_ref, layout.own(j))

    @pl.when(s == layout.slots - 1)
    def _end() -> None:
        dq_ref[...] = (acc_ref[...] * layout.head**-0.5).astype(dq_ref.dtype)


def dkv_kernel(
    key_ref: Any,
    query_ref: Any,
    q_ref: Any,
    do_ref: Any,
    lse_ref: Any,
    delta_ref: Any,
    k_ref: Any,
    v_ref: Any,
    dk_ref: Any,
    dv_ref: Any,
    dk_acc_ref: Any,
    dv_acc_ref: Any,
    *,
    layout: Layout,
) -> None:
    e, edges = pl.program_id(1), pl.num_programs(1)
    j = key_ref[e]

    @pl.when((e == 0) | (key_ref[jnp.maximum(e - 1, 0)] != j))
    def _begin() -> None:
        dk_acc_ref[...] = jnp.zeros_like(dk_acc_ref)
        dv_acc_ref[...] = jnp.zeros_like(dv_acc_ref)

    @pl.when(query_ref[e] >= 0)
    def _edge() -> None:
        refs = (q_ref, do_ref, lse_ref, delta_ref, k_ref, v_ref)
        for head, a in layout.of_heads():
            p_NS, ds_NS = _weights_and_slopes(refs, head, a, layout.own(j))
            dk_acc_ref[:, head] += _product(ds_NS.astype(q_ref.dtype), q_ref[:, head], over=(0, 0))
            dv_acc_ref[:, head] += _product(p_NS.astype(do_ref.dtype), do_ref[:, head], over=(0, 0))

    @pl.when((e == edges - 1) | (key_ref[jnp.minimum(e + 1, edges - 1)] != j))
    def _end() -> None:
        dk_ref[...] = (dk_acc_ref[...] * layout.head**-0.5).astype(dk_ref.dtype)
        dv_ref[...] = dv_acc_ref[...].astype(dv_ref.dtype)


def _weights_and_slopes(refs: tuple[Any, ...], head: slice, a: slice, keys: Any) -> tuple[jax.Array, jax.Array]:
    """One head's softmax weights again, and the gradient of its logits before their scale.

    Rows of no query add nothing, because their do and delta are zeros.
    """
    q_ref, do_ref, lse_ref, delta_ref, k_ref, v_ref = refs
    logits_NS = _product(q_ref[:, head], k_ref[:, head], over=(1, 1)) * (head.stop - head.start) ** -0.5
    p_NS = jnp.where(_among(logits_NS, keys), jnp.exp(logits_NS - lse_ref[:, a]), 0.0)
    return p_NS, p_NS * (_product(do_ref[:, head], v_ref[:, head], over=(1, 1)) - delta_ref[:, a])


def _among(logits_NS: jax.Array, keys: Any) -> jax.Array:
    return jax.lax.broadcasted_iota(jnp.int32, logits_NS.shape, 1) < keys


def _product(one: jax.Array, other: jax.Array, *, over: tuple[int, int]) -> jax.Array:
    """A matrix product that sums over these two axes, in float32."""
    contract = (((over[0],), (over[1],)), ((), ()))
    return jax.lax.dot_general(one, other, contract, precision=precision(one.dtype), preferred_element_type=jnp.float32)
