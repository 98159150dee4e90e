"""A config file or an override that fails is one sentence that says where."""

import re
import sys
from pathlib import Path

import pytest
from absl import flags, logging
from ml_collections import config_flags

from launch import cli

DEMO = f"--config={cli.ROOT / 'configs' / 'demo.py'}"


@pytest.fixture
def parse(monkeypatch, capsys):
    """parse("--config=...") -> the sentence that the flags end with, "" where there is none."""
    verbosity = logging.get_verbosity()

    def parse(*arguments, **options):
        monkeypatch.setattr(sys, "argv", ["launcher", *arguments])
        # Under this name a config file is loaded into the module of the one before, with what that one had.
        monkeypatch.delitem(sys.modules, "config_config", raising=False)
        config_flags.DEFINE_config_file("config", lock_config=True)
        try:
            cli._parse(sys.argv, **options)
            return flags.FLAGS["config"].value and ""
        except SystemExit as end:
            assert end.code == 2
            return capsys.readouterr().err
        finally:
            for name in [name for name in flags.FLAGS if name.split(".")[0] == "config"]:
                delattr(flags.FLAGS, name)

    yield parse
    logging.set_verbosity(verbosity)


FILES = {
    "syntax": ("def get_config():\n    return {\n", "{path}, line 2: '{{' was never closed"),
    "no function": ("seed = 1\n", "{path} has no get_config(), the function that returns the config"),
    "no division": ("def get_config():\n    return 1 / 0\n", "{path}, line 2: ZeroDivisionError: division by zero"),
    "no name": ("import os\nwidth = withd\n", "{path}, line 2: NameError: name 'withd' is not defined"),
    "no module": ("import nothing_of_this_name\n", "{path}, line 1: ModuleNotFoundError: No module named"),
    "refused": ("def get_config():\n    raise ValueError('a\\nb')\n", "{path}, line 2: ValueError: a b"),
    "no data": ("def get_config():\n    open('absent')\n", "{path}, line 2: FileNotFoundError: [Errno 2] No such"),
}


@pytest.mark.parametrize("overrides", [(), ("--config.seed=1",)])
@pytest.mark.parametrize("mistake", FILES)
def test_a_config_file_that_fails_says_where(parse, tmp_path, mistake, overrides):
    text, sentence = FILES[mistake]
    path = tmp_path / "own.py"
    path.write_text(text)
    for flag in ((f"--config={path}",), ("--config", str(path))):
        said = parse(*flag, *overrides)
        assert said.startswith("error: " + sentence.format(path=path)) and said.count("\n") == 1


@pytest.mark.parametrize("overrides", [(), ("--config.seed=1",)])
def test_a_missing_config_file_is_one_sentence(parse, overrides):
    said = parse("--config=nowhere.py:argument", *overrides)
    assert said == "error: The config file cannot be read: No such file or directory: 'nowhere.py'\n"


OVERRIDES = {
    "stages[7].duration=1 step": r"--config\.stages\[7\]\.duration names nothing in the config: the list has fewer",
    "mesh=8": r"--config\.mesh is a section of keys; give one of them, as in --config\.mesh\.KEY=",
    "runtime=abc": r"--config\.runtime is a section of keys",
    "stages[0]=3": r"--config\.stages\[0\] is a section of keys",
    "sead=1": r"names nothing in the config: .*Did you mean \"seed\"",
    "seed=x": r"flag --config\.seed=x: invalid literal",
}


@pytest.mark.parametrize("override", OVERRIDES)
def test_an_override_that_fails_is_named(parse, override):
    said = parse(DEMO, f"--config.{override}")
    assert re.search(OVERRIDES[override], said) and said.count("\n") == 1 and said.startswith("error: ")


def test_overrides_that_fit_pass(parse):
    assert parse(DEMO, "--config.stages[0].duration=1 step", "--config.mesh={'data': 2}") == ""


@pytest.mark.parametrize("loud", [["--verbosity=1"], ["--verbosity", "1"], ["-v=1"]])
def test_a_traceback_is_shown_when_asked_for(launch, caplog, tmp_path, loud):
    path = tmp_path / "own.py"
    path.write_text("def get_config():\n    return 1 / 0\n")
    arguments = [f"--config={path}", f"--workdir={tmp_path}"]
    verbosity = logging.get_verbosity()
    try:
        assert launch("launch.train", *arguments).code == 2 and "Traceback" not in caplog.text
        for where in ([*arguments, *loud], [*loud, *arguments]):
            logging.set_verbosity(verbosity)
            caplog.clear()
            done = launch("launch.train", *where)
            assert done.code == 2 and "own.py, line 2: Zero" in done.err
            assert "Traceback" in caplog.text and "return 1 / 0" in caplog.text
    finally:
        logging.set_verbosity(verbosity)


def test_the_demo_finds_its_config_from_any_folder(launch, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for place, words in (("mesh", "section of keys"), ("stages[7].name", "the list has fewer")):
        done = launch("launch.demo", f"--config.{place}=8")
        assert done.code == 2 and words in done.err and done.err.count("\n") == 1
    done = launch("launch.demo", "--config.stages[0].model.name=dual_encodr")
    assert done.code == 2 and "did you mean 'dual_encoder'" in done.err


def test_a_path_is_shown_as_one_would_type_it(monkeypatch, tmp_path):
    from launch import demo

    try:
        monkeypatch.chdir(cli.ROOT)
        assert demo.shown(str(demo.DEFAULT)) == "configs/demo.py"
        assert demo.shown("configs/demo.py") == "configs/demo.py"
        monkeypatch.chdir(tmp_path)
        assert Path(demo.shown(str(demo.DEFAULT))) == demo.DEFAULT
    finally:
        sys.modules.pop("launch.demo")
        for name in ("config", "workdir"):
            delattr(flags.FLAGS, name)
