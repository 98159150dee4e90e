"""EgoVLP's dual encoder by its published names, against a reference of its video tower and the real DistilBERT."""

import sys
import types

import jax
import numpy as np
import pytest
import torch
import transformers

from configs import adavid_egovlp, parts
from tests.pretrained.towers import check_protocol, clip_of, drawn, model_of, torch_pixels, tower_output
from vidlang.pretrained import egovlp
from vidlang.pretrained._files import read_checkpoint

WIDTH, HEADS, PATCH, SIDE, FRAMES, EMBED = 128, 2, 8, 2, 3, 16
CLIPS = clip_of((2, FRAMES, SIDE * PATCH, SIDE * PATCH))
TEXT = np.array([[2, 5, 7, 9, 3], [2, 8, 3, 0, 0]])


class Attention(torch.nn.Module):
    """Over the whole of what a mask allows, from one linear map for query, key and value."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = torch.nn.Linear(WIDTH, 3 * WIDTH), torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, x_BND, mask_NS):
        q, k, v = (
            part.unflatten(-1, (HEADS, WIDTH // HEADS)).transpose(1, 2) for part in self.qkv(x_BND).split(WIDTH, dim=-1)
        )
        logits = (q @ k.mT) / (WIDTH // HEADS) ** 0.5
        weights = logits.masked_fill(~mask_NS, -torch.inf).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class Mlp(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = torch.nn.Linear(WIDTH, 160), torch.nn.Linear(160, WIDTH)


class Layer(torch.nn.Module):
    """Attention over time feeds that over space, and only the latter joins the residual."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (torch.nn.LayerNorm(WIDTH, eps=1e-6) for _ in range(3))
        self.attn, self.timeattn, self.mlp = Attention(), Attention(), Mlp()

    def forward(self, x, along_time, along_space):
        seen = x + self.timeattn(self.norm3(x), along_time)
        x = x + self.attn(self.norm1(seen), along_space)
        hidden = torch.nn.functional.gelu(self.mlp.fc1(self.norm2(x)))
        return x + self.mlp.fc2(hidden)


class Tower(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.patch_embed = torch.nn.Module()
        self.patch_embed.proj = torch.nn.Conv2d(3, WIDTH, PATCH, stride=PATCH)
        self.cls_token = torch.nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = torch.nn.Parameter(torch.zeros(1, 1 + SIDE * SIDE, WIDTH))
        self.temporal_embed = torch.nn.Parameter(torch.zeros(1, FRAMES, WIDTH))
        self.blocks = torch.nn.ModuleList([Layer(), Layer()])
        self.norm = torch.nn.LayerNorm(WIDTH, eps=1e-6)

    def forward(self, video_BTCHW):
        batch, times = video_BTCHW.shape[:2]
        x = self.patch_embed.proj(video_BTCHW.flatten(0, 1)).flatten(2).mT.unflatten(0, (batch, times))
        x = x + self.pos_embed[:, None, 1:] + self.temporal_embed[:, :times, None]
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(batch, 1, WIDTH)
        x = torch.cat([cls, x.flatten(1, 2)], dim=1)
        time = torch.arange(times).repeat_interleave(SIDE * SIDE)
        place = torch.arange(SIDE * SIDE).repeat(times)
        masks = []
        for which in (place, time):
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool)
            mask[1:, 1:] = which[:, None] == which[None]
            masks.append(mask)
        for block in self.blocks:
            x = block(x, *masks)
        return self.norm(x)


class Dual(torch.nn.Module):
    """The names of all of it."""

    def __init__(self):
        super().__init__()
        sizes = {"dim": 64, "n_heads": 1, "n_layers": 2, "hidden_dim": 96, "vocab_size": 61}
        config = transformers.DistilBertConfig(**sizes, max_position_embeddings=12)
        config._attn_implementation = "eager"
        self.video_model, self.text_model = Tower(), transformers.DistilBertModel(config)
        self.txt_proj = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(64, EMBED))
        self.vid_proj = torch.nn.Sequential(torch.nn.Linear(WIDTH, EMBED))


def fail(config, state):
    """What an object of theirs would do while it is made again."""
    raise AssertionError("the file was run")


@pytest.fixture
def published(tmp_path, monkeypatch):
    """(the model, its checkpoint as EgoVLP saves one)."""
    model = drawn(Dual())
    module = types.ModuleType("parse_config_dist_multi")
    module.ConfigParser = type("ConfigParser", (), {"__module__": module.__name__, "__setstate__": fail})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    config = module.ConfigParser()
    config._config = {"arch": {"type": "FrozenInTime"}, "n_gpu": 8}
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    state["module.text_model.embeddings.position_ids"] = torch.arange(12)[None]
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 3e-5}]}
    whole = {"arch": "FrozenInTime", "epoch": 1, "state_dict": state, "optimizer": optimizer, "config": config}
    torch.save({**whole, "monitor_best": 0.5}, tmp_path / "egovlp.pth")
    return model, tmp_path / "egovlp.pth"


def test_tokens_and_embeddings_are_those_of_the_reference(published):
    model, path = published
    section, params = egovlp.section(path), egovlp.load(path)
    found = tower_output(section, params, CLIPS)
    with torch.no_grad():
        tokens = model.video_model(torch_pixels(CLIPS, section))
        mask = torch.tensor(TEXT != 0).long()
        words = model.text_model(torch.tensor(TEXT), attention_mask=mask).last_hidden_state
        video, text = model.vid_proj(tokens[:, 0]), model.txt_proj(words[:, 0])
    np.testing.assert_allclose(found.tokens_BMD, tokens[:, 1:], atol=2e-5)
    np.testing.assert_allclose(found.cls_BD, tokens[:, 0], atol=2e-5)
    dual = model_of(section)
    output = jax.jit(lambda p: dual.apply({"params": p}, CLIPS, TEXT, train=False))(params)
    np.testing.assert_allclose(output.video_BE, torch.nn.functional.normalize(video), atol=2e-5)
    np.testing.assert_allclose(output.text_BE, torch.nn.functional.normalize(text), atol=2e-5)
    np.testing.assert_allclose(output.scale, 1 / 0.05, rtol=1e-6)


def test_sections_shapes_and_parameters_are_one_model_and_go_both_ways(published):
    section, _, config = check_protocol(egovlp, published[1], CLIPS, TEXT)
    assert section["name"] == "dual_encoder" and section["video"]["transformer"]["layout"] == "divided"
    tensors = read_checkpoint(published[1], skip=egovlp.SKIP)[0]
    assert config == egovlp.describe(tensors)
    back = egovlp.from_flax(egovlp.to_flax(tensors, config), config)
    assert back.keys() == tensors.keys() - {"text_model.embeddings.position_ids"}
    positions, cls = "video_model.pos_embed", "video_model.cls_token"
    for name in back.keys() - {positions, cls}:
        np.testing.assert_array_equal(back[name], tensors[name])
    np.testing.assert_array_equal(back[cls], tensors[cls] + tensors[positions][:, :1])
    np.testing.assert_array_equal(back[positions][:, 1:], tensors[positions][:, 1:])


def plain(section, but=("dtype", "remat", "layout", "vocab", "max_length")):
    """A section without what decides how fast it is computed, and without what `but` names."""
    if not isinstance(section, dict):
        return tuple(section) if isinstance(section, list | tuple) else section
    return {key: plain(value) for key, value in section.items() if key not in but}


def test_the_recipe_that_starts_from_it_has_its_model():
    """At the published sizes, but for words and lengths, which loading fits."""
    text = {"dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072, "vocab_size": 30_522}
    sizes = {"width": 768, "layers": 12, "mlp": 3072, "patch": [16, 16], "clip": [16, 224, 224], "embed": 256}
    section = egovlp.spec({**sizes, "text": {**text, "max_position_embeddings": 512}})
    recipe = adavid_egovlp.model()
    usual = {"video": {"transformer": {"activation": "gelu", "epsilon": 1e-6}}}
    usual["text"] = {"token_types": 0, "transformer": {"activation": "gelu"}}

    def filled(section, more):
        return (
            {**more, **{key: filled(value, more.get(key, {})) for key, value in section.items()}} if more else section
        )

    assert plain(filled(recipe, usual)) == plain(section)
    assert section["video"]["mean"] == parts.IMAGENET_PIXELS["mean"]


def test_other_models_and_unknown_sizes_are_refused(published):
    tensors = dict(read_checkpoint(published[1], skip=egovlp.SKIP)[0])
    with pytest.raises(ValueError, match="are not those of EgoVLP's dual encoder: KeyError.'vid_proj.0.weight'"):
        egovlp.describe({name: x for name, x in tensors.items() if not name.startswith("vid_proj")})
    with pytest.raises(ValueError, match="with 6 places are of no known size"):
        egovlp.describe({**tensors, "video_model.pos_embed": np.zeros((1, 7, WIDTH), np.float32)})
    with pytest.raises(ValueError, match=r"1 unused: video_model\.head\.weight"):
        extra = {**tensors, "video_model.head.weight": np.zeros((2, WIDTH), np.float32)}
        egovlp.to_flax(extra, egovlp.describe(extra))
    section = egovlp.spec(egovlp.describe(tensors))
    for key, value, words in (
        ("temperature", {"init": 0.07, "max_scale": 100.0, "learnable": True}, "model.temperature is .*0.07"),
        ("text_projection", {"bias": True}, "model.text_projection is {'bias': True}, and in a EgoVLP folder"),
    ):
        with pytest.raises(ValueError, match=words):
            egovlp.config_for({**section, key: value}, (FRAMES, 16, 16))
