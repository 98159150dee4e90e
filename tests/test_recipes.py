"""The tiny variant of each recipe trains all its stages, is stopped and goes on in each of them, and is measured."""

import importlib
import math
import os
import pkgutil
import signal
from pathlib import Path

import pytest

import configs
from vidlang.core.metrics import read_history
from vidlang.train import loop, stages
from vidlang.train.signals import Interrupted

STEPS = 3


def has_tiny(name):
    return ":tiny" in (importlib.import_module(f"configs.{name}").__doc__ or "")


NAMES = [module.name for module in pkgutil.iter_modules(configs.__path__) if has_tiny(module.name)]


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory):
    """Where the corpus of all tiny variants lies; whoever comes first makes it, under a lock of its own."""
    return tmp_path_factory.getbasetemp().parent


def shortened(config):
    """The same stages for a few steps, with an evaluation of each kind."""
    plain = config.copy_and_resolve_references().unlock()
    plain.runtime.workers = 0
    for stage in plain.stages:
        stage.duration = f"{STEPS} steps"
        kinds = {evaluation.name: evaluation for evaluation in stage.evals}
        stage.evals = tuple(kinds.values())
    return plain


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_tiny_variant_trains_goes_on_and_is_measured(name, corpus_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(corpus_folder)
    config = shortened(importlib.import_module(f"configs.{name}").get_config("tiny"))
    stopped = set()

    class Stopping(loop.Meter):
        def started(self, step, scalars):
            if step == 1 and self.label not in stopped:
                stopped.add(self.label)
                os.kill(os.getpid(), signal.SIGTERM)
            return super().started(step, scalars)

        def __init__(self, writer, stage):
            self.label = stage.name
            super().__init__(writer, stage)

    monkeypatch.setattr(loop, "Meter", Stopping)
    for _ in config.stages:
        with pytest.raises(Interrupted):
            stages.train(config, tmp_path)
    metrics = stages.train(config, tmp_path)
    assert stopped == {stage.name for stage in config.stages}
    for number, stage in enumerate(config.stages):
        history = read_history(Path(tmp_path) / f"{number}_{stage.name}" / "metrics.jsonl")
        losses = [record["loss"] for record in history if "loss" in record]
        assert len(losses) == STEPS and all(map(math.isfinite, losses))
        for evaluation in stage.evals:
            assert any(key.startswith(f"{evaluation.prefix}/") for record in history for key in record)
    assert math.isfinite(metrics["loss"])
