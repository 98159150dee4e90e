"""The optimizer against plain numpy, and its rules against typos."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.core.tree import flatten_paths
from vidlang.models import video
from vidlang.train.optimizer import NO_DECAY, make_optimizer
from vidlang.train.schedules import make_schedule


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    shapes = {"tower": {"mlp": {"kernel": (4, 3), "bias": (3,)}, "norm": {"scale": (3,)}}, "head": {"kernel": (3, 2)}}
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
        shapes,
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )


def make(params, **options):
    options = {"total_steps": 10, "batch_size": 4, "learning_rate": 0.1, "schedule": "constant"} | options
    return make_optimizer(params, **options)


def run(optimizer, params, gradients):
    """The parameters after one update for each tree of gradients."""
    trained, frozen = optimizer.split(params)
    state = optimizer.transform.init(trained)
    for gradient in gradients:
        updates, state = optimizer.transform.update(optimizer.split(gradient)[0], state, trained)
        trained = jax.tree.map(jnp.add, trained, updates)
    return optimizer.join(trained, frozen), state


def noise(params, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), params)


def numpy_adamw(params, gradients, *, rates, decay, decayed, clip, b1, b2, eps):
    """AdamW over a dict of arrays in float64, written from its definition."""
    values = {name: np.asarray(leaf, np.float64) for name, leaf in flatten_paths(params).items()}
    first = {name: np.zeros_like(value) for name, value in values.items()}
    second = {name: np.zeros_like(value) for name, value in values.items()}
    for count, (rate, gradient) in enumerate(zip(rates, gradients, strict=True), 1):
        gradient = {name: np.asarray(leaf, np.float64) for name, leaf in flatten_paths(gradient).items()}
        norm = np.sqrt(sum((leaf**2).sum() for leaf in gradient.values()))
        for name, leaf in gradient.items():
            leaf = leaf * min(1.0, clip / norm)
            first[name] = b1 * first[name] + (1 - b1) * leaf
            second[name] = b2 * second[name] + (1 - b2) * leaf**2
            update = (first[name] / (1 - b1**count)) / (np.sqrt(second[name] / (1 - b2**count)) + eps)
            values[name] = values[name] - rate * (update + decay * (name in decayed) * values[name])
    return values


def test_equals_adamw_written_in_numpy(params):
    gradients = [noise(params, seed) for seed in range(1, 5)]
    optimizer = make(
        params, schedule="cosine", warmup="2 steps", weight_decay=0.3, clip_norm=1.5, b1=0.8, b2=0.95, eps=1e-6
    )
    got, _ = run(optimizer, params, gradients)
    rates = [0.05, 0.1, 0.1, 0.1 * 0.5 * (1 + np.cos(np.pi / 8))]
    decayed = {"tower/mlp/kernel", "head/kernel"}
    want = numpy_adamw(params, gradients, rates=rates, decay=0.3, decayed=decayed, clip=1.5, b1=0.8, b2=0.95, eps=1e-6)
    for name, leaf in flatten_paths(got).items():
        np.testing.assert_allclose(leaf, want[name], rtol=2e-5, atol=2e-6, err_msg=name)


def numpy_momentum(params, gradients, *, rate, decay, decayed, momentum, nesterov):
    """SGD with decay in the gradient, in float64."""
    values = {name: np.asarray(leaf, np.float64) for name, leaf in flatten_paths(params).items()}
    speed = {name: np.zeros_like(value) for name, value in values.items()}
    for gradient in gradients:
        for name, leaf in flatten_paths(gradient).items():
            pull = np.asarray(leaf, np.float64) + decay * (name in decayed) * values[name]
            speed[name] = momentum * speed[name] + pull
            values[name] = values[name] - rate * (pull + momentum * speed[name] if nesterov else speed[name])
    return values


def numpy_lion(params, gradients, *, rate, decay, decayed, b1, b2):
    """Lion: the sign of a mean that leans on the newest gradient, and decay beside it."""
    values = {name: np.asarray(leaf, np.float64) for name, leaf in flatten_paths(params).items()}
    first = {name: np.zeros_like(value) for name, value in values.items()}
    for gradient in gradients:
        for name, leaf in flatten_paths(gradient).items():
            leaf = np.asarray(leaf, np.float64)
            update = np.sign(b1 * first[name] + (1 - b1) * leaf) + decay * (name in decayed) * values[name]
            values[name] = values[name] - rate * update
            first[name] = b2 * first[name] + (1 - b2) * leaf
    return values


@pytest.mark.parametrize(
    ("options", "by_hand", "settings"),
    [
        ({"name": "sgd"}, numpy_momentum, {"momentum": 0.9, "nesterov": False}),
        ({"name": "sgd", "momentum": 0.7, "nesterov": True}, numpy_momentum, {"momentum": 0.7, "nesterov": True}),
        ({"name": "lion"}, numpy_lion, {"b1": 0.9, "b2": 0.99}),
        ({"name": "lion", "b1": 0.5, "b2": 0.8}, numpy_lion, {"b1": 0.5, "b2": 0.8}),
    ],
    ids=["sgd", "nesterov", "lion", "lion b"],
)
def test_equals_sgd_and_lion_written_in_numpy(params, options, by_hand, settings):
    gradients = [noise(params, seed) for seed in range(1, 5)]
    # So large a first gradient that what is remembered of it decides the sign of Lion's next steps.
    gradients[0] = jax.tree.map(lambda leaf: 30 * leaf, gradients[0])
    got, _ = run(make(params, weight_decay=0.3, clip_norm=None, **options), params, gradients)
    want = by_hand(params, gradients, rate=0.1, decay=0.3, decayed={"tower/mlp/kernel", "head/kernel"}, **settings)
    for name, leaf in flatten_paths(got).items():
        np.testing.assert_allclose(leaf, want[name], rtol=2e-5, atol=2e-6, err_msg=name)


def stacked(layers):
    """Parameters like those of a dual encoder, whose video tower has this many layers."""
    shapes = {
        "video_encoder": {
            "patch": {"kernel": (3, 2)},
            "cls": (2,),
            "stem_norm": {"scale": (2,)},
            "stack": {"layers": {"mlp_in": {"kernel": (layers, 2, 3), "bias": (layers, 3)}}},
            "norm": {"scale": (2,)},
        },
        "text_encoder": {"stack": {"layers": {"mlp_in": {"kernel": (2, 2, 3)}}}, "positions": (4, 2)},
        "head": {"kernel": (2, 2)},
    }
    is_shape = lambda leaf: isinstance(leaf, tuple)  # noqa: E731
    return jax.tree.map(lambda shape: jnp.ones(shape, jnp.float32), shapes, is_leaf=is_shape)


@pytest.mark.parametrize("frozen", [0, 2])
def test_each_layer_learns_at_a_share_of_the_next_ones_rate(frozen):
    """VideoMAE's rule: the stem is layer 0, blocks are 1 to L, and layer i has the rate times decay^(L + 1 - i)."""
    params, layers, decay = stacked(4), 4, 0.75
    rows = {"video_encoder/stack/layers/": frozen} if frozen else {}
    optimizer = make(
        params,
        name="sgd",
        momentum=0.0,
        clip_norm=None,
        layer_decay=decay,
        learning_rate_scales=(("mlp_in/bias", 0.5),),
        freeze_rows=rows,
    )
    got, _ = run(optimizer, params, [jax.tree.map(jnp.ones_like, params)])
    moved = {name: (1 - leaf) / 0.1 for name, leaf in flatten_paths(got).items()}
    by_layer = np.array([decay ** (layers + 1 - i) for i in range(1, layers + 1)])
    by_layer[:frozen] = 0
    for name in ("video_encoder/patch/kernel", "video_encoder/cls", "video_encoder/stem_norm/scale"):
        np.testing.assert_allclose(moved[name], decay**5, rtol=1e-5)
    tower = "video_encoder/stack/layers/mlp_in"
    np.testing.assert_allclose(moved[f"{tower}/kernel"], np.broadcast_to(by_layer[:, None, None], (4, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(moved[f"{tower}/bias"], np.broadcast_to(by_layer[:, None] / 2, (4, 3)), rtol=1e-5)
    for name in ("video_encoder/norm/scale", "head/kernel", "text_encoder/positions"):
        np.testing.assert_allclose(moved[name], 1, rtol=1e-5)
    np.testing.assert_allclose(moved["text_encoder/stack/layers/mlp_in/kernel"], 1, rtol=1e-5)


def test_layer_decay_knows_all_parts_of_the_video_encoder():
    """Of a real one: what comes before the layers has the least rate, what comes after them the whole."""
    model = video.Model(
        transformer={"width": 16, "layers": 2, "heads": 2, "mlp": 32},
        tubelet=(2, 4, 4),
        pool="cls",
        image_patch=(4, 4),
    )
    clip = jnp.zeros((1, 4, 8, 8, 3), jnp.uint8)
    shapes = nn.unbox(jax.eval_shape(lambda: model.init(jax.random.key(0), clip, train=False)["params"]))
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
    optimizer = make(params, name="sgd", momentum=0.0, clip_norm=None, layer_decay=0.5)
    got, _ = run(optimizer, params, [params])
    rates = {}
    for name, leaf in flatten_paths(got).items():
        first, last = (float((1 - row.reshape(-1)[0]) / 0.1) for row in (leaf[0], leaf[-1]))
        rates.setdefault(name.split("/")[0], set()).add((round(first, 4), round(last, 4)))
    before = {name: {(0.125, 0.125)} for name in ("patch", "image_patch", "cls", "spatial", "temporal")}
    assert rates == before | {"stack": {(0.25, 0.5)}, "norm": {(1, 1)}}


def test_layers_in_runs_of_several_widths_are_counted_through():
    runs = {"layers_0": {"kernel": jnp.ones((2, 3))}, "layers_2": {"kernel": jnp.ones((1, 2))}}
    params = {"stack": runs, "patch": {"kernel": jnp.ones((2, 2))}}
    got, _ = run(make(params, name="sgd", clip_norm=None, layer_decay=0.5), params, [params])
    for name, factors in {"layers_0": [0.125, 0.25], "layers_2": [0.5]}.items():
        np.testing.assert_allclose((1 - got["stack"][name]["kernel"][:, 0]) / 0.1, factors, rtol=1e-5)
    np.testing.assert_allclose((1 - got["patch"]["kernel"]) / 0.1, 0.0625, rtol=1e-5)


def test_the_climb_begins_where_it_is_told_to():
    """AVION's fine-tuning: from 1e-6 in even steps to 3e-5, then along half a wave to 1e-5."""
    follow = make_schedule("cosine", peak=3e-5, final=1e-5, warmup=5, total=25, first=1e-6)
    wave = 1e-5 + 1e-5 * (1 + np.cos(np.pi * np.arange(20) / 20))
    expected = np.concatenate([np.linspace(1e-6, 3e-5, 5), wave])
    np.testing.assert_allclose([follow(step) for step in range(25)], expected, rtol=1e-5)


def test_schedule_climbs_then_falls_to_its_end():
    follow = make_schedule("cosine", peak=1.0, final=0.1, warmup=4, total=20)
    rates = np.array([follow(step) for step in range(21)])
    np.testing.assert_allclose(rates[:4], [0.25, 0.5, 0.75, 1.0], rtol=1e-6)
    assert (np.diff(rates[4:]) < 0).all() and rates[4] == 1.0
    np.testing.assert_allclose([rates[12], rates[20]], [0.55, 0.1], rtol=1e-5)
    constant = make_schedule("constant", peak=2.0, final=0.0, warmup=0, total=5)
    assert [float(constant(step)) for step in (0, 3, 5)] == [2.0, 2.0, 2.0]


def test_a_schedule_may_last_longer_than_an_int_counts():
    follow = make_schedule("cosine", peak=1.0, final=0.0, warmup=10**10, total=10**12)
    assert float(follow(0)) == pytest.approx(1e-10) and float(follow(10**9 - 1)) == pytest.approx(0.1)


def test_frozen_leaves_have_no_moments_and_do_not_move(params):
    optimizer = make(params, freeze=("^tower/",), weight_decay=0.5)
    got, state = run(optimizer, params, [noise(params, 1)] * 3)
    before, after = flatten_paths(params), flatten_paths(got)
    for name in before:
        same = np.array_equal(before[name], after[name])
        assert same == name.startswith("tower"), name
    assert not [name for name in flatten_paths(state) if "tower" in name]
    assert sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim) == 2 * params["head"]["kernel"].size


def test_frozen_gradients_do_not_count_in_the_norm(params):
    big = jax.tree.map(lambda leaf: leaf * 1e6, noise(params, 1))
    gradient = {"tower": big["tower"], "head": noise(params, 2)["head"]}
    frozen, _ = run(make(params, freeze=("^tower/",), clip_norm=0.5, eps=1.0), params, [gradient])
    alone, _ = run(
        make({"head": params["head"]}, clip_norm=0.5, eps=1.0), {"head": params["head"]}, [{"head": gradient["head"]}]
    )
    np.testing.assert_array_equal(frozen["head"]["kernel"], alone["head"]["kernel"])


def test_learning_rate_scales_take_the_first_match(params):
    scales = (("mlp/bias", 0.0), ("^tower/", 0.5))
    plain, _ = run(make(params), params, [noise(params, 1)])
    scaled, _ = run(make(params, learning_rate_scales=scales), params, [noise(params, 1)])
    moved = {name: flatten_paths(plain)[name] - leaf for name, leaf in flatten_paths(params).items()}
    for name, leaf in flatten_paths(params).items():
        factor = 0.0 if name == "tower/mlp/bias" else 0.5 if name.startswith("tower") else 1.0
        np.testing.assert_allclose(flatten_paths(scaled)[name] - leaf, factor * moved[name], atol=1e-6, err_msg=name)


def test_no_decay_replaces_the_default_rule(params):
    zero = jax.tree.map(jnp.zeros_like, params)
    got, _ = run(make(params, weight_decay=0.5, no_decay=("head",)), params, [zero])
    for name, leaf in flatten_paths(params).items():
        changed = not np.array_equal(leaf, flatten_paths(got)[name])
        assert changed == (not name.startswith("head")), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze": ("towr",)}, "optimizer.freeze: 'towr' matches no parameter.*tower/mlp/kernel"),
        ({"no_decay": ("scal_",)}, "optimizer.no_decay: 'scal_' matches no parameter"),
        ({"learning_rate_scales": (("decoder", 0.1),)}, "learning_rate_scales: 'decoder' matches no parameter"),
        ({"freeze": (".",)}, "nothing is left to train"),
        ({"schedule": "cosin"}, "unknown optimizer.schedule 'cosin'.*cosine, constant"),
        ({"name": "adam"}, r"unknown optimizer.name 'adam' \(did you mean 'adamw'\?\); there are: adamw, sgd, lion"),
        ({"momentum": 0.9}, "optimizer.momentum is for sgd, and optimizer.name is 'adamw'; leave it out"),
        ({"name": "sgd", "b1": 0.9}, "optimizer.b1 is for adamw and lion, and optimizer.name is 'sgd'"),
        ({"name": "sgd", "momentum": 1.0}, "optimizer.momentum must be a number from 0 to below 1; found 1.0"),
        ({"layer_decay": 0.0}, "optimizer.layer_decay must be a number above 0 and up to 1.*found 0.0"),
        ({"layer_decay": 0.7}, "layer_decay is for the layers of a video encoder.*there are: head/kernel"),
        ({"warmup_from": 0.01}, "warmup_from is 0.01, where a climb of 0 steps to 0.1 begins; give a warmup"),
        ({"warmup_from": 0.2, "warmup": "2 steps"}, "a warmup_from that is not above the learning_rate"),
        ({"warmup": "11 steps"}, "warmup lasts 11 steps, but the stage only 10"),
        ({"learning_rate": -0.1}, "optimizer.learning_rate must be a number from 0"),
        ({"learning_rate": float("inf")}, "optimizer.learning_rate must be a number from 0 on; found inf"),
        ({"final_learning_rate": -1e-5}, "optimizer.final_learning_rate must be a number from 0 on; found -1e-05"),
        ({"weight_decay": "0.1"}, "optimizer.weight_decay must be a number from 0 on; found '0.1'"),
        ({"b1": 1.0}, "optimizer.b1 must be a number from 0 to below 1; found 1.0"),
        ({"b2": 1.5}, "optimizer.b2 must be a number from 0 to below 1; found 1.5"),
        ({"eps": 0.0}, "optimizer.eps must be a number above 0; found 0.0"),
        ({"clip_norm": 0}, "optimizer.clip_norm must be a number above 0, or None for no clipping; found 0"),
        ({"freeze": "tower"}, r"optimizer.freeze must be a list of patterns, like .*; found 'tower'"),
        ({"no_decay": "bias"}, r"optimizer.no_decay must be a list of patterns, like .*; found 'bias'"),
        ({"learning_rate_scales": ("^tower/", 0.1)}, r"must be a list of \(pattern, factor\) pairs.*'\^tower/' among"),
        ({"learning_rate_scales": (("tower", 0.1, 2),)}, r"\(pattern, factor\) pairs.*\('tower', 0.1, 2\) among"),
        ({"learning_rate_scales": (("tower", -1),)}, "learning_rate_scales must be a number from 0 on for 'tower'"),
    ],
)
def test_a_mistake_in_the_options_is_an_error(params, options, message):
    with pytest.raises(ValueError, match=message):
        make(params, **options)


def test_frozen_rows_are_left_alone_and_the_others_are_as_ever(params):
    """Rows that the model freezes have no moments; what is left is updated as an array of its own would be."""
    one = make(params, weight_decay=0.1, clip_norm=None, freeze_rows={"mlp/kernel": 3, "^head/": None})
    both = make(params, weight_decay=0.1, clip_norm=None)
    gradients = [noise(params, seed) for seed in range(3)]
    (found, state), (expected, _) = run(one, params, gradients), run(both, params, gradients)
    kernel = found["tower"]["mlp"]["kernel"]
    np.testing.assert_array_equal(kernel[:3], params["tower"]["mlp"]["kernel"][:3])
    np.testing.assert_allclose(kernel[3:], expected["tower"]["mlp"]["kernel"][3:], rtol=1e-6)
    np.testing.assert_array_equal(found["head"]["kernel"], params["head"]["kernel"])
    np.testing.assert_allclose(found["tower"]["norm"]["scale"], expected["tower"]["norm"]["scale"], rtol=1e-6)
    sizes = {name: leaf.shape for name, leaf in flatten_paths(state[0].mu).items() if leaf is not None}
    assert sizes["tower/mlp/kernel"] == (1, 3) and "head/kernel" not in sizes


def test_all_rows_frozen_is_frozen(params):
    optimizer = make(params, freeze_rows={"mlp/kernel": 4})
    assert optimizer.split(params)[0]["tower"]["mlp"]["kernel"] is None
    with pytest.raises(ValueError, match="what the model freezes: 'stack/' matches no parameter"):
        make(params, freeze_rows={"stack/": 1})


def test_what_decay_would_only_close_or_empty_is_spared():
    spared = ("cross/layers/attention_open", "cross/layers/mlp_open", "resampler/latents", "stack/layers/time_gate")
    assert all(NO_DECAY.search(name) for name in spared)
    assert not any(NO_DECAY.search(name) for name in ("patch/kernel", "resampler/layers/mlp_in/kernel", "words/table"))
