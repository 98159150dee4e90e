"""One checkpoint serves every setting of the dials, whichever are turned; frozen layers stay what they were."""

import itertools

import jax
import numpy as np
import pytest

from vidlang.core.sharding import put_batch, use_mesh
from vidlang.core.tree import flatten_paths
from vidlang.ops.dials import Dials
from vidlang.train import build
from vidlang.train.checkpoint import Checkpoints, opened
from vidlang.train.predict import Predict
from vidlang.train.program import stage_program
from vidlang.train.recipe import CheckpointPlan, Evaluation, read_recipe
from vidlang.train.saved import make_note

TRANSFORMER = {"layers": 4, "width": 16, "heads": 4, "mlp": 32, "dtype": "float32"}
MODEL = {
    "name": "dual_encoder",
    "video": {"transformer": TRANSFORMER, "tubelet": (2, 4, 4), "pool": "cls"},  # 32 tokens
    "text": {"vocab": 64, "max_length": 8, "transformer": {**TRANSFORMER, "layers": 1}, "pool": "mean"},
    "embed": 8,
    "temperature": {"init": 0.07, "max_scale": 100.0, "learnable": True},
}
DIALS = {
    "mask": {"mask": 0.25},
    "width": {"widths": {"name": "dec"}},
    "edges": {"edges": {"local": 1, "random": 1, "block": 4}},
    "keep": {"keep": {"1": 0.7}},
}
TOGETHER = [*itertools.combinations(DIALS, 2), tuple(DIALS)]


def recipe_of(stage_config, **changes):
    """A recipe of one stage with the model above."""
    return read_recipe({"name": "tiny", "seed": 0, "stages": (stage_config(**{"model": MODEL, **changes}),)})


def checkpoints(folder, fields):
    note = make_note({"seed": 0, "stages": ({"name": "short"},)}, 0, fields, {})
    return opened(Checkpoints(folder, CheckpointPlan(), note))


@pytest.fixture(scope="module")
def saved(tmp_path_factory, stage_config, fields, mesh_of):
    """The folder of a checkpoint that was made with every dial off."""
    folder, mesh = tmp_path_factory.mktemp("saved"), mesh_of()
    program = stage_program(recipe_of(stage_config, dials={}), 0, fields, 4)
    with use_mesh(mesh), checkpoints(folder, fields) as opened_ones:
        opened_ones.save(0, program.born(mesh, 0), None)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("names", TOGETHER, ids="+".join)
def test_one_checkpoint_trains_under_any_dials(names, saved, stage_config, fields, host_batch, mesh_of):
    mesh, dials = mesh_of(), {key: value for name in names for key, value in DIALS[name].items()}
    with use_mesh(mesh):
        program = stage_program(recipe_of(stage_config, dials=dials), 0, fields, 4)
        with checkpoints(saved, fields) as opened_ones:
            state = opened_ones.restore(program.state(mesh))
        before = jax.device_get(state.params)
        state, scalars = program.compile(mesh)(state, put_batch(host_batch(0), mesh))
    assert np.isfinite(float(scalars["loss"]))
    after = flatten_paths(jax.device_get(state.params))
    moved = {name for name, leaf in flatten_paths(before).items() if not np.array_equal(leaf, after[name])}
    assert {"video_encoder/patch/kernel", "video_encoder/stack/layers/mlp_in/kernel", "text_projection/kernel"} <= moved


def test_evaluations_have_dials_of_their_own(stage_config, fields, host_batch, mesh_of):
    """An evaluation masks nothing, is at full width, and keeps the stage's edges, unless it says otherwise."""
    recipe = recipe_of(stage_config, dials={k: v for name in DIALS for k, v in DIALS[name].items()})
    stage, program = recipe.stages[0], stage_program(recipe, 0, fields, 4)

    def dials_of(**own):
        return build.eval_dials(stage, Evaluation(name="retrieval", every="1 step", data={}, batch_size=8, dials=own))

    assert dials_of() == Dials(edges=DIALS["edges"]["edges"], keep={"1": 0.7})
    assert dials_of(edges=None, keep={}) == Dials()
    assert dials_of(widths="d-384", mask=0.3).widths == "d-384" and dials_of(mask=0.3).mask == 0.3
    with pytest.raises(ValueError, match="dials of the evaluation val/retrieval has an unknown key 'width'"):
        dials_of(width="d-384")
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: 0.3 * rng.normal(size=leaf.shape).astype(np.float32), program.params)
    with use_mesh(mesh_of()):
        predict = Predict(program.model, mesh_of())
        video = {"video_BTHWC": host_batch(0)["video_BTHWC"]}
        whole = predict("embed_video", params, **video)
        half = predict.at(dials_of(widths="d-384"))("embed_video", params, **video)
    assert whole.shape == half.shape and np.abs(whole - half).max() > 1e-2
    assert predict.at(Dials()) is predict and predict.at(dials_of()) is predict.at(dials_of())


@pytest.mark.slow
def test_frozen_layers_are_not_trained(stage_config, fields, host_batch, mesh_of):
    transformer = {**TRANSFORMER, "frozen_layers": 3}
    model = {**MODEL, "video": {**MODEL["video"], "transformer": transformer}}
    program = stage_program(recipe_of(stage_config, dials={}, model=model), 0, fields, 4)
    with use_mesh(mesh_of()):
        state, step = program.born(mesh_of(), 0), program.compile(mesh_of())
        before = flatten_paths(jax.device_get(state.params))
        state, _ = step(state, put_batch(host_batch(0), mesh_of()))
    after, moments = flatten_paths(jax.device_get(state.params)), flatten_paths(state.opt_state)
    for name in [name for name in after if "video_encoder/stack/layers/" in name]:
        np.testing.assert_array_equal(after[name][:3], before[name][:3])
        assert not np.array_equal(after[name][3:], before[name][3:]) or "key/bias" in name, name
    assert {leaf.shape[0] for name, leaf in moments.items() if "video_encoder/stack/layers/" in name} == {1}
    np.testing.assert_array_equal(after["video_encoder/patch/kernel"], before["video_encoder/patch/kernel"])
