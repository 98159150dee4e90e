"""Each recipe begins where its paper began, given small weights in the form in which the large ones are published."""

import importlib
from types import SimpleNamespace

import flax.linen as nn
import jax
import numpy as np
import pytest
import torch
import transformers

from tests.pretrained.towers import drawn
from vidlang.core.sharding import make_mesh, use_mesh
from vidlang.core.tree import flatten_paths
from vidlang.pretrained import avion, bert, clip, egovlp, svitt, videomae
from vidlang.train import build
from vidlang.train.check import check_recipe
from vidlang.train.initial import awaited, take_params
from vidlang.train.origins import origins
from vidlang.train.recipe import read_recipe

WORDS = 90  # of which recipes count 96
TOWER = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256}
# What AVION's code subtracts, of which the first is a slip of theirs and what the weights are used to.
MEAN = (108.3272985 / 255, 116.7460125 / 255, 104.09373615 / 255)
IMAGE = {"image_size": 32, "patch_size": 16}


def stage_of(name, index, words="tiny", **model):
    """A stage of a recipe's tiny variant, as plain values; `model` replaces settings of both towers' layers."""
    stage = importlib.import_module(f"configs.{name}").get_config(words).stages[index].to_dict()
    for part in {"video", "text"} & stage["model"].keys():
        stage["model"][part]["transformer"] |= model
    return stage


def begin(stage, *weights):
    """(the state that the stage begins with, what the log says of it), after the check that comes before training."""
    config = {"name": "one", "seed": 0, "stages": ({**stage, "init_from": weights},)}
    recipe = read_recipe(config)
    (program,) = check_recipe(recipe)
    stage, found = recipe.stages[0], origins(recipe.stages, 0)
    with use_mesh(mesh := make_mesh({"data": -1})):
        state = program.born(mesh, 0, blank=awaited(found, stage, program.params))
        state, said = take_params(state, found, (), stage, program.fields, mesh)
    return {name: np.asarray(leaf) for name, leaf in flatten_paths(state.params).items()}, said


def same(found, theirs, but=()):
    """All that the weights have is what the stage begins with, but for these paths."""
    for name, leaf in flatten_paths(theirs).items():
        if not name.startswith(tuple(but)):
            np.testing.assert_array_equal(found[name], leaf, err_msg=name)


def checkpoint(family, config, clip_THW, path, key):
    """A file as the papers' authors publish theirs, of random numbers; the parameters that it is read as."""
    section = family.spec(config)
    model = build.model(SimpleNamespace(model=section))
    inputs = np.zeros((1, *clip_THW, 3), np.uint8), np.ones((1, 4), np.int32)
    shapes = nn.unbox(jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs, train=False))["params"])
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32) * np.float32(0.1), shapes)
    tensors = {f"module.{name}": torch.tensor(x) for name, x in family.from_flax(params, config).items()}
    torch.save({key: tensors}, path)
    return family.load(path)


@pytest.fixture
def clip_folder(tmp_path):
    vision = {**TOWER, **IMAGE, "hidden_act": "quick_gelu"}
    words = {**TOWER, "vocab_size": WORDS, "max_position_embeddings": 24, "eos_token_id": WORDS - 1}
    config = transformers.CLIPConfig(vision_config=vision, text_config=words, projection_dim=48)
    drawn(transformers.CLIPModel(config)).save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


@pytest.fixture
def beit_and_bert(tmp_path):
    config = transformers.BeitConfig(
        **TOWER, **IMAGE, use_relative_position_bias=True, use_mean_pooling=True, num_labels=5
    )
    drawn(transformers.BeitForImageClassification(config)).save_pretrained(tmp_path / "beit")
    seven = {**TOWER, "num_hidden_layers": 7}
    config = transformers.BertConfig(**seven, vocab_size=WORDS, max_position_embeddings=24)
    drawn(transformers.BertForMaskedLM(config)).save_pretrained(tmp_path / "bert")
    return f"beit:{tmp_path}/beit:video_encoder", f"bert:{tmp_path}/bert"


def test_avion_starts_from_clip(clip_folder):
    stage = stage_of("avion_ego4d", 0)
    found, said = begin(stage, f"clip:{clip_folder}")
    theirs = clip.load(clip_folder)
    fitted = ("video_encoder/temporal", "video_encoder/spatial", "text_encoder/words", "text_encoder/positions")
    same(found, theirs, but=(*fitted, "video_projection", "text_projection", "log_scale"))
    np.testing.assert_array_equal(
        found["text_encoder/words/table"][:WORDS], flatten_paths(theirs)["text_encoder/words/table"]
    )
    assert not found["video_encoder/temporal"].any() and found["video_encoder/temporal"].shape[0] == 4
    assert "video_encoder/spatial (4, 64) -> (16, 64), bilinear" in said
    assert "text_encoder/words/table (90, 64) -> (96, 64), 6 rows for no word" in said
    assert "2 mismatched:\n  text_projection/kernel" in said and "1 unused:\n  log_scale" in said


def test_a_setting_that_is_not_the_weights_is_named_or_allowed(clip_folder):
    stage = stage_of("avion_ego4d", 0)
    strict = [pattern for pattern in stage["init_allow"] if "activation" not in pattern]
    with pytest.raises(ValueError, match=r"video\.transformer\.activation is 'gelu' and theirs 'quick_gelu'"):
        begin({**stage, "init_allow": tuple(strict)}, f"clip:{clip_folder}")
    stage["model"]["video"]["mean"] = (0.5,)
    with pytest.raises(ValueError, match=r"video\.mean is \(0\.5, 0\.5, 0\.5\) and theirs \(0\.48"):
        begin(stage, f"clip:{clip_folder}")
    with pytest.raises(ValueError, match="clip weights have no part 'video'; they have .*video_encoder"):
        begin(stage_of("avion_ego4d", 0), f"clip:{clip_folder}:video")


@pytest.mark.slow
@pytest.mark.parametrize("name, frames", [("svitt", 1), ("svitt_ego", 4)])
def test_svitt_starts_from_beit_and_bert(name, frames, beit_and_bert, tmp_path):
    found, said = begin(stage_of(name, 0), *beit_and_bert)
    theirs = flatten_paths(bert.load(tmp_path / "bert"))
    for path, leaf in theirs.items():
        if path.startswith("text_encoder/stack/layers/"):
            rest = path.removeprefix("text_encoder/stack/layers/")
            np.testing.assert_array_equal(found[path], leaf[:4])
            np.testing.assert_array_equal(found[f"fusion_encoder/layers/{rest}"], leaf[4:])
    np.testing.assert_array_equal(found["word_head/dense/kernel"], theirs["word_head/dense/kernel"])
    table = "video_encoder/stack/layers/attention/relative"
    assert f"{table} (4, 12, 4) -> " in said and "nearest in time, linear in space, from (1, 2, 2) to" in said
    assert found[table].any() and "missing" in said and "fusion_encoder/layers/cross_attention" in said
    assert "from beit weights" in said and "from bert weights" in said


@pytest.mark.slow
def test_adavid_starts_from_egovlp(tmp_path):
    stage = stage_of("adavid_egovlp", 0, heads=1)
    stage["model"]["video"]["transformer"]["layout"] = "divided"
    text = {"vocab_size": WORDS, "max_position_embeddings": 24, "dim": 64, "n_layers": 4, "n_heads": 1}
    config = {"width": 64, "layers": 4, "mlp": 256, "patch": [16, 16], "clip": [8, 64, 64], "embed": 32}
    config["text"] = {**text, "hidden_dim": 256}
    theirs = checkpoint(egovlp, config, (8, 64, 64), tmp_path / "egovlp.pth", "state_dict")
    found, said = begin(stage, f"egovlp:{tmp_path}/egovlp.pth")
    same(found, theirs, but=("text_encoder/words", "text_encoder/positions", "video_encoder/temporal"))
    assert "parameters loaded" in said and "missing" not in said and "unused" not in said
    assert "video_encoder/temporal (8, 64) -> (4, 64)" in said
    stage["model"]["video"]["transformer"]["layout"] = "timesformer"
    with pytest.raises(ValueError, match=r"video\.transformer\.layout is 'timesformer' and theirs 'divided'"):
        begin(stage, f"egovlp:{tmp_path}/egovlp.pth")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["avion_ek100_mir", "avion_ek100_cls"])
def test_fine_tuning_starts_from_avions_checkpoint(name, tmp_path):
    section = stage_of("avion_ego4d", 0, heads=1)["model"]
    for part in ("video", "text"):
        section[part] = {key: value for key, value in section[part].items() if not key.endswith("_std")}
    section["video"] |= {"mean": MEAN, "std": (68.5005327 / 255, 66.6321579 / 255, 70.32316305 / 255)}
    theirs = checkpoint(avion, avion.config_of(section, (4, 64, 64)), (4, 64, 64), tmp_path / "avion.pt", "state_dict")
    stage = stage_of(name, 1, heads=1)
    with pytest.raises(ValueError, match=r"video\.mean is \(0\.481.* and theirs \(0\.424"):
        begin(stage, f"avion:{tmp_path}/avion.pt")
    stage["model"]["video"]["mean"] = MEAN
    found, said = begin(stage, f"avion:{tmp_path}/avion.pt")
    whole = name.endswith("mir")
    same(found, theirs if whole else {"video_encoder": theirs["video_encoder"]}, but=("video_encoder/temporal", "log_"))
    assert "video_encoder/temporal (4, 64) -> (8, 64), linear" in said


@pytest.mark.slow
@pytest.mark.parametrize("name", ["svitt_retrieval", "svitt_qa"])
def test_fine_tuning_starts_from_svitts_checkpoint(name, tmp_path):
    config = {"frames": 4, "side": 14, "patch": 16, "vision_layers": 4, "vision_width": 64, "vision_heads": 4}
    config |= {"vision_mlp": 256, "layer_scale": 1, "vocab": WORDS, "positions": 24, "token_types": 2, "embed": 32}
    config |= {"text_layers": 4, "fusion_layers": 3, "text_width": 64, "text_mlp": 256, "words": 1}
    theirs = checkpoint(svitt, config, (4, 224, 224), tmp_path / "svitt.pth", "model")
    stage = stage_of(name, -1)
    stage["model"]["text"]["transformer"]["heads"] = 1
    found, said = begin(stage, f"svitt:{tmp_path}/svitt.pth")
    taken = {part: theirs[part] for part in ("video_encoder", "text_encoder", "fusion_encoder")}
    table = "video_encoder/stack/layers/attention/relative"
    fitted = ("text_encoder/words", "text_encoder/positions", table)
    same(found, taken, but=("video_encoder/norm", "video_encoder/pooled_norm", *fitted))
    assert f"{table} (4, 5106, 4) -> (4, 346, 4)" in said and "from (4, 14, 14) to (4, 4, 4)" in said


def test_classification_starts_from_videomae(tmp_path):
    decoder = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
    options = {f"decoder_{name}": size for name, size in decoder.items()}
    options |= {"image_size": 64, "patch_size": 16, "num_frames": 8, "use_mean_pooling": False}
    config = transformers.VideoMAEConfig(**TOWER, **options)
    drawn(transformers.VideoMAEForPreTraining(config)).save_pretrained(tmp_path / "mae")
    stage = stage_of("videomae_k400", 0, "tiny,finetune")
    found, said = begin(stage, f"videomae:{tmp_path}/mae")
    same(found, {"video_encoder": videomae.load(tmp_path / "mae")["video_encoder"]})
    assert "head_label/kernel" in said and "decoder" in said
