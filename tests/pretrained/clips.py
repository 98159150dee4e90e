"""What tests of CLIP's kin share: small towers of random numbers, and what is computed here of the same inputs."""

import jax
import numpy as np
import torch

from tests.pretrained.text_towers import drawn
from vidlang.models import dual_encoder

VOCAB, LENGTH = 61, 12
EOS = VOCAB - 1
SIZES = np.array([7, LENGTH, 2])
# Each text ends with the largest id; the first has CLIP's "!", the id 0, in its midst.
TEXT = np.random.default_rng(0).integers(1, EOS, (3, LENGTH))
TEXT[0, 3] = 0
TEXT[np.arange(3), SIZES - 1] = EOS
VALID = np.arange(LENGTH)[None] < SIZES[:, None]
PADDED = np.where(VALID, TEXT, 0)


def draw(model, seed=0):
    """The model with random numbers everywhere, and a temperature that is none of the usual."""
    drawn(model, seed)
    with torch.no_grad():
        if hasattr(model, "logit_scale"):
            model.logit_scale.fill_(1.7)
    return model


def frames_of(clip, batch=3, seed=0):
    """Clips of bytes, [B, T, H, W, C], and what the real models get of them, normalised, [B, T, C, H, W]."""
    return np.random.default_rng(seed).integers(0, 256, (batch, *clip, 3), np.uint8)


def pixels(video_BTHWC, section):
    """What the section's mean and deviation make of them, as torch wants them."""
    mean, std = (np.array(section["video"][key]) for key in ("mean", "std"))
    return torch.tensor(np.moveaxis((video_BTHWC / 255 - mean) / std, -1, 2), dtype=torch.float32)


def computed(section, params, video_BTHWC, text_BL=PADDED):
    """(the dual encoder's output, what the video tower says, what the text tower says), in float32."""
    options = {key: value for key, value in section.items() if key != "name"}
    for tower in ("video", "text"):
        transformer = {**options[tower]["transformer"], "dtype": "float32"}
        options[tower] = {**options[tower], "transformer": transformer}
    model = dual_encoder.Model(**options)

    def towers(model, video_BTHWC, text_BL):
        video = model.video_encoder(video_BTHWC, train=False)
        return video, model.text_encoder(text_BL, train=False)

    @jax.jit
    def run(params):
        whole = model.apply({"params": params}, video_BTHWC, text_BL, train=False)
        return whole, *model.apply({"params": params}, video_BTHWC, text_BL, method=towers)

    return run(params)


def unit(x_BE):
    return (x_BE / x_BE.norm(dim=-1, keepdim=True)).numpy()
