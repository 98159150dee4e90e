"""Folders that are written here, read by transformers: the same outputs, and nothing in part or in silence."""

import json
import os

import jax
import numpy as np
import pytest
import torch
import transformers

from tests.pretrained.published import CASES, GOLDEN, TEXT, numbers
from tests.pretrained.text_towers import TEXT as WORDS
from tests.pretrained.text_towers import VALID, VOCAB, assert_same_trees, drawn, guesses, tower
from vidlang.core.config import load_module
from vidlang.models.language import Model
from vidlang.pretrained import bert, distilbert, gpt2, llama
from vidlang.pretrained._decoder_config import decoder_of
from vidlang.pretrained._publish import publish
from vidlang.pretrained._safetensors import read_folder

ANSWERS = json.loads(GOLDEN.read_text())


def family(case):
    return gpt2 if CASES[case][0] == "GPT2" else llama


def language(case):
    """(section, parameters) of a case."""
    config = ANSWERS[case]["configs"]["4"]
    tensors = {name: numbers(name, tuple(shape)) for name, shape in ANSWERS[case]["tensors"].items()}
    return family(case).spec(config), family(case).to_flax(tensors, config)


def drawn_tower(module, name, head):
    """(section, parameters) of a text tower with random numbers."""
    transformer = {"layers": 2, "width": 32, "heads": 2, "mlp": 48, "norm": "post", "epsilon": 1e-12}
    types = 2 if name == "bert" else 0
    section = {
        "text": {
            "vocab": VOCAB,
            "max_length": 16,
            "transformer": {**transformer, "activation": "gelu_tanh", "dtype": "float32"},
            "pool": "cls",
            "final_norm": False,
            "norm_embeddings": True,
            "token_types": types,
        }
    }
    rules = module._rules(section, head)
    draw = np.random.default_rng(0)
    tensors = {
        n: draw.normal(1.0 if n.endswith("Norm.weight") else 0.0, 0.2, rule.back(np.zeros(rule.shape)).shape)
        for rule in rules
        for n in rule.names
    }
    return section, module.to_flax({n: x.astype(np.float32) for n, x in tensors.items()}, module.config_of(section))


@pytest.mark.parametrize("case", CASES)
def test_a_language_model_is_the_same_in_transformers(case, tmp_path):
    section, params = language(case)
    assert decoder_of(family(case).spec(family(case).config_of(section))) == decoder_of(section)
    name = "gpt2" if family(case) is gpt2 else "llama"
    folder = publish(params, section, None, tmp_path / "out", name)
    model = Model(language={**section, "dtype": "float32"})
    expected = np.asarray(model.apply({"params": {"language": params}}, TEXT, train=False).caption_BLV)
    with torch.no_grad():
        real, report = transformers.AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager", output_loading_info=True
        )
        found = real.eval()(torch.tensor(TEXT)).logits.numpy()
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert_same_trees(family(case).load(folder), params)


@pytest.mark.parametrize(("name", "head"), [("bert", True), ("bert", False), ("distilbert", True)])
def test_a_text_tower_is_the_same_in_transformers(name, head, tmp_path):
    module = {"bert": bert, "distilbert": distilbert}[name]
    section, params = drawn_tower(module, name, head)
    folder = publish(jax.device_put(params), section, None, tmp_path / "deep" / "out", name)
    auto = transformers.AutoModelForMaskedLM if head else transformers.AutoModel
    real, report = auto.from_pretrained(folder, attn_implementation="eager", output_loading_info=True)
    assert type(real).__name__ == module.architecture(params)
    assert json.loads((folder / "config.json").read_text())["architectures"] == [type(real).__name__]
    assert not [key for key in report["missing_keys"] if "pooler" not in key] and not report["unexpected_keys"]
    with torch.no_grad():
        tokens, mask = torch.tensor(WORDS), torch.tensor(VALID).long()
        found = real.eval()(tokens, attention_mask=mask, output_hidden_states=True)
    expected = tower(section)(params)
    np.testing.assert_allclose(found.hidden_states[-1].numpy(), expected.tokens_BLD, atol=2e-5)
    if head:
        words = guesses(section, params, expected.tokens_BLD)
        np.testing.assert_allclose(found.logits.numpy(), words, atol=2e-5)
    assert_same_trees(module.load(folder), params)


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
IMAGES = {**SIZES, "image_size": 16, "patch_size": 8}
PIXELS = torch.rand((2, 3, 16, 16), generator=torch.Generator().manual_seed(0)) * 2 - 1
REAL = {
    "clip": (
        lambda: transformers.CLIPModel(
            transformers.CLIPConfig(
                text_config={**SIZES, "vocab_size": VOCAB, "max_position_embeddings": 16, "eos_token_id": VOCAB - 1},
                vision_config=IMAGES,
                projection_dim=8,
            )
        ),
        {"pixel_values": PIXELS, "input_ids": torch.tensor(WORDS[:, :8])},
        "logits_per_image",
    ),
    "vit": (
        lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**IMAGES, num_labels=3)),
        {"pixel_values": PIXELS},
        "logits",
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_what_was_read_of_images_is_written_as_it_was(name, tmp_path):
    make, inputs, output = REAL[name]
    real = drawn(make())
    real.save_pretrained(tmp_path / "in")
    module = load_module("pretrained", name)
    section, params, clip = (read(tmp_path / "in") for read in (module.section, module.load, module.clip))
    folder = publish(params, section, clip, tmp_path / "out", name)
    auto = transformers.AutoModel if name == "clip" else transformers.AutoModelForImageClassification
    back, report = auto.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.no_grad():
        expected, found = (model.eval()(**inputs)[output].numpy() for model in (real, back))
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_large_models_are_several_files(tmp_path):
    section, params = language("gpt2")
    one = publish(params, section, None, tmp_path / "one", "gpt2")
    several = publish(params, section, None, tmp_path / "several", "gpt2", shard=20_000)
    files = sorted(path.name for path in several.iterdir())
    assert "model-00001-of-00011.safetensors" in files and "model.safetensors.index.json" in files
    assert "model.safetensors" not in files
    sizes = [path.stat().st_size for path in several.iterdir() if path.suffix == ".safetensors"]
    assert max(sizes) < 22_000
    assert_same_trees(dict(read_folder(one)), dict(read_folder(several)))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(several)
    np.testing.assert_array_equal(loaded.transformer.wpe.weight.detach().numpy(), params["positions"])


def test_parts_of_a_model_are_taken_from_it_and_a_tokenizer_goes_along(tmp_path):
    section, params = language("gpt2")
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    whole = {"name": "language", "language": section}
    folder = publish({"language": params}, whole, None, tmp_path / "out", "gpt2", tokenizer=tmp_path)
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (folder / "tokenizer.json").read_text() == '{"version": "1.0"}'
    assert gpt2.section(folder) == section


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    section, params = language("gpt2")

    def refused(match, *, params=params, section=section, name="gpt2", folder="out", **options):
        with pytest.raises(ValueError, match=match):
            publish(params, section, None, tmp_path / folder, name, **options)
        assert not (tmp_path / "out").exists()
        assert not [path for path in tmp_path.iterdir() if path.name.endswith(".partial")]

    refused("no GPT-2 computes this: language.gated is True, not False", section={**section, "gated": True})
    refused("language.activation is 'quick_gelu', not 'gelu_tanh'", section={**section, "activation": "quick_gelu"})
    refused("words/table is missing", params={k: v for k, v in params.items() if k != "words"})
    refused(r"words/table is \(61, 31\)", params={**params, "words": {"table": np.zeros((61, 31))}})
    refused("is no tokenizer.json", tokenizer=tmp_path / "nowhere.json")
    refused("svitt is not of Hugging Face's libraries; families that are: .*bert.*gpt2", name="svitt")
    (tmp_path / "there").mkdir()
    refused("is there already", folder="there")


def test_a_disk_that_fails_leaves_nothing(tmp_path, monkeypatch):
    section, params = language("gpt2")

    def fail(*args):
        raise OSError("the disk is full")

    monkeypatch.setattr("vidlang.pretrained._publish.write_file", fail)
    with pytest.raises(OSError, match="full"):
        publish(params, section, None, tmp_path / "out", "gpt2")
    assert list(tmp_path.iterdir()) == []


def test_the_number_that_scales_queries_stays_whole():
    section, _ = language("gemma2")
    for number in (12, 48, 144, 256, 288):
        config = llama.config_of({**section, "query_scale": number**-0.5})
        assert config["query_pre_attn_scalar"] == number


def test_what_no_llama_computes_is_named():
    section, _ = language("llama")
    for changes, match in (
        ({"out_bias": True}, "language.qkv_bias is False, not True|language.out_bias is True, not False"),
        ({"qk_norm": True, "mlp_bias": True}, "language.qk_norm is True, not False"),
        ({"window": 4, "global_every": 2}, "language.global_every is 2"),
        ({"norm": "layer"}, "language.norm is 'layer', not 'rms'"),
        ({"activation": "relu"}, "language.activation is 'relu'"),
        ({"logit_cap": 3.0}, "language.logit_cap is 3.0, not 0.0"),
    ):
        with pytest.raises(ValueError, match=match) as caught:
            llama.config_of({**section, **changes})
        assert "\n" not in str(caught.value)
