"""Sparse attention against dense attention under the graph's mask, and against loops in float64 where it has a bias."""

import sys
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.core.sharding import constrain, make_mesh, use_mesh
from vidlang.ops.attention import attend, dense_attention
from vidlang.ops.block_sparse import best_here, refused, sparse_attention
from vidlang.ops.edges import BlockGraph, Edges, draw, full_graph, token_mask
from vidlang.ops.relative import RelativeBias, table_rows

B, A, K = 2, 2, 8
HERE = ("gather", "slots")
KEY = jax.random.key(3)
# tokens, block, local, random, globals; most do not divide into blocks.
DRAWS = [(37, 5, 1, 2, 1), (37, 5, 3, 1, 2), (24, 4, 1, 1, 0), (17, 16, 1, 3, 1), (9, 9, 1, 0, 1), (30, 4, 0, 2, 1)]
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")


def arrays(tokens: int, dtype: Any = jnp.float32, count: int = 4, batch: int = B, heads: int = A) -> Any:
    """q, k, v and what the output's gradient shall be."""
    rng = np.random.default_rng(tokens)
    return tuple(jnp.asarray(rng.normal(size=(batch, tokens, heads, K)), dtype) for _ in range(count))


def value_and_gradients(attention: Callable[..., jax.Array], q: Any, k: Any, v: Any, do: Any) -> Any:
    o, pull = jax.vjp(attention, q, k, v)
    return o, *pull(do)


def all_same(found: Any, expected: Any, atol: float = 3e-6) -> None:
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_allclose(one, other, atol=atol)


def check_against_mask(graph: BlockGraph, globals: int) -> None:
    """Values and gradients of every implementation here, and of dense attention under the mask, in one program."""
    inputs = arrays(globals + graph.tokens)

    @jax.jit
    def everything(graph: BlockGraph, inputs: Any) -> Any:
        mask = token_mask(graph, globals)[None, None]
        dense = value_and_gradients(lambda *x: dense_attention(*x, mask), *inputs)

        def sparse(name: str) -> Callable[..., jax.Array]:
            return lambda *x: sparse_attention(*x, graph, globals=globals, implementation=name)

        return dense, [value_and_gradients(sparse(name), *inputs) for name in HERE]

    dense, sparse = everything(graph, inputs)
    for found in sparse:
        all_same(found, dense)


def test_full_graph_is_dense_attention() -> None:
    graph, inputs = full_graph(13, 4), arrays(14)
    dense = jax.jit(lambda *x: value_and_gradients(lambda *x: attend(*x, implementation="reference"), *x))(*inputs)

    def sparse(name: str) -> Callable[..., jax.Array]:
        return lambda *x: sparse_attention(*x, graph, globals=1, implementation=name)

    for name in HERE:
        all_same(jax.jit(lambda *x, name=name: value_and_gradients(sparse(name), *x))(*inputs), dense)


@pytest.mark.slow
@pytest.mark.parametrize(("tokens", "block", "local", "random", "globals"), DRAWS)
def test_drawn_graph_is_dense_attention_under_its_mask(
    tokens: int, block: int, local: int, random: int, globals: int
) -> None:
    check_against_mask(draw(Edges(local, random, block), KEY, tokens), globals)


@pytest.mark.slow
@pytest.mark.parametrize("globals", [0, 1])
def test_slots_may_be_empty_anywhere_and_a_query_without_keys_gets_zeros(globals: int) -> None:
    index = jnp.array([[-1, 2, -1], [-1, -1, -1], [0, -1, 1]], jnp.int32)
    check_against_mask(BlockGraph(index, 11, 4), globals)
    found = sparse_attention(*arrays(11, count=3), BlockGraph(index, 11, 4), globals=0)
    assert (found[:, 4:8] == 0).all() and (found[:, :4] != 0).all()


def by_loops(q: Any, k: Any, v: Any, do: Any, seen: Any, ids: Any, table: Any, row_of: Callable[..., int]) -> Any:
    """Output and gradient of the bias table, one query at a time in float64."""
    q, k, v, do, table = (np.asarray(x, np.float64) for x in (q, k, v, do, table))
    o, d_table = np.zeros(q.shape), np.zeros(table.shape)
    for b, n, a in np.ndindex(q.shape[:3]):
        keys = np.flatnonzero(seen[n])
        rows = [row_of(ids[b][n], ids[b][s]) for s in keys]
        logits = k[b, keys, a] @ q[b, n, a] / np.sqrt(K) + table[rows, a]
        weights = np.exp(logits - logits.max())
        weights /= weights.sum()
        o[b, n, a] = weights @ v[b, keys, a]
        d_weights = v[b, keys, a] @ do[b, n, a]
        np.add.at(d_table[:, a], rows, weights * (d_weights - weights @ d_weights))
    return o, d_table


@pytest.mark.slow
@pytest.mark.parametrize(("globals", "own_places"), [(1, True), (2, False), (0, True)])
def test_bias_is_that_of_each_pair_of_places(globals: int, own_places: bool) -> None:
    grid, tokens = (2, 3, 4), 15
    rng = np.random.default_rng(1)
    graph = draw(Edges(1, 1, 4), KEY, tokens)
    places = [np.concatenate([[-1] * globals, rng.permutation(24)[:tokens]]) for _ in range(B if own_places else 1)]
    ids = np.array(places, np.int32)
    table = jnp.asarray(rng.normal(size=(table_rows(grid), A)), jnp.float32)
    inputs = arrays(globals + tokens)

    def row_of(one: int, other: int) -> int:
        rows = table_rows(grid)
        if one < 0 or other < 0:
            return rows - (1 if one < 0 and other < 0 else 3 if one < 0 else 2)
        offsets = [i - j for i, j in zip(np.unravel_index(one, grid), np.unravel_index(other, grid), strict=True)]
        return int(np.ravel_multi_index([o + n - 1 for o, n in zip(offsets, grid, strict=True)], (3, 5, 7)))

    seen = np.asarray(token_mask(graph, globals))
    o, d_table = by_loops(*inputs, seen, np.broadcast_to(ids, (B, ids.shape[1])), table, row_of)

    @jax.jit
    def everything(table: jax.Array, inputs: Any) -> Any:
        *qkv, do = inputs

        def run(name: str) -> Any:
            def attention(q: Any, k: Any, v: Any, table: Any) -> jax.Array:
                bias = RelativeBias(table, jnp.asarray(ids), grid)
                if name == "dense":
                    return dense_attention(q, k, v, token_mask(graph, globals)[None, None], bias.dense())
                return sparse_attention(q, k, v, graph, globals=globals, bias=bias, implementation=name)

            o, pull = jax.vjp(attention, *qkv, table)
            return o, *pull(do)

        return [run(name) for name in ("dense", *HERE)]

    dense, *sparse = everything(table, inputs)
    for found in (dense, *sparse):
        np.testing.assert_allclose(found[0], o, atol=5e-6)
        np.testing.assert_allclose(found[-1], d_table, atol=5e-6)
        all_same(found, dense, atol=5e-6)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", HERE)
def test_half_precision_sums_the_gradients_of_a_shared_block_in_float32(implementation: str) -> None:
    # 600 queries see one key alone, each with weight 1: a bfloat16 sum of ones stops at 256.
    graph = BlockGraph(jnp.zeros((600, 1), jnp.int32), 600, 1)
    q, k, v = arrays(600, jnp.bfloat16, count=3, batch=1)
    o, pull = jax.vjp(lambda v: sparse_attention(q, k, v, graph, globals=0, implementation=implementation), v)
    assert o.dtype == jnp.bfloat16
    (dv,) = pull(jnp.ones_like(o))
    assert dv.dtype == jnp.bfloat16 and (dv[:, 0] == 600).all() and (dv[:, 1:] == 0).all()
    # The CPU's compiler adds in float32 whatever is asked of it; other devices do what the program says.
    sums = [line for line in str(jax.make_jaxpr(pull)(o)).splitlines() if "= scatter-add" in line]
    assert sums and not [line for line in sums if "bf16" in line.split("=")[0]]


@pytest.mark.parametrize("implementation", HERE)
def test_half_precision_is_close_to_float32(implementation: str) -> None:
    graph = draw(Edges(1, 2, 5), KEY, 37)
    run = jax.jit(
        lambda *x: value_and_gradients(
            lambda *qkv: sparse_attention(*qkv, graph, globals=1, implementation=implementation), *x
        )
    )
    exact = arrays(38)
    half = run(*(x.astype(jnp.bfloat16) for x in exact))
    assert {x.dtype for x in half} == {jnp.dtype(jnp.bfloat16)}
    all_same([x.astype(jnp.float32) for x in half], run(*exact), atol=0.1)


@pytest.mark.parametrize("implementation", HERE)
def test_layers_of_a_scan_draw_graphs_of_their_own(implementation: str) -> None:
    x, do = arrays(22, count=2)
    keys = jax.random.split(KEY, 3)

    def layer(x: jax.Array, key: jax.Array) -> jax.Array:
        graph = draw(Edges(1, 1, 4), key, 21)
        return x + sparse_attention(x, x, x, graph, globals=1, implementation=implementation)

    def dense_layer(x: jax.Array, key: jax.Array) -> jax.Array:
        return x + dense_attention(x, x, x, token_mask(draw(Edges(1, 1, 4), key, 21), 1)[None, None])

    def scanned(x: jax.Array) -> jax.Array:
        return (do * jax.lax.scan(lambda x, key: (layer(x, key), None), 0.3 * x, keys)[0]).sum()

    def unrolled(x: jax.Array) -> jax.Array:
        x = 0.3 * x
        for index in range(3):
            x = dense_layer(x, keys[index])
        return (do * x).sum()

    found, expected = (jax.jit(jax.value_and_grad(f))(x) for f in (scanned, unrolled))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("mesh", "biased"),
    [
        ({"data": 2, "tensor": 4}, True),
        pytest.param({"context": 8}, False, marks=pytest.mark.slow),
        pytest.param({"data": 2, "tensor": 2, "context": 2}, True, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_eight_devices_compute_what_one_does(mesh: dict[str, int], biased: bool) -> None:
    grid, tokens = (2, 4, 4), 31
    graph = draw(Edges(1, 2, 4), KEY, tokens)
    inputs = arrays(tokens + 1, heads=4)
    table = jnp.asarray(np.random.default_rng(2).normal(size=(table_rows(grid), 4)), jnp.float32)
    ids = jnp.asarray([np.arange(-1, tokens), np.arange(tokens, -2, -1)[: tokens + 1]], jnp.int32)

    def everything(graph: BlockGraph, table: jax.Array, *inputs: jax.Array) -> Any:
        queries, keys = (("batch", axis, "act_heads", None) for axis in ("tokens", None))
        q, k, v, do = (constrain(x, *names) for x, names in zip(inputs, (queries, keys, keys, queries), strict=True))

        def run(name: str) -> Any:
            def attention(q: Any, k: Any, v: Any, table: Any) -> jax.Array:
                bias = RelativeBias(table, ids, grid) if biased else None
                return sparse_attention(q, k, v, graph, globals=1, bias=bias, implementation=name)

            o, pull = jax.vjp(attention, q, k, v, table)
            return o, *pull(do)

        return [run(name) for name in HERE]

    single = jax.jit(everything)(graph, table, *inputs)
    with use_mesh(make_mesh(mesh)):
        program = jax.jit(everything).lower(graph, table, *inputs).compile()
        all_same(program(graph, table, *inputs), single, atol=1e-5)


@pytest.mark.parametrize("implementation", HERE)
def test_batch_and_heads_need_no_communication(implementation: str) -> None:
    graph = draw(Edges(1, 2, 4), KEY, 31)

    def step(graph: BlockGraph, *inputs: jax.Array) -> Any:
        inputs = tuple(constrain(x, "batch", None, "act_heads", None) for x in inputs)
        found = value_and_gradients(
            lambda *x: sparse_attention(*x, graph, globals=1, implementation=implementation), *inputs
        )
        return [constrain(x, "batch", None, "act_heads", None) for x in found]

    with use_mesh(make_mesh({"data": 2, "tensor": 4})):
        # Inputs come whole, outputs stay where they are, so whatever moves is attention's doing.
        text = jax.jit(step).lower(graph, *arrays(32, heads=4)).compile().as_text()
    assert not [name for name in COLLECTIVES if f" {name}" in text]


def temporaries(tokens: int, edges: Edges, implementation: str) -> int:
    """Bytes that the compiler reserves for a gradient step; nothing runs."""
    q = jax.ShapeDtypeStruct((1, tokens + 1, 2, 16), jnp.float32)
    graph = jax.eval_shape(lambda key: draw(edges, key, tokens), KEY)

    def step(graph: BlockGraph, *inputs: jax.Array) -> Any:
        return value_and_gradients(
            lambda *x: sparse_attention(*x, graph, globals=1, implementation=implementation), *inputs
        )

    return jax.jit(step).lower(graph, q, q, q, q).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("implementation", HERE)
def test_memory_is_linear_in_the_tokens(implementation: str) -> None:
    one, two = (temporaries(tokens, Edges(1, 5, 56), implementation) for tokens in (1568, 3136))
    assert two < 2.2 * one
    # A single matrix of all pairs for both heads would need this much.
    assert two < 2 * 4 * 3136**2


@pytest.mark.slow
def test_memory_of_slots_does_not_grow_with_their_number() -> None:
    few, many = (temporaries(1568, Edges(1, random, 56), "slots") for random in (2, 14))
    assert many < 1.1 * few
    few, many = (temporaries(1568, Edges(1, random, 56), "gather") for random in (2, 14))
    assert many > 3 * few


def test_auto_takes_what_serves() -> None:
    good: dict[str, Any] = {"platform": "gpu", "dtype": jnp.dtype(jnp.bfloat16), "head_size": 64, "biased": False}
    assert best_here(**good) == "pallas"
    assert best_here(**(good | {"dtype": jnp.dtype(jnp.float16), "head_size": 128})) == "pallas"
    for change in ({"dtype": jnp.dtype(jnp.float32)}, {"head_size": 80}, {"biased": True}, {"platform": "cpu"}):
        assert best_here(**(good | change)) == "gather", change
    assert best_here(**(good | {"platform": "tpu"})) == "splash"
    assert best_here(**(good | {"platform": "tpu", "biased": True})) == "gather"
    assert best_here(**(good | {"platform": "tpu", "dtype": jnp.dtype(jnp.float16)})) == "gather"


def test_a_kernel_that_cannot_serve_says_why() -> None:
    for name, home, other in (("pallas", "gpu", "tpu"), ("splash", "tpu", "gpu")):
        assert refused(name, home, biased=False) is None
        assert "knows no bias; take 'gather' or 'slots'" in (refused(name, home, biased=True) or "")
        assert f"runs on a {home} and this is a {other}" in (refused(name, other, biased=False) or "")
        with pytest.raises(ValueError, match=f"'{name}' runs on a {home} and this is a cpu"):
            sparse_attention(*arrays(9, count=3), full_graph(8, 4), globals=1, implementation=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("platform", "module", "function"),
    [("gpu", "pallas_sparse", "pallas_attention"), ("tpu", "splash", "splash_sparse")],
)
def test_kernels_are_called_where_they_live(
    monkeypatch: pytest.MonkeyPatch, platform: str, module: str, function: str
) -> None:
    def kernel(q: jax.Array, k: jax.Array, v: jax.Array, graph: BlockGraph, *, globals: int) -> jax.Array:
        return dense_attention(q, k, v, token_mask(graph, globals)[None, None])

    fake = types.ModuleType(module)
    setattr(fake, function, kernel)
    monkeypatch.setitem(sys.modules, f"vidlang.ops.{module}", fake)
    graph = draw(Edges(1, 1, 4), KEY, 15)
    inputs = [jnp.tile(x, (1, 1, 2, 8)).astype(jnp.bfloat16) for x in arrays(16, count=3)]  # 4 heads of 64
    expected = kernel(*inputs, graph, globals=1)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    np.testing.assert_array_equal(sparse_attention(*inputs, graph, globals=1), expected)
    with use_mesh(make_mesh({"data": 2, "tensor": 4})):
        found = jax.jit(lambda *x: sparse_attention(*x, graph, globals=1))(*inputs)
    np.testing.assert_allclose(found.astype(jnp.float32), expected.astype(jnp.float32), atol=0.02)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"implementation": "dense"}, "unknown sparse attention 'dense'; there are: auto, gather, slots"),
        ({"globals": 0}, "0 global tokens and a graph of 8 do not make the 9 tokens of q"),
        ({"globals": -1}, "-1 global tokens"),
        ({"q": jnp.ones((B, 8, A, K))}, "of one shape"),
        ({"q": jnp.ones((B, 9, A, K), jnp.bfloat16)}, "one floating dtype; found bfloat16, float32"),
        ({"graph": BlockGraph(jnp.zeros((3, 1), jnp.int32), 8, 4)}, "an int32 array of 2 rows"),
        ({"bias": RelativeBias(jnp.zeros((9, A)), jnp.zeros((B, 9), jnp.int32), (2, 2, 2))}, "bias table of the grid"),
    ],
)
def test_a_request_that_cannot_be_served_says_so(changes: dict, words: str) -> None:
    q, k, v = arrays(9, count=3)
    options = {"q": q, "graph": full_graph(8, 4), "globals": 1} | changes
    with pytest.raises(ValueError, match=words):
        sparse_attention(options.pop("q"), k, v, options.pop("graph"), **options)
