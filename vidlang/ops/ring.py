"""Dense attention of tokens that lie on several devices, those of the mesh axis "context": keys go round in a ring.

Each device keeps its own queries. In every turn it attends to the stretch of keys and values that it holds and hands
them on to its neighbour, so after as many turns as there are devices every query has met every key, and no device ever
held more than two stretches. The softmax runs on through the turns in float32. The backward pass goes round once more,
and the gradients of keys and values travel with them, in float32, until they are back at home.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from vidlang.core.sharding import active_mesh, partition_spec
from vidlang.ops.chunked import CHUNK, chunked_attention, chunks, cut, join
from vidlang.ops.online_softmax import Given, Running, add_pieces, delta, finish, pull_pieces, start

AXIS = "context"


def ring_ways() -> int:
    """Over how many devices tokens lie here."""
    mesh = active_mesh()
    return 1 if mesh is None or mesh.manual_axes else mesh.shape[AXIS]


def ring_attention(
    q_BNAK: jax.Array,
    k_BSAK: jax.Array,
    v_BSAK: jax.Array,
    mask_BANS: jax.Array | None = None,
    bias_BANS: jax.Array | None = None,
    *,
    causal: bool = False,
    chunk: int = CHUNK,
) -> jax.Array:
    """What `chunked_attention` gives, by the devices of the mesh axis "context" together.

    Tokens may be any number: where they do not divide over the devices, the last of these hold some that are none.
    """
    ways = ring_ways()
    if ways == 1:
        return chunked_attention(q_BNAK, k_BSAK, v_BSAK, mask_BANS, bias_BANS, causal=causal, chunk=chunk)
    queries, keys = q_BNAK.shape[1], k_BSAK.shape[1]
    own = ("batch", "act_heads", "tokens", None)
    arrays = {name: _lengthen(x.swapaxes(1, 2), 2, ways) for name, x in (("q", q_BNAK), ("k", k_BSAK), ("v", v_BSAK))}
    specs = {name: partition_spec(own) for name in arrays}
    for name, x_BANS in (("mask", mask_BANS), ("bias", bias_BANS)):
        if x_BANS is not None:
            x_BANS = _lengthen(x_BANS, 3, ways)
            arrays[name] = x_BANS if x_BANS.shape[2] == 1 else _lengthen(x_BANS, 2, ways)
            # Every device has the rows of its queries, with the columns of all keys.
            rows = (None if size == 1 else axis for axis, size in zip(own[:3], x_BANS.shape[:3], strict=True))
            specs[name] = partition_spec((*rows, None))
    ring = _Ring(ways, keys, causal, chunk)

    def local(arrays: dict[str, jax.Array]) -> jax.Array:
        return _attention(ring, *(arrays.get(name) for name in ("q", "k", "v", "mask", "bias")))

    # A loop's carry changes over which mesh axes it varies, which cannot be checked.
    whole = jax.shard_map(local, in_specs=(specs,), out_specs=specs["q"], check_vma=False)
    return whole(arrays).swapaxes(1, 2)[:, :queries]


@dataclass(frozen=True)
class _Ring:
    """How many devices are in it, and how many keys there are in all."""

    ways: int
    keys: int
    causal: bool
    chunk: int

    def pass_on(self, x: Any) -> Any:
        """Arrays of the next device, which all give theirs to the one before."""
        return jax.lax.ppermute(x, AXIS, [(i, (i - 1) % self.ways) for i in range(self.ways)])

    def pieces(self, q_BANK: jax.Array, stretch: int) -> Any:
        """What a chunk holds, for the queries here."""
        total = self.keys if self.keys < stretch * self.ways else None
        return chunks(q_BANK.shape[2], stretch, causal=self.causal, chunk=self.chunk, total=total)

    def cut(self, kv_2BASK: jax.Array, q_BANK: jax.Array, mask: Any, bias: Any, turn: jax.Array) -> Any:
        """The chunks of the keys that are here in this turn."""
        stretch = kv_2BASK.shape[3]
        key = self.first(turn) * stretch
        mask, bias = (None if x is None else jax.lax.dynamic_slice_in_dim(x, key, stretch, 3) for x in (mask, bias))
        places = jax.lax.axis_index(AXIS) * q_BANK.shape[2], key
        return cut(kv_2BASK[0], kv_2BASK[1], mask, bias, first=places, chunk=self.chunk)

    def first(self, turn: jax.Array) -> jax.Array:
        """Whose keys are here."""
        return (jax.lax.axis_index(AXIS) + turn) % self.ways


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(ring: _Ring, q_BANK: Any, k_BASK: Any, v_BASK: Any, mask_BANS: Any, bias_BANS: Any) -> jax.Array:
    return _forward(ring, q_BANK, k_BASK, v_BASK, mask_BANS, bias_BANS)[0]


def _forward(ring: _Ring, q_BANK: Any, k_BASK: Any, v_BASK: Any, mask_BANS: Any, bias_BANS: Any) -> tuple[Any, Any]:
    pieces = ring.pieces(q_BANK, k_BASK.shape[2])

    def add(running: Running, kv_2BASK: jax.Array, turn: Any) -> Running:
        return add_pieces(pieces, q_BANK, ring.cut(kv_2BASK, q_BANK, mask_BANS, bias_BANS, turn), running)

    def step(carry: tuple[Running, jax.Array], turn: jax.Array) -> tuple[Any, None]:
        running, kv_2BASK = carry
        # What comes is asked for first: it travels while the devices work.
        coming_2BASK = ring.pass_on(kv_2BASK)
        return (add(running, kv_2BASK, turn), coming_2BASK), None

    carry = start(q_BANK), jnp.stack([k_BASK, v_BASK])
    (running, kv_2BASK), _ = jax.lax.scan(step, carry, jnp.arange(ring.ways - 1))
    o_BANK, total_BAN = finish(add(running, kv_2BASK, ring.ways - 1), q_BANK.dtype)
    return o_BANK, (q_BANK, k_BASK, v_BASK, mask_BANS, bias_BANS, o_BANK, total_BAN)


def _backward(ring: _Ring, kept: tuple[Any, ...], do_BANK: jax.Array) -> tuple[Any, ...]:
    q_BANK, k_BASK, v_BASK, mask_BANS, bias_BANS, o_BANK, total_BAN = kept
    given = Given(q_BANK, do_BANK, total_BAN, delta(o_BANK, do_BANK))
    stretch = k_BASK.shape[2]
    pieces = ring.pieces(q_BANK, stretch)

    def turn_of(dq_BANK: jax.Array, dbias_BANS: Any, kv_2BASK: jax.Array, turn: Any) -> tuple[Any, Any, jax.Array]:
        """dq and dbias with what the keys here add to them, and these keys' and values' own gradients."""
        # In float32, gradients come back in it, and are summed in it over all devices.
        source = ring.cut(kv_2BASK.astype(jnp.float32), q_BANK, mask_BANS, bias_BANS, turn)
        dq_BANK, d_source = pull_pieces(pieces, given, source, dq_BANK)
        *d_kv, d_bias = d_source.own
        if dbias_BANS is not None:
            columns_BANS = join(d_bias, stretch).swapaxes(2, 3)
            key = ring.first(turn) * stretch
            dbias_BANS = jax.lax.dynamic_update_slice_in_dim(dbias_BANS, columns_BANS, key, 3)
        return dq_BANK, dbias_BANS, jnp.stack([join(d, stretch) for d in d_kv])

    def step(carry: tuple[Any, ...], turn: jax.Array) -> tuple[Any, None]:
        dq_BANK, dbias_BANS, kv_2BASK, dkv_2BASK = carry
        # Gradients of the turn before follow their keys, which left then; both travel while the devices work.
        coming_2BASK, dkv_2BASK = ring.pass_on((kv_2BASK, dkv_2BASK))
        dq_BANK, dbias_BANS, d_2BASK = turn_of(dq_BANK, dbias_BANS, kv_2BASK, turn)
        return (dq_BANK, dbias_BANS, coming_2BASK, dkv_2BASK + d_2BASK), None

    kv_2BASK = jnp.stack([k_BASK, v_BASK])
    dbias_BANS = None if bias_BANS is None else jnp.zeros_like(bias_BANS)
    carry = jnp.zeros(q_BANK.shape, jnp.float32), dbias_BANS, kv_2BASK, jnp.zeros(kv_2BASK.shape, jnp.float32)
    (dq_BANK, dbias_BANS, kv_2BASK, dkv_2BASK), _ = jax.lax.scan(step, carry, jnp.arange(ring.ways - 1))
    dq_BANK, dbias_BANS, d_2BASK = turn_of(dq_BANK, dbias_BANS, kv_2BASK, ring.ways - 1)
    # The last turn's keys are those of the device before, and one pass brings their gradients home.
    dk_BASK, dv_BASK = ring.pass_on(ring.pass_on(dkv_2BASK) + d_2BASK).astype(k_BASK.dtype)
    return dq_BANK.astype(q_BANK.dtype), dk_BASK, dv_BASK, None, dbias_BANS


_attention.defvjp(_forward, _backward)


def _lengthen(x: jax.Array, axis: int, ways: int) -> jax.Array:
    """With zeros after the end, so that the axis divides over the devices."""
    missing = -x.shape[axis] % ways
    return jnp.pad(x, [(0, missing if each == axis else 0) for each in range(x.ndim)]) if missing else x
