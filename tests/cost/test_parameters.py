"""Parameters by formula against those of a real stack."""

import jax
import jax.numpy as jnp
import pytest

from vidlang.cost.parameters import count, size_bytes, touched
from vidlang.cost.stack import StackShape
from vidlang.models import video

TRANSFORMER = {"layers": 2, "width": 64, "heads": 4, "mlp": 128, "dtype": "float32"}


def params(**transformer):
    model = video.Model({**TRANSFORMER, **transformer}, tubelet=(2, 8, 8))
    clip = jnp.zeros((1, 4, 16, 16, 3), jnp.uint8)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), clip, train=False)["params"])


def shape(*widths, layout="joint"):
    return StackShape(64, 128, widths, grid=(2, 2, 2), tokens=(8,) * len(widths), patch=384, layout=layout)


@pytest.mark.slow
def test_the_full_width_touches_every_parameter_of_the_layers():
    found = params()
    assert touched(shape(64, 64)) == count(found["stack"])
    # The stem's matrix and offset, both tables of positions, the last norm.
    assert count(found) == count(found["stack"]) + 384 * 64 + 64 + (2 + 4) * 64 + 2 * 64
    assert size_bytes(found) == 4 * count(found)


@pytest.mark.parametrize("width", [16, 32, 48])
def test_a_width_touches_what_a_model_of_that_width_has(width):
    narrow = params(width=width, heads=width // 16, mlp=2 * width)
    assert touched(shape(width, width)) == count(narrow["stack"])


@pytest.mark.parametrize("layout", ["divided", "timesformer", "factorized"])
def test_an_attention_over_time_has_parameters_of_its_own(layout):
    assert touched(shape(64, 64, layout=layout)) == count(params(layout=layout)["stack"])
