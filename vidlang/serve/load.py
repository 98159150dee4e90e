"""`vidlang.load`: a training's run, a portable folder or the files of a published model, as a model in hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from vidlang.core.config import extension_names, load_module
from vidlang.core.sharding import Mesh, make_mesh
from vidlang.data.tokenizer import Tokenizer
from vidlang.nn.spec import DTYPES
from vidlang.serve import portable
from vidlang.serve.about import About, about_stage, tokenizer_options
from vidlang.serve.loaded import Loaded
from vidlang.serve.published import read_json, read_published
from vidlang.train import build
from vidlang.train.evaluate import EVERY_DEVICE, choose_checkpoint
from vidlang.train.recipe import Recipe, Stage, read_recipe
from vidlang.train.run_files import METRICS, read_metrics
from vidlang.train.saved import read_note, restore_params


def load(
    path: str | Path,
    *,
    family: str | None = None,
    step: int | None = None,
    widths: Any = None,
    device: Any = None,
    dtype: str | None = None,
    tokenizer: str | Mapping[str, Any] | None = None,
) -> Loaded:
    """The model in a run (its newest checkpoint, or `step`), a stage folder or checkpoint of it, or a portable folder;
    with `family`, in the files of a published model.

    widths: cut to these, a preset's name or one width or one a layer. device: "cpu", "gpu:1" or a jax.Device, all that
    there are if not given. dtype: what it computes in, "float32" or "bfloat16", if not its own. tokenizer: where it
    lies, if not where the files say.
    """
    if jax.process_count() > 1:
        raise ValueError("a loaded model is of one process; start each by itself, without jax.distributed")
    found, mesh = Path(path).expanduser(), _mesh(device)
    if not found.exists():
        raise ValueError(f"there is no {path}; give a run, a portable folder, or published files and their family")
    if family is not None:
        about, params, words = read_published(found, family, tokenizer)
    elif portable.is_portable(found):
        about, params, words = portable.read_portable(found, tokenizer)
    else:
        _refuse_published(found)
        about, params, words = _run(found, step, mesh, tokenizer)
    if step is not None and "step" not in about.source:
        raise ValueError(f"step={step} chooses a checkpoint of a run, and {path} is none; leave it out")
    if dtype is not None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}; it is one of {', '.join(DTYPES)}")
        about = about.at_dtype(dtype)
    loaded = Loaded(about, params, words, mesh)
    return loaded if widths is None else loaded.slice(widths)


def _run(path: Path, step: int | None, mesh: Mesh, tokenizer: Any) -> tuple[About, Any, Tokenizer | None]:
    folder, step = choose_checkpoint(path, step)
    note = read_note(folder, step)
    recipe = read_recipe(note["config"])
    stage = recipe.stages[note["stage"]]
    about = about_stage(stage, note, _source(recipe, stage, folder, step))
    words = None
    if stage.tokenizer and about.text_length:
        options = {**build.tokenizer_options(stage), **tokenizer_options(tokenizer)}
        stage = dataclasses.replace(stage, tokenizer=options)
        words = build.tokenizer(stage, build.clip_spec(stage.clip))
    return about, restore_params(folder, step, mesh), words


def _source(recipe: Recipe, stage: Stage, folder: Path, step: int) -> dict[str, Any]:
    """What a card tells of a run: nothing of where things lie on this machine."""
    metrics = read_metrics(folder) if (folder / METRICS).is_file() else {}
    kept = ("duration", "batch_size", "objective", "dials")
    return {
        "recipe": recipe.name,
        "stage": stage.name,
        "step": step,
        "data": _named_data(stage.data),
        "training": {name: getattr(stage, name) for name in kept},
        "metrics": metrics,
    }


def _named_data(data: Any) -> Any:
    """A data section without paths."""
    if isinstance(data, Mapping):
        return {name: _named_data(value) for name, value in data.items() if name not in ("root", "store", "workers")}
    return [_named_data(each) for each in data] if isinstance(data, list | tuple) else data


def _refuse_published(path: Path) -> None:
    """ValueError that names the families which may read a file, or a folder of Hugging Face's."""
    kind = read_json(path / "config.json").get("model_type") if path.is_dir() else None
    if kind is None and path.is_dir():
        return
    known = {name: load_module("pretrained", name) for name in extension_names("pretrained")}
    fitting = [name for name, module in known.items() if kind in getattr(module, "TYPES", ())]
    what = f"of a published model of the type {kind!r}" if kind else "no run and no portable folder"
    raise ValueError(
        f"{path} is {what}; say which family reads it, as in family={(fitting or ['clip'])[0]!r}: "
        f"{', '.join(fitting or known)}"
    )


def _mesh(device: Any) -> Mesh:
    if device is None:
        return make_mesh(EVERY_DEVICE)
    if isinstance(device, str):
        kind, _, number = device.partition(":")
        try:
            device = jax.devices(kind)[int(number or 0)]
        except (RuntimeError, ValueError, IndexError):
            there = ", ".join(f"{each.platform}:{place}" for place, each in enumerate(jax.devices()))
            raise ValueError(f"there is no device {device!r}; there are: {there}") from None
    return make_mesh(EVERY_DEVICE, [device])
