"""Hard negatives: for each row of a batch, another row whose text or clip does not belong to it, yet nearly could.

Candidate j of row i is drawn with a probability in proportion to softmax_j(scale * cosine_ij) + FLOOR (SViTT). Rows
that say or show the same as row i are no negatives of it and never drawn. Where all others do, any of them is drawn,
each as likely as the next: every row has a partner, so that shapes do not depend on what a batch holds.

Candidates are those of the global batch. Each device takes its own rows, a chunk at a time, so that no device ever
holds B x B weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from vidlang.core.sharding import per_batch_shard
from vidlang.ops.draws import row_keys

# What every candidate has beside its share of the softmax, as published: even the least alike is drawn at times.
FLOOR = 1e-4


def draw_negatives(
    key: jax.Array,
    query_BE: jax.Array,
    candidate_BE: jax.Array,
    scale: jax.Array,
    marks: Sequence[jax.Array],
    rows_B: jax.Array | None = None,
    *,
    hard: bool = True,
    chunk: int = 128,
) -> jax.Array:
    """The number of the row [B] whose candidate was drawn for each query; no gradient passes through a draw.

    Both kinds of rows have length one. Each of `marks` holds numbers [B, x], equal where two rows are of the same
    thing: token ids, or `fingerprint` of clips. `hard` False draws from all that are left alike. `rows_B`: which rows
    of a larger batch the queries are. `chunk` rows a device are worked on at once; it never changes the result.
    """
    batch = query_BE.shape[0]
    if batch < 2:
        raise ValueError(f"a batch of {batch} has no other row to draw a negative from; give at least 2 pairs")
    query_BE, candidate_BE, scale = jax.lax.stop_gradient((query_BE, candidate_BE, scale))

    def device_rows(
        key_R: jax.Array,
        query_RE: jax.Array,
        candidate_RE: jax.Array,
        index_R: jax.Array,
        *rest: jax.Array,
        gather: Callable[[jax.Array], jax.Array],
    ) -> jax.Array:
        *marks_R, scale = rest
        candidate_BE, marks_B = gather(candidate_RE), [gather(mark) for mark in marks_R]

        def one_row(row: tuple[jax.Array, ...]) -> jax.Array:
            key, query_E, index, *own = row
            itself_B = jnp.arange(batch) == index
            same_B = itself_B
            for mark, mark_B in zip(own, marks_B, strict=True):
                same_B = same_B | (mark_B == mark[None]).all(axis=1)
            weight_B = weights(query_E, candidate_BE, scale if hard else jnp.zeros_like(scale), same_B, itself_B)
            return jax.random.categorical(key, jnp.log(weight_B)).astype(jnp.int32)

        return jax.lax.map(one_row, (key_R, query_RE, index_R, *marks_R), batch_size=chunk)

    keys = row_keys(key, rows_B, batch)
    arrays = keys, query_BE, candidate_BE, jnp.arange(batch), *marks
    return per_batch_shard(device_rows, *arrays, replicated=(scale,))


def weights(
    query_E: jax.Array, candidate_BE: jax.Array, scale: jax.Array, same_B: jax.Array, itself_B: jax.Array
) -> jax.Array:
    """In what proportions the candidates of one query are drawn; the softmax is over all, itself included."""
    score_B = jnp.einsum("E,BE->B", query_E, candidate_BE, precision=jax.lax.Precision.HIGHEST)
    weight_B = jnp.where(same_B, 0.0, jax.nn.softmax(scale * score_B) + FLOOR)
    return jnp.where(same_B.all(), jnp.where(itself_B, 0.0, 1.0), weight_B)


def fingerprint(video_BTHWC: jax.Array) -> jax.Array:
    """Two whole numbers [B, 2] for each clip, equal for equal pixels; others share them by a chance of 2 ** -64.

    Sums of whole numbers come out the same in whatever order devices add them, which sums of floats do not.
    """
    pixels = video_BTHWC.reshape(video_BTHWC.shape[0], -1)
    if jnp.issubdtype(pixels.dtype, jnp.floating):
        pixels = jax.lax.bitcast_convert_type(pixels.astype(jnp.float32), jnp.uint32)
    pixels = pixels.astype(jnp.uint32)
    place = jnp.arange(pixels.shape[1], dtype=jnp.uint32)
    sums = [((pixels + jnp.uint32(1)) * _scramble(place, seed)[None]).sum(axis=1, dtype=jnp.uint32) for seed in (1, 2)]
    return jnp.stack(sums, axis=1)


def _scramble(place: jax.Array, seed: int) -> jax.Array:
    """An odd factor for every place that looks drawn at random."""
    x = place * jnp.uint32(2654435761) + jnp.uint32(seed * 0x9E3779B9 & 0xFFFFFFFF)
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return (x ^ (x >> 16)) | jnp.uint32(1)
