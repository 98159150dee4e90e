"""The files of a published model in hand: what lies beside the weights says how pictures and words come in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vidlang.core.config import call, load_module
from vidlang.data.tokenizer import Tokenizer
from vidlang.serve.about import TOWER, About, tokenizer_options
from vidlang.train.extract import LOOK


def read_published(path: Path, family: str, tokenizer: Any = None) -> tuple[About, Any, Tokenizer | None]:
    """(what it is, its parameters, its tokenizer where there is one)."""
    module = load_module("pretrained", family)
    options = tokenizer_options(tokenizer)
    if not options and path.is_dir() and _has_tokenizer(path):
        options = {"path": str(path)}
    section = _section(module, path, family)
    clip, fields = dict[str, Any](), dict[str, Any]()
    if "video" in section:
        frames, height, width = module.clip(path)
        if height != width:
            raise ValueError(f"{path} is for clips of {height} x {width} pixels, and clips are square here")
        clip = {**LOOK, "crop": _crop(path), "frames": frames, "size": height}
        fields["video_BTHWC"] = [[frames, height, width, 3], "uint8"]
    if "text" in section:
        clip["text_length"] = section["text"]["max_length"]
        fields["text_BL"] = [[clip["text_length"]], "int32"]
    others = {name: value for name, value in options.items() if name != "path"} if options else None
    source = {"family": family, "files": path.name}
    about = About(section, clip, fields, tokenizer=others, labels=_labels(path), source=source)
    words = None
    if options and about.text_length:
        words = call(Tokenizer, options, what="tokenizer", length=about.text_length)
    params = module.load(path)
    about.check(params, str(path))
    return about, params, words


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file says; nothing where there is none or it says something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # whoever needs the file says what is wrong with it
        return {}
    return found if isinstance(found, dict) else {}


def _section(module: Any, path: Path, family: str) -> Mapping[str, Any]:
    """The `model` section: of a whole model, or of a video tower by itself."""
    section: Mapping[str, Any] = module.section(path)
    if "name" in section:
        return section
    if "video" in section:
        return {"name": TOWER, "video": section["video"]}
    raise ValueError(
        f"{family} weights are a part of a model, with the settings {', '.join(list(section)[:6])}, and do nothing by "
        f"themselves; start a training from them: init_from='{family}:{path}:PART'"
    )


def _crop(path: Path) -> dict[str, Any]:
    """What preprocessor_config.json says of the part of a picture that is seen; the centred square if it says nothing.

    Some models see the whole picture made square (ViT, SigLIP), some the middle of it (CLIP), or less than that.
    """
    says = read_json(path / "preprocessor_config.json")
    size, cut = says.get("size"), says.get("crop_size")
    if says.get("do_center_crop", cut is not None):
        side = size.get("shortest_edge") if isinstance(size, Mapping) else size
        crop = cut.get("height") if isinstance(cut, Mapping) else cut
        if isinstance(side, int) and isinstance(crop, int) and crop < side:
            return {"name": "short_side", "side": side, "crop": crop}
    elif isinstance(size, Mapping) and "height" in size:
        return {"name": "full"}
    return {"name": "center"}


def _labels(path: Path) -> dict[str, tuple[str, ...]]:
    """What config.json calls the classes, where it names them."""
    names = read_json(path / "config.json").get("id2label")
    if not isinstance(names, dict) or any(str(name).startswith("LABEL_") for name in names.values()):
        return {}
    return {"label": tuple(str(names[key]) for key in sorted(names, key=int))}


def _has_tokenizer(folder: Path) -> bool:
    names = {each.name for each in folder.iterdir()}
    return bool(names & {"tokenizer.json", "vocab.txt"}) or {"vocab.json", "merges.txt"} <= names
