"""On eight devices, however the mesh is cut, captioner and language model are the functions that they are on one."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

from vidlang.core.sharding import make_mesh, put_batch, tree_shardings, use_mesh
from vidlang.core.tree import flatten_paths
from vidlang.models import captioner, language
from vidlang.nn.generation import Decoding
from vidlang.objectives import captioning
from vidlang.ops.dials import OFF
from vidlang.train.optimizer import make_optimizer
from vidlang.train.step import create_state, make_train_step, trace_step

LANGUAGE = {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "mlp": 48, "vocab": 40, "max_length": 24}
LANGUAGE |= {"dtype": "float32"}
VIDEO = {"transformer": {"layers": 1, "width": 16, "heads": 2, "mlp": 32, "dtype": "float32"}, "tubelet": (2, 8, 8)}
RESAMPLER = {"layers": 1, "width": 24, "heads": 2, "mlp": 32, "latents": 3, "dtype": "float32"}
MODELS = {
    "captioner": captioner.Model(video=VIDEO, language=LANGUAGE, resampler=RESAMPLER, cross={"every": 2}),
    "language": language.Model(language={**LANGUAGE, "tied": False, "window": 3, "global_every": 2}),
}
RNG = np.random.default_rng(0)
BATCH = {
    "video_BTHWC": RNG.integers(0, 256, (8, 4, 16, 16, 3)).astype(np.uint8),
    "text_BL": RNG.integers(1, 40, (8, 12)).astype(np.int32),
    "prompt_B": np.array([3, 6, 1, 5, 2, 6, 4, 3], np.int32),
}
MESHES = [{"data": 8}, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 2, "context": 4}]


@functools.cache
def boxed(name):
    init = functools.partial(MODELS[name].init, train=False)
    return jax.eval_shape(init, jax.random.key(0), *(BATCH[field] for field in MODELS[name].inputs))


@functools.cache
def params(name):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: (0.3 * rng.normal(size=x.shape)).astype(np.float32), nn.unbox(boxed(name)))


def trained(name, variables, batch):
    """Loss and gradients."""

    def loss(variables):
        outputs = MODELS[name].apply(variables, *(batch[field] for field in MODELS[name].inputs), train=True)
        return captioning.loss(outputs, batch)[0]

    return jax.value_and_grad(loss)(variables)


def spoken(name, variables, batch):
    """Logits after prompts, and after one more token, and the texts that a search by beams makes."""
    apply = functools.partial(MODELS[name].apply, variables)
    seen = (apply(batch["video_BTHWC"], method="see"),) if name == "captioner" else ()
    prompts, lengths = batch["text_BL"][:, :6], batch["prompt_B"]
    first, state = apply(prompts, lengths, *seen, room=2, method="start")
    second, state = apply(batch["text_BL"][:, 7], state, method="advance")
    how = Decoding("beam", beams=2, max_new=4, stop_ids=(7,))
    made = apply(*seen, prompts, lengths, settings=how, method="generate")
    return {"first": first, "second": second, "state": state, "score": made.score_BS}, made.tokens_BSN


@functools.cache
def alone(name, what):
    return jax.jit(functools.partial(what, name))(params(name), BATCH)


def on_mesh(name, what, sizes):
    mesh = make_mesh(sizes)
    with use_mesh(mesh):
        placed = jax.device_put(params(name), tree_shardings(boxed(name), mesh))
        return jax.jit(functools.partial(what, name))(placed, put_batch(BATCH, mesh))


def assert_near(found, expected):
    for path, leaf in flatten_paths(expected).items():
        limit = 2e-4 * np.abs(leaf).max() + 1e-6
        np.testing.assert_allclose(flatten_paths(found)[path], leaf, rtol=2e-3, atol=limit, err_msg=path)


# The language model alone is a part of the captioner: what is its own here is tested on the mesh that cuts everything.
CASES = [("captioner", sizes) for sizes in MESHES] + [("language", MESHES[2])]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sizes"), CASES, ids=str)
def test_loss_and_gradients_are_those_of_one_device(name, sizes):
    assert_near(on_mesh(name, trained, sizes), alone(name, trained))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sizes"), CASES, ids=str)
def test_what_is_said_is_that_of_one_device(name, sizes):
    (found, texts), (expected, same) = on_mesh(name, spoken, sizes), alone(name, spoken)
    assert_near(found, expected)
    np.testing.assert_array_equal(texts, same)
    key_LBSGK = found["state"].cache.key_value[0]
    rows = 8 // (sizes.get("data", 1) * sizes.get("fsdp", 1))
    assert key_LBSGK.sharding.shard_shape(key_LBSGK.shape) == (2, rows, 8, 2 // sizes.get("tensor", 1), 8)


def test_nothing_goes_back_into_a_frozen_encoder():
    """Even for whoever asks for the gradient of everything; through the language model it must go."""
    _, grads = alone("captioner", trained)
    assert not any(leaf.any() for leaf in jax.tree.leaves(grads["params"]["video_encoder"]))
    assert all(leaf.any() for leaf in jax.tree.leaves(grads["params"]["resampler"]))


@pytest.mark.slow
def test_a_step_in_shards_keeps_what_is_frozen_and_moments_of_what_learns_only():
    model, mesh = MODELS["captioner"], make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    fields = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in BATCH.items()}
    options = {"total_steps": 2, "batch_size": 8, "learning_rate": 0.01, "weight_decay": 0.1}
    optimizer = make_optimizer(params("captioner")["params"], freeze_rows=model.frozen, **options)
    with use_mesh(mesh):
        state = create_state(model, optimizer, fields, mesh, 0)
        function = make_train_step(model, optimizer, captioning.loss, {}, dials=OFF, seed=0)
        step = trace_step(function, state, fields, mesh).lower().compile()
        before = flatten_paths(jax.device_get(state.params))
        state, _ = step(state, put_batch(BATCH, mesh))
    for name, leaf in flatten_paths(state.params).items():
        if name.startswith(("video_encoder/", "language/")):
            np.testing.assert_array_equal(leaf, before[name], err_msg=name)
        elif name.endswith(("open", "kernel")):  # behind gates that are still shut, decay alone moves what it pulls at
            assert not np.array_equal(leaf, before[name]), name
        if name.endswith(("kernel", "table")):
            held = sum(shard.data.nbytes for shard in leaf.addressable_shards if shard.device == mesh.devices.flat[0])
            ways = 2 if name.endswith(("stem/kernel", "patch/kernel")) else 4
            assert held * ways == leaf.nbytes, f"{name}: {held} of {leaf.nbytes} bytes on each device"
    moments = {name.split("/mu/")[1] for name in flatten_paths(state.opt_state) if "/mu/" in name}
    assert moments == {name for name in before if name.startswith(("resampler/", "cross/"))}


def test_heads_that_a_mesh_cannot_cut_are_named():
    model = language.Model(language={**LANGUAGE, "kv_heads": 1})
    variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), BATCH["text_BL"])
    with pytest.raises(ValueError, match=r"attention/key/kernel .*: 1 does not divide over .*tensor"):
        tree_shardings(variables, make_mesh({"data": 4, "tensor": 2}))
