"""What an extraction keeps is what the model says of each segment, whoever made it and however often it was killed."""

import os
import signal

import jax
import numpy as np
import pytest

from vidlang.data.chunks import open_store
from vidlang.data.crops import choose_crop
from vidlang.data.features.cuts import segments, windows
from vidlang.data.features.store import FeatureStore
from vidlang.train import build, sources, stages
from vidlang.train.evaluate import restore_model
from vidlang.train.extract import LOOK, Part, extract
from vidlang.train.predict import Predict
from vidlang.train.recipe import read_recipe, result_config
from vidlang.train.signals import Interrupted

SEGMENTS, FRAMES, BATCH, SHARD = 3, 2, 4, 5
VARIANTS = {"full": {}, "half": {"mask": 0.5}}


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    stages.train(recipe(duration="2 steps", evals=()), workdir)
    return workdir


@pytest.fixture(scope="module")
def table(corpus):
    return build.table({**corpus, "split": "train"}, "data")


@pytest.fixture(scope="module")
def make(run, table):
    """Extracts the train split into a folder, in pieces of five clips."""

    def extracted(out, variants=VARIANTS, count=SEGMENTS, **options):
        cuts = segments(table, count=count, shard_rows=SHARD)
        settings = {"frames": FRAMES, "batch_size": BATCH, "dtype": "float32"} | options
        return extract(run, cuts, out, variants=variants, **settings)

    return extracted


@pytest.fixture(scope="module")
def whole(make, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "features"
    report = make(out)
    assert (report.done, report.broken) == (report.total, 0)
    return out


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_features_are_what_the_model_says_of_each_segment(run, table, whole):
    model, params, stage = restore_model(run)
    store, features = open_store(table.store), FeatureStore(whole)
    size, embed = stage.clip["size"], jax.jit(lambda x: model.apply({"params": params}, x, method="embed_video"))
    assert len(features) == len(table) and len(table) > 2 * SHARD
    for row in (0, 4, 5, len(table) - 1):
        video, start, end = (table.cell(row, name) for name in ("video", "start", "end"))
        info, clips = store.info(video), []
        for s in range(SEGMENTS):
            moments = [start + (s * FRAMES + f + 0.5) * (end - start) / (SEGMENTS * FRAMES) for f in range(FRAMES)]
            box = choose_crop(None, info.height, info.width, name="center")
            clips.append(store.decode(video, np.array(moments), box, (size, size)))
        expected = embed(np.stack(clips))
        np.testing.assert_allclose(features.read(row, "full"), expected, atol=1e-5)
        assert np.abs(features.read(row, "half") - expected).max() > 1e-2


@pytest.mark.parametrize("moment", [1, 2, 3, 4, 5, 6, 9, 12])
def test_what_was_killed_goes_on_to_the_same_bytes(make, whole, tmp_path, killed_at, moment):
    """Killed when the n-th file was written and not yet in its place: index, header, notes and features."""
    with killed_at(moment, "vidlang.data.features.writer"):
        make(tmp_path / "features")
    left = content(tmp_path / "features")
    assert left != content(whole)
    make(tmp_path / "features")
    found = content(tmp_path / "features")
    assert {name: kept for name, kept in found.items() if not name.endswith(".partial")} == content(whole)
    assert not any("npy" in name and name.endswith(".partial") for name in found)


def test_nothing_is_made_twice(make, whole, tmp_path, monkeypatch):
    done = []
    make(tmp_path / "features", progress=lambda report: done.append((report.done, report.total)))
    assert done == [(5, 16), (10, 16), (15, 16), (16, 16)]
    for path in (tmp_path / "features/half/00001.npy", tmp_path / "features/full/00003.npy"):
        path.unlink()
    calls = []
    monkeypatch.setattr(Predict, "__call__", _counted(Predict.__call__, calls))
    report = make(tmp_path / "features")
    assert (report.total, report.done) == (6, 6) and len(calls) == 3  # of five clips in batches of four, and of one
    assert content(tmp_path / "features") == content(whole)
    assert make(tmp_path / "features").total == 0 and len(calls) == 3


def _counted(call, calls):
    def counted(self, method, *args, **kwargs):
        calls.append(method)
        return call(self, method, *args, **kwargs)

    return counted


def test_parts_of_the_work_join_to_the_whole(make, whole, tmp_path):
    for number in (1, 0):
        make(tmp_path / "features", part=Part(number, 2))
    assert content(tmp_path / "features") == content(whole)
    with pytest.raises(ValueError, match="part 2 of 2 does not exist"):
        Part(2, 2)


def test_a_variant_added_later_is_the_same(make, whole, tmp_path):
    for name in ("half", "full"):
        make(tmp_path / "features", variants={name: VARIANTS[name]})
    assert content(tmp_path / "features") == content(whole)


def test_a_clip_that_cannot_be_read_is_nan_and_changes_no_other(make, whole, table, tmp_path, monkeypatch):
    store = type(open_store(table.store))
    decode, clips = store.decode, [[table.cell(row, name) for name in ("video", "start", "end")] for row in range(16)]

    def is_gone(row):
        return row % 3 == 1

    def broken(self, video, times_T, *args, **kwargs):
        (row,) = [row for row, clip in enumerate(clips) if clip[0] == video and clip[1] <= times_T[0] < clip[2]]
        if is_gone(row):
            raise OSError("gone")
        return decode(self, video, times_T, *args, **kwargs)

    monkeypatch.setattr(store, "decode", broken)
    monkeypatch.setattr("vidlang.data.fetch.QUICK_WAITS", ())
    report = make(tmp_path / "features", variants={"full": {}})
    found, expected = FeatureStore(tmp_path / "features"), FeatureStore(whole)
    assert report.broken == 5
    for row in range(len(table)):
        if is_gone(row):
            assert np.isnan(found.read(row, "full")).all()
        else:
            np.testing.assert_array_equal(found.read(row, "full"), expected.read(row, "full"))


def test_windows_are_a_file_for_each_clip(run, table, tmp_path):
    cuts = windows(table.select([0, 5]), window="0.5 s", stride="0.25 s", name_column="start")
    extract(run, cuts, tmp_path / "nlq", variants={"full": {}}, frames=FRAMES, batch_size=BATCH, dtype="float32")
    store = FeatureStore(tmp_path / "nlq")
    for row in range(2):
        file, count = (store.index[name][row].as_py() for name in ("file", "count"))
        found = np.load(tmp_path / "nlq/full" / f"{file}.npy")
        assert found.shape == (count, 8) and count > 1
        one = table.select([[0, 5][row]])
        second = [{"start": one.cell(0, "start") + 0.25, "end": one.cell(0, "start") + 0.75}]
        again = type(one).from_columns(
            {"video": [one.cell(0, "video")], "texts": [[]]} | {k: [v] for k, v in second[0].items()}, store=one.store
        )
        out = tmp_path / f"one{row}"
        options = {"variants": {"full": {}}, "frames": FRAMES, "batch_size": BATCH, "dtype": "float32"}
        extract(run, segments(again, count=1, shard_rows=1), out, **options)
        np.testing.assert_allclose(FeatureStore(out).read(0, "full")[0], found[1], atol=1e-5)


def test_what_cannot_be_is_said(make, whole, run, table):
    with pytest.raises(ValueError, match=r"clip has 'fps'; an extraction's has only size, pixels, times, crop"):
        make(whole, clip={"fps": 3})
    with pytest.raises(ValueError, match="variant.json was made with other settings; different are: clip.crop.share"):
        make(whole, clip={**LOOK, "crop": {"name": "center", "share": 0.5}})
    with pytest.raises(ValueError, match="store.json was made with other settings; different are: .*segments"):
        make(whole, count=2)
    with pytest.raises(ValueError, match="no checkpoint of step 1; it has: 2"):
        make(whole, step=1)


@pytest.fixture
def aggregating(stage_config, aggregator, whole, corpus):
    """A stage that learns from the features of this corpus."""
    features = {"store": str(whole), "variants": ("full", "half"), "segments": SEGMENTS, "width": 8}
    evaluation = {
        "name": "retrieval",
        "every": "100 percent",
        "data": {**corpus, "split": "train"},
        "batch_size": 8,
        "clip": {"features": {**features, "variants": ("half",)}},
    }
    return stage_config(
        name="long",
        duration="3 steps",
        batch_size=8,
        model=aggregator(SEGMENTS),
        dials={},
        data={**corpus, "split": "train"},
        clip={"features": features, "text_length": 8},
        tokenizer=corpus["root"] + "/tokenizer.json",
        evals=(evaluation,),
    )


@pytest.mark.slow
def test_an_aggregator_learns_from_features_and_is_evaluated_on_them(aggregating, tmp_path):
    metrics = stages.train({"name": "tiny", "seed": 0, "stages": (aggregating,)}, tmp_path)
    assert np.isfinite(metrics["loss"]) and 0 <= metrics["val/t2v_r1"] <= 1 and metrics["val/missing"] == 0


@pytest.mark.slow
def test_sigterm_while_a_stage_extracts(aggregating, whole, run, table, corpus, tmp_path, monkeypatch):
    """Started again, the stage finds what was made, makes the rest, and trains on what it would have had."""
    made = tmp_path / "features"
    data = {**corpus, "split": "train"}
    extract = {"data": data, "out": str(made), "segments": SEGMENTS, "frames": FRAMES, "shard_rows": SHARD}
    stage = {**aggregating, "init_from": str(run), "init_allow": (".",), "extract": (extract,)}
    stage["clip"] = {**stage["clip"], "features": {**stage["clip"]["features"], "variants": ("full",)}}
    stage["clip"]["features"]["store"] = str(made)
    stage["evals"] = ()
    config = {"name": "tiny", "seed": 0, "stages": (stage,)}
    replaced = 0

    def replace(source, target, *, to=os.replace):
        nonlocal replaced
        replaced += 1
        if replaced == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        to(source, target)

    with monkeypatch.context() as patched:
        patched.setattr("vidlang.data.features.writer.os.replace", replace)
        with pytest.raises(Interrupted, match="143"):
            stages.train(config, tmp_path / "run")
        stopped_at = replaced
        assert not (tmp_path / "run" / "0_long" / "checkpoints").exists()
        metrics = stages.train(config, tmp_path / "run")
        again = replaced
    assert np.isfinite(metrics["loss"]) and stopped_at == 4 < again
    kept, expected = FeatureStore(made), FeatureStore(whole)
    for row in range(len(table)):  # a stage keeps float16
        np.testing.assert_allclose(kept.read(row, "full"), expected.read(row, "full"), atol=2e-3)


def test_where_features_lie_is_no_part_of_a_result(aggregating, whole, tmp_path):
    moved = {**aggregating, "clip": {**aggregating["clip"], "features": {**aggregating["clip"]["features"]}}}
    moved["clip"]["features"]["store"] = str(tmp_path)
    configs = [{"name": "tiny", "seed": 0, "stages": (stage,)} for stage in (aggregating, moved)]
    assert result_config(configs[0], 0) == result_config(configs[1], 0)
    stage = read_recipe(configs[0]).stages[0]
    known = sources.identity(stage, sources.tables(stage))["features"]
    assert known[0]["rows"] == 16 and set(known[0]["variants"]) == {"full", "half"}
    with pytest.raises(ValueError, match="augment changes frames, and clip.features has none"):
        sources.check(read_recipe({**configs[0], "stages": ({**aggregating, "augment": {"flip": 0.5}},)}).stages[0])
