"""MSR-VTT as published: every split is found in its files, and a wrong file is named with row and column."""

import json

import pytest

from vidlang.datasets import msrvtt

SPLIT_OF = {"video0": "train", "video1": "validate", "video2": "test", "video3": "test"}


@pytest.fixture
def store(make_store):
    return make_store({name: 10.0 for name in SPLIT_OF})


@pytest.fixture
def root(tmp_path):
    """A miniature of the published files: four videos with two captions each."""
    videos = [
        {"id": i, "video_id": name, "category": 9, "url": "", "start time": 137.7, "end time": 149.4, "split": split}
        for i, (name, split) in enumerate(SPLIT_OF.items())
    ]
    sentences = [
        {"sen_id": 2 * i + k, "video_id": name, "caption": f"caption {k} of {name}"}
        for k in range(2)
        for i, name in enumerate(SPLIT_OF)
    ]
    content = {"info": {"year": "2016"}, "videos": videos, "sentences": sentences}
    (tmp_path / "MSRVTT_data.json").write_text(json.dumps(content))
    (tmp_path / "MSRVTT_JSFUSION_test.csv").write_text(
        'key,vid_key,video_id,sentence\nret0,msr2,video2,"a person, who connects something"\n'
    )
    (tmp_path / "MSRVTT_train.7k.csv").write_text("video_id\nvideo0\nvideo1\n")
    (tmp_path / "MSRVTT_train.9k.csv").write_text("video_id\nvideo0\nvideo1\nvideo3\n")
    return tmp_path


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", ["video0"]),
        ("val", ["video1"]),
        ("test", ["video2", "video3"]),
        ("train7k", ["video0", "video1"]),
        ("train9k", ["video0", "video1", "video3"]),
        ("test1k", ["video2"]),
    ],
)
def test_each_split_has_its_videos(root, store, split, names):
    table = msrvtt.load(split, root=str(root), store=store)
    assert table.column("video") == names
    assert [table.cell(i, "end") for i in range(len(table))] == [10.0] * len(names)
    captions = ["a person, who connects something"] if split == "test1k" else ["caption 0 of {}", "caption 1 of {}"]
    assert table.column("texts") == [[caption.format(name) for caption in captions] for name in names]


def test_every_value_is_read(root, store, rows_of):
    row = {"start": 0.0, "end": 10.0, "texts": ["a person, who connects something"], "video": "video2", "id": "video2"}
    assert rows_of(msrvtt.load("test1k", root=str(root), store=store)) == [row]
    row |= {"texts": ["caption 0 of video2", "caption 1 of video2"]}
    assert rows_of(msrvtt.load("test", root=str(root), store=store))[0] == row


def test_the_older_files_are_read_too(root, store):
    content = json.loads((root / "MSRVTT_data.json").read_text())
    (root / "MSRVTT_data.json").unlink()
    parts = {"train_val": content["videos"][:2], "test": content["videos"][2:]}
    for name, videos in parts.items():
        names = [video["video_id"] for video in videos]
        sentences = [sentence for sentence in content["sentences"] if sentence["video_id"] in names]
        (root / f"{name}_videodatainfo.json").write_text(json.dumps({"videos": videos, "sentences": sentences}))
    for split, names in (
        ("val", ["video1"]),
        ("test", ["video2", "video3"]),
        ("train9k", ["video0", "video1", "video3"]),
    ):
        table = msrvtt.load(split, root=str(root), store=store)
        assert table.column("video") == names
        assert table.column("texts") == [[f"caption {k} of {name}" for k in range(2)] for name in names]


def test_a_wrong_pair_is_named_with_its_row(root, store):
    (root / "MSRVTT_JSFUSION_test.csv").write_text("key,vid_key,video_id,sentence\na,b,video2,x\na,b,video9,x\n")
    with pytest.raises(ValueError, match="MSRVTT_JSFUSION_test.csv, row 3: video 'video9' is not in the chunk store"):
        msrvtt.load("test1k", root=str(root), store=store)


def test_a_missing_caption_is_named_with_its_place(root, store):
    path = root / "MSRVTT_data.json"
    content = json.loads(path.read_text())
    del content["sentences"][3]["caption"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"MSRVTT_data.json, sentence 3: there is no 'caption'"):
        msrvtt.load("train", root=str(root), store=store)


def test_a_wrong_column_is_named(root, store):
    (root / "MSRVTT_JSFUSION_test.csv").write_text("key,vid_key,video,sentence\nret0,msr2,video2,text\n")
    with pytest.raises(ValueError, match=r"JSFUSION_test.csv has no column 'video_id' \(did you mean 'video'\?\)"):
        msrvtt.load("test1k", root=str(root), store=store)


def test_an_unknown_video_is_named(root, make_store):
    store = make_store({"video0": 10.0, "video3": 10.0})
    with pytest.raises(ValueError, match=r"MSRVTT_data.json, video 2: video 'video2' is not in the chunk store"):
        msrvtt.load("test", root=str(root), store=store)
    assert msrvtt.load("test", root=str(root), store=store, bad_clips="drop").column("video") == ["video3"]


def test_multiple_choice_has_its_choices(root, store, rows_of, write_json, spoil):
    captions = ["a", "b, c", "“d”", " e ", "f"]
    path = write_json("msrvtt_mc_test.json", [{"video": "video2.mp4", "caption": captions, "answer": 2}])
    row = {"video": "video2", "start": 0.0, "end": 10.0, "texts": ["“d”"]}
    row |= {"id": "video2", "choices": captions, "answer": 2}
    assert rows_of(msrvtt.load("mc", root=str(root), store=store)) == [row]
    spoil(path, lambda items: items[0].update(answer=5))
    with pytest.raises(ValueError, match="msrvtt_mc_test.json, item 0: 'answer' must be 0 to 4, found 5"):
        msrvtt.load("mc", root=str(root), store=store)


def test_videos_may_have_other_names_in_the_store(root, make_store):
    store = make_store({"all/video0": 10.0})
    assert msrvtt.load("train", root=str(root), store=store, video_name="all/{video}").column("video") == ["all/video0"]
