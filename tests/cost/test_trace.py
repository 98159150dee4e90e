"""Counting by the trace: against sums by hand, and against XLA's own count of a program without loops."""

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import Primitive

from vidlang.core.config import call
from vidlang.cost.trace import matmul_flops
from vidlang.models import dual_encoder, video
from vidlang.ops.dials import Dials

BATCH, WIDTH, MLP, LAYERS, TOKENS = 2, 128, 512, 2, 4 * 16


def transformer(**changes):
    return {"layers": LAYERS, "width": WIDTH, "heads": 2, "mlp": MLP, "dtype": "float32"} | changes


def pair(**changes):
    """A dual encoder over 64 video tokens and 16 words, called in shapes."""
    spec = transformer(**changes)
    model = dual_encoder.Model(
        video={"transformer": spec, "tubelet": (2, 8, 8), "pool": "cls"},
        text={"vocab": 50, "max_length": 16, "transformer": spec, "pool": "mean"},
        embed=32,
        temperature={"init": 0.07, "max_scale": 100.0, "learnable": True},
    )
    return model, jax.ShapeDtypeStruct((BATCH, 8, 32, 32, 3), jnp.uint8), jax.ShapeDtypeStruct((BATCH, 16), jnp.int32)


def shapes(model, *inputs):
    return jax.eval_shape(lambda *x: model.init(jax.random.key(0), *x, train=False), *inputs)


def forward(model):
    return lambda params, *inputs: jax.tree.leaves(model.apply(params, *inputs, train=False))


def by_hand():
    """Two for each multiply-add: patches, two stacks with both products of attention, two projections."""

    def stack(tokens):
        return LAYERS * (tokens * (8 * WIDTH**2 + 4 * WIDTH * MLP) + 4 * tokens**2 * WIDTH)

    patches = 2 * TOKENS * (2 * 8 * 8 * 3) * WIDTH
    return BATCH * (patches + stack(TOKENS + 1) + stack(16) + 2 * 2 * WIDTH * 32)


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("attention", ["reference", "fused"])
def test_every_product_of_a_dual_encoder_is_counted(scan, attention):
    model, *inputs = pair(scan=scan, attention=attention)
    assert matmul_flops(forward(model), shapes(model, *inputs), *inputs) == by_hand()


def xla_flops(function, *arguments):
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


def test_forward_agrees_with_xla_on_an_unrolled_model():
    model, *inputs = pair(scan=False)
    arguments = (shapes(model, *inputs), *inputs)
    counted = matmul_flops(forward(model), *arguments)
    # XLA also counts norms, softmax and GELU, which are nearly a tenth at this small width.
    assert counted < xla_flops(forward(model), *arguments) < 1.1 * counted


@pytest.mark.parametrize("remat", ["none", "full"])
def test_gradients_agree_with_xla_and_a_scan_counts_as_often_as_it_runs(remat):
    def gradient(model):
        return jax.grad(lambda params, *inputs: sum(leaf.sum() for leaf in forward(model)(params, *inputs)))

    model, *inputs = pair(scan=False, remat=remat)
    scanned, *_ = pair(scan=True, remat=remat)
    arguments = (shapes(model, *inputs), *inputs)
    loop = matmul_flops(gradient(scanned), *arguments)
    xla = xla_flops(gradient(model), *arguments)
    assert loop < xla < 1.06 * loop
    # What makes the count of its own necessary: XLA sees one of the scanned layers.
    assert xla_flops(gradient(scanned), *arguments) < 0.7 * loop


def test_masked_tokens_are_not_counted():
    model = call(video.Model, {"transformer": transformer(), "tubelet": (2, 8, 8)}, what="video")
    clips = jax.ShapeDtypeStruct((1, 8, 32, 32, 3), jnp.uint8)
    params, key = shapes(model, clips), {"mask": jax.random.key(0)}

    def counted(mask):
        def masked(params, clips):
            return model.apply(params, clips, train=True, dials=Dials(mask=mask), rngs=key).pooled_BD

        return matmul_flops(masked, params, clips)

    def layers(tokens):
        return LAYERS * (tokens * (8 * WIDTH**2 + 4 * WIDTH * MLP) + 4 * tokens**2 * WIDTH)

    assert counted(0.0) - counted(0.75) == layers(TOKENS) - layers(TOKENS // 4)


def test_loops_branches_and_convolutions():
    x = jnp.ones((4, 8))
    one = 2 * 4 * 8 * 8

    def product(x):
        return x @ jnp.ones((8, 8))

    def twice(x):
        return product(product(x))

    assert matmul_flops(lambda x: jax.lax.fori_loop(0, 5, lambda _, x: product(x), x), x) == 5 * one
    assert matmul_flops(lambda x: jax.lax.cond(x[0, 0] > 0, twice, product, x), x) == 2 * one
    image, kernel = jnp.ones((2, 6, 6, 3)), jnp.ones((2, 2, 3, 5))

    def convolve(image):
        return jax.lax.conv_general_dilated(image, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert matmul_flops(convolve, image) == 2 * (2 * 3 * 3 * 5) * (2 * 2 * 3)


def test_what_cannot_be_counted_is_refused():
    def until(x):
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x)

    with pytest.raises(ValueError, match="write the loop as jax.lax.scan"):
        matmul_flops(until, jnp.ones((3, 3)))
    hidden = Primitive("pallas_call")
    hidden.def_abstract_eval(lambda x: x)
    with pytest.raises(ValueError, match="pallas_call hides its operations"):
        matmul_flops(lambda x: hidden.bind(x), jnp.ones((3, 3)))


def test_cudnn_attention_counts_as_its_products():
    kernel = Primitive("dot_product_attention_fwd_wrapper")
    kernel.def_abstract_eval(lambda q, k, v: q)
    q, k = jnp.ones((2, 5, 3, 8)), jnp.ones((2, 7, 3, 8))
    assert matmul_flops(lambda q, k: kernel.bind(q, k, k), q, k) == 2 * 2 * (2 * 3 * 5 * 7 * 8)
