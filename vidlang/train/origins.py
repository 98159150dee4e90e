"""Where the parameters of a stage come from: other stages, other runs, and files of published models.

    init_from = ""                                                  # the stage before; scratch for the first
    init_from = "scratch"
    init_from = "runs/shortvivit"                                   # a run, a stage folder of it, or one checkpoint
    init_from = ("before", "stage:short", "runs/demo", "gpt2:weights/gpt2:language")
    init_from = ("clip:weights/clip-vit-base-patch16:video_encoder", "bert:weights/bert-base-uncased")

Of several sources each gives what the model has a place for, and no two the same. FAMILY:PATH:PART reads the files of
a family in `vidlang/pretrained` into a part of the model, and FAMILY:PATH into all parts that the files have;
{"name": FAMILY, "path": PATH, "into": PART} says the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidlang.core.config import call, did_you_mean, extension_names, load_module
from vidlang.core.tree import nest
from vidlang.ops.tubelets import Size3
from vidlang.pretrained._names import left_in_files
from vidlang.pretrained._settings import check_towers

BEFORE, STAGE, SCRATCH = "before", "stage:", "scratch"


@dataclass(frozen=True)
class Weights:
    """Files of a published model: which family reads them, the folder, and the part of the model that they are.

    Without a part they give all they have: a family that is one part of a model, as a language model is, says which.
    """

    family: str
    path: str
    into: str = ""

    def __str__(self) -> str:
        return f"{self.family} weights {self.path}" + (f" as {self.into}" if self.into else "")

    def check(self, model: Mapping[str, Any], allowed: Sequence[str] = ()) -> None:
        """ValueError where the family is unknown, the folder is not there, or the model would compute otherwise.

        model: the section of the stage, whose parts have the settings that the weights are used with. allowed: the
        stage's `init_allow`, in which settings that differ on purpose are named, as "video.transformer.activation".
        """
        if not self._folder.exists():
            raise ValueError(f"there is no {self.path}, where {self.family} weights should be; see docs/pretrained.md")
        if part := self._part:
            if isinstance(settings := model.get(self.into or part), Mapping):
                self._module.check(self._folder, settings)
        else:
            check_towers(model, self._module.section(self._folder), self._folder, self.into, allowed)

    def shapes(self, model: Mapping[str, Any]) -> Any:
        """What `load` gives, as shapes; ValueError where the files are not whole."""
        return self._placed(self._module.shapes(self._folder), model)

    def load(self, model: Mapping[str, Any]) -> Any:
        """The parameters, where the model has them, each left in its file until it is asked for."""
        with left_in_files():
            return self._placed(self._module.load(self._folder), model)

    @property
    def video(self) -> tuple[Mapping[str, Any], Size3] | None:
        """(section of the video tower, the clip that its positions were made for), where there is one."""
        if self._part or "video" not in (section := self._module.section(self._folder)):
            return None
        return section["video"], self._module.clip(self._folder)

    @property
    def _folder(self) -> Path:
        return Path(self.path).expanduser()

    @property
    def _module(self) -> Any:
        return load_module("pretrained", self.family)

    @property
    def _part(self) -> str:
        return getattr(self._module, "PART", "")

    def _placed(self, params: Any, model: Mapping[str, Any]) -> Any:
        if self._part:
            return nest({self.into or self._part: params})
        if place := getattr(self._module, "place", None):
            params = place(params, model)
        if not self.into:
            return params
        found = params
        for name in self.into.split("/"):
            if not isinstance(found, Mapping) or name not in found:
                raise ValueError(f"{self.family} weights have no part {self.into!r}; they have {', '.join(params)}")
            found = found[name]
        return nest({self.into: found})


@dataclass(frozen=True)
class Earlier:
    """A stage of the same recipe, by its number."""

    index: int


@dataclass(frozen=True)
class Run:
    """A run, a stage folder or a checkpoint."""

    path: str


Origin = Run | Earlier | Weights


def origins(stages: Sequence[Any], index: int) -> tuple[Origin, ...]:
    """What `init_from` of stage `index` names, in order."""
    given = stages[index].init_from
    if not given:
        return (Earlier(index - 1),) if index else ()
    if given == SCRATCH:
        return ()
    items = (given,) if isinstance(given, str | Mapping) else tuple(given)
    return tuple(_origin(item, stages, index) for item in items)


def only_run(found: Sequence[Origin], folders: Sequence[Path]) -> str:
    """The run that a stage starts from, for what needs one whole model of it; "" for none, ValueError for several."""
    runs = [origin for origin in found if not isinstance(origin, Weights)]
    if len(runs) > 1:
        raise ValueError("it starts from several runs, and features are extracted by one; name one as its init_from")
    return path_of(runs[0], folders) if runs else ""


def path_of(origin: Run | Earlier, folders: Sequence[Path]) -> str:
    """The folder that it lies in; `folders` are those of the recipe's stages."""
    return str(folders[origin.index]) if isinstance(origin, Earlier) else origin.path


def _origin(item: Any, stages: Sequence[Any], index: int) -> Origin:
    if isinstance(item, Mapping):
        name = item.get("name")
        others = {key: value for key, value in item.items() if key != "name"}
        if not isinstance(name, str):
            raise ValueError(f"a section of init_from names a family, {{'name': 'gpt2', ...}}; found {dict(item)}")
        return call(Weights, others, what="init_from", family=name)
    if not isinstance(item, str) or not item:
        raise ValueError(f"init_from names runs and weights as texts or sections; found {item!r}")
    if item == SCRATCH:
        raise ValueError("init_from is 'scratch' beside other sources; leave it out, what none of them has begins anew")
    if item == BEFORE:
        if not index:
            raise ValueError("init_from is 'before' in the first stage, which has none before it")
        return Earlier(index - 1)
    if item.startswith(STAGE):
        name, known = item.removeprefix(STAGE), [stage.name for stage in stages[:index]]
        if known.count(name) > 1:
            raise ValueError(f"init_from names the stage {name!r}, and {known.count(name)} before it have that name")
        if name not in known:
            hint = did_you_mean(name, known)
            raise ValueError(
                f"init_from names the stage {name!r}{hint}; those before it are: {', '.join(known) or 'none'}"
            )
        return Earlier(known.index(name))
    family, colon, rest = item.partition(":")
    if colon and family in extension_names("pretrained"):
        path, _, into = rest.rpartition(":") if ":" in rest else (rest, "", "")
        return Weights(family, path, into)
    return Run(item)
