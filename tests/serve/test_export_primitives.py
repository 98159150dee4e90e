"""Each primitive that the converter knows, as ONNX Runtime computes it and as JAX does, for batches of 1 and 3."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from vidlang.serve.export import convert, onnx_file

# What its inputs are called says what they are: x, y numbers, p positive ones, i ids below 4, m truth values.
KINDS = {"x": np.float32, "y": np.float32, "p": np.float32, "i": np.int32, "m": np.bool_}
TABLE = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)


def norm(x, count=6, about=None, spread=None, scale=TABLE[:1]):
    """Layer normalisation as the model writes it, or something near it."""
    centred = x - (x if about is None else about).sum(1)[:, None] / count
    variance = jnp.square(centred if spread is None else spread).sum(1)[:, None] / count
    return centred * lax.rsqrt(variance + 1e-3) * scale + TABLE[1:2]


CASES = {
    "arithmetic": lambda x, y, p: (x + y) * (x - p) / p - x,
    "against numbers": lambda x: 2.0 * x + TABLE[:1] - jnp.float32(3),
    "signs": lambda x, y: jnp.maximum(-x, jnp.abs(y)) + jnp.minimum(jnp.sign(x), y),
    "floor": lambda x: jnp.floor(3 * x) + jnp.ceil(5 * x) * lax.clamp(-0.5, x, 0.25),
    "remainder": lambda x: lax.rem(5 * x, jnp.full_like(x, 2.0)),
    "exp": lambda x: jnp.exp(x) + jnp.expm1(0.1 * x) + jnp.tanh(x) + lax.logistic(x),
    "log": lambda p: jnp.log(p) + jnp.log1p(p) + jnp.sqrt(p) + lax.rsqrt(p),
    "sin": lambda x: jnp.sin(x) + jnp.cos(x) + lax.erf(x) + lax.erfc(x),
    "powers": lambda x, p: x**2 + x**3 + p**-2 + p**1.5 + lax.square(x) + lax.integer_pow(p, 5),
    "power of two arrays": lambda x, p: p**x,
    "named": lambda x: checkpoint_name(x * 2, "named"),
    "compared": lambda x, y: ((x == x) & (x < y) | (x >= 0.3) & (y <= 0.2)) ^ (x > -0.1),
    "unequal": lambda i: (i != 2) & ~(i == 1),
    "of bits": lambda i: ((i & 3) | (i ^ 5)) + (~i),
    "chosen": lambda x, y, m: jnp.where(m, x, y) + jnp.where(m[:, :1], 0.0, y),
    "cast": lambda i, m, x: i.astype(jnp.float32) + m.astype(jnp.float32) + (9 * x).astype(jnp.int32),
    "barrier": lambda x: lax.optimization_barrier(lax.stop_gradient(jnp.copy(x))),
    "reshaped": lambda x: x.reshape(x.shape[0] * 2, 3).T.reshape(3, -1, 2),
    "broadcast": lambda x: x[:, None, :, None] + jnp.broadcast_to(x[:, :, None, None], (x.shape[0], 6, 6, 2)),
    "squeezed": lambda x: jnp.squeeze(x[:, 2:3], 1)[:, None] * jnp.transpose(x[:, None], (0, 2, 1))[:, :, 0],
    "numbered": lambda x: x + jnp.arange(6)[None] + jnp.arange(x.shape[0])[:, None].astype(jnp.float32),
    "parts": lambda x: jnp.concatenate([x[:, 1:5:2], x[:, ::-1], x[:, :2]], axis=1),
    "split": lambda x: jnp.split(x, [1, 3], axis=1)[1] - jnp.split(x, [1, 3], axis=1)[2][:, :2],
    "padded": lambda x: (
        lax.pad(x, 2.0, ((0, 0, 0), (1, 2, 0)))[:, None] + lax.pad(x, 0.0, ((0, 0, 0), (-1, 4, 0)))[:, None]
    ),
    "tiled": lambda x: jnp.tile(x, (1, 2)),
    "sums": lambda x: jnp.stack([x.sum(1), x.max(1), x.min(1), jnp.prod(x, 1)], axis=1),
    "sum of what is broadcast": lambda x: jnp.broadcast_to(x[:, :1], x.shape).sum(1) + x.sum(1),
    "any and all": lambda m: jnp.stack([m.any(1), m.all(1)], axis=1),
    "best": lambda x: jnp.stack([jnp.argmax(x, 1), jnp.argmin(x, 1)], axis=1),
    "running": lambda x: jnp.cumsum(x, 1) + lax.cumsum(x, 1, reverse=True),
    "product": lambda x, y: x @ TABLE.T + jnp.einsum("bd,bd->b", x, y)[:, None],
    "product over two axes": lambda x: jnp.einsum("bij,kji->bk", x.reshape(-1, 2, 3), TABLE.reshape(4, 3, 2)),
    "product in each row": lambda x, y: jnp.einsum("bij,bkj->bik", x.reshape(-1, 2, 3), y.reshape(-1, 2, 3)),
    "product over the batch": lambda x, y: jnp.einsum("bi,bj->ij", x, y),
    "product into two axes": lambda x: jnp.einsum("bd,kde->bke", x, TABLE.reshape(2, 6, 2)),
    "whole numbers' product": lambda i: i @ jnp.arange(12, dtype=jnp.int32).reshape(6, 2),
    "convolution": lambda x: lax.conv_general_dilated(
        x.reshape(-1, 3, 2, 1),
        TABLE.reshape(2, 2, 1, 6),
        (1, 1),
        ((1, 0), (0, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    ),
    "looked up": lambda i: jnp.take(TABLE, i, axis=0, mode="clip") * 2,
    "looked up in columns": lambda i: jnp.take(TABLE, i, axis=1, mode="clip"),
    "looked up beyond the end": lambda i: jnp.take(TABLE, i * 2, axis=0, mode="fill"),
    "looked up by two": lambda i: jnp.asarray(TABLE)[i, i + 1],
    "numbers beyond the end": lambda i: jnp.take(jnp.arange(3), i, mode="fill"),
    "one of each row": lambda x, i: jnp.take_along_axis(x, i, axis=1) + x[:, 3][:, None],
    "rows of each": lambda x, i: jnp.take_along_axis(
        x.reshape(-1, 6, 1) * TABLE[:2, None, :1].T, i[:, :, None], axis=1
    ),
    "where the data says": lambda x, i: lax.dynamic_slice_in_dim(x, i[:1, 0].max() + 3, 2, axis=1),
    "where it is known": lambda x: lax.dynamic_slice_in_dim(x, jnp.int32(5), 2, axis=1),
    "largest": lambda x: lax.top_k(x, 3)[0] + lax.top_k(x, 3)[1],
    "sorted": lambda x, i: lax.sort((x, i), dimension=1, num_keys=1)[1] + jnp.sort(x, 1) * 2,
    "loop": lambda x: lax.scan(lambda c, t: (c * t[0] + t[1], c), x[:, 0], (x.T, jnp.arange(6.0)), reverse=True)[1],
    "loop of a sum": lambda x: lax.scan(lambda c, t: (c + t, None), jnp.zeros(6), x.reshape(-1, 6).sum(0)[None])[0],
    "own derivative": jax.nn.relu,
    "again in the backward pass": lambda x: jax.checkpoint(lambda x: jax.nn.softmax(x, axis=1))(x),
    "softmax": lambda x: jax.nn.softmax(x, axis=1) + jax.nn.softmax(x.reshape(-1, 3, 2), axis=1).reshape(x.shape),
    "softmax with another sum": lambda x: jnp.exp(x - x.max(1)[:, None]) / jnp.exp(x).sum(1)[:, None],
    "softmax from another start": lambda x: (e := jnp.exp(x - x.min(1)[:, None])) / e.sum(1)[:, None],
    "softmax over other entries": lambda x: (e := jnp.exp(x - x[:, :3].max(1)[:, None])) / e.sum(1)[:, None],
    "norm": lambda x: norm(x),
    "norm of another count": lambda x: norm(x, count=5),
    "norm about another mean": lambda x, y: norm(x, about=y),
    "norm with another spread": lambda x, y: norm(x, spread=y),
    "norm with drawn scales": lambda x, y: norm(x, scale=y),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False) + jax.nn.gelu(x, approximate=True),
    "not a gelu": lambda x: lax.erfc(-x * 0.7) + lax.erfc(x * np.float32(np.sqrt(0.5))),
    "key": lambda x: x + jax.random.normal(jax.random.key(3), (6,))[None],
}


def arguments(function, batch):
    names = inspect.signature(function).parameters
    rng = np.random.default_rng(0)
    values = {
        "x": rng.normal(size=(3, 6)),
        "y": rng.normal(size=(3, 6)),
        "p": rng.uniform(0.5, 2, (3, 6)),
        "i": rng.integers(0, 4, (3, 6)),
        "m": rng.integers(0, 2, (3, 6)),
    }
    return {name: values[name][:batch].astype(KINDS[name]) for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_as_jax_computes_it(name, tmp_path):
    function = CASES[name]
    inputs = {key: jax.ShapeDtypeStruct(array.shape[1:], array.dtype) for key, array in arguments(function, 1).items()}
    graph = convert.convert(function, inputs, "result")
    (file,) = onnx_file.write(graph, tmp_path / "file.onnx", "case")
    session = onnx_file.session(file, threads=1)
    for batch in (1, 3):
        arrays = arguments(function, batch)
        (found,) = session.run(["result"], arrays)
        expected = np.asarray(jax.jit(function)(**arrays))
        assert found.dtype == expected.dtype and found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "op", "count"),
    [("softmax", "Softmax", 2), ("norm", "LayerNormalization", 1), *((name, "", 0) for name in CASES if " an" in name)],
)
def test_what_is_a_softmax_or_a_norm_becomes_one_node(name, op, count):
    inputs = {key: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for key, x in arguments(CASES[name], 1).items()}
    ops = [node.op for node in convert.convert(CASES[name], inputs, "result").nodes]
    assert ops.count(op) == count and (op or not {"Softmax", "LayerNormalization"} & set(ops))


def test_every_rule_has_a_case():
    used = set()

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            used.add(equation.primitive.name)
            for value in equation.params.values():
                if inner := getattr(value, "jaxpr", value if hasattr(value, "eqns") else None):
                    walk(inner)

    for function in CASES.values():
        arrays = arguments(function, 3)
        walk(jax.make_jaxpr(lambda arrays, function=function: function(**arrays))(arrays).jaxpr)
    assert set(convert.RULES) - used == {"sharding_constraint", "dim_as_value"}
    # A sharding needs a mesh, and the batch is a number outside of `convert`.


def test_what_depends_on_the_batch_in_another_way_is_refused():
    inputs = {"x": jax.ShapeDtypeStruct((6,), jnp.float32), "i": jax.ShapeDtypeStruct((), jnp.int32)}
    with pytest.raises(ValueError, match="looks up rows of its batch"):
        convert.convert(lambda x, i: x[i], inputs, "y")
