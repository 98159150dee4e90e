"""Hard negatives: what must not be drawn never is, the rest by its softmax, and the same on one device and on eight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.core.sharding import make_mesh, put_batch, use_mesh
from vidlang.ops.negatives import FLOOR, draw_negatives, fingerprint

RNG = np.random.default_rng(0)
BATCH, SCALE, DRAWS = 8, 3.0, 4000
QUERY, CANDIDATE = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in RNG.normal(size=(2, BATCH, 5)))
QUERY, CANDIDATE = QUERY.astype(np.float32), CANDIDATE.astype(np.float32)
# Rows 0, 3 and 5 say the same; rows 1 and 3 show the same.
TEXT = np.arange(BATCH * 4).reshape(BATCH, 4)
TEXT[[3, 5]] = TEXT[0]
CLIP = np.arange(BATCH * 2).reshape(BATCH, 2)
CLIP[3] = CLIP[1]
LEFT_OUT = {0: {0, 3, 5}, 1: {1, 3}, 3: {0, 1, 3, 5}, 5: {0, 3, 5}}


def expected() -> np.ndarray:
    """Probabilities of every candidate for every row, from the formula."""
    score = SCALE * QUERY.astype(np.float64) @ CANDIDATE.astype(np.float64).T
    weight = np.exp(score) / np.exp(score).sum(axis=1, keepdims=True) + FLOOR
    for row in range(BATCH):
        weight[row, list(LEFT_OUT.get(row, {row}))] = 0
    return weight / weight.sum(axis=1, keepdims=True)


@functools.cache
def counts(hard: bool) -> np.ndarray:
    """How often each candidate was drawn for each row."""
    draw = jax.jit(jax.vmap(lambda key: draw_negatives(key, QUERY, CANDIDATE, SCALE, (TEXT, CLIP), hard=hard)))
    found = np.asarray(draw(jax.random.split(jax.random.key(1), DRAWS)))
    return np.stack([np.bincount(found[:, row], minlength=BATCH) for row in range(BATCH)])


@pytest.mark.parametrize("hard", [True, False])
def test_the_same_text_or_clip_is_never_drawn_and_others_by_their_share(hard: bool) -> None:
    shares = expected() if hard else np.where(expected() > 0, 1, 0) / (expected() > 0).sum(axis=1, keepdims=True)
    assert (counts(hard)[shares == 0] == 0).all()
    for count, share in zip(counts(hard), shares, strict=True):
        may = share > 0
        wanted = DRAWS * share[may]
        square = ((count[may] - wanted) ** 2 / wanted).sum()
        degrees = may.sum() - 1
        assert square < degrees + 4.5 * np.sqrt(2 * degrees), "the frequencies are not these probabilities"


def test_a_sharp_softmax_leaves_only_the_floor_to_the_others() -> None:
    """As published, the softmax is over the own pair too: where that has all of it, others are drawn alike."""
    same = np.eye(6, dtype=np.float32)
    draw = jax.jit(jax.vmap(lambda key: draw_negatives(key, same, same, jnp.float32(100.0), ())))
    found = np.asarray(draw(jax.random.split(jax.random.key(2), 1000)))
    count = np.bincount(found[:, 0], minlength=6)
    assert count[0] == 0 and count[1:].min() > 150


def test_a_row_without_any_other_thing_draws_from_all_others_but_itself() -> None:
    text = np.ones((4, 3), int)
    draw = jax.jit(jax.vmap(lambda key: draw_negatives(key, QUERY[:4], CANDIDATE[:4], 50.0, (text,))))
    found = np.asarray(draw(jax.random.split(jax.random.key(2), 600)))
    for row in range(4):
        count = np.bincount(found[:, row], minlength=4)
        assert count[row] == 0 and np.delete(count, row).min() > 150


@pytest.mark.slow
def test_rows_and_chunks_never_change_a_draw_and_no_gradient_passes() -> None:
    draw = functools.partial(draw_negatives, jax.random.key(3), QUERY, CANDIDATE, SCALE, (TEXT, CLIP))
    found = draw()
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(draw(chunk=3), found)
    np.testing.assert_array_equal(draw(jnp.arange(BATCH)), found)
    assert (draw(jnp.arange(BATCH) + 8) != found).any(), "rows of another part draw anew"


@pytest.mark.parametrize("sizes", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_eight_devices_draw_what_one_does(sizes: dict[str, int]) -> None:
    batch = {"query": QUERY, "candidate": CANDIDATE, "text": TEXT.astype(np.int32), "clip": CLIP.astype(np.int32)}

    def draw(batch: dict[str, jax.Array]) -> jax.Array:
        marks = batch["text"], batch["clip"]
        return draw_negatives(jax.random.key(4), batch["query"], batch["candidate"], jnp.float32(SCALE), marks, chunk=2)

    alone = draw(batch)
    mesh = make_mesh(sizes)
    with use_mesh(mesh):
        np.testing.assert_array_equal(jax.jit(draw)(put_batch(batch, mesh)), alone)


def test_one_row_has_no_negative() -> None:
    with pytest.raises(ValueError, match="a batch of 1 has no other row"):
        draw_negatives(jax.random.key(0), QUERY[:1], CANDIDATE[:1], SCALE, ())


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_fingerprints_tell_clips_apart_by_any_one_pixel(dtype: type) -> None:
    clip = RNG.integers(0, 256, (2, 4, 4, 3)).astype(dtype)
    changed = np.stack([clip] * 6)
    changed[1, 0, 0, 0, 0] += dtype(1) if clip[0, 0, 0, 0] < 255 else dtype(255)
    changed[2] = changed[2, ::-1]
    changed[3] = changed[3, :, :, ::-1]
    changed[4, 1, 3, 3, 2] += dtype(1) if clip[1, 3, 3, 2] < 255 else dtype(255)
    marks = np.asarray(fingerprint(jnp.asarray(changed)))
    assert marks.shape == (6, 2) and (marks[0] == marks[5]).all()
    for column in range(2):
        assert len(set(marks[:, column])) == 5
