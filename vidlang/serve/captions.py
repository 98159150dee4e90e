"""A trained captioner in hand: sentences about the clips of a table, or about video files as they lie in a folder."""

from __future__ import annotations

import dataclasses
import itertools
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from vidlang.core.config import call
from vidlang.core.sharding import make_mesh, use_mesh
from vidlang.data.chunks import open_store
from vidlang.data.clips import ClipTable
from vidlang.data.pipeline import EvalData
from vidlang.data.prompts import Prompt
from vidlang.data.stores.adopt import VIDEOS, adopt
from vidlang.evals._embed import visits
from vidlang.evals.captioning import generate_texts, with_end
from vidlang.nn.generation import Decoding
from vidlang.train import build
from vidlang.train.evaluate import EVERY_DEVICE, restore_model
from vidlang.train.extract import LOOK
from vidlang.train.predict import Predict

# What of a stage's clips is kept.
OWN = ("size", "pixels", "frames", "text_length")
# What of a stage's clips is kept.
OWN = ("size", "pixels", "frames", "text_length")
# Clips that cannot be read are counted, however many: a folder of one's own may be full of them.
ALL_MAY_BE_BROKEN = 0.999999


@dataclass(frozen=True)
class Caption:
    """A sentence about some seconds of a video. score: its log p, as `nn.generation` has it."""

    video: str
    start: float
    end: float
    caption: str
    score: float
    row: int

    def line(self, prompt: str = "") -> str:
        """A line of JSON, as `datasets.narrated` reads it."""
        values = {key: value for key, value in dataclasses.asdict(self).items() if key != "row"}
        return json.dumps({**values, "prompt": prompt} if prompt else values, ensure_ascii=False)


@dataclass
class Timing:
    """Seconds spent on looking at clips, decoding them included, and on speaking; and what came of it."""

    looking: float = 0.0
    speaking: float = 0.0
    clips: int = 0
    tokens: int = 0
    broken: int = 0

    def __str__(self) -> str:
        broken = f", {self.broken} could not be read" if self.broken else ""
        return (
            f"{self.clips} clips{broken}; looked for {self.looking:.1f} s ({_rate(self.clips, self.looking)} clips/s), "
            f"spoke for {self.speaking:.1f} s ({_rate(self.tokens, self.speaking)} tokens/s)"
        )


class Captioner:
    """A run that can caption, restored once; what it does for one batch shape is compiled once."""

    def __init__(
        self,
        run: str | Path,
        *,
        step: int | None = None,
        prompt: str = "",
        decoding: Mapping[str, Any] | None = None,
        clip: Mapping[str, Any] | None = None,
        batch_size: int = 8,
        workers: int = 0,
        mesh: Mapping[str, int] = EVERY_DEVICE,
    ) -> None:
        """clip: how clips are looked at, on top of whole, centred ones of the run's own size and number of frames."""
        self.model, self.params, self.stage = restore_model(run, step=step, mesh=mesh)
        if not (hasattr(self.model, "see") and hasattr(self.model, "generate")):
            raise ValueError(
                f"{run} is of the model {self.stage.model['name']!r}, which makes no texts; give a run of 'captioner', "
                "as configs/caption_short.py trains"
            )
        own = {name: self.stage.clip[name] for name in OWN if name in self.stage.clip}
        self.spec = build.clip_spec({**LOOK, **own, **(clip or {})})
        tokenizer = build.tokenizer(self.stage, self.spec)
        if tokenizer is None:
            raise ValueError(f"the stage {self.stage.name!r} of {run} has no tokenizer to make words of what it says")
        self.tokenizer = tokenizer
        self.prompt = Prompt(prompt)
        self.decoding = with_end(call(Decoding, dict(decoding or {}), what="decoding"), tokenizer)
        self.batch_size, self.workers, self.timing = batch_size, workers, Timing()
        self._mesh = make_mesh(mesh)
        self._predict = Predict(self.model, self._mesh, dials=build.dials(self.stage).evaluation())

    def __call__(self, table: ClipTable) -> Iterator[Caption]:
        """A caption for each clip that can be read, in the order of the table; the first of several samples."""
        self.prompt.check(table)
        data = EvalData(
            table,
            self.tokenizer,
            self.spec,
            batch_size=self.batch_size,
            workers=self.workers,
            max_broken_share=ALL_MAY_BE_BROKEN,
        )
        with use_mesh(self._mesh):
            before = time.monotonic()
            for visit in visits(self._predict, data):
                self.timing.broken += int((visit.batch["index_B"] >= 0).sum() - len(visit.index_V))
                if not len(visit.index_V):
                    continue
                seen_VQD = self._predict("see", self.params, **visit.clips)[visit.valid_B]
                looked = time.monotonic()
                self.timing.looking += looked - before
                prompts = [self.prompt.of(table, int(row)) for row in visit.index_V]
                texts, score_V = generate_texts(
                    self._predict, data, self.params, seen_VQD, prompts, visit.index_V, self.decoding
                )
                before = time.monotonic()
                self.timing.speaking += before - looked
                self.timing.clips += len(texts)
                self.timing.tokens += int((self.tokenizer.encode(texts) != 0).sum())
                for row, text, score in zip(visit.index_V.tolist(), texts, score_V.tolist(), strict=True):
                    video, start, end = (table.cell(row, name) for name in ("video", "start", "end"))
                    yield Caption(video, float(start), float(end), text, float(score), row)


@dataclass
class Files:
    """Video files as a table of clips, and what of them could not be used: (name, why)."""

    table: ClipTable
    refused: list[tuple[str, str]]
    folder: tempfile.TemporaryDirectory[str]


def open_files(video: str | Path, *, segments: int = 1, segment_seconds: float = 0.0) -> Files:
    """A file, or all videos in a folder, each in equal segments or in segments of so many seconds.

    The files stay where they are, of whatever kind; what is known of their frames lies in a folder for a while.
    """
    if segments < 1 or segment_seconds < 0 or (segments > 1 and segment_seconds):
        raise ValueError(
            f"a video is cut into segments={segments} equal parts or into parts of segment_seconds={segment_seconds}; "
            "give one of them, above 0"
        )
    source = Path(video).expanduser()
    if not source.exists():
        raise ValueError(f"there is no video {video}; give a file, or a folder with videos")
    folder = tempfile.TemporaryDirectory(prefix="vidlang_")
    place = Path(folder.name)
    if source.is_file():
        # A folder of its own, so that nothing beside it is looked at.
        (place / "files").mkdir()
        (place / "files" / source.name).symlink_to(source.resolve())
        source = place / "files"
    elif not any(path.suffix.lower() in VIDEOS for path in source.rglob("*")):
        raise ValueError(f"there is no video in the folder {video}; known are files ending in {', '.join(VIDEOS)}")
    found = adopt(source, place / "store", "videos")
    for name, kind, why in found.refused:
        logging.warning("%s is left out (%s): %s", name, kind, why)
    store = open_store(place / "store")
    lengths = [(name, store.info(name).duration) for name in store.videos]
    rows = [row for name, length in lengths for row in _segments(name, length, segments, segment_seconds)]
    columns = dict(zip(("video", "start", "end"), map(list, zip(*rows, strict=True)), strict=True))
    table = ClipTable.from_columns({**columns, "texts": [[] for _ in rows]}, store=str(place / "store"))
    return Files(table, [(name, why) for name, _, why in found.refused], folder)


def _segments(name: str, duration: float, count: int, seconds: float) -> Iterator[tuple[str, float, float]]:
    if seconds:
        count = max(1, int(np.ceil(duration / seconds - 1e-6)))
        edges = np.minimum(np.arange(count + 1) * seconds, duration)
    else:
        edges = np.linspace(0.0, duration, count + 1)
    for start, end in itertools.pairwise(edges.tolist()):
        yield name, start, end


def known_rows(lines: Sequence[str], table: ClipTable) -> set[int]:
    """The rows of the table that these lines of captions are of; a last line that was cut off counts for nothing."""
    made: set[tuple[str, float, float]] = set()
    for number, line in enumerate(lines):
        try:
            found = json.loads(line)
            made.add(_place(found["video"], found["start"], found["end"]))
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines) - 1:
                raise ValueError(f"line {number + 1} is no caption: {error}; give another file as --out") from None
    cells = zip(*(table.column(name) for name in ("video", "start", "end")), strict=True)
    return {row for row, cell in enumerate(cells) if _place(*cell) in made}


def _place(video: str, start: Any, end: Any) -> tuple[str, float, float]:
    return video, round(float(start), 6), round(float(end), 6)


def _rate(count: int, seconds: float) -> str:
    return f"{count / seconds:.3g}" if seconds else "-"
