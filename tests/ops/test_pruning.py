"""Token pruning: how many stay, which ones, and in what order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.ops.dials import Dials
from vidlang.ops.pruning import keep_best, kept_count


def test_counts_are_those_of_the_paper() -> None:
    counts = [784]
    for _ in range(3):
        counts.append(kept_count(counts[-1], 0.7))
    assert counts == [784, 549, 385, 270]
    # 0.1 * 30 is a little more than 3 in binary.
    assert kept_count(30, 0.1) == 3 and kept_count(31, 0.1) == 4 and kept_count(5, 0.01) == 1 and kept_count(5, 1) == 5


@pytest.mark.parametrize("globals", [0, 1, 2])
def test_the_best_stay_in_their_order(globals: int) -> None:
    rng = np.random.default_rng(0)
    x, score = rng.normal(size=(3, globals + 10, 4)), rng.normal(size=(3, 10))
    y, kept = jax.jit(lambda x, s: keep_best(x, s, 4, globals=globals))(x, score)
    for row in range(3):
        expected = sorted(sorted(range(10), key=lambda n, row=row: -score[row, n])[:4])
        np.testing.assert_array_equal(kept[row], expected)
        np.testing.assert_allclose(y[row, globals:], x[row, globals:][expected], rtol=1e-6)
        np.testing.assert_allclose(y[row, :globals], x[row, :globals], rtol=1e-6)


def test_gradients_reach_those_that_stay() -> None:
    score = jnp.array([[3.0, 1.0, 2.0]])
    gradient = jax.grad(lambda x: keep_best(x, score, 2)[0].sum())(jnp.zeros((1, 3, 2)))
    np.testing.assert_array_equal(gradient[0, :, 0], [1, 0, 1])


@pytest.mark.parametrize("keep", [{"3": 0.7, "1": 0.5}, ((3, 0.7), (1, 0.5)), {1: 0.5, 3: 0.7}])
def test_a_config_may_write_it_as_it_likes(keep) -> None:
    assert Dials(keep=keep).keep == ((1, 0.5), (3, 0.7))
    assert hash(Dials(keep=keep)) == hash(Dials(keep=((1, 0.5), (3, 0.7))))


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        (((3, 0.0),), "keeps 0.0 after layer 3; it is a share above 0"),
        (((3, 1.5),), "keeps 1.5"),
        (((-1, 0.5),), "names the layer -1"),
        (((1, 0.5), (1, 0.6)), "names the layer 1 twice"),
        (("x",), "holds .layer, rate. pairs"),
    ],
)
def test_impossible_rates_are_refused(keep, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Dials(keep=keep)
