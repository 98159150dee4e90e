"""Which TPU pod each full-size recipe is meant for, and the tables of what its train step costs there."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidlang.core.sharding import AXES
from vidlang.cost.cards import CARDS, UTILISATION
from vidlang.cost.collectives import by_kind
from vidlang.cost.exchanges import exchanges, total
from vidlang.cost.program import StepMemory, build_program, step_flops
from vidlang.cost.scale import compiled_time, unexpected, weak_scaling
from vidlang.cost.shape import shape_of
from vidlang.cost.targets import Refused, Target, measure
from vidlang.train.recipe import Recipe, read_recipe

SHARED = {"data": 64, "fsdp": 4}
EDGES = {"edges": {"local": 1, "random": 3, "block": 56}}


@dataclass(frozen=True)
class Pod:
    """A stage of a recipe, and what it is meant to train on. mesh, dials, batch_size: instead of the recipe's own."""

    config: str
    stage: str
    topology: str
    mesh: Mapping[str, int] | None = None
    dials: Mapping[str, Any] | None = None
    batch_size: int = 0
    note: str = ""

    @property
    def name(self) -> str:
        """As the table and --only have it."""
        return " ".join(filter(None, [self.config, self.stage, self.note]))


# The compiler's least effort for speed: with the usual one, 25 rows take hours.
EFFORT = -1.0
# Of memory at that effort; the usual one took up to a ninth more in the rows that were compiled with both.
MARGIN = 1.15
# What of a stage decides its program; the rest says for how long, from what and how it is looked at.
DECIDING = ("batch_size", "model", "data", "clip", "objective", "optimizer", "dials", "augment", "micro", "guard")

# The most telling first: whoever stops early has these.
PODS = (
    Pod("longvivit:vit_l", "long", "v5e:16x16"),
    Pod("caption_long:vit_l", "caption", "v5e:8x16"),
    Pod("longvivit:vit_l", "long", "v5e:16x16", SHARED, {}, 256, "dense, a clip a chip"),
    Pod("longvivit:vit_l", "long", "v5e:16x16", SHARED, EDGES, 256, "edges, a clip a chip"),
    Pod("avion_ego4d", "pretrain", "v5e:4x8"),
    Pod("shortvivit:vit_l", "short", "v5e:8x16"),
    Pod("svitt", "frames_4", "v5e:4x8"),
    Pod("caption_short:vit_l", "caption", "v5e:4x8"),
    Pod("eff_shortvivit:vit_l", "short", "v5e:8x16"),
    Pod("imagevit:vit_l", "image", "v5e:8x16"),
    Pod("longvivit", "long", "v5e:8x16"),
    Pod("videomae_k400", "pretrain", "v5e:8x8"),
    Pod("videomae_k400", "finetune", "v5e:8x8"),
    Pod("avion_ego4d:vit_l", "pretrain", "v5e:8x8"),
    Pod("avion_ek100_mir", "mir", "v5e:8x8"),
    Pod("avion_ek100_cls", "cls", "v5e:8x8"),
    Pod("svitt", "frames_16", "v5e:8x8"),
    Pod("svitt_ego", "random_3", "v5e:4x8"),
    Pod("svitt_retrieval", "msrvtt", "v5e:4x8"),
    Pod("svitt_qa", "msrvtt_qa", "v5e:4x8"),
    Pod("adavid_egovlp", "adaptive", "v5e:4x8"),
    Pod("adavid_diving48", "diving48", "v5e:4x8"),
    Pod("qa_finetune", "msrvtt_qa", "v5e:4x8"),
    Pod("caption_finetune", "msrvtt", "v5e:4x8"),
    Pod("longvivit_ablations", "joint", "v5e:8x8"),
)
# The rows that `python -m benchmarks.pods` has made, one for each of PODS.
ROWS = Path(__file__).with_name("pods.json")
HEAD = ("recipe", "pod", "mesh", "clips a chip", "GB a chip", "exchanges, MB sent a chip", "time", "own work")
PLANNED = ("devices", "slices", "batch", "MB sent by each", "MB between slices", "step", "own work")
COUNTS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


def recipe_of(pod: Pod) -> tuple[Recipe, int]:
    """The recipe with the pod's mesh, batch and dials, and the number of its stage."""
    name, _, words = pod.config.partition(":")
    found = read_recipe(importlib.import_module(f"configs.{name}").get_config(words))
    index = next(i for i, stage in enumerate(found.stages) if stage.name == pod.stage)
    stage = found.stages[index]
    changes: dict[str, Any] = {"batch_size": pod.batch_size or stage.batch_size}
    if pod.dials is not None:
        changes["dials"] = dict(pod.dials)
    stages = tuple(dataclasses.replace(each, **changes) if i == index else each for i, each in enumerate(found.stages))
    return dataclasses.replace(found, stages=stages, mesh=dict(pod.mesh or found.mesh)), index


def sizes_of(pod: Pod) -> dict[str, int]:
    """All axes of the pod's mesh by their sizes."""
    return whole_mesh(recipe_of(pod)[0].mesh, Target("tpu", pod.topology).count)


def fingerprint(pod: Pod) -> str:
    """Changes with the settings of the pod's stage, its mesh and its chips; vidlang's own code is not in it."""
    recipe, index = recipe_of(pod)
    stage = dataclasses.asdict(recipe.stages[index])
    settings = [{key: stage[key] for key in DECIDING}, sizes_of(pod)]
    text = json.dumps([settings, pod.topology, EFFORT], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_rows(path: Path = ROWS) -> dict[str, dict[str, Any]]:
    """The rows of a file by their names; none where there is no file."""
    return {row["name"]: row for row in json.loads(path.read_text())} if path.exists() else {}


def is_sound(row: Mapping[str, Any]) -> bool:
    """Whether the row's program fits its chip with a margin and exchanges nothing that its mesh does not imply."""
    if "refused" in row or row["unexpected"]:
        return False
    return MARGIN * row["memory"] <= CARDS[row["pod"].split(":")[0]].memory


def row_of(pod: Pod) -> dict[str, Any]:
    """What the table says of a pod."""
    recipe, index = recipe_of(pod)
    start, made_from = time.perf_counter(), fingerprint(pod)
    (answer,) = measure([(recipe, index)], Target("tpu", pod.topology, EFFORT))
    row: dict[str, Any] = {"name": pod.name, "pod": pod.topology, "fingerprint": made_from}
    row["minutes"] = round((time.perf_counter() - start) / 60, 2)
    if isinstance(answer, Refused):
        sizes = {axis: size for axis, size in sizes_of(pod).items() if size > 1}
        return {**row, "mesh": sizes, "refused": answer.reason}
    return row | _measured(pod, recipe, index, answer)


def _measured(pod: Pod, recipe: Recipe, index: int, answer: StepMemory) -> dict[str, Any]:
    stage, program = recipe.stages[index], build_program(recipe, index)
    sizes = whole_mesh(recipe.mesh, answer.devices)
    shape = shape_of(program, stage)
    flops = step_flops(program) / answer.devices
    took = compiled_time(CARDS[pod.topology.split(":")[0]], "bfloat16", flops, answer)
    return {
        "mesh": {axis: size for axis, size in sizes.items() if size > 1},
        "clips": stage.batch_size / (sizes["data"] * sizes["fsdp"]),
        "memory": answer.total,
        "state": answer.arguments,
        "exchanges": [dataclasses.asdict(each) for each in by_kind(answer.exchanges)],
        "sent": sum(one.sent for one in answer.exchanges),
        "counted": total(exchanges(shape, sizes), sizes) if sizes["context"] == 1 else 0.0,
        "seconds": [took.shortest, took.longest],
        "own": took.efficiency,
        "unexpected": [dataclasses.asdict(one) for one in unexpected(answer.exchanges, sizes, shape)],
    }


def whole_mesh(mesh: Mapping[str, int], devices: int) -> dict[str, int]:
    """All axes of a mesh by their sizes."""
    sizes = {axis: int(mesh.get(axis, 1)) for axis in AXES}
    fixed = 1
    for size in sizes.values():
        fixed *= size if size != -1 else 1
    return {axis: devices // fixed if size == -1 else size for axis, size in sizes.items()}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    for row in rows:
        mesh = " ".join(f"{axis} {size}" for axis, size in row["mesh"].items())
        if "refused" in row:
            cells = [row["name"], row["pod"], mesh, "", row["refused"], "", "", ""]
        else:
            sums = ", ".join(_exchange(each) for each in row["exchanges"] if each["sent"] >= 1e6)
            low, high = row["own"]
            cells = [
                *(row["name"], row["pod"], mesh, f"{row['clips']:g}", _memory(row)),
                f"{row['sent'] / 1e6:,.0f} (counted {row['counted'] / 1e6:,.0f}): {sums}",
                f"~{row['seconds'][0] * 1e3:,.0f}-{row['seconds'][1] * 1e3:,.0f} ms",
                f"{100 * low:.0f}-{100 * high:.0f} %",
            ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _memory(row: Mapping[str, Any]) -> str:
    """GB of a chip, and plainly where that is more than it has: the compiler does not refuse all such programs."""
    limit = CARDS[row["pod"].split(":")[0]].memory
    more = f", more than its {limit / 1e9:.3g}" if row["memory"] > limit else ""
    return f"{row['memory'] / 1e9:.3g}{more}"


def _exchange(each: Mapping[str, Any]) -> str:
    where = f" over {each['groups_of']}" if each["groups_of"] else ""
    return f"{each['kind']}{where} {each['sent'] / 1e6:,.0f}"


def scaling() -> str:
    """The planned tables of weak scaling: a v5e slice has at most 256 chips, a machine of H100 eight."""
    plans = ((PODS[0], "v5e", 256, 1, 2), (PODS[5], "v5e", 256, 4, 4), (PODS[4], "H100", 8, 1, 128))
    return "\n\n".join(_scaled(*plan) for plan in plans)


def _scaled(pod: Pod, name: str, of_slice: int, fsdp: int, clips: int) -> str:
    """One table: each device keeps `clips` clips, and its own work is at the usual share of the card's peak."""
    recipe, index = recipe_of(dataclasses.replace(pod, batch_size=clips))
    program, card = build_program(recipe, index), CARDS[name]
    alone = step_flops(program) / (card.bfloat16 * UTILISATION)
    shape = shape_of(program, recipe.stages[index])
    meshes = [{"data": n // fsdp, "fsdp": fsdp, "slices": max(1, n // of_slice)} for n in COUNTS]
    lines = ["| " + " | ".join(PLANNED) + " |", "|" + "---|" * len(PLANNED)]
    for devices, sizes, took in weak_scaling(card, shape, alone, meshes):
        found = exchanges(dataclasses.replace(shape, rows=shape.rows * devices), sizes)
        low, high = took.efficiency
        lines.append(
            f"| {devices:,} | {sizes['slices']} | {clips * devices:,} | {total(found, sizes) / 1e6:,.0f} | "
            f"{sum(each.between(sizes) for each in found) / 1e6:,.1f} | "
            f"~{took.shortest * 1e3:,.0f}-{took.longest * 1e3:,.0f} ms | {100 * low:.1f}-{100 * high:.0f} % |"
        )
    title = f"{pod.config}, stage {pod.stage}: {clips} clips a device, {name}, fsdp {fsdp}, slices of {of_slice}"
    return f"{title}\n\n" + "\n".join(lines)
