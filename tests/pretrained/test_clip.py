"""CLIP as transformers has it, and as OpenAI and OpenCLIP name it: read, compared, and written again."""

import json

import flax.linen as nn
import jax
import numpy as np
import pytest
import torch
import transformers

from tests.pretrained.clips import (
    EOS,
    LENGTH,
    PADDED,
    TEXT,
    VALID,
    VOCAB,
    Blocks,
    computed,
    draw,
    encode_text,
    frames_of,
    pixels,
    text_parts,
    unit,
)
from tests.pretrained.text_towers import assert_same_trees, config_of
from vidlang.core.tree import flatten_paths
from vidlang.models import dual_encoder
from vidlang.pretrained import _open_clip, clip
from vidlang.pretrained._safetensors import read_folder, write_file

TOWER = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_act": "quick_gelu"}
VISION = {**TOWER, "hidden_size": 32, "intermediate_size": 48, "image_size": 24, "patch_size": 8}
WORDS = {**TOWER, "hidden_size": 16, "intermediate_size": 40, "vocab_size": VOCAB, "max_position_embeddings": LENGTH}
WORDS |= {"eos_token_id": EOS, "bos_token_id": 1, "pad_token_id": EOS}
CLIP = (1, 24, 24)


def real(vision=None, words=None, **changes):
    config = transformers.CLIPConfig(
        vision_config={**VISION, **(vision or {})}, text_config={**WORDS, **(words or {})}, projection_dim=20, **changes
    )
    config._attn_implementation = "eager"
    return draw(transformers.CLIPModel(config))


@pytest.fixture
def folder(tmp_path):
    model = real()
    model.save_pretrained(tmp_path)
    return model, tmp_path


def answers(model, section, video_BTHWC, text_BL=TEXT):
    with torch.no_grad():
        return model(
            pixel_values=pixels(video_BTHWC, section)[:, 0],
            input_ids=torch.tensor(text_BL),
            attention_mask=torch.tensor(VALID).long(),
        )


def assert_the_same(model, section, params, text_BL=TEXT):
    video_BTHWC = frames_of(CLIP)
    expected = answers(model, section, video_BTHWC, text_BL)
    whole, video, text = computed(section, params, video_BTHWC)
    np.testing.assert_allclose(video.pooled_BD, expected.vision_model_output.pooler_output, atol=2e-5)
    np.testing.assert_allclose(text.pooled_BD, expected.text_model_output.pooler_output, atol=2e-5)
    np.testing.assert_allclose(whole.video_BE, expected.image_embeds, atol=2e-5)
    np.testing.assert_allclose(whole.text_BE, expected.text_embeds, atol=2e-5)
    logits = whole.scale * whole.text_BE @ whole.video_BE.T
    np.testing.assert_allclose(logits, expected.logits_per_text, atol=1e-4)
    # The real tower normalises only cls, and the text tower all: tokens of texts, padding aside.
    tokens = expected.text_model_output.last_hidden_state.numpy()
    np.testing.assert_allclose(np.asarray(text.tokens_BLD)[VALID], tokens[VALID], atol=2e-5)
    norm = model.vision_model.post_layernorm
    tokens = norm(expected.vision_model_output.last_hidden_state)[:, 1:].detach().numpy()
    np.testing.assert_allclose(video.tokens_BMD, tokens, atol=2e-5)


def test_towers_and_logits_are_those_of_the_real_model(folder):
    model, path = folder
    assert clip.clip(path) == CLIP
    assert_the_same(model, clip.section(path), clip.load(path))


def test_texts_padded_in_either_way_have_the_same_vector(folder):
    """OpenAI pads with 0, transformers with ends of text; here padding is always 0."""
    model, path = folder
    section, params = clip.section(path), clip.load(path)
    assert_the_same(model, section, params, PADDED)
    assert_the_same(model, section, params, np.where(VALID, TEXT, EOS))
    model.text_model.eos_token_id = 2  # old files say so, and mean the largest id
    assert_the_same(model, section, params, PADDED)


@pytest.mark.parametrize("changes", [{"hidden_act": "gelu", "layer_norm_eps": 1e-2}, {"hidden_act": "gelu_new"}])
def test_other_settings_are_those_of_the_real_model(changes, tmp_path):
    model = real(changes, changes)
    model.save_pretrained(tmp_path)
    assert_the_same(model, clip.section(tmp_path), clip.load(tmp_path))


def test_shapes_are_those_of_the_parameters_and_of_the_model(folder):
    _, path = folder
    params, shapes = clip.load(path), clip.shapes(path)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)
    options = {key: value for key, value in clip.section(path).items() if key != "name"}
    made = jax.eval_shape(
        lambda: dual_encoder.Model(**options).init(jax.random.key(0), frames_of(CLIP), PADDED, train=False)
    )
    made = flatten_paths(nn.unbox(made["params"]))
    assert {name: x.shape for name, x in made.items()} == {name: x.shape for name, x in flatten_paths(params).items()}


@pytest.mark.parametrize("names", ["hf", "openai"])
def test_out_and_in_again_is_bitwise_the_same(names, folder):
    _, path = folder
    config, params = {**config_of(path), "tensor_names": names}, clip.load(path)
    tensors = clip.from_flax(params, config)
    assert_same_trees(clip.to_flax(tensors, config), params)
    if names == "hf":
        published = read_folder(path)
        assert set(tensors) == set(published)
        cls, places = "vision_model.embeddings.class_embedding", "vision_model.embeddings.position_embedding.weight"
        for name in tensors.keys() - {cls, places}:
            np.testing.assert_array_equal(tensors[name], published[name])
        # The one rule: the position of cls is part of cls.
        np.testing.assert_array_equal(tensors[cls], published[cls] + published[places][0])
        np.testing.assert_array_equal(tensors[places][1:], published[places][1:])
        np.testing.assert_array_equal(tensors[places][0], 0)


def test_what_is_written_is_read_by_the_real_model(folder, tmp_path):
    _, path = folder
    section, params, new = clip.section(path), clip.load(path), tmp_path / "new"
    config = clip.config_of(section, CLIP)
    assert clip.spec(config) == section
    new.mkdir()
    (new / "config.json").write_text(json.dumps(config))
    write_file(new / "model.safetensors", clip.from_flax(params, config))
    model, info = transformers.CLIPModel.from_pretrained(new, output_loading_info=True, attn_implementation="eager")
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert_the_same(model.eval(), section, params, PADDED)


def test_what_has_no_counterpart_is_named(folder):
    _, path = folder
    section, params = clip.section(path), clip.load(path)

    def refused(match, clip_THW=CLIP, **changes):
        with pytest.raises(ValueError, match=match):
            clip.config_of({**section, **changes}, clip_THW)

    video, text = section["video"], section["text"]
    refused("clips .4, 24, 24., which avion", (4, 24, 24))
    refused("of squares", (1, 24, 16))
    refused("video.pool is 'mean'", video={**video, "pool": "mean"})
    refused("video.stem_bias is True", video={**video, "stem_bias": True})
    refused("video.tubelet", video={**video, "tubelet": (2, 8, 8)})
    refused("text.pool is 'mean'", text={**text, "pool": "mean"})
    refused("causal is False", text={**text, "transformer": {**text["transformer"], "causal": False}})
    refused("video_projection is {'bias': True}", video_projection={"bias": True})
    refused("temperature", temperature={**section["temperature"], "bias": -10.0})
    refused("model.name is ''", name="")
    params["video_encoder"]["temporal"] += 1
    with pytest.raises(ValueError, match="an image has no position in time"):
        clip.from_flax(params, config_of(path))


def test_settings_that_are_not_known_are_refused():
    config = {"model_type": "clip", "vision_config": VISION, "text_config": WORDS}
    for match, changes in {
        "vision_config has use_swiglu True": {"vision_config": {**VISION, "use_swiglu": True}},
        "activation 'mish' is not known": {"text_config": {**WORDS, "hidden_act": "mish"}},
        "has num_channels 4": {"vision_config": {**VISION, "num_channels": 4}},
        "hidden_size of the text_config twice": {"text_config_dict": {"hidden_size": 64}},
        "has new_setting 3": {"new_setting": 3},
        "of a CLIPVisionModel": {"architectures": ["CLIPVisionModel"]},
    }.items():
        with pytest.raises(ValueError, match=match):
            clip.spec({**config, **changes})


class Visual(torch.nn.Module):
    def __init__(self, width, heads, patch, places, embed):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = torch.nn.Parameter(torch.empty(width))
        self.positional_embedding = torch.nn.Parameter(torch.empty(places + 1, width))
        self.ln_pre, self.ln_post = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.transformer = Blocks(width, heads, 4 * width)
        self.proj = torch.nn.Parameter(torch.empty(width, embed))

    def forward(self, x_BCHW, quick: bool):
        x = self.conv1(x_BCHW).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(x.shape[0], 1, -1), x], 1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x), quick)[:, 0]) @ self.proj


class OpenAI(torch.nn.Module):
    """CLIP with OpenAI's names, written anew."""

    def __init__(self, quick=True, heads=(2, 1)):
        super().__init__()
        self.quick = quick
        self.visual = Visual(128, heads[0], 8, 9, 20)
        text_parts(self, 64, heads[1])
        self.logit_scale = torch.nn.Parameter(torch.empty(()))

    def forward(self, image_BCHW, text_BL):
        return self.visual(image_BCHW, self.quick), encode_text(self, text_BL, self.quick)


def assert_openai(model, path):
    section, params = clip.section(path), clip.load(path)
    video_BTHWC = frames_of(clip.clip(path))
    with torch.no_grad():
        image_BE, text_BE = model(pixels(video_BTHWC, section)[:, 0], torch.tensor(PADDED))
    whole, _, _ = computed(section, params, video_BTHWC)
    np.testing.assert_allclose(whole.video_BE, unit(image_BE), atol=2e-5)
    np.testing.assert_allclose(whole.text_BE, unit(text_BE), atol=2e-5)
    np.testing.assert_allclose(whole.scale, np.exp(1.7), rtol=1e-6)
    return section


MARKS = {
    "input_resolution": torch.tensor(24),
    "context_length": torch.tensor(LENGTH),
    "vocab_size": torch.tensor(VOCAB),
}


@pytest.mark.filterwarnings("ignore")  # of tracing
def test_openai_s_archives_are_read_without_running_them(tmp_path):
    model = draw(OpenAI())
    for name, number in MARKS.items():
        model.register_buffer(name, number)
    inputs = torch.zeros(1, 3, 24, 24), torch.zeros(1, LENGTH, dtype=torch.long)
    torch.jit.trace(model, inputs).save(str(tmp_path / "clip.pt"))
    section = assert_openai(model, tmp_path / "clip.pt")
    assert section["video"]["transformer"]["heads"] == 2 and section["embed"] == 20
    torch.save(model.state_dict(), tmp_path / "state.pt")
    assert assert_openai(model, tmp_path / "state.pt") == section


@pytest.mark.parametrize("quick", [False, True])
def test_openclip_is_what_its_config_says(quick, tmp_path):
    model = draw(OpenAI(quick, (4, 2)))
    model_cfg = {"embed_dim": 20, "vision_cfg": {"head_width": 32, "layers": 2}, "text_cfg": {"heads": 2}}
    model_cfg |= {"quick_gelu": True} if quick else {}
    said = {"model_cfg": model_cfg, "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.5] * 3}}
    (tmp_path / _open_clip.CONFIG).write_text(json.dumps(said))
    torch.save(model.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    section = assert_openai(model, tmp_path)
    assert section["video"]["mean"] == (0.5, 0.4, 0.3) and section["video"]["std"] == (0.5,)
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "epoch_9.pt")
    assert assert_openai(model, tmp_path / "epoch_9.pt") == section
    (tmp_path / "open_clip_pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match="and no weights"):
        clip.section(tmp_path)


def test_a_stem_of_another_kind_is_refused(folder):
    _, path = folder
    tensors = {name: np.array(tensor) for name, tensor in read_folder(path).items()}
    tensors["vision_model.embeddings.patch_embedding.weight"].shape = (32, 192)
    with pytest.raises(ValueError, match=r"1 misshapen: vision_model\.embeddings\.patch_embedding"):
        clip.to_flax(tensors, config_of(path))


def test_files_that_do_not_say_what_they_are_are_refused(tmp_path):
    state, path = draw(OpenAI()).state_dict(), tmp_path / "x.pt"
    torch.save(state, path)
    with pytest.raises(ValueError, match="is none of OpenAI's own files"):
        clip.load(path)
    (tmp_path / _open_clip.CONFIG).write_text(json.dumps({"model_cfg": {"vision_cfg": {"timm_model_name": "vit"}}}))
    with pytest.raises(ValueError, match="timm_model_name 'vit' in its vision_cfg"):
        clip.load(path)
    (tmp_path / _open_clip.CONFIG).unlink()
    for change, match in (
        ({"visual.attnpool.k_proj.weight": torch.ones(1)}, r"1 unused: visual\.attnpool"),
        ({"visual.conv1.weight": None}, "not those of a CLIP whose vision tower is a transformer"),
        ({"ln_final.bias": None}, r"1 missing: ln_final\.bias"),
        ({"text_projection": torch.ones(3, 20)}, "1 misshapen: text_projection"),
    ):
        torch.save({k: v for k, v in {**state, **MARKS, **change}.items() if v is not None}, path)
        with pytest.raises(ValueError, match=match):
            clip.load(path)
