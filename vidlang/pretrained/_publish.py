"""A model as a folder that Hugging Face's libraries read: config.json, model.safetensors, and a tokenizer.json.

What cannot be said in a family's config.json is an error and not left out: the folder computes what the model does.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vidlang.core.config import extension_names, load_module
from vidlang.ops.tubelets import Size3
from vidlang.pretrained._safetensors import INDEX, SINGLE, write_file

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
# Of a file; larger models are several with an index.
SHARD = 5_000_000_000


def publish(
    params: Any,
    section: Mapping[str, Any],
    clip: Size3 | None,
    folder: str | Path,
    family: str,
    tokenizer: str | Path | None = None,
    *,
    shard: int = SHARD,
) -> Path:
    """Writes the folder, which must not be there yet, and returns it; one that is there is whole.

    section: the `model` section of the parameters, or the part of it that the family is of, and clip: the (frames,
    height, width) of clips that its positions are for, None for a model of texts. tokenizer: a tokenizer.json, or the
    folder that has one. shard: the most bytes of one file.
    """
    module, target = load_module("pretrained", family), Path(folder).expanduser().absolute()
    if not hasattr(module, "config_of"):
        raise ValueError(f"{family} is not of Hugging Face's libraries; families that are: {', '.join(publishable())}")
    if target.exists():
        raise ValueError(f"{folder} is there already; give a new name, or remove it first")
    words = None if tokenizer is None else _tokenizer(Path(tokenizer).expanduser())
    if (part := getattr(module, "PART", "")) and part in section:
        section, params = section[part], params[part]
    config = module.config_of(section, clip)
    if architecture := getattr(module, "architecture", None):
        config = {**config, "architectures": [architecture(params)]}
    tensors = module.from_flax(params, config)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        (partial / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        write_weights(partial, tensors, shard=shard)
        if words is not None:
            shutil.copyfile(words, partial / TOKENIZER)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def publishable() -> list[str]:
    """The families that have a config.json."""
    return [name for name in extension_names("pretrained") if hasattr(load_module("pretrained", name), "config_of")]


def write_weights(folder: Path, tensors: Mapping[str, np.ndarray], *, shard: int = SHARD) -> None:
    """One file, or several of at most `shard` bytes with their index, as far as tensors are not larger themselves."""
    files: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if files[-1] and size + tensor.nbytes > shard:
            files.append({})
            size = 0
        files[-1][name] = tensor
        size += tensor.nbytes
    if len(files) == 1:
        write_file(folder / SINGLE, tensors)
        return
    places: dict[str, str] = {}
    for number, part in enumerate(files, 1):
        file = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        write_file(folder / file, part)
        places |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _tokenizer(path: Path) -> Path:
    path = path / TOKENIZER if path.is_dir() else path
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no {TOKENIZER}: {error}; give the tokenizer that the model reads") from None
    return path
