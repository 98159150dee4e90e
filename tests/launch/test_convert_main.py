"""launch.convert: a run becomes a portable folder, whole or cut, and mistakes are sentences."""

import numpy as np
import pytest

import vidlang
from tests.serve.tiny_captioner import corpus_at
from tests.serve.tiny_dual import train_dual

VIDEO_BTHWC = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train_dual(tmp_path_factory.mktemp("run"), corpus_at(tmp_path_factory.mktemp("corpus")))


@pytest.mark.slow
def test_a_run_becomes_a_portable_folder_and_that_a_smaller_one(launch, run, tmp_path):
    whole, small = tmp_path / "whole", tmp_path / "small"
    done = launch("launch.convert", "--from=run", f"--path={run}", "--to=portable", f"--out={whole}", "--step=1")
    assert done.code == 0, done.err
    assert "dual_encoder" in done.out and "MB" in done.out
    first = vidlang.load(run, step=1)
    np.testing.assert_array_equal(vidlang.load(whole).embed_video(VIDEO_BTHWC), first.embed_video(VIDEO_BTHWC))
    done = launch("launch.convert", "--from=portable", f"--path={whole}", f"--out={small}", "--widths=d-384")
    assert done.code == 0, done.err
    found = vidlang.load(small).embed_video(VIDEO_BTHWC)
    np.testing.assert_allclose(found, first.embed_video(VIDEO_BTHWC, width="d-384"), atol=1e-6)


def test_published_files_go_through_and_come_out_as_they_were(launch, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, image_size=16, patch_size=8)).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2)
    model.save_pretrained(tmp_path / "before")
    between, after = tmp_path / "between", tmp_path / "after"
    for words in (("vit", tmp_path / "before", "portable", between), ("portable", between, "vit", after)):
        there, path, to, out = words
        done = launch("launch.convert", f"--from={there}", f"--path={path}", f"--to={to}", f"--out={out}")
        assert done.code == 0, done.err
    again = transformers.ViTForImageClassification.from_pretrained(after).eval()
    image = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(again(image).logits, model(image).logits, atol=1e-5, rtol=0)
    tower = tmp_path / "tower"
    arguments = ("--from=portable", f"--path={between}", "--to=vit", "--part=video", f"--out={tower}")
    assert (done := launch("launch.convert", *arguments)).code == 0, done.err
    seen = transformers.ViTModel.from_pretrained(tower, add_pooling_layer=False).eval()
    with torch.no_grad():
        expected = model.vit(image).last_hidden_state
        torch.testing.assert_close(seen(image).last_hidden_state, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--from=runs", "--to=portable"), "--from is 'runs' (did you mean 'run'?); it is one of run, portable"),
        (("--from=run", "--to=portabel"), "--to is 'portabel' (did you mean 'portable'?)"),
        (("--from=run", "--widths=d-100"), "unknown preset of widths 'd-100'"),
        (("--from=run", "--to=vit"), "a ViT is of images; found a model of clips (4, 16, 16)"),
        (("--from=run", "--to=gpt2", "--part=language"), "'dual_encoder' has no part 'language'; it has: video, text"),
        (("--from=run", "--to=portable", "--part=text"), "--part is for --to=FAMILY"),
        (("--from=gpt2",), "this family reads gpt2"),
    ],
)
def test_mistakes_are_sentences(launch, run, tmp_path, arguments, message):
    done = launch("launch.convert", f"--path={run}", f"--out={tmp_path / 'out'}", *arguments)
    assert done.code == 2 and message in done.err and "Traceback" not in done.err
    assert not (tmp_path / "out").exists()
