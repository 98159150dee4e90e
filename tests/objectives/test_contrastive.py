"""The chunked loss has the value and gradients of the plain one, on any mesh, without its B x B memory."""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives import by_hand
from tests.objectives.by_hand import check, log_sum
from vidlang.core.sharding import make_mesh, put_batch, use_mesh
from vidlang.objectives import contrastive, ego_nce, max_margin

MESHES = [None, {"data": 8}, {"data": 2, "fsdp": 4}, {"data": 2, "fsdp": 2, "tensor": 2}]
REDUCTIONS = ["mean", "sum", "mean", "mean"]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def pairs(rows, width, seed=0):
    rng = np.random.default_rng(seed)
    video = rng.normal(size=(rows, width))
    text = video + rng.normal(size=(rows, width))
    return unit(video).astype(np.float32), unit(text).astype(np.float32)


def softmax_rows(logits):
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def oracle(video, text, scale, valid, weight):
    """Loss, its gradients by hand, and both accuracies, in float64 over the valid rows only."""
    v, t = video[valid].astype(np.float64), text[valid].astype(np.float64)
    rows = len(v)
    cosine = v @ t.T
    p_v2t, p_t2v = softmax_rows(scale * cosine), softmax_rows(scale * cosine.T)
    value = -weight * (np.log(np.diag(p_v2t)).mean() + np.log(np.diag(p_t2v)).mean())
    # d loss / d logits is softmax - one hot, in each direction.
    d_logits = weight * ((p_v2t - np.eye(rows)) + (p_t2v - np.eye(rows)).T) / rows
    d_video, d_text = np.zeros(video.shape), np.zeros(text.shape)
    d_video[valid], d_text[valid] = scale * d_logits @ t, scale * d_logits.T @ v
    own = np.diag(cosine)
    accuracy = {
        "accuracy_v2t": np.mean([(cosine[i] >= own[i]).sum() == 1 for i in range(rows)]),
        "accuracy_t2v": np.mean([(cosine[:, i] >= own[i]).sum() == 1 for i in range(rows)]),
    }
    return value, (d_video, d_text, (d_logits * cosine).sum()), accuracy


def chunked(chunk, reduction="mean"):
    def value(video, text, scale, batch):
        outputs = types.SimpleNamespace(video_BE=video, text_BE=text, scale=scale)
        return contrastive.loss(outputs, batch, chunk=chunk, direction_reduction=reduction)

    return jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2), has_aux=True))


def plain(video, text, scale):
    logits = scale * jnp.einsum("BE,CE->BC", video, text, precision="highest")
    own = jnp.diag(logits)
    return (jax.nn.logsumexp(logits, axis=1) + jax.nn.logsumexp(logits, axis=0) - 2 * own).mean() / 2


def on_mesh(function, sizes, video, text, scale, batch):
    if sizes is None:
        return function(video, text, scale, batch)
    mesh = make_mesh(sizes)
    with use_mesh(mesh):
        placed = put_batch({"video": video, "text": text, **batch}, mesh)
        return function(placed.pop("video"), placed.pop("text"), scale, placed)


@pytest.mark.parametrize(("sizes", "reduction"), list(zip(MESHES, REDUCTIONS, strict=True)), ids=str)
def test_value_and_gradients_equal_the_oracle(sizes, reduction):
    video, text = pairs(48, 16)
    scale = np.float32(14.0)
    # 48 rows are 6 a device on eight, so 4 does not divide them; without a mesh neither does it divide evenly into 5.
    chunk = 4 if sizes else 5
    out = on_mesh(chunked(chunk, reduction), sizes, video, text, scale, {})
    (value, scalars), gradients = jax.device_get(out)
    weight = {"mean": 0.5, "sum": 1.0}[reduction]
    expected, expected_gradients, accuracy = oracle(video, text, 14.0, np.ones(48, bool), weight)
    np.testing.assert_allclose(value, expected, rtol=2e-6)
    for got, want in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-7)
    assert {name: pytest.approx(scalars[name]) for name in accuracy} == accuracy
    assert 0.2 < accuracy["accuracy_t2v"] != accuracy["accuracy_v2t"] < 1
    assert scalars["scale"] == 14.0


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_gradients_equal_the_plain_form(chunk):
    video, text = pairs(32, 8, seed=1)
    scale = np.float32(30.0)
    value, gradients = jax.value_and_grad(plain, argnums=(0, 1, 2))(video, text, scale)
    (got, _), got_gradients = chunked(chunk)(video, text, scale, {})
    np.testing.assert_allclose(got, value, rtol=1e-6)
    for one, other in zip(got_gradients, gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sizes", MESHES[2:3], ids=str)
def test_invalid_rows_are_neither_queries_nor_candidates(sizes):
    video, text = pairs(32, 8, seed=2)
    valid = np.random.default_rng(3).random(32) < 0.6
    expected, expected_gradients, accuracy = oracle(video, text, 20.0, valid, 0.5)
    video[~valid], text[~valid] = np.nan, 7.0
    out = on_mesh(chunked(3), sizes, video, text, np.float32(20.0), {"valid_B": valid})
    (value, scalars), gradients = jax.device_get(out)
    np.testing.assert_allclose(value, expected, rtol=2e-6)
    for got, want in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=5e-7)
    assert {name: pytest.approx(scalars[name]) for name in accuracy} == accuracy


def weighted_oracle(video, text, scale, weights):
    """The mean over queries by weight, and its gradients by hand, in float64."""
    v, t, share = video.astype(np.float64), text.astype(np.float64), weights / weights.sum()
    cosine = v @ t.T
    p_v2t, p_t2v, eye = softmax_rows(scale * cosine), softmax_rows(scale * cosine.T), np.eye(len(v))
    value = -0.5 * (share @ np.log(np.diag(p_v2t)) + share @ np.log(np.diag(p_t2v)))
    d_logits = 0.5 * (share[:, None] * (p_v2t - eye) + (share[:, None] * (p_t2v - eye)).T)
    return value, (scale * d_logits @ t, scale * d_logits.T @ v, (d_logits * cosine).sum())


@pytest.mark.parametrize("sizes", [None, MESHES[2]], ids=str)
def test_rows_count_by_their_weights(sizes):
    video, text = pairs(32, 8, seed=4)
    weights = np.random.default_rng(5).random(32).astype(np.float32) * (np.arange(32) % 5 > 0)
    expected, expected_gradients = weighted_oracle(video, text, 20.0, weights.astype(np.float64))
    (value, scalars), gradients = on_mesh(chunked(3), sizes, video, text, np.float32(20.0), {"weight_B": weights})
    np.testing.assert_allclose(value, expected, rtol=2e-6)
    for got, want in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=5e-7)
    (_, plain_scalars), _ = on_mesh(chunked(3), sizes, video, text, np.float32(20.0), {})
    assert scalars["accuracy_t2v"] == plain_scalars["accuracy_t2v"], "accuracies count rows"


def test_only_ratios_of_weights_count():
    video, text = pairs(16, 8)
    plain_value = chunked(4)(video, text, np.float32(20.0), {})[0][0]
    for weight in (1.0, 2.0, 1e-3):
        value = chunked(4)(video, text, np.float32(20.0), {"weight_B": np.full(16, weight, np.float32)})[0][0]
        np.testing.assert_allclose(value, plain_value, rtol=1e-6)


def test_a_weight_of_a_row_that_is_not_valid_is_nothing():
    video, text = pairs(16, 8)
    valid, weights = np.arange(16) < 10, np.arange(1, 17).astype(np.float32)
    kept, *_ = weighted_oracle(video[:10], text[:10], 20.0, weights[:10].astype(np.float64))
    weights[12] = np.nan
    (value, _), gradients = chunked(4)(video, text, np.float32(20.0), {"valid_B": valid, "weight_B": weights})
    np.testing.assert_allclose(value, kept, rtol=2e-6)
    assert np.isfinite(gradients[0]).all()
    (value, _), gradients = chunked(4)(video, text, np.float32(20.0), {"weight_B": np.zeros(16, np.float32)})
    assert value == 0 and not np.any(gradients[0])


def test_mixed_clips_are_refused():
    video, text = pairs(8, 4)
    with pytest.raises(ValueError, match="a mixed clip has two; take mixup and cutmix out"):
        chunked(4)(video, text, np.float32(20.0), {"mix_share_B": np.ones(8, np.float32)})


def test_no_valid_row_gives_zero_and_finite_gradients():
    video, text = pairs(8, 4)
    (value, scalars), gradients = chunked(3)(video, text, np.float32(5.0), {"valid_B": np.zeros(8, bool)})
    assert value == 0 and scalars["accuracy_t2v"] == 0
    assert all(not np.any(g) for g in jax.device_get(gradients))


def test_low_precision_inputs_are_computed_in_float32():
    video, text = (x.astype(jnp.bfloat16) for x in pairs(16, 8))
    (value, _), gradients = chunked(4)(video, text, jnp.bfloat16(50.0), {})
    expected, *_ = oracle(np.asarray(video, np.float32), np.asarray(text, np.float32), 50.0, np.ones(16, bool), 0.5)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert gradients[0].dtype == jnp.bfloat16


def test_equal_scores_for_all_count_as_wrong():
    video = np.ones((8, 4), np.float32) / 2
    (value, scalars), _ = chunked(3)(video, video, np.float32(10.0), {})
    np.testing.assert_allclose(value, np.log(8), rtol=1e-6)
    assert scalars["accuracy_t2v"] == scalars["accuracy_v2t"] == 0


def largest_array(compiled):
    """Most elements that any array of the compiled program has."""
    return max(
        int(np.prod([int(size) for size in shape.split(",")]))
        for shape in re.findall(r"(?:f32|pred|bf16|s32|u32|f64)\[([\d,]+)\]", compiled.as_text())
    )


def test_no_array_of_batch_by_batch_exists():
    rows, width, chunk = 2048, 32, 64
    video, text = pairs(rows, width)
    scale = np.float32(10.0)
    whole = jax.jit(jax.value_and_grad(plain, argnums=(0, 1, 2))).lower(video, text, scale).compile()
    assert largest_array(whole) == rows * rows  # what the inspection must be able to see
    compiled = chunked(chunk).lower(video, text, scale, {}).compile()
    assert largest_array(compiled) == chunk * rows
    ratio = whole.memory_analysis().temp_size_in_bytes / compiled.memory_analysis().temp_size_in_bytes
    assert ratio > 8, f"the plain form needs {ratio:.1f} times the temporary memory, expected more than 8"


@pytest.mark.parametrize(
    ("objective", "options"),
    [(contrastive, {}), (contrastive, {"targets": "equal_texts"}), (ego_nce, {}), (max_margin, {})],
    ids=["own", "equal_texts", "ego_nce", "max_margin"],
)
def test_each_device_holds_one_chunk_of_its_own_rows(objective, options):
    rows, chunk = 2048, 64
    video, text = pairs(rows, 32)
    ids_BK = np.zeros((rows, 3), np.int32)
    mesh = make_mesh({"data": 8})

    def value(video, text, batch):
        outputs = types.SimpleNamespace(video_BE=video, text_BE=text, scale=jnp.float32(10))
        return objective.loss(outputs, batch, chunk=chunk, **options)[0]

    with use_mesh(mesh):
        batch = put_batch(
            {"video": video, "text": text, "text_BL": ids_BK, "verbs_BK": ids_BK, "nouns_BK": ids_BK}, mesh
        )
        arguments = batch.pop("video"), batch.pop("text"), batch
        compiled = jax.jit(jax.value_and_grad(value, argnums=(0, 1))).lower(*arguments).compile()
    assert largest_array(compiled) == chunk * rows


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunk": 0}, "chunk must be at least 1"),
        ({"reduction": "max"}, "direction_reduction must be"),
        ({"text": np.ones((4, 3), np.float32)}, r"\(5, 3\) and \(4, 3\)"),
    ],
)
def test_wrong_use_says_what_was_found(changes, message):
    arguments = {"chunk": 2, "reduction": "mean", "text": np.ones((5, 3), np.float32)} | changes
    outputs = types.SimpleNamespace(video_BE=np.ones((5, 3), np.float32), text_BE=arguments["text"], scale=1.0)
    with pytest.raises(ValueError, match=message):
        contrastive.loss(outputs, {}, chunk=arguments["chunk"], direction_reduction=arguments["reduction"])


def test_equal_texts_share_what_a_query_is_asked_for():
    """Soft targets over rows of one text, token by token: the cross entropy of an even split."""
    texts = np.array([[1, 2, 3], [1, 2, 4], [1, 2, 3], [5, 2, 3], [1, 2, 4], [1, 2, 3], [7, 7, 7], [1, 2, 0]], np.int32)
    texts = np.concatenate([texts, texts + 10])
    target = (texts[:, None] == texts[None]).all(axis=2) * 1.0
    target /= target.sum(axis=1, keepdims=True)

    def reference(outputs):
        logits = outputs["scale"] * outputs["video_BE"] @ outputs["text_BE"].T
        v2t, t2v = (log_sum(x)[:, None] - x for x in (logits, logits.T))
        return ((target * v2t).sum(axis=1).mean() + (target * t2v).sum(axis=1).mean()) / 2

    options = {"targets": "equal_texts", "chunk": 3}
    outputs = by_hand.pairs(16)
    _, scalars, _ = check(contrastive, reference, outputs, {"text_BL": texts}, {"data": 8}, **options)
    best = (outputs["video_BE"] @ outputs["text_BE"].T).argmax(axis=1)
    assert scalars["accuracy_v2t"] == pytest.approx(np.mean((texts == texts[best]).all(axis=1)))
    with pytest.raises(ValueError, match='the batch has no text_BL, and targets="equal_texts" compares texts'):
        by_hand.run(contrastive, outputs, {}, **options)
    with pytest.raises(ValueError, match="targets is 'same'; it is one of own, equal_texts"):
        by_hand.run(contrastive, outputs, {}, targets="same")
