"""What a stage trains on: its `data` section, read as one dataset or as a mixture of several.

    data = {"name": "synthetic", ...}
    data = {"mixing": "items", "sources": ({"data": {"name": "synthetic", ...}, "weight": 2.0}, {"data": ...}, ...)}

A source of a mixture has its own `data`, overrides of the stage's `clip`, its share of the clips (`weight`) and what
its clips count in the loss (`loss_weight`). An epoch of a mixture is as many clips as all its tables have together,
whatever the weights make of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from vidlang.core.config import call, check_keys, load_module
from vidlang.data import pipeline, tokenizer_files
from vidlang.data.broken import BrokenClips
from vidlang.data.clips import ClipTable
from vidlang.data.features import rows as feature_rows
from vidlang.data.fields import expected_field, read_fields
from vidlang.data.mixture import MIXING, SHARED, Source
from vidlang.data.pipeline import Batches, ClipSpec
from vidlang.ops.augment import NOTHING
from vidlang.train import build
from vidlang.train.feed import Shape, shape_of
from vidlang.train.recipe import Recipe, Stage
from vidlang.train.step import Fields, on_device

Batch = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Part:
    """One source of a stage, as the config has it; `clip` is already that of the stage with the overrides in it."""

    data: Mapping[str, Any]
    clip: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    weight: float = 1.0
    loss_weight: float = 1.0
    name: str = ""

    def __post_init__(self) -> None:
        if self.weight <= 0 or self.loss_weight < 0:
            raise ValueError(
                "a source has a weight above 0 and a loss_weight of at least 0; found "
                f"{self.weight} and {self.loss_weight}"
            )


@dataclass(frozen=True)
class _Mixture:
    """A `data` section of several sources."""

    mixing: str
    sources: Sequence[Mapping[str, Any]]


def is_mixture(stage: Stage) -> bool:
    """Whether the stage's `data` is a mixture, even of one."""
    return "sources" in stage.data or "mixing" in stage.data


def parts(stage: Stage) -> list[Part]:
    """The sources of a stage; a plain `data` section is one."""
    if not is_mixture(stage):
        return [Part(stage.data, stage.clip)]
    mixture = call(_Mixture, stage.data, what="data")
    if mixture.mixing not in MIXING:
        raise ValueError(f"data.mixing must be one of {', '.join(MIXING)}; found {mixture.mixing!r}")
    if not mixture.sources:
        raise ValueError("data.sources is empty; a mixture has at least one source")
    return [_part(stage, section, f"data.sources[{i}]") for i, section in enumerate(mixture.sources)]


def _part(stage: Stage, section: Any, what: str) -> Part:
    if not isinstance(section, Mapping):
        raise ValueError(f"{what} must be a section of keys; found {section!r}")
    options = {key: value for key, value in section.items() if key != "name"}
    name = section.get("name", "")
    if not isinstance(name, str):
        raise ValueError(f"name of {what} must be a text; found {name!r}")
    part: Part = call(Part, options, what=what, name=name)
    return dataclasses.replace(part, clip={**stage.clip, **part.clip})


def named_parts(stage: Stage) -> list[tuple[str, Part]]:
    """(how errors call a source, the source)."""
    if not is_mixture(stage):
        return [("data", part) for part in parts(stage)]
    return [(f"data of source {part.name or i}", part) for i, part in enumerate(parts(stage))]


def check(stage: Stage) -> None:
    """Raises now what the sources' data and clips would raise later, for all that needs no data."""
    for what, part in named_parts(stage):
        name, options = build.named(part.data, what)
        check_keys(load_module("datasets", name).load, options, what=what, extra=())
        where = "clip" if what == "data" else f"clip of {what.removeprefix('data of ')}"
        spec = build.clip_spec(part.clip, where)
        if (spec.features is not None or spec.text_only) and build.augmentation(stage) != NOTHING:
            key = "features" if spec.features is not None else "frames=0"
            raise ValueError(f"augment changes frames, and {where}.{key} has none; leave one of them out")
        length = spec.text_length
        if stage.tokenizer and not length:
            raise ValueError(f"the stage names a tokenizer, and {where}.text_length is missing; give texts a length")
        if length and not stage.tokenizer:
            raise ValueError(
                f"{where}.text_length is {length}, and the stage names no tokenizer; name one, or leave the length out"
            )
    if is_mixture(stage) and stage.data["mixing"] == "items":
        _check_one_shape(stage)


def _check_one_shape(stage: Stage) -> None:
    found = specs(stage)
    for name in SHARED:
        values = [getattr(spec, name) for spec in found]
        if any(value != values[0] for value in values):
            raise ValueError(
                f"the sources are mixed in one batch, and their clip.{name} is {' and '.join(map(str, values))}; give "
                "all the same, or set data.mixing to 'batches'"
            )


def specs(stage: Stage) -> list[ClipSpec]:
    """What a clip of each source looks like."""
    return [build.clip_spec(part.clip) for part in parts(stage)]


def tables(stage: Stage) -> list[ClipTable]:
    """The clips of each source."""
    return [build.table(part.data, f"{what} of stage {stage.name!r}") for what, part in named_parts(stage)]


def train_stream(recipe: Recipe, index: int, clips: Sequence[ClipTable], *, start_step: int) -> Batches:
    """This process's share of the stage's batches, from `start_step` on; close it to free its workers."""
    stage = recipe.stages[index]
    processes = jax.process_count()
    if stage.batch_size % processes:
        raise ValueError(f"batch_size {stage.batch_size} does not divide over {processes} processes")
    found = specs(stage)
    tokenizers = [build.tokenizer(stage, spec) for spec in found]
    options: dict[str, Any] = dict(
        seed=recipe.seed_of(index),
        batch_size=stage.batch_size,
        start_step=start_step,
        process_index=jax.process_index(),
        process_count=processes,
        workers=recipe.runtime.workers,
        patience=recipe.runtime.patience,
    )
    if not is_mixture(stage):
        return pipeline.train_stream(clips[0], tokenizers[0], found[0], **options)
    sources = [
        Source(table, spec, part.weight, part.loss_weight, part.name)
        for table, spec, part in zip(clips, found, parts(stage), strict=True)
    ]
    return pipeline.mixture_stream(sources, tokenizers, mixing=stage.data["mixing"], **options)


def batch_fields(stage: Stage, clips: Sequence[ClipTable] | None) -> dict[Shape, Fields]:
    """Names, shapes and dtypes of what the devices get, for each shape of batch that the sources give, in their order.

    Without `clips`, as long as there is no data, columns are what they are in any table, and others are left out.
    """
    found: dict[Shape, Fields] = {}
    for number, spec in enumerate(specs(stage)):
        rows: dict[str, tuple[tuple[int, ...], Any]] = {"index_B": ((), np.int64)}
        if not spec.text_only:
            rows = {spec.video_field: (spec.video_shape, spec.video_dtype), **rows}
        if spec.text_length:
            rows["text_BL"] = (spec.text_length,), np.int32
        if spec.prompted:
            rows["prompt_B"] = (), np.int32
        expected = filter(None, map(expected_field, spec.fields))
        columns = expected if clips is None else read_fields(clips[number], spec.fields)
        rows |= {field.name: (field.shape, field.dtype) for field in columns}
        if is_mixture(stage):
            rows |= {"source_B": ((), np.int32), "weight_B": ((), np.float32)}
        fields = {
            name: jax.ShapeDtypeStruct((stage.batch_size, *shape), on_device(dtype))
            for name, (shape, dtype) in rows.items()
        }
        found.setdefault(shape_of(fields), fields)
    return found


def check_classes(stage: Stage, clips: Sequence[ClipTable], heads: Mapping[str, int]) -> None:
    """ValueError where a clip's label is none of the classes that the model's head for that column has.

    On a device it would be no number, and the loss with it. A label below 0 is an unknown one and no mistake.
    """
    for (what, part), table in zip(named_parts(stage), clips, strict=True):
        for column in heads.keys() & set(build.clip_spec(part.clip).fields):
            label_N = np.asarray(table.column(column))
            outside = np.flatnonzero(label_N >= heads[column])
            if outside.size:
                raise ValueError(
                    f"{what} of stage {stage.name!r}: {column!r} is {label_N[outside[0]]} in clip {outside[0]}"
                    f"{f' and too large in {outside.size - 1} more' if outside.size > 1 else ''}, and the model's head "
                    f"{column!r} has {heads[column]} classes, counted from 0. Give it {label_N.max() + 1}, or a table "
                    "with the labels that the head is for"
                )


def counter(stream: Batches, clips: Sequence[ClipTable], max_share: float) -> Callable[[Batch], dict[str, float]]:
    """Looks at each host batch and returns what a training writes down: broken clips by kind, workers begun anew."""
    broken = BrokenClips(clips, max_share)

    def count(batch: Batch) -> dict[str, float]:
        broken.update(batch)
        return {**broken.metrics(), "worker_restarts": stream.restarts}

    return count


def identity(stage: Stage, clips: Sequence[ClipTable]) -> dict[str, Any]:
    """What tells the stage's data from other data, wherever both may lie."""
    # As it was understood, from whatever files.
    words = tokenizer_files.read(build.tokenizer_options(stage)["path"]).to_str() if stage.tokenizer else ""
    features = [feature_rows.identity(found) for spec in specs(stage) if (found := spec.feature_spec) is not None]
    return {
        "tokenizer": hashlib.sha256(words.encode()).hexdigest()[:16] if words else "",
        "sources": [pipeline.identity(table) for table in clips],
        **({"features": features} if features else {}),
    }
