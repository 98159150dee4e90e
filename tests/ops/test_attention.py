"""Every attention against softmax written out in numpy, their gradients against each other, and the switch."""

import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.core.sharding import compiling_for, constrain, make_mesh, use_mesh
from vidlang.ops.attention import (
    attend,
    chunked_attention,
    cls_scores,
    dense_attention,
    fused_backend,
    note_choice,
    on_local_heads,
    splash_refusal,
)

B, N, A, K = 2, 6, 3, 8
FULL = (B, A, N, N)
HERE = ("reference", "fused", "chunked")


def qkv(dtype: jnp.dtype = jnp.float32, keys: int = N) -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(B, n, A, K)), dtype) for n in (N, keys, keys))
    return q, k, v


def by_hand(
    q: jax.Array, k: jax.Array, v: jax.Array, allowed: np.ndarray, bias: np.ndarray | float = 0.0
) -> np.ndarray:
    """One query at a time over the keys it may see, in float64; zeros when there are none."""
    bias = np.broadcast_to(bias, allowed.shape)
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    for b, n, a in np.ndindex(q.shape[:3]):
        seen = np.flatnonzero(allowed[b, a, n])
        if len(seen):
            logits = k[b, seen, a] @ q[b, n, a] / np.sqrt(q.shape[-1]) + bias[b, a, n, seen]
            weights = np.exp(logits - logits.max())
            out[b, n, a] = (weights / weights.sum()) @ v[b, seen, a]
    return out


def masks() -> dict[str, np.ndarray | None]:
    rng = np.random.default_rng(0)
    padding = np.arange(N)[None, :] < np.array([N, 2])[:, None]
    some = rng.random(FULL) < 0.5
    some[1, 2, 3] = False  # a query without keys
    return {
        "none": None,
        "random": some,
        "padding": padding[:, None, None, :],
        "all_padding": np.array([True, False])[:, None, None, None].repeat(N, -1),
        "per_query": rng.random((1, 1, N, N)) < 0.6,
    }


CASES = [(name, causal) for name in masks() for causal in (False, True)]


def in_case(case: tuple[str, bool], implementation: str, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    mask, causal = masks()[case[0]], case[1]
    mask_BANS = None if mask is None else jnp.asarray(mask)
    return attend(q, k, v, mask_BANS=mask_BANS, causal=causal, implementation=implementation)


@pytest.mark.parametrize("implementation", [*HERE, "auto"])
def test_equals_softmax_by_hand(implementation: str) -> None:
    found = jax.jit(lambda *args: [in_case(case, implementation, *args) for case in CASES])(*qkv())
    for o_BNAK, (name, causal) in zip(found, CASES, strict=True):
        mask = masks()[name]
        allowed = np.broadcast_to(True if mask is None else mask, FULL) & (np.tri(N, dtype=bool) if causal else True)
        np.testing.assert_allclose(o_BNAK, by_hand(*qkv(), allowed), atol=2e-6, err_msg=f"{name} causal={causal}")


def test_gradients_agree_and_are_finite() -> None:
    weight = jnp.asarray(np.random.default_rng(5).normal(size=(B, N, A, K)), jnp.float32)

    # A copy of the inputs for every mask, so that one backward pass gives the gradients of each.
    copies = tuple(jnp.stack([x] * len(CASES)) for x in qkv())

    def loss(implementation: str, copies: tuple[jax.Array, ...]) -> jax.Array:
        outputs = [in_case(case, implementation, *(x[i] for x in copies)) for i, case in enumerate(CASES)]
        return sum((weight * o_BNAK).sum() for o_BNAK in outputs)

    gradient = jax.jit(jax.grad(loss, argnums=1), static_argnums=0)
    reference, *others = (list(zip(*gradient(name, copies), strict=True)) for name in HERE)
    for found in others:
        for case, *pair in zip(CASES, reference, found, strict=True):
            for one, other in zip(*pair, strict=True):
                assert np.isfinite(one).all() and np.abs(one).max() > 0, case
                np.testing.assert_allclose(one, other, atol=2e-6, err_msg=str(case))


def test_more_keys_than_queries() -> None:
    q, k, v = qkv(keys=9)
    expected = by_hand(q, k, v, np.ones((B, A, N, 9), bool))
    for implementation in HERE:
        np.testing.assert_allclose(attend(q, k, v, implementation=implementation), expected, atol=2e-6)


@pytest.mark.parametrize("implementation", HERE)
def test_softmax_is_float32_in_bfloat16(implementation: str) -> None:
    # Logits near 300 that differ by less than bfloat16 resolves there: a half-precision softmax sees them as equal.
    keys = np.full((1, 2, 1, 8), 6.0)
    keys[0, 1, 0, 0] += 2**-5
    q, k = jnp.asarray(np.full((1, 1, 1, 8), 16.0), jnp.bfloat16), jnp.asarray(keys, jnp.bfloat16)
    v = jnp.asarray(np.array([0.0, 1.0]).reshape(1, 2, 1, 1).repeat(8, -1), jnp.bfloat16)
    difference = 16 * 2**-5 / np.sqrt(8)
    found = attend(q, k, v, implementation=implementation)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), 1 / (1 + np.exp(-difference)), rtol=1e-2)


def test_bfloat16_is_close_to_float32() -> None:
    expected = by_hand(*qkv(), np.ones(FULL, bool))
    for implementation in HERE:
        found = attend(*qkv(jnp.bfloat16), implementation=implementation)
        np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.05)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"implementation": "flash"}, "unknown attention 'flash'; there are: auto, fused, reference"),
        ({"mask_BANS": jnp.zeros((B, 1, 1, N))}, "boolean"),
        ({"mask_BANS": jnp.ones((B, N), bool)}, "boolean"),
        ({"bias_BANS": jnp.ones((B, 1, 1, N), bool)}, "bias is floating.* found bool"),
        ({"bias_BANS": jnp.ones((B, 2, 1, N))}, r"bias is floating, \(2, 3, 6, 6\) or 1 along"),
        ({"implementation": "splash"}, "runs on TPUs and this is a cpu; 'chunked'"),
        ({"mask_BANS": jnp.ones((B, 1, 1, N + 1), bool)}, "boolean"),
        ({"q": jnp.ones((B, N, A, K), jnp.bfloat16)}, "one floating dtype; found bfloat16, float32"),
        ({"q": jnp.ones((B, N, A, K + 1))}, "differ in batch, heads or head size"),
        ({"q": jnp.ones((N, A, K))}, "takes q"),
        ({"q": jnp.ones((B, N + 1, A, K)), "causal": True}, "as many queries as keys; found 7 and 6"),
    ],
)
def test_a_request_that_cannot_be_served_says_so(changes: dict, words: str) -> None:
    q, k, v = qkv()
    options = {"q": q, "implementation": "fused"} | changes
    with pytest.raises(ValueError, match=words):
        attend(options.pop("q"), k, v, **options)


def test_cudnn_only_where_it_serves() -> None:
    good = {"platform": "gpu", "dtype": jnp.dtype(jnp.bfloat16), "head_size": 64, "masked": False}
    assert fused_backend(**good) == "cudnn"
    for change in (
        {"platform": "cpu"},
        {"platform": "tpu"},
        {"dtype": jnp.dtype(jnp.float32)},
        {"head_size": 36},
        {"head_size": 256},
        {"masked": True},
    ):
        assert fused_backend(**(good | change)) == "xla", change


@pytest.mark.parametrize("sizes", [(1, 1, 1, N), (1, A, N, N), (B, 1, N, N), FULL], ids=str)
def test_bias_is_added_to_the_logits(sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(6)
    bias, do = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in (sizes, (B, N, A, K)))
    allowed = masks()["random"]

    @jax.jit
    def run(bias: jax.Array) -> Any:
        found = []
        for name in HERE:
            mask = jnp.asarray(allowed)
            o, pull = jax.vjp(lambda bias: attend(*qkv(), mask_BANS=mask, bias_BANS=bias, implementation=name), bias)  # noqa: B023
            found.append((o, pull(do)[0]))
        return found

    expected = by_hand(*qkv(), allowed, np.asarray(bias, np.float64))
    reference, *others = run(bias)
    np.testing.assert_allclose(reference[0], expected, atol=2e-6)
    for found in others:
        np.testing.assert_allclose(found[0], expected, atol=2e-6)
        np.testing.assert_allclose(found[1], reference[1], atol=2e-6)
        assert np.abs(found[1]).max() > 0


@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize(
    ("name", "causal"), [("none", False), ("none", True), ("random", True), ("all_padding", False)]
)
def test_chunks_of_any_size_give_the_same(name: str, causal: bool, chunk: int) -> None:
    inputs, do = qkv(), jnp.asarray(np.random.default_rng(5).normal(size=(B, N, A, K)), jnp.float32)
    bias = jnp.asarray(np.random.default_rng(7).normal(size=(1, A, N, N)), jnp.float32)
    mask = None if masks()[name] is None else jnp.asarray(masks()[name])

    def chunked(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array) -> jax.Array:
        return chunked_attention(q, k, v, mask, bias, causal=causal, chunk=chunk)

    def reference(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array) -> jax.Array:
        return attend(q, k, v, mask_BANS=mask, bias_BANS=bias, causal=causal, implementation="reference")

    @jax.jit
    def run(inputs: Any, bias: jax.Array) -> Any:
        pairs = [jax.vjp(attention, *inputs, bias) for attention in (chunked, reference)]
        return [(o, *pull(do)) for o, pull in pairs]

    for one, other in zip(*run(inputs, bias), strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_allclose(one, other, atol=3e-6)


def test_chunked_memory_is_linear_in_the_tokens() -> None:
    def temporaries(tokens: int, implementation: str) -> int:
        q = jax.ShapeDtypeStruct((1, tokens, 2, 16), jnp.float32)

        def step(q: Any, k: Any, v: Any, do: Any) -> Any:
            o, pull = jax.vjp(lambda *x: attend(*x, implementation=implementation), q, k, v)
            return o, pull(do)

        return jax.jit(step).lower(q, q, q, q).compile().memory_analysis().temp_size_in_bytes

    small, large = (temporaries(tokens, "chunked") for tokens in (2048, 4096))
    assert large < 2.2 * small
    assert temporaries(4096, "reference") > 3.5 * temporaries(2048, "reference") > 3.5 * large / 2.2


@pytest.mark.parametrize("mesh", [{"data": 2, "tensor": 4}, {"context": 8}], ids=str)
def test_chunked_on_eight_devices_computes_what_one_does(mesh: dict[str, int]) -> None:
    rng = np.random.default_rng(8)
    inputs = tuple(jnp.asarray(rng.normal(size=(2, 16, 4, K)), jnp.float32) for _ in range(4))

    def step(*inputs: jax.Array) -> Any:
        queries, keys = (("batch", axis, "act_heads", None) for axis in ("tokens", None))
        q, k, v, do = (constrain(x, *names) for x, names in zip(inputs, (queries, keys, keys, queries), strict=True))
        o, pull = jax.vjp(lambda *x: chunked_attention(*x, chunk=5), q, k, v)
        return o, *pull(do)

    single = jax.jit(step)(*inputs)
    with use_mesh(make_mesh(mesh)):
        for one, other in zip(jax.jit(step)(*inputs), single, strict=True):
            np.testing.assert_allclose(one, other, atol=5e-6)


def test_a_kernel_sees_the_rows_and_heads_of_its_device() -> None:
    seen = []

    def kernel(q: jax.Array, k: jax.Array, v: jax.Array, scale: jax.Array) -> jax.Array:
        seen.append(q.shape)
        return dense_attention(q, k, v) * scale

    q, k, v = (jnp.tile(x, (1, 1, 4, 1))[:, :, :8] for x in qkv())
    step = jax.jit(lambda *x: on_local_heads(kernel, *x))
    expected = step(q, k, v, jnp.float32(2))
    with use_mesh(make_mesh({"data": 2, "tensor": 4})):
        found = jax.jit(lambda *x: on_local_heads(kernel, *x))(q, k, v, jnp.float32(2))
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert seen == [(B, N, 8, K), (B // 2, N, 2, K)]


def test_splash_only_where_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    assert splash_refusal("tpu", plain=True, square=True) is None
    assert "this is a gpu" in (splash_refusal("gpu", plain=True, square=True) or "")
    for plain, square in ((False, True), (True, False)):
        assert "all tokens to all tokens" in (splash_refusal("tpu", plain=plain, square=square) or "")
    fake = types.ModuleType("splash")
    fake.splash_dense = lambda q, k, v: jnp.zeros_like(q)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vidlang.ops.splash", fake)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert (attend(*qkv()) == 0).all() and (attend(*qkv(), implementation="splash") == 0).all()
    for other in ({"causal": True}, {"mask_BANS": jnp.ones(FULL, bool)}, {"bias_BANS": jnp.ones(FULL)}):
        assert (attend(*qkv(), **other) != 0).all()
        with pytest.raises(ValueError, match="without mask, order or bias"):
            attend(*qkv(), implementation="splash", **other)


def test_a_choice_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        for choice in ("one", "one", "other", "one"):
            note_choice("a test's attention", choice)
    assert [record.getMessage() for record in caplog.records] == [
        "a test's attention: one",
        "a test's attention: other",
    ]


def test_cls_scores_are_the_mean_weights_of_its_heads() -> None:
    q, k, _ = qkv(jnp.bfloat16)
    found = cls_scores(q[:, 0], k)
    logits = np.einsum("BAK,BNAK->BAN", *(np.asarray(x, np.float64) for x in (q[:, 0], k))) / np.sqrt(K)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, weights.mean(1), atol=1e-6)
    with pytest.raises(ValueError, match=r"cls_scores takes q \[B, A, K\]"):
        cls_scores(q[:, :1], k)


@pytest.mark.parametrize("here, kernel", [("tpu", True), ("cpu", False)])
def test_kernels_are_chosen_for_the_chips_that_a_program_is_made_for(here, kernel):
    """A plan for a TPU, made where there is none, must be of the program that the TPU would run."""
    q_BNAK = jnp.ones((1, 256, 2, 64))
    with compiling_for(here):
        program = str(jax.make_jaxpr(lambda q: attend(q, q, q))(q_BNAK))
    assert ("pallas_call" in program) == kernel
    assert "pallas_call" not in str(jax.make_jaxpr(lambda q: attend(q, q, q))(q_BNAK))
