"""A model's methods as functions from host rows to host rows, and when evaluations are due."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.core.sharding import use_mesh
from vidlang.train import build
from vidlang.train.predict import Evaluations, Predict, is_due
from vidlang.train.recipe import Evaluation, Runtime
from vidlang.train.step import init_params


@pytest.fixture(scope="module")
def model(stage):
    return build.model(stage())


@pytest.fixture(scope="module")
def params(model, fields, mesh_of):
    return jax.device_get(init_params(model, fields, mesh_of(), 0))


@pytest.mark.parametrize("rows", [16, 13, 1])
def test_rows_come_back_in_order_however_many(model, params, host_batch, mesh_of, rows):
    text_BL = host_batch(0)["text_BL"][:rows]
    with use_mesh(mesh_of(data=4, tensor=2)) as mesh:
        got = Predict(model, mesh)("embed_text", params, text_BL=text_BL)
    want = model.apply({"params": params}, text_BL, method="embed_text")
    assert got.dtype == np.float32 and got.shape == want.shape
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_a_method_is_compiled_once_for_a_shape(model, params, host_batch, mesh_of):
    predict = Predict(model, mesh_of(data=8))
    batch = host_batch(0)
    for rows in (16, 16, 10):
        predict("embed_text", params, text_BL=batch["text_BL"][:rows])
    assert predict._jitted["embed_text", None]._cache_size() == 1


class Counting(nn.Module):
    """A model that says what it was given."""

    def count(self, x_B, *, settings):
        assert isinstance(settings, tuple), "settings are known when this is compiled"
        return {"ids_B2": jnp.stack([x_B, x_B * settings[0]], axis=1), "score_B": x_B.astype(jnp.bfloat16) / 2}


def test_settings_reach_the_method_and_token_ids_stay_whole_numbers(mesh_of):
    predict = Predict(Counting(), mesh_of(data=8))
    x_B = np.arange(2**24 - 5, 2**24 + 5, dtype=np.int32)
    for settings in ((3,), (2,), (3,)):
        found = predict("count", {}, settings, x_B=x_B)
        assert found["ids_B2"].dtype == np.int32 and found["score_B"].dtype == np.float32
        np.testing.assert_array_equal(found["ids_B2"], np.stack([x_B, x_B * settings[0]], axis=1))
    assert {key: jitted._cache_size() for key, jitted in predict._jitted.items()} == {
        ("count", (3,)): 1,
        ("count", (2,)): 1,
    }


def test_evaluators_say_what_they_need_before_anything_is_trained(stage, model, mesh_of, corpus):
    Predict(model, mesh_of()).require("embed_video", "embed_text")
    with pytest.raises(ValueError, match="tiny has no method 'classify', which is needed here"):
        Predict(model, mesh_of()).require("embed_video", "classify")
    data = {**corpus, "split": "val", "annotations": "classes"}
    chosen = stage(tokenizer=corpus["root"] + "/tokenizer.json")
    options = {"prefix": "verbs", "clip": {"times": {"name": "middle"}}, "options": {"heads": {"label": 10}}}
    wrong = Evaluation("classification", "4 steps", data, 8, **options)
    chosen = dataclasses.replace(chosen, evals=(wrong,))
    evaluations = Evaluations(chosen, Predict(model, mesh_of()), Runtime(), total=10)
    with pytest.raises(ValueError, match="the evaluation verbs/classification: .*tiny has no method 'classify'"):
        evaluations.prepare()


def test_one_process_gathers_its_own_rows(model, mesh_of):
    rows = np.array([3, 1, 2], np.int64)
    gathered = Predict(model, mesh_of()).gather(rows)
    assert gathered.dtype == np.int64 and gathered.tolist() == [3, 1, 2]


def test_what_cannot_be_computed_is_said(model, params, host_batch, mesh_of):
    predict = Predict(model, mesh_of())
    with pytest.raises(ValueError, match="tiny has no method 'caption'"):
        predict("caption", params, text_BL=np.zeros((1, 8), np.int32))
    with pytest.raises(ValueError, match="equally many rows; found .*'text_BL': 2"):
        predict("embed_text", params, text_BL=np.zeros((2, 8), np.int32), other_B=np.zeros(3))
    with pytest.raises(ValueError, match="no rows"):
        predict("embed_text", params, text_BL=np.zeros((0, 8), np.int32))


def test_evaluations_are_due_at_their_steps_at_the_start_and_at_the_end(stage, model, mesh_of):
    data = {"name": "synthetic"}
    evals = (
        Evaluation("retrieval", "4 steps", data, 8, prefix="a"),
        Evaluation("retrieval", "50 percent", data, 8, prefix="b", at_start=True),
        Evaluation("retrieval", "0 steps", data, 8, prefix="c"),
    )
    chosen = dataclasses.replace(stage(), evals=evals)
    evaluations = Evaluations(chosen, Predict(model, mesh_of()), Runtime(), total=10)
    due = {step: evaluations.due(step) for step in range(11) if evaluations.due(step)}
    assert due == {0: [1], 4: [0], 5: [1], 8: [0], 10: [0, 1, 2]}


def test_due_means_after_so_many_steps_and_at_the_end():
    assert [step for step in range(8) if is_due(step, 3, 7)] == [3, 6, 7]
    assert [step for step in range(8) if is_due(step, 0, 7)] == [7]
