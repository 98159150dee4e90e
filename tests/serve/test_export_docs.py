"""The scripts of the page on export work as they stand there, in a process that knows nothing of vidlang."""

import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.serve.tiny_run import WORDS, tiny_run
from vidlang.data.tokenizer import Tokenizer
from vidlang.serve.export.folder import How, export_run
from vidlang.train.evaluate import restore_model


def script(repository, title, place, folder):
    """The first script under a heading, for another folder."""
    section = (repository / "docs" / "export.md").read_text(encoding="utf-8").partition(f"## {title}\n")[2]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    assert place in code
    alone = "import sys\nsys.modules['vidlang'] = None\n"
    return alone + code.replace(place, str(folder))


def run_alone(code, tmp_path):
    """What a script printed, run away from the checkout."""
    path = tmp_path / "script.py"
    path.write_text(code, encoding="utf-8")
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, path], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return np.asarray(json.loads(done.stdout), np.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("run"))


def expected(workdir, params, method, array):
    model, _, _ = restore_model(workdir)
    return np.asarray(jax.jit(lambda array: model.apply({"params": params}, array, method=method))(array))


def test_onnx(run, repository, tmp_path):
    workdir, params = run
    export_run(workdir, tmp_path / "out", how=How(check=False))
    code = script(repository, "Asking an ONNX file", "exported/adavid/384", tmp_path / "out")
    code += f"print(json.dumps(ask('embed_text', encode({WORDS})).tolist()))\n"
    _, _, stage = restore_model(workdir)
    rows = Tokenizer(length=8, **stage.tokenizer).encode(WORDS)
    found = run_alone(code, tmp_path)
    np.testing.assert_allclose(found, expected(workdir, params, "embed_text", rows), atol=1e-5)


@pytest.mark.slow
def test_stablehlo(run, repository, tmp_path):
    workdir, params = run
    export_run(workdir, tmp_path / "out", how=How("stablehlo", platforms=("cpu", "tpu"), check=False))
    code = script(repository, "Asking a StableHLO file", "exported/hlo", tmp_path / "out")
    code += "print(json.dumps(embeddings.tolist()))\n"
    clips = np.zeros((2, 4, 16, 16, 3), np.uint8)
    found = run_alone(code, tmp_path)
    np.testing.assert_allclose(found, expected(workdir, params, "embed_video", clips), atol=1e-5)
