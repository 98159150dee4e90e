"""A trained model as a folder that needs nothing else: it can be copied to another machine and loaded there.

    params.safetensors   the parameters, by their paths in the model
    config.json          the model, how clips and texts come to it, where it is from (`serve.about.About`)
    tokenizer.json       where it reads texts
    README.md            the same for people

Written beside and renamed into place, so that a folder of this name is whole.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vidlang.core.config import call
from vidlang.core.tree import flatten_paths, nest
from vidlang.data.tokenizer import Tokenizer
from vidlang.pretrained._safetensors import read_file, write_file
from vidlang.serve.about import About, tokenizer_options
from vidlang.serve.card import card
from vidlang.serve.loaded import Loaded

FORMAT, VERSION = "vidlang portable", 1
CONFIG, PARAMS, TOKENIZER, CARD = "config.json", "params.safetensors", "tokenizer.json", "README.md"


def save_portable(model: Loaded | str | Path, folder: str | Path, widths: Any = None) -> Path:
    """Writes the folder of a loaded model, or of a run; with `widths`, of the smaller model that it is there.

    A portable folder of that name is replaced, any other is left alone.
    """
    if not isinstance(model, Loaded):
        from vidlang.serve.load import load  # which reads what is written here

        model = load(model)
    if widths is not None:
        model = model.slice(widths)
    target = Path(folder).expanduser().absolute()
    if target.exists() and not is_portable(target) and (target.is_file() or any(target.iterdir())):
        raise ValueError(f"{folder} is there and is no portable folder; give a new name, or remove it first")
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write(model, partial)
        _replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def is_portable(folder: str | Path) -> bool:
    """Whether there is a portable folder."""
    try:
        found = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("format") == FORMAT


def read_portable(folder: Path, tokenizer: Any = None) -> tuple[About, Any, Tokenizer | None]:
    """(what it is, its parameters, its tokenizer)."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if config.pop("format") != FORMAT or config.pop("version", None) != VERSION:
        raise ValueError(
            f"{folder} was written by another version of vidlang, whose format this one (version {VERSION}) does not "
            "read; write it again"
        )
    about: About = call(About, config, what=str(folder / CONFIG))
    if not (folder / PARAMS).is_file():
        raise ValueError(f"{folder} has no {PARAMS}; copy the whole folder")
    # In memory, so that nothing changes under a model in use.
    params = nest({name: np.array(tensor) for name, tensor in read_file(folder / PARAMS).items()})
    about.check(params, str(folder))
    words = None
    if about.tokenizer is not None and about.text_length:
        options = {"path": str(folder / TOKENIZER), **about.tokenizer, **tokenizer_options(tokenizer)}
        words = call(Tokenizer, options, what="tokenizer", length=about.text_length)
    return about, params, words


def _write(model: Loaded, folder: Path) -> None:
    flat = {name: np.asarray(leaf) for name, leaf in flatten_paths(jax.device_get(model.params)).items()}
    write_file(folder / PARAMS, flat)
    about = dataclasses.replace(model.about, tokenizer=None) if model.tokenizer is None else model.about
    if model.tokenizer is not None:
        marks = model.tokenizer.save(folder / TOKENIZER)
        about = dataclasses.replace(about, tokenizer={**(about.tokenizer or {}), **marks})
    config: Mapping[str, Any] = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(about)}
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    count = sum(leaf.size for leaf in flat.values())
    size = sum(path.stat().st_size for path in folder.iterdir())
    (folder / CARD).write_text(card(model, count, size), encoding="utf-8")


def _replace(partial: Path, target: Path) -> None:
    """Puts the folder where another one may be."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists() or not any(target.iterdir()):
        partial.replace(target)
        return
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    shutil.rmtree(old, ignore_errors=True)
    target.replace(old)
    partial.replace(target)
    shutil.rmtree(old)
