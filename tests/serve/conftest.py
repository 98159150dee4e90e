"""One captioner for all tests of what it says."""

import pytest

from tests.serve.tiny_captioner import corpus_at, train_captioner


@pytest.fixture(scope="session")
def captioner_run(tmp_path_factory):
    """(folder of the run, data section of the corpus it was trained on)."""
    corpus = corpus_at(tmp_path_factory.mktemp("corpus"))
    return train_captioner(tmp_path_factory.mktemp("run"), corpus), corpus
