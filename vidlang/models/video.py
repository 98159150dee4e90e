"""The video encoder: tubelets of a clip become tokens, and one transformer attends over space and time.

Order of things: pixels are normalised on the device, each tubelet is embedded linearly, positions are added, the mask
dial drops tokens, and only then does a cls token (if the model has one) join in front: it is never masked. In the
stack, layers run at the width that the dial says, attend along the edges that are drawn, and hand on what is kept.
Where the layout is "frames", all of this happens to each frame as if it were a clip, and their vectors are pooled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from vidlang.core.config import call
from vidlang.core.sharding import constrain
from vidlang.nn import layouts
from vidlang.nn.attention import Places
from vidlang.nn.clip_embedding import ClipEmbedding, clip_grid
from vidlang.nn.layers import TABLE_STD, LayerNorm, table
from vidlang.nn.map_pool import MapPool
from vidlang.nn.spec import TransformerSpec
from vidlang.nn.stems import INFLATE, View
from vidlang.nn.transformer import Stack, Stacked
from vidlang.ops.dials import OFF, Dials
from vidlang.ops.masking import keep, keep_count
from vidlang.ops.positions import TIME, Size2
from vidlang.ops.tubelets import Size3

POOLS = ("mean", "cls", "map")


@flax.struct.dataclass
class Output:
    """Tokens after the last norm, if there is one (without cls), the clip's one vector in float32, and which tokens.

    Static widths give tokens and vector of the last layer's width, drawn ones the full width with zeros beyond the
    first `valid` channels. cls_BD: the clip's cls token after the norm, where it has one; of frames, each has its own.
    """

    tokens_BMD: jax.Array
    pooled_BD: jax.Array
    kept_BM: jax.Array
    valid: jax.Array | None = None
    cls_BD: jax.Array | None = None


class Model(nn.Module):
    """Space-time encoder.

    transformer: the keys of TransformerSpec, the layout among them. tubelet: frames, height and width of a token. pool:
    "mean" of the tokens, a "cls" token, or "map", what attention and an mlp make of them (SigLIP). mean, std: of pixels
    in 0..1, one number or one per channel. position_std: how large positions start; beside patches of order 1, the
    usual small ones are noticed late, which only long training forgives. How many positions there are follows from the
    clip that the parameters were initialised with.

    image_patch: (height, width) of a second stem's patches, for clips of one frame, which get no position in time.
    views: sections of `stems.View` whose tubes are the tokens, instead of tubelets (TubeViT). positions: "learned", a
    table for times and one for places in a frame; "joint", one for all places of a clip (ViViT); "none"; or fixed ones
    ("sincos": VideoMAE's for tubelets, TubeViT's for views). pool_frames: in the layout "frames", how their vectors
    become one: "mean" or "attention". What parameters of another stage become here: extend_positions, one of
    `positions.TIME`, and inflate, how a video stem starts from an image stem's kernel.

    What published models differ in: stem_bias, whether stems have one (not in CLIP). temporal_std: how large positions
    in time start, where not as the others (zero in EgoVLP and AVION). norm_stem: a norm of the embedded tokens before
    the first layer (CLIP), and stem_epsilon, its epsilon, where not the layers' (LaViLa). cls: whether there is a cls
    token, where not only for its own pool; a position that it has in other models is part of it here. norm_pooled:
    whether the mean is over tokens that were not normalised, and has a norm of its own (BEiT, SViTT, VideoMAE), and
    pooled_epsilon, that norm's epsilon, where not the layers'. final_norm: whether tokens are normalised after the last
    layer; published BEiT and VideoMAE have only the norm of their mean.
    """

    transformer: Mapping[str, Any]
    tubelet: Size3 = (2, 16, 16)
    pool: str = "mean"
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    position_std: float = TABLE_STD
    image_patch: Size2 | None = None
    views: Sequence[Mapping[str, Any]] = ()
    positions: str = "learned"
    pool_frames: str = "mean"
    extend_positions: str = "repeat"
    inflate: str = "mean"
    stem_bias: bool = True
    temporal_std: float | None = None
    norm_stem: bool = False
    stem_epsilon: float | None = None
    cls: bool | None = None
    norm_pooled: bool = False
    pooled_epsilon: float | None = None
    final_norm: bool = True

    inputs: ClassVar[tuple[str, ...]] = ("video_BTHWC",)

    @property
    def video_spec(self) -> TransformerSpec:
        """The stack that the dials act on."""
        return call(TransformerSpec, self.transformer, what="video.transformer")

    @property
    def has_cls(self) -> bool:
        """Whether there is a cls token."""
        return self.pool == "cls" if self.cls is None else self.cls

    @property
    def frozen(self) -> dict[str, int | None]:
        """Paths of what gets no gradient, and how many of its first rows (None: all of it)."""
        layers = self.video_spec.frozen_layers
        if not layers:
            return {}
        before = ["patch", "image_patch", "views", "temporal", "spatial", "positions"]
        before += [name for name, there in (("cls", self.has_cls), ("stem_norm", self.norm_stem)) if there]
        return {f"^({'|'.join(before)})(/|$)": None, "^stack/layers/": layers}

    def at(self, widths: Any) -> Model:
        """The smaller model that this one is at these widths; `nn.slicing` cuts its parameters out."""
        spec = self.video_spec
        small = spec.cut(widths)
        if self.norm_stem and small.width < spec.width:
            raise ValueError(
                f"video.norm_stem normalises over all {spec.width} channels before the first layer, which a model of "
                f"width {small.width} does not have; cut it at widths of which one is {spec.width}"
            )
        return self.clone(transformer=dataclasses.asdict(small))

    def setup(self) -> None:
        spec = self.spec = self.video_spec
        self.by_frame = spec.layout == "frames"
        self._check_settings()
        self.embedding = ClipEmbedding(
            spec,
            self.tubelet,
            self.mean,
            self.std,
            self.stem_bias,
            self.positions,
            self.position_std,
            self.position_std if self.temporal_std is None else self.temporal_std,
            self.image_patch,
            tuple(call(View, view, what=f"video.views[{i}]") for i, view in enumerate(self.views)),
        )
        nn.share_scope(self, self.embedding)
        self.stack = Stack(spec)

        def norm(dtype: Any, epsilon: float | None = None) -> LayerNorm:
            return LayerNorm(spec.width, dtype, spec.epsilon if epsilon is None else epsilon)

        if self.final_norm:
            self.norm = norm(spec.compute_dtype)
        if self.norm_stem:
            self.stem_norm = norm(spec.compute_dtype, self.stem_epsilon)
        if self.norm_pooled:
            self.pooled_norm = norm(jnp.float32, self.pooled_epsilon)
        if self.pool == "map":
            self.map_pool = MapPool(spec)
        if self.pool_frames == "attention":
            self.frame_pool = layouts.AttentionPool(spec.width, spec.heads, spec.compute_dtype, spec.groups)

    @nn.compact
    def __call__(self, video_BTHWC: jax.Array, *, train: bool, dials: Dials = OFF) -> Output:
        if dials.keep and not self.has_cls:
            raise ValueError(
                f"the dial keep ranks tokens by what the cls token attends to, and this model pools by {self.pool!r} "
                "without one; set video.pool='cls' or video.cls=True, or leave keep off"
            )
        layouts.check_dials(self.spec.layout, dials)
        x_BND, grid = self.embedding(video_BTHWC)
        total = x_BND.shape[1]
        x_BMD, kept_BM = self._drop(x_BND, grid, dials)
        batch, frames = x_BMD.shape[0], 1 if grid is None else grid[0]
        places_BM, times = kept_BM if x_BMD.shape[1] < total else kept_BM[:1], frames
        if self.by_frame:  # from here on, frames are the batch
            x_BMD = x_BMD.reshape(batch * frames, -1, self.spec.width)
            places_BM, times = places_BM.reshape(-1, x_BMD.shape[1]) % (total // frames), 1
            rows_B = jnp.arange(batch) if dials.rows_B is None else dials.rows_B
            dials = dataclasses.replace(dials, rows_B=jnp.repeat(rows_B, frames))
        stacked = self.stack(
            self._with_cls(x_BMD),
            dials=dials,
            globals=int(self.has_cls),
            train=train,
            times=None if self.spec.layout == "joint" else times,
            places=self._places(places_BM, grid, x_BMD.shape[0]),
        )
        x_BMD = self.norm(stacked.x_BMD, valid=stacked.valid) if self.final_norm else stacked.x_BMD
        if stacked.kept_BM is not None:
            kept_BM = jnp.take_along_axis(kept_BM, stacked.kept_BM, axis=1)
        pooled_BD = self._pool(stacked, x_BMD)
        cls_BD, tokens_BMD = (x_BMD[:, 0], x_BMD[:, 1:]) if self.has_cls else (None, x_BMD)
        if self.by_frame:
            pooled_BTD = pooled_BD.reshape(batch, frames, -1)
            attends = self.pool_frames == "attention"
            pooled_BD = self.frame_pool(pooled_BTD, valid=stacked.valid) if attends else pooled_BTD.mean(axis=1)
            cls_BD, tokens_BMD = None, tokens_BMD.reshape(batch, -1, tokens_BMD.shape[-1])
        return Output(tokens_BMD, constrain(pooled_BD, "batch", "act_embed"), kept_BM, stacked.valid, cls_BD)

    def _with_cls(self, x_BMD: jax.Array) -> jax.Array:
        """What goes into the first layer."""
        if self.has_cls:
            cls_D = table(self, "cls", (self.spec.width,), ("embed",))
            cls_B1D = jnp.broadcast_to(cls_D.astype(x_BMD.dtype), (x_BMD.shape[0], 1, self.spec.width))
            x_BMD = jnp.concatenate([cls_B1D, x_BMD], axis=1)
        if self.norm_stem:
            x_BMD = self.stem_norm(x_BMD)
        return constrain(x_BMD, "batch", "tokens", "act_embed")

    def _pool(self, stacked: Stacked, x_BMD: jax.Array) -> jax.Array:
        """One float32 vector of each clip, or of each frame, from the tokens before and after the norm."""
        if self.pool == "cls":
            return x_BMD[:, 0].astype(jnp.float32)
        if self.pool == "map":
            vector_BD: jax.Array = self.map_pool(x_BMD[:, int(self.has_cls) :], valid=stacked.valid)
            return vector_BD
        if self.norm_pooled:
            x_BMD = stacked.x_BMD
        mean_BD = (x_BMD[:, 1:] if self.has_cls else x_BMD).astype(jnp.float32).mean(axis=1)
        return self.pooled_norm(mean_BD, valid=stacked.valid) if self.norm_pooled else mean_BD

    def _drop(self, x_BND: jax.Array, grid: Size3 | None, dials: Dials) -> tuple[jax.Array, jax.Array]:
        """The tokens that the mask dial leaves, and their indices."""
        batch, total, _ = x_BND.shape
        if dials.mask == 0 or (dials.mask_kind == "random" and keep_count(total, dials.mask) == total):
            return x_BND, jnp.broadcast_to(jnp.arange(total), (batch, total))
        if not self.has_rng("mask"):
            raise ValueError(f"the dial mask is {dials.mask}, which draws tokens: call with rngs={{'mask': key}}")
        if grid is None:
            if dials.mask_kind != "random":
                raise ValueError(
                    f"views share no grid that a mask of kind {dials.mask_kind!r} could follow; set mask_kind='random'"
                )
            grid = (1, 1, total)
        return keep(self.make_rng("mask"), x_BND, grid, dials.mask, dials.mask_kind, rows_B=dials.rows_B)

    def _places(self, kept_BM: jax.Array, grid: Size3 | None, batch: int) -> Places | None:
        """Where the tokens of the stack stand, for relative positions; cls stands nowhere."""
        if not self.spec.relative_positions or grid is None:
            return None
        if self.by_frame:
            grid = (1, *grid[1:])
        ids_BN = jnp.pad(kept_BM.astype(jnp.int32), ((0, 0), (int(self.has_cls), 0)), constant_values=-1)
        return Places(ids_BN if ids_BN.shape[0] == batch else ids_BN[:1], grid)

    def _check_settings(self) -> None:
        """ValueError for settings that do not go together."""
        choices = {"pool": POOLS, "pool_frames": layouts.POOLS, "extend_positions": TIME, "inflate": INFLATE}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"video.{name} is {getattr(self, name)!r}; it is one of {', '.join(known)}")
        if self.spec.causal:
            raise ValueError("video.transformer.causal is True; the video encoder attends in both directions")
        if self.pool_frames != "mean" and not self.by_frame:
            raise ValueError(
                f"video.pool_frames is {self.pool_frames!r}, which pools frames that were encoded one by one; set "
                "transformer.layout='frames', or leave it out"
            )
        if self.pool == "cls" and (self.norm_pooled or not self.has_cls or not self.final_norm):
            raise ValueError(
                "video.pool 'cls' takes the normalised cls token; leave out cls=False, final_norm=False and "
                "norm_pooled=True, or set pool='mean'"
            )
        if self.pool == "map" and self.norm_pooled:
            raise ValueError(
                "video.norm_pooled is of a mean, and video.pool is 'map'; leave it out, or set pool='mean'"
            )
        for name, owner in (("pooled_epsilon", "norm_pooled"), ("stem_epsilon", "norm_stem")):
            value = getattr(self, name)
            if value is not None and not (getattr(self, owner) and value > 0):
                raise ValueError(
                    f"video.{name} is {value!r}; it is a positive number, of the norm that {owner}=True adds, or None"
                )


class WithVideoEncoder(nn.Module):
    """What models say of the video encoder that is a part of them.

    video: its attributes. Its parameters lie under "video_encoder", and that is where other models find them.
    """

    video: Mapping[str, Any]

    @property
    def video_spec(self) -> TransformerSpec:
        """The stack that the dials act on."""
        return self._video.video_spec

    @property
    def frozen(self) -> dict[str, int | None]:
        """What of the video encoder is frozen, as it says it."""
        return {pattern.replace("^", "^video_encoder/"): rows for pattern, rows in self._video.frozen.items()}

    def at(self, widths: Any) -> Any:
        """The model whose video encoder is this one's at these widths; `nn.slicing` cuts its parameters out."""
        return self.clone(video={**self.video, "transformer": self._video.at(widths).transformer})

    @property
    def _video(self) -> Model:
        encoder: Model = call(Model, self.video, what="model.video", parent=None)
        return encoder


def grid_of(model: Model, video_THW: Size3) -> Size3 | None:
    """How many tokens a model makes of a clip along (time, rows, columns); None where views give it no grid."""
    return clip_grid(model.tubelet, model.image_patch, model.views, video_THW)
