"""Two towers and a fusion encoder (SViTT): embeddings to search by, and a text that reads a video to judge the pair.

The towers are the dual encoder's, with its parameters under its paths. On top of them, texts attend to video tokens:
then the first text token tells whether text and clip belong together, and the others guess words that were hidden.

For each clip a text that is nearly right is drawn, and for each text a clip, out of the global batch (SViTT draws from
what one device holds). With the true pairs and those of the masked texts these are four of each row, and all go through
the layers together: each layer's gradients are then summed over the devices once. Many are fused some at a time, and
once more in the backward pass, so that memory holds the activations of those few.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from vidlang.core.config import call
from vidlang.core.sharding import constrain, per_batch_shard
from vidlang.models import dual_encoder, text
from vidlang.models import video as video_model
from vidlang.nn.cross_attention import Fused, Fusion, fusion_spec
from vidlang.nn.layers import ACTIVATIONS, LayerNorm, Linear, parameter
from vidlang.nn.spec import TransformerSpec
from vidlang.ops.dials import OFF, Dials
from vidlang.ops.draws import row_keys
from vidlang.ops.masked_words import mask_words
from vidlang.ops.negatives import draw_negatives, fingerprint
from vidlang.ops.pieces import Pieces


@flax.struct.dataclass(kw_only=True)
class Encoded(dual_encoder.Encoded):
    """What the towers make of each pair by itself; every leaf has the batch in front.

    tokens_BND: video tokens after the last norm, cls in front where the tower has one. words_BLD: text tokens, of which
    those with valid_BL are no padding. clip_B2: fingerprints of the pixels. masked_BLD, target_BL: tokens of the text
    with masked words, and what these were.
    """

    tokens_BND: jax.Array
    words_BLD: jax.Array
    valid_BL: jax.Array
    text_BL: jax.Array
    clip_B2: jax.Array
    masked_BLD: jax.Array | None = None
    target_BL: jax.Array | None = None


@flax.struct.dataclass(kw_only=True)
class Output(dual_encoder.Output):
    """What objectives take; logits in float32.

    match_M2: logits of pairs (class 1: they belong together), first of the B true ones. In training, those of each clip
    with a wrong text and of each text with a wrong clip follow. word_BLV: logits of the words, in training where the
    model masks some; word_target_BL: which are asked for, -1 where none is. caption_BLV: logits of each next word,
    where the model captions.
    """

    match_M2: jax.Array
    match_target_M: jax.Array
    word_BLV: jax.Array | None = None
    word_target_BL: jax.Array | None = None
    caption_BLV: jax.Array | None = None


@dataclass(frozen=True)
class Matching:
    """hard: draw negatives by likeness, or all alike. chunk: pairs that a device fuses at a time, 0 for all at once."""

    hard: bool = True
    chunk: int = 64

    def __post_init__(self) -> None:
        if self.chunk < 0:
            raise ValueError(f"model.matching.chunk is {self.chunk}; give a number of pairs, or 0 for all at once")


@dataclass(frozen=True)
class Words:
    """rate: share of the words that are masked, 0 for none. mask_id: the tokenizer's [MASK]. excluded: ids that are
    never asked for, beside padding and the first token of each text."""

    rate: float = 0.0
    mask_id: int | None = None
    excluded: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0.0 <= self.rate <= 1.0 or (self.rate and self.mask_id is None):
            raise ValueError(
                f"model.words masks the share rate={self.rate} with mask_id={self.mask_id}; give a rate from 0 to 1, "
                "and as mask_id the id that the tokenizer gives [MASK]"
            )


class WordHead(nn.Module):
    """Which word stands at a place, from its token: a dense layer and the rows of the word table (BERT)."""

    spec: TransformerSpec

    @nn.compact
    def __call__(self, x_BLD: jax.Array, words_VD: jax.Array) -> jax.Array:
        width, dtype = self.spec.width, self.spec.compute_dtype
        y_BLD = Linear((width,), (width,), ("embed", "joint"), dtype, name="dense")(x_BLD)
        y_BLD = LayerNorm(width, dtype, self.spec.epsilon, name="norm")(ACTIVATIONS[self.spec.activation](y_BLD))
        bias_V = parameter(self, "bias", nn.initializers.zeros, words_VD.shape[:1], ("vocab",))
        logits_BLV = jnp.einsum("BLD,VD->BLV", y_BLD, words_VD.astype(dtype), preferred_element_type=jnp.float32)
        return constrain(logits_BLV + bias_V[None, None], "batch", None, "vocab")


class Model(dual_encoder.Model):
    """Dual encoder with a fusion encoder.

    Beside the attributes of the dual encoder: fusion, how many `layers`, and what else `fusion_spec` takes; matching
    and words, the keys of Matching and Words. captions: guess each next word from the clip and the words before it, for
    which text tower and fusion encoder must be causal (LongViViT's auxiliary loss).
    """

    fusion: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"layers": 3})
    matching: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    words: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    captions: bool = False

    def setup(self) -> None:
        super().setup()
        self.how_to_match = call(Matching, self.matching, what="model.matching")
        self.how_to_mask = call(Words, self.words, what="model.words")
        spec = call(fusion_spec, self.fusion, what="model.fusion", text=self.text_encoder.spec)
        if self.captions and not (spec.causal and self.text_encoder.spec.causal):
            raise ValueError(
                "model.captions guesses the next word, which a text token that sees all others has seen; set "
                "causal=True in model.text.transformer and in model.fusion"
            )
        self.fusion_encoder = Fusion(spec, self.video_encoder.spec.width)
        self.match_head = Linear((spec.width,), (2,), ("embed", "joint"), jnp.float32)
        self.word_head = WordHead(spec)

    def encode(self, video_BTHWC: jax.Array, text_BL: jax.Array, *, train: bool, dials: Dials = OFF) -> Encoded:
        """What the towers make of each pair by itself."""
        if video_BTHWC.shape[0] != text_BL.shape[0]:
            raise ValueError(f"{video_BTHWC.shape[0]} clips and {text_BL.shape[0]} texts; they come in pairs")
        seen = self.video_encoder(video_BTHWC, train=train, dials=dials)
        read, masked_BLD, target_BL = self._read_texts(text_BL, train, dials)
        return Encoded(
            dual_encoder.unit(constrain(self.project_video(seen.pooled_BD), "batch", "act_embed")),
            dual_encoder.unit(constrain(self.project_text(read.pooled_BD), "batch", "act_embed")),
            tokens_BND=with_cls(seen),
            words_BLD=read.tokens_BLD,
            valid_BL=read.valid_BL,
            text_BL=text_BL,
            clip_B2=fingerprint(video_BTHWC),
            masked_BLD=masked_BLD,
            target_BL=target_BL,
        )

    def head(self, encoded: Encoded, *, train: bool, dials: Dials = OFF) -> Output:  # type: ignore[override]
        """What the objectives need of a whole batch of pairs. Without `train`, no wrong pairs are drawn."""
        joint = super().head(encoded, train=train, dials=dials)
        clips, texts, pairs = [encoded.tokens_BND], [(encoded.words_BLD, encoded.valid_BL)], [(0, 0)]
        if train:
            wrong_text_B, wrong_clip_B = self._negatives(encoded, joint.scale, dials)
            clips.append(rows(encoded.tokens_BND, wrong_clip_B))
            texts.append((rows(encoded.words_BLD, wrong_text_B), rows(encoded.valid_BL, wrong_text_B)))
            pairs += [(0, 1), (1, 0)]
        judged = len(pairs)
        masked_BLD = encoded.words_BLD if self.is_initializing() else encoded.masked_BLD
        asks_words = False
        if self.how_to_mask.rate and masked_BLD is not None:
            asks_words = True
            pairs.append((0, len(texts)))
            texts.append((masked_BLD, encoded.valid_BL))
        x_BPLD = self._fuse(clips, texts, pairs, dials)
        match_BP2 = self.match_head(x_BPLD[:, :judged, 0])
        batch = match_BP2.shape[0]
        return Output(
            **vars(joint),
            match_M2=match_BP2.swapaxes(0, 1).reshape(judged * batch, 2),
            match_target_M=(jnp.arange(judged * batch) < batch).astype(jnp.int32),
            word_BLV=self.word_head(x_BPLD[:, judged], self._word_table()) if asks_words else None,
            word_target_BL=encoded.target_BL,
            caption_BLV=self.word_head(x_BPLD[:, 0], self._word_table()) if self.captions else None,
        )

    def video_tokens(self, video_BTHWC: jax.Array, *, train: bool = False, dials: Dials = OFF) -> jax.Array:
        """What texts read of clips, float32 [B, N, D]; `match` and `kept` take it."""
        return with_cls(self.video_encoder(video_BTHWC, train=train, dials=dials)).astype(jnp.float32)

    def match(self, tokens_BND: jax.Array, text_BL: jax.Array, *, dials: Dials = OFF) -> jax.Array:
        """How surely clip and text of each row belong together, [B]: the logarithm of the odds."""
        logits_B2 = self.match_head(self._read(tokens_BND, text_BL, dials).x_BLD[:, 0])
        return logits_B2[:, 1] - logits_B2[:, 0]

    def kept(self, tokens_BND: jax.Array, text_BL: jax.Array, *, dials: Dials = OFF) -> jax.Array:
        """Which video tokens, counted without cls, each text leaves under the dial keep_text, [B, M]."""
        kept_BM = self._read(tokens_BND, text_BL, dials).kept_BM
        if kept_BM is None:
            raise ValueError(f"the dial keep_text is {dials.keep_text}, which leaves all tokens; give a rate below 1")
        return kept_BM

    def _read(self, tokens_BND: jax.Array, text_BL: jax.Array, dials: Dials) -> Fused:
        """Each text with its clip."""
        read = self.text_encoder(text_BL, train=False, dials=dials)
        return fuse(self, tokens_BND.astype(read.tokens_BLD.dtype), read.tokens_BLD, read.valid_BL, dials)

    def _read_texts(self, text_BL: jax.Array, train: bool, dials: Dials) -> tuple[Any, Any, Any]:
        """(what the text tower makes of the texts, of these with masked words, what was masked)."""
        if not (train and self.how_to_mask.rate):
            return self.text_encoder(text_BL, train=train, dials=dials), None, None
        masked_BL, target_BL = self._mask(text_BL, text.not_padding(text_BL), dials)
        # Both at once: rows 2i and 2i + 1 are of the same text, so each stays on its device.
        rows_B = jnp.arange(text_BL.shape[0]) if dials.rows_B is None else dials.rows_B
        both = dataclasses.replace(dials, rows_B=jnp.stack([2 * rows_B, 2 * rows_B + 1], axis=1).reshape(-1))
        both_RL = jnp.stack([text_BL, masked_BL], axis=1).reshape(-1, text_BL.shape[1])
        read = self.text_encoder(constrain(both_RL, "batch", None), train=train, dials=both)
        plain, masked = (jax.tree.map(lambda x, place=place: x[place::2], read) for place in (0, 1))
        return plain, masked.tokens_BLD, target_BL

    def _mask(self, text_BL: jax.Array, valid_BL: jax.Array, dials: Dials) -> tuple[jax.Array, jax.Array]:
        """(texts with masked words, what these were)."""
        if not self.has_rng("words"):
            raise ValueError("model.words masks words, which are drawn: call with rngs={'words': key}")
        keys = row_keys(self.make_rng("words"), dials.rows_B, text_BL.shape[0])
        return mask_words(keys, text_BL, valid_BL, vocab=self.vocab, **vars(self.how_to_mask))

    def _negatives(self, encoded: Encoded, scale: jax.Array, dials: Dials) -> tuple[jax.Array, jax.Array]:
        """(a wrong text for each clip, a wrong clip for each text)."""
        if not self.has_rng("negatives"):
            raise ValueError("matching draws wrong pairs: call with rngs={'negatives': key}")
        key, marks = self.make_rng("negatives"), (encoded.text_BL, encoded.clip_B2)
        sides = (encoded.video_BE, encoded.text_BE), (encoded.text_BE, encoded.video_BE)
        texts_B, videos_B = (
            draw_negatives(jax.random.fold_in(key, i), *side, scale, marks, dials.rows_B, hard=self.how_to_match.hard)
            for i, side in enumerate(sides)
        )
        return texts_B, videos_B

    def _fuse(
        self,
        clips: Sequence[jax.Array],
        texts: Sequence[tuple[jax.Array, jax.Array]],
        pairs: Sequence[tuple[int, int]],
        dials: Dials,
    ) -> jax.Array:
        """Text tokens [B, P, L, D] of each row's P pairs, which name a clip and a text, after fusion."""
        video_P, text_P = (np.array(numbers) for numbers in zip(*pairs, strict=True))

        def some(model: Model, clips_CVND: jax.Array, words_CTLD: jax.Array, valid_CTL: jax.Array) -> jax.Array:
            chosen = clips_CVND[:, video_P], words_CTLD[:, text_P], valid_CTL[:, text_P]
            tokens_MND, words_MLD, valid_ML = (x.reshape(-1, *x.shape[2:]) for x in chosen)
            x_MLD = fuse(model, constrain(tokens_MND, "batch", None, "act_embed"), words_MLD, valid_ML, dials).x_BLD
            return x_MLD.reshape(-1, len(pairs), *x_MLD.shape[1:])

        given = jnp.stack(clips, axis=1), *(jnp.stack(parts, axis=1) for parts in zip(*texts, strict=True))
        chunk = self.how_to_match.chunk
        pieces = Pieces.of(clips[0].shape[0], chunk // len(pairs))
        if not chunk or pieces.count == 1:
            return some(self, *given)
        # Lifted, so that the parts of the model may be called inside.
        scan = nn.scan(
            nn.remat(lambda model, carry, *piece: (carry, some(model, *piece)), prevent_cse=False),
            variable_broadcast="params",
            split_rngs={"params": False},
        )
        return pieces.join(scan(self, (), *map(pieces.cut, given))[1])

    def _word_table(self) -> jax.Array:
        """The rows of the text tower's words; looked up there, and here compared with."""
        return nn.unbox(self.text_encoder.words.get_variable("params", "table"))


def rows(x: jax.Array, row_B: jax.Array) -> Any:
    """These rows of an array of the whole batch, fetched from the devices that have them; gradients go back there."""

    def own(x_R: jax.Array, row_R: jax.Array, gather: Callable[[jax.Array], jax.Array]) -> Any:
        return jnp.take(gather(x_R), row_R, axis=0, mode="clip")

    return per_batch_shard(own, x, row_B)


def fuse(model: Any, tokens_BND: jax.Array, words_BLD: jax.Array, valid_BL: jax.Array, dials: Dials) -> Fused:
    """What texts become that read clips, in a model that has a video_encoder and a fusion_encoder."""
    encoder: video_model.Model = model.video_encoder
    globals = int(encoder.has_cls and not encoder.by_frame)
    fused: Fused = model.fusion_encoder(words_BLD, valid_BL, tokens_BND, keep=dials.keep_text, globals=globals)
    return fused


def with_cls(seen: video_model.Output) -> jax.Array:
    """All that texts read of clips: cls, where there is one of the whole clip, and the tokens."""
    tokens_BND = seen.tokens_BMD
    if seen.cls_BD is not None:
        tokens_BND = jnp.concatenate([seen.cls_BD[:, None].astype(tokens_BND.dtype), tokens_BND], axis=1)
    return constrain(tokens_BND, "batch", None, "act_embed")
