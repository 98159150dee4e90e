"""VATEX as published: captions of one language, in the order of the file."""

import pytest

from vidlang.datasets import vatex

CLIPS = [
    {
        "videoID": "-x._0_000122_000132",
        "enCap": [' A man, "runs". ', "He runs", "He runs"],
        "chCap": ["一个人在跑步。"],
    },
    {"videoID": "Ptf_2VRj-V0_000000_000010", "enCap": ["A dog"], "chCap": ["狗", "犬"]},
]


@pytest.fixture
def store(make_store):
    return make_store({"-x._0_000122_000132": 10.0, "Ptf_2VRj-V0_000000_000010": 9.5})


@pytest.mark.parametrize(("language", "key"), [("english", "enCap"), ("chinese", "chCap")])
@pytest.mark.parametrize("split", ["train", "val"])
def test_every_value_is_read(write_json, store, rows_of, split, language, key):
    path = write_json({"train": "vatex_training_v1.0.json", "val": "vatex_validation_v1.0.json"}[split], CLIPS)
    assert rows_of(vatex.load(split, root=str(path.parent), store=store, language=language)) == [
        {"video": clip["videoID"], "start": 0.0, "end": end, "texts": clip[key], "id": clip["videoID"]}
        for clip, end in zip(CLIPS, [10.0, 9.5], strict=True)
    ]


def test_the_public_test_has_english_only(write_json, store):
    path = write_json("vatex_public_test_english_v1.1.json", [{k: c[k] for k in ("videoID", "enCap")} for c in CLIPS])
    root = str(path.parent)
    assert vatex.load("test", root=root, store=store).column("texts")[1] == ["A dog"]
    with pytest.raises(ValueError, match=r"english_v1.1.json, item 0: there is no 'chCap' \(did you mean 'enCap'"):
        vatex.load("test", root=root, store=store, language="chinese")


def test_the_private_test_has_no_texts(write_json, store):
    path = write_json("vatex_private_test_without_annotations.json", [{"videoID": CLIPS[1]["videoID"]}])
    assert vatex.load("private", root=str(path.parent), store=store).column("texts") == [[]]


def test_a_wrong_value_or_an_unknown_video_is_named(write_json, store):
    root = str(write_json("vatex_training_v1.0.json", [CLIPS[0], CLIPS[1] | {"enCap": [1]}]).parent)
    with pytest.raises(ValueError, match="v1.0.json, item 1: 'enCap' must be a text or a list of texts, its item 0 is"):
        vatex.load("train", root=root, store=store)
    write_json("vatex_training_v1.0.json", [CLIPS[0], CLIPS[1] | {"videoID": "gone"}])
    with pytest.raises(ValueError, match="v1.0.json, item 1: video 'gone' is not in the chunk store"):
        vatex.load("train", root=root, store=store)
    assert len(vatex.load("train", root=root, store=store, bad_clips="drop")) == 1


def test_a_language_is_one_of_two(write_json, store):
    with pytest.raises(ValueError, match="unknown language of VATEX 'englisch' .*english, chinese"):
        vatex.load("train", root=".", store=store, language="englisch")
