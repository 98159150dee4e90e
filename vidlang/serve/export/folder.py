"""A run as a folder of files that run without vidlang: one for each method, a card that describes them, the tokenizer.

Each width is a folder of its own, with the smaller model that the trained one holds at that width.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from absl import logging

from vidlang.core.sharding import to_host
from vidlang.core.tree import count
from vidlang.data.tokenizer import PAD
from vidlang.nn.slicing import slice_params
from vidlang.ops.dials import Dials
from vidlang.serve.export import convert, onnx_file, stablehlo
from vidlang.serve.export.program import Program, programs, standalone
from vidlang.train import build
from vidlang.train.evaluate import choose_checkpoint, restore_model
from vidlang.train.recipe import Stage
from vidlang.train.run_files import write_json
from vidlang.train.saved import fields_of, read_note
from vidlang.train.step import pick_inputs, with_video

CARD, TOKENIZER = "export.json", "tokenizer.json"
FULL = "full"
# How far a file's answers may be from the model's, as a share of the model's largest where that is above 1.
TOLERANCE = {"onnx": 1e-4, "stablehlo": 1e-5, "float16": 1e-2}
FORMATS = ("onnx", "stablehlo")
CHECKED_BATCHES = (1, 3)
# What of a stage's clips says how to make them.
LOOK = ("frames", "size", "times", "crop")
PACKAGES = ("jax", "flax", "numpy", "onnx", "onnxruntime")


@dataclass(frozen=True)
class Source:
    """The checkpoint that is exported, restored: its model as it was trained, its fields as batches of one."""

    model: nn.Module
    params: Any
    stage: Stage
    fields: dict[str, jax.ShapeDtypeStruct]
    where: dict[str, Any]


@dataclass(frozen=True)
class How:
    """format: one of FORMATS. dtype: what StableHLO computes in, one of `program.DTYPES`. platforms: where that runs.

    check: whether answers are compared with the model's. weights: what ONNX files hold, one of `onnx_file.WEIGHTS`.
    """

    format: str = "onnx"
    dtype: str = "float32"
    platforms: tuple[str, ...] = stablehlo.PLATFORMS
    check: bool = True
    weights: str = "float32"

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"unknown format {self.format!r} of an export; it is one of {', '.join(FORMATS)}")
        if self.format == "onnx" and self.dtype != "float32":
            raise ValueError("ONNX files compute in float32; leave dtype out, or export as StableHLO")
        if self.weights not in onnx_file.WEIGHTS:
            raise ValueError(f"unknown weights {self.weights!r}; they are one of {', '.join(onnx_file.WEIGHTS)}")
        if self.format != "onnx" and self.weights != "float32":
            raise ValueError("StableHLO holds the parameters as they are; leave weights out, or export as ONNX")

    @property
    def tolerance(self) -> float:
        """How far answers may be apart."""
        return TOLERANCE["float16" if self.weights == "float16" else self.format]


def open_run(run: str | Path, step: int | None = None) -> Source:
    """The newest checkpoint of a run, or that of `step`."""
    folder, step = choose_checkpoint(run, step)
    fields = with_video_shapes(fields_of(read_note(folder, step), 1))
    model, params, stage = restore_model(run, step=step)
    where = {"run": str(Path(run)), "stage": folder.name, "step": step, "model": stage.model["name"]}
    return Source(model, to_host(params), stage, fields, where)


def with_video_shapes(fields: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.ShapeDtypeStruct]:
    """The fields of a batch as models see them."""
    return dict(jax.eval_shape(with_video, dict(fields)))


def export_run(
    run: str | Path,
    out: str | Path,
    *,
    widths: Sequence[str] = (FULL,),
    step: int | None = None,
    dials: Mapping[str, Any] | None = None,
    how: How | None = None,
) -> list[dict[str, Any]]:
    """Writes `out`, or a folder in it for each of several widths; returns the cards.

    widths: "full", a number, or the name of a preset. dials: on top of those that the run is evaluated at.
    """
    how = how or How()
    if how.format == "onnx":
        onnx_file.require()
    source = open_run(run, step)
    small = [at_width(source.model, width) for width in widths]  # an unknown width ends this before anything is written
    if "widths" in (dials or {}):
        raise ValueError("the dials of an export have no widths; give these as its width, --width=384 or --width=d-dec")
    taken = dataclasses.replace(build.inference_dials(source.stage, dials or {}), widths=None)
    cards = []
    for width, schedule in zip(widths, small, strict=True):
        folder = Path(out) / width if len(widths) > 1 else Path(out)
        cards.append(_export(source, folder, width, schedule, taken, how))
    return cards


def at_width(model: Any, width: str) -> tuple[int, ...] | None:
    """The width of each layer; None for the whole model."""
    if width == FULL:
        return None
    if not hasattr(model, "at"):
        raise ValueError(
            f"the model {type(model).__module__} cannot be cut at the width {width}; export it as {FULL!r}"
        )
    spec = model.video_spec
    found: tuple[int, ...] = spec.widths((int(width),) * spec.layers if width.isdigit() else width)
    return found


def cut(source: Source, widths: tuple[int, ...] | None) -> tuple[nn.Module, Any]:
    """(the model at these widths, its parameters)."""
    if widths is None:
        return source.model, source.params
    inputs = [jax.ShapeDtypeStruct(each.shape, each.dtype) for each in pick_inputs(source.model, source.fields)]
    model, params = slice_params(source.model, source.params, widths, *inputs)
    return model, to_host(nn.unbox(params))


def _export(
    source: Source, folder: Path, width: str, widths: tuple[int, ...] | None, dials: Dials, how: How
) -> dict[str, Any]:
    model, params = cut(source, widths)
    exported = programs(standalone(model, how.dtype), params, source.fields, dials)
    folder.mkdir(parents=True, exist_ok=True)
    card: dict[str, Any] = {"format": how.format, "dtype": how.dtype, "weights": how.weights, "width": width}
    if any(program.method == "embed_text" for program in exported):
        card["tokenizer"] = _tokenizer(source.stage, folder)
    card["methods"] = {program.method: export_program(program, folder, how) for program in exported}
    if (spec := getattr(source.model, "video_spec", None)) is not None:
        card["widths"] = list(widths or spec.schedule or (spec.width,) * spec.layers)
    if (heads := getattr(model, "head_sizes", None)) is not None:
        card["heads"] = heads
    card["clip"] = {name: source.stage.clip[name] for name in LOOK if name in source.stage.clip}
    card["dials"] = {name: repr(getattr(dials, name)) for name in ("keep", "edges") if getattr(dials, name)}
    card |= {"parameters": count(params), "bytes": sum(each["bytes"] for each in card["methods"].values())}
    card |= {"source": source.where, "versions": _versions()}
    write_json(folder / CARD, card)
    return card


def export_program(program: Program, folder: Path, how: How) -> dict[str, Any]:
    """Writes one method, and returns what the card says of it."""
    path = folder / f"{program.method}.{how.format}"
    if how.format == "onnx":
        graph = convert.convert(program.function, program.inputs, program.output)
        files, output = onnx_file.write(graph, path, program.method, how.weights), graph.outputs[0]
    else:
        files, output = stablehlo.write(program, path, how.platforms)
    size = sum(each.stat().st_size for each in files)
    logging.info("%s: %d bytes", path, size)
    found: dict[str, Any] = {
        "files": [each.name for each in files],
        "bytes": size,
        "inputs": [_described(name, like.shape, like.dtype) for name, like in program.inputs.items()],
        "output": _described(program.output, output.shape[1:], output.dtype),
    }
    if how.check:
        found["largest_difference"] = check(program, path, how)
    return found


def reader(path: Path, format: str, output: str) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    """The function in an exported file, of its inputs by name."""
    if format == "stablehlo":
        function = stablehlo.read(path)
        return lambda arrays: function(*arrays.values())
    session = onnx_file.session(path)
    return lambda arrays: np.asarray(session.run([output], dict(arrays))[0])


def check(program: Program, path: Path, how: How) -> float:
    """How far the file's answers are from the model's, at most; ValueError where that is too far."""
    answer, arrays = reader(path, how.format, program.output), program.example(max(CHECKED_BATCHES))
    expected = np.asarray(jax.jit(program.function)(**arrays), np.float32)
    largest, allowed = 0.0, how.tolerance * max(1.0, float(np.abs(expected).max()))
    for batch in CHECKED_BATCHES:
        found = answer({name: array[:batch] for name, array in arrays.items()})
        apart = float(np.abs(np.asarray(found, np.float32) - expected[:batch]).max())
        if not apart <= allowed:
            raise ValueError(
                f"{path} answers a batch of {batch} otherwise than the model, by {apart:.2g}; allowed is "
                f"{allowed:.2g}. Export in the other format, and report this"
            )
        largest = max(largest, apart)
    return largest


def _described(name: str, shape: Sequence[int], dtype: Any) -> dict[str, Any]:
    return {"name": name, "shape": ["batch", *shape], "dtype": str(np.dtype(dtype))}


def _tokenizer(stage: Stage, folder: Path) -> dict[str, Any]:
    """Copies the tokenizer, and says what it does that is not in its file."""
    tokenizer = build.tokenizer(stage, build.clip_spec(stage.clip))
    if tokenizer is None:
        return {}
    marks = tokenizer.save(folder / TOKENIZER)
    clean = build.tokenizer_options(stage).get("clean", "none")
    ids = {"begin_id": tokenizer.begin_id, "end_id": tokenizer.end_id, "pad_id": PAD}
    return {"file": TOKENIZER, "length": tokenizer.length, "clean": clean, **marks, **ids}


def _versions() -> dict[str, str]:
    found = {}
    for name in ("vidlang", *PACKAGES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # the extra is not installed, or vidlang runs from its checkout
    return found
