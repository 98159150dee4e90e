"""launch.export: a run as files at several widths, and what it says of mistakes."""

import json

import numpy as np
import pytest

from tests.serve.tiny_run import CLASSIFIER, tiny_run
from vidlang.serve.export import onnx_file


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("run"), CLASSIFIER)[0]


def test_a_run_becomes_a_folder_for_each_width(launch, run, tmp_path):
    done = launch("launch.export", f"--run={run}", f"--out={tmp_path}", "--width=full,8", "--time")
    assert done.code == 0, done.err
    head, full, narrow = (line.split() for line in done.out.splitlines())
    assert head == ["width", "parameters", "method", "bytes", "milliseconds"]
    for line, width in ((full, "full"), (narrow, "8")):
        card = json.loads((tmp_path / width / "export.json").read_text())
        size = (tmp_path / width / "classify.onnx").stat().st_size
        assert line[:4] == [width, f"{card['parameters']:,}", "classify", f"{size:,}"] and float(line[4]) > 0
        logits = onnx_file.session(tmp_path / width / "classify.onnx").run(
            ["logits"], {"video": np.zeros((3, 4, 16, 16, 3), np.uint8)}
        )
        assert logits[0].shape == (3, 8)
    assert int(full[3].replace(",", "")) > int(narrow[3].replace(",", ""))


def test_stablehlo_of_one_width_lies_in_the_folder_itself(launch, run, tmp_path):
    given = ("--format=stablehlo", "--platforms=cpu", "--dials={'mask': 0.0}", "--nocheck")
    done = launch("launch.export", f"--run={run}/0_tiny", f"--out={tmp_path / 'one'}", "--step=7", *given)
    assert done.code == 0, done.err
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["classify.stablehlo", "export.json"]
    assert "milliseconds" not in done.out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--width=8,8",), "--width names each width once"),
        (("--width=d-770",), "unknown preset of widths 'd-770'"),
        (("--width=7",), "a width is a multiple of the head size 4"),
        (("--platforms=cpu",), "--platforms is for --format=stablehlo"),
        (("--dtype=own",), "--dtype is for --format=stablehlo"),
        (("--format=tflite",), "--format=tflite"),
        (("--dials=keep",), "--dials must be a section"),
        (("--dials={'kept': 3}",), "kept"),
        (("--step=3",), "has no checkpoint of step 3"),
    ],
)
def test_mistakes_are_one_sentence(launch, run, tmp_path, arguments, reason):
    done = launch("launch.export", f"--run={run}", f"--out={tmp_path / 'out'}", *arguments)
    assert done.code == 2 and reason in done.err and "Traceback" not in done.err, done.err
    assert not (tmp_path / "out").exists()
