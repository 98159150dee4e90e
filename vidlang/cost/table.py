"""A table of settings and what each costs, which of them fit into a memory, and which of those computes the most."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vidlang.cost import parameters
from vidlang.cost.cards import UTILISATION, Card, step_seconds
from vidlang.cost.collectives import Total, by_kind
from vidlang.cost.flops import CONVENTIONS
from vidlang.cost.program import StepMemory, build_program, forward_flops, step_flops
from vidlang.cost.scale import compiled_time
from vidlang.cost.settings import Setting, apply, encoder, settings, video_stack
from vidlang.cost.targets import Refused, Target, measure
from vidlang.train.recipe import Recipe

# Ways to count the operations of a forward pass.
COUNTS = (*CONVENTIONS, "true")


@dataclass(frozen=True)
class Row:
    """What one setting costs. `reason` says why one cannot be taken, and then nothing else is known.

    tokens: of the video, in the first and in the last layer. flops: of one clip's forward pass, by convention; the
    papers' count the video encoder, "true" the whole model. step_flops: of a train step on all devices. parameters:
    of the whole model; touched: of the video encoder's layers, at their widths. memory, seconds: of one device.
    exchanges: what the devices send each other. own: the share of a step in which a device does its own work, where
    nothing of that is hidden behind it, and where all is. limit: the bytes that a device has, 0 where nobody said.
    """

    stage: str
    frames: int
    setting: str
    tokens: tuple[int, int] = (0, 0)
    flops: dict[str, float] = dataclasses.field(default_factory=dict)
    step_flops: float = 0.0
    parameters: int = 0
    touched: int = 0
    memory: int | None = None
    seconds: float | None = None
    exchanges: tuple[Total, ...] = ()
    own: tuple[float, float] | None = None
    fits: bool | None = None
    limit: float = 0.0
    best: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Request:
    """What a plan is made for; `target` None compiles nothing, and `memory` are the bytes that a device has.

    frames: to plan each setting for, instead of the config's. only: a pattern that names of settings must hold.
    """

    target: Target | None = None
    card: Card | None = None
    memory: float | None = None
    frames: tuple[int, ...] = ()
    batch_size: int | None = None
    utilisation: float = UTILISATION
    only: str = ""


def rows(recipe: Recipe, index: int, request: Request) -> Iterator[Row]:
    """The rows of a stage, each as soon as it is known; `mark` then tells which are best."""
    jobs: list[tuple[Recipe, int]] = []
    found: list[Row] = []
    chosen = [setting for setting in settings(recipe.stages[index]) if re.search(request.only, setting.name)]
    if not chosen:
        names = ", ".join(setting.name for setting in settings(recipe.stages[index]))
        raise ValueError(f"no setting is called like {request.only!r}; there are: {names}")
    for frames in request.frames or (None,):
        for setting in chosen:
            row, job = _count(recipe, index, setting, frames, request.batch_size)
            found.append(row)
            if job is not None:
                jobs.append((job, index))
    answers = measure(jobs, request.target) if request.target else None
    dtype = encoder(recipe.stages[index])[1].dtype
    for row in found:
        if row.reason or answers is None:
            yield row
            continue
        yield _weigh(row, next(answers), recipe, request, dtype)


def mark(found: Sequence[Row]) -> list[Row]:
    """The same rows, with one of each stage and number of frames marked: that which fits and whose step computes most.

    Of equal ones it is that whose forward pass computes most.
    """
    marked = list(found)
    for key in {(row.stage, row.frames) for row in found}:
        fitting = [i for i, row in enumerate(found) if (row.stage, row.frames) == key and row.fits]
        if fitting:
            best = max(fitting, key=lambda i: (found[i].step_flops, found[i].flops["true"]))
            marked[best] = dataclasses.replace(found[best], best=True)
    return marked


def _count(
    recipe: Recipe, index: int, setting: Setting, frames: int | None, batch_size: int | None
) -> tuple[Row, Recipe | None]:
    """(what needs no compiler, the recipe to compile); a setting that the model refuses is a row with its words."""
    stage = recipe.stages[index]
    row = Row(stage.name, frames or stage.clip.get("frames", 0), setting.name)
    try:
        stage = apply(stage, setting, frames=frames, batch_size=batch_size)
        stages = (*recipe.stages[:index], stage, *recipe.stages[index + 1 :])
        job = dataclasses.replace(recipe, stages=stages)
        shape = video_stack(stage)
        program = build_program(job, index)
        flops = {name: float(convention(shape)) for name, convention in CONVENTIONS.items()}
        row = dataclasses.replace(
            row,
            tokens=(shape.tokens[0], shape.tokens[-1]),
            flops={**flops, "true": forward_flops(program)},
            step_flops=float(step_flops(program)),
            parameters=parameters.count(program.params),
            touched=parameters.touched(shape),
        )
    except ValueError as error:
        return dataclasses.replace(row, reason=str(error)), None
    return row, job


def _weigh(row: Row, answer: StepMemory | Refused, recipe: Recipe, request: Request, dtype: str) -> Row:
    if isinstance(answer, Refused):
        return dataclasses.replace(row, reason=answer.reason, fits=None if request.memory is None else False)
    seconds = None
    if request.card is not None:
        flops = row.step_flops / answer.devices
        seconds = step_seconds(
            request.card, dtype, flops=flops, traffic=answer.traffic, utilisation=request.utilisation
        )
    own = None
    if request.card is not None and request.card.link and answer.exchanges:
        took = compiled_time(request.card, dtype, row.step_flops / answer.devices, answer, request.utilisation)
        seconds, own = took.longest, took.efficiency
    fits = None if request.memory is None else answer.total <= request.memory
    exchanges = tuple(by_kind(answer.exchanges))
    row = dataclasses.replace(row, memory=answer.total, fits=fits, limit=request.memory or 0.0)
    return dataclasses.replace(row, seconds=seconds, exchanges=exchanges, own=own)


def render(found: Sequence[Row], conventions: Sequence[str]) -> str:
    """The rows as a table with one line each, and below it what could not be taken."""
    head = ("setting", "tokens", *(f"GFLOP {name}" for name in conventions), "TFLOP/step", "memory", "time", "")
    lines = [head]
    for row in found:
        if row.reason:
            continue
        tokens = f"{row.tokens[0]}" if row.tokens[0] == row.tokens[1] else f"{row.tokens[0]}..{row.tokens[1]}"
        lines.append(
            (
                row.setting,
                tokens,
                *(f"{row.flops[name] / 1e9:.4g}" for name in conventions),
                f"{row.step_flops / 1e12:.4g}",
                "-" if row.memory is None else f"{row.memory / 1e9:.3g} GB",
                "-" if row.seconds is None else f"~{_duration(row.seconds)}",
                _verdict(row),
            )
        )
    sizes = [max(len(line[column]) for line in lines) for column in range(len(head))]
    table = "\n".join(_aligned(line, sizes) for line in lines)
    sent = [line for row in found if not row.reason and row.exchanges for line in _exchanges(row)]
    refused = [f"{row.setting}: {row.reason}" for row in found if row.reason]
    if sent:
        table = "\n".join([table, "", "a device sends in a step:", *sent])
    return "\n".join([table, *(["", "not for this model:"] if refused else []), *refused])


def _exchanges(row: Row) -> Iterator[str]:
    own = "" if row.own is None else f"; {100 * row.own[0]:.0f} to {100 * row.own[1]:.0f} % of a step is its own work"
    yield f"{row.setting}: {sum(each.sent for each in row.exchanges) / 1e6:,.4g} MB{own}"
    for each in row.exchanges:
        among = f"among {each.groups_of} {'slices' if each.between_slices else 'devices'}"
        yield (
            f"  {each.kind} {among if each.groups_of else 'to one other'}: {each.times} of {each.bytes / 1e6:,.4g} MB "
            f"in all, {each.sent / 1e6:,.4g} MB sent"
        )


def _aligned(line: Sequence[str], sizes: Sequence[int]) -> str:
    first, *others = zip(line, sizes, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(cell.rjust(size) for cell, size in others)]).rstrip()


def _verdict(row: Row) -> str:
    if row.fits is None:
        return ""
    if not row.fits:
        return f"does not fit {row.limit / 1e9:.3g} GB"
    return "fits, computes most" if row.best else "fits"


def _duration(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
