"""Captioning: what a model says of each clip, against what people said.

Each clip is seen once, captioned after its prompt, and compared with the row's texts (or another column): BLEU, ROUGE-L
and CIDEr-D on words as the COCO tools split them. Papers print CIDEr times 100. aggregate="video" takes each video as a
corpus of its own and then the mean, which is what some paragraph benchmarks do; the numbers differ much.

parse="synthetic" names a dataset that can read sentences of its own grammar (`parse_events`): `exact` is then the share
of clips whose caption tells the events of a reference, word for word of what they are and in their order; `order` asks
for the order alone: that each event told is likest the one in its place, however well it is described. blind=True
captions each clip from another one's video as well: what a model scores so, it has not from looking.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vidlang.core.config import call, load_module
from vidlang.data.prompts import Prompt
from vidlang.evals._embed import predict_items, process_of_all, visits
from vidlang.evals._tables import need
from vidlang.evals.metrics import caption_scores
from vidlang.nn.generation import Decoding

# Orders of more events than this are too many to look at; there, all must be right.
MOST_ORDERED = 6
Parser = Callable[[str], Sequence[Any] | None]


class Evaluator:
    """Scores of the captions; with `out`, also a line of JSON for each clip, which `datasets.narrated` reads."""

    def __init__(
        self,
        predict: Any,
        data: Any,
        *,
        decoding: Mapping[str, Any] | None = None,
        prompt: str = "",
        references: str = "texts",
        metrics: Sequence[str] = caption_scores.USUAL,
        aggregate: str = "corpus",
        parse: str = "",
        blind: bool = False,
        out: str = "",
    ) -> None:
        need(data.table, (references,), "captioning")
        caption_scores.check(metrics, aggregate)
        self.predict, self.data, self.references, self.out = predict, data, references, out
        self.metrics, self.aggregate, self.blind = tuple(metrics), aggregate, blind
        self.decoding = with_end(call(Decoding, dict(decoding or {}), what="decoding"), data.tokenizer)
        self.prompt = Prompt(prompt)
        self.prompt.check(data.table)
        self.parse = _parser(parse) if parse else None
        predict.require("see", "generate")

    def run(self, params: Any) -> dict[str, float]:
        """Metrics by name, with `words` of a caption, count and missing; blind_* of the same with other videos."""
        table = self.data.table
        seen_NQD, present_N = see_all(self.predict, self.data, params)
        rows = np.flatnonzero(present_N)
        if not len(rows):
            raise ValueError(f"nothing to caption: none of the {len(table)} clips could be read")
        given_N = list(table.column(self.references))
        if without := [row for row in rows if not given_N[row]]:
            raise ValueError(f"captioning needs a reference for every clip; row {without[0]} of the table has none")
        references = [_listed(given_N[row]) for row in rows]
        if self.parse is not None and not any(self.parse(ref) for refs in references for ref in refs):
            raise ValueError(
                f"parse reads none of the references, as {references[0][0]!r}; leave it out, or name the dataset whose "
                "sentences they are"
            )
        texts, score_R = self._captions(params, seen_NQD[rows], rows)
        result = self._scores(texts, references, rows)
        if self.blind:
            others = rows[derangement(table, rows)]
            blind, _ = self._captions(params, seen_NQD[others], rows)
            result |= {f"blind_{name}": value for name, value in self._scores(blind, references, rows).items()}
        if self.out and process_of_all()[0] == 0:
            self._write(texts, score_R, references, rows)
        return {**result, "count": float(len(rows)), "missing": float((~present_N).sum())}

    def _captions(self, params: Any, seen_RQD: np.ndarray, rows: np.ndarray) -> tuple[list[str], np.ndarray]:
        """(a text for each of these rows, its score)."""
        prompts = [self.prompt.of(self.data.table, int(row)) for row in rows]
        return generate_texts(self.predict, self.data, params, seen_RQD, prompts, rows, self.decoding)

    def _scores(self, texts: Sequence[str], references: Sequence[Sequence[str]], rows: np.ndarray) -> dict[str, float]:
        videos = None
        if self.aggregate == "video":
            videos = [str(self.data.table.cell(int(row), "video")) for row in rows]
        found = caption_scores.score(texts, references, self.metrics, videos=videos)
        found["words"] = float(np.mean([len(text.split()) for text in texts]))
        if (parse := self.parse) is not None:
            read = [parse(text) for text in texts]
            told = [[parse(ref) for ref in refs] for refs in references]
            right = [events is not None and events in refs for events, refs in zip(read, told, strict=True)]
            ordered = [any(in_order(each, ref) for ref in refs) for each, refs in zip(read, told, strict=True)]
            found |= {"exact": float(np.mean(right)), "order": float(np.mean(ordered))}
            found["parsed"] = float(np.mean([each is not None for each in read]))
        return found

    def _write(
        self, texts: Sequence[str], score_R: np.ndarray, references: Sequence[Sequence[str]], rows: np.ndarray
    ) -> None:
        path = Path(self.out)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            for text, score, refs, row in zip(texts, score_R.tolist(), references, rows.tolist(), strict=True):
                video, start, end = (self.data.table.cell(row, name) for name in ("video", "start", "end"))
                line = {"video": video, "start": start, "end": end, "caption": text, "score": score}
                if prompt := self.prompt.of(self.data.table, row):
                    line["prompt"] = prompt
                file.write(json.dumps({**line, "references": refs}, ensure_ascii=False) + "\n")


def see_all(predict: Any, data: Any, params: Any) -> tuple[np.ndarray, np.ndarray]:
    """(what the language model sees of each row of the table [N, Q, D], which rows could be read)."""
    seen_NQD: np.ndarray | None = None
    present_N = np.zeros(len(data.table), bool)
    for visit in visits(predict, data):
        if visit.view_V.any():
            raise ValueError(
                "a language model looks at one view of a clip, and this evaluation shows several; set views=1 and "
                "crops=1 in its clip section"
            )
        seen_BQD = predict("see", params, **visit.clips)[visit.valid_B]
        if seen_NQD is None:
            seen_NQD = np.zeros((len(data.table), *seen_BQD.shape[1:]), np.float32)
        seen_NQD[visit.index_V], present_N[visit.index_V] = seen_BQD, True
    if seen_NQD is None:
        raise ValueError("nothing to look at: the table has no clips")
    return seen_NQD, present_N


@dataclass(frozen=True)
class Spoken:
    """What was generated for some rows: the samples of each, their scores, and how many tokens each has."""

    texts: list[list[str]]
    score_RS: np.ndarray
    length_RS: np.ndarray


def generate_texts(
    predict: Any,
    data: Any,
    params: Any,
    seen_RQD: np.ndarray,
    prompts: Sequence[str],
    rows: np.ndarray,
    decoding: Decoding,
) -> tuple[list[str], np.ndarray]:
    """(the first text of each row, its score)."""
    spoken = generate_samples(predict, data, params, seen_RQD, prompts, rows, decoding)
    return [samples[0] for samples in spoken.texts], spoken.score_RS[:, 0]


def generate_samples(
    predict: Any,
    data: Any,
    params: Any,
    seen_RQD: np.ndarray,
    prompts: Sequence[str],
    rows: np.ndarray,
    decoding: Decoding,
    *,
    prompt_length: int = 0,
) -> Spoken:
    """All texts of each row, in batches of one shape. What is drawn for a row depends on its number.

    Every process has all rows and takes its share of each batch. Prompts are padded to `prompt_length` tokens, so that
    several calls have the same shape.
    """
    prompt_RL, length_R = data.tokenizer.encode_prompts(prompts)
    prompt_RL = prompt_RL[:, : max(int(length_R.max()), prompt_length)]

    def arrays(items: np.ndarray) -> dict[str, np.ndarray]:
        return {
            "visual_BQD": seen_RQD[items],
            "prompt_BL": prompt_RL[items],
            "length_B": length_R[items],
            "rows_B": rows[items].astype(np.int32),
        }

    made = predict_items(predict, "generate", params, data.batch_size, len(rows), arrays, decoding)
    # Whatever ended a text is none of its words; `decode` knows the tokenizer's own end.
    tokens_RSN, last_RS1 = made.tokens_BSN, made.length_BS[..., None] - 1
    last_token_RS1 = np.take_along_axis(tokens_RSN, last_RS1, axis=2)
    ended_RS1 = np.isin(last_token_RS1, decoding.stop_ids)
    np.put_along_axis(tokens_RSN, last_RS1, np.where(ended_RS1, data.tokenizer.end_id, last_token_RS1), axis=2)
    texts = [data.tokenizer.decode(tokens_SN) for tokens_SN in tokens_RSN]
    return Spoken(texts, made.score_BS, made.length_BS)


def with_end(decoding: Decoding, tokenizer: Any) -> Decoding:
    """The settings, with the tokenizer's end among what ends a text."""
    return dataclasses.replace(decoding, stop_ids=tuple(dict.fromkeys((tokenizer.end_id, *decoding.stop_ids))))


def derangement(table: Any, rows: np.ndarray) -> np.ndarray:
    """For each of these rows the place of another one, of another video and, where rows have groups, another group."""
    marks = [str(table.cell(int(row), "video")) for row in rows]
    groups = [table.cell(int(row), "group") if "group" in table.columns else row for row in rows]
    count, found = len(rows), []
    for place in range(count):
        others = ((place + step) % count for step in range(count // 2 or 1, count + (count // 2 or 1)))
        fits = (other for other in others if marks[other] != marks[place] and groups[other] != groups[place])
        other = next(fits, None)
        if other is None:
            raise ValueError("blind captions take another clip's video, and all clips are of one video or one group")
        found.append(other)
    return np.array(found)


def in_order(said: Sequence[Any] | None, told: Sequence[Any] | None) -> bool:
    """Whether as many events are said as told, and no other order of them is as like what was told.

    Events are tuples of attributes, and alike by how many of these they share. Events that are alike have no order.
    """
    if said is None or told is None or len(said) != len(told) or not said:
        return False
    if len(said) > MOST_ORDERED:
        return list(said) == list(told)

    def likeness(order: Sequence[int]) -> int:
        pairs = zip(order, told, strict=True)
        return sum(one == other for place, event in pairs for one, other in zip(said[place], event, strict=True))

    own, *others = (likeness(order) for order in itertools.permutations(range(len(said))))
    return own > 0 and all(own > other for other in others)


def _parser(name: str) -> Parser:
    module = load_module("datasets", name)
    if not hasattr(module, "parse_events"):
        raise ValueError(
            f"the dataset {name!r} has no grammar that captions could be read by; leave out parse={name!r}"
        )
    parse: Parser = module.parse_events
    return parse


def _listed(given: Any) -> list[str]:
    return [given] if isinstance(given, str) else list(given)
