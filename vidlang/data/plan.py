"""What one item of the stream will be, decided before anything is decoded.

A plan is a pure function of (seed, index, attempt): the row of the table, which of its texts, which moments and which
crop. Nothing else in the data path is random, so a batch does not depend on the number of processes, workers or
restarts, and a clip that cannot be decoded is replaced by one that the same three numbers give.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np

from vidlang.core.config import call, did_you_mean
from vidlang.data.chunks import ChunkStore
from vidlang.data.clips import ClipTable
from vidlang.data.crops import CropBox, choose_crop
from vidlang.data.features.rows import FeatureSpec, RowFeatures
from vidlang.data.frames import choose_times
from vidlang.data.groups import Groups
from vidlang.data.prompts import Prompt

PAIRS = ("none", "group")
PIXELS = ("rgb", "yuv420")
TEXTS = ("texts", "question")
# What an error asks for, here and where a config is read.
TIMES_SECTION = "a section such as {'name': 'segments'}"
CROP_SECTION = "a section such as {'name': 'center'}"
FRAMES = ("frames", "size", "times", "crop")
# What says which frames, as it is where there are none; and what a plan has then.
NO_FRAMES = {"frames": 0, "size": 0, "times": {}, "crop": {}, "pixels": "rgb", "views": 1, "crops": 1}
NO_TIMES, NO_CROP = np.zeros(0), CropBox(0, 0, 2, 2)
# Where frames come from; None where there are texts alone.
Frames = ChunkStore | RowFeatures | None


@dataclass(frozen=True)
class ClipSpec:
    """What an example looks like: frames of size x size pixels, a text of `text_length` tokens (0: no text).

    `times` and `crop` name a rule and its options. `text` is the column that the text comes from: one of the `texts`
    is drawn, or the row's "question". With pairs="group" every second row of a batch is a partner, drawn from the other
    clips of the same `group` as the row before it. `fields` are columns to carry into the batch, see `fields.py`. With
    pixels="yuv420" frames stay in the planes they are stored in, half as many bytes, as yuv_BTXW in place of
    video_BTHWC. An evaluation sees each row as `views` choices of moments times `crops` choices of box, one after
    another. With `features`, the keys of `FeatureSpec`, nothing is decoded: in place of frames, and of all that says
    which, a batch has features_BSD. With frames=0, and nothing that says which frames, there are texts alone: no store
    is opened and nothing decoded.

    `prompt` is what a text answers: a template such as "question: {question} answer:", with the table's columns in
    braces; "" is no words. It comes before the text, in text_BL, and batches have prompt_B then: how many tokens of the
    begin and the prompt are not to be learned. None, as usual, is for texts that answer nothing, without that field.
    """

    frames: int = 0
    size: int = 0
    times: Annotated[Mapping[str, Any], TIMES_SECTION] = field(default_factory=dict)
    crop: Annotated[Mapping[str, Any], CROP_SECTION] = field(default_factory=dict)
    text_length: int = 0
    text: str = "texts"
    prompt: str | None = None
    pairs: str = "none"
    fields: tuple[str, ...] = ()
    pixels: str = "rgb"
    views: int = 1
    crops: int = 1
    features: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.features is not None:
            self._check_features()
        some = int(self.features is None and not self.text_only)
        for name, least in {"frames": some, "size": some, "text_length": 0, "views": 1, "crops": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"clip.{name} must be at least {least}, found {getattr(self, name)}.")
        for name, known in (("pairs", PAIRS), ("pixels", PIXELS), ("text", TEXTS)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(
                    f"unknown clip.{name} {value!r}{did_you_mean(value, known)}; there are: {', '.join(known)}."
                )
        if self.pixels == "yuv420" and self.size % 4:
            raise ValueError(f"clip.pixels='yuv420' needs a clip.size that divides by 4, found {self.size}.")
        if self.prompt is not None:
            Prompt(self.prompt)
        if self.text_only and not self.text_length:
            raise ValueError("clip.frames is 0, for texts alone, and clip.text_length is 0 too; set one of them.")
        for name, words in (("times", TIMES_SECTION), ("crop", CROP_SECTION)) if some else ():
            if not isinstance(getattr(self, name), Mapping):
                raise ValueError(f"clip.{name} must be {words}; found {getattr(self, name)!r}")
            options = dict(getattr(self, name))
            if "name" not in options:
                raise ValueError(f"clip.{name} must name its rule, as in {name}=dict(name=...), found {options}.")
            object.__setattr__(self, name, options)
        object.__setattr__(self, "fields", tuple(self.fields))

    def _check_features(self) -> None:
        if given := [name for name, usual in NO_FRAMES.items() if getattr(self, name) != usual]:
            raise ValueError(
                f"clip.features takes the place of frames, and clip.{given[0]} says which frames; leave out "
                f"{', '.join(given)}, or features"
            )
        call(FeatureSpec, self.features or {}, what="clip.features")

    @property
    def text_only(self) -> bool:
        """Whether an example is a text and nothing else."""
        return self.features is None and all(getattr(self, name) == usual for name, usual in NO_FRAMES.items())

    @property
    def prompted(self) -> bool:
        """Whether texts come after a prompt."""
        return self.prompt is not None

    @property
    def feature_spec(self) -> FeatureSpec | None:
        """The section `features`, read."""
        if self.features is None:
            return None
        found: FeatureSpec = call(FeatureSpec, self.features, what="clip.features")
        return found

    @property
    def feature_shape(self) -> tuple[int, int] | None:
        """Shape of the features of one example."""
        spec = self.feature_spec
        return None if spec is None else (spec.segments, spec.width)

    @property
    def video_field(self) -> str:
        """What the frames, or features, are called in a batch."""
        if self.features is not None:
            return "features_BSD"
        return "video_BTHWC" if self.pixels == "rgb" else "yuv_BTXW"

    @property
    def video_dtype(self) -> np.dtype:
        """Type of the frames or features."""
        return np.dtype(np.uint8 if self.features is None else np.float32)

    @property
    def video_shape(self) -> tuple[int, ...]:
        """Shape of the frames or features of one example."""
        if (shape := self.feature_shape) is not None:
            return shape
        planes = (self.size, self.size, 3) if self.pixels == "rgb" else (self.size * 3 // 2, self.size)
        return self.frames, *planes


@dataclass(frozen=True)
class Plan:
    """One item of the stream: `row` is -1 where the last batch of an evaluation is only padding.

    choice: which of the row's texts it has. variant: which of the variants of its features; it then has no moments.
    """

    index: int
    attempt: int
    row: int
    video: str
    text: str
    times_T: np.ndarray
    crop: CropBox
    view: int = 0
    choice: int = 0
    variant: int = 0
    prompt: str = ""


class Planner:
    """Makes plans from one table; what the train and the eval planner share."""

    def __init__(self, table: ClipTable, store: Frames, spec: ClipSpec) -> None:
        self.table, self.store, self.spec = table, store, spec
        self._prompt = None if spec.prompt is None else Prompt(spec.prompt)

    def _plan(self, index: int, attempt: int, row: int, rng: np.random.Generator | None, view: int = 0) -> Plan:
        text, choice = self._text(row, rng)
        prompt = "" if self._prompt is None else self._prompt.of(self.table, row)
        video, start, end = (self.table.cell(row, name) for name in ("video", "start", "end"))
        if self.store is None or isinstance(self.store, RowFeatures):
            variant = 0 if self.store is None else self.store.choose(rng)
            return Plan(index, attempt, row, video, text, NO_TIMES, NO_CROP, view, choice, variant, prompt)
        info = self.store.info(video)
        # Annotations may run past the end of a video; a clip that starts there is left for the decoder to refuse.
        end = min(end, info.duration) if start < info.duration else end
        time_view, crop_view = divmod(view, self.spec.crops)
        times_T = choose_times(
            rng,
            start,
            end,
            self.spec.frames,
            view=time_view,
            views=self.spec.views,
            duration=info.duration,
            source_fps=info.fps,
            **self.spec.times,
        )
        crop = choose_crop(rng, info.height, info.width, view=crop_view, views=self.spec.crops, **self.spec.crop)
        return Plan(index, attempt, row, video, text, times_T, crop, view, choice, prompt=prompt)

    def _text(self, row: int, rng: np.random.Generator | None) -> tuple[str, int]:
        """(the row's text, which of its texts that is)."""
        if self.spec.text == "question":
            return self.table.cell(row, "question") or "", 0
        texts = self.table.cell(row, "texts")
        if not texts:
            return "", 0
        choice = 0 if rng is None else int(rng.integers(len(texts)))
        return texts[choice], choice


@dataclass(frozen=True)
class Share:
    """Which rows of every batch are this process's: its block, so that the order does not depend on their number."""

    batch_size: int
    process: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.process < self.processes:
            raise ValueError(f"Process {self.process} of {self.processes} does not exist; count from 0.")
        if self.batch_size < 1 or self.batch_size % self.processes:
            raise ValueError(
                "The batch size must be a multiple of the number of processes, found "
                f"{self.batch_size} for {self.processes}."
            )

    @property
    def local(self) -> int:
        """Rows of a batch that are this process's."""
        return self.batch_size // self.processes

    def items(self, step: int) -> range:
        """The items of the whole stream that are this process's rows of batch `step`."""
        first = step * self.batch_size + self.process * self.local
        return range(first, first + self.local)


class TrainPlanner(Planner):
    """Draws the plan of item `index`; `row` is what the shuffled stream has there (the anchor's, for a partner)."""

    def __init__(
        self,
        table: ClipTable,
        store: Frames,
        spec: ClipSpec,
        seed: int,
        groups: Groups | None = None,
    ) -> None:
        super().__init__(table, store, spec)
        self.seed, self._groups = seed, groups

    def __call__(self, index: int, row: int) -> Plan:
        rng = self._rng(index, 0)
        if self._groups is not None and index % 2:
            row = self._groups.partner(int(row), self.table.cell(row, "group"), rng)
        return self._plan(index, 0, int(row), rng)

    def again(self, plan: Plan) -> Plan:
        """The replacement of a plan that could not be decoded: any row of the table, for a partner too."""
        attempt = plan.attempt + 1
        rng = self._rng(plan.index, attempt)
        return self._plan(plan.index, attempt, int(rng.integers(len(self.table))), rng)

    def _rng(self, index: int, attempt: int) -> np.random.Generator:
        # The index comes last: it is the only number that may need more than one 32-bit word of the seed.
        return np.random.default_rng((self.seed, attempt, index))


class EvalPlanner(Planner):
    """The plans of a row, with nothing drawn: first text, fixed moments and crops; items go row by row."""

    @property
    def items(self) -> int:
        """How many items there are in all."""
        return len(self.table) * self.spec.views * self.spec.crops

    def __call__(self, index: int) -> Plan:
        if index >= self.items:
            return dataclasses.replace(self._plan(index, 0, 0, None), row=-1, text="", prompt="")
        row, view = divmod(index, self.spec.views * self.spec.crops)
        return self._plan(index, 0, row, None, view)
