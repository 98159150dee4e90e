"""Image-text pairs from lines beside a folder of images, and from a TFDS dataset."""

import json

import numpy as np
import pytest
from PIL import Image

from vidlang.data.stores.adopt import adopt
from vidlang.datasets import image_text

LINES = [
    {"image": "cats/1.jpg", "caption": "a cat asleep"},
    {"image": "2.v2.png", "caption": ["a dog", "ein Hund, größer"]},
    {"image": "cats/1.jpg", "caption": []},
]


def picture(shade):
    return Image.fromarray(np.full((16, 24, 3), shade, np.uint8))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    (folder / "cats").mkdir()
    picture(10).save(folder / "cats" / "1.jpg")
    picture(200).save(folder / "2.v2.png")
    adopt(folder, folder / "store", "images")
    return str(folder / "store")


def write(root, lines):
    (root / "train.jsonl").write_text("".join(json.dumps(line) + "\n\n" for line in lines))


def row(video, *texts, **more):
    return {"video": video, "start": 0, "end": 1, "texts": list(texts), **more}


@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_each_line_is_a_row(tmp_path, store, rows_of, monkeypatch, at_once):
    monkeypatch.setattr(image_text, "ROWS", at_once)
    write(tmp_path, LINES)
    expected = [row("cats/1", "a cat asleep"), row("2.v2", "a dog", "ein Hund, größer"), row("cats/1")]
    assert rows_of(image_text.load("train", root=str(tmp_path), store=store)) == expected


def test_keys_may_have_other_names(tmp_path, store):
    write(tmp_path, [{"file_name": "1.jpg", "text": "a cat"}])
    options = {"image_key": "file_name", "text_key": "text", "video_name": "cats/{video}"}
    table = image_text.load("train", root=str(tmp_path), store=store, **options)
    assert table.column("texts") == [["a cat"]] and table.column("video") == ["cats/1"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"image": "cats/1.jpg", "captions": "a"}, "line 3: there is no 'caption' .did you mean 'captions'"),
        ({"image": 7, "caption": "a"}, "line 3: 'image' must be a text, found 7"),
        ({"image": "cats/1.jpg", "caption": [None]}, "line 3: 'caption'"),
        ({"image": "cats/3.jpg", "caption": "a"}, "line 3: video 'cats/3' is not in the chunk store"),
        ("text", "line 3: expected an object, found 'text'"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, store, line, message):
    write(tmp_path, [LINES[0], line])
    with pytest.raises(ValueError, match="train.jsonl, " + message):
        image_text.load("train", root=str(tmp_path), store=store)


def tfds_dataset(folder, examples):
    """A dataset as TFDS itself writes one, with a broken image among the others."""
    tfds = pytest.importorskip("tensorflow_datasets")
    text, label = tfds.features.Text(), tfds.features.ClassLabel(names=["cat", "dog"])
    features = tfds.features.FeaturesDict(
        {"image": text, "label": label, "captions": tfds.features.Sequence(text), "title": text}
    )
    identity = tfds.core.DatasetIdentity(
        name="pets", version=tfds.core.Version("1.0.0"), data_dir=str(folder), module_name="tests"
    )
    info = tfds.core.DatasetInfo(builder=identity, description="Images.", features=features)
    writer = tfds.core.SequentialWriter(info, 2, file_format="array_record")
    writer.initialize_splits(["train"])
    writer.add_examples({"train": examples})
    writer.close_all()
    info.write_to_directory(folder)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pets")
    picture(50).save(folder / "image.png")
    content = (folder / "image.png").read_bytes()
    examples = [
        {"image": b"broken" if n == 1 else content, "label": n % 2, "captions": [f"c{n}", f"d{n}"], "title": f"t{n}"}
        for n in range(4)
    ]
    (folder / "pets").mkdir()
    tfds_dataset(folder / "pets", examples)
    adopt(folder / "pets", folder / "store", "tfds_images", split="train")
    return {"root": str(folder / "pets"), "store": str(folder / "store")}


def test_texts_and_classes_of_a_tfds_dataset(dataset, rows_of):
    numbers = [0, 2, 3]  # image 1 is broken and not in the store
    found = rows_of(image_text.load("train", **dataset, text_key="title"))
    assert found == [row(str(n), f"t{n}") for n in numbers]
    found = rows_of(image_text.load("train", **dataset, text_key="captions"))
    assert found == [row(str(n), f"c{n}", f"d{n}") for n in numbers]
    found = rows_of(image_text.load("train", **dataset, text_key="label"))
    assert found == [row(str(n), ["cat", "dog"][n % 2], label=n % 2) for n in numbers]


def test_wrong_tfds_features_and_stores_are_named(dataset, store):
    with pytest.raises(ValueError, match="record 0: there is no feature 'titles' .did you mean 'title'"):
        image_text.load("train", **dataset, text_key="titles")
    with pytest.raises(ValueError, match="was not adopted from the split 'test' of a TFDS dataset; adopt"):
        image_text.load("test", **dataset, text_key="title")
    with pytest.raises(ValueError, match="was not adopted from the split 'train'"):
        image_text.load("train", root=dataset["root"], store=store, text_key="title")
