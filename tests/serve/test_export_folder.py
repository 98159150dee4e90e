"""Runs as folders of files: each width answers what the trained model does there, and the card says how to ask."""

import json
import sys

import jax
import numpy as np
import pytest

from tests.serve.tiny_run import CLASSIFIER, TRANSFORMER, WORDS, tiny_run
from vidlang.data.tokenizer import Tokenizer
from vidlang.models import classifier
from vidlang.ops.dials import Dials
from vidlang.serve.export import folder as folders
from vidlang.serve.export import onnx_file, stablehlo
from vidlang.serve.export.folder import How, export_run
from vidlang.serve.export.graph import Graph
from vidlang.train.evaluate import restore_model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("dual"))


def clips(batch, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (batch, 4, 16, 16, 3), np.uint8)


def answer(folder, card, method, *arrays):
    """What a file gives, asked as its card says."""
    own = card["methods"][method]
    assert sum((folder / name).stat().st_size for name in own["files"]) == own["bytes"]
    for described, array in zip(own["inputs"], arrays, strict=True):
        assert described["shape"] == ["batch", *array.shape[1:]] and described["dtype"] == str(array.dtype)
    if card["format"] == "stablehlo":
        found = stablehlo.read(folder / own["files"][0])(*arrays)
    else:
        named = dict(zip([each["name"] for each in own["inputs"]], arrays, strict=True))
        (found,) = onnx_file.session(folder / own["files"][0]).run([own["output"]["name"]], named)
    assert own["output"]["shape"] == ["batch", *found.shape[1:]] and own["output"]["dtype"] == str(found.dtype)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "stablehlo"])
def test_each_width_is_the_trained_model_at_that_width(run, tmp_path, format):
    workdir, params = run
    model, _, _ = restore_model(workdir)
    widths = {"full": None, "8": (8, 8), "d-dec-low": (12, 8)}
    with pytest.raises(ValueError, match="holds 9; a width is a multiple of the head size 4"):
        export_run(workdir, tmp_path / "none", widths=["9"], how=How(format))
    how = How(format, platforms=("cpu",), check=format == "onnx")
    cards = export_run(workdir, tmp_path, widths=list(widths), how=how)
    video = clips(5)
    for card, (width, schedule) in zip(cards, widths.items(), strict=True):
        folder = tmp_path / width
        assert json.loads((folder / "export.json").read_text()) == card
        dials = Dials(widths=schedule)
        live = jax.jit(
            lambda video, dials=dials: model.apply({"params": params}, video, dials=dials, method="embed_video")
        )
        expected = np.asarray(live(video))
        for batch in (1, 2, 5):
            found = answer(folder, card, "embed_video", video[:batch])
            np.testing.assert_allclose(found, expected[:batch], atol=1e-5)
        if how.check:
            assert all(method["largest_difference"] < 1e-5 for method in card["methods"].values())
        assert card["widths"] == list(schedule or (16, 16))
    sizes = [card["methods"]["embed_video"]["bytes"] for card in cards]
    counts = [card["parameters"] for card in cards]
    assert counts[0] > counts[2] > counts[1] and sizes[0] > sizes[2] > sizes[1]


def test_the_tokenizer_beside_the_file_makes_the_rows_that_training_saw(run, tmp_path):
    workdir, params = run
    (card,) = export_run(workdir, tmp_path, step=7)
    model, _, stage = restore_model(workdir)
    own = card["tokenizer"]
    assert (own["length"], own["pad_id"], own["clean"]) == (8, 0, "narration")
    assert card["clip"] == {"frames": 4, "size": 16, "times": {"name": "segments"}, "crop": {"name": "center"}}
    rows = Tokenizer(tmp_path / own["file"], own["length"], own["clean"], begin=own["begin"], end=own["end"]).encode(
        WORDS
    )
    np.testing.assert_array_equal(rows, Tokenizer(length=8, **stage.tokenizer).encode(WORDS))
    expected = jax.jit(lambda rows: model.apply({"params": params}, rows, method="embed_text"))(rows)
    np.testing.assert_allclose(answer(tmp_path, card, "embed_text", rows), expected, atol=1e-5)
    assert card["source"] == {"run": str(workdir), "stage": "0_tiny", "step": 7, "model": "dual_encoder"}
    assert card["versions"]["jax"] == jax.__version__


def test_a_classifier_gives_its_logits(tmp_path):
    workdir, params = tiny_run(
        tmp_path / "run", CLASSIFIER, {"widths": (16, 12)}
    )  # widths in training are not those here
    (card,) = export_run(workdir, tmp_path / "out", widths=["d-384"])
    assert list(card["methods"]) == ["classify"] and card["heads"] == {"verb": 3, "noun": 5}
    model, _, _ = restore_model(workdir)
    dials = Dials(widths="d-384")
    expected = jax.jit(lambda video: model.apply({"params": params}, video, dials=dials, method="classify"))(clips(2))
    found = answer(tmp_path / "out", card, "classify", clips(2))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.shape == (2, 8) and not (tmp_path / "out" / "tokenizer.json").exists()


@pytest.mark.slow
def test_weights_in_half_precision_take_half_the_bytes(tmp_path):
    wide = {**CLASSIFIER["video"], "transformer": {**TRANSFORMER, "width": 64, "mlp": 256}}
    workdir, params = tiny_run(tmp_path / "run", {**CLASSIFIER, "video": wide})
    found, sizes = [], []
    for weights in ("float32", "float16"):
        (card,) = export_run(workdir, tmp_path / weights, how=How(weights=weights, check=weights == "float16"))
        assert card["weights"] == weights
        found.append(answer(tmp_path / weights, card, "classify", clips(3)))
        sizes.append(card["bytes"])
    assert 0 < np.abs(found[1] - found[0]).max() < 1e-2 * np.abs(found[0]).max()
    assert 0.5 < sizes[1] / sizes[0] < 0.6
    with pytest.raises(ValueError, match="go up to 7e\\+04, which float16 does not hold"):
        onnx_file.halved(Graph(constants={"a": np.full(1000, -7e4, np.float32)}))


@pytest.mark.slow
def test_dials_of_evaluation_stay_and_half_precision_becomes_whole(tmp_path):
    video = {**CLASSIFIER["video"], "pool": "cls"}
    half = {**video, "transformer": {**TRANSFORMER, "dtype": "bfloat16", "attention": "fused"}}
    dials = {"mask": 0.5, "keep": ((0, 0.5),), "widths": {"name": "dec"}}
    workdir, params = tiny_run(tmp_path / "run", {**CLASSIFIER, "video": half}, dials)
    whole = classifier.Model(video=video, heads=CLASSIFIER["heads"])

    def expected(keep):
        live = jax.jit(lambda video: whole.apply({"params": params}, video, dials=Dials(keep=keep), method="classify"))
        return np.asarray(live(clips(3)))

    for keep in (((0, 0.5),), ()):
        (card,) = export_run(workdir, tmp_path / "out", dials={} if keep else {"keep": ()}, how=How(check=bool(keep)))
        found = answer(tmp_path / "out", card, "classify", clips(3))
        np.testing.assert_allclose(found, expected(keep), atol=1e-5)
        assert bool(card["dials"]) == bool(keep)
    (card,) = export_run(workdir, tmp_path / "own", how=How("stablehlo", dtype="own", platforms=("cpu",)))
    apart = np.abs(answer(tmp_path / "own", card, "classify", clips(3)) - expected(((0, 0.5),))).max()
    assert 1e-4 < apart < 0.1
    with pytest.raises(ValueError, match="the dials of an export have no widths"):
        export_run(workdir, tmp_path / "no", dials={"widths": "d-384"})


def test_mistakes(run, tmp_path, monkeypatch):
    for settings, message in (
        ({"widths": ["d-700"]}, "unknown preset of widths 'd-700'"),
        ({"step": 3}, "has no checkpoint of step 3"),
        ({"how": How("stablehlo", platforms=("cpu", "gpu"))}, "StableHLO is for some of cpu, cuda, tpu; found gpu"),
    ):
        with pytest.raises(ValueError, match=message):
            export_run(run[0], tmp_path / "out", **settings)
    with pytest.raises(ValueError, match="unknown format 'tflite'"):
        How("tflite")
    with pytest.raises(ValueError, match="StableHLO holds the parameters as they are"):
        How("stablehlo", weights="float16")
    with pytest.raises(ValueError, match="ONNX files compute in float32"):
        How("onnx", dtype="own")
    monkeypatch.setitem(folders.TOLERANCE, "onnx", 0.0)
    with pytest.raises(ValueError, match="answers a batch of 1 otherwise than the model"):
        export_run(run[0], tmp_path / "out")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match="needs the package onnx: pip install 'vidlang\\[onnx\\]'"):
        export_run(run[0], tmp_path / "none")
    assert not (tmp_path / "none").exists()
