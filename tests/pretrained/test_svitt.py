"""SViTT's checkpoints against a small model of the published names."""

import collections

import flax.linen as nn
import jax
import numpy as np
import pytest
import torch

from configs import svitt as recipe
from tests.pretrained.svitt_reference import SViTT
from tests.pretrained.text_towers import TEXT, VALID, VOCAB, assert_same_trees, drawn
from vidlang.core.tree import flatten_paths
from vidlang.models import fusion
from vidlang.ops.dials import OFF
from vidlang.pretrained import svitt

FRAMES, SIDE, PATCH = 2, 2, 16
VISION = {"layers": 2, "width": 48, "heads": 3, "mlp": 64, "grid": (FRAMES, SIDE), "patch": PATCH}
WORDS = {"vocab_size": VOCAB, "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2}
WORDS |= {"intermediate_size": 64, "max_position_embeddings": 16}
VIDEO = np.random.default_rng(0).integers(0, 256, (3, FRAMES, SIDE * PATCH, SIDE * PATCH, 3), np.uint8)


def make(crosses=48, **changes):
    """The reference, whose cross-attention reads tokens of the video's width."""
    model = SViTT({**VISION, **changes}, WORDS, 1, 8)
    cross = model.text_encoder.bert.encoder.layer[2].crossattention.self
    cross.key, cross.value = torch.nn.Linear(crosses, 128), torch.nn.Linear(crosses, 128)
    model = drawn(model)
    with torch.no_grad():
        model.temp.fill_(0.05)
    return model


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """(the reference, its checkpoint)."""
    model, path = make(), tmp_path_factory.mktemp("svitt") / "ckpt_09.pth"
    others = {"epoch": 9, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}, "scaler": {"scale": 65536.0}}
    torch.save({"model": model.state_dict(), **others}, path)
    return model, path


def ours(section):
    """The fusion model of a section, in float32."""
    section = {name: value for name, value in section.items() if name != "name"}
    for tower in ("video", "text"):
        transformer = {**section[tower]["transformer"], "dtype": "float32"}
        section[tower] = {**section[tower], "transformer": transformer}
    return fusion.Model(**section)


def words_of(model, tokens_BND, text_BL):
    return model.word_head(model._read(tokens_BND, text_BL, OFF).x_BLD, model._word_table())


@pytest.mark.slow
def test_embeddings_pairs_and_words_are_those_of_the_reference(published):
    model, path = published
    params, module = svitt.load(path), ours(svitt.section(path))
    variables = {"params": params}
    found = module.apply(variables, VIDEO, TEXT, train=False)
    tokens_BND = module.apply(variables, VIDEO, method="video_tokens")
    words_BLV = module.apply(variables, tokens_BND, TEXT, method=words_of)
    with torch.no_grad():
        pixels = torch.tensor(VIDEO).permute(0, 1, 4, 2, 3).float() / 255 * 2 - 1
        tokens, video_BE = model.video(pixels)
        mask = torch.tensor(np.where(VALID, 0.0, -10_000.0)[:, None, None], dtype=torch.float32)
        read, text_BE = model.text(torch.tensor(TEXT), mask)
        match_B2, expected_BLV = model.fuse(read, mask, tokens)
    np.testing.assert_allclose(tokens_BND, tokens.numpy(), atol=2e-5)
    np.testing.assert_allclose(found.video_BE, video_BE.numpy(), atol=2e-5)
    np.testing.assert_allclose(found.text_BE, text_BE.numpy(), atol=2e-5)
    np.testing.assert_allclose(found.match_M2, match_B2.numpy(), atol=2e-5)
    np.testing.assert_allclose(words_BLV, expected_BLV.numpy(), atol=2e-5)
    np.testing.assert_allclose(found.scale, 1 / 0.05, rtol=1e-6)


def test_shapes_and_clip_are_those_of_the_model(published):
    path = published[1]
    params, shapes, section = svitt.load(path), svitt.shapes(path), svitt.section(path)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)
    assert svitt.clip(path) == (FRAMES, SIDE * PATCH, SIDE * PATCH)
    keys = {"params": jax.random.key(0), "words": jax.random.key(1)}
    made = jax.eval_shape(lambda: nn.unbox(ours(section).init(keys, VIDEO[:1], TEXT[:1], train=False)["params"]))
    known, given = flatten_paths(made), flatten_paths(params)
    assert {name: x.shape for name, x in known.items()} == {name: x.shape for name, x in given.items()}


def test_out_and_in_again_is_bitwise_the_same(published):
    model, path = published
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    config, params = svitt.measure(state), svitt.load(path)
    tensors = svitt.from_flax(params, config)
    left = {name for name in state if name not in tensors}
    assert all(name.endswith("relative_position_index") or "predictions.decoder" in name for name in left)
    for name, tensor in tensors.items():
        np.testing.assert_allclose(tensor, state[name], rtol=1e-6 if name == "temp" else 0)
    assert_same_trees(svitt.to_flax(tensors, config), params)
    # A key's bias changes nothing, and is no part of what is written.
    other = jax.tree.map(np.copy, params)
    other["video_encoder"]["stack"]["layers"]["attention"]["key"]["bias"][:] = 1
    assert {name: x.tobytes() for name, x in svitt.from_flax(other, config).items()} == {
        name: x.tobytes() for name, x in tensors.items()
    }


def test_temperatures_come_back_bitwise_the_same(published):
    params = svitt.load(published[1])
    config = svitt.measure({name: tensor.numpy() for name, tensor in published[0].state_dict().items()})
    for scale in np.linspace(0.7, 6.9, 40, dtype=np.float32):
        tensors = svitt.from_flax({**params, "log_scale": scale}, config)
        assert svitt.to_flax(tensors, config)["log_scale"] == scale


def test_a_model_for_retrieval_has_no_head_of_words(published):
    model, path = published
    state = {}
    for name, tensor in model.state_dict().items():
        if "cls.predictions" not in name:
            state[name.replace("text_encoder.bert.", "text_encoder.")] = tensor.numpy()
    config = svitt.measure(state)
    params, whole = svitt.to_flax(state, config), svitt.load(path)
    assert "words" not in svitt.spec(config)
    assert_same_trees(params, {name: value for name, value in whole.items() if name != "word_head"})
    assert set(svitt.from_flax(params, config)) == {k for k in state if not k.endswith("relative_position_index")}


def test_frames_and_size_are_told_by_the_tables(published):
    state = {name: tensor.numpy() for name, tensor in published[0].state_dict().items()}
    for frames, side in ((1, 1), (1, 14), (4, 14), (16, 14), (5, 14), (4, 16), (3, 7)):
        rows = (2 * frames - 1) * (2 * side - 1) ** 2 + 3
        tokens = frames * side**2 + 1
        given = {**state, svitt.TABLE: np.zeros((rows, 3)), svitt.INDEX: np.broadcast_to(0, (tokens, tokens))}
        found = svitt.measure(given)
        assert (found["frames"], found["side"]) == (frames, side)
        del given[svitt.INDEX]
        if side == 14:
            assert svitt.measure(given)["frames"] == frames
        else:
            with pytest.raises(ValueError, match="14 patches a side"):
                svitt.measure(given)


def test_what_is_not_known_is_refused(published):
    state = {name: tensor.numpy() for name, tensor in published[0].state_dict().items()}
    config = svitt.measure(state)
    zeros = {**state, "temporal_embeddings": np.zeros((1, 4, 1, 48), np.float32)}
    assert_same_trees(svitt.to_flax(zeros, config), svitt.to_flax(state, config))
    for changes, match in (
        ({"temporal_embeddings": np.ones((1, 4, 1, 48), np.float32)}, "add_temporal_embed=False"),
        ({"temporal_vision_encoder.layer.0.output.dense.bias": np.ones(48)}, "1 unused: temporal_vision"),
        ({"text_encoder.cls.predictions.decoder.bias": np.ones(VOCAB, np.float32)}, "decoder.bias is not"),
    ):
        with pytest.raises(ValueError, match=match):
            svitt.to_flax({**state, **changes}, config)
    with pytest.raises(ValueError, match="there is no tensor vision_proj.weight"):
        svitt.measure({name: x for name, x in state.items() if name != "vision_proj.weight"})
    with pytest.raises(ValueError, match="twice, with bert in their names"):
        svitt.measure({**state, "text_encoder.embeddings.LayerNorm.bias": np.ones(128)})


def base():
    """The sizes of the published model."""
    config = {"frames": 4, "side": 14, "patch": 16, "vision_layers": 12, "vision_width": 768, "vision_heads": 12}
    config |= {"vision_mlp": 3072, "layer_scale": 1, "vocab": 30_522, "positions": 512, "token_types": 2}
    return {
        **config,
        "text_layers": 9,
        "fusion_layers": 3,
        "text_width": 768,
        "text_mlp": 3072,
        "embed": 256,
        "words": 1,
    }


def differences(one, other, path=""):
    """Paths at which two sections differ."""
    if isinstance(one, collections.abc.Mapping) and isinstance(other, collections.abc.Mapping):
        return {found for key in {*one, *other} for found in differences(one.get(key), other.get(key), f"{path}/{key}")}
    return set() if one == other else {path}


def test_the_recipe_is_the_published_model_but_for_what_is_named_here():
    found = differences(svitt.spec(base()), recipe.model())
    how_it_is_computed = {"/video/transformer/dtype", "/video/transformer/remat", "/text/transformer/dtype"}
    how_it_is_trained = {"/matching"}
    the_default = {"/text/transformer/activation"}
    # It compares cls tokens, as the paper says, and counts words that no text has.
    on_purpose = {"/video/pool", "/video/cls", "/video/norm_pooled", "/text/vocab"}
    assert found <= how_it_is_computed | how_it_is_trained | the_default | on_purpose | {"/video/transformer/epsilon"}
