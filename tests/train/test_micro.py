"""Steps in parts: the whole batch's loss and gradients, in less memory, whatever rows draw and on any mesh."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.core.sharding import make_mesh, put_batch, tree_shardings, use_mesh
from vidlang.models.dual_encoder import Model
from vidlang.objectives.contrastive import loss as contrastive
from vidlang.ops.dials import Dials, streams
from vidlang.train.micro import Micro, Task, gradients, join, split
from vidlang.train.step import pick_inputs

TRANSFORMER = {"layers": 2, "width": 32, "heads": 4, "mlp": 64, "dtype": "float32"}
MODEL = Model(
    {"transformer": TRANSFORMER, "tubelet": (2, 8, 8), "pool": "cls"},
    {"vocab": 16, "max_length": 4, "transformer": {**TRANSFORMER, "layers": 1}, "pool": "mean"},
    8,
    {"init": 0.1, "max_scale": 100.0, "learnable": True},
)
RNG = np.random.default_rng(0)
BATCH = {
    "video_BTHWC": RNG.integers(0, 256, (8, 4, 32, 32, 3)).astype(np.uint8),
    "text_BL": RNG.integers(1, 16, (8, 4)).astype(np.int32),
}
# All that a step draws: masks by row, one schedule and one graph a layer for all rows.
DIALS = Dials(
    mask=0.25, widths={"name": "dec", "shares": (1.0, 0.5)}, edges={"local": 1, "random": 1, "block": 4}, keep={0: 0.5}
)


@functools.cache
def params():
    init = functools.partial(MODEL.init, train=False)
    return jax.jit(lambda key: nn.unbox(init(key, *BATCH.values())["params"]))(jax.random.key(0))


def graded(micro, loss=contrastive, batch=BATCH, params=params, dials=DIALS):
    @jax.jit
    def run(params, batch):
        task = Task(
            MODEL,
            lambda trained: trained,
            loss,
            lambda batch: pick_inputs(MODEL, batch),
            dials,
            streams(jax.random.key(3)),
        )
        return gradients(task, params, batch, micro)

    return run.lower(params(), batch).compile()


def assert_same(one, other, **tolerance):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), **tolerance)


@pytest.mark.slow
def test_cached_parts_give_the_whole_batchs_gradients_in_less_memory():
    whole, parts = graded(Micro()), graded(Micro(4))
    assert_same(whole(params(), BATCH), parts(params(), BATCH), rtol=2e-4, atol=2e-6)
    assert parts.memory_analysis().temp_size_in_bytes < 0.6 * whole.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_cached_parts_on_eight_devices_are_the_whole_batch_on_one():
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    boxed = jax.eval_shape(functools.partial(MODEL.init, train=False), jax.random.key(0), *BATCH.values())["params"]
    with use_mesh(mesh):
        placed = jax.device_put(params(), tree_shardings(boxed, mesh))
        batch = put_batch(BATCH, mesh)
        found = jax.device_get(graded(Micro(2), batch=batch, params=lambda: placed)(placed, batch))
    assert_same(graded(Micro())(params(), BATCH), found, rtol=2e-3, atol=2e-5)


def per_row(outputs, batch):
    """A mean over rows, none of which is compared with another."""
    loss = jnp.square(outputs.video_BE - outputs.text_BE).sum(axis=1).mean()
    return loss, {"copy": loss}


@pytest.mark.slow
def test_averaged_parts_are_the_mean_over_rows_and_another_loss_where_rows_are_compared():
    dials = Dials(mask=0.5)
    alone = graded(Micro(), per_row, dials=dials)(params(), BATCH)
    assert_same(alone, graded(Micro(4, "averaged"), per_row, dials=dials)(params(), BATCH), rtol=2e-4, atol=2e-6)
    assert_same(alone, graded(Micro(4), per_row, dials=dials)(params(), BATCH), rtol=2e-4, atol=2e-6)
    (compared, _), _ = graded(Micro(), dials=dials)(params(), BATCH)
    (in_parts, _), _ = graded(Micro(4, "averaged"), dials=dials)(params(), BATCH)
    assert abs(compared - in_parts) > 0.1


def test_parts_take_rows_in_turn_and_come_back_in_order():
    rows = {"row": jnp.arange(12).reshape(6, 2)}
    parts = split(rows, 3)
    np.testing.assert_array_equal(parts["row"][1, :, 0], [2, 8])
    np.testing.assert_array_equal(join(parts)["row"], rows["row"])


@pytest.mark.parametrize(
    ("micro", "batch", "words"),
    [
        (lambda: Micro(3), BATCH, "a batch of 8 does not divide into 3 parts"),
        (lambda: Micro(2, "averaged"), BATCH | {"mix_partner_B": np.arange(8)}, "set micro.how='cached'"),
        (lambda: Micro(0), BATCH, "micro.batches is 0"),
        (lambda: Micro(2, "cache"), BATCH, "it is one of cached, averaged"),
    ],
)
def test_what_cannot_be_taken_in_parts_is_one_sentence(micro, batch, words):
    with pytest.raises(ValueError, match=words):
        graded(micro(), batch=batch)
