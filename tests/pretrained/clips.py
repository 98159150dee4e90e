"""What tests of CLIP's kin share: small towers of random numbers, and what is computed here of the same inputs."""

import jax
import numpy as np
import torch

from tests.pretrained.text_towers import drawn
from vidlang.models import classifier, dual_encoder

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


class Block(torch.nn.Module):
    """A layer as OpenAI's code has it, written anew."""

    def __init__(self, width, heads, mlp, epsilon):
        super().__init__()
        self.attn = torch.nn.MultiheadAttention(width, heads)
        self.ln_1, self.ln_2 = torch.nn.LayerNorm(width, epsilon), torch.nn.LayerNorm(width, epsilon)
        self.mlp = torch.nn.ModuleDict({"c_fc": torch.nn.Linear(width, mlp), "c_proj": torch.nn.Linear(mlp, width)})

    def forward(self, x_LBD, quick: bool, mask_LS):
        y = self.ln_1(x_LBD)
        x_LBD = x_LBD + self.attn(y, y, y, need_weights=False, attn_mask=mask_LS)[0]
        h = self.mlp["c_fc"](self.ln_2(x_LBD))
        h = h * torch.sigmoid(1.702 * h) if quick else torch.nn.functional.gelu(h)
        return x_LBD + self.mlp["c_proj"](h)


class Blocks(torch.nn.Module):
    def __init__(self, width, heads, mlp, layers=2, epsilon=1e-5):
        super().__init__()
        self.resblocks = torch.nn.ModuleList([Block(width, heads, mlp, epsilon) for _ in range(layers)])

    def forward(self, x_BLD, quick: bool, mask_LS=None):
        x = x_BLD.transpose(0, 1)
        for block in self.resblocks:
            x = block(x, quick, mask_LS)
        return x.transpose(0, 1)


def encode_text(owner, text_BL, quick):
    """What CLIP's text tower, whose parts `owner` has, makes of texts whose last token has the largest id."""
    x = owner.token_embedding(text_BL) + owner.positional_embedding
    length = text_BL.shape[1]
    mask_LS = torch.triu(torch.full((length, length), -torch.inf), 1)
    x = owner.ln_final(owner.transformer(x, quick, mask_LS))
    return x[torch.arange(x.shape[0]), text_BL.argmax(-1)] @ owner.text_projection


def text_parts(owner, width=64, heads=1, embed=20):
    """Gives `owner` the parts of CLIP's text tower."""
    owner.transformer = Blocks(width, heads, 4 * width)
    owner.token_embedding = torch.nn.Embedding(VOCAB, width)
    owner.positional_embedding = torch.nn.Parameter(torch.empty(LENGTH, width))
    owner.ln_final = torch.nn.LayerNorm(width)
    owner.text_projection = torch.nn.Parameter(torch.empty(width, embed))


def classified(section, params, video_BTHWC):
    """The classifier's logits, in float32."""
    tower = section["video"]
    tower = {**tower, "transformer": {**tower["transformer"], "dtype": "float32"}}
    model = classifier.Model(video=tower, heads=section["heads"])
    return jax.jit(lambda params: model.apply({"params": params}, video_BTHWC, train=False).logits["label"])(params)
