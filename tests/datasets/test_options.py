"""A kept table is used again only where every option is the same, whichever reader made it."""

import importlib
import inspect

import pytest

READERS = {
    "activitynet_captions": {"clips": "videos", "split": "val1"},
    "activitynet_qa": {},
    "agqa": {"split": "test"},
    "charades": {"clips": "actions", "split": "test"},
    "didemo": {"clips": "moments"},
    "diving48": {"split": "test"},
    "kinetics": {},
    "msrvtt": {"split": "mc"},
    "msrvtt_qa": {},
    "pairs_json": {"task": "choice"},
    "perception_test": {"split": "valid"},
    "ssv2": {"text": "template"},
    "vatex": {"language": "chinese"},
    "videocc": {"split": "train"},  # the only one
    "videos": {"ignore": ("url",)},
    "webvid": {},
    "youcook2": {"clips": "videos"},
}
OTHERS = {"video_name": "x/{video}", "bad_clips": "drop", "joiner": "; ", "first_seconds": 7, "prefix": "/x"}
OTHERS |= {"file": "other.csv", "answers": "other", "split": "val"}


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """asked(name, **options) gives what the reader's table is kept by: files and options."""

    def published(root, *names, origin):
        (tmp_path / names[0]).write_text("youtube_id\n")
        return tmp_path / names[0]

    def ask(name, split="train", **options):
        module = importlib.import_module(f"vidlang.datasets.{name}")
        monkeypatch.setattr(module, "published", published)
        monkeypatch.setattr(module, "cached", lambda name, sources, options, store, make: (name, sources, options))
        return module.load(split, root=str(tmp_path), store="", **options)

    return ask


@pytest.mark.parametrize("name", READERS)
def test_a_table_is_kept_by_every_option(asked, name):
    load = importlib.import_module(f"vidlang.datasets.{name}").load
    usual = asked(name)
    assert usual[0] == name
    for option, parameter in inspect.signature(load).parameters.items():
        if option in ("root", "store") or (name, option) == ("videocc", "split"):
            continue
        default = not parameter.default if isinstance(parameter.default, bool) else None
        other = {**OTHERS, option: OTHERS.get(option, default), **READERS[name]}[option]
        assert other is not None and other != parameter.default, f"tell this test another value of {option}"
        assert asked(name, **{option: other})[1:] != usual[1:], f"tables with another {option} are taken for the same"
