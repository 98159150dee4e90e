"""Block-sparse attention on GPUs: flash kernels in Pallas that read the list of blocks as data.

One program of a kernel owns one block of rows of one head. It loads the blocks that the list names one after another
and keeps the softmax running, so nothing of size tokens x tokens exists, and what a training step holds beside its
inputs grows linearly with the tokens. The graph is traced: drawing another one every step and layer costs no
compilation. Its edges are sorted by the block that owns them (by query for the output and dq, by key for dk and dv),
which drops empty slots and gives each program a range of a flat list.

The kernels read q, k and v where they lie, [B, N, A, K] behind `globals` leading tokens. Triton's tiles are powers of
two, so a block of 56 rows is a tile of 64 whose last rows are masked. Global keys are a tile of their own in every
program; the rest of what concerns them is plain XLA (`kernel_parts`).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from vidlang.ops.edges import BlockGraph
from vidlang.ops.kernel_parts import check_request, dot, edges_by_key, edges_by_query, graph_attention, precision

# Tensor cores multiply tiles of at least 16 rows.
SMALLEST_TILE = 16
LOWEST = -1e30  # finite, so that differences of it are no NaN


def pallas_attention(
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
    tiles = _Tiles(globals, graph.tokens, graph.block, graph.index_QK.shape[0], q_BNAK.shape[-1], interpret)
    return graph_attention(tiles, globals, q_BNAK, k_BNAK, v_BNAK, graph.index_QK)


@dataclasses.dataclass(frozen=True)
class _Tiles:
    """What the kernels are compiled for."""

    globals: int
    tokens: int
    block: int
    blocks: int
    head: int
    interpret: bool

    @property
    def rows(self) -> int:
        return max(SMALLEST_TILE, pl.next_power_of_2(self.block))

    @property
    def width(self) -> int:
        return max(SMALLEST_TILE, pl.next_power_of_2(self.head))

    def forward(
        self, q_BNAK: jax.Array, k_BNAK: jax.Array, v_BNAK: jax.Array, index_QK: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        lists = edges_by_query(index_QK)
        o_BNAK, lse_BAN = self._call(_forward_kernel, "llxxx", "xs", *lists, q_BNAK, k_BNAK, v_BNAK)
        return o_BNAK, lse_BAN

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
        arrays = (q_BNAK, k_BNAK, v_BNAK, do_BNAK, lse_BAN, delta_BAN)
        (dq_BNAK,) = self._call(_dq_kernel, "llxxxxss", "x", *edges_by_query(index_QK), *arrays)
        dk_BNAK, dv_BNAK = self._call(_dkv_kernel, "llxxxxss", "xx", *edges_by_key(index_QK), *arrays)
        if self.globals:
            dk_BGAK, dv_BGAK = self._global_key_gradients(*arrays)
            dk_BNAK = dk_BNAK.at[:, : self.globals].set(dk_BGAK.astype(dk_BNAK.dtype))
            dv_BNAK = dv_BNAK.at[:, : self.globals].set(dv_BGAK.astype(dv_BNAK.dtype))
        return dq_BNAK, dk_BNAK, dv_BNAK

    def _global_key_gradients(
        self,
        q_BNAK: jax.Array,
        k_BNAK: jax.Array,
        v_BNAK: jax.Array,
        do_BNAK: jax.Array,
        lse_BAN: jax.Array,
        delta_BAN: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """dk and dv of the global keys, which all programs would have to add to: plain XLA, in float32."""
        q_BNAK, do_BNAK = q_BNAK[:, self.globals :], do_BNAK[:, self.globals :]
        k_BGAK, v_BGAK = k_BNAK[:, : self.globals], v_BNAK[:, : self.globals]
        lse_BA1N, delta_BA1N = (x[:, :, None, self.globals :] for x in (lse_BAN, delta_BAN))
        scale = self.head**-0.5
        p_BAGN = jnp.exp(dot("BNAK,BGAK->BAGN", q_BNAK, k_BGAK) * scale - lse_BA1N)
        ds_BAGN = p_BAGN * (dot("BNAK,BGAK->BAGN", do_BNAK, v_BGAK) - delta_BA1N)
        dk_BGAK = dot("BAGN,BNAK->BGAK", ds_BAGN.astype(q_BNAK.dtype), q_BNAK) * scale
        return dk_BGAK, dot("BAGN,BNAK->BGAK", p_BAGN.astype(q_BNAK.dtype), do_BNAK)

    def of_block(self, block: jax.Array) -> tuple[Any, jax.Array]:
        """The tile of rows of a block of tokens, and which of them are its own."""
        first = block * self.block
        some = jnp.arange(self.rows) < jnp.minimum(self.block, self.tokens - first)
        return pl.ds(self.globals + first, self.rows), some

    def of_globals(self) -> tuple[Any, jax.Array]:
        rows = max(SMALLEST_TILE, pl.next_power_of_2(self.globals))
        return pl.ds(0, rows), jnp.arange(rows) < self.globals

    def _specs(self, letters: str) -> list[pl.BlockSpec]:
        """How a program sees its arguments: x [B, N, A, K] and s [B, A, N] whole for its batch row and head, l lists.

        The rows reach beyond the array by a tile, so that the last block's tile lies inside them.
        """
        reach = self.globals + self.tokens + max(self.rows, SMALLEST_TILE, pl.next_power_of_2(self.globals))
        kinds = {
            "x": pl.BlockSpec((None, reach, None, self.width), lambda i, a, b: (b, 0, a, 0)),
            "s": pl.BlockSpec((None, None, reach), lambda i, a, b: (b, a, 0)),
            "l": pl.BlockSpec(),
        }
        return [kinds[letter] for letter in letters]

    def _call(self, kernel: Any, inputs: str, outputs: str, *arrays: jax.Array) -> Any:
        """Runs a kernel for every block, head and batch row; outputs take the shapes of q and of lse."""
        q_BNAK = arrays[2]
        batch, tokens, heads, _ = q_BNAK.shape
        kinds = {"x": (q_BNAK.shape, q_BNAK.dtype), "s": ((batch, heads, tokens), jnp.float32)}
        return pl.pallas_call(
            functools.partial(kernel, tiles=self),
            grid=(self.blocks, heads, batch),
            in_specs=self._specs(inputs),
            out_specs=self._specs(outputs),
            out_shape=[jax.ShapeDtypeStruct(*kinds[letter]) for letter in outputs],
            compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
            interpret=self.interpret,
            name=kernel.__name__.strip("_"),
        )(*arrays)


def _load(ref: Any, tile: tuple[Any, jax.Array], tiles: _Tiles) -> jax.Array:
    """A tile of rows of q, k, v or do, or of a number a row; zeros where there is nothing."""
    rows, some_N = tile
    if len(ref.shape) == 1:
        return triton.load(ref.at[rows], mask=some_N, other=0.0)
    return triton.load(ref.at[rows, :], mask=_inside(some_N, tiles), other=0.0)


def _store(ref: Any, tile: tuple[Any, jax.Array], x: jax.Array, tiles: _Tiles) -> None:
    rows, some_N = tile
    if len(ref.shape) == 1:
        triton.store(ref.at[rows], x, mask=some_N)
    else:
        triton.store(ref.at[rows, :], x.astype(ref.dtype), mask=_inside(some_N, tiles))


def _inside(some_N: jax.Array, tiles: _Tiles) -> jax.Array:
    return some_N[:, None] & (jnp.arange(tiles.width) < tiles.head)[None, :]


def _product(one: jax.Array, other: jax.Array, *, over: tuple[int, int]) -> jax.Array:
    """A matrix product that sums over these two axes, in float32."""
    contract = (((over[0],), (over[1],)), ((), ()))
    kinds = {"precision": precision(one.dtype), "preferred_element_type": jnp.float32}
    return jax.lax.dot_general(one, other, contract, **kinds)


def _forward_kernel(
    starts_ref: Any, list_ref: Any, q_ref: Any, k_ref: Any, v_ref: Any, o_ref: Any, lse_ref: Any, *, tiles: _Tiles
) -> None:
    i = pl.program_id(0)
    here = tiles.of_block(i)
    q_NK = _load(q_ref, here, tiles)

    def onto(carry: tuple[jax.Array, ...], there: tuple[Any, jax.Array]) -> tuple[jax.Array, ...]:
        top_N, sum_N, o_NK = carry
        logits_NS = _product(q_NK, _load(k_ref, there, tiles), over=(1, 1)) * tiles.head**-0.5
        logits_NS = jnp.where(there[1][None, :], logits_NS, LOWEST)
        new_N = jnp.maximum(top_N, logits_NS.max(axis=1))
        p_NS = jnp.exp(logits_NS - new_N[:, None])
        shrink_N = jnp.exp(top_N - new_N)
        more_NK = _product(p_NS.astype(v_ref.dtype), _load(v_ref, there, tiles), over=(1, 0))
        return new_N, sum_N * shrink_N + p_NS.sum(axis=1), o_NK * shrink_N[:, None] + more_NK

    nothing_N = jnp.zeros((tiles.rows,), jnp.float32)
    carry: tuple[jax.Array, ...] = (nothing_N + LOWEST, nothing_N, jnp.zeros((tiles.rows, tiles.width), jnp.float32))
    if tiles.globals:
        carry = onto(carry, tiles.of_globals())
    top_N, sum_N, o_NK = jax.lax.fori_loop(
        starts_ref[i], starts_ref[i + 1], lambda e, carry: onto(carry, tiles.of_block(list_ref[e])), carry
    )
    some_N = jnp.where(sum_N > 0, sum_N, 1.0)  # a block that attends to nothing gets zeros
    _store(o_ref, here, o_NK / some_N[:, None], tiles)
    _store(lse_ref, here, top_N + jnp.log(some_N), tiles)


def _dq_kernel(
    starts_ref: Any,
    list_ref: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    do_ref: Any,
    lse_ref: Any,
    delta_ref: Any,
    dq_ref: Any,
    *,
    tiles: _Tiles,
) -> None:
    i = pl.program_id(0)
    here = tiles.of_block(i)
    q_NK, do_NK, lse_N, delta_N = (_load(ref, here, tiles) for ref in (q_ref, do_ref, lse_ref, delta_ref))

    def onto(dq_NK: jax.Array, there: tuple[Any, jax.Array]) -> jax.Array:
        k_SK, v_SK = _load(k_ref, there, tiles), _load(v_ref, there, tiles)
        _, ds_NS = _weights_and_slopes(q_NK, k_SK, v_SK, do_NK, lse_N, delta_N, there[1], tiles)
        return dq_NK + _product(ds_NS.astype(k_SK.dtype), k_SK, over=(1, 0))

    dq_NK = jnp.zeros((tiles.rows, tiles.width), jnp.float32)
    if tiles.globals:
        dq_NK = onto(dq_NK, tiles.of_globals())
    dq_NK = jax.lax.fori_loop(
        starts_ref[i], starts_ref[i + 1], lambda e, dq_NK: onto(dq_NK, tiles.of_block(list_ref[e])), dq_NK
    )
    _store(dq_ref, here, dq_NK * tiles.head**-0.5, tiles)


def _dkv_kernel(
    starts_ref: Any,
    list_ref: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    do_ref: Any,
    lse_ref: Any,
    delta_ref: Any,
    dk_ref: Any,
    dv_ref: Any,
    *,
    tiles: _Tiles,
) -> None:
    j = pl.program_id(0)
    here = tiles.of_block(j)
    k_SK, v_SK = _load(k_ref, here, tiles), _load(v_ref, here, tiles)

    def onto(e: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        there = tiles.of_block(list_ref[e])
        q_NK, do_NK, lse_N, delta_N = (_load(ref, there, tiles) for ref in (q_ref, do_ref, lse_ref, delta_ref))
        p_NS, ds_NS = _weights_and_slopes(q_NK, k_SK, v_SK, do_NK, lse_N, delta_N, here[1], tiles)
        more_dk_SK = _product(ds_NS.astype(q_NK.dtype), q_NK, over=(0, 0))
        return carry[0] + more_dk_SK, carry[1] + _product(p_NS.astype(do_NK.dtype), do_NK, over=(0, 0))

    nothing_SK = jnp.zeros((tiles.rows, tiles.width), jnp.float32)
    dk_SK, dv_SK = jax.lax.fori_loop(starts_ref[j], starts_ref[j + 1], onto, (nothing_SK, nothing_SK))
    _store(dk_ref, here, dk_SK * tiles.head**-0.5, tiles)
    _store(dv_ref, here, dv_SK, tiles)


def _weights_and_slopes(
    q_NK: jax.Array,
    k_SK: jax.Array,
    v_SK: jax.Array,
    do_NK: jax.Array,
    lse_N: jax.Array,
    delta_N: jax.Array,
    some_S: jax.Array,
    tiles: _Tiles,
) -> tuple[jax.Array, jax.Array]:
    """The softmax's weights again, and the gradient of the logits before their scale. Rows of no query are zeros."""
    logits_NS = _product(q_NK, k_SK, over=(1, 1)) * tiles.head**-0.5
    p_NS = jnp.where(some_S[None, :], jnp.exp(logits_NS - lse_N[:, None]), 0.0)
    return p_NS, p_NS * (_product(do_NK, v_SK, over=(1, 1)) - delta_N[:, None])
