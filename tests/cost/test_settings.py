"""The settings that a plan compares, and what each makes of a stage."""

import dataclasses

import pytest

from vidlang.cost.settings import Setting, apply, encoder, settings, video_stack
from vidlang.train import build, sources


def names(stage):
    return [setting.name for setting in settings(stage)]


def test_published_settings_are_scaled_to_the_depth(recipe):
    deep = recipe(transformer={"layers": 12, "width": 768, "heads": 12}).stages[0]
    by_name = {setting.name: setting for setting in settings(deep)}
    # SViTT's places and AdaVid's runs of three layers.
    assert by_name["keep 0.7 x 3"].dials["keep"] == ((3, 0.7), (6, 0.7), (9, 0.7))
    widths = video_stack(apply(deep, by_name["widths d-dec"])).widths
    assert widths == (768,) * 3 + (576,) * 3 + (384,) * 3 + (192,) * 3
    assert by_name["mask 0.75 + last 4 layers"].last_layers == 4
    assert "last 1 layers" in names(recipe().stages[0])


def test_a_stages_own_dials_come_first_unless_they_are_in_the_list(recipe):
    assert "the stage's own" not in names(recipe().stages[0])
    assert "the stage's own" not in names(recipe(dials={"mask": 0.75}).stages[0])
    assert names(recipe(dials={"mask": 0.3}).stages[0])[1] == "the stage's own"


def test_applying_a_setting_changes_what_it_says_and_nothing_else(recipe):
    stage = recipe(dials={"mask": 0.3}).stages[0]
    changed = apply(stage, Setting("x", {"edges": {"local": 1, "random": 1, "block": 8}}, 1), frames=16, batch_size=4)
    assert build.dials(changed).mask == 0.0 and build.dials(changed).edges.block == 8
    assert (changed.clip["frames"], changed.batch_size) == (16, 4)
    assert encoder(changed)[1].frozen_layers == 3 and encoder(stage)[1].frozen_layers == 0
    assert changed.optimizer == stage.optimizer and changed.model["text"] == stage.model["text"]


def test_the_shape_of_a_stack_is_that_of_the_model(recipe):
    shape = video_stack(recipe(dials={"mask": 0.5, "keep": ((1, 0.5),)}).stages[0])
    assert (shape.grid, shape.tokens, shape.widths) == ((4, 4, 4), (32, 32, 16, 16), (64,) * 4)
    assert (shape.patch, shape.cls, shape.edges) == (2 * 8 * 8 * 3, True, None)


def test_a_model_without_a_video_encoder_is_said(recipe):
    stage = recipe(model={"name": "text", "vocab": 8, "max_length": 8, "transformer": {}, "pool": "cls"}).stages[0]
    with pytest.raises(ValueError, match="the model 'text' of stage 'short' has no section 'video'"):
        settings(stage)


def test_of_a_mixture_the_longest_clips_get_the_frames(recipe):
    stage = recipe().stages[0]
    parts = ({"data": stage.data, "clip": {"frames": count}} for count in (16, 1, 16))
    mixed = dataclasses.replace(stage, data={"mixing": "batches", "sources": tuple(parts)})
    assert [spec.frames for spec in sources.specs(apply(mixed, Setting("x"), frames=64))] == [64, 1, 64]


def test_of_a_captioner_what_it_freezes_can_be_trained_too(recipe):
    stage = recipe(dials={"mask": 0.3}).stages[0]
    assert not any("trained too" in name for name in names(stage))
    captioner = dataclasses.replace(stage, model={"name": "captioner", "video": stage.model["video"], "language": {}})
    found = {setting.name: setting for setting in settings(captioner)}
    changed = apply(captioner, found["language trained too"])
    assert changed.model == {**captioner.model, "train_language": True} and build.dials(changed).mask == 0.3
    assert list(found)[1] == "the stage's own" and "video trained too" in found
    trained = dataclasses.replace(captioner, model={**captioner.model, "train_video": True})
    assert [name for name in names(trained) if "trained too" in name] == ["language trained too"]
