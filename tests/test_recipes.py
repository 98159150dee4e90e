"""The tiny variant of each recipe trains its stages, is stopped and goes on in each of them, and is measured.

Of SViTT's curriculum, the same stage with other numbers four times, the first and the last stand for all.
"""

import importlib
import math
import os
import pkgutil
import signal

import numpy as np
import pytest

import configs
from vidlang.core.metrics import read_history
from vidlang.core.sharding import make_mesh
from vidlang.core.tree import flatten_paths
from vidlang.train import prepared, stages
from vidlang.train.program import Program
from vidlang.train.saved import find_checkpoint, restore_params
from vidlang.train.signals import Interrupted

STEPS = 3


def has_tiny(name):
    module = importlib.import_module(f"configs.{name}")
    return hasattr(module, "get_config") and ":tiny" in (module.__doc__ or "")


NAMES = [module.name for module in pkgutil.iter_modules(configs.__path__) if has_tiny(module.name)]


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory):
    """Where the corpus of all tiny variants lies; whoever comes first makes it, under a lock of its own."""
    return tmp_path_factory.getbasetemp().parent


def shortened(config):
    """The same stages for a few steps, with an evaluation of each kind in the first and the last of them."""
    plain = config.copy_and_resolve_references().unlock()
    plain.runtime.workers = 0
    if plain.get("curriculum"):
        plain.stages = (plain.stages[0], plain.stages[-1])
    for number, stage in enumerate(plain.stages):
        stage.duration = f"{STEPS} steps"
        kinds = {evaluation.name: evaluation for evaluation in stage.evals}
        stage.evals = () if 0 < number < len(plain.stages) - 1 else tuple(kinds.values())
    return plain


def train_with_a_stop_in_each_stage(config, workdir, monkeypatch):
    """The metrics of a training that SIGTERM ended once in each stage, and that the same call continued."""
    stopped = set()

    class Stopping(prepared.Meter):
        def __init__(self, writer, stage, *others):
            self.label = stage.name
            super().__init__(writer, stage, *others)

        def started(self, step, *others):
            if step == 1 and self.label not in stopped:
                stopped.add(self.label)
                os.kill(os.getpid(), signal.SIGTERM)
            return super().started(step, *others)

    compiled, compiling, checking = {}, Program.compile, stages.check_recipe
    checked = []

    def check_once(recipe):
        """Of the same recipe it would say the same again, and trace the same programs."""
        checked.extend(checking(recipe) if not checked else ())
        return list(checked)

    def compile_once(program, mesh, fields):
        """Of one stage and one shape of batch it would be the same program again."""
        key = (id(program), repr(fields))
        if key not in compiled:
            # With the program, lest another one gets its number.
            compiled[key] = program, compiling(program, mesh, fields)
        return compiled[key][1]

    with monkeypatch.context() as patch:
        patch.setattr(prepared, "Meter", Stopping)
        patch.setattr(stages, "check_recipe", check_once)
        patch.setattr(Program, "compile", compile_once)
        for _ in config.stages:
            with pytest.raises(Interrupted):
                stages.train(config, workdir)
        metrics = stages.train(config, workdir)
    assert stopped == {stage.name for stage in config.stages}
    return metrics


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_tiny_variant_trains_goes_on_and_is_measured(name, corpus_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(corpus_folder)
    config = shortened(importlib.import_module(f"configs.{name}").get_config("tiny"))
    metrics = train_with_a_stop_in_each_stage(config, tmp_path, monkeypatch)
    assert math.isfinite(metrics["loss"])
    for number, stage in enumerate(config.stages):
        history = read_history(tmp_path / f"{number}_{stage.name}" / "metrics.jsonl")
        losses = [record["loss"] for record in history if "loss" in record]
        assert len(losses) == STEPS and all(map(math.isfinite, losses))
        for evaluation in stage.evals:
            assert any(key.startswith(f"{evaluation.prefix}/") for record in history for key in record)
    if name in AFTERWARDS:
        AFTERWARDS[name](tmp_path)


def params_of(workdir, stage):
    """The last parameters of a stage, by path."""
    (folder,) = workdir.glob(f"*_{stage}")
    found, step = find_checkpoint(str(folder))
    return {name: np.asarray(leaf) for name, leaf in flatten_paths(restore_params(found, step, mesh())).items()}


def mesh():
    return make_mesh({"data": -1})


def longvivit_trained_only_what_it_says(workdir):
    """From 8 frames to 32: positions in time repeat; of four layers two change, and the projections."""
    short, long = params_of(workdir, "short"), params_of(workdir, "long")
    assert short.keys() == long.keys()
    for name, before in short.items():
        after = long[name]
        if name == "video_encoder/temporal":
            np.testing.assert_array_equal(after, np.tile(before, (4, 1)))
        elif name.startswith("video_encoder/stack/layers/"):
            np.testing.assert_array_equal(after[:2], before[:2])
            if name.endswith("kernel"):
                assert (after[-1] != before[-1]).any()
        elif name.startswith(("video_encoder/norm", "video_projection", "text_projection", "log_scale")):
            assert (after != before).any(), name
        else:
            np.testing.assert_array_equal(after, before)


AFTERWARDS = {"longvivit": longvivit_trained_only_what_it_says}
