"""Launchers run inside the test's process, as `python -m` would run them."""

import dataclasses
import runpy
import sys
from pathlib import Path

import pytest
from absl import flags

from vidlang.datasets import synthetic


@dataclasses.dataclass
class Exit:
    """How a launcher ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def launch(monkeypatch, capfd):
    """launch("launch.train", "--workdir=...") -> its exit code and what it printed."""

    def run(module, *arguments):
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        capfd.readouterr()
        try:
            with pytest.raises(SystemExit) as end:
                runpy.run_module(module, run_name="__main__")
        finally:
            # Two launchers may call a flag the same; a process has only one of them. Libraries' flags stay.
            for name in list(flags.FLAGS):
                if name.split(".")[0] == "config" or flags.FLAGS.find_module_defining_flag(name) == module:
                    delattr(flags.FLAGS, name)
        code = end.value.code
        return Exit(0 if code is None else code, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory):
    """The flag that names the tiny recipe, with a corpus of its own, made here: what a test prints is its own."""
    path, root = Path(__file__).parent / "tiny_config.py", tmp_path_factory.mktemp("corpus")
    data = runpy.run_path(str(path))["get_config"](str(root)).stages[0].data.to_dict()
    synthetic.load(**{name: value for name, value in data.items() if name != "name"})
    return f"--config={path}:{root}"
