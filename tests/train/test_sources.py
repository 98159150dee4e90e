"""A stage trains on one dataset or a mixture, on clips as they are or changed on the way, and knows its data again."""

import shutil

import jax
import numpy as np
import pytest

from vidlang.core.metrics import read_history
from vidlang.train import sources, stages
from vidlang.train.feed import shape_of
from vidlang.train.recipe import read_recipe
from vidlang.train.step import device_fields


def mixture(corpus, mixing="items", **second):
    """Two sources: the training clips, and the evaluation's as "held", with changes."""
    one, other = ({"data": {**corpus, "split": split}} for split in ("train", "val"))
    return {"mixing": mixing, "sources": (one, {**other, "name": "held", "weight": 3.0, **second})}


def losses(folder):
    return [record["loss"] for record in read_history(folder / "0_short/metrics.jsonl") if "loss" in record]


MIXTURES = {
    "plain": lambda corpus: {},
    "items": lambda corpus: {"data": mixture(corpus, loss_weight=2.0)},
    "batches": lambda corpus: {"data": mixture(corpus, "batches", clip={"frames": 2})},
    "yuv": lambda corpus: {"clip": clip(pixels="yuv420")},
}


def clip(**changes):
    spec = {"frames": 4, "size": 16, "times": {"name": "segments"}, "crop": {"name": "center"}, "text_length": 8}
    return spec | changes


@pytest.mark.parametrize("name", MIXTURES)
def test_the_shapes_known_beforehand_are_those_of_real_batches(recipe, corpus, name):
    read = read_recipe(recipe(**MIXTURES[name](corpus)))
    clips = sources.tables(read.stages[0])
    known = sources.batch_fields(read.stages[0], clips)
    assert known.keys() == sources.batch_fields(read.stages[0], None).keys()
    seen = set()
    with sources.train_stream(read, 0, clips, start_step=0) as stream:
        for _ in range(8):
            batch = device_fields(next(stream))
            assert {len(array) for array in batch.values()} == {8}
            seen.add(shape_of(batch))
    assert seen == set(known) and len(seen) == (2 if name == "batches" else 1)


# The learning rate is zero, so that what differs comes from the clips.
STILL = {"optimizer": {"learning_rate": 0.0}, "dials": {}, "duration": "2 steps"}


@pytest.fixture(scope="module")
def still(recipe, tmp_path_factory):
    """(metrics, losses) of two steps on clips as they are."""
    folder = tmp_path_factory.mktemp("still")
    return stages.train(recipe(**STILL), folder), losses(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["items", "batches"])
def test_a_mixture_trains_and_goes_on_as_if_never_stopped(recipe, corpus, tmp_path, name):
    changes = MIXTURES[name](corpus) | {"evals": (), "checkpoint": {"every": "3 steps"}, "duration": "6 steps"}
    stages.train(recipe(**changes), tmp_path / "whole")
    whole = losses(tmp_path / "whole")
    folder = tmp_path / "again/0_short"
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(folder / "checkpoints/6")
    (folder / "metrics.json").unlink()
    stages.train(recipe(**changes), tmp_path / "again")
    assert losses(tmp_path / "again") == whole and len(whole) == 6
    if name == "items":
        even = {**changes, "data": mixture(corpus, loss_weight=1.0), "duration": "1 step"}
        stages.train(recipe(**even), tmp_path / "even")
        assert losses(tmp_path / "even")[0] != whole[0], "weights of the loss reach it"


def test_an_epoch_is_as_many_clips_as_all_sources_have(recipe, corpus, tmp_path):
    config = recipe(data=mixture(corpus), evals=(), duration="0.125 epochs")
    clips = sum(map(len, sources.tables(read_recipe(config).stages[0])))
    stages.train(config, tmp_path)
    assert len(losses(tmp_path)) == -(-clips // 64)


def test_clips_in_yuv_train_and_evaluate_nearly_as_in_rgb(recipe, tmp_path, still):
    yuv, rgb = stages.train(recipe(clip=clip(pixels="yuv420"), **STILL), tmp_path), still[0]
    assert losses(tmp_path) == pytest.approx(still[1], abs=0.06) and losses(tmp_path) != still[1]
    assert yuv.keys() == rgb.keys() and yuv["val/t2v_mean_rank"] == pytest.approx(rgb["val/t2v_mean_rank"], abs=1.0)


MISTAKES = {
    "mixing": ({"mixing": "rows"}, "data.mixing must be one of items, batches; found 'rows'"),
    "no mixing": ({"mixing": None}, "data.mixing must be a text"),
    "none": ({"sources": ()}, "data.sources is empty"),
    "kind": ({"sources": ("train",)}, r"data.sources\[0\] must be a section of keys; found 'train'"),
    "key": ({"wieght": 1.0}, r"data.sources\[1\] has an unknown key 'wieght' \(did you mean 'weight'\?\)"),
    "weight": ({"weight": 0.0}, "a weight above 0 and a loss_weight of at least 0; found 0.0 and 1.0"),
    "data key": ({"data": {"name": "synthetic", "splt": "val"}}, "data of source held has an unknown key 'splt'"),
    "clip": ({"clip": {"frame": 3}}, "clip of source held has an unknown key 'frame'"),
    "times": ({"clip": {"times": {"name": "middl"}}}, "data of source held: clip.times: unknown times 'middl'"),
    "shape": ({"clip": {"frames": 2}}, "mixed in one batch, and their clip.frames is 4 and 2; .*'batches'"),
    "views": ({"clip": {"views": 2}}, "clip.views and clip.crops are for evaluations"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_mixture_is_found_before_data_is_made(recipe, corpus, tmp_path, monkeypatch, mistake):
    changes, message = MISTAKES[mistake]
    whole = {key: value for key, value in changes.items() if key in ("mixing", "sources")}
    data = mixture(corpus, **{key: value for key, value in changes.items() if key not in whole}) | whole
    monkeypatch.setattr(sources, "tables", lambda stage: pytest.fail("data was made"))
    with pytest.raises(ValueError, match=f"^stage 'short': .*{message}"):
        stages.train(recipe(data=data), tmp_path)


def test_another_size_of_clip_needs_a_model_that_takes_it(recipe, corpus, tmp_path):
    data = mixture(corpus, "batches", clip={"size": 24})
    with pytest.raises(ValueError, match="its clips need another model than the stage's clips do: .*video_in"):
        stages.train(recipe(data=data), tmp_path)


def test_the_same_data_in_another_place_goes_on(recipe, corpus, tmp_path):
    stages.train(recipe(evals=(), duration="2 steps"), tmp_path / "run")
    (tmp_path / "run/0_short/metrics.json").unlink()
    moved = {**corpus, "root": str(tmp_path / "elsewhere"), "workers": 2, "split": "train"}
    shutil.copytree(corpus["root"], moved["root"])
    tokenizer = {"path": moved["root"] + "/tokenizer.json"}
    stages.train(recipe(data=moved, tokenizer=tokenizer, evals=(), duration="2 steps"), tmp_path / "run")


def test_other_data_is_refused_and_named(recipe, corpus, tmp_path, monkeypatch):
    config = recipe(evals=(), duration="2 steps")
    stages.train(config, tmp_path)
    (tmp_path / "0_short/metrics.json").unlink()
    real = sources.tables
    monkeypatch.setattr(sources, "tables", lambda stage: [table.filter(np.arange(16) < 8) for table in real(stage)])
    with pytest.raises(ValueError, match=r"0_short was trained on other data: .*sources\[0\].rows was 16 and is 8"):
        stages.train(config, tmp_path)
    monkeypatch.undo()
    words = tmp_path / "tokenizer.json"
    shutil.copyfile(corpus["root"] + "/tokenizer.json", words)
    words.write_text(words.read_text().replace('"slides"', '"glides"'))
    with pytest.raises(ValueError, match="on other data: tokenizer was .* Bring the data back .* init_from"):
        stages.train({**config, "stages": ({**config["stages"][0], "tokenizer": str(words)},)}, tmp_path)


AUGMENT = {
    "flip": 0.5,
    "rand": {"layers": 2},
    "jitter": {"brightness": 0.4, "hue": 0.1},
    "grey": 0.2,
    "blur": {"sigma": (0.1, 1.0)},
    "erase": {"probability": 0.5},
}


@pytest.mark.slow
def test_clips_are_changed_in_training_only(recipe, tmp_path, still):
    changed = stages.train(recipe(augment=AUGMENT, **STILL), tmp_path)
    assert losses(tmp_path)[0] != still[1][0]
    assert {**changed, "loss": 0} == {**still[0], "loss": 0}


AUGMENT_MISTAKES = {
    "key": ({"flpi": 0.5}, r"augment has an unknown key 'flpi' \(did you mean 'flip'\?\)"),
    "section": ({"jitter": 0.4}, "augment.jitter must be a section of keys; found 0.4"),
    "inner": ({"jitter": {"brightnes": 0.4}}, r"augment.jitter has an unknown key 'brightnes' \(did you mean 'bright"),
    "rand": ({"rand": {"layer": 4}}, r"augment.rand has an unknown key 'layer' \(did you mean 'layers'\?\)"),
    "erase": ({"erase": {"area": (0.0, 0.3)}}, "augment.erase.area is a range of shares of a frame"),
    "kind": ({"flip": "often"}, "augment.flip must be a number; found 'often'"),
    "range": ({"flip": 2.0}, "augment.flip is a probability from 0 to 1; found 2.0"),
    "blur": ({"blur": {"sigma": (1.0, 8.0)}}, "reaches 24 pixels, and a frame is only 16 x 16"),
    "mixed": ({"mixup": {}}, "contrastive pairs a clip with its own text, .*take mixup and cutmix out"),
}


@pytest.mark.parametrize("mistake", AUGMENT_MISTAKES)
def test_a_mistake_in_augment_is_found_before_data_is_made(recipe, tmp_path, monkeypatch, mistake):
    augment, message = AUGMENT_MISTAKES[mistake]
    monkeypatch.setattr(sources, "tables", lambda stage: pytest.fail("data was made"))
    with pytest.raises(ValueError, match=message):
        stages.train(recipe(augment=augment), tmp_path)


TOKENIZERS = {
    "key": ({"path": "t.json", "claen": "x"}, r"tokenizer has an unknown key 'claen'"),
    "path": ({"clean": "none"}, "tokenizer must be the path of a tokenizer.json file, or a section with it"),
    "kind": (7, "tokenizer of .* must be a text or a section of keys; found 7|tokenizer must be"),
}


@pytest.mark.parametrize("mistake", TOKENIZERS)
def test_a_mistake_in_the_tokenizer_is_found_before_data_is_made(recipe, tmp_path, mistake):
    tokenizer, message = TOKENIZERS[mistake]
    with pytest.raises(ValueError, match=message):
        stages.train(recipe(tokenizer=tokenizer), tmp_path)


def test_broken_clips_are_written_down_by_kind(recipe, corpus, tmp_path, monkeypatch):
    from vidlang.data.chunks import ChunkStore
    from vidlang.data.failures import BrokenVideo

    real = ChunkStore.decode

    def decode(self, video, times_T, *args, **options):
        if video.endswith("0"):
            raise BrokenVideo("cut short", "truncated")
        return real(self, video, times_T, *args, **options)

    monkeypatch.setattr(ChunkStore, "decode", decode)
    config = recipe(evals=(), duration="3 steps", data=mixture(corpus))
    stages.train(config, tmp_path)
    records = read_history(tmp_path / "0_short/metrics.jsonl")
    found = [record.get("broken_truncated", 0) for record in records]
    assert found == [record["broken_clips"] for record in records] == sorted(found) and 0 < found[-1] < 24
    # Those of a step, though the next batch is drawn while it runs.
    read = read_recipe(config)
    with sources.train_stream(read, 0, sources.tables(read.stages[0]), start_step=0) as stream:
        assert found[0] == (next(stream)["broken_B"] >= 0).sum() and found[0] < found[-1]
    assert {record["worker_restarts"] for record in records} == {0}


def test_a_device_has_no_wide_numbers():
    assert device_fields({"id_B": np.array([2**31 - 1, -(2**31)])})["id_B"].dtype == np.int32
    for value in (2**31, -(2**31) - 1):
        with pytest.raises(ValueError, match=f"the batch field id_B holds {value}, and devices get whole numbers"):
            device_fields({"id_B": np.array([0, value])})
    assert device_fields({"x_B": np.zeros(2), "broken_kind_B": np.zeros(2)}).keys() == {"x_B"}
    assert jax.numpy.asarray(np.zeros(2)).dtype == device_fields({"x_B": np.zeros(2)})["x_B"].dtype


def classifier(corpus, classes):
    transformer = {"layers": 1, "width": 16, "heads": 4, "mlp": 32, "dtype": "float32"}
    video = {"transformer": transformer, "tubelet": (2, 8, 8)}
    return {
        "model": {"name": "classifier", "video": video, "heads": {"label": classes}},
        "objective": {"name": "classification"},
        "clip": clip(text_length=0, fields=("label",)),
        "tokenizer": "",
        "data": {**corpus, "split": "train", "annotations": "classes"},
        "dials": {},
        "evals": (),
    }


@pytest.mark.slow
def test_a_label_that_no_class_has_ends_a_training_before_its_first_step(recipe, corpus, tmp_path):
    """On a device it would be no number, and the guard would speak of a bad learning rate."""
    changes = classifier(corpus, 2)
    highest = int(sources.tables(read_recipe(recipe(**changes)).stages[0])[0].column("label").max())
    message = f"data of stage 'short': 'label' is .* in clip .* has 2 classes, counted from 0. Give it {highest + 1}, "
    with pytest.raises(ValueError, match=message):
        stages.train(recipe(**changes), tmp_path / "few")
    stages.train(recipe(**classifier(corpus, highest + 1), duration="1 step"), tmp_path / "enough")
