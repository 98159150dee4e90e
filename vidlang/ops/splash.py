"""Attention on TPUs: splash attention for the dense case, and kernels of our own for block graphs.

Why not splash for graphs: its tiles are multiples of 128 keys, so that blocks of 56 fill a tile by less than half or a
tile touches three blocks; and a mask that is traced costs it [query tiles, key tiles, tile, tile] booleans, which is
tokens x tokens again, while a static one would compile anew for each graph. Here the list of blocks is prefetched into
scalar memory and says which block of keys the pipeline brings next, so the graph is data and all is linear in the
tokens.

A step of a kernel is one edge of the graph for all heads of one batch row. A block lies in memory as [rows, heads x
head size], padded to 16 rows: the lanes are full, and no transpose is needed to bring tokens out of [B, N, A, K]. The
output and dq walk the graph's slots; dk and dv walk its edges sorted by key, of which every key block has at least one
empty edge, since what no step writes would be undefined.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

from vidlang.ops.edges import BlockGraph
from vidlang.ops.kernel_parts import check_request, graph_attention
from vidlang.ops.splash_kernels import ROWS, Layout, dkv_kernel, dq_kernel, forward_kernel

LANES = 128
DENSE_TILE = 512


def splash_dense(q_BNAK: jax.Array, k_BNAK: jax.Array, v_BNAK: jax.Array, *, interpret: bool = False) -> jax.Array:
    """Attention of every token to every token through splash attention: memory linear in the tokens.

    Tokens are padded to whole tiles; those that pad are a segment of their own, so no token sees them.
    """
    if q_BNAK.ndim != 4 or not q_BNAK.shape == k_BNAK.shape == v_BNAK.shape:
        shapes = f"q {q_BNAK.shape}, k {k_BNAK.shape}, v {v_BNAK.shape}"
        raise ValueError(f"splash attention takes q, k and v of one shape [B, N, A, K]; found {shapes}")
    _check_dtype(q_BNAK)
    _, tokens, heads, head = q_BNAK.shape
    tile = min(DENSE_TILE, -(-tokens // LANES) * LANES)
    padded = -(-tokens // tile) * tile
    kernel = splash_attention_kernel.make_splash_mha_single_device(
        splash_attention_mask.MultiHeadMask([splash_attention_mask.FullMask((padded, padded))] * heads),
        block_sizes=_block_sizes(tile),
        interpret=interpret,
    )
    segment_N = (jnp.arange(padded) >= tokens).astype(jnp.int32)
    segments = splash_attention_kernel.SegmentIds(q=segment_N, kv=segment_N)

    def by_head(x_BNAK: jax.Array) -> jax.Array:
        return jnp.pad(x_BNAK.swapaxes(1, 2), ((0, 0), (0, 0), (0, padded - tokens), (0, 0)))

    scaled_BNAK = (q_BNAK.astype(jnp.float32) * head**-0.5).astype(q_BNAK.dtype)
    o_BANK = jax.vmap(kernel, in_axes=(0, 0, 0, None))(by_head(scaled_BNAK), by_head(k_BNAK), by_head(v_BNAK), segments)
    return o_BANK[:, :, :tokens].swapaxes(1, 2)


def _block_sizes(tile: int) -> splash_attention_kernel.BlockSizes:
    # dq has a kernel of its own: the one fused with dk and dv writes a share of dq for every tile of keys, which is
    # tokens x tokens memory.
    return splash_attention_kernel.BlockSizes(
        block_q=tile,
        block_kv=tile,
        block_kv_compute=tile,
        block_q_dkv=tile,
        block_kv_dkv=tile,
        block_kv_dkv_compute=tile,
        block_q_dq=tile,
        block_kv_dq=tile,
    )


def splash_sparse(
    q_BNAK: jax.Array,
    k_BNAK: jax.Array,
    v_BNAK: jax.Array,
    graph: BlockGraph,
    *,
    globals: int,
    interpret: bool = False,
) -> jax.Array:
    """Attention along the graph's edges: one softmax over the global keys and the listed blocks of keys.

    The first `globals` tokens attend to everything. A query without any key gets zeros. `interpret` runs the kernels'
    arithmetic on any device, slowly.
    """
    check_request(q_BNAK, k_BNAK, v_BNAK, graph, globals)
    _check_dtype(q_BNAK)
    blocks, slots = graph.index_QK.shape
    heads, head = q_BNAK.shape[2:]
    kernels = _OnTpu(globals, graph.tokens, graph.block, blocks, slots, heads, head, interpret)
    return graph_attention(kernels, globals, q_BNAK, k_BNAK, v_BNAK, graph.index_QK)


def _check_dtype(q_BNAK: jax.Array) -> None:
    if q_BNAK.dtype not in (jnp.bfloat16, jnp.float32):
        raise ValueError(f"kernels on TPUs take bfloat16 or float32; found {q_BNAK.dtype}, so cast q, k and v")


def _edges_by_key(index_QK: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Key and query block of each edge, sorted by key; -1 is no query, and every key has one such edge."""
    blocks = index_QK.shape[0]
    real_QK = (index_QK >= 0) & (index_QK < blocks)
    row_QK = jax.lax.broadcasted_iota(jnp.int32, index_QK.shape, 0)
    key_E = jnp.concatenate([jnp.where(real_QK, index_QK, blocks - 1).reshape(-1), jnp.arange(blocks, dtype=jnp.int32)])
    query_E = jnp.concatenate([jnp.where(real_QK, row_QK, -1).reshape(-1), jnp.full((blocks,), -1, jnp.int32)])
    order_E = jnp.argsort(key_E, stable=True)
    return key_E[order_E], query_E[order_E]


class _OnTpu(Layout):
    """The kernels' calls: tokens cut into blocks [B, blocks, rows, heads x head size], and put together again."""

    def forward(
        self, q_BNAK: jax.Array, k_BNAK: jax.Array, v_BNAK: jax.Array, index_QK: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        q, k, v = (self._cut(x.reshape(*x.shape[:2], -1)) for x in (q_BNAK, k_BNAK, v_BNAK))
        k_globals, v_globals = self._global_rows(k_BNAK), self._global_rows(v_BNAK)
        o, lse = self._call(
            forward_kernel,
            (self.blocks, self.slots),
            [index_QK.reshape(-1)],
            inputs=[(q, _here), (k, self._listed), (v, self._listed), (k_globals, _whole), (v_globals, _whole)],
            outputs=[(q.shape[1:], q.dtype, _here), ((*q.shape[1:3], self.heads), jnp.float32, _here)],
            scratch=[self.heads, self.heads, self.columns],
        )
        return self._join(o).reshape(q_BNAK.shape), self._join(lse).swapaxes(1, 2)

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
        q, k, v, do = (self._cut(x.reshape(*x.shape[:2], -1)) for x in (q_BNAK, k_BNAK, v_BNAK, do_BNAK))
        lse, delta = (self._cut(x.swapaxes(1, 2)) for x in (lse_BAN, delta_BAN))
        k_globals, v_globals = self._global_rows(k_BNAK), self._global_rows(v_BNAK)
        dq, dk_globals, dv_globals = self._call(
            dq_kernel,
            (self.blocks, self.slots),
            [index_QK.reshape(-1)],
            inputs=[
                *[(x, _here) for x in (q, do, lse, delta)],
                *[(x, self._listed) for x in (k, v)],
                *[(x, _whole) for x in (k_globals, v_globals)],
            ],
            outputs=[(q.shape[1:], q.dtype, _here), *[(k_globals.shape[1:], jnp.float32, _whole)] * 2],
            scratch=[self.columns],
        )
        key_E, query_E = _edges_by_key(index_QK)
        dk, dv = self._call(
            dkv_kernel,
            key_E.shape,
            [key_E, query_E],
            inputs=[*[(x, _query) for x in (q, do, lse, delta)], *[(x, _key) for x in (k, v)]],
            outputs=[(k.shape[1:], k.dtype, _key)] * 2,
            scratch=[self.columns, self.columns],
        )
        joined = self._join(dq), self._join(dk, dk_globals), self._join(dv, dv_globals)
        dq_BNAK, dk_BNAK, dv_BNAK = (x_BND.reshape(q_BNAK.shape) for x_BND in joined)
        return dq_BNAK, dk_BNAK, dv_BNAK

    def _cut(self, x_BND: jax.Array) -> jax.Array:
        """The tokens of the graph in blocks [B, blocks, rows, D]; zeros where there is none."""
        batch, _, width = x_BND.shape
        x_BND = x_BND[:, self.globals :]
        x_BND = jnp.pad(x_BND, ((0, 0), (0, self.blocks * self.block - self.tokens), (0, 0)))
        x = x_BND.reshape(batch, self.blocks, self.block, width)
        return jnp.pad(x, ((0, 0), (0, 0), (0, self.rows - self.block), (0, 0)))

    def _join(self, x: jax.Array, globals: jax.Array | None = None) -> jax.Array:
        """Back to tokens [B, N, D]; the global ones come from `globals` [B, 1, rows, D], or are zeros."""
        x_BND = x[:, :, : self.block].reshape(x.shape[0], -1, x.shape[-1])[:, : self.tokens]
        if globals is None:
            return jnp.pad(x_BND, ((0, 0), (self.globals, 0), (0, 0)))
        return jnp.concatenate([globals[:, 0, : self.globals].astype(x.dtype), x_BND], axis=1)

    def _global_rows(self, x_BNAK: jax.Array) -> jax.Array:
        x_BGD = x_BNAK[:, : self.globals].reshape(x_BNAK.shape[0], self.globals, self.columns)
        rows = max(1, -(-self.globals // ROWS)) * ROWS
        return jnp.pad(x_BGD, ((0, 0), (0, rows - self.globals), (0, 0)))[:, None]

    def _listed(self, i: jax.Array, s: jax.Array, index_ref: Any) -> jax.Array:
        """The key block in slot s of query block i; an empty slot fetches a block that nothing looks at."""
        return jnp.clip(index_ref[i * self.slots + s], 0, self.blocks - 1)

    def _call(
        self,
        kernel: Any,
        steps: tuple[int, ...],
        lists: list[jax.Array],
        *,
        inputs: list[tuple[jax.Array, Any]],
        outputs: list[tuple[tuple[int, ...], Any, Any]],
        scratch: list[int],
    ) -> Any:
        """The kernel over these steps of each batch row; every argument comes with the function that names its block.

        Those functions get the step and the lists, which lie in scalar memory. Outputs are given by their shape behind
        the batch, [blocks, rows, columns], and scratch by its columns: it is [rows, columns] in float32.
        """
        batch = inputs[0][0].shape[0]

        def spec(shape: tuple[int, ...], block_of: Any) -> pl.BlockSpec:
            return pl.BlockSpec((None, None, *shape), lambda b, *rest: (b, block_of(*rest), 0, 0))

        return pl.pallas_call(
            functools.partial(kernel, layout=self),
            grid_spec=tpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=len(lists),
                grid=(batch, *steps),
                in_specs=[spec(x.shape[2:], block_of) for x, block_of in inputs],
                out_specs=[spec(shape[1:], block_of) for shape, _, block_of in outputs],
                scratch_shapes=[tpu.VMEM((self.rows, columns), jnp.float32) for columns in scratch],
            ),
            out_shape=[jax.ShapeDtypeStruct((batch, *shape), dtype) for shape, dtype, _ in outputs],
            # A step adds to what the one before it left, but batch rows are independent.
            compiler_params=tpu.CompilerParams(dimension_semantics=(tpu.PARALLEL, *[tpu.ARBITRARY] * len(steps))),
            interpret=self.interpret,
            name=kernel.__name__,
        )(*lists, *[x for x, _ in inputs])


def _here(i: jax.Array, s: jax.Array, index_ref: Any) -> jax.Array:
    return i


def _whole(i: jax.Array, s: jax.Array, index_ref: Any) -> int:
    return 0


def _key(e: jax.Array, key_ref: Any, query_ref: Any) -> jax.Array:
    return key_ref[e]


def _query(e: jax.Array, key_ref: Any, query_ref: Any) -> jax.Array:
    return jnp.maximum(query_ref[e], 0)
