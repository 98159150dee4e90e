"""Runs that several tests look at, each trained once."""

import pytest

from tests.serve.tiny_captioner import corpus_at, train_captioner
from tests.serve.tiny_dual import train_dual


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """The data section of their clips."""
    return corpus_at(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def captioner_run(tmp_path_factory, corpus):
    """(folder of the run, data section of the corpus it was trained on)."""
    return train_captioner(tmp_path_factory.mktemp("run"), corpus), corpus


@pytest.fixture(scope="session")
def dual_run(tmp_path_factory, corpus):
    """The same of a dual encoder, with two checkpoints."""
    return train_dual(tmp_path_factory.mktemp("dual"), corpus), corpus
