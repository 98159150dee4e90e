"""Graphs of blocks against loops and counts: what a row holds, how it is drawn, and what it means token by token."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.ops.edges import (
    BlockGraph,
    Edges,
    combine,
    density,
    draw,
    full_graph,
    local_blocks,
    random_blocks,
    token_mask,
    validate,
)

KEY = jax.random.key(0)
DRAWS = [(40, 4, 1, 3), (41, 4, 3, 2), (37, 4, 5, 0), (30, 7, 0, 2), (20, 4, 1, 9), (12, 4, 3, 5), (5, 5, 1, 1)]


def row_sets(index_QK: jax.Array) -> list[set[int]]:
    """What each row holds; fails where a block stands twice."""
    rows = [[int(k) for k in row if k >= 0] for row in np.asarray(index_QK)]
    assert all(len(set(row)) == len(row) for row in rows)
    return [set(row) for row in rows]


@pytest.mark.parametrize("local", [0, 1, 3, 5, 9])
def test_local_blocks_are_the_neighbours_that_exist(local: int) -> None:
    index = local_blocks(4, local)
    assert index.shape == (4, local)
    reach = (local - 1) / 2
    assert row_sets(index) == [{j for j in range(4) if abs(i - j) <= reach} for i in range(4)]


@pytest.mark.parametrize(("n_blocks", "random", "local"), [(9, 3, 1), (9, 4, 5), (5, 4, 0), (6, 9, 3), (1, 2, 1)])
def test_random_blocks_are_as_many_as_exist_beside_the_local_ones(n_blocks: int, random: int, local: int) -> None:
    index = random_blocks(KEY, n_blocks, random, local)
    assert index.shape == (n_blocks, random)
    for row, found, near in zip(index, row_sets(index), row_sets(local_blocks(n_blocks, local)), strict=True):
        assert not found & near and found <= set(range(n_blocks))
        assert len(found) == min(random, n_blocks - len(near))
        np.testing.assert_array_equal(row, sorted(found) + [-1] * (random - len(found)))


def test_every_subset_is_equally_likely_and_rows_are_independent() -> None:
    draws = 6000
    index = jax.jit(jax.vmap(lambda key: random_blocks(key, 5, 2, 1)))(jax.random.split(KEY, draws))
    index = np.asarray(index)
    for row in range(5):
        pairs = list(itertools.combinations([j for j in range(5) if j != row], 2))
        counts = np.array([(index[:, row] == pair).all(-1).sum() for pair in pairs])
        assert counts.sum() == draws
        # Chi-squared with 5 degrees of freedom exceeds 25.7 once in ten thousand.
        assert np.square(counts - draws / 6).sum() / (draws / 6) < 25.7
    same = (index[:, 0, 0] == 2) & (index[:, 1, 0] == 2)
    expected = (index[:, 0, 0] == 2).mean() * (index[:, 1, 0] == 2).mean()
    assert abs(same.mean() - expected) < 4 * np.sqrt(expected / draws)


@pytest.mark.slow
@pytest.mark.parametrize(("tokens", "block", "local", "random"), DRAWS)
def test_a_drawn_graph_is_valid_and_holds_what_it_should(tokens: int, block: int, local: int, random: int) -> None:
    graph = draw(Edges(local, random, block), KEY, tokens)
    blocks = -(-tokens // block)
    assert graph.index_QK.shape == (blocks, min(local + random, blocks)) and graph.index_QK.dtype == jnp.int32
    validate(graph)
    for found, near in zip(row_sets(graph.index_QK), row_sets(local_blocks(blocks, local)), strict=True):
        assert near <= found and len(found) == min(len(near) + random, blocks)


@pytest.mark.slow
def test_same_key_same_graph_and_every_layer_of_a_scan_its_own() -> None:
    edges = Edges(local=1, random=3, block=4)
    keys = jax.random.split(KEY, 6)
    step = jax.jit(lambda keys: jax.lax.scan(lambda _, key: (None, draw(edges, key, 79).index_QK), None, keys)[1])
    stacked = step(keys)
    for key, index in zip(keys, stacked, strict=True):
        np.testing.assert_array_equal(index, draw(edges, key, 79).index_QK)
    assert len({index.tobytes() for index in np.asarray(stacked)}) == 6


@pytest.mark.slow
def test_combine_keeps_the_first_of_copies() -> None:
    one, two = jnp.array([[2, -1], [1, 0]]), jnp.array([[0, 2, -1], [3, 1, 0]])
    np.testing.assert_array_equal(combine(one, two), [[2, -1, 0, -1, -1], [1, 0, 3, -1, -1]])
    np.testing.assert_array_equal(combine(two), two)
    with pytest.raises(ValueError, match=r"equally many rows; found \(2, 2\), \(1, 2\)"):
        combine(one, one[:1])


@pytest.mark.slow
@pytest.mark.parametrize("globals", [0, 1, 2])
@pytest.mark.parametrize(("tokens", "block", "local", "random"), DRAWS)
def test_mask_and_density_are_those_of_a_loop_over_tokens(
    tokens: int, block: int, local: int, random: int, globals: int
) -> None:
    graph = draw(Edges(local, random, block), KEY, tokens)
    expected = np.ones((tokens + globals,) * 2, bool)
    for i, j in np.ndindex(tokens, tokens):
        expected[globals + i, globals + j] = j // block in np.asarray(graph.index_QK[i // block])
    np.testing.assert_array_equal(jax.jit(token_mask, static_argnums=1)(graph, globals), expected)
    np.testing.assert_allclose(jax.jit(density)(graph), expected[globals:, globals:].mean(), rtol=1e-6)


def test_full_graph_is_dense() -> None:
    graph = full_graph(11, 4)
    validate(graph)
    assert token_mask(graph, 1).all() and density(graph) == 1
    # 200,000 tokens: more edges than an int32 counts.
    np.testing.assert_allclose(density(full_graph(200_000, 1000)), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"local": 2}, "edges.local is 2; it must be odd"),
        ({"local": -1}, "edges.local is -1; it must be an integer of at least 0"),
        ({"random": 1.5}, "edges.random is 1.5"),
        ({"block": 0}, "edges.block is 0; it must be an integer of at least 1"),
        ({"block": True}, "edges.block is True"),
        ({"local": 0, "random": 0}, "are both 0"),
        ({"redraw": "eval"}, "edges.redraw is 'eval'; it is one of train, always, never"),
    ],
)
def test_edges_that_cannot_be_meant_are_refused(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Edges(**changes)


def test_blocks_larger_than_the_clip_are_refused() -> None:
    with pytest.raises(ValueError, match="blocks of 56 tokens do not fit 49 tokens; take an edges.block from 1 to 49"):
        draw(Edges(), KEY, 49)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ([[0], [2], [3]], "row 2 of the graph is .3.; blocks are 0 to 2"),
        ([[0], [-2], [1]], "row 1 .* -1 is none"),
        ([[0, 1], [2, 2], [0, -1]], "row 1 .* with a block twice"),
        ([[0, 1], [2, 0], [-1, -1]], "row 2 of the graph holds no block"),
        ([[0], [1]], r"array of 3 rows; found int32 \(2, 1\)"),
        ([[0.0], [1.0], [2.0]], "int32 .* found float32"),
    ],
)
def test_broken_graphs_are_refused(index: list, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        validate(BlockGraph(jnp.array(index), 9, 3))


def test_validate_inside_jit_says_why_not() -> None:
    with pytest.raises(ValueError, match="not known inside jit"):
        jax.jit(lambda graph: validate(graph))(full_graph(9, 3))
