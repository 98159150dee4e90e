"""Attention along the edges of a block graph: cost and memory linear in the tokens, on any device.

Tokens are `globals` leading ones (cls), which attend to everything and to which everything attends, and then those that
the graph lists block by block. Every query has one softmax, in float32, over the global keys and its blocks together;
what pads the last block and slots of -1 are no keys. A query without any key gets zeros.

gather: the reference, which brings each query block's keys together. slots: one slot of the graph after another with a
running softmax, whose memory does not grow with the number of slots, for some more arithmetic. pallas: kernels for
GPUs. splash: kernels for TPUs.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from vidlang.core.sharding import constrain, platform
from vidlang.ops.attention import attend, note_choice, on_local_heads
from vidlang.ops.edges import BlockGraph, check_shape
from vidlang.ops.online_softmax import LOWEST, Piece, Source, online_attention
from vidlang.ops.relative import Grid, RelativeBias, look_up, offset_rows
from vidlang.ops.ring import ring_ways

SPARSE_IMPLEMENTATIONS = ("auto", "gather", "slots", "pallas", "splash")
HALF = (jnp.bfloat16, jnp.float16)
# Head sizes at which "auto" takes the GPU kernels.
KERNEL_HEADS = (64, 128)


def sparse_attention(
    q_BNAK: jax.Array,
    k_BNAK: jax.Array,
    v_BNAK: jax.Array,
    graph: BlockGraph,
    *,
    globals: int,
    bias: RelativeBias | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """Attention of N = globals + graph.tokens tokens along the graph's edges; returns q's dtype.

    `bias` holds the places of all N tokens, -1 for the global ones.
    """
    _check(q_BNAK, k_BNAK, v_BNAK, graph, globals, bias, implementation)
    here = platform()
    if implementation == "auto":
        # Kernels have whole clips: of one that lies on several devices, each would do all the work.
        best = best_here(here, q_BNAK.dtype, head_size=q_BNAK.shape[-1], biased=bias is not None)
        implementation = best if ring_ways() == 1 else "gather"
        note_choice("sparse attention", implementation)
    refusal = refused(implementation, here, biased=bias is not None)
    if refusal:
        raise ValueError(refusal)
    if implementation == "pallas":
        from vidlang.ops.pallas_sparse import pallas_attention

        return on_local_heads(
            lambda q, k, v, graph: pallas_attention(q, k, v, graph, globals=globals), q_BNAK, k_BNAK, v_BNAK, graph
        )
    if implementation == "splash":
        from vidlang.ops.splash import splash_sparse

        return on_local_heads(
            lambda q, k, v, graph: splash_sparse(q, k, v, graph, globals=globals), q_BNAK, k_BNAK, v_BNAK, graph
        )
    rows = _gather if implementation == "gather" else _slots
    o_BNAK = rows(q_BNAK, k_BNAK, v_BNAK, graph, globals, bias)
    if not globals:
        return o_BNAK
    bias_BAGS = None
    if bias is not None:
        # Every device has it all, like the keys: the partitioner was seen to sum the table's gradient wrongly else.
        bias_BAGS = bias.between(bias.ids_BN[:, :globals], bias.ids_BN)
        bias_BAGS = constrain(bias_BAGS, None if bias_BAGS.shape[0] == 1 else "batch", "act_heads", None, None)
    o_BGAK = attend(q_BNAK[:, :globals], k_BNAK, v_BNAK, bias_BANS=bias_BAGS, implementation="fused")
    return jnp.concatenate([o_BGAK, o_BNAK], axis=1)


def best_here(platform: str, dtype: jnp.dtype, *, head_size: int, biased: bool) -> str:
    """What "auto" takes: pallas on GPUs in half precision with heads of 64 or 128, splash on TPUs, else gather.

    Only gather and slots know a bias, and no TPU knows float16.
    """
    if platform == "gpu" and dtype in HALF and head_size in KERNEL_HEADS and not biased:
        return "pallas"
    return "splash" if platform == "tpu" and dtype != jnp.float16 and not biased else "gather"


def refused(implementation: str, platform: str, *, biased: bool) -> str | None:
    """Why a named implementation cannot serve here, or None."""
    home = {"pallas": "gpu", "splash": "tpu"}.get(implementation)
    if home is None:
        return None
    if home != platform:
        return (
            f"sparse attention by {implementation!r} runs on a {home} and this is a {platform}; take 'auto' or 'gather'"
        )
    return f"sparse attention by {implementation!r} knows no bias; take 'gather' or 'slots'" if biased else None


class _Blocks:
    """How tokens are cut into blocks, and where the mesh wants query blocks."""

    def __init__(self, graph: BlockGraph, globals: int) -> None:
        self.graph, self.globals = graph, globals
        self.count, self.size = graph.index_QK.shape[0], graph.block
        # Query blocks without tokens make the number one that divides over the mesh.
        ways = ring_ways()
        self.query_count = -(-self.count // ways) * ways
        index_QK = jnp.pad(graph.index_QK, ((0, self.query_count - self.count), (0, 0)), constant_values=-1)
        self.index_QK = constrain(index_QK, "tokens", None)

    def keys(self, x_BNAK: jax.Array) -> jax.Array:
        """[B, N, A, K] -> [B, A, blocks, block, K], zeros where the last is empty."""
        return self._cut(x_BNAK, self.count)

    def queries(self, x_BNAK: jax.Array) -> jax.Array:
        """The same for queries, which lie over the mesh axis of tokens."""
        return constrain(self._cut(x_BNAK, self.query_count), "batch", "act_heads", "tokens", None, None)

    def _cut(self, x_BNAK: jax.Array, count: int) -> jax.Array:
        # Heads before tokens: then a block is contiguous and products over (B, A, Q) need no further turning.
        x_BANK = x_BNAK[:, self.globals :].swapaxes(1, 2)
        x_BANK = jnp.pad(x_BANK, ((0, 0), (0, 0), (0, count * self.size - self.graph.tokens), (0, 0)))
        return x_BANK.reshape(*x_BANK.shape[:2], count, self.size, x_BANK.shape[-1])

    def join(self, o_BAQGK: jax.Array) -> jax.Array:
        """[B, A, query blocks, block, K] -> [B, tokens, A, K]."""
        o_BANK = o_BAQGK.reshape(*o_BAQGK.shape[:2], -1, o_BAQGK.shape[-1])[:, :, : self.graph.tokens]
        return o_BANK.swapaxes(1, 2)

    def ids(self, ids_BN: jax.Array, count: int) -> jax.Array:
        """Places of the tokens, [B, blocks, block]; -1 where there is none, whose bias no one sees."""
        width = count * self.size - self.graph.tokens
        ids_BN = jnp.pad(ids_BN[:, self.globals :], ((0, 0), (0, width)), constant_values=-1)
        return ids_BN.reshape(ids_BN.shape[0], count, self.size)


def _gather(
    q_BNAK: jax.Array, k_BNAK: jax.Array, v_BNAK: jax.Array, graph: BlockGraph, globals: int, bias: RelativeBias | None
) -> jax.Array:
    """The tokens that the graph lists: all keys of a query block side by side, one product and one softmax."""
    cut, dtype = _Blocks(graph, globals), q_BNAK.dtype
    q_BAQGK, index_QK = cut.queries(q_BNAK), cut.index_QK
    taken = (_take_blocks(cut.keys(x), index_QK, cut.count) for x in (k_BNAK, v_BNAK))
    k_BAQSK, v_BAQSK = (constrain(x, "batch", "act_heads", "tokens", None, None) for x in taken)
    scale = q_BNAK.shape[-1] ** -0.5
    mask_QS = _real(index_QK, graph.block, graph.tokens).reshape(index_QK.shape[0], -1)
    # Adding is cheaper than choosing: its backward pass is nothing.
    add_BAQGS = jnp.where(mask_QS, 0.0, LOWEST)[None, None, :, None]
    bias_global = None
    if bias is not None:
        query_ids = cut.ids(bias.ids_BN, cut.query_count)
        key_ids = _take_ids(cut.ids(bias.ids_BN, cut.count), index_QK).reshape(*query_ids.shape[:2], -1)
        add_BAQGS = add_BAQGS + look_up(bias.table_RA, offset_rows(query_ids, key_ids, bias.grid))
        bias_global = _bias_to_global(bias.table_RA, query_ids, globals, bias.grid)
    logits_BAQGS = _matmul("BAQGK,BAQSK->BAQGS", q_BAQGK, k_BAQSK) * scale + add_BAQGS
    largest_BAQG1 = logits_BAQGS.max(axis=-1, keepdims=True)
    # The few global keys get their own product: appending them to the gathered ones would copy all of those.
    if globals:
        k_BSAK, v_BSAK = k_BNAK[:, :globals], v_BNAK[:, :globals]
        to_global_BAQGS = _matmul("BAQGK,BSAK->BAQGS", q_BAQGK, k_BSAK) * scale
        if bias_global is not None:
            to_global_BAQGS = to_global_BAQGS + bias_global
        largest_BAQG1 = jnp.maximum(largest_BAQG1, to_global_BAQGS.max(axis=-1, keepdims=True))
    # Whatever is subtracted cancels in the quotient, so no gradient flows through it.
    largest_BAQG1 = jax.lax.stop_gradient(largest_BAQG1)
    weights_BAQGS = jnp.exp(logits_BAQGS - largest_BAQG1)
    sum_BAQG1 = weights_BAQGS.sum(axis=-1, keepdims=True)
    o_BAQGK = _matmul("BAQGS,BAQSK->BAQGK", weights_BAQGS.astype(dtype), v_BAQSK)
    if globals:
        weights_BAQGS = jnp.exp(to_global_BAQGS - largest_BAQG1)
        sum_BAQG1 = sum_BAQG1 + weights_BAQGS.sum(axis=-1, keepdims=True)
        o_BAQGK = o_BAQGK + _matmul("BAQGS,BSAK->BAQGK", weights_BAQGS.astype(dtype), v_BSAK)
    o_BAQGK = (o_BAQGK / sum_BAQG1).astype(dtype)
    if not globals:
        some_Q = mask_QS.any(axis=-1)
        o_BAQGK = jnp.where(some_Q[None, None, :, None, None], o_BAQGK, jnp.zeros((), dtype))
    return cut.join(o_BAQGK)


def _slots(
    q_BNAK: jax.Array, k_BNAK: jax.Array, v_BNAK: jax.Array, graph: BlockGraph, globals: int, bias: RelativeBias | None
) -> jax.Array:
    """The tokens that the graph lists: their keys come slot by slot, and the backward pass fetches them again."""
    cut, tokens = _Blocks(graph, globals), graph.tokens
    grid = None if bias is None else bias.grid
    table_RA = None if bias is None else bias.table_RA
    query_ids = None if bias is None else cut.ids(bias.ids_BN, cut.query_count)
    slots_KQ, key_ids = cut.index_QK.T, None
    if bias is not None:
        key_ids = jnp.moveaxis(_take_ids(cut.ids(bias.ids_BN, cut.count), slots_KQ), 1, 0)

    def in_slot(source: Source) -> Piece:
        k_BAMGK, v_BAMGK, table_RA = source.shared
        index_Q, key_ids = source.data
        taken_Q = jnp.maximum(index_Q, 0)
        k_BAQGK, v_BAQGK = (x.at[:, :, taken_Q].get(mode="promise_in_bounds") for x in (k_BAMGK, v_BAMGK))
        bias_BAQGS = None if grid is None else look_up(table_RA, offset_rows(source.fixed, key_ids, grid))
        return Piece(k_BAQGK, v_BAQGK, bias_BAQGS, _real(index_Q, k_BAMGK.shape[3], tokens)[None, None, :, None])

    def to_global(source: Source) -> Piece:
        bias_BAQGS = None if grid is None else _bias_to_global(source.shared, source.fixed, globals, grid)
        k_BAQSK, v_BAQSK = source.own
        return Piece(k_BAQSK, v_BAQSK, bias_BAQGS)

    pieces = [in_slot]
    sources = [Source((cut.keys(k_BNAK), cut.keys(v_BNAK), table_RA), data=(slots_KQ, key_ids), fixed=query_ids)]
    if globals:
        own = tuple(x[None, :, :globals].transpose(0, 1, 3, 2, 4)[:, :, :, None] for x in (k_BNAK, v_BNAK))
        pieces.append(to_global)
        sources.append(Source(table_RA, own, fixed=query_ids))
    return cut.join(online_attention(tuple(pieces), cut.queries(q_BNAK), tuple(sources)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _take_blocks(x_BAMGK: jax.Array, index_QK: jax.Array, blocks: int) -> jax.Array:
    """The keys of each query block side by side, [B, A, Q, slots * block, K]; whatever for slots of -1.

    Gradients of a block that several rows take are summed in float32.
    """
    taken = x_BAMGK.at[:, :, jnp.maximum(index_QK, 0)].get(mode="promise_in_bounds")
    return taken.reshape(*x_BAMGK.shape[:2], index_QK.shape[0], -1, x_BAMGK.shape[-1])


def _take_blocks_forward(x_BAMGK: jax.Array, index_QK: jax.Array, blocks: int) -> tuple[jax.Array, jax.Array]:
    return _take_blocks(x_BAMGK, index_QK, blocks), index_QK


def _take_blocks_backward(blocks: int, index_QK: jax.Array, d_BAQSK: jax.Array) -> tuple[jax.Array, None]:
    batch, heads, rows, _, size = d_BAQSK.shape
    d_BAQKGK = d_BAQSK.reshape(batch, heads, *index_QK.shape, -1, size)
    total = jnp.zeros((batch, heads, blocks, *d_BAQKGK.shape[-2:]), jnp.float32)
    # Slots of -1 go beyond the end and are dropped.
    into_QK = jnp.where(index_QK < 0, blocks, index_QK)
    total = total.at[:, :, into_QK].add(d_BAQKGK.astype(jnp.float32), mode="drop")
    return total.astype(d_BAQSK.dtype), None


_take_blocks.defvjp(_take_blocks_forward, _take_blocks_backward)


def _take_ids(ids_BMG: jax.Array, index_xy: jax.Array) -> jax.Array:
    """[B, blocks, block] -> [B, x, y, block]; whatever for slots of -1."""
    return ids_BMG.at[:, jnp.maximum(index_xy, 0)].get(mode="promise_in_bounds")


def _real(index_x: jax.Array, block: int, tokens: int) -> jax.Array:
    """Which places [x, block] of these blocks hold a token; none of a slot of -1."""
    place_xG = index_x[..., None] * block + jnp.arange(block).reshape((1,) * index_x.ndim + (block,))
    return (index_x >= 0)[..., None] & (place_xG < tokens)


def _bias_to_global(table_RA: jax.Array, query_ids: jax.Array, globals: int, grid: Grid) -> jax.Array:
    """[B, A, query blocks, block, globals]."""
    cls = jnp.full((*query_ids.shape[:2], globals), -1, jnp.int32)
    return look_up(table_RA, offset_rows(query_ids, cls, grid))


def _matmul(equation: str, one: jax.Array, other: jax.Array) -> jax.Array:
    return jnp.einsum(equation, one, other, preferred_element_type=jnp.float32)


def _check(
    q_BNAK: jax.Array,
    k_BNAK: jax.Array,
    v_BNAK: jax.Array,
    graph: BlockGraph,
    globals: int,
    bias: RelativeBias | None,
    implementation: str,
) -> None:
    """ValueError for a request that no implementation here serves."""
    if implementation not in SPARSE_IMPLEMENTATIONS:
        known = ", ".join(SPARSE_IMPLEMENTATIONS)
        raise ValueError(f"unknown sparse attention {implementation!r}; there are: {known}")
    shapes = f"q {q_BNAK.shape}, k {k_BNAK.shape}, v {v_BNAK.shape}"
    if q_BNAK.ndim != 4 or not q_BNAK.shape == k_BNAK.shape == v_BNAK.shape:
        raise ValueError(f"sparse attention takes q, k and v of one shape [B, N, A, K]; found {shapes}")
    dtypes = {str(x.dtype) for x in (q_BNAK, k_BNAK, v_BNAK)}
    if len(dtypes) > 1 or not jnp.issubdtype(q_BNAK.dtype, jnp.floating):
        raise ValueError(f"q, k and v must share one floating dtype; found {', '.join(sorted(dtypes))}")
    check_shape(graph)
    batch, tokens, heads, _ = q_BNAK.shape
    if globals < 0 or globals + graph.tokens != tokens:
        raise ValueError(
            f"{globals} global tokens and a graph of {graph.tokens} do not make the {tokens} tokens of q; "
            "draw the graph for the tokens that are left where it is used"
        )
    if bias is not None:
        bias.check(batch, tokens, heads)
