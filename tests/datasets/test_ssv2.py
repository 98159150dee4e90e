"""Something-Something v2 as published: a sentence a video, and a class that many videos share."""

import pytest

from vidlang.datasets import ssv2

LABELS = {"Holding something": "1", "Approaching something with your camera": "0", "Tearing something into two": "2"}


@pytest.fixture
def store(make_store):
    return make_store({"78687": 4.0, "42326": 3.0, "1": 2.0})


@pytest.fixture
def path(write_json):
    def item(number, label, template):
        return {"id": number, "label": label, "template": template, "placeholders": []}

    items = [
        item("78687", 'holding a "potato", peeled', "Holding [something]"),
        item("42326", "approaching a café ", "Approaching [something] with your camera"),
        item("1", "holding it", "Holding [something]"),
    ]
    write_json("something-something-v2-labels.json", LABELS)
    return write_json("something-something-v2-validation.json", items)


def test_labels_are_sentences(path, store, rows_of):
    root = str(path.parent)
    assert ssv2.class_names(root) == [
        "Approaching something with your camera",
        "Holding something",
        "Tearing something into two",
    ]
    assert [tuple(row.values()) for row in rows_of(ssv2.load("val", root=root, store=store))] == [
        ("78687", 0.0, 4.0, ['holding a "potato", peeled'], 1, "78687"),
        ("42326", 0.0, 3.0, ["approaching a café "], 0, "42326"),
        ("1", 0.0, 2.0, ["holding it"], 1, "1"),
    ]


def test_templates_are_shared_by_the_rows_of_one_label(path, store):
    table = ssv2.load("val", root=str(path.parent), store=store, text="template")
    assert table.column("texts") == [[ssv2.class_names(str(path.parent))[label]] for label in table.column("label")]
    assert table.column("label").tolist() == [1, 0, 1]


def test_short_names_of_files_are_found_too(path, store):
    for file in path.parent.glob("*.json"):
        file.rename(path.parent / file.name.removeprefix(ssv2.PREFIX))
    assert len(ssv2.load("val", root=str(path.parent), store=store)) == 3


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            {"template": "Holding [things]"},
            "item 1: 'template' 'Holding things' is no class of something-something",
        ),
        ({"id": 42326}, "item 1: 'id' must be a text, found 42326"),
        ({"label": None}, "item 1: 'label' must be a text, found None"),
        ({"id": "2"}, "item 1: video '2' is not in the chunk store"),
    ],
)
def test_a_wrong_value_is_named(path, store, spoil, edit, message):
    spoil(path, lambda items: items[1].update(edit))
    with pytest.raises(ValueError, match=f"v2-validation.json, {message}"):
        ssv2.load("val", root=str(path.parent), store=store)


def test_classes_must_be_numbered(path, write_json):
    write_json("something-something-v2-labels.json", {"Holding something": "0", "Tearing something": "2"})
    with pytest.raises(ValueError, match="labels.json: 2 classes must be numbered from '0'; none is '1'"):
        ssv2.class_names(str(path.parent))
    write_json("something-something-v2-labels.json", {"Holding something": 0})
    with pytest.raises(ValueError, match="labels.json: 'Holding something' must be a text, found 0"):
        ssv2.class_names(str(path.parent))


def test_unknown_videos_can_be_left_out(path, make_store):
    table = ssv2.load("val", root=str(path.parent), store=make_store({"1": 2.0}), bad_clips="drop")
    assert table.column("id") == ["1"]
