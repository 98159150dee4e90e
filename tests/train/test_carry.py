"""A stage that starts from another: what its position tables, kernels and layers are then, and that it is said."""

import functools
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.core.sharding import replicated, use_mesh
from vidlang.core.tree import flatten_paths, merge
from vidlang.models.video import Model
from vidlang.ops.positions import resize_space
from vidlang.ops.relative import resize_table
from vidlang.train import check, initial, prepared, stages
from vidlang.train.carry import carry, carry_arrays, describe, tower
from vidlang.train.origins import Run
from vidlang.train.recipe import read_recipe
from vidlang.train.step import TrainState

TRANSFORMER = {"layers": 2, "width": 8, "heads": 2, "mlp": 16, "dtype": "float32"}


def section(*, tubelet=(2, 4, 4), layout="joint", relative=False, **options):
    transformer = {**TRANSFORMER, "layout": layout, "relative_positions": relative}
    return {"name": "video", "transformer": transformer, "tubelet": tubelet, **options}


def fields(frames, height=8, width=8):
    return {"video_BTHWC": jax.ShapeDtypeStruct((2, frames, height, width, 3), np.uint8)}


def draw(model, clips, seed=0):
    """Parameters that are all away from zero."""
    video = jnp.zeros(clips["video_BTHWC"].shape, jnp.uint8)
    options = {name: value for name, value in model.items() if name != "name"}
    init = functools.partial(Model(**options).init, train=False)
    shapes = nn.unbox(jax.eval_shape(init, jax.random.key(0), video))["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes)


def start(before, here, clips_before, clips_here):
    """(what was trained, what the next stage starts from, what is said of it), which shapes agree with."""
    source, target = draw(before, clips_before), draw(here, clips_here, seed=1)
    towers = tower(before, clips_before), tower(here, clips_here)
    carried, changes = carry(source, target, *towers)
    shapes, said = carry(*jax.eval_shape(lambda: (source, target)), *towers)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, carried) and said == changes
    merged, report = merge(target, carried)
    report.raise_unless()
    return flatten_paths(source), flatten_paths(merged), changes


def test_twice_the_frames_start_with_the_table_repeated():
    source, found, changes = start(section(), section(), fields(4), fields(8))
    np.testing.assert_array_equal(found["temporal"], np.concatenate([source["temporal"]] * 2))
    for name in set(source) - {"temporal"}:
        np.testing.assert_array_equal(found[name], source[name])
    assert changes == ("temporal (2, 8) -> (4, 8), repeat",)
    assert describe(changes) == "\n1 made to fit:\n  temporal (2, 8) -> (4, 8), repeat" and describe(()) == ""


def test_the_model_says_how_tables_grow():
    source, found, changes = start(section(), section(extend_positions="zeros"), fields(4), fields(8))
    np.testing.assert_array_equal(found["temporal"], np.pad(source["temporal"], [(0, 2), (0, 0)]))
    assert changes == ("temporal (2, 8) -> (4, 8), zeros",)


def test_grids_are_those_of_model_and_clip_even_with_as_many_places():
    source, found, changes = start(section(), section(), fields(4, 8, 16), fields(4, 16, 8))
    np.testing.assert_allclose(found["spatial"], resize_space(source["spatial"], (2, 4), (4, 2)), rtol=1e-6)
    assert changes == ("spatial (8, 8) -> (8, 8), bilinear",)


def test_relative_tables_of_all_layers_are_resized():
    before, here = (section(relative=True, positions="none") for _ in range(2))
    source, found, changes = start(before, here, fields(4), fields(8, 8, 16))
    name = "stack/layers/attention/relative"
    for layer in range(2):
        expected = resize_table(source[name][layer], (2, 2, 2), (4, 2, 4))
        np.testing.assert_allclose(found[name][layer], expected, rtol=1e-6)
    assert len(changes) == 1 and f"{name} (2, 30, 2) -> (2, 150, 2), nearest in time" in changes[0]


@pytest.mark.parametrize("how", ["mean", "central"])
@pytest.mark.parametrize("layout", ["frames", "joint"])
def test_a_video_stem_starts_from_the_kernel_of_an_image_stem(layout, how):
    before = section(tubelet=(1, 4, 4), layout=layout)
    here = section(inflate=how)
    target = draw(here, fields(4), seed=1)
    carried, changes = carry(draw(before, fields(1)), target, tower(before, fields(1)), tower(here, fields(4)))
    kernel = draw(before, fields(1))["patch"]["kernel"].reshape(4, 4, 3, 8)
    share = [0.5, 0.5] if how == "mean" else [0.0, 1.0]
    np.testing.assert_allclose(carried["patch"]["kernel"], [kernel * part for part in share], rtol=1e-6)
    assert any("patch/kernel" in change and f"inflated, {how}" in change for change in changes)


def test_an_image_model_starts_both_stems_of_a_video_model():
    """LongViViT's first two stages: images keep the kernel that they were trained with, clips get it inflated."""
    before, here = section(tubelet=(1, 4, 4), layout="frames"), section(image_patch=(4, 4))
    source, target = draw(before, fields(1)), draw(here, fields(4), seed=1)
    towers = tower(before, fields(1)), tower(here, fields(4))
    carried, changes = carry({"video": source}, {"video": target}, *towers)
    merged, report = merge({"video": target}, carried)
    assert report.missing == ("video/temporal",) and not report.unused + report.mismatched
    np.testing.assert_array_equal(merged["video"]["image_patch"]["kernel"], source["patch"]["kernel"])
    np.testing.assert_array_equal(merged["video"]["image_patch"]["bias"], source["patch"]["bias"])
    assert changes[0] == "video/image_patch copied from patch" and "inflated" in changes[1]
    video = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 1, 8, 8, 3)), jnp.uint8)
    one, other = (
        tower(model, fields(1)).model.apply({"params": params}, video, train=False).tokens_BMD
        for model, params in ((before, source), (here, merged["video"]))
    )
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    shapes, said = carry(*jax.eval_shape(lambda: ({"video": source}, {"video": target})), *towers)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, carried) and said == changes


def test_kernels_of_other_tubelets_are_not_made_to_fit():
    before, here = section(tubelet=(4, 4, 4)), section()
    target = draw(here, fields(4))
    carried, _ = carry(draw(before, fields(8)), target, tower(before, fields(8)), tower(here, fields(4)))
    assert carried["patch"]["kernel"].shape == (4, 4, 4, 3, 8)
    with pytest.raises(ValueError, match="1 mismatched:\n  patch/kernel"):
        merge(target, carried)[1].raise_unless()


def test_factorized_layers_start_with_time_copied_from_space():
    source, found, changes = start(section(), section(layout="factorized"), fields(4), fields(4))
    layers = "stack/layers"
    assert changes == (f"{layers}/time_* copied from attention",)
    np.testing.assert_array_equal(found[f"{layers}/time_gate"], [0.0, 0.0])
    for name in source:
        copy = found.get(name.replace(f"{layers}/attention", f"{layers}/time_attention"))
        np.testing.assert_array_equal(copy, source[name])


def test_a_model_without_a_video_encoder_is_left_alone():
    assert tower({"name": "tiny", "width": 3}, fields(4)) is None
    params = {"temporal": jnp.ones((2, 3))}
    assert carry(params, {"temporal": jnp.ones((4, 3))}, None, None) == (params, ())


def test_carried_arrays_lie_as_the_state_does(mesh_of):
    mesh = mesh_of(fsdp=8)
    source, target = draw(section(), fields(4)), draw(section(), fields(8))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "fsdp"))
    target["temporal"] = jax.device_put(target["temporal"], rows)
    towers = [tower(section(), clips) for clips in (fields(4), fields(8))]
    everywhere = replicated(mesh)
    target = {name: leaf if name == "temporal" else jax.device_put(leaf, everywhere) for name, leaf in target.items()}
    found, changes = carry_arrays(source, target, *towers, mesh)
    assert found["temporal"].sharding.is_equivalent_to(rows, 2) and len(changes) == 1
    np.testing.assert_array_equal(found["temporal"], np.tile(source["temporal"], (2, 1)))
    same, nothing = carry_arrays(source, source, towers[0], towers[0], mesh)
    assert same is source and nothing == ()


def two_stages(stage_config, dual_encoder, **options):
    """A stage of 4 frames and one of 8."""
    clip = stage_config()["clip"]
    model = {**dual_encoder, "video": {**dual_encoder["video"], **options}}
    one = stage_config(model=model, data={"name": "synthetic", "split": "train", "root": "none"})
    return read_recipe(
        {"name": "two", "seed": 0, "stages": (one, {**one, "name": "long", "clip": {**clip, "frames": 8}})}
    )


def test_a_longer_stage_passes_the_check_of_its_recipe(stage_config, dual_encoder):
    check.check_recipe(two_stages(stage_config, dual_encoder))


def test_a_longer_stage_takes_the_checkpoint_of_a_shorter(stage_config, dual_encoder, mesh_of, monkeypatch):
    recipe = two_stages(stage_config, dual_encoder, extend_positions="linear")
    plain = {"stages": [{"model": {**stage.model, "name": "dual_encoder"}} for stage in recipe.stages]}
    table = jnp.asarray(np.arange(2.0)[:, None] * np.ones((1, 16)), jnp.float32)
    note = {"config": plain, "stage": 0, "fields": {"video_BTHWC": [[4, 16, 16, 3], "uint8"]}}
    monkeypatch.setattr(initial, "find_checkpoint", lambda path: ("run/0_short", 4))
    monkeypatch.setattr(initial, "read_note", lambda folder, step: note)
    monkeypatch.setattr(initial, "restore_params", lambda *_, **__: {"video_encoder": {"temporal": table}})
    mesh = mesh_of()
    with use_mesh(mesh):
        fresh = {"video_encoder": {"temporal": jax.device_put(jnp.zeros((4, 16)), replicated(mesh))}}
        state = TrainState(jnp.int32(0), fresh, SimpleNamespace())
        taken, report = initial.take_params(state, (Run("run"),), (), recipe.stages[1], fields(8, 16, 16), mesh)
    np.testing.assert_allclose(taken.params["video_encoder"]["temporal"][:, 0], [0, 0.25, 0.75, 1], atol=1e-6)
    assert "step 4 of run/0_short: 1 parameters loaded" in report
    assert "video_encoder/temporal (2, 16) -> (4, 16), linear" in report


@pytest.mark.slow
def test_a_run_of_two_stages_goes_on_from_the_repeated_table(recipe, dual_encoder, tmp_path, monkeypatch):
    model = {**dual_encoder, "text": {**dual_encoder["text"], "vocab": 96}}
    config = recipe(model=model, duration="1 step", evals=(), checkpoint={"every": "1 step", "keep": 1})
    (one,) = config["stages"]
    config["stages"] = (one, {**one, "name": "long", "clip": {**one["clip"], "frames": 8}})
    seen, restored = [], []

    def remember(function, found):
        def call(*args, **kwargs):
            found.append(function(*args, **kwargs))
            return found[-1]

        return call

    def take(*args, **kwargs):
        state, report = take_params(*args, **kwargs)
        seen.append((np.asarray(state.params["video_encoder"]["temporal"]), report))  # before the step consumes it
        return state, report

    take_params = prepared.take_params
    monkeypatch.setattr(prepared, "take_params", take)
    monkeypatch.setattr(initial, "restore_params", remember(initial.restore_params, restored))
    stages.train(config, tmp_path)
    (table, report), trained = seen[0], np.asarray(restored[0]["video_encoder"]["temporal"])
    assert trained.shape == (2, 16) and "video_encoder/temporal (2, 16) -> (4, 16), repeat" in report
    np.testing.assert_array_equal(table, np.tile(trained, (2, 1)))


def test_only_the_layers_that_get_an_attention_over_time_are_factorized():
    like = {"attention": jnp.ones((2, 3)), "attention_norm": {"scale": jnp.ones((2, 3))}}
    both = {"video_encoder": {"stack": {"layers": like}}, "text_encoder": {"stack": {"layers": like}}}
    target = {**both, "video_encoder": {"stack": {"layers": {**like, "time_gate": jnp.zeros(2)}}}}
    anyone = SimpleNamespace(grid=None, model=SimpleNamespace(extend_positions="repeat", inflate="mean"))
    found, changes = carry(both, target, anyone, anyone)
    assert set(found["video_encoder"]["stack"]["layers"]) > set(like)
    assert set(found["text_encoder"]["stack"]["layers"]) == set(like)
    assert changes == ("video_encoder/stack/layers/time_* copied from attention",)


def test_a_vocabulary_is_padded_and_texts_may_be_shorter():
    rng = np.random.default_rng(0)
    words, positions, bias = rng.normal(size=(90, 4)), rng.normal(size=(12, 4)), rng.normal(size=90)
    given = {"text_encoder": {"words": {"table": words}, "positions": positions}, "word_head": {"bias": bias}}
    given = jax.tree.map(jnp.asarray, given)

    def like(rows, length):
        shapes = {"words": {"table": jnp.ones((rows, 4))}, "positions": jnp.ones((length, 4))}
        return {"text_encoder": shapes, "word_head": {"bias": jnp.ones(rows)}}

    found, changes = carry(given, like(96, 7), None, None)
    np.testing.assert_array_equal(found["text_encoder"]["words"]["table"][:90], given["text_encoder"]["words"]["table"])
    assert not found["text_encoder"]["words"]["table"][90:].any() and (found["word_head"]["bias"][90:] < -1e3).all()
    np.testing.assert_array_equal(found["text_encoder"]["positions"], given["text_encoder"]["positions"][:7])
    assert "text_encoder/words/table (90, 4) -> (96, 4), 6 rows for no word" in changes and len(changes) == 3
    shapes, said = carry(*jax.eval_shape(lambda: (given, like(96, 7))), None, None)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, found) and said == changes
    # Another tokenizer, or longer texts than there are positions for, are the user's mistake.
    for rows, length in [(129, 12), (88, 12), (90, 13)]:
        same, nothing = carry(given, like(rows, length), None, None)
        assert nothing == () and jax.tree.map(jnp.shape, same) == jax.tree.map(jnp.shape, given)


def test_one_table_of_all_places_grows_with_the_clips():
    """ViViT's, from the video encoder of one model to that of another."""
    joint = section(positions="joint", extend_positions="repeat")
    both = [{"name": "classifier", "video": {k: v for k, v in joint.items() if k != "name"}}] * 2
    clips = fields(4), fields(8, 16, 16)
    towers = [tower(model, clip) for model, clip in zip(both, clips, strict=True)]
    source, target = ({"video_encoder": draw(joint, clip)} for clip in clips)
    found, changes = carry(source, target, *towers)
    table = found["video_encoder"]["positions"]
    assert table.shape == target["video_encoder"]["positions"].shape == (64, 8)
    np.testing.assert_array_equal(table[:32], table[32:])
    assert "video_encoder/positions (8, 8) -> (64, 8), repeat in time, bilinear in space" in " ".join(changes)
