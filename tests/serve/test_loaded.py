"""A loaded model gives for files, frames and texts what the model itself gives for each of them alone."""

import dataclasses
import subprocess
import sys

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vidlang
from tests.serve.tiny_captioner import write_video
from vidlang.data.chunks import open_store
from vidlang.data.clips import ClipTable
from vidlang.data.crops import choose_crop
from vidlang.data.frames import choose_times
from vidlang.data.stores.adopt import adopt
from vidlang.serve.loaded import Loaded
from vidlang.serve.search import embed_evaluation, evaluation_clips
from vidlang.serve.shapes import batch_rows
from vidlang.train.evaluate import restore_model

TEXTS = ["a red circle slides left", "a blue square", "spins"]


@pytest.fixture(scope="module")
def loaded(dual_run):
    return vidlang.load(dual_run[0])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An MP4 and two files that cannot be decoded at random, of other sizes and lengths."""
    folder = tmp_path_factory.mktemp("files")
    kinds = [("one.mp4", 3.0, "libx264", 48), ("two.avi", 2.0, "mpeg4", 64), ("three.mkv", 1.0, "libx264", 40)]
    return [write_video(folder / name, seconds, codec=codec, size=size) for name, seconds, codec, size in kinds]


def apply(run, method, **arrays):
    """What the model itself makes of arrays, without a mesh and without jit."""
    model, params, _ = restore_model(run)
    return np.asarray(getattr(model.bind({"params": jax.tree.map(np.asarray, params)}), method)(**arrays))


def cosines(one, other):
    one, other = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (one, other))
    return one @ other.T


def test_texts_are_embedded_as_by_the_model(loaded, dual_run):
    found = loaded.embed_text(TEXTS)
    text_BL = loaded.tokenizer.encode(TEXTS)
    np.testing.assert_allclose(found, apply(dual_run[0], "embed_text", text_BL=text_BL), atol=1e-5)
    np.testing.assert_allclose(loaded.embed_text(TEXTS[1]), found[1:2], atol=1e-6)
    assert found.shape == (3, 16) and found.dtype == np.float32


def test_a_file_is_seen_as_the_evaluation_sees_it(loaded, dual_run, files, tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "one.mp4").write_bytes(files[0].read_bytes())
    adopt(tmp_path / "videos", tmp_path / "store", "videos")
    store = open_store(tmp_path / "store")
    crop = choose_crop(None, 48, 48, name="center", share=0.75)
    times_T = choose_times(None, 0.0, store.info("one").duration, 4, name="middle")
    video_BTHWC = store.decode("one", times_T, crop, (16, 16))[None]
    np.testing.assert_allclose(
        loaded.embed_video(files[0]), apply(dual_run[0], "embed_video", video_BTHWC=video_BTHWC), atol=1e-5
    )


def test_many_files_come_in_the_order_given(loaded, files):
    order = [2, 0, 1, 0]
    found = loaded.embed_video([str(files[place]) for place in order])
    alone = np.concatenate([loaded.embed_video(file) for file in files])
    np.testing.assert_allclose(found, alone[order], atol=1e-6)
    assert np.abs(alone[:, None] - alone[None]).max(axis=2)[np.triu_indices(3, 1)].min() > 1e-3
    small = loaded.embed_video([files[place] for place in order], batch_size=2)
    np.testing.assert_allclose(small, found, atol=1e-6)


def test_frames_of_the_models_size_are_left_as_they_are(loaded, dual_run):
    video_BTHWC = np.random.default_rng(0).integers(0, 256, (3, 4, 16, 16, 3), np.uint8)
    found = loaded.embed_video(video_BTHWC)
    np.testing.assert_allclose(found, apply(dual_run[0], "embed_video", video_BTHWC=video_BTHWC), atol=1e-5)
    np.testing.assert_allclose(loaded.embed_video(video_BTHWC[1]), found[1:2], atol=1e-6)
    # Of eight frames those in the middle of four equal parts.
    longer = np.repeat(video_BTHWC, 2, axis=1)
    np.testing.assert_allclose(loaded.embed_video(list(longer)), found, atol=1e-6)


def test_larger_frames_are_cropped_and_scaled_as_files_are(loaded):
    rows = np.linspace(0, 255, 64).astype(np.uint8)
    wide_HWC = np.zeros((64, 96, 3), np.uint8) + rows[:, None, None]
    # The centred 48 x 48 of it, scaled down by three: a gradient from row 8 on.
    expected_HWC = np.zeros((16, 16, 3)) + rows[8:56].reshape(16, 3).mean(axis=1)[:, None, None]
    clip = np.broadcast_to(np.round(expected_HWC).astype(np.uint8), (4, 16, 16, 3))
    found = loaded.embed_video(np.broadcast_to(wide_HWC, (9, 64, 96, 3)))
    np.testing.assert_allclose(found, loaded.embed_video(np.ascontiguousarray(clip)), atol=0.02)
    other = loaded.embed_video(np.ascontiguousarray(clip[:, ::-1]))
    assert np.abs(found - other).max() > 0.1, "a crop elsewhere would be seen"


def test_pictures_are_videos_of_one_frame(loaded, files, tmp_path):
    rows = np.linspace(0, 255, 64).astype(np.uint8)
    picture_HWC = np.zeros((64, 64, 3), np.uint8) + np.stack([rows, rows[::-1], rows], axis=1)[:, None]
    for name in ("one.png", "two.PNG"):
        frame = av.VideoFrame.from_ndarray(picture_HWC, format="rgb24")
        with av.open(str(tmp_path / name), "w", format="image2") as container:
            stream = container.add_stream("png")
            stream.width, stream.height, stream.pix_fmt = 64, 64, "rgb24"
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
    (tmp_path / "cut.jpg").write_bytes(b"no picture")
    expected = loaded.embed_video(picture_HWC[None])
    given = [tmp_path / "one.png", files[0], tmp_path / "two.PNG", tmp_path / "cut.jpg"]
    found = loaded.embed_video(given, unreadable="nan")
    np.testing.assert_allclose(found[[0, 2]], np.repeat(expected, 2, axis=0), atol=1e-5)
    np.testing.assert_allclose(found[1:2], loaded.embed_video(files[0]), atol=1e-6)
    with pytest.raises(ValueError, match=r"cut\.jpg cannot be read: it cannot be read as a JPEG, PNG or WebP image"):
        loaded.embed_video(given)


def test_of_several_views_the_mean_counts(loaded):
    video_THWC = np.random.default_rng(4).integers(0, 256, (4, 16, 48, 3), np.uint8)
    about = dataclasses.replace(loaded.about, clip={**loaded.about.clip, "crop": {"name": "center"}, "crops": 3})
    views = Loaded(about, loaded.params, loaded.tokenizer, loaded._mesh).embed_video(video_THWC)
    alone = loaded.embed_video([video_THWC[:, :, left : left + 16] for left in (0, 16, 32)])
    np.testing.assert_allclose(views, alone.mean(axis=0, keepdims=True), atol=1e-5)


@pytest.mark.slow
def test_clips_in_the_planes_that_they_are_stored_in_are_seen_alike(loaded, files):
    clip = {**loaded.about.clip, "pixels": "yuv420"}
    fields = {**loaded.about.fields, "yuv_BTXW": [[4, 24, 16], "uint8"]}
    del fields["video_BTHWC"]
    about = dataclasses.replace(loaded.about, clip=clip, fields=fields)
    planes = Loaded(about, loaded.params, loaded.tokenizer, loaded._mesh)
    found, expected = planes.embed_video(files), loaded.embed_video(files)
    np.testing.assert_allclose(found, expected, atol=0.02)
    assert np.abs(found - expected).max() > 1e-6, "another conversion has other last bits"
    frames = np.full((8, 16, 16, 3), 77, np.uint8)
    np.testing.assert_allclose(planes.embed_video(frames, frames=8), loaded.embed_video(frames, frames=8), atol=1e-6)
    np.testing.assert_allclose(planes.slice(16).embed_video(frames), loaded.embed_video(frames, width=16), atol=1e-6)


def test_similarities_are_cosines_and_take_what_was_embedded_before(loaded, files):
    video_NE, text_ME = loaded.embed_video(files), loaded.embed_text(TEXTS)
    expected = cosines(video_NE, text_ME)
    np.testing.assert_allclose(loaded.similarity(files, TEXTS), expected, atol=1e-6)
    np.testing.assert_allclose(loaded.similarity(3 * video_NE, text_ME), expected, atol=1e-6)


def test_labels_are_chosen_by_the_scaled_cosines_of_prompts(loaded, dual_run, files):
    labels, templates = ["red circle", "blue square", "green star"], ("a {}", "a {} moves")
    found = loaded.classify(files, labels, template=templates)
    model, params, _ = restore_model(dual_run[0])
    text_CTE = np.stack([loaded.embed_text([each.format(label) for each in templates]) for label in labels])
    logits = cosines(loaded.embed_video(files), text_CTE.mean(axis=1)) * float(jnp.exp(params["log_scale"]))
    chances = np.asarray(jax.nn.softmax(logits, axis=1))
    for row, each in enumerate(found):
        assert [name for name, _ in each] == [labels[place] for place in np.argsort(-chances[row])]
        np.testing.assert_allclose([chance for _, chance in each], np.sort(chances[row])[::-1], atol=1e-5)
    assert len(loaded.classify(files[0], labels, top=2)[0]) == 2


@pytest.mark.slow
def test_each_shape_is_compiled_once(dual_run):
    loaded = vidlang.load(dual_run[0], device="cpu")
    video_BTHWC = np.zeros((8, 4, 16, 16, 3), np.uint8)

    def programs(method, width=None):
        predict = loaded._predict if width is None else loaded._predict.at(loaded._at(width))
        return predict._jitted[method, None]._cache_size()

    for count in (5, 6, 7, 8, 5):
        loaded.embed_video(video_BTHWC[:count])
        loaded.embed_text((TEXTS * 3)[:count])
    assert programs("embed_video") == programs("embed_text") == 1
    loaded.embed_video(np.concatenate([video_BTHWC] * 4))
    assert programs("embed_video") == 1, "more than batch_size come in batches of it"
    loaded.embed_video(video_BTHWC[:1])
    assert programs("embed_video") == 2
    for width in ("d-384", 16, (16, 16)):
        loaded.embed_video(video_BTHWC, width=width)
    assert programs("embed_video", 16) == 1, "three names of the same widths"
    assert [batch_rows(count, 8) for count in (1, 2, 3, 4, 5, 8, 9, 100)] == [1, 2, 4, 4, 8, 8, 8, 8]


@pytest.mark.slow
def test_a_slice_is_the_model_at_that_width(loaded, dual_run):
    video_BTHWC = np.random.default_rng(1).integers(0, 256, (2, 4, 16, 16, 3), np.uint8)
    full, narrow = loaded.embed_video(video_BTHWC), loaded.embed_video(video_BTHWC, width="d-384")
    assert np.abs(full - narrow).max() > 1e-3
    for small in (loaded.slice("d-384"), vidlang.load(dual_run[0], widths=16)):
        np.testing.assert_allclose(small.embed_video(video_BTHWC), narrow, atol=1e-6)
        np.testing.assert_array_equal(small.embed_text(TEXTS), loaded.embed_text(TEXTS))
        assert small.params["video_encoder"]["spatial"].shape == (4, 16)
        assert small.about.build().video_spec.width == 16
    falling = loaded.embed_video(video_BTHWC, width=(32, 16))
    np.testing.assert_allclose(loaded.slice((32, 16)).embed_video(video_BTHWC), falling, atol=1e-6)
    with pytest.raises(ValueError, match="multiple of the head size 8"):
        loaded.embed_video(video_BTHWC, width=12)


def test_other_numbers_of_frames_take_positions_as_training_would(loaded, dual_run):
    model, params, _ = restore_model(dual_run[0])
    video_BTHWC = np.random.default_rng(2).integers(0, 256, (1, 8, 16, 16, 3), np.uint8)
    params = jax.tree.map(np.asarray, params)
    encoder = params["video_encoder"]
    repeated = {**params, "video_encoder": {**encoder, "temporal": np.tile(encoder["temporal"], (2, 1))}}
    expected = model.bind({"params": repeated}).embed_video(video_BTHWC)
    np.testing.assert_allclose(loaded.embed_video(video_BTHWC, frames=8), expected, atol=1e-5)
    with pytest.raises(ValueError, match="does not divide"):
        loaded.embed_video(video_BTHWC, frames=3)


@pytest.mark.slow
def test_steps_devices_and_dtypes_are_chosen(loaded, dual_run):
    first = vidlang.load(dual_run[0], step=1, device="cpu:3")
    assert first.about.source["step"] == 1 and loaded.about.source["step"] == 2
    assert np.abs(first.embed_text(TEXTS) - loaded.embed_text(TEXTS)).max() > 1e-4
    assert {leaf.device for leaf in jax.tree.leaves(first.params)} == {jax.devices()[3]}
    by_checkpoint = vidlang.load(f"{dual_run[0]}/0_short/checkpoints/1")
    np.testing.assert_allclose(by_checkpoint.embed_text(TEXTS), first.embed_text(TEXTS), atol=1e-6)
    coarse = vidlang.load(dual_run[0], dtype="bfloat16").embed_text(TEXTS)
    difference = np.abs(coarse - loaded.embed_text(TEXTS)).max()
    assert 1e-5 < difference < 0.05


def test_a_video_that_cannot_be_read_is_named(loaded, files, tmp_path):
    broken = tmp_path / "holiday.mp4"
    broken.write_bytes(b"no video at all" * 100)
    with pytest.raises(ValueError, match=r"holiday\.mp4 cannot be read"):
        loaded.embed_video([files[0], broken])
    with pytest.raises(ValueError, match=r"holiday\.mp4 cannot be read"):
        loaded.embed_video(broken, unreadable="nan")
    found = loaded.embed_video([broken, files[0]], unreadable="nan")
    assert np.isnan(found[0]).all()
    np.testing.assert_allclose(found[1:], loaded.embed_video(files[0]), atol=1e-6)
    with pytest.raises(ValueError, match="gone.mp4 is not there; give the path of a video file"):
        loaded.embed_video(tmp_path / "gone.mp4")


def test_damage_that_shows_when_frames_are_decoded_is_named(loaded, files, tmp_path):
    damaged = bytearray(files[0].read_bytes())
    start = damaged.find(b"mdat") + 60
    damaged[start : start + 3000] = b"\xff" * len(damaged[start : start + 3000])
    path = tmp_path / "scratched.mp4"
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"scratched\.mp4 cannot be read"):
        loaded.embed_video([path, files[1]])
    found = loaded.embed_video([files[1], path], unreadable="nan")
    assert np.isfinite(found[0]).all() and np.isnan(found[1]).all()


@pytest.mark.parametrize(
    ("videos", "message"),
    [
        ([], "there are no videos"),
        (np.zeros((4, 16, 16, 3), np.float32), r"video 0 is float32 \[4, 16, 16, 3\]; give a path, or frames as uint8"),
        (np.zeros((4, 16, 16), np.uint8), "video 0 is uint8"),
        ([3], "video 0 is 3"),
        (".", "is a folder"),
    ],
)
def test_what_is_no_video_is_refused(loaded, videos, message):
    with pytest.raises(ValueError, match=message):
        loaded.embed_video(videos)


def test_progress_is_told(loaded, files, capsys):
    told = []
    loaded.embed_video(files, progress=lambda done, total: told.append((done, total)), batch_size=1)
    assert told == [(1, 3), (2, 3), (3, 3)]
    loaded.embed_video(files, progress=True)
    assert "3 of 3 videos" in capsys.readouterr().err


def test_methods_that_a_model_lacks_say_which_it_has(loaded):
    with pytest.raises(ValueError, match="'dual_encoder' has no caption; it has: embed_video, embed_text, similarity"):
        loaded.caption("any.mp4")
    with pytest.raises(ValueError, match="no classes of its own; give labels"):
        loaded.classify("any.mp4")
    with pytest.raises(ValueError, match="unknown key 'widht'|widht"):
        loaded.embed_video("any.mp4", widht=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu:0"}, "no device 'tpu:0'; there are: cpu:0"),
        ({"dtype": "float64"}, "dtype is 'float64'"),
        ({"step": 7}, "has no checkpoint of step 7"),
        ({"family": "gpt3"}, "unknown name 'gpt3'"),
    ],
)
def test_options_that_cannot_be_are_refused(dual_run, options, message):
    with pytest.raises(ValueError, match=message):
        vidlang.load(dual_run[0], **options)


def test_importing_vidlang_imports_no_jax():
    code = "import sys, vidlang; assert callable(vidlang.load); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_table_of_clips_is_embedded_as_the_evaluation_does_it(loaded, dual_run):
    clips = embed_evaluation(dual_run[0])
    table = evaluation_clips(dual_run[0])
    np.testing.assert_allclose(loaded.embed_video(table), clips.video_NE, atol=1e-6)
    np.testing.assert_allclose(loaded.embed_text(clips.texts()), clips.text_NE, atol=1e-6)
    with pytest.raises(ValueError, match="no evaluation 'test'; it has: val"):
        evaluation_clips(dual_run[0], "test")


def test_clips_of_a_table_that_cannot_be_read_are_named(loaded, dual_run):
    table = evaluation_clips(dual_run[0])
    columns = {name: list(table.column(name))[:3] for name in ("video", "start", "end", "texts")}
    whole = loaded.embed_video(ClipTable.from_columns(columns, store=table.store))
    columns["start"][1], columns["end"][1] = 1000.0, 1001.0
    broken = ClipTable.from_columns(columns, store=table.store)
    with pytest.raises(ValueError, match=r"clip 1 \(\S+, 1000.00 to 1001.00 s\) cannot be read: it is beyond"):
        loaded.embed_video(broken)
    found = loaded.embed_video(broken, unreadable="nan")
    assert np.isnan(found[1]).all()
    np.testing.assert_allclose(found[[0, 2]], whole[[0, 2]], atol=1e-6)
