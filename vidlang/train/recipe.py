"""A recipe: what a config says, as frozen values. A typo in a config is answered here, before anything is built.

A recipe is a list of stages. A stage names its task, data, dials, optimizer and evaluations, and starts from the
stage before it. What only decides where and how fast a run goes (`runtime`, `mesh`, where data lies) or what is looked
at on the way (`checkpoint`, `guard`, `evals`) may change between a run and its continuation; everything else may not,
see `result_config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vidlang.core.config import call, is_section, to_dict
from vidlang.data.workers.patience import DEFAULT as DEFAULT_PATIENCE
from vidlang.data.workers.patience import Patience

# Keys of a data section that say where things lie and how many processes make them, never what they are.
PLACES = ("root", "store", "workers")


@dataclass(frozen=True)
class Runtime:
    """How fast and how talkative a run is; nothing here changes a result.

    workers: processes that decode clips (0: in the training process, -1: as many as the cores are good for).
    eval_workers: the same for each evaluation, which starts them anew, so it pays for long ones only. log_every: steps
    between progress lines where the output is no terminal. max_broken_share: of the clips read, more broken ones than
    this stop the run. patience: how long to wait for slow clips, stores and workers, the keys of `Patience`.
    compile_cache: folder of compiled programs, "" for `compiled` in the run's, "none" for none. wandb: project of
    Weights & Biases that gets the scalars as well, "" for none.
    """

    workers: int = 0
    eval_workers: int = 0
    log_every: int = 50
    max_broken_share: float = 0.05
    patience: Patience = DEFAULT_PATIENCE
    compile_cache: str = ""
    wandb: str = ""


@dataclass(frozen=True)
class CheckpointPlan:
    """When a stage saves and what it keeps: the last `keep`, and the best by `best`, a metric like "val/t2v_r1"."""

    every: str = "10 percent"
    keep: int = 2
    best: str = ""
    best_mode: str = "max"

    def __post_init__(self) -> None:
        if self.best_mode not in ("max", "min"):
            raise ValueError(f'checkpoint.best_mode must be "max" or "min"; found {self.best_mode!r}')
        if self.keep < 1:
            raise ValueError(f"checkpoint.keep must be at least 1; found {self.keep}")


@dataclass(frozen=True)
class Guard:
    """What a stage does about a step that goes wrong.

    skip: steps in a row whose loss or gradient is no number and that are left out; one more, or any at 0, stops the
    run. spike: a loss of so many times the median of the last ones is written down with its clips; 0 for never.
    """

    skip: int = 0
    spike: float = 3.0

    def __post_init__(self) -> None:
        if isinstance(self.skip, bool) or not isinstance(self.skip, int) or self.skip < 0:
            raise ValueError(f"guard.skip is how many steps in a row may be left out, from 0 on; found {self.skip!r}")
        if self.spike != 0 and not 1 < self.spike < float("inf"):
            raise ValueError(
                f"guard.spike is a factor on the usual loss, above 1, or 0 for never; found {self.spike!r}"
            )


@dataclass(frozen=True)
class Evaluation:
    """One evaluator on one table; its metrics are called `prefix/metric`. `clip` overrides the stage's clip."""

    name: str
    every: str
    data: Mapping[str, Any]
    batch_size: int
    prefix: str = "val"
    clip: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    dials: Mapping[str, Any] = field(default_factory=dict)
    at_start: bool = False

    @property
    def label(self) -> str:
        """How errors call it."""
        return f"the evaluation {self.prefix}/{self.name}"

    def __post_init__(self) -> None:
        _positive("batch_size of an evaluation", self.batch_size)


@dataclass(frozen=True)
class Extraction:
    """A feature store that a stage reads: the clips of `data`, each in `segments` segments of `frames` frames.

    widths: presets, each a variant of the store `out` with its name; none for the full width alone, called "full".
    """

    data: Mapping[str, Any]
    out: str
    segments: int
    frames: int
    widths: tuple[str, ...] = ()
    batch_size: int = 8
    shard_rows: int = 4096

    def __post_init__(self) -> None:
        for name in ("segments", "frames", "batch_size", "shard_rows"):
            _positive(f"{name} of extract", getattr(self, name))


@dataclass(frozen=True)
class Stage:
    """One training: until `duration`, this model on this data with this objective.

    `data` names a dataset and its options, or is a mixture of several: {"mixing": "items", "sources": ({"data": ...,
    "clip": ..., "weight": ..., "loss_weight": ..., "name": ...}, ...)}. `tokenizer` is the path of a tokenizer.json, or
    a section with `path` and other options; "" for clips without texts. `augment` says how clips are changed at random,
    on the devices, `micro` in which parts a step takes its batch (the keys of `micro.Micro`). `init_from` names what to
    take parameters from, a run or several sources (`train/origins.py`); "" means the stage before, or scratch.
    Parameters that do not fit are an error, unless a pattern in `init_allow` matches their path. `extract` has a
    section for each feature store that is made with those parameters before the stage begins, the keys of `Extraction`.
    """

    name: str
    duration: str
    batch_size: int
    model: Mapping[str, Any]
    data: Mapping[str, Any]
    clip: Mapping[str, Any]
    tokenizer: str | Mapping[str, Any]
    objective: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    dials: Mapping[str, Any] = field(default_factory=dict)
    augment: Mapping[str, Any] = field(default_factory=dict)
    micro: Mapping[str, Any] = field(default_factory=dict)
    extract: tuple[Extraction, ...] = ()
    init_from: str | Mapping[str, Any] | tuple[Any, ...] = ""
    init_allow: tuple[str, ...] = ()
    checkpoint: CheckpointPlan = field(default_factory=CheckpointPlan)
    guard: Guard = field(default_factory=Guard)
    evals: tuple[Evaluation, ...] = ()

    def __post_init__(self) -> None:
        _positive(f"batch_size of stage {self.name!r}", self.batch_size)
        if not self.name or not all(letter.isalnum() or letter in "-_" for letter in self.name):
            raise ValueError(f"a stage's name is a folder's name: letters, digits, - and _; found {self.name!r}")
        prefixes = [evaluation.prefix for evaluation in self.evals]
        if len(set(prefixes)) < len(prefixes):
            raise ValueError(
                f"the evals of stage {self.name!r} have the prefixes {', '.join(prefixes)}; each needs its own, or "
                "their metrics would take each other's names"
            )
        if self.checkpoint.best and self.checkpoint.best.split("/")[0] not in prefixes:
            raise ValueError(
                f"checkpoint.best of stage {self.name!r} is {self.checkpoint.best!r}, but its evals write metrics "
                f"under: {', '.join(prefixes) or 'nothing, there are no evals'}"
            )


@dataclass(frozen=True)
class Recipe:
    """A whole run: its stages in order, one seed, one mesh. `curriculum`: what they promise (train/curriculum.py)."""

    name: str
    seed: int
    stages: tuple[Stage, ...]
    mesh: Mapping[str, int] = field(default_factory=lambda: {"data": -1})
    runtime: Runtime = field(default_factory=Runtime)
    curriculum: str = ""

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("the config has no stages; a recipe is a list of at least one")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed of the config must be a whole number from 0 to {2**32 - 1}; found {self.seed}")
        for axis, size in self.mesh.items():
            if isinstance(size, bool) or not isinstance(size, int):
                raise ValueError(f"mesh.{axis} must be a whole number; found {size!r}")

    def folder(self, index: int) -> str:
        """Name of a stage's folder inside the run."""
        return f"{index}_{self.stages[index].name}"

    def seed_of(self, index: int) -> int:
        """Every stage draws its own stream of clips and masks."""
        return self.seed + index


def read_recipe(config: Any) -> Recipe:
    """The recipe that a ConfigDict or a plain dict describes; an unknown or missing key is a ValueError."""
    plain = to_dict(config)
    if not isinstance(plain, Mapping):
        raise ValueError(f"a config is a mapping with the keys name, seed and stages; found {type(config).__name__}")
    values = dict(plain)
    if "runtime" in values:
        values["runtime"] = _read_runtime(values["runtime"])
    if "stages" in values:
        stages = _sections(values["stages"], "stages")
        values["stages"] = tuple(_read_stage(stage, f"stages[{i}]") for i, stage in enumerate(stages))
    return _read_named(Recipe, values, "the config")


def _read_runtime(config: Any) -> Runtime:
    if not is_section(config) or "patience" not in config:
        return call(Runtime, config, what="runtime")
    patience = call(Patience, config["patience"], what="runtime.patience")
    others = {key: value for key, value in config.items() if key != "patience"}
    return call(Runtime, others, what="runtime", patience=patience)


def _read_stage(config: Mapping[str, Any], what: str) -> Stage:
    values = dict(config)
    if "checkpoint" in values:
        values["checkpoint"] = call(CheckpointPlan, values["checkpoint"], what=f"{what}.checkpoint")
    if "guard" in values:
        values["guard"] = call(Guard, values["guard"], what=f"{what}.guard")
    extracts = enumerate(_sections(values.get("extract", ()), f"{what}.extract"))
    values["extract"] = tuple(call(Extraction, section, what=f"{what}.extract[{i}]") for i, section in extracts)
    evals = enumerate(_sections(values.get("evals", ()), f"{what}.evals"))
    values["evals"] = tuple(_read_named(Evaluation, evaluation, f"{what}.evals[{i}]") for i, evaluation in evals)
    return _read_named(Stage, values, what)


def _sections(value: Any, what: str) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(value, tuple):
        raise ValueError(f"{what} must be a list of sections; found {value!r}")
    for i, section in enumerate(value):
        if not isinstance(section, Mapping):
            raise ValueError(f"{what}[{i}] must be a section of keys; found {section!r}")
    return value


def _read_named(kind: type[Any], config: Mapping[str, Any], what: str) -> Any:
    """`kind(**config)`; `call` keeps the key `name` for itself, so it goes another way."""
    if not isinstance(config.get("name"), str):
        raise ValueError(f"{what} lacks 'name', a text; found the keys {', '.join(config) or 'none'}")
    others = {key: value for key, value in config.items() if key != "name"}
    return call(kind, others, what=what, name=config["name"])


def result_config(config: Any, index: int) -> dict[str, Any]:
    """The part of a config that decides what stage `index` computes: its own settings and those of the stages before.

    A continued run must have the same; runtime, mesh, checkpoints, guard and evaluations are free to change. So is
    where data and tokenizer lie, and how many processes make them: what is in them, the checkpoint's note identifies.
    """
    plain = to_dict(config)
    return {"seed": plain["seed"], "stages": tuple(_result_stage(stage) for stage in plain["stages"][: index + 1])}


def _result_stage(stage: Mapping[str, Any]) -> dict[str, Any]:
    result = {key: value for key, value in stage.items() if key not in ("checkpoint", "guard", "evals")}
    if not result.get("init_from"):  # which says as much as none
        result.pop("init_from", None)
    if "data" in result:
        result["data"] = _without_places(result["data"])
    if is_section(result.get("clip")):
        result["clip"] = _without_places(result["clip"])  # that of features
    if "tokenizer" in result:
        options = {} if isinstance(result["tokenizer"], str) else result["tokenizer"]
        result["tokenizer"] = {key: value for key, value in options.items() if key != "path"}
    return result


def _without_places(data: Any) -> Any:
    """A data section, or all of those in a mixture, without the keys that say where and how data is made."""
    if isinstance(data, tuple):
        return tuple(_without_places(part) for part in data)
    if not isinstance(data, Mapping):
        return data
    return {key: _without_places(value) for key, value in data.items() if key not in PLACES}


def _positive(what: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{what} must be a positive whole number; found {value!r}")
