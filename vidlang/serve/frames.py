"""A model's parameters for clips of another number of frames than it was made for, carried over as training does."""

from __future__ import annotations

from typing import Any

import flax.linen as nn

from vidlang.core.tree import flatten_paths
from vidlang.serve.about import About
from vidlang.train import carry
from vidlang.train.step import abstract_params


def at_frames(about: About, model: nn.Module, params: Any, frames: int) -> Any:
    """The parameters; positions in time and tables of offsets change with the number of frames, all else stays."""
    video = about.model.get("video")
    # A stem for images sees one frame without positions in time.
    image = frames == 1 and isinstance(video, dict) and video.get("image_patch") is not None
    if frames == about.clip["frames"] or image:
        return params
    here, there = about.structs(), about.structs(frames)
    target = abstract_params(model, there)
    found, _ = carry.carry(params, target, carry.tower(about.model, here), carry.tower(about.model, there))
    sizes = {name: leaf.shape for name, leaf in flatten_paths(found).items()}
    if wrong := [name for name, leaf in flatten_paths(target).items() if sizes[name] != leaf.shape]:
        raise ValueError(
            f"{wrong[0]} is of {about.clip['frames']} frames, and nothing says what it becomes for {frames}; leave "
            "frames out"
        )
    return found
