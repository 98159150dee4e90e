"""Every operation is what numpy and Pillow make of it, draws are even, and where a row lies changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.core.sharding import batch_sharding, make_mesh, put_batch, use_mesh
from vidlang.ops import rand_augment
from vidlang.ops.augment import Augmentation, augment
from vidlang.ops.rand_augment import GEOMETRIC, NONE, OPERATIONS, RandAugment, draw, operate

HEIGHT, WIDTH = 29, 40
LEVELS = (0.0, 3.3, 7.0, 10.0)
# What looks each level up in a table of whole numbers.
EXACT = ("equalize", "invert", "posterize", "solarize", "solarize_add")


@pytest.fixture(scope="module")
def clip():
    """Three frames of soft shapes with noise on them, none of which uses all levels."""
    rng = np.random.default_rng(0)
    y, x, _ = np.mgrid[:HEIGHT, :WIDTH, :3]
    frames = [
        100 + 60 * np.sin(x / 5 + k) * np.cos(y / 4 - k) + rng.normal(0, 12, (HEIGHT, WIDTH, 3)) for k in range(3)
    ]
    return np.clip(frames, 12 + 5 * np.arange(3), 236).astype(np.uint8)


@pytest.fixture(scope="module")
def run():
    operation = jax.jit(operate)

    def on(clip, name, level, sign):
        found = operation(jnp.asarray(clip), OPERATIONS.index(name), jnp.float32(level), jnp.float32(sign))
        assert found.dtype == np.uint8
        return np.asarray(found)

    return on


def sampled(frame, matrix):
    """Every pixel from its 4 x 4 neighbours, by the cubic whose derivative at 1 is -1, one after another."""

    def weight(t):
        t = abs(t)
        if t < 1:
            return t**3 - 2 * t**2 + 1
        return -(t**3) + 5 * t**2 - 8 * t + 4 if t < 2 else 0.0

    a, b, c, d, e, f = matrix
    found = np.full(frame.shape, 128.0)
    for row, column in np.ndindex(frame.shape[:2]):
        x, y = a * (column + 0.5) + b * (row + 0.5) + c, d * (column + 0.5) + e * (row + 0.5) + f
        if not (0 <= x < WIDTH and 0 <= y < HEIGHT):
            continue
        left, top = int(np.floor(x - 0.5)), int(np.floor(y - 0.5))
        found[row, column] = sum(
            weight(x - 0.5 - k) * weight(y - 0.5 - j) * frame[np.clip(j, 0, HEIGHT - 1), np.clip(k, 0, WIDTH - 1)]
            for j in range(top - 1, top + 3)
            for k in range(left - 1, left + 3)
        )
    return np.clip(found, 0, 255)


def geometric(name, frame, share):
    middle, turn = np.array([WIDTH / 2, HEIGHT / 2]), np.deg2rad(30 * share)
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix, offset = {
        "rotate": (turned, middle - turned @ middle),
        "shear_x": ([[1, 0.3 * share], [0, 1]], (0, 0)),
        "shear_y": ([[1, 0], [0.3 * share, 1]], (0, 0)),
        "translate_x": (np.eye(2), (0.45 * share * WIDTH, 0)),
        "translate_y": (np.eye(2), (0, 0.45 * share * HEIGHT)),
    }[name]
    return sampled(frame.astype(np.float64), [*matrix[0], offset[0], *matrix[1], offset[1]])


def equalized(channel):
    count = np.bincount(channel.ravel(), minlength=256)
    step = (channel.size - count[count > 0][-1]) // 255
    below = np.concatenate([[0], np.cumsum(count)[:-1]])
    return np.minimum((step // 2 + below) // step, 255)[channel] if step else channel


def smoothed(frame):
    found = frame.astype(np.float64)
    for row, column in np.ndindex(HEIGHT - 2, WIDTH - 2):
        around = frame[row : row + 3, column : column + 3].astype(np.float64)
        found[row + 1, column + 1] = (around.sum(axis=(0, 1)) + 4 * around[1, 1]) / 13
    return found


def photometric(name, frame, share):
    x, strength = frame.astype(np.float64), abs(share)
    grey = np.round(x @ [0.299, 0.587, 0.114])[..., None]
    low, high = x.min(axis=(0, 1)), x.max(axis=(0, 1))
    bases = {"color": grey, "contrast": np.round(grey.mean()), "brightness": 0.0, "sharpness": smoothed(frame)}
    if name in bases:
        return np.clip(bases[name] + (1 + 0.9 * share) * (x - bases[name]), 0, 255)
    return {
        "auto_contrast": lambda: (x - low) * 255 / (high - low),
        "equalize": lambda: np.stack([equalized(frame[..., c]) for c in range(3)], axis=-1),
        "invert": lambda: 255 - x,
        "posterize": lambda: frame & (0xFF00 >> (4 - int(4 * strength)) & 0xFF),
        "solarize": lambda: np.where(x < 256 - int(256 * strength), x, 255 - x),
        "solarize_add": lambda: np.where(x < 128, np.minimum(x + int(110 * strength), 255), x),
    }[name]()


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_its_formula_in_each_frame(clip, run, name):
    reference = geometric if name in GEOMETRIC else photometric
    for level, sign in [(0.0, 1.0), (7.0, 1.0), (7.0, -1.0), (9.3, -1.0)]:
        got = run(clip, name, level, sign)
        for k in (0, 2):
            # Whole numbers are cut down, and one sum is built on another.
            apart = np.abs(got[k] - reference(name, clip[k], sign * level / 10))
            # Where the edge of the frame falls on a pixel's middle, the last bit says which side it is on.
            assert np.quantile(apart, 0.999) < 2, (level, sign)
        others = [np.abs(run(clip[k : k + 1], name, level, sign)[0].astype(int) - got[k]).max() for k in range(3)]
        assert max(others) <= 1, "a frame's own levels decide, and not those of the others"


def by_pillow(name, image, level, sign):
    from PIL import Image, ImageEnhance, ImageOps

    share, way = level / 10, sign * level / 10
    lookup = {"resample": Image.Resampling.BICUBIC, "fillcolor": (128, 128, 128)}
    maps = {
        "shear_x": (1, 0.3 * way, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, 0.3 * way, 1, 0),
        "translate_x": (1, 0, 0.45 * way * image.width, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, 0.45 * way * image.height),
    }
    if name in maps:
        return image.transform(image.size, Image.Transform.AFFINE, maps[name], **lookup)
    if name in ("color", "contrast", "brightness", "sharpness"):
        return getattr(ImageEnhance, name.capitalize())(image).enhance(1 + 0.9 * way)
    return {
        "rotate": lambda: image.rotate(30 * way, **lookup),
        "auto_contrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "invert": lambda: ImageOps.invert(image),
        "posterize": lambda: ImageOps.posterize(image, 4 - int(4 * share)),
        "solarize": lambda: ImageOps.solarize(image, 256 - int(256 * share)),
        "solarize_add": lambda: image.point([min(255, i + int(110 * share)) if i < 128 else i for i in range(256)] * 3),
    }[name]()


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_that_of_pillow(clip, run, name):
    image = pytest.importorskip("PIL.Image").fromarray(clip[1])
    for level in LEVELS:
        for sign in (1.0, -1.0):
            want = np.asarray(by_pillow(name, image, level, sign)).astype(int)
            apart = np.abs(run(clip[1:2], name, level, sign)[0] - want)
            assert np.quantile(apart, 0.999) <= (0 if name in EXACT else 1), (level, sign)


def test_what_has_nothing_to_spread_stays(run):
    for levels in ([77], [0, 255]):
        flat = np.resize(np.array(levels, np.uint8), (1, 8, 8, 3))
        np.testing.assert_array_equal(run(flat, "equalize", 7.0, 1.0), flat)
        np.testing.assert_array_equal(run(flat, "auto_contrast", 7.0, 1.0), flat)


def drawn(rows, **how):
    keys = jax.random.split(jax.random.key(3), rows)
    return jax.device_get(draw(keys, RandAugment(**how)))


@pytest.mark.slow
def test_all_operations_are_drawn_about_evenly():
    found = drawn(4000)
    count = np.bincount(found.operation_BN.ravel(), minlength=NONE + 1)
    assert count[NONE] / 16000 == pytest.approx(0.5, abs=0.02)
    np.testing.assert_allclose(count[:NONE] / 16000, 0.5 / 15, atol=0.005)
    assert found.level_BN.mean() == pytest.approx(7, abs=0.02) and found.level_BN.std() == pytest.approx(0.5, abs=0.02)
    assert set(np.unique(found.sign_BN)) == {-1.0, 1.0} and abs(found.sign_BN.mean()) < 0.03
    # Layers, and what they draw, do not go together.
    for one in (found.operation_BN == NONE, found.level_BN, found.sign_BN):
        assert np.abs(np.corrcoef(one.T) - np.eye(4)).max() < 0.06
    assert abs(np.corrcoef(found.level_BN.ravel(), found.sign_BN.ravel())[0, 1]) < 0.03
    wild = drawn(500, magnitude=9.0, deviation=4.0).level_BN
    assert wild.min() >= 0 and wild.max() == 10 and (wild == 10).mean() < 0.6
    assert (drawn(50, probability=1.0).operation_BN != NONE).all()


@pytest.fixture(scope="module")
def batch():
    return {"video_BTHWC": np.random.default_rng(1).integers(0, 256, (8, 2, 12, 10, 3), dtype=np.uint8)}


STRONG = Augmentation(rand=RandAugment(probability=0.9))


def changed(batch, how=STRONG, step=0):
    key = jax.random.fold_in(jax.random.key(5), step)
    return np.asarray(jax.jit(lambda batch: augment(batch, key, how)["video_BTHWC"])(batch))


@pytest.mark.slow
def test_a_clip_is_its_operations_one_after_another(batch, run):
    key = jax.random.fold_in(jax.random.key(5), 0)
    keys = jax.vmap(lambda place: jax.random.fold_in(jax.random.fold_in(key, place), 5))(jnp.arange(8))
    found = jax.device_get(draw(keys, STRONG.rand))
    want = batch["video_BTHWC"].copy()
    for row, (operations, levels, signs) in enumerate(zip(*found, strict=True)):
        for operation, level, sign in zip(operations, levels, signs, strict=True):
            if operation != NONE:
                want[row] = run(want[row : row + 1][0], OPERATIONS[operation], level, sign)
    got = changed(batch)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, want)
    assert (got != batch["video_BTHWC"]).any(axis=(1, 2, 3, 4)).all()


@pytest.mark.slow
def test_steps_and_places_draw_for_themselves(batch):
    same = {"video_BTHWC": np.broadcast_to(batch["video_BTHWC"][:1], batch["video_BTHWC"].shape)}
    assert len({row.tobytes() for row in changed(same)}) == 8
    assert not np.array_equal(changed(batch, step=1), changed(batch))
    np.testing.assert_array_equal(changed({"video_BTHWC": batch["video_BTHWC"][:4]}), changed(batch)[:4])


@pytest.mark.slow
def test_eight_devices_do_as_one_without_a_word_between_them(batch):
    mesh = make_mesh({"data": 4, "fsdp": 2})
    with use_mesh(mesh):
        key = jax.random.fold_in(jax.random.key(5), 0)
        together = jax.jit(lambda batch: augment(batch, key, STRONG), out_shardings=batch_sharding(mesh))
        program = together.lower(placed := put_batch(batch, mesh)).compile()
        shared = jax.device_get(program(placed))["video_BTHWC"]
    np.testing.assert_array_equal(shared, changed(batch))
    assert not any(word in program.as_text() for word in ("all-gather", "all-to-all", "collective-permute"))


def test_a_row_pays_for_what_it_draws_alone(batch):
    text = jax.jit(lambda x, drawn: rand_augment.rand_augment(x, drawn)).lower(batch["video_BTHWC"], drawn(8)).as_text()
    # All twelve branches behind one choice: had it become a selection, each row would compute them all.
    (case,) = [line for line in text.splitlines() if "stablehlo.case" in line]
    assert case and "stablehlo.while" in text
