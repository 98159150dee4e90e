"""AVION as its code computes, written anew with the published names: read, compared, and written again."""

import argparse

import jax
import numpy as np
import pytest
import torch

from tests.pretrained.clips import (
    LENGTH,
    PADDED,
    VOCAB,
    Blocks,
    classified,
    computed,
    draw,
    encode_text,
    frames_of,
    pixels,
    text_parts,
    unit,
)
from tests.pretrained.text_towers import assert_same_trees
from vidlang.core.tree import flatten_paths
from vidlang.pretrained import avion
from vidlang.pretrained._files import read_weights

WIDTH, PATCH, SIDE = 128, 8, 3


class Visual(torch.nn.Module):
    def __init__(self, frames, embed):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.class_embedding = torch.nn.Parameter(torch.empty(WIDTH))
        self.positional_embedding = torch.nn.Parameter(torch.empty(SIDE**2 + 1, WIDTH))
        if frames > 1:
            self.temporal_embedding = torch.nn.Parameter(torch.empty(frames, WIDTH))
        self.ln_pre, self.ln_post = torch.nn.LayerNorm(WIDTH, 1e-6), torch.nn.LayerNorm(WIDTH, 1e-6)
        self.transformer = Blocks(WIDTH, 2, 4 * WIDTH, epsilon=1e-6)
        if embed:
            self.image_projection = torch.nn.Parameter(torch.empty(WIDTH, embed))

    def forward(self, video_BTCHW):
        batch, frames = video_BTCHW.shape[:2]
        x = self.conv1(video_BTCHW.flatten(0, 1)).flatten(2).transpose(1, 2)  # [B T, N, D]
        x = x.reshape(batch, frames, SIDE**2, WIDTH) + self.positional_embedding[1:]
        if frames > 1:
            x = x + self.temporal_embedding[:, None]
        cls = (self.class_embedding + self.positional_embedding[0]).expand(batch, 1, WIDTH)
        x = self.ln_pre(torch.cat([cls, x.flatten(1, 2)], 1))
        x = self.ln_post(self.transformer(x, False)[:, 0])
        return x @ self.image_projection if hasattr(self, "image_projection") else x


class Textual(torch.nn.Module):
    def __init__(self):
        super().__init__()
        text_parts(self)

    def forward(self, text_BL):
        return encode_text(self, text_BL, False)


class Avion(torch.nn.Module):
    def __init__(self, frames=4, labels=0):
        super().__init__()
        self.visual = Visual(frames, 0 if labels else 20)
        if labels:
            self.fc_cls = torch.nn.Linear(WIDTH, labels)
        else:
            self.textual = Textual()
            self.logit_scale = torch.nn.Parameter(torch.empty(()))


def state_of(model, flash=False, fast=False):
    """The state dict as these options of training leave it."""
    state = dict(model.state_dict())
    if fast:
        state["visual.conv1.weight"] = state["visual.conv1.weight"].flatten(1)
    if flash:
        new = {"attn.in_proj_": "attn.Wqkv.", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
        for theirs, flashed in new.items():
            state = {n.replace(theirs, flashed) if n.startswith("visual") else n: x for n, x in state.items()}
    return state


def save(path, model, args=None, **options):
    state = {f"module.{name}": tensor for name, tensor in state_of(model, **options).items()}
    args = argparse.Namespace(model="CLIP_VITB16", **(args or {}))
    torch.save({"epoch": 3, "state_dict": state, "args": args, "best_acc1": 0.5}, path)
    return path


@pytest.mark.parametrize(("frames", "options"), [(4, {}), (4, {"flash": True, "fast": True}), (1, {"fast": True})])
def test_embeddings_are_those_of_the_published_code(frames, options, tmp_path):
    model = draw(Avion(frames))
    path = save(tmp_path / "checkpoint.pt", model, **options)
    section, params, clip = avion.section(path), avion.load(path), (frames, PATCH * SIDE, PATCH * SIDE)
    assert avion.clip(path) == clip and section["text"]["vocab"] == VOCAB and section["text"]["max_length"] == LENGTH
    video_BTHWC = frames_of(clip)
    with torch.no_grad():
        video_BE = model.visual(pixels(video_BTHWC, section))
        text_BE = model.textual(torch.tensor(PADDED))
    whole, _, _ = computed(section, params, video_BTHWC)
    np.testing.assert_allclose(whole.video_BE, unit(video_BE), atol=2e-5)
    np.testing.assert_allclose(whole.text_BE, unit(text_BE), atol=2e-5)
    np.testing.assert_allclose(whole.scale, np.exp(1.7), rtol=1e-6)


def test_a_classifier_is_read_too(tmp_path):
    model = draw(Avion(labels=7))
    path = save(tmp_path / "checkpoint.pt", model)
    section, params = avion.section(path), avion.load(path)
    assert section["name"] == "classifier" and section["heads"] == {"label": 7}
    video_BTHWC = frames_of(avion.clip(path))
    with torch.no_grad():
        expected = model.fc_cls(model.visual(pixels(video_BTHWC, section)))
    np.testing.assert_allclose(classified(section, params, video_BTHWC), expected, atol=2e-5)
    config = avion.config_of(section, avion.clip(path))
    assert config == avion.describe(read_weights(path)) and avion.spec(config) == section
    assert_same_trees(avion.to_flax(avion.from_flax(params, config), config), params)


@pytest.mark.parametrize("options", [{}, {"flash": True, "fast": True}])
def test_out_and_in_again_is_bitwise_the_same(options, tmp_path):
    path = save(tmp_path / "checkpoint.pt", draw(Avion()), **options)
    published, params = read_weights(path), avion.load(path)
    config = avion.describe(published)
    tensors = avion.from_flax(params, config)
    assert set(tensors) == set(published)
    cls, places = "visual.class_embedding", "visual.positional_embedding"
    for name in tensors.keys() - {cls, places}:
        assert tensors[name].shape == published[name].shape
        np.testing.assert_array_equal(tensors[name], published[name])
    np.testing.assert_array_equal(tensors[cls], published[cls] + published[places][0])
    np.testing.assert_array_equal(tensors[places][1:], published[places][1:])
    assert_same_trees(avion.to_flax(tensors, config), params)
    shapes = avion.shapes(path)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)


def test_a_model_of_ours_leaves_as_the_published_code_has_it(tmp_path):
    path = save(tmp_path / "checkpoint.pt", draw(Avion()))
    section, params, model = avion.section(path), avion.load(path), Avion()
    config = avion.config_of(section, avion.clip(path))
    assert avion.spec(config) == section
    tensors = {name: torch.tensor(x) for name, x in avion.from_flax(params, config).items()}
    model.load_state_dict(tensors)
    video_BTHWC = frames_of(avion.clip(path))
    with torch.no_grad():
        video_BE = model.visual(pixels(video_BTHWC, section))
    np.testing.assert_allclose(computed(section, params, video_BTHWC)[0].video_BE, unit(video_BE), atol=2e-5)


def test_other_models_are_refused(tmp_path):
    model = draw(Avion())
    with pytest.raises(ValueError, match="use_bidirectional_lm, by which texts attend to their padding"):
        avion.load(save(tmp_path / "x.pt", model, {"use_bidirectional_lm": True}))
    state = state_of(model)
    for change, match in (
        ({"visual.transformer.resblocks.1.ls_1.gamma": torch.ones(WIDTH)}, r"1 unused: visual.*ls_1\.gamma"),
        ({"textual.ln_final.bias": None}, r"1 missing: textual\.ln_final\.bias"),
        (
            {"textual.token_embedding.weight": None},
            "not those of AVION's dual encoder or classifier: .*token_embedding",
        ),
    ):
        torch.save({name: x for name, x in {**state, **change}.items() if x is not None}, tmp_path / "x.pt")
        with pytest.raises(ValueError, match=match):
            avion.load(tmp_path / "x.pt")
    path = save(tmp_path / "checkpoint.pt", model)
    section, clip = avion.section(path), avion.clip(path)
    video = section["video"]
    for changes, match in (
        ({"video": {**video, "transformer": {**video["transformer"], "activation": "quick_gelu"}}}, "activation is"),
        (
            {"video": {**video, "transformer": {**video["transformer"], "heads": 4}}},
            "heads of model.video are not of 64",
        ),
        ({"video": {**video, "transformer": {**video["transformer"], "layout": "divided"}}}, "layout is 'divided'"),
        ({"text": {**section["text"], "pool": "mean"}}, "text.pool is 'mean'"),
    ):
        with pytest.raises(ValueError, match=match):
            avion.config_of({**section, **changes}, clip)
    with pytest.raises(ValueError, match="found clips None"):
        avion.config_of(section)
    assert set(flatten_paths(avion.load(path))) > {"video_encoder/temporal", "log_scale"}
