"""Images are videos of one frame: the pixels an image library reads, or a refusal that says what they are."""

import contextlib
import io
import pickle

import numpy as np
import pytest
from PIL import Image, ImageOps

from vidlang.data.chunks import StoreAway, open_store
from vidlang.data.crops import CropBox
from vidlang.data.failures import BrokenVideo
from vidlang.data.stores.adopt import adopt
from vidlang.data.stores.images import exif_orientation, image_size

HEIGHT, WIDTH = 48, 64
FULL = CropBox(0, 0, HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def picture():
    """Flat patches, which survive coding and subsampling."""
    patches = np.random.default_rng(0).integers(0, 255, (HEIGHT // 16, WIDTH // 16, 3))
    return Image.fromarray(np.kron(patches, np.ones((16, 16, 1))).astype(np.uint8))


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(image, orientation, kind):
    exif = Image.Exif()
    exif[0x112] = orientation
    return encoded(image, kind, exif=exif, **({"quality": 95} if kind != "PNG" else {}))


def read_kinds(picture):
    """File names and contents of all sorts of image that are read."""
    shown = np.asarray(picture, np.uint16)
    deep = Image.fromarray((shown[:, :, 0] * 257).astype(np.uint16))
    return {
        "plain.jpg": encoded(picture, "JPEG", quality=95),
        "progressive.JPEG": encoded(picture, "JPEG", quality=95, progressive=True),
        "deep/er/444.jpg": encoded(picture, "JPEG", quality=95, subsampling=0),
        "grey.jpg": encoded(picture.convert("L"), "JPEG", quality=95),
        "grey.png": encoded(picture.convert("L"), "PNG"),
        "plain.png": encoded(picture, "PNG"),
        "palette.png": encoded(picture.quantize(32), "PNG"),
        "alpha.png": encoded(picture.convert("RGBA"), "PNG"),
        "sixteen.png": encoded(deep, "PNG"),
        "bit.png": encoded(picture.convert("1", dither=0), "PNG"),
        "lossy.webp": encoded(picture, "WEBP", quality=95),
        "lossless.webp": encoded(picture, "WEBP", lossless=True),
    } | {f"turned{k}.{kind.lower()}": turned(picture, k, kind) for k in (3, 6, 8) for kind in ("JPEG", "PNG", "WEBP")}


def pillow(content, name):
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    if name.startswith("sixteen"):
        return np.asarray(image)[..., None].repeat(3, 2) // 257
    return np.asarray(image.convert("RGB"))


def write_all(folder, contents):
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_pixels_are_those_of_an_image_library(picture, tmp_path):
    contents = read_kinds(picture)
    # Without its suffix each must have a name of its own.
    contents = {f"{n}/{name}": content for n, (name, content) in enumerate(contents.items())}
    report = adopt(write_all(tmp_path / "f", contents), tmp_path / "s", "images")
    assert report.videos == len(contents) and not report.refused
    store = open_store(tmp_path / "s", expect={"kind": "images"})
    for name, content in contents.items():
        expected = pillow(content, name.split("/")[-1])
        video = name.rsplit(".", 1)[0]
        info = store.info(video)
        assert (info.height, info.width) == expected.shape[:2] and (info.fps, info.frames, info.duration) == (1, 1, 1)
        got = store.decode(video, np.array([0.0, 0.5]), CropBox(0, 0, *expected.shape[:2]), expected.shape[:2])
        inner = np.s_[4:-4, 4:-4]
        patches = np.abs(got[0].astype(int) - expected)[inner]
        assert np.median(patches) <= 2 and patches.mean() < 5, (name, patches.mean())
        np.testing.assert_array_equal(got[0], got[1])
        assert store.read(video, 0) == content
    assert not list(store.problems())


def test_a_crop_cuts_and_mirrors_the_upright_image(picture, tmp_path):
    adopt(write_all(tmp_path / "f", {"up.png": turned(picture, 6, "PNG")}), tmp_path / "s", "images")
    store = open_store(tmp_path / "s")
    whole = store.decode("up", np.array([0.0]), CropBox(0, 0, WIDTH, HEIGHT), (WIDTH, HEIGHT))[0]
    part = store.decode("up", np.array([0.0]), CropBox(10, 4, 20, 16, flip=True), (20, 16))[0]
    np.testing.assert_array_equal(part, whole[10:30, 4:20][:, ::-1])
    planes = store.decode("up", np.array([0.0]), CropBox(0, 0, WIDTH, HEIGHT), (WIDTH, HEIGHT), pixels="yuv420")
    assert planes.shape == (1, WIDTH * 3 // 2, HEIGHT)


def test_what_is_not_read_is_refused_by_name(picture, tmp_path):
    other = picture.rotate(180)
    contents = {
        "cmyk.jpg": (encoded(picture.convert("CMYK"), "JPEG"), "CMYK"),
        "moving.png": (encoded(picture, "PNG", save_all=True, append_images=[other]), "animated"),
        "moving.webp": (encoded(picture, "WEBP", save_all=True, append_images=[other]), "animated"),
        "moving.gif.jpg": (encoded(picture, "GIF", save_all=True, append_images=[other]), "animated"),
        "empty.jpg": (b"", "empty"),
        "text.jpg": (b"not an image at all", "cannot be read"),
        "cut.png": (encoded(picture, "PNG")[:100], "cannot be read|damaged"),
        "line.png": (encoded(picture.resize((40, 1)), "PNG"), "2 or more"),
        **{f"mirror{k}.jpg": (turned(picture, k, "JPEG"), "mirrors") for k in (2, 4, 5, 7)},
    }
    good = {"good.jpg": encoded(picture, "JPEG"), "good.png": encoded(picture, "PNG"), "list.csv": b"a,b"}
    folder = write_all(tmp_path / "f", {name: content for name, (content, _) in contents.items()} | good)
    (tmp_path / "f" / "list.csv").write_text("a,b")
    report = adopt(folder, tmp_path / "s", "images", workers=2)
    assert report.foreign == ["list.csv"] and open_store(tmp_path / "s").videos == ["good.jpg", "good.png"]
    reasons = {name: reason for name, _, reason in report.refused}
    for name, (_, words) in contents.items():
        said = reasons[name if name in ("moving.png", "moving.webp") else name.rsplit(".", 1)[0]]
        assert any(word in said for word in words.split("|")), (name, said)


def test_orientation_is_read_as_the_image_library_does(picture):
    for kind in ("JPEG", "PNG", "WEBP"):
        for orientation in range(1, 9):
            assert exif_orientation(turned(picture, orientation, kind)) == orientation
        assert exif_orientation(encoded(picture, kind)) == 1
    rng = np.random.default_rng(0)
    content = turned(picture, 6, "JPEG")
    for _ in range(200):
        noisy = bytearray(content)
        noisy[rng.integers(20, 100)] = rng.integers(256)
        assert 1 <= exif_orientation(bytes(noisy)) <= 8


def tfds_dataset(folder, contents):
    """A dataset as TFDS itself writes one."""
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict({"image": tfds.features.Text(), "label": np.int64})
    identity = tfds.core.DatasetIdentity(
        name="pets", version=tfds.core.Version("1.0.0"), data_dir=str(folder), module_name="tests"
    )
    info = tfds.core.DatasetInfo(builder=identity, description="Images.", features=features)
    writer = tfds.core.SequentialWriter(info, 5, file_format="array_record")
    writer.initialize_splits(["train", "test"])
    writer.add_examples({"train": [{"image": c, "label": -n} for n, c in enumerate(contents)], "test": []})
    writer.add_examples({"test": [{"image": contents[0], "label": 1}]})
    writer.close_all()


def test_a_tfds_dataset_is_adopted(picture, tmp_path):
    (tmp_path / "pets").mkdir()
    contents = [encoded(picture.rotate(30 * n), "JPEG" if n % 2 else "PNG") for n in range(12)]
    contents[7] = b"broken"
    tfds_dataset(tmp_path / "pets", contents)
    with pytest.raises(ValueError, match="has the splits .*; name one, got None"):
        adopt(tmp_path / "pets", tmp_path / "s", "tfds_images")
    report = adopt(tmp_path / "pets", tmp_path / "s", "tfds_images", split="train")
    assert [name for name, _, _ in report.refused] == ["7"] and report.videos == 11
    store = pickle.loads(pickle.dumps(open_store(tmp_path / "s")))
    assert store.videos == [str(n) for n in range(12) if n != 7]
    for n in (0, 1, 6, 8, 11):
        assert store.read(str(n), 0) == contents[n]
        got = store.decode(str(n), np.array([0.0]), FULL, (HEIGHT, WIDTH))[0]
        assert np.abs(got.astype(int) - np.asarray(Image.open(io.BytesIO(contents[n])))).mean() < 6
    store.check()
    assert not list(store.problems(workers=2))
    (tmp_path / "pets").rename(tmp_path / "gone")
    with pytest.raises(StoreAway):
        open_store(tmp_path / "s").read("3", 0)


def test_mutated_images_end_as_the_image_or_as_a_named_error(picture, tmp_path):
    contents = {"a.jpg": encoded(picture, "JPEG"), "b.png": encoded(picture, "PNG"), "c.webp": encoded(picture, "WEBP")}
    folder = write_all(tmp_path / "f", contents)
    adopt(folder, tmp_path / "s", "images")
    store, rng = open_store(tmp_path / "s"), np.random.default_rng(0)
    expected = {name: store.decode(name[0], np.array([0.0]), FULL, (8, 8)) for name in contents}
    for _ in range(100):
        for name, content in contents.items():
            noisy = bytearray(content)
            noisy[rng.integers(len(noisy))] ^= 1 << rng.integers(8)
            (folder / name).write_bytes(noisy[: rng.integers(1, len(noisy) + 1)] if rng.random() < 0.3 else noisy)
            with contextlib.suppress(BrokenVideo):  # what adopts meets such files before there is any checksum
                image_size(bytes(noisy))
            with pytest.raises(BrokenVideo):
                store.decode(name[0], np.array([0.0]), FULL, (8, 8))
            (folder / name).write_bytes(content)
            np.testing.assert_array_equal(store.decode(name[0], np.array([0.0]), FULL, (8, 8)), expected[name])
