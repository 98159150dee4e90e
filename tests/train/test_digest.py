"""One flipped bit makes another digest, how arrays lie on devices does not; and a checkpoint with one is not used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.core.sharding import make_mesh, tree_shardings
from vidlang.train.checkpoint import Checkpoints, opened
from vidlang.train.digest import digest
from vidlang.train.recipe import CheckpointPlan
from vidlang.train.saved import all_steps, make_note
from vidlang.train.step import TrainState

DTYPES = ["float32", "bfloat16", "int32", "int8", "bool"]


def tree_of(dtype):
    rng = np.random.default_rng(0)
    return {
        "a": rng.integers(0, 2, (3, 4, 5)).astype(dtype),
        "b": {"c": np.ones((), dtype)},
        "d": np.ones(8, np.float32),
    }


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_flipped_bit_is_seen(dtype):
    rng, tree = np.random.default_rng(1), tree_of(jnp.dtype(dtype))
    whole = digest(tree)
    assert digest(jax.tree.map(np.copy, tree)) == whole
    seen = set()
    for _ in range(60):
        changed = jax.tree.map(np.copy, tree)
        raw = changed["a"].view(np.uint8).reshape(-1)
        if dtype == "bool":
            raw[rng.integers(raw.size)] ^= 1
        else:
            raw[rng.integers(raw.size)] ^= np.uint8(1 << rng.integers(8))
        seen.add(digest(changed))
    assert whole not in seen


def test_order_and_place_count():
    x = np.arange(6, dtype=np.float32)
    trees = [{"a": x, "b": x + 1}, {"a": x + 1, "b": x}, {"a": x[::-1].copy(), "b": x + 1}]
    assert len({digest(tree) for tree in trees}) == 3
    assert digest([x.reshape(2, 3)]) != digest([x.reshape(2, 3)[::-1].copy()])
    assert digest([x.reshape(2, 3)]) != digest([x.reshape(2, 3)[:, ::-1].copy()])
    assert digest([np.float32(0.0)]) != digest([np.float32(-0.0)])
    assert digest([np.float32(np.nan)]) == digest([np.float32(np.nan)])


@pytest.mark.parametrize("sizes", [{"data": 8}, {"fsdp": 8}, {"fsdp": 2, "tensor": 4}], ids=str)
def test_the_layout_does_not_count(sizes):
    import flax.linen as nn

    rng = np.random.default_rng(0)
    host = {"w": rng.normal(size=(16, 8)).astype(np.float32), "b": rng.normal(size=8).astype(np.float32)}
    boxed = {"w": nn.LogicallyPartitioned(host["w"], ("embed", "mlp")), "b": host["b"]}
    shardings = tree_shardings(jax.eval_shape(lambda: boxed), make_mesh(sizes))
    assert digest(jax.device_put(host, shardings)) == digest(host)


def test_changed_numbers_are_set_aside_and_the_ones_before_are_used(tmp_path, caplog):
    """As they would be after silent damage: the files are whole, and hold something else."""
    note = make_note({"seed": 0, "stages": ({"name": "a"},)}, 0, {"x": jax.ShapeDtypeStruct((4, 8), np.int32)}, {})
    plan = CheckpointPlan(keep=3)

    def state_of(step, change=0.0):
        return TrainState(jnp.int32(step), {"a": jnp.arange(8.0).at[3].add(change)}, {"m": jnp.ones(2)})

    with opened(Checkpoints(tmp_path, plan, note)) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state_of(step))
    with opened(Checkpoints(tmp_path / "other", plan, note)) as checkpoints:
        checkpoints.save(2, state_of(2, change=1e-6))
    damaged = tmp_path / "checkpoints/2/params"
    damaged.rename(tmp_path / "was")
    (tmp_path / "other/checkpoints/2/params").rename(damaged)
    with opened(Checkpoints(tmp_path, plan, note)) as checkpoints:
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state_of(0))
        assert int(checkpoints.restore(abstract).step) == 1
    assert "checkpoints/2 cannot be read (step 2: its numbers are not those that were saved" in caplog.text
    assert all_steps(tmp_path) == [1] and (tmp_path / "unreadable_checkpoints/2").is_dir()
