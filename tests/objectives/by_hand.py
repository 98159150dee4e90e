"""Holds an objective to a reference in float64: its value, its slope along a random direction, and that on a mesh."""

import types

import jax
import jax.numpy as jnp
import numpy as np

from vidlang.core.sharding import make_mesh, put_batch, use_mesh


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def pairs(rows, width=8, scale=14.0, seed=0):
    """Model outputs of the contrastive family, float64."""
    rng = np.random.default_rng(seed)
    video = rng.normal(size=(rows, width))
    text = video + rng.normal(size=(rows, width))
    return {"video_BE": unit(video), "text_BE": unit(text), "scale": np.float64(scale)}


def run(objective, outputs, batch, mesh=None, **options):
    """((value, scalars), gradients by the float arrays of `outputs`), from one compiled program."""
    floats = {name: x for name, x in outputs.items() if is_float(x)}
    others = {name: x for name, x in outputs.items() if name not in floats}

    @jax.jit
    def program(floats, others, batch):
        def value(floats):
            return objective.loss(types.SimpleNamespace(**floats, **others), batch, **options)

        return jax.value_and_grad(value, has_aux=True)(floats)

    if mesh is None:
        return jax.device_get(program(floats, others, batch))
    with use_mesh(make_mesh(mesh)) as mesh:
        rows = put_batch({name: x for name, x in (floats | batch | others).items() if np.ndim(x)}, mesh)
        placed = [{name: rows.get(name, x) for name, x in tree.items()} for tree in (floats, others, batch)]
        return jax.device_get(program(*placed))


def is_float(x):
    return all(np.issubdtype(np.asarray(leaf).dtype, np.floating) for leaf in jax.tree.leaves(x)) and x is not None


def narrow(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float32 if np.asarray(x).dtype == np.float64 else None), tree)


def check(objective, reference, outputs, batch, mesh=None, **options):
    """The float64 result, held to `reference(outputs) -> value`; on a mesh, float32 must give it too."""
    with jax.enable_x64(True):
        (value, scalars), gradients = run(objective, outputs, batch, **options)
    assert value.dtype == np.float64
    np.testing.assert_allclose(value, reference(outputs), rtol=1e-10)
    floats = {name: x for name, x in outputs.items() if is_float(x)}
    rng = np.random.default_rng(7)
    direction = jax.tree.map(lambda x: rng.normal(size=np.shape(x)), floats)
    step = 1e-5
    ahead, behind = (
        reference(outputs | jax.tree.map(lambda x, d, s=sign: x + s * step * d, floats, direction)) for sign in (1, -1)
    )
    slope = sum(np.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradients, direction)), strict=True))
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-8)
    if mesh:
        (low, _), low_gradients = run(objective, narrow(outputs), narrow(batch), mesh, **options)
        assert low.dtype == np.float32
        np.testing.assert_allclose(low, value, rtol=2e-5)
        for one, other in zip(*map(jax.tree.leaves, (low_gradients, gradients)), strict=True):
            assert one.dtype == jnp.float32
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=2e-5 * max(1, np.abs(other).max()))
    return value, scalars, gradients


def shares(weight, valid):
    """What each row counts."""
    weight = np.where(valid, weight, 0.0)
    return weight / weight.sum()


def log_sum(x):
    """log sum exp over the last axis."""
    top = x.max(axis=-1, keepdims=True)
    return (top + np.log(np.exp(x - top).sum(axis=-1, keepdims=True)))[..., 0]
