"""A trained model in hand: embeddings of videos and texts, captions and classes, at any width that it has.

`vidlang.load` gives one. Files are decoded and cropped as the run's evaluation does it. Each method is compiled once
for each width, number of frames and rows of a batch, and batches are filled up to a power of two of rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vidlang.core.config import call
from vidlang.core.sharding import Mesh, replicated, use_mesh
from vidlang.data.plan import ClipSpec
from vidlang.data.prompts import Prompt
from vidlang.data.tokenizer import Tokenizer
from vidlang.evals._embed import Means, predict_items
from vidlang.evals.captioning import generate_samples, with_end
from vidlang.evals.metrics.classes import softmax, split
from vidlang.nn.decoder_spec import DecoderSpec
from vidlang.nn.generation import Decoding
from vidlang.nn.slicing import slice_params
from vidlang.ops.dials import Dials
from vidlang.serve.about import About
from vidlang.serve.clips_in import Progress, Videos, batches, lines, read_videos
from vidlang.serve.frames import at_frames
from vidlang.serve.shapes import are_embeddings, batch_rows, shortened, unit
from vidlang.train.predict import Predict
from vidlang.train.step import pick_inputs, with_video

TEMPLATE = "a video of {}"
TEXTS_AT_A_TIME = 64
UNREADABLE = ("error", "nan")
Labelled = list[tuple[str, float]]


class Loaded:
    """A model with its parameters and all that it needs to see videos and read texts.

    Videos are a path, frames as uint8 [T, H, W, 3], several as [B, T, H, W, 3], a list of paths and frames, or a table
    of clips. Of each, a method gives one result, in the order given. Options that all methods of videos have: width, a
    preset of widths ("d-384"), one width for all layers, or one a layer; frames, how many of each video, where not the
    model's own; batch_size, most clips at a time; workers, processes that decode; progress, True for a line every few
    seconds, or a function of (done, total); unreadable, "error" or "nan", for files that cannot be decoded.
    """

    def __init__(self, about: About, params: Any, tokenizer: Tokenizer | None, mesh: Mesh) -> None:
        self.about, self.tokenizer, self._mesh = about, tokenizer, mesh
        self.model = about.build()
        self.params = jax.device_put(params, replicated(mesh))
        self._dials: Dials = call(Dials, about.dials, what="dials")
        self._predict = Predict(self.model, mesh, dials=self._dials)
        self._at_frames: dict[int, Any] = {}

    def __repr__(self) -> str:
        spec = self.about.spec
        clip = f", {spec.frames} frames of {spec.size} x {spec.size}" if spec else ""
        return f"Loaded({self.about.name}{clip}: {', '.join(self.methods)})"

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that this model has."""
        video = "video_BTHWC" in self.model.inputs and self.about.spec is not None
        there = {
            "embed_video": video and hasattr(self.model, "embed_video"),
            "embed_text": hasattr(self.model, "embed_text"),
            "caption": video and hasattr(self.model, "see") and hasattr(self.model, "generate"),
        }
        there["similarity"] = there["embed_video"] and there["embed_text"]
        there["classify"] = there["similarity"] or (video and hasattr(self.model, "classify"))
        return tuple(name for name, has in there.items() if has)

    def embed_video(self, videos: Any, **options: Any) -> np.ndarray:
        """Embeddings [N, E] of videos, float32: unit vectors where the model has a joint space with texts."""
        self._require("embed_video")
        return call(self._of_videos, options, what="embed_video", method="embed_video", videos=videos)

    def embed_text(self, texts: str | Sequence[str], *, batch_size: int = TEXTS_AT_A_TIME) -> np.ndarray:
        """Embeddings [N, E] of texts, float32."""
        self._require("embed_text")
        tokenizer, given = self._words(), [texts] if isinstance(texts, str) else list(texts)
        if not given:
            raise ValueError("there are no texts to embed; give one, or a list of them")
        text_NL = tokenizer.encode(given)
        if self.about.model.get("text", {}).get("pad_word") is None:
            text_NL = shortened(text_NL)
        rows = batch_rows(len(given), batch_size)
        with use_mesh(self._mesh):
            found: np.ndarray = predict_items(
                self._predict, "embed_text", self.params, rows, len(given), lambda items: {"text_BL": text_NL[items]}
            )
        return found

    def similarity(self, videos: Any, texts: Any, **options: Any) -> np.ndarray:
        """Cosines [N, M] of videos and texts; either may be embeddings, float [N, E], that were made before."""
        self._require("similarity")
        video_NE = videos if are_embeddings(videos) else self.embed_video(videos, **options)
        text_ME = texts if are_embeddings(texts) else self.embed_text(texts)
        return unit(video_NE) @ unit(text_ME).T

    def classify(
        self,
        videos: Any,
        labels: Sequence[str] | None = None,
        *,
        head: str | None = None,
        top: int = 5,
        template: str | Sequence[str] = TEMPLATE,
        **options: Any,
    ) -> list[Labelled]:
        """For each video the likeliest classes, (name, probability), at most `top`.

        A classifier knows its classes; `labels` names them, and `head` chooses among several heads. A dual encoder
        takes any labels: each is put into the template, or into each of several, and compared with the video.
        """
        self._require("classify")
        if hasattr(self.model, "classify"):
            probability_NC, names = self._by_head(videos, labels, head, options)
        else:
            if not labels or isinstance(labels, str):
                raise ValueError(
                    "this model has no classes of its own; give labels, as in labels=['a dog runs', 'a cat sleeps']"
                )
            names = list(labels)
            score_NC = self.similarity(videos, self._prompts(names, template), **options)
            probability_NC = softmax(score_NC * self._scale())
        order_NC = np.argsort(-probability_NC, axis=1, kind="stable")[:, :top]
        return [
            [(names[place], float(row[place])) for place in order]
            for row, order in zip(probability_NC, order_NC.tolist(), strict=True)
        ]

    def caption(
        self,
        videos: Any,
        *,
        prompt: str | None = None,
        width: Any = None,
        frames: int | None = None,
        batch_size: int = 8,
        workers: int = 0,
        progress: bool | Progress = False,
        **decoding: Any,
    ) -> list[Any]:
        """What the model says of each video: a text, or a list of texts where samples=... asks for several.

        prompt: what texts go on from; that of training where not given. decoding: how ("greedy", "beam", "nucleus"),
        max_new and the other keys of `nn.generation.Decoding`. A file that cannot be read is an error.
        """
        self._require("caption")
        tokenizer = self._words()
        words = (self.about.clip.get("prompt") or "") if prompt is None else prompt
        if Prompt(words).columns:
            raise ValueError(f"the prompt {words!r} asks for columns of a table; give prompt= without braces")
        settings = self._decoding(decoding, words, tokenizer)
        how = {"width": width, "frames": frames, "batch_size": batch_size, "workers": workers, "progress": progress}
        seen_NQD = self._of_videos("see", videos, views=False, **how)
        count = len(seen_NQD)
        data = _Asked(tokenizer, batch_rows(count, batch_size))
        with use_mesh(self._mesh):
            asked = (self._predict, data, self.params, seen_NQD, [words] * count, np.arange(count), settings)
            spoken = generate_samples(*asked)
        return [texts if settings.samples > 1 else texts[0] for texts in spoken.texts]

    def slice(self, width: Any) -> Loaded:
        """The smaller model that this one is at this width; what only the full one needs is gone."""
        inputs = pick_inputs(self.model, jax.eval_shape(with_video, dict(self.about.structs())))
        if not hasattr(self.model, "at"):
            raise ValueError(f"the model {self.about.name!r} has no widths that it could be cut to")
        small, params = slice_params(self.model, self.params, self._widths(width), *inputs)
        section = {name: getattr(small, name) if name != "name" else self.about.name for name in self.about.model}
        dials = {name: value for name, value in self.about.dials.items() if name != "widths"}
        source = {**self.about.source, "widths": width if isinstance(width, str) else self._widths(width)}
        about = dataclasses.replace(self.about, model=section, dials=dials, source=source)
        return Loaded(about, params, self.tokenizer, self._mesh)

    def _of_videos(
        self,
        method: str,
        videos: Any,
        *,
        width: Any = None,
        frames: int | None = None,
        batch_size: int = 8,
        workers: int = 0,
        progress: bool | Progress = False,
        unreadable: str = "error",
        views: bool = True,
        turn: Callable[[np.ndarray], np.ndarray] = np.asarray,
    ) -> np.ndarray:
        """[N, ...] of a method of the model, the mean over the views of each video; `turn` is for what has no mean."""
        if unreadable not in UNREADABLE:
            raise ValueError(f"unreadable is {unreadable!r}; it is one of {', '.join(UNREADABLE)}")
        given, spec = read_videos(videos), self._spec(frames, views)
        predict = self._predict if width is None else self._predict.at(self._at(width))
        params = self._params(spec.frames)
        means, shape = Means(len(given)), (0,)
        with use_mesh(self._mesh):
            rows = batch_rows(len(given) * spec.views * spec.crops, batch_size)
            told = lines("videos", progress)
            for batch in batches(given, spec, rows=rows, workers=workers, progress=told):
                found = turn(predict(method, params, **batch.arrays)[batch.valid_B])
                shape = found.shape[1:]
                means.add(batch.index_V, found.reshape(len(found), -1))
        return _filled(given, means, shape, unreadable)

    def _by_head(
        self, videos: Any, labels: Sequence[str] | None, head: str | None, options: Mapping[str, Any]
    ) -> tuple[np.ndarray, list[str]]:
        """(probabilities of the classes of one head, their names)."""
        sizes: dict[str, int] = self.model.head_sizes
        if head is None and len(sizes) > 1 or head is not None and head not in sizes:
            raise ValueError(f"head is {head!r}; this model has the heads {', '.join(sizes)}, name one of them")
        head = next(iter(sizes)) if head is None else head
        names = list(labels or self.about.labels.get(head) or map(str, range(sizes[head])))
        if len(names) != sizes[head]:
            raise ValueError(f"the head {head!r} has {sizes[head]} classes, and labels names {len(names)}; name each")

        def chances(logits_VC: np.ndarray) -> np.ndarray:
            return softmax(split(logits_VC, sizes)[head])

        return call(self._of_videos, options, what="classify", method="classify", videos=videos, turn=chances), names

    def _prompts(self, labels: Sequence[str], template: str | Sequence[str]) -> np.ndarray:
        """A vector for each label: the mean over the templates of the embeddings of the label in them."""
        templates = [template] if isinstance(template, str) else list(template)
        if not templates or any("{}" not in each for each in templates):
            raise ValueError(f"a template has {{}} where the label goes, as in {TEMPLATE!r}; found {template!r}")
        texts = [each.replace("{}", label) for label in labels for each in templates]
        text_CTE = unit(self.embed_text(texts)).reshape(len(labels), len(templates), -1)
        mean_CE: np.ndarray = text_CTE.mean(axis=1)
        return mean_CE

    def _scale(self) -> float:
        """What cosines are multiplied by: the inverse temperature that the model was trained with."""
        return float(self.model.bind({"params": self.params}).scale)

    def _decoding(self, given: Mapping[str, Any], prompt: str, tokenizer: Tokenizer) -> Decoding:
        """How texts are made; of as many tokens as there is room for, where nobody said how many."""
        settings = with_end(call(Decoding, given, what="decoding"), tokenizer)
        taken = int(tokenizer.encode_prompts([prompt])[1].max())
        length = call(DecoderSpec, self.model.language, what="language").max_length
        room = length - taken
        if room < 1 or ("max_new" in given and settings.max_new > room):
            raise ValueError(
                f"a prompt of {taken} tokens and {settings.max_new} new ones do not fit into the {length} of this "
                "language model; shorten the prompt or ask for fewer"
            )
        return dataclasses.replace(settings, max_new=min(settings.max_new, room))

    def _spec(self, frames: int | None, views: bool) -> ClipSpec:
        spec = self.about.spec
        assert spec is not None  # or it would have none of the methods of videos
        if frames is not None:
            spec = dataclasses.replace(spec, frames=frames)
        return spec if views else dataclasses.replace(spec, views=1, crops=1)

    def _params(self, frames: int) -> Any:
        """The parameters for clips of so many frames."""
        if frames not in self._at_frames:
            self._at_frames[frames] = at_frames(self.about, self.model, self.params, frames)
        return self._at_frames[frames]

    def _at(self, width: Any) -> Dials:
        return dataclasses.replace(self._dials, widths=self._widths(width))

    def _widths(self, width: Any) -> tuple[int, ...]:
        """The width of each layer."""
        if not hasattr(self.model, "video_spec"):
            raise ValueError(f"the model {self.about.name!r} has no video encoder whose width could be chosen")
        spec = self.model.video_spec
        found: tuple[int, ...] = spec.widths((width,) * spec.layers if isinstance(width, int) else width)
        return found

    def _words(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError(
                "there is no tokenizer beside this model's files; name one: vidlang.load(..., tokenizer='PATH')"
            )
        return self.tokenizer

    def _require(self, method: str) -> None:
        if method not in self.methods:
            raise ValueError(
                f"the model {self.about.name!r} has no {method}; it has: {', '.join(self.methods) or 'none of them'}"
            )


@dataclasses.dataclass(frozen=True)
class _Asked:
    """What `generate_samples` asks of an evaluation's data."""

    tokenizer: Tokenizer
    batch_size: int


def _filled(given: Videos, means: Means, shape: tuple[int, ...], unreadable: str) -> np.ndarray:
    """The means, with NaN for what could not be read, or the error that says so."""
    if unreadable == "error" or len(given.unreadable) == len(given):
        given.require_readable()
    mean_NX, present_N = means.result()
    return np.where(present_N[:, None], mean_NX, np.nan).astype(mean_NX.dtype).reshape(len(given), *shape)
