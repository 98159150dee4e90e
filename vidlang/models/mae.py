"""VideoMAE: most of a clip is hidden, and its pixels are rebuilt from the rest.

The video encoder works on the few tubelets that the dial mask leaves. Their tokens become narrower, a learned token
stands wherever one was dropped, all are told their places again, and a small stack of layers lets the hidden ones read
the others; a linear map turns each of these into the pixels of its tubelet. The decoder is for this training only:
what is kept of the model is the encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from vidlang.core.config import call
from vidlang.core.sharding import constrain
from vidlang.models import video as video_model
from vidlang.nn.layers import TABLE_STD, LayerNorm, Linear, parameter
from vidlang.nn.spec import TransformerSpec
from vidlang.nn.transformer import Stack
from vidlang.ops.dials import OFF, Dials
from vidlang.ops.masking import complement, scatter
from vidlang.ops.positions import sincos_1d
from vidlang.ops.tubelets import Size3, patchify, token_grid

PER = ("channel", "tubelet")


@flax.struct.dataclass
class Output:
    """Of every dropped tubelet, in ascending order, the pixels as predicted and as they are, float32.

    Targets are in 0..1, in the order frame, row, column, channel; whether predictions are, or are normalised by
    tubelet, is the objective's choice. kept_BM: which tubelets the encoder saw; the others are the dropped ones.
    """

    predicted_BMP: jax.Array
    target_BMP: jax.Array
    kept_BM: jax.Array


class Decoder(nn.Module):
    """From the tokens of the kept tubelets to the pixels of the dropped ones, `pixels` numbers of each.

    into: the width of the encoder; tokens may be narrower. norm_epsilon: of the norm behind the layers.
    """

    spec: TransformerSpec
    into: int
    norm_epsilon: float

    @nn.compact
    def __call__(
        self,
        x_BMD: jax.Array,
        kept_BM: jax.Array,
        dropped_BM: jax.Array,
        *,
        pixels: int,
        train: bool,
        rows_B: jax.Array | None,
    ) -> jax.Array:
        """rows_B: as in the dials."""
        spec, width = self.spec, self.spec.width
        total = kept_BM.shape[1] + dropped_BM.shape[1]
        project = Linear((self.into,), (width,), ("embed", "joint"), spec.compute_dtype, bias=False, name="project")
        mask_token_D = parameter(self, "mask_token", nn.initializers.normal(TABLE_STD), (width,), ("embed",))
        x_BND = scatter(project(x_BMD), kept_BM, total, mask_token_D)
        x_BND = x_BND + sincos_1d(total, width)[None].astype(x_BND.dtype)
        x_BND = constrain(x_BND, "batch", "tokens", "act_embed")
        x_BND = Stack(spec, name="stack")(x_BND, dials=Dials(rows_B=rows_B), train=train).x_BMD
        norm = LayerNorm(width, jnp.float32, self.norm_epsilon, name="norm")
        predict = Linear((width,), (pixels,), ("embed", "patch"), jnp.float32, name="pixels")
        return constrain(predict(norm(_take(x_BND, dropped_BM))), "batch", None, None)


class Model(video_model.WithVideoEncoder):
    """Masked autoencoder of clips.

    video: the attributes of the video encoder, which lies where other models have theirs, so that their training may
    start from it. decoder: the keys of TransformerSpec for the layers that rebuild (VideoMAE: 4, of width 384). Which
    tubelets are hidden is a dial, mask 0.9 and mask_kind "tube" in VideoMAE, and without one there is nothing to do.
    norm_epsilon: of the decoder's last norm, where not that of its layers.
    """

    decoder: Mapping[str, Any]
    norm_epsilon: float | None = None

    inputs: ClassVar[tuple[str, ...]] = ("video_BTHWC",)

    def setup(self) -> None:
        self.video_encoder = call(video_model.Model, self.video, what="model.video")
        spec = call(TransformerSpec, self.decoder, what="model.decoder")
        self._check_settings(spec)
        epsilon = spec.epsilon if self.norm_epsilon is None else self.norm_epsilon
        if not epsilon > 0:
            raise ValueError(f"model.norm_epsilon is {epsilon!r}; it is a positive number, or None for the decoder's")
        self.rebuild = Decoder(spec, self.video_encoder.spec.width, epsilon, name="decoder")

    def __call__(self, video_BTHWC: jax.Array, *, train: bool, dials: Dials = OFF) -> Output:
        if dials.keep:
            raise ValueError(
                "the dial keep prunes tokens inside the encoder, and a decoder needs all those that the mask left; "
                "leave keep off for this model"
            )
        encoder = self.video_encoder
        encoded = encoder(video_BTHWC, train=train, dials=dials)
        boxes_BNP = patchify(video_BTHWC, encoder.tubelet)
        dropped_BM = complement(encoded.kept_BM, boxes_BNP.shape[1])
        if not dropped_BM.shape[1] and not self.is_initializing():
            raise ValueError(
                f"the dial mask is {dials.mask}, which hides none of the {boxes_BNP.shape[1]} tubelets, so there is "
                "nothing to predict; set it, as in dials = {'mask': 0.9, 'mask_kind': 'tube'}"
            )
        predicted_BMP = self.rebuild(
            encoded.tokens_BMD,
            encoded.kept_BM,
            dropped_BM,
            pixels=boxes_BNP.shape[2],
            train=train,
            rows_B=dials.rows_B,
        )
        return Output(predicted_BMP, unit_range(_take(boxes_BNP, dropped_BM)), encoded.kept_BM)

    def embed_video(self, video_BTHWC: jax.Array, *, train: bool = False, dials: Dials = OFF) -> jax.Array:
        """What the encoder pools of clips, float32; the decoder is not run."""
        pooled_BD: jax.Array = self.video_encoder(video_BTHWC, train=train, dials=dials).pooled_BD
        return pooled_BD

    def reconstruct(
        self,
        video_BTHWC: jax.Array,
        dials: Dials,
        *,
        normalize: bool = True,
        per: str = "channel",
        epsilon: float = 1e-6,
    ) -> jax.Array:
        """Whole clips, float32 in 0..1: predicted tubelets among those that the encoder saw.

        The options are the objective's. Where it normalised, a prediction says nothing of brightness and contrast, and
        gets those of the true tubelet, as in VideoMAE's pictures.
        """
        output = self(video_BTHWC, train=False, dials=dials)
        predicted_BMP = output.predicted_BMP
        if normalize:
            predicted_BMP = _restore(predicted_BMP, output.target_BMP, per, video_BTHWC.shape[-1], epsilon)
        boxes_BNP = unit_range(patchify(video_BTHWC, self.video_encoder.tubelet))
        dropped_BM = complement(output.kept_BM, boxes_BNP.shape[1])
        boxes_BNP = jax.vmap(lambda boxes_NP, at_M, new_MP: boxes_NP.at[at_M].set(new_MP, unique_indices=True))(
            boxes_BNP, dropped_BM, jnp.clip(predicted_BMP, 0.0, 1.0)
        )
        return unpatchify(boxes_BNP, video_BTHWC.shape, self.video_encoder.tubelet)

    def _check_settings(self, spec: TransformerSpec) -> None:
        """ValueError for what a masked autoencoder cannot be."""
        if self.video_encoder.views or self.video_encoder.image_patch is not None:
            raise ValueError(
                "a clip is rebuilt from tubelets of one size, each pixel in one of them; leave out model.video.views "
                "and model.video.image_patch"
            )
        plain = TransformerSpec(1, spec.width, spec.heads, spec.mlp)
        for name in ("causal", "layout", "relative_positions", "frozen_layers"):
            found, only = getattr(spec, name), getattr(plain, name)
            if found != only:
                raise ValueError(
                    f"model.decoder.{name} is {found!r}; in a decoder all tokens attend to all and all layers train: "
                    f"leave it at {only!r}"
                )


def unit_range(pixels: jax.Array) -> jax.Array:
    """Pixels in 0..255 as float32 in 0..1."""
    return pixels.astype(jnp.float32) / 255.0


def unpatchify(boxes_BNP: jax.Array, shape_BTHWC: tuple[int, ...], tubelet: Size3) -> jax.Array:
    """The video of this shape whose `patchify` these tubelets are."""
    batch, frames, height, width, channels = shape_BTHWC
    grid = token_grid((frames, height, width), tubelet)
    boxes = boxes_BNP.reshape(batch, *grid, *tubelet, channels)
    return boxes.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(shape_BTHWC)


def _take(x_BNP: jax.Array, index_BM: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x_BNP, index_BM[:, :, None], axis=1)


def _restore(predicted_BMP: jax.Array, target_BMP: jax.Array, per: str, channels: int, epsilon: float) -> jax.Array:
    """Predictions of normalised tubelets with the mean and deviation that the objective took from these targets."""
    if per not in PER:
        raise ValueError(f"reconstruct: per is {per!r}; it is one of {', '.join(PER)}, as in the objective")
    batch, masked, size = target_BMP.shape
    groups = channels if per == "channel" else 1
    predicted_BMPC, true_BMPC = (
        x_BMP.reshape(batch, masked, size // groups, groups) for x_BMP in (predicted_BMP, target_BMP)
    )
    mean_BM1C = true_BMPC.mean(axis=2, keepdims=True)
    variance_BM1C = true_BMPC.var(axis=2, keepdims=True, ddof=1)
    deviation_BM1C = jnp.sqrt(variance_BM1C) + epsilon if per == "channel" else jnp.sqrt(variance_BM1C + epsilon)
    return (predicted_BMPC * deviation_BM1C + mean_BM1C).reshape(target_BMP.shape)
