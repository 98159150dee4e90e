"""What the GPU and the TPU kernels of block-sparse attention share: checks, lists of edges, and the global tokens.

Global queries are one or two rows that touch every token: they cost what is linear anyhow and stay outside the kernels,
in plain XLA. Global keys are part of every other query's softmax, so the kernels take them in.
"""

from __future__ import annotations

import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from vidlang.ops.edges import BlockGraph

DTYPES = (jnp.bfloat16, jnp.float16, jnp.float32)


def check_request(q_BNAK: jax.Array, k_BNAK: jax.Array, v_BNAK: jax.Array, graph: BlockGraph, globals: int) -> None:
    """ValueError unless q, k and v are alike and the graph is one of their tokens."""
    shapes = f"q {q_BNAK.shape}, k {k_BNAK.shape}, v {v_BNAK.shape}"
    if q_BNAK.ndim != 4 or not q_BNAK.shape == k_BNAK.shape == v_BNAK.shape:
        raise ValueError(f"sparse attention takes q, k and v of one shape [B, N, A, K]; found {shapes}")
    dtypes = {str(x.dtype) for x in (q_BNAK, k_BNAK, v_BNAK)}
    if len(dtypes) > 1 or q_BNAK.dtype not in DTYPES:
        raise ValueError(
            f"sparse attention takes q, k and v of one dtype out of bfloat16, float16, float32; "
            f"found {', '.join(sorted(dtypes))}"
        )
    if globals < 0 or graph.tokens < 1 or globals + graph.tokens != q_BNAK.shape[1]:
        raise ValueError(
            f"{globals} global tokens and a graph of {graph.tokens} tokens do not make the {q_BNAK.shape[1]} tokens "
            "of q; build the graph for the tokens that are left when it is used"
        )
    index_QK, rows = graph.index_QK, -(-graph.tokens // max(graph.block, 1))
    found = f"found {index_QK.dtype} {index_QK.shape} for {graph.tokens} tokens in blocks of {graph.block}"
    if (
        graph.block < 1
        or index_QK.ndim != 2
        or index_QK.shape[0] != rows
        or not index_QK.shape[1]
        or index_QK.dtype != jnp.int32
    ):
        raise ValueError(
            f"a block graph's index is int32 with a slot or more in a row for each of its {rows} blocks; {found}"
        )


def edges_by_query(index_QK: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`starts` [blocks + 1] and a flat list: query block i attends to the key blocks list[starts[i] : starts[i + 1]].

    Slots without a block, and blocks that do not exist, are in no range.
    """
    blocks = index_QK.shape[0]
    row_QK = jax.lax.broadcasted_iota(jnp.int32, index_QK.shape, 0)
    return _grouped(jnp.where(_real(index_QK), row_QK, blocks), index_QK, blocks)


def edges_by_key(index_QK: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same edges the other way round: the query blocks that attend to key block j."""
    blocks = index_QK.shape[0]
    row_QK = jax.lax.broadcasted_iota(jnp.int32, index_QK.shape, 0)
    return _grouped(jnp.where(_real(index_QK), index_QK, blocks), row_QK, blocks)


class Kernels(Protocol):
    """What a platform brings: attention along the edges for the queries that are no global tokens.

    Arrays cover all tokens. What its results hold in the rows of global tokens is of no account; lse and delta, a
    float32 number a query and head, are defined in the others.
    """

    def forward(
        self, q_BNAK: jax.Array, k_BNAK: jax.Array, v_BNAK: jax.Array, index_QK: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The output, and the log-sum-exp of each query's logits."""

    def backward(
        self,
        q_BNAK: jax.Array,
        k_BNAK: jax.Array,
        v_BNAK: jax.Array,
        index_QK: jax.Array,
        do_BNAK: jax.Array,
        lse_BAN: jax.Array,
        delta_BAN: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The gradients of q, k and v from these queries; `delta` is the product of each output row with its gradient.

        Those of k and v are defined in the rows of global tokens too.
        """


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def graph_attention(
    kernels: Kernels, globals: int, q_BNAK: jax.Array, k_BNAK: jax.Array, v_BNAK: jax.Array, index_QK: jax.Array
) -> jax.Array:
    """Attention along the edges of a graph by these kernels, with its global tokens; differentiable."""
    return _forward(kernels, globals, q_BNAK, k_BNAK, v_BNAK, index_QK)[0]


def _forward(
    kernels: Kernels, globals: int, q_BNAK: jax.Array, k_BNAK: jax.Array, v_BNAK: jax.Array, index_QK: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    o_BNAK, lse_BAN = kernels.forward(q_BNAK, k_BNAK, v_BNAK, index_QK)
    if globals:
        o_BNAK = o_BNAK.at[:, :globals].set(_global_rows(q_BNAK[:, :globals], k_BNAK, v_BNAK))
    return o_BNAK, (q_BNAK, k_BNAK, v_BNAK, index_QK, o_BNAK, lse_BAN)


def _backward(
    kernels: Kernels, globals: int, saved: tuple[jax.Array, ...], do_BNAK: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q_BNAK, k_BNAK, v_BNAK, index_QK, o_BNAK, lse_BAN = saved
    delta_BAN = jnp.einsum("BNAK,BNAK->BAN", o_BNAK, do_BNAK, preferred_element_type=jnp.float32)
    dq_BNAK, dk_BNAK, dv_BNAK = kernels.backward(q_BNAK, k_BNAK, v_BNAK, index_QK, do_BNAK, lse_BAN, delta_BAN)
    if not globals:
        return dq_BNAK, dk_BNAK, dv_BNAK, None
    first = slice(None, globals)
    _, of_global_queries = jax.vjp(_global_rows, q_BNAK[:, first], k_BNAK, v_BNAK)
    dq_BGAK, more_dk_BNAK, more_dv_BNAK = of_global_queries(do_BNAK[:, first])
    return dq_BNAK.at[:, first].set(dq_BGAK), dk_BNAK + more_dk_BNAK, dv_BNAK + more_dv_BNAK, None


graph_attention.defvjp(_forward, _backward)


def _global_rows(q_BGAK: jax.Array, k_BNAK: jax.Array, v_BNAK: jax.Array) -> jax.Array:
    """What the global queries see: all tokens. Products in the inputs' dtype, sums and softmax in float32."""
    logits = dot("BGAK,BNAK->BAGN", q_BGAK, k_BNAK) * q_BGAK.shape[-1] ** -0.5
    weights = jax.nn.softmax(logits, axis=-1).astype(v_BNAK.dtype)
    return dot("BAGN,BNAK->BGAK", weights, v_BNAK).astype(q_BGAK.dtype)


def dot(equation: str, one: jax.Array, other: jax.Array) -> jax.Array:
    """An einsum that sums in float32, and multiplies float32 in float32 where hardware would round it first."""
    return jnp.einsum(equation, one, other, precision=precision(one.dtype), preferred_element_type=jnp.float32)


def precision(dtype: Any) -> jax.lax.Precision:
    """Full products for float32; half precision is multiplied exactly at any setting."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else jax.lax.Precision.DEFAULT


def _real(index_QK: jax.Array) -> jax.Array:
    return (index_QK >= 0) & (index_QK < index_QK.shape[0])


def _grouped(owner_QK: jax.Array, other_QK: jax.Array, owners: int) -> tuple[jax.Array, jax.Array]:
    owner_E, other_E = owner_QK.reshape(-1), other_QK.reshape(-1)
    order_E = jnp.argsort(owner_E, stable=True)
    starts = jnp.searchsorted(owner_E[order_E], jnp.arange(owners + 1, dtype=jnp.int32))
    return starts.astype(jnp.int32), other_E[order_E]
