"""LaViLa as its code computes, written anew with the published names: read, compared, and written again."""

import argparse

import jax
import numpy as np
import pytest
import torch

from tests.pretrained.clips import (
    PADDED,
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
from vidlang.pretrained import lavila
from vidlang.pretrained._files import read_weights
from vidlang.train.origins import Weights

WIDTH, HEADS, PATCH, SIDE, FRAMES = 128, 2, 8, 3, 4
CLIP = (FRAMES, PATCH * SIDE, PATCH * SIDE)


class Attention(torch.nn.Module):
    """Each query sees cls and what it is said to; cls sees everything."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = torch.nn.Linear(WIDTH, 3 * WIDTH), torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, x_BND, seen_NS):
        batch, tokens, _ = x_BND.shape
        q, k, v = self.qkv(x_BND).reshape(batch, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5
        weights = scores.masked_fill(~seen_NS, -torch.inf).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (torch.nn.LayerNorm(WIDTH, 1e-6) for _ in range(3))
        self.attn, self.timeattn = Attention(), Attention()
        self.mlp = torch.nn.ModuleDict({"fc1": torch.nn.Linear(WIDTH, 200), "fc2": torch.nn.Linear(200, WIDTH)})

    def forward(self, x, in_time, in_space):
        time = x + self.timeattn(self.norm3(x), in_time)
        x = x + self.attn(self.norm1(time), in_space)
        h = self.mlp["fc1"](self.norm2(x))
        return x + self.mlp["fc2"](h * torch.sigmoid(1.702 * h))


class Visual(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.patch_embed = torch.nn.ModuleDict({"proj": torch.nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)})
        self.cls_token = torch.nn.Parameter(torch.empty(1, 1, WIDTH))
        self.pos_embed = torch.nn.Parameter(torch.empty(1, SIDE**2 + 1, WIDTH))
        self.temporal_embed = torch.nn.Parameter(torch.empty(1, FRAMES, WIDTH))
        self.ln_pre, self.norm = torch.nn.LayerNorm(WIDTH), torch.nn.LayerNorm(WIDTH, 1e-6)
        self.blocks = torch.nn.ModuleList([Block(), Block()])

    def forward(self, video_BTCHW):
        batch, frames = video_BTCHW.shape[:2]
        x = self.patch_embed["proj"](video_BTCHW.flatten(0, 1)).flatten(2).transpose(1, 2)
        x = x.reshape(batch, frames, SIDE**2, WIDTH) + self.pos_embed[:, None, 1:] + self.temporal_embed[:, :, None]
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(batch, 1, WIDTH)
        x = self.ln_pre(torch.cat([cls, x.flatten(1, 2)], 1))
        place = torch.arange(frames * SIDE**2)
        masks = []
        for key in (place % SIDE**2, place // SIDE**2):  # the same place over time; the same time over space
            seen = torch.ones(len(place) + 1, len(place) + 1, dtype=torch.bool)
            seen[1:, 1:] = key[:, None] == key[None]
            masks.append(seen)
        for block in self.blocks:
            x = block(x, *masks)
        return self.norm(x)[:, 0]


class Lavila(torch.nn.Module):
    def __init__(self, labels=0):
        super().__init__()
        self.visual = Visual()
        if labels:
            self.fc_cls = torch.nn.Linear(WIDTH, labels)
            return
        text_parts(self)
        self.image_projection = torch.nn.Parameter(torch.empty(WIDTH, 20))
        self.logit_scale = torch.nn.Parameter(torch.empty(()))


def save(path, model, name="CLIP_OPENAI_TIMESFORMER_BASE", **changes):
    state = {f"module.{key}": tensor for key, tensor in {**model.state_dict(), **changes}.items() if tensor is not None}
    torch.save({"epoch": 3, "state_dict": state, "args": argparse.Namespace(model=name), "best_acc1": 0.5}, path)
    return path


def test_embeddings_are_those_of_the_published_code(tmp_path):
    model = draw(Lavila())
    # Small, so that the epsilon of the norm behind the stem, which is another than the layers', tells.
    for name in ("cls_token", "pos_embed", "temporal_embed"):
        getattr(model.visual, name).data.mul_(0.02)
    model.visual.patch_embed["proj"].weight.data.mul_(0.003)
    path = save(tmp_path / "clip.pth", model)
    section, params = lavila.section(path), lavila.load(path)
    assert lavila.clip(path) == CLIP and section["video"]["transformer"]["layout"] == "divided"
    video_BTHWC = frames_of(CLIP)
    with torch.no_grad():
        video_BE = model.visual(pixels(video_BTHWC, section)) @ model.image_projection
        text_BE = encode_text(model, torch.tensor(PADDED), True)
    whole, _, _ = computed(section, params, video_BTHWC)
    np.testing.assert_allclose(whole.video_BE, unit(video_BE), atol=2e-5)
    np.testing.assert_allclose(whole.text_BE, unit(text_BE), atol=2e-5)
    np.testing.assert_allclose(whole.scale, np.exp(1.7), rtol=1e-6)


def test_a_classifier_is_read_too(tmp_path):
    model = draw(Lavila(labels=7))
    path = save(tmp_path / "clip.pth", model)
    section, params = lavila.section(path), lavila.load(path)
    assert section["name"] == "classifier" and section["heads"] == {"label": 7}
    video_BTHWC = frames_of(CLIP)
    with torch.no_grad():
        expected = model.fc_cls(model.visual(pixels(video_BTHWC, section)))
    np.testing.assert_allclose(classified(section, params, video_BTHWC), expected, atol=2e-5)


def test_out_and_in_again_is_bitwise_the_same(tmp_path):
    path = save(tmp_path / "clip.pth", draw(Lavila()))
    published, params, section = read_weights(path), lavila.load(path), lavila.section(path)
    config = lavila.config_of(section, CLIP)
    assert config == lavila.describe(published) and lavila.spec(config) == section
    tensors = lavila.from_flax(params, config)
    assert set(tensors) == set(published)
    cls, places = "visual.cls_token", "visual.pos_embed"
    for name in tensors.keys() - {cls, places}:
        assert tensors[name].shape == published[name].shape
        np.testing.assert_array_equal(tensors[name], published[name])
    np.testing.assert_array_equal(tensors[cls], published[cls] + published[places][:, :1])
    np.testing.assert_array_equal(tensors[places][:, 1:], published[places][:, 1:])
    assert_same_trees(lavila.to_flax(tensors, config), params)
    shapes = lavila.shapes(path)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)
    Lavila().load_state_dict({name: torch.tensor(x) for name, x in tensors.items()})


def test_other_models_are_refused(tmp_path):
    model, path = draw(Lavila()), tmp_path / "clip.pth"
    with pytest.raises(ValueError, match="is a CLIP_HF_EGOVLP_DISTILBERT_BASE; this family reads"):
        lavila.load(save(path, model, "CLIP_HF_EGOVLP_DISTILBERT_BASE"))
    for change, match in (
        ({"visual.blocks.0.alpha_timeattn": torch.zeros(())}, r"1 unused: visual\.blocks\.0\.alpha_timeattn"),
        ({"visual.blocks.1.norm3.bias": None}, r"1 missing: visual\.blocks\.1\.norm3\.bias"),
        ({"visual.cls_token": torch.zeros(1, WIDTH)}, r"1 misshapen: visual\.cls_token"),
        ({"transformer.resblocks.0.mlp.c_fc.weight": None}, "not those of LaViLa's dual encoder or classifier"),
    ):
        with pytest.raises(ValueError, match=match):
            lavila.load(save(path, model, **change))
    section = lavila.section(save(path, model))
    video = section["video"]
    for changes, match in (
        ({"video": {**video, "stem_epsilon": None}}, "stem_epsilon is None"),
        ({"video": {**video, "transformer": {**video["transformer"], "layout": "timesformer"}}}, "layout is 'times"),
    ):
        with pytest.raises(ValueError, match=match):
            lavila.config_of({**section, **changes}, CLIP)


def test_a_model_with_another_epsilon_behind_its_stem_does_not_start_from_it(tmp_path):
    path = save(tmp_path / "clip.pth", draw(Lavila()))
    section, weights = lavila.section(path), Weights("lavila", str(path))
    weights.check(section)
    weights.check({**section, "video": {**section["video"], "norm_stem": False}})  # which shapes tell
    with pytest.raises(ValueError, match="video.stem_epsilon is 1e-06 and theirs 1e-05; give theirs"):
        weights.check({**section, "video": {**section["video"], "stem_epsilon": None}})
