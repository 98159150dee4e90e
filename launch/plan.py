"""Tells what a recipe costs under each setting of the dials, before anything runs: operations, memory, time.

    python -m launch.plan --config=configs/demo.py
    python -m launch.plan --config=configs/demo.py --target=cpu --memory=2GB --frames=8,16,32 --batch_size=8
    python -m launch.plan --config=configs/demo.py --target=tpu:v5e:2x2 --card=v5e

--target compiles each train step for cpu, cpu:DEVICES, the gpu here or tpu:TOPOLOGY (without a TPU, with the extra
`plan`), which takes from seconds to two minutes for each setting; without it only operations are counted. --memory
marks the settings that fit; for TPUs it is the chip's unless said otherwise. Of several devices it also tells what
they send each other, and how much of a step is left for their own work. Times are estimates from the card's printed
figures. docs/cost.md says what is counted, and docs/scale.md how meshes are planned:

    python -m launch.plan --config=configs/longvivit.py:vit_l --stages=long --target=tpu:v5e:16x16
    python -m launch.plan --config=configs/demo.py --target=tpu:v5e:4x4 --config.mesh.fsdp=4 --config.mesh.slices=2
    python -m launch.plan --config=configs/demo.py --target=tpu:v5e:4x4 --config.mesh.fsdp=0    # the smallest that fits
"""

import dataclasses
import json
import re

from absl import flags, logging
from ml_collections import config_flags

from launch import cli
from vidlang.core.sharding import SLICES
from vidlang.cost import fit
from vidlang.cost.cards import UTILISATION, find_card
from vidlang.cost.table import COUNTS, Request, Row, mark, render, rows
from vidlang.cost.targets import FORMS, Target, read_target
from vidlang.train.recipe import Recipe, read_recipe

CONFIG = config_flags.DEFINE_config_file("config", help_string="Recipe to plan.", lock_config=True)
TARGET = flags.DEFINE_string("target", None, f"What to compile train steps for: {FORMS}. Default: nothing.")
CARD = flags.DEFINE_string("card", None, "Card whose time a step is estimated for, or cpu. Default: a TPU target's.")
MEMORY = flags.DEFINE_string("memory", None, "Memory of a device, as in 16GB: marks what fits. Default: a TPU's.")
FRAMES = flags.DEFINE_list("frames", None, "Frames of a clip to plan for, as in 16,64,256. Default: the config's.")
BATCH = flags.DEFINE_integer("batch_size", None, "Clips of a step, on all devices. Default: the config's.", 1)
STAGES = flags.DEFINE_list("stages", None, "Names of the stages to plan. Default: all.")
SETTINGS = flags.DEFINE_string("settings", "", "Regular expression: only the settings in whose name it is found.")
FLOPS = flags.DEFINE_multi_enum("flops", list(COUNTS), list(COUNTS), "Ways to count operations; may be repeated.")
SHARE = flags.DEFINE_float("utilisation", UTILISATION, "Share of the card's peak that steps are taken to reach.")
JSON = flags.DEFINE_bool("json", False, "Print one JSON list of all rows instead of tables.")
flags.mark_flag_as_required("config")

UNITS = {"": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2.0**10, "MIB": 2.0**20, "GIB": 2.0**30}


def main(argv: list[str]) -> None:
    """Prints a table for each stage and number of frames."""
    del argv
    request = _request()
    recipe = _settled(read_recipe(CONFIG.value), request)
    everything: list[Row] = []
    for index in _chosen(recipe):
        found = mark([_told(row, request) for row in rows(recipe, index, request)])
        everything += found
        for frames in dict.fromkeys(row.frames for row in found):
            if not JSON.value:
                table = render([row for row in found if row.frames == frames], FLOPS.value)
                print(f"stage {recipe.stages[index].name}, {frames} frames\n{table}\n", flush=True)
    if JSON.value:
        print(json.dumps([dataclasses.asdict(row) for row in everything]))


def _settled(recipe: Recipe, request: Request) -> Recipe:
    """The recipe with the sizes of its mesh that it leaves open, told in a line for each stage."""
    if request.target is None or not fit.is_open(recipe.mesh):
        return recipe
    memory = request.memory or (request.card.memory if request.card else None)
    if memory is None:
        raise ValueError("mesh axes of size 0 are chosen by the memory of a device; add --memory=16GB or --card=v5e")
    if BATCH.value is not None:
        stages = tuple(dataclasses.replace(stage, batch_size=BATCH.value) for stage in recipe.stages)
        recipe = dataclasses.replace(recipe, stages=stages)
    devices = request.target.count * (recipe.mesh.get(SLICES, 0) or 1)
    sizes, held = fit.choose(recipe, devices, memory)
    if not JSON.value:
        print(fit.describe(sizes, held, memory), end="\n\n", flush=True)
    return dataclasses.replace(recipe, mesh=sizes)


def _told(row: Row, request: Request) -> Row:
    """The row, after a line about it in the log: compiling all of them may take an hour."""
    if request.target:
        memory = row.reason or f"{(row.memory or 0) / 1e9:.3g} GB"
        logging.info("stage %s, %d frames, %s: %s", row.stage, row.frames, row.setting, memory)
    return row


def _request() -> Request:
    target = read_target(TARGET.value) if TARGET.value else None
    if (MEMORY.value or CARD.value) and target is None:
        raise ValueError("--memory and --card are about compiled steps; add --target, for example --target=cpu")
    card = CARD.value or (target.chip if target else "")
    if not 0.0 < SHARE.value <= 1.0:
        raise ValueError(f"--utilisation is a share of a card's peak, above 0 and at most 1; found {SHARE.value}")
    return Request(
        target,
        find_card(card) if card else None,
        _memory(target),
        tuple(_frames(text) for text in FRAMES.value or ()),
        BATCH.value,
        SHARE.value,
        SETTINGS.value,
    )


def _memory(target: Target | None) -> float | None:
    """Of a device: what the flag says, or what a TPU has. Its compiler refuses most larger steps, but not all."""
    if MEMORY.value:
        return _bytes(MEMORY.value)
    return find_card(target.chip).memory if target and target.chip else None


def _chosen(recipe: Recipe) -> list[int]:
    names = [stage.name for stage in recipe.stages]
    unknown = [name for name in STAGES.value or () if name not in names]
    if unknown:
        raise ValueError(f"--stages names {unknown[0]!r}; the stages are {', '.join(names)}")
    return [index for index, name in enumerate(names) if not STAGES.value or name in STAGES.value]


def _frames(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise ValueError(f"--frames takes numbers of frames, as in 16,64; found {text!r}")
    return int(text)


def _bytes(text: str) -> float:
    parts = re.fullmatch(r"([0-9.]+)\s*([A-Za-z]*)", text.strip())
    try:
        return float(parts[1]) * UNITS[parts[2].upper()]  # type: ignore[index]
    except (TypeError, ValueError, KeyError):
        raise ValueError(f"--memory takes a size like 16GB or 16GiB; found {text!r}") from None


if __name__ == "__main__":
    cli.run(main)
