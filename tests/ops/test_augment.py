"""Augmentation is what numpy says in float64, a function of (key, place), and costs nothing where it is off."""

import colorsys
import functools

import jax
import numpy as np
import pytest

from vidlang.core.sharding import batch_sharding, make_mesh, put_batch, use_mesh
from vidlang.ops.augment import NOTHING, Augmentation, Blur, Mix, augment
from vidlang.ops.colours import Jitter, jitter, turn_hue
from vidlang.ops.erasing import Erase
from vidlang.ops.rand_augment import RandAugment

ALL = Augmentation(
    flip=0.5,
    jitter=Jitter(0.4, 0.4, 0.4, 0.1, 0.8),
    grey=0.3,
    rand=RandAugment(),
    blur=Blur(0.5, (0.1, 1.0)),
    erase=Erase(0.5),
    mixup=Mix(0.4, 0.8),
    cutmix=Mix(0.4, 1.0),
)
SHAPE = (16, 2, 12, 10, 3)


@pytest.fixture(scope="module")
def batch():
    video = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
    return {"video_BTHWC": video, "text_BL": np.zeros((16, 3), np.int32)}


@functools.cache
def compiled(how):
    return jax.jit(lambda batch, step: augment(batch, jax.random.fold_in(jax.random.key(7), step), how))


def run(how, batch, step=0):
    """The augmented batch on the host."""
    return jax.device_get(compiled(how)(batch, step))


def video_of(how, batch, step=0):
    return run(how, batch, step)["video_BTHWC"]


def changed(video, batch):
    """Which clips are no longer what they were."""
    return np.array([not np.array_equal(one, other) for one, other in zip(video, batch["video_BTHWC"], strict=True)])


def hsv_turned(x, turn):
    """The standard library's way, a pixel at a time."""
    result = np.zeros(x.shape)
    for place in np.ndindex(x.shape[:-1]):
        hue, saturation, value = colorsys.rgb_to_hsv(*(x[place] / 255))
        result[place] = 255 * np.array(colorsys.hsv_to_rgb((hue + turn[place[0]]) % 1, saturation, value))
    return result


def test_hue_turns_as_hsv_does(batch):
    video = batch["video_BTHWC"][:4, :, :6].astype(np.float64)
    video[0, 0, :2], video[0, 0, 2, 0], video[0, 0, 2, 1] = 130, 0, [255, 0, 255]  # greys, black, an edge of the wheel
    turn = np.array([0.5, -0.31, 0.0, 1 / 3])
    got = turn_hue(video.astype(np.float32), turn.astype(np.float32))
    np.testing.assert_allclose(got, hsv_turned(video, turn), atol=2e-3)
    np.testing.assert_allclose(turn_hue(video.astype(np.float32), np.zeros(4, np.float32)), video, atol=1e-3)


def test_brightness_contrast_and_saturation_are_their_formulas(batch):
    video, rng = batch["video_BTHWC"].astype(np.float64), np.random.default_rng(1)
    draws = [rng.random(16).astype(np.float32) for _ in range(4)]
    factors = [draw.astype(np.float64).reshape(-1, 1, 1, 1, 1) for draw in draws]
    weights = np.array([0.299, 0.587, 0.114])
    want = np.clip(video * (0.6 + 0.8 * factors[0]), 0, 255)
    mean = (want @ weights).mean(axis=(1, 2, 3))[:, None, None, None, None]
    want = np.clip(mean + (0.5 + factors[1]) * (want - mean), 0, 255)
    grey = (want @ weights)[..., None]
    want = np.clip(grey + 2.5 * factors[2] * (want - grey), 0, 255)  # from 1 - 1.5, which is no factor, so from 0
    got = jitter(video.astype(np.float32), draws, Jitter(0.4, 0.5, 1.5))
    np.testing.assert_allclose(got, want, atol=2e-3)
    assert want.min() == 0 and want.max() == 255


def test_flips_are_exact_mirrors_of_some_clips(batch):
    video, mirrored = video_of(Augmentation(flip=0.5), batch), batch["video_BTHWC"][:, :, :, ::-1]
    assert video.dtype == np.uint8
    flipped = changed(video, batch)
    assert 2 < flipped.sum() < 14
    np.testing.assert_array_equal(video[flipped], mirrored[flipped])
    np.testing.assert_array_equal(video_of(Augmentation(flip=1.0), batch), mirrored)


def test_grey_has_the_weights_of_brightness(batch):
    video = video_of(Augmentation(grey=0.5), batch)
    chosen = changed(video, batch)
    assert 2 < chosen.sum() < 14
    want = batch["video_BTHWC"][chosen].astype(np.float64) @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(video[chosen], want[..., None].repeat(3, axis=-1), atol=1e-4)


def blurred(x, sigma, radius):
    """Two passes of numpy's own convolution over mirrored borders."""
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    for axis in (1, 2):
        margins = [(radius, radius) if i == axis else (0, 0) for i in range(4)]
        padded = np.pad(x.astype(np.float64), margins, mode="reflect")
        x = np.apply_along_axis(np.convolve, axis, padded, kernel, "valid")
    return x


def test_blur_is_a_gaussian(batch):
    video = video_of(Augmentation(blur=Blur(0.5, (1.5, 1.5))), batch)
    chosen = changed(video, batch)
    assert 2 < chosen.sum() < 14
    for got, clip in zip(video[chosen], batch["video_BTHWC"][chosen], strict=True):
        np.testing.assert_allclose(got, blurred(clip, 1.5, radius=5), atol=1e-3)
    spread = video_of(Augmentation(blur=Blur(1.0, (0.3, 1.5))), batch).std(axis=(1, 2, 3, 4))
    assert len(set(np.round(spread, 1))) > 4, "each clip has its own sigma"


def test_a_mixed_clip_is_the_sum_that_its_share_says(batch):
    found, video = run(Augmentation(mixup=Mix(0.6, 0.8)), batch), batch["video_BTHWC"].astype(np.float64)
    share, partner = found["mix_share_B"], found["mix_partner_B"]
    mixed = share < 1
    assert 4 < mixed.sum() < 15 and share.dtype == np.float32 and partner.dtype == np.int32
    np.testing.assert_array_equal(partner, np.where(mixed, (np.arange(16) + 2) % 16, np.arange(16)))
    weight = share.astype(np.float64).reshape(-1, 1, 1, 1, 1)
    np.testing.assert_allclose(found["video_BTHWC"], weight * video + (1 - weight) * video[partner], atol=1e-3)
    np.testing.assert_array_equal(found["video_BTHWC"][~mixed], video[~mixed])


def test_a_cut_clip_shows_a_box_of_the_other(batch):
    found, video = run(Augmentation(cutmix=Mix(0.7, 1.0)), batch), batch["video_BTHWC"].astype(np.float64)
    for row, (share, partner) in enumerate(zip(found["mix_share_B"], found["mix_partner_B"], strict=True)):
        got, distinct = found["video_BTHWC"][row], (video[row] != video[partner]).any(axis=(0, -1))
        other = (got != video[row]).any(axis=(0, -1))
        lines, columns = other.any(axis=1), other.any(axis=0)
        box = lines[:, None] & columns
        np.testing.assert_array_equal(other, box & distinct)
        np.testing.assert_array_equal(got, np.where(box[..., None], video[partner], video[row]))
        assert share == pytest.approx(1 - box.mean(), abs=1e-6)
    assert 4 < (found["mix_share_B"] < 1).sum() < 16
    assert len(set(found["mix_share_B"].tolist())) > 4


@pytest.mark.slow
def test_mixup_and_cutmix_share_the_clips_between_them(batch):
    big = {"video_BTHWC": np.zeros((1000, 1, 2, 2, 3), np.uint8)}
    alone = [run(Augmentation(**{name: Mix(0.3, 1.0)}), big) for name in ("mixup", "cutmix")]
    both = run(Augmentation(mixup=Mix(0.3, 1.0), cutmix=Mix(0.3, 1.0)), big)
    up, cut = (found["mix_share_B"] < 1 for found in alone)
    assert not (up & cut).any()
    np.testing.assert_array_equal(both["mix_share_B"] < 1, up | cut)
    shares = alone[0]["mix_share_B"][up]
    assert up.mean() == pytest.approx(0.3, abs=0.05) and shares.mean() == pytest.approx(0.5, abs=0.05)
    assert shares.var() == pytest.approx(1 / 12, abs=0.015)  # Beta(1, 1)


@pytest.mark.parametrize("rows", [1, 2])
def test_the_smallest_batches_can_be_mixed(rows):
    found = run(Augmentation(mixup=Mix(1.0)), {"video_BTHWC": np.zeros((rows, 1, 2, 2, 3), np.uint8)})
    assert found["mix_partner_B"].tolist() == [[0], [1, 0]][rows - 1]


@pytest.mark.parametrize(
    "how", [Augmentation(flip=0.25), Augmentation(grey=0.25), Augmentation(blur=Blur(0.25))], ids=str
)
def test_probabilities_are_honoured(how):
    rng = np.random.default_rng(2)
    big = {"video_BTHWC": rng.integers(0, 256, (1000, 1, 8, 8, 3), dtype=np.uint8)}
    assert changed(video_of(how, big), big).mean() == pytest.approx(0.25, abs=0.05)


@pytest.mark.slow
def test_eight_devices_do_as_one(batch):
    alone = run(ALL, batch)
    mesh = make_mesh({"data": 4, "fsdp": 2})
    with use_mesh(mesh):
        key = jax.random.fold_in(jax.random.key(7), 0)
        together = jax.jit(lambda batch: augment(batch, key, ALL), out_shardings=batch_sharding(mesh))
        program = together.lower(placed := put_batch(batch, mesh)).compile()
        shared = jax.device_get(program(placed))
    assert shared.keys() == alone.keys() == {*batch, "mix_share_B", "mix_partner_B"}
    for name in ("mix_share_B", "mix_partner_B", "text_BL"):
        np.testing.assert_array_equal(shared[name], alone[name])
    np.testing.assert_allclose(shared["video_BTHWC"], alone["video_BTHWC"], atol=1e-3)
    assert "all-gather" not in program.as_text(), "a device needs two rows of its neighbour, not the batch"


@pytest.mark.slow
def test_steps_differ_and_places_draw_for_themselves(batch):
    again, later = video_of(ALL, batch), video_of(ALL, batch, step=1)
    np.testing.assert_array_equal(video_of(ALL, batch), again)
    assert changed(later, {"video_BTHWC": again}).all()
    how = Augmentation(flip=0.5, jitter=ALL.jitter, blur=ALL.blur)
    half = {"video_BTHWC": batch["video_BTHWC"][:8]}
    np.testing.assert_allclose(video_of(how, half), video_of(how, batch)[:8], atol=1e-3)


def test_changes_draw_independently(batch):
    chosen = [changed(video_of(how, batch), batch) for how in (Augmentation(flip=0.5), Augmentation(grey=0.5))]
    chosen.append(run(Augmentation(mixup=Mix(0.5)), batch)["mix_share_B"] < 1)
    assert len({tuple(each.tolist()) for each in chosen}) == 3


@pytest.mark.slow
def test_a_change_draws_the_same_whatever_else_is_on(batch):
    flat = {"video_BTHWC": np.broadcast_to(batch["video_BTHWC"][:, :, :1, :1], SHAPE)}
    np.testing.assert_array_equal(
        run(ALL, flat)["mix_share_B"], run(Augmentation(mixup=ALL.mixup, cutmix=ALL.cutmix), flat)["mix_share_B"]
    )


def program(how, batch):
    return jax.jit(lambda batch, key: augment(batch, key, how)).lower(batch, jax.random.key(0)).as_text()


def test_what_is_off_is_not_in_the_program(batch):
    nothing = program(NOTHING, batch)
    # All but the first are no strict equals of NOTHING, so each guard is passed for itself.
    off = [
        Augmentation(blur=Blur(0.0), mixup=Mix(0.0), cutmix=Mix(0.0), erase=Erase(0.0), rand=RandAugment(layers=0)),
        Augmentation(rand=RandAugment(probability=0.0), erase=Erase(0.0, (0.1, 0.2))),
        Augmentation(jitter=Jitter(1.0, 1.0, 1.0, 0.5, probability=0.0), blur=Blur(0.0, (1.0, 1.0))),
        Augmentation(jitter=Jitter(probability=0.5), mixup=Mix(0.0, 0.8), cutmix=Mix(0.0, 0.8)),
    ]
    for how in off:
        assert program(how, batch) == nothing
        np.testing.assert_array_equal(video_of(how, batch), batch["video_BTHWC"])
    assert "stablehlo" not in nothing and "stablehlo" in program(Augmentation(flip=0.5), batch)


MISTAKES = {
    "flip": (lambda: Augmentation(flip=1.5), "augment.flip is a probability from 0 to 1; found 1.5"),
    "grey": (lambda: Augmentation(grey=-1), "augment.grey is a probability"),
    "hue": (lambda: Jitter(hue=0.6), "augment.jitter.hue is a share of a full turn, from 0 to 0.5; found 0.6"),
    "strength": (lambda: Jitter(contrast=-0.1), "augment.jitter.contrast is a strength from 0 on; found -0.1"),
    "sigma": (lambda: Blur(0.5, (2.0, 0.1)), "augment.blur.sigma is a range of pixels above 0"),
    "layers": (lambda: RandAugment(layers=-1), "augment.rand.layers is a number of operations, from 0 on; found -1"),
    "magnitude": (lambda: RandAugment(magnitude=11), "augment.rand.magnitude is a strength from 0 to 10; found 11"),
    "deviation": (lambda: RandAugment(deviation=-1.0), "augment.rand.deviation is that of the strength"),
    "rand": (lambda: RandAugment(probability=2.0), "augment.rand.probability is a probability"),
    "area": (lambda: Erase(area=(0.5, 0.1)), "augment.erase.area is a range of shares of a frame"),
    "aspect": (lambda: Erase(aspect=(0.0, 1.0)), "augment.erase.aspect is a range above 0"),
    "noise": (lambda: Erase(std=(0.2,)), "augment.erase.std is three shares of 255, from 0 on; found"),
    "alpha": (lambda: Mix(0.5, 0.0), "alpha of mixup and cutmix must be above 0; found 0.0"),
    "both": (lambda: Augmentation(mixup=Mix(0.7), cutmix=Mix(0.5)), "mixed once, .*add up to 1.2"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_setting_that_means_nothing_is_refused(mistake):
    make, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        make()


def test_clips_that_cannot_be_changed_are_refused(batch):
    with pytest.raises(ValueError, match="sigma up to 4.0 reaches 12 pixels, and a frame is only 12 x 10"):
        run(Augmentation(blur=Blur(0.5, (0.1, 4.0))), batch)
    with pytest.raises(ValueError, match=r"colours R, G and B; found clips of shape \(16, 2, 12, 10, 1\)"):
        run(ALL, {"video_BTHWC": batch["video_BTHWC"][..., :1]})
