"""A language model trains on the texts of tables alone, after prompts of its sources, in whatever parts of a batch."""

import shutil

import jax
import numpy as np
import pytest

from vidlang.core.metrics import read_history
from vidlang.core.sharding import make_mesh
from vidlang.core.tree import flatten_paths
from vidlang.data.chunks import ChunkStore
from vidlang.train import sources, stages
from vidlang.train.recipe import read_recipe
from vidlang.train.saved import restore_params
from vidlang.train.step import device_fields

LANGUAGE = {"layers": 2, "width": 16, "heads": 2, "mlp": 32, "vocab": 128, "max_length": 32, "dtype": "float32"}


@pytest.fixture
def texts(recipe, corpus):
    """The recipe of a mixture of captions and of answers to questions."""

    def make(**changes):
        train = {**corpus, "split": "train"}
        parts = (
            {"name": "captions", "data": train, "clip": {"prompt": ""}},
            {"name": "answers", "data": {**train, "annotations": "questions"}, "clip": {"prompt": "{question}"}},
        )
        stage = {
            "model": {"name": "language", "language": LANGUAGE},
            "data": {"mixing": "items", "sources": parts},
            "clip": {"frames": 0, "text_length": 32},
            "objective": {"name": "captioning"},
            "dials": {},
            "evals": (),
            "duration": "4 steps",
        }
        return recipe(**stage | changes)

    return make


def history(folder):
    return [record for record in read_history(folder / "0_short/metrics.jsonl") if "loss" in record]


def params_of(folder):
    return flatten_paths(jax.device_get(restore_params(folder / "0_short", 4, make_mesh({"data": -1}))))


@pytest.fixture
def undecoded(monkeypatch):
    """Whatever opens or decodes a video fails."""
    monkeypatch.setattr(ChunkStore, "decode", lambda *_: pytest.fail("something was decoded"))
    monkeypatch.setattr(ChunkStore, "info", lambda *_: pytest.fail("a video was looked up"))


def test_batches_are_as_known_beforehand_and_each_source_has_its_prompts(texts, corpus, undecoded):
    read = read_recipe(texts())
    clips = sources.tables(read.stages[0])
    known = sources.batch_fields(read.stages[0], clips)
    with sources.train_stream(read, 0, clips, start_step=0) as stream:
        batch = device_fields(next(stream))
    (fields,) = known.values()
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
        name: (field.shape, field.dtype) for name, field in fields.items()
    }
    assert set(batch) == {"text_BL", "prompt_B", "index_B", "source_B", "weight_B"}
    captions = batch["source_B"] == 0
    assert (batch["prompt_B"][captions] == 1).all() and (batch["prompt_B"][~captions] > 3).all()
    assert 0 < captions.sum() < 8


@pytest.mark.slow
def test_it_learns_and_goes_on_as_if_never_stopped(texts, tmp_path, undecoded):
    stages.train(texts(duration="6 steps", checkpoint={"every": "3 steps"}), tmp_path / "whole")
    whole = history(tmp_path / "whole")
    assert whole[-1]["loss"] < whole[0]["loss"] - 0.1
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again/0_short/checkpoints/6")
    (tmp_path / "again/0_short/metrics.json").unlink()
    stages.train(texts(duration="6 steps", checkpoint={"every": "3 steps"}), tmp_path / "again")
    assert [record["loss"] for record in history(tmp_path / "again")] == [record["loss"] for record in whole]


@pytest.mark.slow
def test_parts_of_a_batch_with_unequal_prompts_are_the_whole_batch(texts, tmp_path):
    """The parts ask for unequal numbers of tokens, and all tokens of the batch count alike."""
    for name, micro in (("whole", {}), ("parts", {"batches": 2})):
        stages.train(texts(micro=micro, batch_size=16), tmp_path / name)
    whole, parts = history(tmp_path / "whole"), history(tmp_path / "parts")
    for key in ("loss", "accuracy", "asked"):
        np.testing.assert_allclose([r[key] for r in parts], [r[key] for r in whole], rtol=1e-4)
    one, other = params_of(tmp_path / "whole"), params_of(tmp_path / "parts")
    for path in one:
        np.testing.assert_allclose(other[path], one[path], rtol=1e-3, atol=1e-5, err_msg=path)
