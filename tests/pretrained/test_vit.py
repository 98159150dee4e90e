"""ViT as the real implementation has it, from its folders and from the names that timm gives its tensors."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers

from tests.pretrained.towers import check_protocol, clip_of, drawn, model_of, real_again, torch_pixels, tower_output
from vidlang.pretrained import vit
from vidlang.pretrained._safetensors import read_folder, write_file

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
IMAGES = clip_of((2, 1, 24, 24))


def saved(folder, name="ViTModel", **changes):
    """A small real model in a folder."""
    config = transformers.ViTConfig(**{**SIZES, "image_size": 24, "patch_size": 8, "num_labels": 5, **changes})
    config._attn_implementation = "eager"
    model = drawn(getattr(transformers, name)(config))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("changes", [{}, {"qkv_bias": False, "hidden_act": "gelu_new", "layer_norm_eps": 1e-3}])
def test_tokens_and_cls_are_those_of_the_real_tower(changes, tmp_path):
    model = saved(tmp_path, **changes)
    if not changes:
        section, params, config = check_protocol(vit, tmp_path, IMAGES)
    section, params = vit.section(tmp_path), vit.load(tmp_path)
    with torch.no_grad():
        expected = model(torch_pixels(IMAGES, section)[:, 0]).last_hidden_state.numpy()
    found = tower_output(section, params, IMAGES)
    np.testing.assert_allclose(found.tokens_BMD, expected[:, 1:], atol=2e-5)
    np.testing.assert_allclose(found.pooled_BD, expected[:, 0], atol=2e-5)
    if not changes:
        with torch.no_grad():
            again = real_again(vit, params, config, tmp_path / "again")(torch_pixels(IMAGES, section)[:, 0])
        np.testing.assert_allclose(again.last_hidden_state, expected, atol=2e-5)


def test_logits_are_those_of_the_real_classifier(tmp_path):
    model = saved(tmp_path, "ViTForImageClassification")
    section, params, config = check_protocol(vit, tmp_path, IMAGES)
    assert section["name"] == "classifier" and section["heads"] == {"label": 5}
    pixels = torch_pixels(IMAGES, section)[:, 0]
    with torch.no_grad():
        expected = model(pixels).logits.numpy()
        again = real_again(vit, params, config, tmp_path / "again")(pixels).logits.numpy()
    found = jax.jit(lambda p: model_of(section).apply({"params": p}, IMAGES, train=False).logits["label"])(params)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    np.testing.assert_allclose(again, expected, atol=2e-5)


def test_what_leaves_is_what_came_but_for_the_position_of_cls(tmp_path):
    saved(tmp_path, "ViTForImageClassification")
    tensors, config = read_folder(tmp_path), json.loads((tmp_path / "config.json").read_text())
    back = vit.from_flax(vit.to_flax(tensors, config), config)
    assert back.keys() == set(tensors)
    cls, positions = "vit.embeddings.cls_token", "vit.embeddings.position_embeddings"
    for name in back.keys() - {cls, positions}:
        np.testing.assert_array_equal(back[name], tensors[name])
    np.testing.assert_array_equal(back[positions][:, 1:], tensors[positions][:, 1:])
    assert not back[positions][:, 0].any()
    np.testing.assert_array_equal(back[cls], tensors[cls] + tensors[positions][:, :1])


def timm_names(tensors):
    """The tensors of a real classifier as timm calls them: query, key and value are one there."""
    found = {}
    short = {
        "vit.embeddings.cls_token": "cls_token",
        "vit.embeddings.position_embeddings": "pos_embed",
        "vit.embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
        "vit.embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
        "vit.layernorm.weight": "norm.weight",
        "vit.layernorm.bias": "norm.bias",
        "classifier.weight": "head.weight",
        "classifier.bias": "head.bias",
    }
    for theirs, name in short.items():
        found[name] = tensors[theirs]
    for n in range(SIZES["num_hidden_layers"]):
        for end in ("weight", "bias"):
            old, new = f"vit.encoder.layer.{n}", f"blocks.{n}"
            qkv = [tensors[f"{old}.attention.attention.{part}.{end}"] for part in ("query", "key", "value")]
            found[f"{new}.attn.qkv.{end}"] = np.concatenate(qkv)
            found[f"{new}.attn.proj.{end}"] = tensors[f"{old}.attention.output.dense.{end}"]
            found[f"{new}.norm1.{end}"] = tensors[f"{old}.layernorm_before.{end}"]
            found[f"{new}.norm2.{end}"] = tensors[f"{old}.layernorm_after.{end}"]
            found[f"{new}.mlp.fc1.{end}"] = tensors[f"{old}.intermediate.dense.{end}"]
            found[f"{new}.mlp.fc2.{end}"] = tensors[f"{old}.output.dense.{end}"]
    return found


@pytest.mark.parametrize("kind", ["file", "pth", "folder"])
def test_timms_names_are_the_same_model(kind, tmp_path):
    hf = tmp_path / "hf"
    model = saved(hf, "ViTForImageClassification", hidden_size=128, num_attention_heads=2, layer_norm_eps=1e-6)
    tensors = timm_names(read_folder(hf))
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.2]
    path = {"file": tmp_path / "vit.safetensors", "pth": tmp_path / "vit.pth", "folder": tmp_path}[kind]
    if kind == "pth":
        torch.save({name: torch.tensor(x) for name, x in tensors.items()}, path)
    else:
        write_file(tmp_path / "model.safetensors" if kind == "folder" else path, tensors)
    if kind == "folder":
        timm = {"architecture": "vit_small_patch8_24", "num_classes": 5, "pretrained_cfg": {"mean": mean, "std": std}}
        (path / "config.json").write_text(json.dumps(timm))
    section, params = vit.section(path), vit.load(path)
    assert section["video"]["mean"] == (tuple(mean) if kind == "folder" else (0.5,))
    assert vit.clip(path) == (1, 24, 24)
    jax.tree.map(np.testing.assert_array_equal, params, vit.load(hf))
    assert {**section, "video": {**section["video"], "mean": (0.5,), "std": (0.5,)}} == vit.section(hf)
    config = {**vit.describe(tensors), "image_mean": mean}
    back = vit.from_flax(vit.to_flax(tensors, config), config)
    assert back.keys() == tensors.keys()
    np.testing.assert_array_equal(back["blocks.1.attn.qkv.weight"], tensors["blocks.1.attn.qkv.weight"])
    with torch.no_grad():
        expected = model(torch_pixels(IMAGES, section)[:, 0]).logits.numpy()
    found = jax.jit(lambda p: model_of(section).apply({"params": p}, IMAGES, train=False).logits["label"])(params)
    np.testing.assert_allclose(found, expected, atol=5e-5)


def test_pixels_are_normalised_as_the_preprocessor_says(tmp_path):
    saved(tmp_path)
    said = {"do_normalize": True, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.5]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    video = vit.section(tmp_path)["video"]
    assert video["mean"] == (0.1, 0.2, 0.3) and video["std"] == (0.5,)
    shifted = {"rescale_factor": 1 / 127.5, "offset": True, "do_normalize": False}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(shifted))
    video = vit.section(tmp_path)["video"]
    assert video["mean"] == (0.5,) and video["std"] == (0.5,)
    (tmp_path / "preprocessor_config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"preprocessor_config\.json cannot be read"):
        vit.section(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "mish"}, "activation 'mish' is not known"),
        ({"use_swiglu_ffn": True}, "has use_swiglu_ffn True, which this family does not know"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"num_channels": 4}, "num_channels 4"),
        ({"architectures": ["ViTForMaskedImageModeling"]}, "is of a ViTForMaskedImageModeling; this family reads"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"patch_size": "8"}, "has patch_size '8'"),
        ({"tensor_names": "keras"}, "tensor_names 'keras'"),
    ],
)
def test_settings_that_are_not_known_are_refused(changes, words):
    config = {"model_type": "vit", **SIZES, "image_size": 24, "patch_size": 8, **changes}
    with pytest.raises(ValueError, match=words):
        vit.spec(config)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pool": "mean"}, "model.video.pool is 'mean', and in a ViT folder 'cls'"),
        ({"tubelet": (2, 8, 8)}, r"video\.tubelet is \(2, 8, 8\)"),
        ({"layout": "divided"}, "transformer.layout is 'divided'"),
        ({"layer_scale": 0.1}, "transformer.layer_scale is 0.1"),
    ],
)
def test_sections_without_a_counterpart_are_refused_by_setting(changes, words):
    stack = {"layers": 2, "width": 32, "heads": 4, "mlp": 48, "remat": "full", "epsilon": 1e-12}
    tower = {"transformer": stack, "tubelet": (1, 8, 8), "pool": "cls"}
    assert vit.config_of({"video": tower}, (1, 24, 24))["image_size"] == 24
    for key, value in changes.items():
        (stack if key in ("layout", "layer_scale") else tower)[key] = value
    with pytest.raises(ValueError, match=words):
        vit.config_of({"video": tower}, (1, 24, 24))
    with pytest.raises(ValueError, match="model.name is 'dual_encoder'"):
        vit.config_of({"name": "dual_encoder", "video": tower}, (1, 24, 24))


def test_tensors_that_do_not_fit_and_parameters_without_a_place_are_refused(tmp_path):
    saved(tmp_path, qkv_bias=False)
    config, tensors = json.loads((tmp_path / "config.json").read_text()), dict(read_folder(tmp_path))
    with pytest.raises(ValueError, match=r"2 missing: embeddings\.position_embeddings\.cls, "):
        vit.to_flax({name: x for name, x in tensors.items() if "position" not in name}, config)
    with pytest.raises(ValueError, match=r"1 unused: embeddings\.extra"):
        vit.to_flax({**tensors, "embeddings.extra": np.zeros(1, np.float32)}, config)
    short = {"embeddings.position_embeddings": np.zeros((1, 9, 32), np.float32)}
    with pytest.raises(ValueError, match="1 misshapen: .*places"):
        vit.to_flax({**tensors, **short}, config)
    params = vit.to_flax(tensors, config)
    params["video_encoder"]["temporal"] = np.ones((1, 32), np.float32)
    with pytest.raises(ValueError, match="temporal is not 0 everywhere, and an image has no position in time"):
        vit.from_flax(params, config)
    params["video_encoder"]["temporal"] = np.zeros((2, 32), np.float32)
    with pytest.raises(ValueError, match=r"temporal is \(2, 32\), not \(1, 32\)"):
        vit.from_flax(params, config)
    params["video_encoder"]["temporal"] = np.zeros((1, 32), np.float32)
    params["video_encoder"]["stack"]["layers"]["attention"]["query"]["bias"][0, 0, 0] = 1
    with pytest.raises(ValueError, match="query/bias is not 0 everywhere, and published models have none"):
        vit.from_flax(params, config)
