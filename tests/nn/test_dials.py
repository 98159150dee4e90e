"""Dials change what is computed, never what a layer is: each against an oracle that computes it otherwise."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.models.video import Model, Output
from vidlang.nn.slicing import slice_params
from vidlang.ops.dials import OFF, Dials, streams
from vidlang.ops.widths import SHARES, DrawnWidths, schedule

LAYERS, WIDTH, HEADS, MLP = 4, 16, 4, 32
TRANSFORMER = {"layers": LAYERS, "width": WIDTH, "heads": HEADS, "mlp": MLP, "dtype": "float32"}
RNG = np.random.default_rng(0)
VIDEO = jnp.asarray(RNG.integers(0, 256, (2, 4, 16, 24, 3)), jnp.uint8)  # 2 x 4 x 6 = 48 tokens of 2 x 4 x 4
RAISED = (4, 8, 16, 12)
SCHEDULES = [(16, 12, 8, 4), (4, 4, 4, 4), RAISED]


def make(pool: str = "cls", **options: Any) -> Model:
    return Model({**TRANSFORMER, **options}, tubelet=(2, 4, 4), pool=pool)


@functools.cache
def params(pool: str = "cls") -> Any:
    """Parameters that are all away from zero."""
    shapes = nn.unbox(jax.eval_shape(functools.partial(make(pool).init, train=False), jax.random.key(0), VIDEO))
    rng = np.random.default_rng(1)

    def draw(path: Any, leaf: Any) -> jax.Array:
        return (("scale" in str(path)) + 0.3 * rng.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def run(dials: Dials, model: Model | None = None, *, train: bool = True, key: int = 0) -> Output:
    model = model or make()
    rngs = streams(jax.random.key(key))
    return jax.jit(lambda p: model.apply(p, VIDEO, train=train, dials=dials, rngs=rngs))(params(model.pool))


def drawn(widths: tuple[int, ...]) -> DrawnWidths:
    return DrawnWidths(jnp.asarray([SHARES.index(d / WIDTH) for d in widths], jnp.int32), SHARES)


def by_zeros(widths: tuple[int, ...], pool: str = "cls") -> tuple[np.ndarray, np.ndarray]:
    """Full-sized float64 arrays in which everything beyond a width is set to zero: (tokens, pooled)."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params(pool)["params"])
    pixels = np.asarray(VIDEO, np.float64) / 255 * 2 - 1
    boxes = pixels.reshape(2, 2, 2, 4, 4, 6, 4, 3).transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(2, 2, 24, 96)
    x = boxes @ p["patch"]["kernel"].reshape(96, WIDTH) + p["patch"]["bias"]
    x = (x + p["temporal"][:, None] + p["spatial"]).reshape(2, 48, WIDTH)
    if pool == "cls":
        x = np.concatenate([np.tile(p["cls"], (2, 1, 1)), x], axis=1)

    def only(d: int, size: int = WIDTH) -> np.ndarray:
        return np.arange(size) < d

    def norm(x: np.ndarray, q: Any, d: int) -> np.ndarray:
        x = np.where(only(d), x, 0)
        centred = np.where(only(d), x - x.sum(-1, keepdims=True) / d, 0)
        y = centred / np.sqrt((centred**2).sum(-1, keepdims=True) / d + 1e-6) * q["scale"] + q["bias"]
        return np.where(only(d), y, 0)

    layers = p["stack"]["layers"]
    for index, d in enumerate(widths):
        q = jax.tree.map(lambda leaf, index=index: leaf[index], layers)
        x = np.where(only(d), x, 0)
        y, a = norm(x, q["attention_norm"], d), q["attention"]
        query, keys, values = (
            np.einsum("BND,DAK->BANK", y, a[name]["kernel"]) + a[name]["bias"][:, None]
            for name in ("query", "key", "value")
        )
        logits = query @ keys.swapaxes(-1, -2) / np.sqrt(WIDTH // HEADS)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        heads = weights / weights.sum(-1, keepdims=True) @ values
        heads = np.where(only(d * HEADS // WIDTH, HEADS)[:, None, None], heads, 0)
        y = np.einsum("BANK,AKD->BND", heads, a["out"]["kernel"]) + a["out"]["bias"]
        x = np.where(only(d), x + y, 0)
        h = norm(x, q["mlp_norm"], d) @ q["mlp_in"]["kernel"] + q["mlp_in"]["bias"]
        h = np.where(only(d * MLP // WIDTH, MLP), h * (1 + np.vectorize(math.erf)(h / np.sqrt(2))) / 2, 0)
        x = np.where(only(d), x + h @ q["mlp_out"]["kernel"] + q["mlp_out"]["bias"], 0)
    x = norm(x, p["norm"], widths[-1])
    return (x[:, 1:], x[:, 0]) if pool == "cls" else (x, x.mean(1))


@pytest.mark.slow
@pytest.mark.parametrize("widths", SCHEDULES, ids=str)
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_static_and_drawn_widths_are_zeros_beyond_them(widths: tuple[int, ...], pool: str) -> None:
    tokens, pooled = by_zeros(widths, pool)
    static, traced = run(Dials(widths=widths), make(pool)), run(Dials(widths=drawn(widths)), make(pool))
    assert static.pooled_BD.shape == (2, widths[-1]) and traced.pooled_BD.shape == (2, WIDTH)
    np.testing.assert_allclose(static.tokens_BMD, tokens[..., : widths[-1]], atol=1e-4)
    np.testing.assert_allclose(static.pooled_BD, pooled[..., : widths[-1]], atol=1e-4)
    np.testing.assert_allclose(traced.tokens_BMD, tokens, atol=1e-4)
    np.testing.assert_allclose(traced.pooled_BD, pooled, atol=1e-4)
    assert int(traced.valid) == widths[-1]


def gradients(dials: Dials, model: Model | None = None) -> Any:
    model = model or make()

    def loss(p: Any) -> jax.Array:
        output = model.apply(p, VIDEO, train=True, dials=dials, rngs=streams(jax.random.key(0)))
        return jnp.sin(output.pooled_BD).sum() + jnp.cos(output.tokens_BMD[..., 0]).sum()

    return jax.jit(jax.grad(loss))(params(model.pool))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"scan": False}], ids=str)
def test_static_and_drawn_widths_have_the_same_gradients(options: dict[str, Any]) -> None:
    static, traced = gradients(Dials(widths=RAISED)), gradients(Dials(widths=drawn(RAISED)), make(**options))
    for one, other in zip(jax.tree.leaves(static), jax.tree.leaves(traced), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
    unused = static["params"]["stack"]["layers"]["mlp_in"]["kernel"][0]
    assert np.abs(unused[:4, :8]).min() > 0 and not np.abs(unused[4:]).any() and not np.abs(unused[:, 8:]).any()


def test_full_width_is_the_model_without_slicing() -> None:
    """Not only equal: it is the same program."""

    def program(dials: Dials) -> str:
        return str(jax.make_jaxpr(lambda p: make().apply(p, VIDEO, train=True, dials=dials))(params()))

    assert program(Dials(widths=(WIDTH,) * LAYERS)) == program(OFF) == program(Dials(widths="d-768"))
    assert program(Dials(widths="d-384")) != program(OFF)


def test_fifty_schedules_are_one_compilation() -> None:
    p = params()

    @jax.jit
    def pooled(widths: DrawnWidths) -> jax.Array:
        return make().apply(p, VIDEO, train=True, dials=Dials(widths=widths)).pooled_BD

    rng, found = np.random.default_rng(0), set()
    for _ in range(50):
        widths = tuple(sorted(rng.choice([4, 8, 12, 16], LAYERS).tolist(), reverse=True))
        found.add(np.asarray(pooled(drawn(widths))).tobytes())
    assert pooled._cache_size() == 1 and len(found) > 10


@pytest.mark.slow
def test_a_sampler_draws_in_training_only() -> None:
    dials = Dials(widths={"name": "dec"})
    one, other = (run(dials, key=key).tokens_BMD for key in (0, 3))
    assert not np.array_equal(one, other)
    np.testing.assert_array_equal(run(dials, train=False).tokens_BMD, run(OFF).tokens_BMD)
    with pytest.raises(ValueError, match="widths draws a schedule: call with rngs"):
        make().apply(params(), VIDEO, train=True, dials=dials)


@pytest.mark.slow
@pytest.mark.parametrize("widths", [*SCHEDULES, "d-dec", "d-384"], ids=str)
def test_a_model_cut_out_is_the_big_one_at_those_widths(widths: Any) -> None:
    small, cut = slice_params(make(), params()["params"], widths, VIDEO)
    found = jax.jit(lambda p: small.apply({"params": p}, VIDEO, train=False))(cut)
    expected = run(Dials(widths=widths), train=False)
    np.testing.assert_allclose(found.tokens_BMD, expected.tokens_BMD, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.pooled_BD, expected.pooled_BD, rtol=1e-5, atol=1e-5)

    def size(tree: Any) -> int:
        return sum(leaf.nbytes for leaf in jax.tree.leaves(tree["stack"]))

    static = schedule(widths, layers=LAYERS, width=WIDTH, head_size=WIDTH // HEADS)
    assert size(cut) < size(params()["params"]) * 1.1 * np.mean([(d / WIDTH) ** 2 for d in static]) + 2000


@pytest.mark.slow
def test_groups_of_heads_are_cut_alike() -> None:
    """In two groups, D/2 is the first half of each; a model whose heads are sorted so that these come first agrees."""
    grouped, plain = make(groups=2), make()
    order, units = [0, 2, 1, 3], np.arange(MLP).reshape(2, 2, -1).swapaxes(0, 1).ravel()
    layers = params()["params"]["stack"]["layers"]
    sorted_layers = jax.tree_util.tree_map_with_path(
        lambda path, leaf: _take(path, leaf, np.array(order), units), layers
    )
    p = {"params": {**params()["params"], "stack": {"layers": sorted_layers}}}
    dials = Dials(widths=(8,) * LAYERS)
    one = jax.jit(lambda p: grouped.apply(p, VIDEO, train=False, dials=dials).tokens_BMD)(params())
    other = jax.jit(lambda p: plain.apply(p, VIDEO, train=False, dials=dials).tokens_BMD)(p)
    np.testing.assert_allclose(one, other, atol=1e-4)
    small, cut = slice_params(grouped, params()["params"], (8,) * LAYERS, VIDEO)
    np.testing.assert_allclose(small.apply({"params": cut}, VIDEO, train=False).tokens_BMD, one, atol=1e-4)
    with pytest.raises(ValueError, match="the width 4 has 1 heads .* do not divide into transformer.groups = 2"):
        grouped.apply(params(), VIDEO, train=False, dials=Dials(widths=(4,) * LAYERS))


def _take(path: Any, leaf: jax.Array, order: np.ndarray, units: np.ndarray) -> jax.Array:
    """Layers with their heads, and their hidden units, in another order."""
    name = "/".join(str(key.key) for key in path)
    if "attention/" in name and "out/bias" not in name:
        return jnp.take(leaf, order, axis=1 if "out" in name or "bias" in name else 2)
    if "mlp_in" in name:
        return jnp.take(leaf, units, axis=-1)
    return jnp.take(leaf, units, axis=1) if "mlp_out/kernel" in name else leaf


def test_a_full_graph_is_dense_attention() -> None:
    """Seven random blocks and its own are all eight blocks there are."""
    for pool in ("cls", "mean"):
        dense, full = (run(dials, make(pool)) for dials in (OFF, Dials(edges={"local": 1, "random": 5, "block": 8})))
        np.testing.assert_allclose(full.tokens_BMD, dense.tokens_BMD, rtol=1e-4, atol=1e-4)
    dials = Dials(edges={"local": 1, "random": 1, "block": 8})
    assert np.abs(run(dials).tokens_BMD - run(OFF).tokens_BMD).max() > 1e-2


@pytest.mark.slow
def test_graphs_are_drawn_in_training_and_fixed_after() -> None:
    def tokens(redraw: str, train: bool, key: int) -> np.ndarray:
        edges = {"local": 1, "random": 1, "block": 8, "redraw": redraw}
        return np.asarray(run(Dials(edges=edges), train=train, key=key).tokens_BMD)

    for redraw, train, alike in (
        ("train", True, False),
        ("train", False, True),
        ("always", False, False),
        ("never", True, True),
    ):
        same = np.array_equal(tokens(redraw, train, 0), tokens(redraw, train, 1))
        assert same == alike, (redraw, train)
    with pytest.raises(ValueError, match="edges draws a graph: call with rngs"):
        make().apply(params(), VIDEO, train=True, dials=Dials(edges={"block": 8, "random": 1}))


def test_keeping_everything_is_keeping_off() -> None:
    everything = run(Dials(keep={0: 1.0, 2: 1.0}))
    np.testing.assert_allclose(everything.tokens_BMD, run(OFF).tokens_BMD, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(everything.kept_BM, np.tile(np.arange(48), (2, 1)))


@pytest.mark.slow
@pytest.mark.parametrize("edges", [None, {"local": 1, "random": 5, "block": 8}], ids=["dense", "full graph"])
@pytest.mark.parametrize("options", [{}, {"scan": False}], ids=str)
def test_keep_is_dropping_what_cls_attends_to_least(edges: Any, options: dict[str, Any]) -> None:
    """Against float64 layers in which whatever was dropped is never seen again."""
    kept, tokens = by_dropping({1: 0.5, 2: 0.3})
    found = run(Dials(keep={1: 0.5, 2: 0.3}, edges=edges), make(**options))
    np.testing.assert_array_equal(found.kept_BM, kept)
    np.testing.assert_allclose(found.tokens_BMD, tokens, atol=2e-4)


def by_dropping(rates: dict[int, float]) -> tuple[np.ndarray, np.ndarray]:
    """(kept tokens, what becomes of them), a clip at a time, from the blocks' own definition."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params()["params"])
    found = []
    for clip in range(2):
        x = _embedded(p)[clip]
        alive = np.arange(48)
        for index in range(LAYERS):
            q = jax.tree.map(lambda leaf, index=index: leaf[index], p["stack"]["layers"])
            y, a = _norm(x, q["attention_norm"]), q["attention"]
            query, keys, values = (
                np.einsum("ND,DAK->ANK", y, a[name]["kernel"]) + a[name]["bias"][:, None]
                for name in ("query", "key", "value")
            )
            weights = np.exp(query @ keys.swapaxes(-1, -2) / np.sqrt(WIDTH // HEADS))
            weights /= weights.sum(-1, keepdims=True)
            x = x + np.einsum("ANK,AKD->ND", weights @ values, a["out"]["kernel"]) + a["out"]["bias"]
            h = _norm(x, q["mlp_norm"]) @ q["mlp_in"]["kernel"] + q["mlp_in"]["bias"]
            h = h * (1 + np.vectorize(math.erf)(h / np.sqrt(2))) / 2
            x = x + h @ q["mlp_out"]["kernel"] + q["mlp_out"]["bias"]
            if index in rates:
                score = weights[:, 0, 1:].mean(0)
                stay = np.sort(np.argsort(-score)[: math.ceil(rates[index] * len(alive))])
                alive, x = alive[stay], np.concatenate([x[:1], x[1:][stay]])
        found.append((alive, _norm(x, p["norm"])[1:]))
    kept, tokens = zip(*found, strict=True)
    return np.stack(kept), np.stack(tokens)


def _embedded(p: Any) -> np.ndarray:
    pixels = np.asarray(VIDEO, np.float64) / 255 * 2 - 1
    boxes = pixels.reshape(2, 2, 2, 4, 4, 6, 4, 3).transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(2, 2, 24, 96)
    x = boxes @ p["patch"]["kernel"].reshape(96, WIDTH) + p["patch"]["bias"]
    x = (x + p["temporal"][:, None] + p["spatial"]).reshape(2, 48, WIDTH)
    return np.concatenate([np.tile(p["cls"], (2, 1, 1)), x], axis=1)


def _norm(x: np.ndarray, q: Any) -> np.ndarray:
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * q["scale"] + q["bias"]


def test_masked_then_pruned_tokens_keep_their_names() -> None:
    masked = np.asarray(run(Dials(mask=0.5)).kept_BM)
    both = np.asarray(run(Dials(mask=0.5, keep={1: 0.5})).kept_BM)
    assert both.shape == (2, 12)
    for few, many in zip(both, masked, strict=True):
        assert set(few) < set(many) and (np.diff(few) > 0).all()


def test_frozen_layers_get_no_gradient_and_the_others_theirs() -> None:
    whole, part = gradients(OFF)["params"], gradients(OFF, make(frozen_layers=3))["params"]
    for name in ("patch", "temporal", "spatial", "cls"):
        assert not any(np.abs(leaf).any() for leaf in jax.tree.leaves(part[name])), name
    for one, other in zip(jax.tree.leaves(whole["stack"]), jax.tree.leaves(part["stack"]), strict=True):
        assert not np.abs(other[:3]).any()
        np.testing.assert_allclose(one[3], other[3], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_frozen_layers_keep_nothing_for_the_backward_pass() -> None:
    """Six more layers that are frozen cost a gradient what they cost inference: nearly nothing."""

    def held(layers: int, frozen: int) -> int:
        model = make(layers=layers, frozen_layers=frozen)
        shapes = nn.unbox(jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), VIDEO))
        step = jax.jit(jax.grad(lambda p: jnp.square(model.apply(p, VIDEO, train=True).tokens_BMD).sum()))
        # The gradient of what is frozen is not asked for in training; as an output it is no temporary here either.
        return step.lower(shapes).compile().memory_analysis().temp_size_in_bytes

    two, eight, frozen = held(2, 0), held(8, 0), held(8, 6)
    assert frozen < two + 0.15 * (eight - two), (two, eight, frozen)


@pytest.mark.parametrize(
    ("dials", "words"),
    [
        ({"keep": {4: 0.5}}, "prunes after layer 4; the layers are 0 to 3"),
        ({"widths": (16, 12)}, "has 2 entries for 4 layers"),
        ({"edges": {"block": 49}}, "49"),
        ({"edges": {"block": 0}}, "block"),
        ({"edges": 3}, "the dial edges is a section"),
        ({"mask": 1.0}, r"a number in \[0, 1\)"),
        ({"mask_kind": "tubes"}, "mask_kind is 'tubes'"),
    ],
)
def test_impossible_dials_are_refused(dials: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        run(Dials(**dials))


def test_pruning_needs_a_cls_token() -> None:
    with pytest.raises(ValueError, match="keep ranks tokens by what the cls token attends to.*'mean'"):
        run(Dials(keep={1: 0.5}), make("mean"))
