"""One flipped bit makes another digest, how arrays lie on devices does not; and a checkpoint with one is not used."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.core.sharding import make_mesh, tree_shardings
from vidlang.train.checkpoint import Checkpoints, opened
from vidlang.train.digest import digest
from vidlang.train.recipe import CheckpointPlan
from vidlang.train.saved import all_steps, make_note, restore_params
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


PLAN = CheckpointPlan(keep=3)
CONFIG = {"seed": 0, "stages": ({"name": "a"},)}
NOTE = make_note(CONFIG, 0, {"x": jax.ShapeDtypeStruct((4, 8), np.int32)}, {})


def state_of(step, change=0.0):
    return TrainState(jnp.int32(step), {"a": jnp.arange(8.0).at[3].add(change)}, {"m": jnp.ones(2)})


def saved_and_damaged(folder):
    """Two checkpoints, the newer as it would be after silent damage: its files are whole, and hold something else."""
    with opened(Checkpoints(folder, PLAN, NOTE)) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state_of(step))
    with opened(Checkpoints(folder / "other", PLAN, NOTE)) as checkpoints:
        checkpoints.save(2, state_of(2, change=1e-6))
    damaged = folder / "checkpoints/2/params"
    damaged.rename(folder / "was")
    (folder / "other/checkpoints/2/params").rename(damaged)


def test_changed_numbers_are_set_aside_and_the_ones_before_are_used(tmp_path, caplog):
    saved_and_damaged(tmp_path)
    with opened(Checkpoints(tmp_path, PLAN, NOTE)) as checkpoints:
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state_of(0))
        assert int(checkpoints.restore(abstract).step) == 1
    assert "checkpoints/2 cannot be read (step 2: its numbers are not those that were saved" in caplog.text
    assert all_steps(tmp_path) == [1] and (tmp_path / "unreadable_checkpoints/2").is_dir()


def test_changed_parameters_alone_are_refused(tmp_path):
    """For an evaluation, a start from another run, a model that is loaded: they asked for this one and no other."""
    saved_and_damaged(tmp_path)
    mesh = make_mesh({"data": -1})
    np.testing.assert_array_equal(restore_params(tmp_path, 1, mesh)["a"], np.arange(8.0))
    with pytest.raises(ValueError, match="checkpoints/2 are not those that were saved: the files have changed"):
        restore_params(tmp_path, 2, mesh)


def test_parameters_of_before_there_were_digests_are_read(tmp_path):
    saved_and_damaged(tmp_path)
    path = tmp_path / "checkpoints/2/note/metadata"
    note = json.loads(path.read_text())
    del note["params_digest"]
    path.write_text(json.dumps(note))
    assert restore_params(tmp_path, 2, make_mesh({"data": -1}))["a"][3] == np.float32(3 + 1e-6)
