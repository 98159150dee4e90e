"""Captioners, classifiers and published models in hand: each says what it says by itself."""

import json
import shutil

import jax
import numpy as np
import pytest

import vidlang
from tests.serve.tiny_captioner import write_video
from tests.serve.tiny_dual import CLASSES, train_classifier
from vidlang.pretrained._safetensors import read_file, write_file
from vidlang.serve.captions import Captioner
from vidlang.serve.own_videos import Parts, find_videos, own_videos
from vidlang.serve.portable import save_portable
from vidlang.train.evaluate import restore_model

VIDEO_BTHWC = np.random.default_rng(0).integers(0, 256, (3, 4, 16, 16, 3), np.uint8)


def softmax(x_NC):
    raised = np.exp(x_NC - x_NC.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    return [write_video(folder / f"{name}.mp4", seconds) for name, seconds in (("one", 2.0), ("two", 3.0))]


@pytest.fixture(scope="module")
def classifier_run(corpus, tmp_path_factory):
    return train_classifier(tmp_path_factory.mktemp("classifier"), corpus)


@pytest.mark.slow
def test_captions_are_those_of_the_captioner(captioner_run, files):
    loaded = vidlang.load(captioner_run[0])
    speaker = Captioner(captioner_run[0], prompt="a red", decoding={"max_new": 5, "min_new": 4})
    expected = []
    for file in files:
        with own_videos(find_videos(file), Parts()) as own:
            expected += [each.caption for each in speaker(own.tables[0])]
    assert loaded.methods == ("caption",)
    found = loaded.caption(files, prompt="a red", max_new=5, min_new=4)
    assert found == expected and all(found)
    drawn = loaded.caption(files[0], how="nucleus", samples=3, max_new=4, seed=1)
    assert len(drawn) == 1 and len(drawn[0]) == 3
    # As many as there is room for: the language model's 20 less the begin.
    assert len(loaded.caption(files)) == 2


def test_captions_that_cannot_be_are_refused(captioner_run, files):
    loaded = vidlang.load(captioner_run[0])
    for options, message in (
        ({"prompt": "what is {question}"}, "asks for columns of a table"),
        ({"max_new": 60}, "do not fit into the 20 of this language model"),
        ({"how": "guess"}, "decoding.how is 'guess'"),
    ):
        with pytest.raises(ValueError, match=message):
            loaded.caption(files[0], **options)
    with pytest.raises(ValueError, match="'captioner' has no embed_text; it has: caption"):
        loaded.embed_text("a")


@pytest.mark.slow
def test_a_portable_captioner_says_the_same(captioner_run, files, tmp_path):
    loaded = vidlang.load(captioner_run[0])
    again = vidlang.load(save_portable(loaded, tmp_path / "model"))
    beams = {"how": "beam", "beams": 2, "samples": 2, "max_new": 5}
    assert again.caption(files, **beams) == loaded.caption(files, **beams)


def test_classes_are_the_heads(classifier_run):
    loaded = vidlang.load(classifier_run)
    model, params, _ = restore_model(classifier_run)
    logits = np.asarray(model.bind({"params": jax.tree.map(np.asarray, params)}).classify(VIDEO_BTHWC))
    chances, names = softmax(logits), [f"event {place}" for place in range(CLASSES)]
    found = loaded.classify(VIDEO_BTHWC, labels=names)
    for row, each in enumerate(found):
        order = np.argsort(-chances[row])[:5]
        assert [name for name, _ in each] == [names[place] for place in order]
        np.testing.assert_allclose([chance for _, chance in each], chances[row][order], atol=1e-5)
    assert [name for name, _ in loaded.classify(VIDEO_BTHWC[0], top=1)[0]] == [str(chances[0].argmax())]
    assert loaded.methods == ("embed_video", "classify")
    with pytest.raises(ValueError, match="has 480 classes, and labels names 2"):
        loaded.classify(VIDEO_BTHWC, labels=["dive", "jump"])
    with pytest.raises(ValueError, match="head is 'verb'; this model has the heads label"):
        loaded.classify(VIDEO_BTHWC, head="verb")


def test_a_slice_of_a_classifier_has_its_classes_at_that_width(classifier_run, tmp_path):
    loaded = vidlang.load(classifier_run)
    at_width = loaded.classify(VIDEO_BTHWC, width="d-384")
    for small in (loaded.slice("d-384"), vidlang.load(save_portable(loaded, tmp_path / "small", widths="d-384"))):
        for one, other in zip(small.classify(VIDEO_BTHWC), at_width, strict=True):
            assert [name for name, _ in one] == [name for name, _ in other]
            np.testing.assert_allclose([chance for _, chance in one], [chance for _, chance in other], atol=1e-6)


@pytest.fixture(scope="module")
def vit_files(tmp_path_factory):
    """(the real model, its folder): small random weights, three classes with names."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    names = {0: "cat", 1: "dog", 2: "owl"}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = transformers.ViTConfig(**sizes, image_size=16, patch_size=8, id2label=names)
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2)
    folder = tmp_path_factory.mktemp("weights") / "vit"
    model.save_pretrained(folder)
    return model, folder


def test_published_files_answer_as_the_published_model(vit_files, tmp_path):
    import torch

    model, folder = vit_files
    loaded = vidlang.load(folder, family="vit", dtype="float32")
    images_BHWC = VIDEO_BTHWC[:, 0]
    pixels = torch.from_numpy(images_BHWC.astype(np.float32) / 255).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(loaded.model.video[name]).reshape(1, -1, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        chances = softmax(model((pixels - mean) / std).logits.numpy())
    found = loaded.classify(images_BHWC[:, None])
    for row, each in enumerate(found):
        assert [name for name, _ in each] == [("cat", "dog", "owl")[place] for place in np.argsort(-chances[row])]
        np.testing.assert_allclose([chance for _, chance in each], np.sort(chances[row])[::-1], atol=1e-4)
    again = vidlang.load(save_portable(loaded, tmp_path / "vit"))
    assert again.classify(images_BHWC[:, None]) == found
    assert "published vit weights" in (tmp_path / "vit" / "README.md").read_text()


@pytest.fixture(scope="module")
def clip_files(tmp_path_factory):
    """The same of a CLIP, with a vocabulary of eight letters."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    words = {**sizes, "vocab_size": 19, "max_position_embeddings": 12, "bos_token_id": 17, "eos_token_id": 18}
    sees = {**sizes, "image_size": 16, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=words, vision_config=sees, projection_dim=16)
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3) if parameter.ndim else parameter.fill_(2.0)
    folder = tmp_path_factory.mktemp("weights") / "clip"
    model.save_pretrained(folder)
    ids = {letter: place for place, letter in enumerate("abcdefgh")}
    ids |= {f"{letter}</w>": place + 8 for letter, place in ids.items()}
    ids |= {"ab</w>": 16, "<|startoftext|>": 17, "<|endoftext|>": 18}
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    return model, folder


def test_published_files_choose_labels_as_the_published_model(clip_files, tmp_path):
    import torch

    model, folder = clip_files
    loaded, labels = vidlang.load(folder, family="clip", dtype="float32"), ["ab cab", "h g", "a b c d"]
    ids_NL = np.array([[17, 16, 2, 16, 18], [17, 15, 14, 18, 18], [17, 8, 9, 10, 11]])
    ids_NL = np.concatenate([ids_NL, np.full((3, 1), 18)], axis=1)
    pixels = torch.from_numpy(VIDEO_BTHWC[:, 0].astype(np.float32) / 255).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(loaded.model.video[name]).reshape(1, -1, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        asked = {"input_ids": torch.from_numpy(ids_NL), "pixel_values": (pixels - mean) / std}
        chances = softmax(model(**asked).logits_per_image.numpy())
    found = loaded.classify(VIDEO_BTHWC[:, :1], labels, template="{}")
    for row, each in enumerate(found):
        assert [name for name, _ in each] == [labels[place] for place in np.argsort(-chances[row])]
        np.testing.assert_allclose([chance for _, chance in each], np.sort(chances[row])[::-1], atol=1e-4)
    again = vidlang.load(save_portable(loaded, tmp_path / "clip"))
    assert again.classify(VIDEO_BTHWC[:, :1], labels, template="{}") == found


@pytest.mark.slow
def test_texts_cost_as_many_tokens_as_they_have(clip_files, tmp_path):
    """A model of long texts reads short ones in few places, and says the same of them."""
    config = json.loads((clip_files[1] / "config.json").read_text())
    shutil.copytree(clip_files[1], tmp_path / "clip")
    config["text_config"]["max_position_embeddings"] = 100
    (tmp_path / "clip" / "config.json").write_text(json.dumps(config))
    tensors = dict(read_file(clip_files[1] / "model.safetensors"))
    name = "text_model.embeddings.position_embedding.weight"
    tensors[name] = np.concatenate([tensors[name], np.ones((88, 32), np.float32)])
    tensors = {key: x for key, x in tensors.items() if "position_ids" not in key}
    write_file(tmp_path / "clip" / "model.safetensors", tensors)
    short, long = (vidlang.load(path, family="clip", dtype="float32") for path in (clip_files[1], tmp_path / "clip"))
    texts, calls = ["ab cab", "h g"], []
    np.testing.assert_allclose(long.embed_text(texts), short.embed_text(texts), atol=1e-5)
    predict = long._predict
    long._predict = lambda *some, **arrays: calls.append(arrays["text_BL"].shape) or predict(*some, **arrays)
    for text in ("a", "a " * 20, "a " * 99):
        long.embed_text(text)
    assert calls == [(1, 16), (1, 32), (1, 100)]


@pytest.mark.parametrize(
    ("says", "crop"),
    [
        ({}, {"name": "center"}),
        ({"do_center_crop": True, "size": {"shortest_edge": 16}, "crop_size": {"height": 16}}, {"name": "center"}),
        ({"size": 20, "crop_size": 16}, {"name": "short_side", "side": 20, "crop": 16}),
        ({"size": {"height": 16, "width": 16}}, {"name": "full"}),
    ],
)
def test_pictures_are_cut_as_the_files_say(vit_files, tmp_path, says, crop):
    shutil.copytree(vit_files[1], tmp_path / "vit")
    pixels = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps({**pixels, **says}))
    assert vidlang.load(tmp_path / "vit", family="vit").about.spec.crop == crop


def test_a_model_without_its_tokenizer_says_so(clip_files, tmp_path):
    shutil.copytree(clip_files[1], tmp_path / "clip")
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "clip" / name).unlink()
    loaded = vidlang.load(tmp_path / "clip", family="clip")
    with pytest.raises(
        ValueError, match=r"no tokenizer beside this model's files; name one: vidlang.load\(\.\.\., token"
    ):
        loaded.embed_text("ab")
    portable = save_portable(loaded, tmp_path / "portable")
    assert not (portable / "tokenizer.json").exists() and vidlang.load(portable).tokenizer is None
    named = vidlang.load(tmp_path / "clip", family="clip", tokenizer=clip_files[1])
    np.testing.assert_array_equal(named.embed_text("ab"), vidlang.load(clip_files[1], family="clip").embed_text("ab"))


def test_an_image_model_sees_videos_of_any_number_of_frames(vit_files):
    _, folder = vit_files
    loaded = vidlang.load(folder, family="vit")
    still = np.repeat(VIDEO_BTHWC[:, :1], 4, axis=1)
    assert loaded.embed_video(still).shape == loaded.embed_video(still, frames=4).shape == (3, 32)
    np.testing.assert_array_equal(loaded.embed_video(still), loaded.embed_video(VIDEO_BTHWC[:, :1]))


def test_a_published_folder_without_its_family_names_it(vit_files, tmp_path):
    with pytest.raises(ValueError, match="of the type 'vit'; say which family reads it, as in family='vit'"):
        vidlang.load(vit_files[1])
    (tmp_path / "model.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="no run and no portable folder; say which family"):
        vidlang.load(tmp_path / "model.pt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no complete checkpoint"):
        vidlang.load(tmp_path / "empty")
    with pytest.raises(ValueError, match="step=3 chooses a checkpoint of a run"):
        vidlang.load(vit_files[1], family="vit", step=3)


def test_files_that_are_a_part_of_a_model_say_so(tmp_path):
    config = {"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 2, "vocab_size": 9, "n_positions": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="gpt2 weights are a part of a model"):
        vidlang.load(tmp_path, family="gpt2")
