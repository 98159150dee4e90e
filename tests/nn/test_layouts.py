"""Layouts of attention against one loop over tokens, in float64, that knows only which token sees which."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.nn.layouts import GATE, GRIDDED, TIME, AttentionPool, factorize_params
from vidlang.nn.spec import TransformerSpec
from vidlang.nn.transformer import Stack
from vidlang.ops.dials import OFF, Dials
from vidlang.ops.widths import SHARES, DrawnWidths

LAYERS, WIDTH, HEADS, MLP, TIMES, PLACES = 2, 16, 4, 32, 2, 3
RNG = np.random.default_rng(0)
PAD = [((0, 0), (0, 0)), ((1, 0), (0, 0))]
TOKENS = jnp.asarray(RNG.normal(size=(2, 1 + TIMES * PLACES, WIDTH)), jnp.float32)  # cls in front


def spec(layout: str, **options: Any) -> TransformerSpec:
    return TransformerSpec(LAYERS, WIDTH, HEADS, MLP, dtype="float32", layout=layout, **options)


@functools.cache
def params(layout: str) -> Any:
    """Parameters that are all away from zero."""
    times = None if layout == "joint" else TIMES
    init = functools.partial(Stack(spec(layout)).init, globals=1, times=times)
    shapes = nn.unbox(jax.eval_shape(init, jax.random.key(0), TOKENS))["params"]
    rng = np.random.default_rng(1)

    def draw(path: Any, leaf: Any) -> jax.Array:
        return jnp.asarray(("scale" in str(path)) + 0.3 * rng.normal(size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def run(layout: str, p: Any, x_BND: jax.Array, dials: Dials = OFF, *, globals: int = 0, times: int = TIMES) -> Any:
    stack = Stack(spec(layout))
    known = None if layout == "joint" else times
    apply = jax.jit(lambda p, x: stack.apply({"params": p}, x, dials=dials, globals=globals, times=known).x_BMD)
    return apply(p, x_BND)


def norm(x: np.ndarray, q: Any) -> np.ndarray:
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * q["scale"] + q["bias"]


def seen(query: int, key: int, along: str, globals: int) -> bool:
    """Whether a token sees another; cls sees and is seen."""
    if query < globals or key < globals:
        return True
    (t, place), (s, other) = (divmod(token - globals, PLACES) for token in (query, key))
    return place == other if along == "time" else t == s


def attention(x: np.ndarray, a: Any, along: str, globals: int) -> np.ndarray:
    """One token after the other, and one head after the other."""
    q, k, v = (np.einsum("ND,DAK->NAK", x, a[n]["kernel"]) + a[n]["bias"] for n in ("query", "key", "value"))
    found = np.zeros((len(x), x.shape[1]))
    for token in range(len(x)):
        keys = [key for key in range(len(x)) if seen(token, key, along, globals)]
        heads = []
        for head in range(q.shape[1]):
            weights = np.exp([q[token, head] @ k[key, head] / math.sqrt(q.shape[2]) for key in keys])
            heads.append(sum(w * v[key, head] for w, key in zip(weights / weights.sum(), keys, strict=True)))
        found[token] = np.einsum("AK,AKD->D", np.stack(heads), a["out"]["kernel"]) + a["out"]["bias"]
    return found


def cls_by_frame(x: np.ndarray, a: Any, globals: int) -> np.ndarray:
    """Each frame with a cls of its own, where all see all; what these become is averaged."""
    frames = x[globals:].reshape(TIMES, PLACES, -1)
    found = [attention(rows := np.concatenate([x[:globals], frame]), a, "space", len(rows)) for frame in frames]
    return np.concatenate([np.mean(found, axis=0)[:globals], *(y[globals:] for y in found)])


def by_tokens(layout: str, p: Any, x_BND: Any, globals: int) -> np.ndarray:
    found = []
    for x in np.asarray(x_BND, np.float64):
        for index in range(LAYERS):
            q = jax.tree.map(lambda leaf, index=index: np.asarray(leaf[index], np.float64), p["layers"])

            def time(x: np.ndarray, q: Any = q) -> np.ndarray:
                return attention(norm(x, q["time_attention_norm"]), q["time_attention"], "time", globals)

            def space(x: np.ndarray, q: Any = q) -> np.ndarray:
                return attention(norm(x, q["attention_norm"]), q["attention"], "space", globals)

            if layout == "timesformer_cls":
                t = x + np.pad(attention(norm(x[globals:], q["time_attention_norm"]), q[TIME], "time", 0), PAD[globals])
                y = t + cls_by_frame(norm(t, q["attention_norm"]), q["attention"], globals)
            elif layout == "divided":
                y = x + space(x + time(x))
            elif layout == "timesformer":
                t = x + time(x)
                y = t + space(t)
            else:
                h = x + space(x)
                y = h + math.tanh(q["time_gate"]) * time(h)
            h = norm(y, q["mlp_norm"]) @ q["mlp_in"]["kernel"] + q["mlp_in"]["bias"]
            h = h * (1 + np.vectorize(math.erf)(h / np.sqrt(2))) / 2
            x = y + h @ q["mlp_out"]["kernel"] + q["mlp_out"]["bias"]
        found.append(x)
    return np.stack(found)


@pytest.mark.parametrize("globals", [1, 0])
@pytest.mark.parametrize("layout", GRIDDED)
def test_every_token_attends_as_the_layout_says(layout: str, globals: int) -> None:
    x_BND = TOKENS[:, 1 - globals :]
    found = run(layout, params(layout), x_BND, globals=globals)
    np.testing.assert_allclose(found, by_tokens(layout, params(layout), x_BND, globals), rtol=1e-4, atol=1e-4)


def narrowed(layout: str, width: int) -> Any:
    """The first channels, heads and hidden units of every parameter, cut out by their sizes."""

    def cut(path: Any, leaf: jax.Array) -> jax.Array:
        name = "/".join(str(key.key) for key in path)
        sizes = {WIDTH: width, HEADS: width * HEADS // WIDTH, MLP: width * MLP // WIDTH}
        # The size of a head is also 4; it comes last, or before the width.
        head_size = {"attention/out/kernel": 2}.get("/".join(name.split("/")[-3:]).removeprefix("time_"))
        if any(f"attention/{part}" in name for part in ("query", "key", "value")):
            head_size = leaf.ndim - 1
        for axis in range(1, leaf.ndim):
            if axis != head_size:
                leaf = jnp.take(leaf, np.arange(sizes[leaf.shape[axis]]), axis=axis)
        return leaf

    return jax.tree_util.tree_map_with_path(cut, params(layout))


@pytest.mark.slow
@pytest.mark.parametrize("layout", GRIDDED)
def test_half_the_width_is_a_smaller_layer_static_and_drawn(layout: str) -> None:
    half = WIDTH // 2
    expected = by_tokens(layout, narrowed(layout, half), TOKENS[..., :half], 1)
    static = run(layout, params(layout), TOKENS, Dials(widths=(half,) * LAYERS), globals=1)
    drawn = DrawnWidths(jnp.full(LAYERS, SHARES.index(0.5), jnp.int32), SHARES)
    traced = run(layout, params(layout), TOKENS, Dials(widths=drawn), globals=1)
    np.testing.assert_allclose(static, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(traced, np.pad(expected, [(0, 0), (0, 0), (0, half)]), rtol=1e-4, atol=1e-4)


def fresh(layout: str) -> Any:
    boxed = jax.jit(lambda key: Stack(spec(layout)).init(key, TOKENS, globals=1, times=TIMES))(jax.random.key(3))
    return nn.unbox(boxed)["params"]


@pytest.mark.parametrize("layout", ["divided", "timesformer"])
def test_time_adds_nothing_at_the_start(layout: str) -> None:
    """What remains is what a factorized layer does whose gate is closed, with the same spatial parameters."""
    p = fresh(layout)
    closed = {"layers": {**p["layers"], GATE: jnp.zeros(LAYERS)}}
    expected = by_tokens("factorized", closed, TOKENS, 1)
    np.testing.assert_allclose(run(layout, p, TOKENS, globals=1), expected, rtol=1e-4, atol=1e-4)
    kernels = [p["layers"][TIME][name]["kernel"] for name in ("query", "key", "value", "out")]
    starts = [sorted(set(np.unique(kernel[0]).tolist()))[:3] for kernel in kernels]
    if layout == "divided":
        assert starts == [[0.0], [0.0], [0.0], [1.0]]
    else:
        assert starts[3] == [0.0] and min(len(start) for start in starts[:3]) == 3


def test_factorized_from_joint_parameters_is_each_frame_alone() -> None:
    """Copied time attentions behind closed gates; opened, they are attention along time with the spatial weights."""
    joint = params("joint")
    p = factorize_params(joint)
    assert jax.tree.map(jnp.shape, p) == jax.tree.map(jnp.shape, params("factorized"))
    x_BND = TOKENS[:, 1:]
    alone = run("joint", joint, x_BND.reshape(2 * TIMES, PLACES, WIDTH))
    np.testing.assert_allclose(run("factorized", p, x_BND).reshape(alone.shape), alone, rtol=1e-5, atol=1e-5)
    opened = {"layers": {**p["layers"], GATE: jnp.full(LAYERS, 0.7)}}
    layers = joint["layers"]
    expected = {**layers, TIME: layers["attention"], f"{TIME}_norm": layers["attention_norm"]}
    expected = by_tokens("factorized", {"layers": {**expected, GATE: jnp.full(LAYERS, 0.7)}}, x_BND, 0)
    np.testing.assert_allclose(run("factorized", opened, x_BND), expected, rtol=1e-4, atol=1e-4)


def test_factorizing_twice_or_in_shapes_is_factorizing() -> None:
    once = factorize_params({"video": {"stack": params("joint")}, "other": jnp.ones(3)})
    opened = factorize_params({"stack": params("factorized")})["stack"]["layers"][GATE]
    np.testing.assert_array_equal(opened, params("factorized")["layers"][GATE])
    shapes = jax.eval_shape(lambda: {"video": {"stack": params("joint")}, "other": jnp.ones(3)})
    assert jax.tree.map(jnp.shape, factorize_params(shapes)) == jax.tree.map(jnp.shape, once)


def test_only_a_closed_gate_hides_time_from_the_gradient() -> None:
    def loss(p: Any) -> jax.Array:
        return jnp.sin(Stack(spec("factorized")).apply({"params": p}, TOKENS, globals=1, times=TIMES).x_BMD).sum()

    layers = jax.jit(jax.grad(loss))(factorize_params(params("joint")))["layers"]
    assert np.abs(layers[GATE]).min() > 0
    assert not any(np.abs(leaf).any() for leaf in jax.tree.leaves(layers[TIME]))


@pytest.mark.parametrize("groups", [1, 2])
def test_attention_pool_is_a_query_over_frames_at_every_width(groups: int) -> None:
    pool = AttentionPool(WIDTH, HEADS, jnp.float32, groups)
    x_BTD = RNG.normal(size=(2, 3, WIDTH))
    shapes = nn.unbox(jax.eval_shape(pool.init, jax.random.key(0), jnp.asarray(x_BTD, jnp.float32)))["params"]
    p = jax.tree.map(lambda leaf: jnp.asarray(0.5 * RNG.normal(size=leaf.shape), jnp.float32), shapes)
    for width in (WIDTH, WIDTH // 2):
        part = x_BTD[..., :width]
        heads = [head for head in range(HEADS) if head % (HEADS // groups) < width * HEADS // WIDTH // groups]
        q = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), p)
        vectors = {}
        for name, x in {"query": q["latent"][:width], "key": part, "value": part}.items():
            vectors[name] = np.tensordot(x, q[name]["kernel"][:width], 1) + q[name]["bias"]
        weights = np.exp(np.einsum("AK,BTAK->BAT", vectors["query"], vectors["key"]) / math.sqrt(WIDTH // HEADS))
        weights /= weights.sum(-1, keepdims=True)
        o = np.einsum("BAT,BTAK->BAK", weights, vectors["value"])[:, heads]
        y = np.einsum("BAK,AKD->BD", o, q["out"]["kernel"][heads][..., :width]) + q["out"]["bias"][:width]
        expected = norm(y, {name: leaf[:width] for name, leaf in q["norm"].items()})
        found = pool.apply({"params": p}, jnp.asarray(part, jnp.float32))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        padded = jnp.asarray(np.pad(part, [(0, 0), (0, 0), (0, WIDTH - width)]), jnp.float32)
        drawn = pool.apply({"params": p}, padded, valid=jnp.int32(width))
        np.testing.assert_allclose(drawn, np.pad(expected, [(0, 0), (0, WIDTH - width)]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layout": "diveded"}, "layout is 'diveded'; it is one of joint, divided"),
        ({"layout": "divided", "relative_positions": True}, "relative_positions is for the layouts 'joint' and"),
        ({"layout": "factorized", "causal": True}, "causal is for the layouts"),
    ],
)
def test_impossible_layouts_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        spec(**options)


def test_a_stack_without_frames_is_joint() -> None:
    with pytest.raises(ValueError, match="layout is 'divided', which is for the frames of a video encoder"):
        jax.eval_shape(Stack(spec("divided")).init, jax.random.key(0), TOKENS)
    with pytest.raises(ValueError, match="where the tokens stand in a video is not known"):
        jax.eval_shape(Stack(spec("joint", relative_positions=True)).init, jax.random.key(0), TOKENS)
    with pytest.raises(ValueError, match="a grid of 4 times; found 'time' and 6 tokens"):
        run("divided", params("divided"), TOKENS, globals=1, times=4)
