"""Which blocks of tokens attend to which: a sparse graph as data, built from local, random and global edges (SViTT).

A graph is a small integer array, so one compiled program serves every graph of the same size: it may be drawn anew from
a key in each layer and each step. Everything here but `validate` runs inside jit, scan and vmap.
"""

from __future__ import annotations

from dataclasses import dataclass

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

# When the random blocks are drawn anew: in training steps, also at inference, or never.
REDRAWS = ("train", "always", "never")


@flax.struct.dataclass
class BlockGraph:
    """For each block of queries, the blocks of keys that it attends to.

    index_QK: int32 [query blocks, slots]; -1 fills slots that hold no block, and no row holds a block twice. Tokens
    here are those after the global ones (cls): `tokens` of them, cut into blocks of `block`; the last may be partly
    empty. Global tokens attend to everything and everything attends to them; no graph lists them.
    """

    index_QK: jax.Array
    tokens: int = flax.struct.field(pytree_node=False)
    block: int = flax.struct.field(pytree_node=False)


@dataclass(frozen=True)
class Edges:
    """How sparse graphs are drawn; a config's `dials.edges` has these keys.

    local: blocks around a block's own that it attends to, its own included (0: none). random: further blocks, drawn
    without replacement. block: tokens in a block. redraw: "train" draws a new graph in every layer of every training
    step and keeps one fixed graph a layer for inference, "always" draws anew at inference too (as SViTT's code does),
    "never" keeps the fixed graphs in training too.
    """

    local: int = 1
    random: int = 5
    block: int = 56
    redraw: str = "train"

    def __post_init__(self) -> None:
        for name, least in (("local", 0), ("random", 0), ("block", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"edges.{name} is {value!r}; it must be an integer of at least {least}")
        if self.local and self.local % 2 == 0:
            raise ValueError(f"edges.local is {self.local}; it must be odd, as many blocks before as after, or 0")
        if self.local + self.random < 1:
            raise ValueError("edges.local and edges.random are both 0; a block must attend to at least one block")
        if self.redraw not in REDRAWS:
            raise ValueError(f"edges.redraw is {self.redraw!r}; it is one of {', '.join(REDRAWS)}")


def block_count(tokens: int, block: int) -> int:
    """How many blocks hold `tokens` tokens; the last may be partly empty."""
    return -(-tokens // block)


def local_blocks(n_blocks: int, local: int) -> jax.Array:
    """int32 [n_blocks, local]: each block's neighbours and itself, in order; -1 where that is beyond an end."""
    around_K = np.arange(local) - (local - 1) // 2
    index_QK = np.arange(n_blocks)[:, None] + around_K[None]
    inside_QK = (index_QK >= 0) & (index_QK < n_blocks)
    return jnp.asarray(np.where(inside_QK, index_QK, -1), jnp.int32)


def random_blocks(key: jax.Array, n_blocks: int, random: int, local: int) -> jax.Array:
    """int32 [n_blocks, random]: for each block, `random` of those that `local_blocks` does not give, ascending.

    Every subset is equally likely, and rows are independent. Where fewer blocks exist, all are taken and -1 fills up.
    """
    distance_QN = np.abs(np.arange(n_blocks)[:, None] - np.arange(n_blocks)[None])
    is_local_QN = (distance_QN <= (local - 1) // 2) & (local > 0)
    score_QN = jnp.where(is_local_QN, -1.0, jax.random.uniform(key, (n_blocks, n_blocks)))
    # The highest of independent scores are a uniform subset; those below zero are no candidates.
    score_QK, index_QK = jax.lax.top_k(score_QN, min(random, n_blocks))
    index_QK = _ascending(jnp.where(score_QK < 0, -1, index_QK.astype(jnp.int32)))
    return jnp.pad(index_QK, ((0, 0), (0, random - index_QK.shape[1])), constant_values=-1)


def combine(*index_QK: jax.Array) -> jax.Array:
    """All slots of several index arrays side by side; a block that a row already holds becomes -1."""
    if not index_QK or len({(x_QK.ndim, x_QK.shape[0]) for x_QK in index_QK}) > 1 or index_QK[0].ndim != 2:
        shapes = ", ".join(str(x_QK.shape) for x_QK in index_QK) or "none"
        raise ValueError(f"combine takes index arrays [query blocks, slots] with equally many rows; found {shapes}")
    all_QK = jnp.concatenate(index_QK, axis=1)
    # A stable order puts a block's later copies right after its first one.
    order_QK = jnp.argsort(all_QK, axis=1, stable=True)
    sorted_QK = jnp.take_along_axis(all_QK, order_QK, axis=1)
    again_QK = jnp.pad(sorted_QK[:, 1:] == sorted_QK[:, :-1], ((0, 0), (1, 0)))
    again_QK = jnp.take_along_axis(again_QK, jnp.argsort(order_QK, axis=1), axis=1)
    return jnp.where(again_QK, -1, all_QK).astype(jnp.int32)


def full_graph(tokens: int, block: int) -> BlockGraph:
    """The graph in which every block attends to every block: dense attention."""
    _check_sizes(tokens, block)
    blocks = block_count(tokens, block)
    index_QK = jnp.broadcast_to(jnp.arange(blocks, dtype=jnp.int32)[None], (blocks, blocks))
    return BlockGraph(index_QK, tokens, block)


def draw(edges: Edges, key: jax.Array, tokens: int) -> BlockGraph:
    """A graph over `tokens` tokens: the local blocks, and random ones drawn from `key`; rows ascend, -1 comes last."""
    _check_sizes(tokens, edges.block)
    blocks = block_count(tokens, edges.block)
    index_QK = combine(local_blocks(blocks, edges.local), random_blocks(key, blocks, edges.random, edges.local))
    # A row holds no block twice, so slots beyond the number of blocks are always empty.
    return BlockGraph(_ascending(index_QK)[:, :blocks], tokens, edges.block)


def check_shape(graph: BlockGraph) -> None:
    """ValueError unless the graph's array has the shape that its tokens and block size ask for."""
    _check_sizes(graph.tokens, graph.block)
    blocks, index_QK = block_count(graph.tokens, graph.block), graph.index_QK
    fits = index_QK.ndim == 2 and index_QK.shape[0] == blocks and index_QK.shape[1] >= 1
    if not fits or index_QK.dtype != jnp.int32:
        raise ValueError(
            f"a graph over {graph.tokens} tokens in blocks of {graph.block} is an int32 array of {blocks} rows; "
            f"found {index_QK.dtype} {index_QK.shape}"
        )


def validate(graph: BlockGraph) -> None:
    """ValueError for a graph that would attend to what does not exist, twice to the same, or to nothing at all."""
    check_shape(graph)
    if isinstance(graph.index_QK, jax.core.Tracer):
        raise ValueError("validate reads a graph's numbers, which are not known inside jit; call it outside")
    blocks = block_count(graph.tokens, graph.block)
    for row, index_K in enumerate(np.asarray(graph.index_QK)):
        found = index_K[index_K != -1]
        if ((found < 0) | (found >= blocks)).any():
            raise ValueError(f"row {row} of the graph is {index_K}; blocks are 0 to {blocks - 1}, and -1 is none")
        if len(set(found.tolist())) < len(found):
            raise ValueError(f"row {row} of the graph is {index_K}, with a block twice; build it with edges.combine")
        if not len(found):
            raise ValueError(f"row {row} of the graph holds no block; every block must attend to at least one")


def density(graph: BlockGraph) -> jax.Array:
    """Share of all tokens x tokens edges that the graph holds, as a float32 scalar; empty places count nowhere."""
    check_shape(graph)
    blocks = block_count(graph.tokens, graph.block)
    size_Q = np.full(blocks, graph.block, np.float32)
    size_Q[-1] = graph.tokens - (blocks - 1) * graph.block
    keys_QK = jnp.where(graph.index_QK < 0, 0.0, jnp.asarray(size_Q)[graph.index_QK])
    # Shares of shares: the number of edges of a long video does not fit an int32.
    return jnp.sum(keys_QK.sum(axis=1) / graph.tokens * (size_Q / graph.tokens))


def token_mask(graph: BlockGraph, globals: int) -> jax.Array:
    """The graph as a boolean mask [N, N] over N = globals + tokens, True where a query (row) attends to a key."""
    check_shape(graph)
    blocks = block_count(graph.tokens, graph.block)
    rows_Q1 = jnp.arange(blocks)[:, None]
    # Empty slots write into a column of their own, which is cut off.
    column_QK = jnp.where(graph.index_QK < 0, blocks, graph.index_QK)
    seen_QS = jnp.zeros((blocks, blocks + 1), bool).at[rows_Q1, column_QK].set(True)[:, :blocks]
    block_N = np.arange(graph.tokens) // graph.block
    seen_NN = seen_QS[block_N[:, None], block_N[None]]
    return jnp.pad(seen_NN, ((globals, 0), (globals, 0)), constant_values=True)


def _ascending(index_QK: jax.Array) -> jax.Array:
    """Rows sorted, with -1 last."""
    last = jnp.iinfo(jnp.int32).max
    sorted_QK = jnp.sort(jnp.where(index_QK < 0, last, index_QK), axis=1)
    return jnp.where(sorted_QK == last, -1, sorted_QK)


def _check_sizes(tokens: int, block: int) -> None:
    if not 1 <= block <= tokens:
        raise ValueError(
            f"blocks of {block} tokens do not fit {tokens} tokens; take an edges.block from 1 to {tokens}, or no edges"
        )
