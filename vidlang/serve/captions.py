"""A trained captioner in hand: what it says about the clips of a table.

One's own video files are a table too (`serve.own_videos`), and what is said can be kept, as JSON lines
(`serve.caption_lines`) or, of a table of any size, as Parquet (`serve.bulk_captions`).
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vidlang.core.config import call
from vidlang.core.sharding import make_mesh, use_mesh
from vidlang.data.clips import ClipTable
from vidlang.data.pipeline import EvalData
from vidlang.data.prompts import Prompt
from vidlang.evals._embed import visits
from vidlang.evals.captioning import Spoken, generate_samples, with_end
from vidlang.nn.decoder_spec import DecoderSpec
from vidlang.nn.generation import Decoding
from vidlang.serve.bulk_model import plain, run_note
from vidlang.train import build
from vidlang.train.evaluate import EVERY_DEVICE, choose_checkpoint, restore_model
from vidlang.train.extract import LOOK
from vidlang.train.predict import Predict

# What of a stage's clips is kept.
OWN = ("size", "pixels", "frames", "text_length")
# Clips that cannot be read are counted, however many: a folder of one's own may be full of them.
ALL_MAY_BE_BROKEN = 0.999999
# How many of the longest prompts are looked at: those of most letters may not be those of most tokens.
MOST_LETTERS = 16
# Prompts that are looked at together, so that those of a long table need not all be remembered.
PROMPTS_AT_A_TIME = 1 << 16


@dataclass(frozen=True)
class Caption:
    """A sentence about some seconds of a video. score: its log p, as `nn.generation` has it. row: of the table."""

    video: str
    start: float
    end: float
    caption: str
    score: float
    prompt: str
    row: int


@dataclass
class Timing:
    """How long it took to decode clips, to look at them and to speak; and what came of it.

    The first batch is counted by itself: in it, programs are compiled.
    """

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("decoding", "looking", "speaking"), 0.0))
    first: float = 0.0
    first_clips: int = 0
    clips: int = 0
    tokens: int = 0
    broken: int = 0

    def add(self, laps: Mapping[str, float], clips: int, tokens: int) -> None:
        """Counts a batch in: its seconds by what they went into, its clips, and the tokens that were made."""
        self.seconds["decoding"] += laps["decoding"]
        self.clips += clips
        if not self.first_clips:
            self.first, self.first_clips = laps["looking"] + laps["speaking"], clips
            return
        self.seconds["looking"] += laps["looking"]
        self.seconds["speaking"] += laps["speaking"]
        self.tokens += tokens

    def __str__(self) -> str:
        broken = f", {self.broken} could not be read" if self.broken else ""
        decoding, looking, speaking = (self.seconds[name] for name in ("decoding", "looking", "speaking"))
        told = f"{self.clips} clips{broken}; waited {decoding:.1f} s for decoding"
        if self.first_clips:
            told += f"; first {self.first_clips} clips, with compiling, {self.first:.1f} s"
        if later := self.clips - self.first_clips:
            told += f"; then looked for {looking:.1f} s ({_rate(later, looking)} clips/s) and spoke for "
            told += f"{speaking:.1f} s ({_rate(self.tokens, speaking)} tokens/s)"
        return told


class Captioner:
    """A run that can caption, restored once; what it does for batches of one shape is compiled once.

    Several JAX processes do everything together: each decodes its rows of a batch, and each gets all captions.
    """

    def __init__(
        self,
        run: str | Path,
        *,
        step: int | None = None,
        prompt: str | None = None,
        decoding: Mapping[str, Any] | None = None,
        clip: Mapping[str, Any] | None = None,
        dials: Mapping[str, Any] | None = None,
        batch_size: int = 8,
        workers: int = 0,
        max_broken_share: float = ALL_MAY_BE_BROKEN,
        mesh: Mapping[str, int] = EVERY_DEVICE,
    ) -> None:
        """clip: how clips are looked at, on top of whole, centred ones of the run's own size and number of frames.
        prompt: what texts go on from; where not given, the one that the run was trained with. dials: on top of those
        that the run is evaluated at. batch_size: clips at a time in all processes together. max_broken_share: more
        unreadable clips than this are an error in the end."""
        folder, step = choose_checkpoint(run, step)
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
        self.prompt = Prompt((self.stage.clip.get("prompt") or "") if prompt is None else prompt)
        self.decoding = with_end(call(Decoding, dict(decoding or {}), what="decoding"), tokenizer)
        self._asked_for = "max_new" in (decoding or {})
        self.batch_size, self.workers, self.timing = batch_size, workers, Timing()
        self._mesh, self._prompt_length, self._max_broken_share = make_mesh(mesh), 0, max_broken_share
        self._dials = build.inference_dials(self.stage, dials or {})
        self._predict = Predict(self.model, self._mesh, dials=self._dials)
        self._checkpoint = folder, step

    @property
    def note(self) -> dict[str, Any]:
        """What decides the captions of a table, once it is fitted to that."""
        look = {"clip": plain(self.spec), "dials": plain(self._dials)}
        asked = {"prompt": self.prompt.template, "decoding": plain(self.decoding)}
        return {**run_note(*self._checkpoint), **look, **asked}

    def __call__(self, table: ClipTable, rows: Sequence[int] | np.ndarray | None = None) -> Iterator[Caption]:
        """What is said of the clips of the table, or of these rows of it, in their order."""
        return itertools.chain.from_iterable(self.clips(table, rows))

    def clips(self, table: ClipTable, rows: Sequence[int] | np.ndarray | None = None) -> Iterator[list[Caption]]:
        """The captions of each clip that can be read, as many as `decoding.samples`.

        What is drawn for a row depends on its number in the table and on the seed, not on which rows are asked for.
        """
        self.fit(table, rows)
        for told in self.batches(table, rows):
            yield from filter(None, told)

    def fit(self, table: ClipTable, rows: Sequence[int] | np.ndarray | None = None) -> None:
        """Gets ready for the clips of the table, or these rows: one shape of all batches, and room for their prompts.

        What is known to be wrong of them is found now, and not hours later.
        """
        asked = range(len(table)) if rows is None else rows
        if not len(asked):
            return
        self.prompt.check(table)
        # All batches have one shape, also those of another table.
        self._prompt_length = max(self._prompt_length, self._longest_prompt(table, asked))
        self._check_room()

    def batches(
        self, table: ClipTable, rows: Sequence[int] | np.ndarray | None = None
    ) -> Generator[list[list[Caption]]]:
        """The captions of each clip, none of one that cannot be read: the clips of a batch together.

        `fit` comes first. Rows may be given twice, to fill up a batch; such a clip is counted once.
        """
        rows_N = np.arange(len(table)) if rows is None else np.asarray(rows, np.int64)
        if not len(rows_N):
            return
        data = EvalData(
            table if rows is None else table.select(rows_N),
            self.tokenizer,
            self.spec,
            batch_size=self.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            workers=self.workers,
            max_broken_share=self._max_broken_share,
        )
        with use_mesh(self._mesh):
            before = time.monotonic()
            for number, visit in enumerate(visits(self._predict, data)):
                laps = {"decoding": time.monotonic() - before}
                first = number * self.batch_size
                asked_B, rows_V = rows_N[first : first + self.batch_size], rows_N[visit.index_V]
                told: list[list[Caption]] = [[] for _ in asked_B]
                self.timing.broken += len(np.setdiff1d(asked_B, rows_V))
                if len(rows_V):
                    said = self._batch(table, data, visit.clips, visit.valid_B, rows_V, laps)
                    for place, captions in zip((visit.index_V - first).tolist(), said, strict=True):
                        told[place] = captions
                yield told
                before = time.monotonic()

    def _batch(
        self,
        table: ClipTable,
        data: EvalData,
        clips: Mapping[str, np.ndarray],
        valid_B: np.ndarray,
        rows_V: np.ndarray,
        laps: dict[str, float],
    ) -> list[list[Caption]]:
        before = time.monotonic()
        seen_VQD = self._predict("see", self.params, **clips)[valid_B]
        laps["looking"] = time.monotonic() - before
        prompts = [self.prompt.of(table, int(row)) for row in rows_V]
        asked = (self._predict, data, self.params, seen_VQD, prompts, rows_V, self.decoding)
        spoken = generate_samples(*asked, prompt_length=self._prompt_length)
        laps["speaking"] = time.monotonic() - before - laps["looking"]
        if np.isnan(spoken.score_RS).any():
            raise ValueError("the scores of the captions are NaN; take a checkpoint from before the model diverged")
        _, first_U = np.unique(rows_V, return_index=True)
        self.timing.add(laps, len(first_U), int(spoken.length_RS[first_U].sum()))
        return [_captions(table, int(row), prompts[i], spoken, i) for i, row in enumerate(rows_V)]

    def _longest_prompt(self, table: ClipTable, rows: Sequence[int] | np.ndarray) -> int:
        """How many tokens the longest prompt has."""
        asked = rows if self.prompt.columns else rows[:1]
        longest: list[str] = []
        for first in range(0, len(asked), PROMPTS_AT_A_TIME):
            some = {self.prompt.of(table, int(row)) for row in asked[first : first + PROMPTS_AT_A_TIME]}
            # Of equally long ones the same are chosen in every process, which sets by themselves would not.
            longest = sorted(some.union(longest), key=lambda words: (len(words), words))[-MOST_LETTERS:]
        return int(self.tokenizer.encode_prompts(longest)[1].max())

    def _check_room(self) -> None:
        """As many tokens as the language model has room for, where nobody said how many."""
        length, wanted = call(DecoderSpec, self.model.language, what="language").max_length, self.decoding.max_new
        room = length - self._prompt_length
        if room < 1 or (self._asked_for and wanted > room):
            raise ValueError(
                f"a prompt of {self._prompt_length} tokens and {wanted} new ones do not fit into the {length} of this "
                "language model (max_length); shorten the prompt or ask for fewer"
            )
        self.decoding = dataclasses.replace(self.decoding, max_new=min(wanted, room))


def _captions(table: ClipTable, row: int, prompt: str, spoken: Spoken, place: int) -> list[Caption]:
    video, start, end = (table.cell(row, name) for name in ("video", "start", "end"))
    pairs = zip(spoken.texts[place], spoken.score_RS[place].tolist(), strict=True)
    return [Caption(video, float(start), float(end), text, score, prompt, row) for text, score in pairs]


def _rate(count: int, seconds: float) -> str:
    return f"{count / seconds:.3g}" if seconds else "-"
