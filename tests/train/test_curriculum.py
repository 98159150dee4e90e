"""SViTT's temporal expansion: stages that break one of its three rules are refused, and its own pass."""

import dataclasses

import pytest

from vidlang.train import curriculum
from vidlang.train.recipe import Stage


def stage(name, frames, keep=None, edges=None):
    edges = edges and {"local": edges[0], "random": edges[1], "block": edges[2]}
    dials = {"keep": {3: keep} if keep else {}, "edges": edges}
    clip = {"frames": frames, "size": 32, "times": {"name": "segments"}, "crop": {"name": "center"}, "text_length": 8}
    made = {"name": name, "duration": "1 steps", "batch_size": 8, "model": {}, "data": {}, "tokenizer": "x"}
    return Stage(**made, clip=clip, objective={}, optimizer={}, dials=dials)


SPARSE = (1, 3, 56)
PAPER = [stage("one", 1), stage("short", 4, 0.7, SPARSE), stage("mid", 8, 0.6, SPARSE), stage("long", 16, 0.5, SPARSE)]


def test_the_papers_stages_follow_and_dense_ones_may_come_before():
    curriculum.check("sparse_expansion", PAPER)
    curriculum.check("sparse_expansion", [stage("one", 1), stage("two", 4), *PAPER[2:]])
    curriculum.check("", PAPER[::-1])


@pytest.mark.parametrize(
    ("last", "words"),
    [
        (stage("long", 8, 0.5, SPARSE), "number of frames to rise from stage to stage; it goes from 8 in 'mid' to 8"),
        (stage("long", 16, 0.6, SPARSE), "share of tokens kept to fall from stage to stage; it goes from 0.6"),
        (stage("long", 16, None, SPARSE), "it goes from 0.6 in 'mid' to 1 in 'long'"),
        (stage("long", 16, 0.5, (1, 7, 56)), "blocks attended to, for each frame, to fall"),
        (stage("long", 16, 0.5), "it goes from 0.5 in 'mid' to inf in 'long'"),
    ],
)
def test_a_stage_that_breaks_a_rule_is_named(last, words):
    with pytest.raises(ValueError, match=words):
        curriculum.check("sparse_expansion", [*PAPER[:3], last])


def test_an_unknown_curriculum_is_refused():
    with pytest.raises(ValueError, match="unknown curriculum 'expansion'; there is sparse_expansion"):
        curriculum.check("expansion", [dataclasses.replace(PAPER[0])])
