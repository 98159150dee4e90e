"""Position tables in other sizes against loops in float64, and fixed ones against their formulas."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.core.tree import merge
from vidlang.ops.positions import extend_time, fit_positions, resize_joint, resize_space, sincos_1d, sincos_3d

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def hat(x: float) -> float:
    return max(0.0, 1 - abs(x))


def keys(x: float) -> float:
    """Keys' cubic with a = -1/2."""
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def weights(old: int, new: int, kernel: Callable[[float], float]) -> np.ndarray:
    """[new, old] weights, from the definition: a kernel around each new centre, as wide as the coarser grid's step."""
    step = old / new
    wide = max(1.0, step)
    rows = [[kernel(((i + 0.5) * step - (j + 0.5)) / wide) for j in range(old)] for i in range(new)]
    return np.array(rows) / np.array(rows).sum(axis=1, keepdims=True)


@pytest.mark.parametrize("frames", [1, 3, 4, 7, 16])
def test_time_grows_and_shrinks_as_said(frames: int) -> None:
    table = normal(4, 5)
    resized = {how: np.asarray(extend_time(jnp.asarray(table), frames, how)) for how in ("repeat", "zeros", "linear")}
    np.testing.assert_array_equal(resized["repeat"], np.tile(table, (4, 1))[:frames])
    padded = np.zeros((frames, 5))
    padded[: min(4, frames)] = table[:frames]
    np.testing.assert_array_equal(resized["zeros"], padded)
    np.testing.assert_allclose(resized["linear"], weights(4, frames, hat) @ table, atol=1e-6)


def test_four_to_sixteen_frames_hold_at_the_ends_and_keep_a_ramp_between() -> None:
    # Half-sized steps from the centres of the old frames: the known figures of align_corners=False.
    ramp = jnp.arange(4, dtype=jnp.float32)[:, None] * jnp.ones((1, 3))
    expected = np.clip((np.arange(16) + 0.5) / 4 - 0.5, 0, 3)
    np.testing.assert_allclose(extend_time(ramp, 16, "linear"), expected[:, None] * np.ones((1, 3)), atol=1e-6)


@pytest.mark.parametrize(("how", "kernel"), [("bilinear", hat), ("bicubic", keys)])
@pytest.mark.parametrize("new", [(5, 3), (2, 2), (6, 8), (3, 4)])
def test_space_equals_the_kernel_written_out(how: str, kernel: Callable[[float], float], new: tuple[int, int]) -> None:
    table, extra = normal(12, 5), normal(2, 5)
    expected = np.einsum(
        "Hh,Ww,hwD->HWD", weights(3, new[0], kernel), weights(4, new[1], kernel), table.reshape(3, 4, 5)
    )
    found = resize_space(jnp.asarray(np.concatenate([extra, table])), (3, 4), new, how, extra=2)
    np.testing.assert_array_equal(found[:2], extra)
    np.testing.assert_allclose(found[2:], expected.reshape(-1, 5), atol=1e-5)


@pytest.mark.parametrize("how", ["bilinear", "bicubic"])
def test_a_ramp_over_the_frame_stays_that_ramp(how: str) -> None:
    # Places in units of the frame: away from the border a resized table says where its places are.
    def centres(grid: tuple[int, int]) -> np.ndarray:
        rows, columns = (np.arange(n) + 0.5 for n in grid)
        return np.stack(np.meshgrid(rows / grid[0], columns / grid[1], indexing="ij"), axis=-1)

    old, new = (8, 6), (20, 15)
    found = np.asarray(resize_space(jnp.asarray(centres(old).reshape(-1, 2), jnp.float32), old, new, how))
    inside = np.s_[5:-5, 5:-5]
    np.testing.assert_allclose(found.reshape(*new, 2)[inside], centres(new)[inside], atol=1e-6)


def test_half_precision_tables_are_resized_in_float32() -> None:
    table = jnp.asarray(normal(12, 5), jnp.bfloat16)
    wide = resize_space(table.astype(jnp.float32), (3, 4), (6, 8))
    found = resize_space(table, (3, 4), (6, 8))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, wide.astype(jnp.bfloat16))


def tree(frames: int, places: int, width: int = 6) -> dict:
    return {
        "video": {"temporal": normal(frames, width), "spatial": normal(places, width), "cls": normal(width)},
        "text": {"positions": normal(frames + places, width)},
    }


def test_a_checkpoint_is_fitted_where_its_tables_differ_and_says_so() -> None:
    source, target = tree(4, 12), tree(8, 20)
    fitted, changed = fit_positions(source, target, time="linear", space="bicubic", grids=((3, 4), (5, 4)))
    assert changed == ("video/spatial (12, 6) -> (20, 6), bicubic", "video/temporal (4, 6) -> (8, 6), linear")
    np.testing.assert_array_equal(fitted["video"]["temporal"], extend_time(source["video"]["temporal"], 8, "linear"))
    expected = resize_space(source["video"]["spatial"], (3, 4), (5, 4), "bicubic")
    np.testing.assert_array_equal(fitted["video"]["spatial"], expected)
    assert fitted["video"]["cls"] is source["video"]["cls"]
    for how in ("zeros", "repeat"):
        fitted, (change,) = fit_positions(source, tree(8, 12), time=how)
        assert change == f"video/temporal (4, 6) -> (8, 6), {how}"
        np.testing.assert_array_equal(fitted["video"]["temporal"], extend_time(source["video"]["temporal"], 8, how))
    # The text's table is no clip's: merge reports it.
    fitted, _ = fit_positions(source, target, grids=((3, 4), (5, 4)))
    _, report = merge(target, fitted)
    assert report.mismatched == ("text/positions (28, 6), found (16, 6)",)
    assert set(report.loaded) == {"video/cls", "video/spatial", "video/temporal"}


def test_a_tree_that_fits_is_left_alone() -> None:
    source = tree(4, 12)
    fitted, changed = fit_positions(source, tree(4, 12))
    assert changed == () and all(a is b for a, b in zip(jax.tree.leaves(fitted), jax.tree.leaves(source), strict=True))
    # As many places that lie otherwise are another table.
    turned, changed = fit_positions(source, tree(4, 12), grids=((3, 4), (4, 3)))
    assert changed == ("video/spatial (12, 6) -> (12, 6), bilinear",)
    np.testing.assert_array_equal(turned["video"]["spatial"], resize_space(source["video"]["spatial"], (3, 4), (4, 3)))


def test_other_widths_and_absent_tables_are_left_for_merge() -> None:
    source = tree(4, 12)
    for target in (tree(8, 12, width=5), {"video": {}}, {"video": {"temporal": np.zeros(8)}}):
        fitted, changed = fit_positions(source, target)
        assert changed == () and fitted["video"]["temporal"] is source["video"]["temporal"]


def test_shapes_are_fitted_as_arrays_are() -> None:
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, tree(4, 12)))
    target = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, tree(8, 20)))
    fit = functools.partial(fit_positions, grids=((3, 4), (4, 5)))
    fitted, changed = fit(shapes, target)
    assert changed == fit(tree(4, 12), target)[1]
    assert (fitted["video"]["temporal"], fitted["video"]["spatial"]) == (
        target["video"]["temporal"],
        target["video"]["spatial"],
    )


def test_sines_and_cosines_in_a_row() -> None:
    table, width = np.asarray(sincos_1d(1568, 8)), 8
    for n, i in [(0, 0), (1, 0), (7, 1), (1567, 0), (1567, 3)]:
        angle = n / 10_000 ** (2 * i / width)
        np.testing.assert_allclose(table[n, [2 * i, 2 * i + 1]], [math.sin(angle), math.cos(angle)], atol=1e-7)


def test_sines_and_cosines_in_space_and_time() -> None:
    places = np.array([[3.5, 7.5, 100.0], [0, 0, 0]])
    table = np.asarray(sincos_3d(places, 20))  # three frequencies, and two channels that are left
    assert table.shape == (2, 20)
    expected = []
    for place in places[0]:
        angles = [place / 10_000 ** (j / 3) for j in range(3)]
        expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    np.testing.assert_allclose(table[0], [*expected, 0, 0], atol=1e-6)
    # The same time in another place differs in the channels of its place only.
    moved = np.asarray(sincos_3d(places + [[0, 0, 1.0]], 20))
    np.testing.assert_array_equal((moved != table)[0], [False] * 12 + [True] * 6 + [False] * 2)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (lambda: extend_time(jnp.ones((4, 2)), 8, "tile"), "unknown way to extend .*'tile'; there are: repeat, linear"),
        (lambda: extend_time(jnp.ones((4, 2)), 0, "zeros"), r"found \(4, 2\) to 0"),
        (lambda: resize_space(jnp.ones((4, 2)), (2, 2), (3, 3), "area"), "unknown way to resize .*'area'"),
        (lambda: resize_space(jnp.ones((5, 2)), (2, 2), (3, 3)), r"does not hold the 4 places of a grid \(2, 2\);"),
        (lambda: resize_space(jnp.ones((4, 2)), (2, 2), (3, 3), extra=1), "places .* and 1 rows before them"),
        (lambda: resize_space(jnp.ones((4, 2)), (2, 2), (0, 3)), "of 1 or more"),
        (lambda: fit_positions(tree(4, 12), tree(4, 20)), r"video/spatial \(12, 6\) -> .* give grids="),
        (lambda: fit_positions(tree(4, 12), tree(4, 20), grids=((2, 7), (4, 5))), "does not hold the 14 places"),
        (lambda: fit_positions(tree(4, 12), tree(4, 20), grids=((3, 4), (4, 4))), "model has 20 places .* has 16"),
        (lambda: sincos_1d(4, 7), "even width"),
        (lambda: sincos_3d(np.zeros((4, 2)), 12), r"places are \[N, 3\]"),
    ],
)
def test_a_size_that_cannot_be_says_so(request_: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        request_()


def test_one_table_of_all_places_is_resized_along_each_axis():
    table, old, new = normal(2 * 3 * 4, 5), (2, 3, 4), (3, 6, 2)
    found = resize_joint(jnp.asarray(table), old, new, "linear")
    along = [weights(a, b, hat) for a, b in zip(old, new, strict=True)]
    want = np.einsum("ta,rb,cd,abdx->trcx", *along, table.astype(np.float64).reshape(*old, 5))
    np.testing.assert_allclose(found, want.reshape(-1, 5), atol=1e-5)
    longer = resize_joint(jnp.asarray(table), old, (5, 3, 4), "repeat").reshape(5, -1, 5)
    for time in range(5):
        np.testing.assert_array_equal(longer[time], table.reshape(2, -1, 5)[time % 2])
    with pytest.raises(ValueError, match="does not hold the 12 places"):
        resize_joint(jnp.asarray(table), (1, 3, 4), new, "repeat")
