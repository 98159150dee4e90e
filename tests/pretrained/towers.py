"""Small real towers with drawn weights, and what vidlang makes of the same clips by the parameters that it reads."""

import json

import flax.linen as nn
import jax
import numpy as np
import torch
import transformers

from vidlang.core.config import load_module
from vidlang.core.tree import flatten_paths, nest
from vidlang.pretrained._names import left_in_files
from vidlang.pretrained._publish import publish

RNG = np.random.default_rng(0)


def drawn(model, seed=0):
    """The model with every parameter away from zero and from one, for evaluation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_scale = parameter.ndim == 1 and name.endswith("weight")
            small = min(0.3, 1.7 / parameter.shape[-1] ** 0.5) if parameter.ndim > 1 else 0.2
            parameter.copy_(1 + 0.2 * noise if is_scale else small * noise)
    return model.eval()


def clip_of(shape, seed=1):
    """Pixels of clips, uint8 [B, T, H, W, C]."""
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3)).astype(np.uint8)


def torch_pixels(video_BTHWC, section):
    """What the real classes of videos are given, [B, T, C, H, W]."""
    x = video_BTHWC.astype(np.float64) / 255
    x = (x - np.array(section["video"]["mean"])) / np.array(section["video"]["std"])
    return torch.tensor(x.transpose(0, 1, 4, 2, 3), dtype=torch.float32)


def with_dtype(section, dtype="float32"):
    """The section, computed in this dtype."""
    if not isinstance(section, dict):
        return section
    found = {key: with_dtype(value, dtype) for key, value in section.items()}
    return found | {"dtype": dtype} if "layers" in section else found


def model_of(section, default="video"):
    """vidlang's model of a section, in float32."""
    options = {key: value for key, value in with_dtype(section).items() if key != "name"}
    if "name" not in section:
        return load_module("models", default).Model(**options[default])
    return load_module("models", section["name"]).Model(**options)


def tower_output(section, params, video):
    """The output of the video tower alone."""
    model = model_of({"video": section["video"]})
    apply = jax.jit(lambda p, v: model.apply({"params": p}, v, train=False))
    return apply(params["video_encoder"], video)


def declared(section, *inputs):
    """Shapes of the parameters that the model of a section has, by path."""
    model = model_of(section)
    init = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs, train=False))
    params = nn.unbox(init["params"])
    params = params if "name" in section else {"video_encoder": params}
    return {path: tuple(leaf.shape) for path, leaf in flatten_paths(params).items()}


def check_protocol(family, path, *inputs):
    """What every family's folder gives: parameters where the model has them, and bit for bit the way back."""
    section, params, shapes = family.section(path), family.load(path), family.shapes(path)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)
    found = {name: tuple(leaf.shape) for name, leaf in flatten_paths(params).items()}
    assert found == declared(section, *inputs)
    assert family.clip(path) == inputs[0].shape[1:4]
    with left_in_files():
        lazy = family.load(path)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), y), lazy, params)
    config = getattr(family, "config_of", getattr(family, "config_for", None))(section, family.clip(path))
    assert family.spec(config) == section
    json.dumps(config)
    # Parameters of training, at whatever numbers, except those that the published model has not.
    moved = nest({name: leaf + np.float32(0.25) * (leaf != 0) for name, leaf in flatten_paths(params).items()})
    again = family.to_flax(family.from_flax(moved, config), config)
    jax.tree.map(np.testing.assert_array_equal, again, moved)
    return section, params, config


def real_again(family, params, config, folder):
    """The real class, read from the folder that vidlang writes; the model came from the folder that it is in."""
    name = family.__name__.rsplit(".", 1)[-1]
    publish(params, family.spec(config), family.clip(folder.parent), folder, name)
    found = getattr(transformers, config["architectures"][0])
    model, said = found.from_pretrained(folder, output_loading_info=True)
    lacking = [name for name in said["missing_keys"] if "pooler.dense" not in name]
    assert not lacking and not said["unexpected_keys"] and not said["mismatched_keys"]
    return model.eval()
