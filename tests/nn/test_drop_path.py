"""Dropped paths: each row draws for itself, the same in any part of a batch, as often as said, only in training."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.core.sharding import make_mesh, put_batch, use_mesh
from vidlang.models.video import Model
from vidlang.nn.drop_path import branches, draw_paths
from vidlang.nn.slicing import slice_params
from vidlang.nn.spec import TransformerSpec
from vidlang.nn.transformer import Block, Stack
from vidlang.ops.dials import OFF, Dials, streams
from vidlang.ops.widths import SHARES, DrawnWidths

SPEC = TransformerSpec(layers=3, width=16, heads=4, mlp=32, dtype="float32", drop_path=0.5)
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(8, 5, 16)), jnp.float32)


@functools.cache
def params() -> Any:
    shapes = nn.unbox(jax.eval_shape(Stack(SPEC).init, jax.random.key(0), X))["params"]
    rng = np.random.default_rng(1)
    # NumPy arrays: made once, perhaps while something is traced, they must not be of that trace.
    return jax.tree.map(lambda leaf: (0.4 * rng.normal(size=leaf.shape)).astype(np.float32), shapes)


def run(spec: TransformerSpec, x_BND: jax.Array = X, dials: Dials = OFF) -> jax.Array:
    """The tokens in training."""
    rngs = {"dropout": jax.random.key(4)}
    apply = functools.partial(Stack(spec).apply, dials=dials, train=True, rngs=rngs)
    return jax.jit(lambda x: apply({"params": params()}, x).x_BMD)(x_BND)


def paths(key: jax.Array, rows: np.ndarray, spec: TransformerSpec = SPEC) -> np.ndarray:
    """[L, P, B]"""
    draw = functools.partial(draw_paths, spec=spec, rows_B=jnp.asarray(rows), batch=len(rows))
    return np.stack([draw(key, jnp.int32(layer)) for layer in range(spec.layers)])


def test_rates_rise_from_0_to_what_is_said_and_keep_the_expectation() -> None:
    drawn_LPB = paths(jax.random.key(0), np.arange(20_000))
    assert drawn_LPB.shape == (3, 2, 20_000)
    np.testing.assert_allclose((drawn_LPB == 0).mean(-1), np.outer([0, 0.25, 0.5], [1, 1]), atol=0.02)
    np.testing.assert_allclose(drawn_LPB.mean(-1), 1, atol=0.03)
    np.testing.assert_allclose(drawn_LPB.max(-1), np.outer([1, 4 / 3, 2], [1, 1]), rtol=1e-6)


def test_rows_layers_branches_and_keys_draw_independently() -> None:
    rows = np.arange(20_000)
    dropped = (paths(jax.random.key(0), rows) == 0)[1:].reshape(4, -1)
    other = (paths(jax.random.key(1), rows) == 0)[1:].reshape(4, -1)
    # Layers and branches, the same of another key, and each row beside the next one.
    together = np.corrcoef(np.concatenate([dropped[:, :-1], other[:, :-1], dropped[:, 1:]]))
    assert np.abs(together - np.eye(12)).max() < 0.03


def test_time_is_dropped_where_it_is_a_branch_of_its_own() -> None:
    counts = {layout: len(branches(layout)) for layout in ("joint", "frames", "divided", "timesformer", "factorized")}
    assert counts == {"joint": 2, "frames": 2, "divided": 2, "timesformer": 3, "factorized": 3}


@pytest.mark.slow
def test_a_row_without_its_branches_passes_a_layer_as_it_is() -> None:
    """Blocks by hand, with the factors that are drawn: whatever they multiply by 0 is not there."""
    x, block = X, Block(dataclasses.replace(SPEC, drop_path=0.0))
    key = _KeyOfPaths().apply({}, rngs={"dropout": jax.random.key(4)})
    drawn_LPB = paths(key, np.arange(8))
    for index, drawn_PB in enumerate(drawn_LPB):
        layer = jax.tree.map(lambda leaf, i=index: leaf[i], params()["layers"])
        x = jax.jit(block.apply)({"params": layer}, x, paths_PB=jnp.asarray(drawn_PB))[0]
    assert (drawn_LPB[2] == 0).all(0).any(), "choose a key that drops a whole layer of some row"
    np.testing.assert_allclose(run(SPEC), x, rtol=1e-5, atol=1e-5)
    layer = jax.tree.map(lambda leaf: leaf[2], params()["layers"])
    none = block.apply({"params": layer}, X, paths_PB=jnp.zeros((2, 8)))[0]
    np.testing.assert_array_equal(none, X)


class _KeyOfPaths(nn.Module):
    """The key that a stack that is nobody's part gets."""

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.make_rng("dropout")


def test_a_row_drops_the_same_in_any_part_of_the_batch() -> None:
    whole = run(SPEC)
    rows = np.array([6, 1, 3])
    part = run(SPEC, X[rows], dials=Dials(rows_B=jnp.asarray(rows)))
    np.testing.assert_allclose(part, whole[rows], rtol=1e-5, atol=1e-5)
    elsewhere = run(SPEC, X[rows])
    assert np.abs(elsewhere - whole[rows]).max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"scan": False}, {"remat": "full"}], ids=str)
def test_however_layers_run_they_drop_the_same(change: dict[str, Any]) -> None:
    def gradient(spec: TransformerSpec) -> jax.Array:
        return jax.jit(jax.grad(lambda x: jnp.sin(run(spec, x)).sum()))(X)

    expected = gradient(SPEC)
    np.testing.assert_allclose(gradient(dataclasses.replace(SPEC, **change)), expected, rtol=1e-3, atol=1e-4)
    plain = gradient(dataclasses.replace(SPEC, drop_path=0.0))
    assert np.abs(plain - expected).max() > 1e-2


@pytest.mark.slow
def test_drawn_widths_drop_as_static_ones_do() -> None:
    drawn = DrawnWidths(jnp.asarray([0, 2, 3]), SHARES)

    def value_and_gradient(widths: Any) -> tuple[jax.Array, jax.Array]:
        dials = Dials(widths=widths)
        return jax.jit(jax.value_and_grad(lambda x: jnp.sin(run(SPEC, x, dials=dials)[..., :4]).sum()))(X)

    for one, other in zip(value_and_gradient((16, 8, 4)), value_and_gradient(drawn), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_nothing_is_dropped_in_evaluation() -> None:
    """It is the same program as of a stack that never drops."""

    def program(spec: TransformerSpec, train: bool) -> str:
        apply = functools.partial(Stack(spec).apply, train=train)
        return str(jax.make_jaxpr(lambda x: apply({"params": params()}, x).x_BMD)(X))

    plain = dataclasses.replace(SPEC, drop_path=0.0)
    assert program(SPEC, train=False) == program(plain, train=True)
    with pytest.raises(ValueError, match=r"drop_path is 0.5, which draws paths: call with rngs=\{'dropout': key\}"):
        program(SPEC, train=True)


def test_eight_devices_drop_what_one_does() -> None:
    alone = run(SPEC)
    mesh = make_mesh({"data": 4, "tensor": 2})
    with use_mesh(mesh):
        found = run(SPEC, put_batch({"x": np.asarray(X)}, mesh)["x"])
    np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_frames_of_a_clip_drop_together() -> None:
    """Of clips that stand still, all frames come out alike, and clips do not."""
    transformer = {"layers": 2, "width": 16, "heads": 2, "mlp": 32, "dtype": "float32", "drop_path": 0.5}
    model = Model(transformer | {"layout": "frames"}, tubelet=(1, 8, 8), position_std=0.0)
    video = jnp.asarray(np.repeat(RNG.integers(0, 256, (1, 1, 8, 8, 3)), 3, axis=1), jnp.uint8)
    video = jnp.repeat(video, 6, axis=0)
    variables = nn.unbox(jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), video))

    def tokens(rows: list[int] | None) -> np.ndarray:
        dials = Dials(rows_B=None if rows is None else jnp.asarray(rows))
        clips = video if rows is None else video[jnp.asarray(rows)]
        rngs = streams(jax.random.key(1))
        return np.asarray(model.apply(variables, clips, train=True, dials=dials, rngs=rngs).tokens_BMD)

    found = tokens(None)
    np.testing.assert_allclose(found[:, 1:], found[:, :1].repeat(2, axis=1), atol=1e-6)
    assert np.abs(found - found[:1]).max() > 1e-3
    np.testing.assert_allclose(tokens([4, 2]), found[[4, 2]], atol=1e-5)


def test_a_model_cut_out_goes_on_dropping() -> None:
    transformer = {"layers": 2, "width": 16, "heads": 4, "mlp": 32, "dtype": "float32", "drop_path": 0.5}
    model = Model(transformer, tubelet=(2, 8, 8))
    video = jnp.zeros((2, 2, 8, 8, 3), jnp.uint8)
    variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), video)
    drawn = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), nn.unbox(variables))
    small, _ = slice_params(model, drawn["params"], (8, 4), video)
    assert small.video_spec.drop_path == 0.5
