import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.core import sharding

MESHES = [{"data": 8}, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}]


@pytest.fixture(params=MESHES, ids=str)
def mesh(request):
    return sharding.make_mesh(request.param)


def test_minus_one_takes_the_rest():
    assert dict(sharding.make_mesh({"data": -1, "tensor": 2}).shape) == {
        "data": 4,
        "fsdp": 1,
        "tensor": 2,
        "context": 1,
    }


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 3}, "does not divide the 8 devices"),
        ({"data": 3, "fsdp": -1}, "does not divide the 8 devices"),
        ({"dat": 8}, "unknown mesh axis 'dat'"),
        ({"data": -1, "fsdp": -1}, "at most one"),
        ({"data": 0}, "must be positive"),
    ],
)
def test_a_mesh_that_does_not_fit_is_one_sentence(sizes, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(sizes)


def test_constrain_takes_effect(mesh):
    x = np.ones((16, 8, 4), np.float32)
    with sharding.use_mesh(mesh):
        y = jax.jit(lambda x: sharding.constrain(x * 2, "batch", "act_mlp", None))(x)
    ways = sharding.batch_ways(mesh)
    assert y.sharding.shard_shape(y.shape) == (16 // ways, 8 // mesh.shape["tensor"], 4)


@pytest.mark.parametrize("active", [False, True])
def test_constrain_refuses_bad_names_with_and_without_a_mesh(active):
    mesh = sharding.make_mesh({"data": 8})
    x = jnp.ones((8, 8))
    with sharding.use_mesh(mesh) if active else jax.named_scope("no_mesh"):
        with pytest.raises(ValueError, match="unknown logical axis 'btach'"):
            sharding.constrain(x, "btach", None)
        with pytest.raises(ValueError, match="both map to the mesh axis 'tensor'"):
            sharding.constrain(x, "act_heads", "act_mlp")
        with pytest.raises(ValueError, match="1 names"):
            sharding.constrain(x, "batch")


def test_constrain_refuses_a_size_that_does_not_divide(mesh):
    with sharding.use_mesh(mesh), pytest.raises(ValueError, match="does not divide"):
        sharding.constrain(jnp.ones((7, 8)), "batch", None)


def test_parameters_are_really_sharded(mesh):
    def init(key):
        kernel = nn.with_logical_partitioning(nn.initializers.normal(), ("embed", "mlp"))(key, (16, 32))
        return {"kernel": kernel, "step": jnp.zeros(())}

    shardings = sharding.tree_shardings(jax.eval_shape(init, jax.random.key(0)), mesh)
    params = jax.jit(lambda key: nn.unbox(init(key)), out_shardings=shardings)(jax.random.key(0))
    ways = mesh.shape["fsdp"] * mesh.shape["tensor"]
    assert params["kernel"].addressable_shards[0].data.nbytes * ways == params["kernel"].nbytes
    assert params["step"].is_fully_replicated


def test_a_parameter_that_does_not_divide_is_named():
    def init(key):
        return {"proj": nn.with_logical_partitioning(nn.initializers.zeros, ("embed",))(key, (12,))}

    with pytest.raises(ValueError, match="proj.*12 does not divide"):
        sharding.tree_shardings(jax.eval_shape(init, jax.random.key(0)), sharding.make_mesh({"fsdp": 8}))


def test_put_batch_and_to_host_round_trip(mesh):
    batch = {"x": np.arange(48, dtype=np.int32).reshape(16, 3)}
    placed = sharding.put_batch(batch, mesh)
    assert placed["x"].sharding.shard_shape((16, 3)) == (16 // sharding.batch_ways(mesh), 3)
    np.testing.assert_array_equal(sharding.to_host(placed)["x"], batch["x"])
    if sharding.batch_ways(mesh) > 1:
        with pytest.raises(ValueError, match="a batch of 15"):
            sharding.put_batch({"x": np.ones((15, 3))}, mesh)


def test_per_batch_shard_equals_the_whole(mesh):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 16, 4)).astype(np.float32)

    def rows(x_local, y_local, scale, *, gather):
        return jax.nn.logsumexp(scale * x_local @ gather(y_local).T, axis=-1)

    def total(x, y, scale):
        weights = jnp.arange(16.0)
        return (sharding.per_batch_shard(rows, x, y, replicated=(scale,)) * weights).sum()

    step = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))
    alone = step(x, y, jnp.float32(3.0))
    with sharding.use_mesh(mesh):
        placed = sharding.put_batch({"x": x, "y": y}, mesh)
        spread = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(placed["x"], placed["y"], jnp.float32(3.0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), alone, jax.device_get(spread))
