"""VideoMAE: the encoder sees what the mask leaves, and each dropped tubelet is predicted in its own place."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vidlang.core import tree
from vidlang.core.sharding import make_mesh, put_batch, tree_shardings, use_mesh
from vidlang.models import classifier
from vidlang.models.mae import Model, Output
from vidlang.nn.slicing import slice_params
from vidlang.nn.spec import TransformerSpec
from vidlang.nn.transformer import Stack
from vidlang.objectives import reconstruction
from vidlang.ops.dials import Dials, streams
from vidlang.ops.widths import DrawnWidths
from vidlang.train.step import boxed_params

TRANSFORMER = {"layers": 2, "width": 32, "heads": 4, "mlp": 32, "dtype": "float32"}
DECODER = {"layers": 1, "width": 16, "heads": 2, "mlp": 32, "dtype": "float32"}
VIDEO_CONFIG = {"transformer": TRANSFORMER, "tubelet": (2, 8, 4), "positions": "sincos"}
MODEL = Model(video=VIDEO_CONFIG, decoder=DECODER)
RNG = np.random.default_rng(0)
VIDEO = RNG.integers(0, 256, (4, 4, 16, 16, 3)).astype(np.uint8)
GRID = (2, 2, 4)
RANDOM, TUBE = Dials(mask=0.75), Dials(mask=0.75, mask_kind="tube")
RNGS = streams(jax.random.key(1))


def shapes(model: Model = MODEL) -> Any:
    return boxed_params(model, {"video_BTHWC": jax.ShapeDtypeStruct(VIDEO.shape, np.uint8)}, jax.random.key(0))


@functools.cache
def params() -> Any:
    draw = jax.tree.map(lambda leaf: (0.3 * RNG.normal(size=leaf.shape)).astype(np.float32), jax.eval_shape(shapes))
    return {"params": nn.unbox(draw)}


@functools.cache
def found() -> dict[str, Any]:
    """Everything that tests look at, in one program."""

    @jax.jit
    def run(params: Any) -> dict[str, Any]:
        apply = functools.partial(MODEL.apply, params, VIDEO, rngs=RNGS)

        def encode(model: Model, video_BTHWC: jax.Array) -> Any:
            return model.video_encoder(video_BTHWC, train=True, dials=RANDOM)

        return {
            "random": apply(train=True, dials=RANDOM),
            "evaluated": apply(train=False, dials=RANDOM),
            "encoded": apply(method=encode),
            "tube": apply(train=True, dials=TUBE),
            "pooled": apply(method="embed_video"),
            "narrow": apply(train=True, dials=Dials(mask=0.75, widths=(32, 16))).predicted_BMP,
            "drawn": apply(
                train=True, dials=Dials(mask=0.75, widths=DrawnWidths(jnp.array([0, 1]), (1.0, 0.5)))
            ).predicted_BMP,
            "channel": apply(RANDOM, method="reconstruct"),
            "tubelet": apply(RANDOM, per="tubelet", method="reconstruct"),
            "pixels": apply(RANDOM, normalize=False, method="reconstruct"),
        }

    return run(params())


def dropped(kept_BM: Any) -> np.ndarray:
    return np.array([[n for n in range(np.prod(GRID)) if n not in kept_M] for kept_M in np.asarray(kept_BM)])


def place(n: int) -> tuple[slice, slice, slice]:
    """Where tubelet n lies in its clip."""
    t, row, column = n // 8, n // 4 % 2, n % 4
    return slice(2 * t, 2 * t + 2), slice(8 * row, 8 * row + 8), slice(4 * column, 4 * column + 4)


def sincos(count: int, width: int) -> np.ndarray:
    table = np.zeros((count, width))
    for n in range(count):
        for d in range(width):
            angle = n / 10_000 ** (2 * (d // 2) / width)
            table[n, d] = np.cos(angle) if d % 2 else np.sin(angle)
    return table


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["random", "tube"])
def test_targets_are_the_pixels_of_what_the_encoder_did_not_see(kind: str) -> None:
    output = found()[kind]
    assert output.target_BMP.shape == output.predicted_BMP.shape == (4, 12, 2 * 8 * 4 * 3)
    assert output.target_BMP.dtype == output.predicted_BMP.dtype == jnp.float32
    for row, rest_M in enumerate(dropped(output.kept_BM)):
        for m, n in enumerate(rest_M):
            pixels = VIDEO[row][place(n)].reshape(-1) / 255
            np.testing.assert_allclose(output.target_BMP[row, m], pixels, atol=1e-6)


def test_predictions_are_what_the_decoder_makes_of_each_dropped_place() -> None:
    """Row by row, place by place, in float64; only the layers in between are the library's."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params()["params"]["decoder"])
    output, encoded = found()["random"], found()["encoded"]
    np.testing.assert_array_equal(output.kept_BM, encoded.kept_BM)
    x_BND = np.zeros((4, 16, 16))
    for row, kept_M in enumerate(np.asarray(output.kept_BM)):
        for n in range(16):
            x_BND[row, n] = p["mask_token"] + sincos(16, 16)[n]
        for m, n in enumerate(kept_M):
            token_D = np.asarray(encoded.tokens_BMD[row, m], np.float64)
            x_BND[row, n] = token_D @ p["project"]["kernel"] + sincos(16, 16)[n]
    stack = Stack(TransformerSpec(**DECODER))
    run = jax.jit(lambda stack_params, x_BND: stack.apply({"params": stack_params}, x_BND).x_BMD)
    y_BND = np.asarray(run(params()["params"]["decoder"]["stack"], x_BND.astype(np.float32)), np.float64)
    for row, rest_M in enumerate(dropped(output.kept_BM)):
        for m, n in enumerate(rest_M):
            y_D = y_BND[row, n]
            y_D = (y_D - y_D.mean()) / np.sqrt(y_D.var() + 1e-6) * p["norm"]["scale"] + p["norm"]["bias"]
            expected = y_D @ p["pixels"]["kernel"] + p["pixels"]["bias"]
            np.testing.assert_allclose(output.predicted_BMP[row, m], expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found()["evaluated"].predicted_BMP, output.predicted_BMP, atol=1e-5)


def test_the_decoders_norm_has_an_epsilon_of_its_own() -> None:
    """So large a one leaves of what goes into the norm nothing, and of what comes out its bias."""
    model = MODEL.clone(norm_epsilon=1e20)
    output = jax.jit(lambda p: model.apply(p, VIDEO, rngs=RNGS, train=True, dials=RANDOM))(params())
    decoder = params()["params"]["decoder"]
    pixels_P = decoder["norm"]["bias"] @ decoder["pixels"]["kernel"] + decoder["pixels"]["bias"]
    np.testing.assert_allclose(output.predicted_BMP, np.broadcast_to(pixels_P, output.predicted_BMP.shape), atol=1e-4)
    assert np.abs(found()["random"].predicted_BMP - pixels_P[None, None]).max() > 0.1


def test_no_prediction_depends_on_a_dropped_pixel() -> None:
    rest = dropped(found()["random"].kept_BM)
    hidden = np.zeros(VIDEO.shape, np.float32)
    for row, rest_M in enumerate(rest):
        for n in rest_M:
            hidden[row][place(n)] = 1.0

    @jax.jit
    def change(params: Any, video: jax.Array, direction: jax.Array) -> Output:
        def run(video: jax.Array) -> Any:
            output = MODEL.apply(params, video, train=True, dials=RANDOM, rngs=RNGS)
            return output.predicted_BMP, output.target_BMP

        return jax.jvp(run, (video,), (direction,))[1]

    direction = RNG.normal(size=VIDEO.shape).astype(np.float32)
    predicted, target = change(params(), VIDEO.astype(np.float32), direction * hidden)
    assert not np.abs(predicted).any() and np.abs(target).min() > 0
    predicted, target = change(params(), VIDEO.astype(np.float32), direction * (1 - hidden))
    assert (np.abs(predicted).max(axis=2) > 0).all() and not np.abs(target).any()


def test_a_tube_is_hidden_at_all_times() -> None:
    rest = dropped(found()["tube"].kept_BM).reshape(4, GRID[0], -1)
    np.testing.assert_array_equal(rest[:, 0], rest[:, 1] - 8)
    assert rest.shape[2] == 6 and len(np.unique(rest[:, 0], axis=0)) > 1


@pytest.mark.slow
def test_thirty_steps_rebuild_clips_better_than_without_looking() -> None:
    """Clips get brighter to the right, or downwards: who does not read the kept tubelets is half wrong at best."""
    right = np.broadcast_to(np.linspace(0, 255, 16)[None, None, None, :, None], VIDEO.shape)
    clips = np.where(np.arange(4)[:, None, None, None, None] % 2, right, right.swapaxes(2, 3))
    optimizer = optax.adam(1e-2)

    @jax.jit
    def train(params: Any, video: jax.Array) -> jax.Array:
        def loss(params: Any, step: jax.Array) -> jax.Array:
            rngs = streams(jax.random.fold_in(jax.random.key(0), step))
            output = MODEL.apply({"params": params}, video, train=True, dials=TUBE, rngs=rngs)
            return reconstruction.loss(output, {})[0]

        def step(carry: Any, number: jax.Array) -> Any:
            params, state = carry
            value, gradient = jax.value_and_grad(loss)(params, number)
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(30))[1]

    losses = np.asarray(train(nn.unbox(jax.jit(shapes)()), clips.astype(np.uint8)))
    assert losses[0] > 0.9 and np.median(losses[-10:]) < 0.25, losses


def test_a_classifier_starts_from_the_encoder() -> None:
    model = classifier.Model(video=VIDEO_CONFIG, heads={"label": 3})
    fresh = nn.unbox(jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), VIDEO))["params"]
    fresh = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), fresh)
    merged, report = tree.merge(fresh, params()["params"])
    report.raise_unless(["^head_", "^decoder/"])
    assert not report.mismatched and all(name.startswith("head_") for name in report.missing)
    run = jax.jit(functools.partial(model.apply, method="embed_video"))
    np.testing.assert_allclose(run({"params": merged}, VIDEO), found()["pooled"], rtol=1e-4, atol=1e-5)
    assert found()["pooled"].shape == (4, 32) and found()["pooled"].dtype == jnp.float32


@pytest.mark.parametrize("how", ["channel", "tubelet", "pixels"])
def test_a_rebuilt_clip_has_predictions_in_their_places(how: str) -> None:
    output = found()["evaluated"]
    expected = VIDEO / 255
    for row, rest_M in enumerate(dropped(output.kept_BM)):
        for m, n in enumerate(rest_M):
            box = np.asarray(output.predicted_BMP[row, m], np.float64).reshape(2, 8, 4, 3)
            true = VIDEO[row][place(n)] / 255
            if how == "channel":
                for c in range(3):
                    box[..., c] = box[..., c] * (true[..., c].std(ddof=1) + 1e-6) + true[..., c].mean()
            if how == "tubelet":
                box = box * np.sqrt(true.var(ddof=1) + 1e-6) + true.mean()
            expected[row][place(n)] = np.clip(box, 0, 1)
    assert found()[how].dtype == jnp.float32
    np.testing.assert_allclose(found()[how], expected, atol=1e-4)


def test_narrow_encoders_go_with_the_whole_decoder() -> None:
    small, cut = slice_params(MODEL, params()["params"], (32, 16), VIDEO)
    run = jax.jit(functools.partial(small.apply, train=True, dials=RANDOM, rngs=RNGS))
    whole = found()["random"].predicted_BMP
    for other in (run({"params": cut}, VIDEO).predicted_BMP, found()["drawn"]):
        np.testing.assert_allclose(other, found()["narrow"], rtol=1e-3, atol=1e-4)
    assert np.abs(whole - found()["narrow"]).max() > 1e-2
    assert small.frozen == MODEL.frozen == {}


def test_rows_draw_the_same_in_any_part_of_the_batch() -> None:
    model = MODEL.clone(decoder=DECODER | {"layers": 2, "drop_path": 0.5})
    stack = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), params()["params"]["decoder"]["stack"])
    p = {"params": params()["params"] | {"decoder": params()["params"]["decoder"] | {"stack": stack}}}

    @jax.jit
    def run(p: Any) -> Any:
        apply = functools.partial(model.apply, p, train=True, rngs=RNGS)
        rows_B = np.array([3, 1])
        dials = Dials(mask=0.75, rows_B=jnp.asarray(rows_B))
        part = apply(VIDEO[rows_B], dials=dials)
        still = model.apply(p, VIDEO[rows_B], train=False, dials=dials, rngs=RNGS)
        return jax.tree.map(lambda leaf: leaf[rows_B], apply(VIDEO, dials=RANDOM)), part, still

    whole, part, still = run(p)
    np.testing.assert_array_equal(part.kept_BM, still.kept_BM)
    assert np.abs(part.predicted_BMP - still.predicted_BMP).max() > 1e-2, "no layer of the decoder was left out"
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(part), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_eight_devices_learn_as_one() -> None:
    videos = np.concatenate([VIDEO, VIDEO[:, ::-1]])

    def loss(params: Any, video: jax.Array) -> Any:
        output = MODEL.apply(params, video, train=True, dials=TUBE, rngs=RNGS)
        return reconstruction.loss(output, {})[0], output

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    alone = run(params(), videos)
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    with use_mesh(mesh):
        placed = jax.device_put(params(), {"params": tree_shardings(jax.eval_shape(shapes), mesh)})
        together = run(placed, put_batch({"video": videos}, mesh)["video"])
    for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_nothing_masked_is_nothing_to_predict() -> None:
    for how in ({"train": True}, {"train": False}, {"train": True, "dials": Dials(mask=0.01)}):
        with pytest.raises(ValueError, match=r"hides none of the 16 tubelets.*dials = \{'mask': 0.9"):
            jax.eval_shape(functools.partial(MODEL.apply, rngs=RNGS, **how), params(), VIDEO)
    with pytest.raises(ValueError, match="the dial keep prunes tokens inside the encoder"):
        jax.eval_shape(
            functools.partial(MODEL.apply, rngs=RNGS, train=True, dials=Dials(mask=0.5, keep={0: 0.5})), params(), VIDEO
        )
    with pytest.raises(ValueError, match=r"per is 'pixel'; it is one of channel, tubelet"):
        jax.eval_shape(lambda p: MODEL.apply(p, VIDEO, RANDOM, per="pixel", method="reconstruct", rngs=RNGS), params())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"decoder": DECODER | {"causal": True}}, "model.decoder.causal is True"),
        ({"decoder": DECODER | {"frozen_layers": 1}}, "model.decoder.frozen_layers is 1.*leave it at 0"),
        ({"decoder": {"layers": 1}}, "model.decoder lacks 'width'"),
        ({"video": VIDEO_CONFIG | {"image_patch": (8, 4)}}, "leave out model.video.views and model.video.image_patch"),
        ({"norm_epsilon": 0.0}, "model.norm_epsilon is 0.0; it is a positive number"),
    ],
)
def test_impossible_settings_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(functools.partial(shapes, MODEL.clone(**changes)))
