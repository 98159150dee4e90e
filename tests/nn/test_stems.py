"""Stems against sums over boxes of pixels in float64, kernels carried over from images, and views' positions."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.core.sharding import make_mesh, tree_shardings, use_mesh
from vidlang.nn.layers import PATCH_INIT, Linear
from vidlang.nn.stems import TUBEVIT, ImageStem, TubeletStem, View, ViewStem, inflate, resize_kernel, view_counts
from vidlang.ops.positions import sincos_3d

RNG = np.random.default_rng(0)
VIDEO = RNG.normal(size=(2, 4, 16, 8, 3)).astype(np.float32)
VIEWS = (View((2, 4, 4), (2, 4, 4)), View((3, 2, 4), (1, 3, 2), (0, 1, 2)), View((1, 8, 8), (4, 8, 8)))
WIDTH = 8


def boxes(video: np.ndarray, kernel: np.ndarray, stride: tuple, offset: tuple = (0, 0, 0)) -> np.ndarray:
    """The tokens of every box of the kernel's size that fits, summed by hand in float64."""
    size = kernel.shape[:3]
    starts = [range(o, n - k + 1, s) for o, n, k, s in zip(offset, video.shape[1:4], size, stride, strict=True)]
    tokens = [
        np.einsum("BthwC,thwCD->BD", video[:, t : t + size[0], h : h + size[1], w : w + size[2]], kernel, dtype=float)
        for t in starts[0]
        for h in starts[1]
        for w in starts[2]
    ]
    return np.stack(tokens, axis=1)


def filled(stem: nn.Module, video: np.ndarray = VIDEO) -> Any:
    """Parameters of the stem's shapes that are all away from zero."""
    shapes = nn.unbox(jax.eval_shape(stem.init, jax.random.key(0), video))
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * RNG.normal(size=leaf.shape), jnp.float32), shapes)


@functools.partial(jax.jit, static_argnums=(0, 3))
def apply(stem: nn.Module, params: Any, video: jax.Array, take: int | None = None) -> jax.Array:
    return stem.apply(params, video, take=take)


# The usual tubelet, and twice as coarse in time, in space and in both.
@pytest.mark.parametrize("tubelet", [(2, 4, 4), (4, 4, 4), (2, 8, 8), (4, 8, 8)])
def test_tubelets_equal_sums_over_boxes(tubelet: tuple[int, int, int]) -> None:
    stem = TubeletStem(tubelet, WIDTH, jnp.float32)
    params = filled(stem)
    kernel, bias = (np.asarray(params["params"][name]) for name in ("kernel", "bias"))
    assert kernel.shape == (*tubelet, 3, WIDTH)
    expected = boxes(VIDEO, kernel, tubelet) + bias
    assert expected.shape[1] == (4 // tubelet[0]) * (16 // tubelet[1]) * (8 // tubelet[2])
    np.testing.assert_allclose(apply(stem, params, VIDEO), expected, rtol=1e-4, atol=1e-4)


def test_patches_of_every_frame_by_itself() -> None:
    stem = ImageStem((4, 8), WIDTH, jnp.float32, bias=False)
    params = filled(stem)
    assert jax.tree.map(jnp.shape, params) == {"params": {"kernel": (4, 8, 3, WIDTH)}}
    expected = boxes(VIDEO, np.asarray(params["params"]["kernel"])[None], (1, 4, 8))
    found = apply(stem, params, VIDEO)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    # An image is a clip of one frame, and a frame does not know of the others.
    np.testing.assert_allclose(apply(stem, params, VIDEO[:, 2:3]), found[:, 8:12], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("positions", [False, True])
def test_views_equal_sums_over_boxes(positions: bool) -> None:
    stem = ViewStem(VIEWS, WIDTH, jnp.float32, positions=positions)
    params = filled(stem)
    expected = [
        boxes(VIDEO, np.asarray(params["params"][f"kernel_{i}"]), view.stride, view.offset)
        + np.asarray(params["params"][f"bias_{i}"])
        for i, view in enumerate(VIEWS)
    ]
    counts = view_counts(VIEWS, VIDEO.shape[1:4])
    assert counts == tuple(tokens.shape[1] for tokens in expected) == (16, 2 * 5 * 2, 2)
    tokens = np.concatenate(expected, axis=1)
    if positions:
        tokens = tokens + np.asarray(sincos_3d(np.concatenate([by_hand(view) for view in VIEWS]), WIDTH))
    np.testing.assert_allclose(apply(stem, params, VIDEO), tokens, rtol=1e-4, atol=1e-4)


def by_hand(view: View) -> np.ndarray:
    """The middle of each tube: the mean place of the frames, rows and columns that it covers."""
    starts = [
        range(o, n - k + 1, s) for o, n, k, s in zip(view.offset, VIDEO.shape[1:4], view.size, view.stride, strict=True)
    ]
    middles = [[np.mean(range(s, s + k)) for s in axis] for axis, k in zip(starts, view.size, strict=True)]
    return np.array([[t, h, w] for t in middles[0] for h in middles[1] for w in middles[2]])


def test_tubes_with_one_centre_have_one_position() -> None:
    # A frame's patch and a tube of three frames around it.
    thin, thick = View((1, 4, 4), (4, 4, 4), (1, 0, 0)), View((3, 4, 4), (4, 4, 4))
    np.testing.assert_array_equal(thin.centres((4, 16, 8)), thick.centres((4, 16, 8)))


def test_the_published_views_fit_their_clip() -> None:
    # 2 x 7 x 7, 3 x 7 x 7, 2 x 7 x 7 and 14 x 14.
    assert view_counts(TUBEVIT, (32, 224, 224)) == (98, 147, 98, 196)


STEMS: dict[str, nn.Module] = {
    "tubelet": TubeletStem((2, 4, 4), WIDTH, jnp.float32),
    "image": ImageStem((4, 8), WIDTH, jnp.float32),
    "views": ViewStem(VIEWS, WIDTH, jnp.float32),
}


@pytest.mark.parametrize("kind", STEMS)
def test_a_narrow_stem_is_the_first_channels_and_costs_their_share(kind: str) -> None:
    stem = STEMS[kind]
    params = filled(stem)
    np.testing.assert_allclose(apply(stem, params, VIDEO, 2), apply(stem, params, VIDEO)[..., :2], rtol=1e-5, atol=1e-5)
    full, narrow = (apply.lower(stem, params, VIDEO, take).cost_analysis()["flops"] for take in (None, 2))
    assert narrow < 0.3 * full
    for take in (0, WIDTH + 1):
        with pytest.raises(ValueError, match=f"8 channels cannot give the first {take}"):
            stem.apply(params, VIDEO, take=take)


def test_the_axes_have_their_logical_names() -> None:
    boxed = jax.eval_shape(STEMS["tubelet"].init, jax.random.key(0), VIDEO)["params"]
    assert boxed["kernel"].names == ("patch", "patch", "patch", "patch", "embed") and boxed["bias"].names == ("embed",)
    boxed = jax.eval_shape(STEMS["image"].init, jax.random.key(0), VIDEO)["params"]
    assert boxed["kernel"].names == ("patch", "patch", "patch", "embed")
    boxed = jax.eval_shape(STEMS["views"].init, jax.random.key(0), VIDEO)["params"]
    assert set(boxed) == {f"{name}_{i}" for name in ("kernel", "bias") for i in range(3)}


def test_a_tubelet_stem_is_the_linear_map_of_flattened_tubelets() -> None:
    """The same parameters under the same names, and the same draw: checkpoints and seeds stay good."""

    class Plain(nn.Module):
        @nn.compact
        def __call__(self, video: jax.Array) -> jax.Array:
            axes, names = (2, 4, 4, 3), ("patch",) * 4 + ("embed",)
            linear = Linear(axes, (WIDTH,), names, jnp.float32, kernel_init=PATCH_INIT, name="patch")
            return linear(jnp.zeros((1, 2 * 4 * 4 * 3)))

    class Stemmed(nn.Module):
        @nn.compact
        def __call__(self, video: jax.Array) -> jax.Array:
            return TubeletStem((2, 4, 4), WIDTH, jnp.float32, name="patch")(video)

    one, other = (nn.unbox(module.init(jax.random.key(5), VIDEO)) for module in (Plain(), Stemmed()))
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_half_precision_computes_in_it_and_keeps_float32_parameters() -> None:
    for stem in (STEMS["tubelet"].copy(dtype=jnp.bfloat16), STEMS["views"].copy(dtype=jnp.bfloat16)):
        shapes = jax.eval_shape(stem.init_with_output, jax.random.key(0), VIDEO)
        assert shapes[0].dtype == jnp.bfloat16
        assert {leaf.dtype for leaf in jax.tree.leaves(shapes[1])} == {jnp.dtype(jnp.float32)}


def test_a_still_clip_gives_the_tokens_of_its_image() -> None:
    image = ImageStem((4, 8), WIDTH, jnp.float32)
    params = filled(image)
    still = np.repeat(VIDEO[:, :1], 4, axis=1)
    kernel = inflate(params["params"]["kernel"], 4)
    assert kernel.shape == (4, 4, 8, 3, WIDTH)
    clip = apply(TubeletStem((4, 4, 8), WIDTH, jnp.float32), {"params": params["params"] | {"kernel": kernel}}, still)
    np.testing.assert_allclose(clip, apply(image, params, still[:, :1]), rtol=1e-4, atol=1e-4)
    # The kernel is the same on every frame, so the order of the frames does not count yet.
    np.testing.assert_allclose(kernel, np.tile(params["params"]["kernel"] / 4, (4, 1, 1, 1, 1)), rtol=1e-6)


@pytest.mark.parametrize(("frames", "middle"), [(1, 0), (2, 1), (3, 1), (4, 2)])
def test_central_inflation_sees_the_middle_frame_alone(frames: int, middle: int) -> None:
    kernel = RNG.normal(size=(4, 8, 3, 5)).astype(np.float32)
    found = inflate(jnp.asarray(kernel), frames, "central")
    clip = VIDEO[:, :frames]
    np.testing.assert_allclose(
        boxes(clip, np.asarray(found), (frames, 4, 8)), boxes(clip[:, middle : middle + 1], kernel[None], (1, 4, 8))
    )


def shrunk(patch: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """A bilinear resize that averages over what a new pixel covers, from the definition."""

    def weights(old: int, new: int) -> np.ndarray:
        step = old / new
        wide = max(1.0, step)
        rows = [[max(0, 1 - abs((i + 0.5) * step - (j + 0.5)) / wide) for j in range(old)] for i in range(new)]
        return np.array(rows) / np.sum(rows, axis=1, keepdims=True)

    return np.einsum("Hh,Ww,BhwC->BHWC", weights(patch.shape[1], rows), weights(patch.shape[2], columns), patch)


@pytest.mark.parametrize("size", [(8, 8), (8, 4), (2, 3), (4, 4)])
def test_a_resized_kernel_sees_the_resized_patch(size: tuple[int, int]) -> None:
    kernel = RNG.normal(size=(4, 4, 3, 5)).astype(np.float32)
    patch = RNG.normal(size=(2, *size, 3))
    found = resize_kernel(jnp.asarray(kernel), size)
    assert found.shape == (*size, 3, 5)
    expected = np.einsum("BhwC,hwCD->BD", shrunk(patch, 4, 4), kernel)
    np.testing.assert_allclose(np.einsum("BhwC,hwCD->BD", patch, found), expected, rtol=1e-4, atol=1e-4)


def test_sharded_equals_single_and_a_cut_moves_nothing_about() -> None:
    stem = STEMS["tubelet"]
    params = filled(stem)
    alone = apply(stem, params, VIDEO, 6)
    mesh = make_mesh({"fsdp": 2, "data": -1})
    video = np.tile(VIDEO, (4, 1, 1, 1, 1))
    boxed = jax.eval_shape(stem.init, jax.random.key(0), VIDEO)
    with use_mesh(mesh):
        placed = jax.device_put(params, tree_shardings(boxed, mesh))
        # Not the jit above, which remembers programs made without a mesh.
        compiled = jax.jit(lambda params, video: stem.apply(params, video, take=6)).lower(placed, video).compile()
        found = compiled(placed, video)
    np.testing.assert_allclose(found, np.tile(alone, (4, 1, 1)), rtol=1e-5, atol=1e-5)
    text = compiled.as_text()
    assert "all-gather" in text
    for collective in ("all-to-all", "collective-permute"):
        assert collective not in text


@pytest.mark.parametrize(
    ("stem", "video", "words"),
    [
        (TubeletStem((2, 4, 4), 8, jnp.float32), VIDEO[:, :3], "frames 3 is no multiple of 2"),
        (TubeletStem((2, 4), 8, jnp.float32), VIDEO, r"a tubelet is \(frames, height, width\).* found \(2, 4\)"),
        (ImageStem((4, 0), 8, jnp.float32), VIDEO, r"a patch is \(height, width\), whole numbers of 1 or more"),
        (ImageStem((4, 4), 8, jnp.float32), VIDEO[0], "a video batch is .* an image a clip of one frame; found"),
        (ImageStem((4, 5), 8, jnp.float32), VIDEO, "width 8 is no multiple of 5"),
        (ViewStem((View((8, 4, 4), (1, 1, 1)),), 8, jnp.float32), VIDEO, r"a clip of \(4, 16, 8\) .* holds no tube"),
        (ViewStem((), 8, jnp.float32), VIDEO, "at least one view"),
    ],
)
def test_a_clip_or_size_that_cannot_be_says_so(stem: nn.Module, video: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(stem.init, jax.random.key(0), video)


def test_views_and_kernels_that_cannot_be_say_so() -> None:
    with pytest.raises(ValueError, match="a view's stride is .* of 1 or more; found"):
        View((2, 4, 4), (0, 4, 4))
    with pytest.raises(ValueError, match="a view's offset is .* of 0 or more; found"):
        View((2, 4, 4), (2, 4, 4), (0, -1, 0))
    with pytest.raises(ValueError, match="a view's size is .* whole numbers"):
        View((2, 4.0, 4), (2, 4, 4))
    assert View([2, 4, 4], [2, 4, 4]) == View((2, 4, 4), (2, 4, 4))
    kernel = jnp.zeros((4, 4, 3, 5))
    with pytest.raises(ValueError, match="unknown way to inflate a kernel 'sum'; there are: mean, central"):
        inflate(kernel, 2, "sum")
    with pytest.raises(ValueError, match="inflates to 1 frame or more; found"):
        inflate(kernel, 0)
    with pytest.raises(ValueError, match=r"an image kernel is \[h, w, C, D\]"):
        resize_kernel(kernel[None], (8, 8))
