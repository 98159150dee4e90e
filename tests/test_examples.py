"""What people copy runs: each script of examples/, and the Python of docs/load.md and of the README."""

import re
import runpy
import shutil
import sys

import pytest

from tests.serve.tiny_captioner import corpus_at, train_captioner, write_video
from tests.serve.tiny_dual import train_dual
from vidlang.train import stages


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return corpus_at(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, corpus):
    return train_dual(tmp_path_factory.mktemp("run"), corpus)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    return [write_video(folder / f"{name}.mp4", 2.0) for name in ("one", "two")]


@pytest.fixture
def example(repository, monkeypatch, capsys):
    """example("search", ...) -> what the script printed."""

    def play(name, *arguments):
        path = repository / "examples" / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        capsys.readouterr()
        runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out

    return play


def test_search_finds_clips_of_the_evaluation(example, run):
    lines = example("search", run, "a red circle slides left then a blue square spins").splitlines()
    scores = [float(line.split()[0]) for line in lines]
    assert len(lines) == 5 and scores == sorted(scores, reverse=True) and len(set(scores)) > 1
    assert all(re.fullmatch(r"-?\d\.\d{3}  \S+ [\d.]+-[\d.]+ s  \w.*", line) for line in lines)


def test_classify_prints_the_labels_by_their_probability(example, run, films):
    lines = example("classify", run, films[0], "a red circle spins", "a blue square grows").splitlines()
    found = {line.split("  ")[1]: float(line.split("  ")[0]) for line in lines}
    assert found.keys() == {"a red circle spins", "a blue square grows"}
    assert sum(found.values()) == pytest.approx(1, abs=0.002) and list(found.values()) == sorted(found.values())[::-1]


@pytest.mark.slow
def test_caption_says_something_of_each_file(example, corpus, films, tmp_path):
    lines = example("caption", train_captioner(tmp_path / "run", corpus), *films).splitlines()
    assert [line.split(":")[0] for line in lines] == list(map(str, films))


def test_width_tradeoff_costs_less_the_narrower_it_is(example, run):
    lines = example("width_tradeoff", run, "d-768", "d-384").splitlines()
    cost = [float(re.search(r"(\S+) GFLOP", line)[1]) for line in lines]
    assert [line.split()[0] for line in lines] == ["d-768", "d-384"] and cost[1] < cost[0]
    assert all("val/" in line for line in lines)


@pytest.mark.slow
def test_resume_goes_on_to_the_same_end(example, run, tmp_path, monkeypatch):
    """A training that is stopped at its first checkpoint ends with the metrics of one that was not."""
    saved = stages.train_stage
    shutil.copytree(run, tmp_path / "run")
    stage = tmp_path / "run" / "0_short"
    for path in (stage / "metrics.json", tmp_path / "run" / "metrics.json"):
        path.unlink()
    shutil.rmtree(stage / "checkpoints" / "2")
    begun = []
    monkeypatch.setattr(stages, "train_stage", lambda *some, **others: begun.append(1) or saved(*some, **others))
    whole = example("resume", run)
    assert not begun, "a finished one is not trained again"
    again = example("resume", tmp_path / "run")
    assert "starts from its own checkpoint" in again and again.endswith(whole) and begun == [1]
    assert "val/t2v_r1: " in whole


def blocks(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", ["docs/load.md", "README.md"])
def test_the_python_of_the_docs_runs(page, repository, run, films, tmp_path, monkeypatch):
    code = [block for block in blocks(repository / page) if "vidlang" in block or "model." in block]
    if not code:
        pytest.skip(f"{page} has no such Python yet")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(run)
    for film in films:
        shutil.copy(film, tmp_path)
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in code:
        exec(block, names)
    assert names["model"].methods
