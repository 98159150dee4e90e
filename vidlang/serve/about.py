"""A trained model but for its numbers: what it is made of, how clips and texts come to it, and where it is from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from vidlang.core.config import call, load_module, to_dict
from vidlang.core.tree import flatten_paths
from vidlang.data.pipeline import ClipSpec
from vidlang.models import video as video_model
from vidlang.ops.dials import OFF, Dials
from vidlang.train import build
from vidlang.train.extract import LOOK
from vidlang.train.recipe import Stage
from vidlang.train.step import Fields, abstract_params, with_video

# What a model is called of whose files only the video tower is known.
TOWER = "tower"
# Of a clip, what says how it is looked at; the rest is about training.
LOOK_KEYS = ("frames", "size", "times", "crop", "pixels", "views", "crops")
TEXT_KEYS = ("text_length", "prompt")


class Tower(video_model.WithVideoEncoder):
    """A video encoder by itself, as some published files are."""

    inputs = ("video_BTHWC",)

    def setup(self) -> None:
        self.video_encoder = call(video_model.Model, self.video, what="model.video")

    def __call__(self, video_BTHWC: jax.Array, *, train: bool, dials: Dials = OFF) -> jax.Array:
        return self.embed_video(video_BTHWC, train=train, dials=dials)

    def embed_video(self, video_BTHWC: jax.Array, *, train: bool = False, dials: Dials = OFF) -> jax.Array:
        """The pooled vectors of clips, float32."""
        pooled_BD: jax.Array = self.video_encoder(video_BTHWC, train=train, dials=dials).pooled_BD
        return pooled_BD


@dataclass(frozen=True)
class About:
    """What a portable folder's config.json says.

    model: a `model` section. clip: the keys of ClipSpec that say how a clip is looked at and how long a text is.
    fields: shape, without the batch, and dtype of what the parameters were made for. dials: a section of what it runs
    at. tokenizer: its options but for the path, None for none. labels: names of the classes of heads, where known.
    source: what people may want to know of where it comes from.
    """

    model: Mapping[str, Any]
    clip: Mapping[str, Any]
    fields: Mapping[str, Any]
    dials: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Mapping[str, Any] | None = None
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            object.__setattr__(self, each.name, to_dict(getattr(self, each.name)))

    @property
    def name(self) -> str:
        """What its model is called."""
        return str(self.model["name"])

    @property
    def spec(self) -> ClipSpec | None:
        """How a clip is looked at, without texts; None where the model has never seen a clip."""
        if not self.clip.get("frames"):
            return None
        return build.clip_spec({name: self.clip[name] for name in LOOK_KEYS if name in self.clip})

    @property
    def text_length(self) -> int:
        """Tokens of a text."""
        return int(self.clip.get("text_length", 0))

    def build(self) -> nn.Module:
        """The Linen module."""
        name, options = build.named(self.model, "model")
        kind = Tower if name == TOWER else load_module("models", name).Model
        module: nn.Module = call(kind, options, what="model")
        return module

    def structs(self, frames: int | None = None) -> Fields:
        """A batch of one row as shapes; with another number of frames where asked."""
        found = {name: jax.ShapeDtypeStruct((1, *shape), np.dtype(kind)) for name, (shape, kind) in self.fields.items()}
        if frames is not None and "yuv_BTXW" in found:
            found = dict(jax.eval_shape(with_video, found))
        if frames is not None and "video_BTHWC" in found:
            _, _, *image = found["video_BTHWC"].shape
            found["video_BTHWC"] = jax.ShapeDtypeStruct((1, frames, *image), np.uint8)
        return found

    def check(self, params: Any, what: str) -> None:
        """ValueError unless these are the parameters of the model."""
        wanted, found = (flatten_paths(tree) for tree in (abstract_params(self.build(), self.structs()), params))
        problems = [f"{name} is missing" for name in wanted if name not in found]
        problems += [f"{name} is not of it" for name in found if name not in wanted]
        problems += [
            f"{name} is {tuple(leaf.shape)}, not {tuple(wanted[name].shape)}"
            for name, leaf in found.items()
            if name in wanted and tuple(leaf.shape) != tuple(wanted[name].shape)
        ]
        if problems:
            more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
            raise ValueError(
                f"the parameters in {what} are not those of its model {self.name!r}: {', '.join(problems[:8])}{more}; "
                "fetch or convert it again"
            )

    def at_dtype(self, dtype: str) -> About:
        """The same, computed in this dtype."""
        return dataclasses.replace(self, model=_with_dtype(self.model, dtype))


def about_stage(stage: Stage, note: Mapping[str, Any], source: Mapping[str, Any]) -> About:
    """That of a stage of a run. Clips are looked at as its first evaluation of clips does, else whole and centred."""
    specs = [(each, build.eval_spec(stage, each)) for each in stage.evals]
    evaluation = next((each for each, spec in specs if spec.frames), None)
    own = {name: value for name, value in stage.clip.items() if name not in ("times", "crop", "views", "crops")}
    look = {**LOOK, **own} if evaluation is None else {**stage.clip, **evaluation.clip}
    if look.get("features") is not None:
        look = {}
    kept = {name: look[name] for name in LOOK_KEYS if name in look}
    kept |= {name: stage.clip[name] for name in TEXT_KEYS if stage.clip.get(name) is not None}
    tokenizer = None
    if stage.tokenizer:
        tokenizer = {name: value for name, value in build.tokenizer_options(stage).items() if name != "path"}
    inputs = {*build.model(stage).inputs, "yuv_BTXW"}
    return About(
        model=stage.model,
        clip=kept,
        fields={name: value for name, value in note["fields"].items() if name in inputs},
        dials={**_lasting(stage.dials), **({} if evaluation is None else evaluation.dials)},
        tokenizer=tokenizer,
        source=source,
    )


def _lasting(dials: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's dials without what only training does, as `Dials.evaluation` leaves it out."""
    drawn = isinstance(dials.get("widths"), Mapping)
    left_out = ("mask", "mask_kind", *(("widths",) if drawn else ()))
    return {name: value for name, value in dials.items() if name not in left_out}


def _with_dtype(section: Any, dtype: str) -> Any:
    """The section with this dtype in all stacks of layers that it describes."""
    if not isinstance(section, Mapping):
        return section
    found = {name: _with_dtype(value, dtype) for name, value in section.items()}
    return {**found, "dtype": dtype} if {"layers", "width", "heads"} <= found.keys() else found


def tokenizer_options(given: Any) -> dict[str, Any]:
    """Where somebody says that a tokenizer lies, as options; a path is one."""
    if given is None:
        return {}
    return dict(given) if isinstance(given, Mapping) else {"path": str(given)}
