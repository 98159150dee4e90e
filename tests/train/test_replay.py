"""The batch of a step can be drawn again, and is the one that the training saw."""

import numpy as np
import pytest

from vidlang.train import prepared, stages
from vidlang.train.recipe import read_recipe
from vidlang.train.replay import replay


def test_it_is_the_batch_that_the_step_saw(recipe, tmp_path, monkeypatch):
    seen, put = [], prepared.Feed.take

    def take(self):
        seen.append(batch := put(self))
        return batch

    monkeypatch.setattr(prepared.Feed, "take", take)
    config = recipe(evals=())
    stages.train(config, tmp_path)
    first, *clips = replay(read_recipe(config), tmp_path, "2")
    assert first == f"step 2 of stage short: 8 clips, written to {tmp_path}/0_short/batch_2.npz"
    with np.load(tmp_path / "0_short/batch_2.npz") as found:
        for name, array in seen[2].arrays.items():
            np.testing.assert_array_equal(found[name], np.asarray(array), err_msg=name)
            assert name == "text_BL" or not np.array_equal(found[name], np.asarray(seen[1].arrays[name]))
        assert [int(clip.split()[1]) for clip in clips] == found["index_B"].tolist()
    assert replay(read_recipe(config), tmp_path, "short:2") == [first, *clips]


@pytest.mark.parametrize(
    ("which", "sentence"),
    [
        ("x", "--replay is a step, as in 120, or stage and step, as in warmup:120; found 'x'"),
        ("shirt:2", r"--replay names the stage 'shirt' \(did you mean 'short'\?\); begun are: short"),
    ],
)
def test_mistakes(recipe, tmp_path, which, sentence):
    with pytest.raises(ValueError, match="no stage of this config was begun"):
        replay(read_recipe(recipe()), tmp_path, "2")
    (tmp_path / "0_short").mkdir()
    with pytest.raises(ValueError, match=sentence):
        replay(read_recipe(recipe()), tmp_path, which)
