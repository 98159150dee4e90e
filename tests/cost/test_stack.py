"""Shapes of a stack: which tokens each layer sees, and what cannot be."""

import pytest

from vidlang.cost.flops import adavid
from vidlang.cost.stack import StackShape, tokens_per_layer


def shape(**changes):
    plain = dict(width=64, mlp=256, widths=(64, 64), grid=(2, 4, 4), tokens=(32, 32), patch=12)
    return StackShape(**(plain | changes))


def test_tokens_fall_after_the_named_layers_and_are_rounded_up():
    # The counts of SViTT's code at four frames.
    found = tokens_per_layer(784, 12, ((3, 0.7), (6, 0.7), (9, 0.7)))
    assert found == (784,) * 4 + (549,) * 3 + (385,) * 3 + (270,) * 2
    assert tokens_per_layer(25, 2, ((0, 0.5),)) == (25, 13)


def test_half_a_width_costs_a_quarter_of_the_linear_maps():
    whole, half = (adavid(shape(widths=(d, d), grid=(1, 1, 1), tokens=(1, 1))) for d in (64, 32))
    attention = 2 * 4  # n^2 d for one token
    assert whole - attention * 64 == 4 * (half - attention * 32)


def test_sparse_edges_make_cost_linear_in_tokens():
    def cost(frames):
        return adavid(shape(grid=(frames, 4, 4), tokens=(frames * 16,) * 2, edges=(1, 1, 8)))

    assert cost(4) / 2 == cost(8) / 4 == cost(16) / 8


def test_a_block_of_edges_beyond_the_tokens_is_dense_attention():
    assert adavid(shape(edges=(1, 3, 56))) == adavid(shape())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layout": "diagonal"}, "unknown attention layout 'diagonal'; there are: joint, divided,"),
        ({"widths": (64,)}, "found 1 widths and 2 numbers of tokens"),
        ({"widths": (64, 128)}, "between 1 and the full width 64"),
        ({"tokens": (33, 32)}, "layers see 1 to 32 tokens"),
        ({"layout": "divided", "tokens": (32, 17)}, "equally many tokens at each of its 2 times"),
        ({"layout": "frames", "edges": (1, 1, 8)}, "no edges"),
    ],
)
def test_what_cannot_be_is_said(changes, words):
    with pytest.raises(ValueError, match=words):
        shape(**changes)


def test_a_layer_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="keep names layer 12; layers are numbered from 0 to 11"):
        tokens_per_layer(784, 12, ((12, 0.7),))
