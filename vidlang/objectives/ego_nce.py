"""EgoNCE: contrastive learning where clips of the same action are right answers for each other.

Narrations of everyday life repeat themselves: "C cuts an onion" is said of thousands of clips. Two rows of the batch
are positive for each other when they share at least one verb and at least one noun (synonyms have one id), and each row
is positive for itself. Hard negatives of the same scene are no input of their own: they are rows of the batch like all
others. With clip.pairs="group" every second row is a partner from the scene of the row before it, so the batch is the
doubled one of the papers already: partners are candidates and queries, and positive where they show the same action.

What the public code computes and what the papers print differ, and `form` chooses:

- "code", of EgoVLP and all that build on it: for each row of the doubled batch, the log of the *sum* of its positives'
  probabilities, where partners are positives too; in both directions, which are added.
- "paper", equation 1 of SViTT-Ego, after EgoVLP's: from video to text only; every row of the doubled batch is a query,
  and all are candidates, but the positives are looked for among the originals. A partner that shows the same action is
  then a wrong answer, and a query that is a partner has, besides itself, originals of its action. The equation lacks
  the minus that makes it a loss, and its sum is empty for a row without tags; both are mended here, the latter as the
  code does: a row is always its own positive.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vidlang.objectives._pairs import MASKED, Rows, cosines, each_row, finds, pairs_of
from vidlang.objectives._rows import fixed, mean, need

TAGS = {"both": ("verbs", "nouns"), "verbs": ("verbs",), "nouns": ("nouns",)}
FORMS = ("code", "paper")
REDUCTIONS = ("sum", "mean")


def loss(
    outputs: Any,
    batch: Mapping[str, Any],
    *,
    tags: str = "both",
    form: str = "code",
    partners: bool | None = None,
    direction_reduction: str = "sum",
    chunk: int = 1024,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Minus the mean log probability that a video finds one of its positive texts, and a text one of its videos.

    `outputs` has video_BE, text_BE and the scale of their cosines: 20, and not learnable, in EgoVLP. `tags` says what
    positives must share: "both" a verb and a noun, or "verbs" or "nouns" alone; ids come as batch["verbs_BK"] and
    batch["nouns_BK"], padded with -1. `form`: see above. "paper" must be told whether every second row is a partner
    (`partners`, which is whether clip.pairs is "group"), and "code" does not ask. `direction_reduction` is "sum" or
    "mean" over the two directions of "code". `batch["valid_B"]`, `batch["weight_B"]` and `chunk` are as in contrastive.
    """
    for name, value, known in (
        ("tags", tags, TAGS),
        ("form", form, FORMS),
        ("direction_reduction", direction_reduction, REDUCTIONS),
    ):
        if value not in known:
            raise ValueError(f"ego_nce: {name} is {value!r}; it is one of {', '.join(known)}")
    if form == "paper" and partners is None:
        raise ValueError(
            'ego_nce: form="paper" takes positives among the originals only; say partners=True where clip.pairs is '
            '"group" and every second row is a partner, else partners=False'
        )
    if form == "code" and partners is not None:
        raise ValueError(
            f'ego_nce: partners is {partners}, but form="code" treats partners like all rows; leave it out'
        )
    if form == "paper" and direction_reduction != "sum":
        raise ValueError(
            'ego_nce: form="paper" has one direction, so there is nothing to take the mean of; leave '
            "direction_reduction out"
        )
    pairs = pairs_of(outputs, batch, "ego_nce")
    more = {name: _tags(batch, name, pairs.valid_B.shape[0], tags) for name in TAGS[tags]}
    ways = ("v2t", "t2v") if form == "code" else ("v2t",)
    row = _row(TAGS[tags], ways, originals_only=bool(partners))
    loss_BW, hit_BW, positives_B = each_row(row, pairs, chunk, more=more, scalars=(pairs.scale,))
    total = jnp.stack([mean(loss_BW[:, way], pairs.weight_B) for way in range(len(ways))]).sum()
    if direction_reduction == "mean":
        total = total / len(ways)
    even_B = pairs.valid_B.astype(jnp.float32)
    scalars = {f"accuracy_{name}": mean(hit_BW[:, way], even_B) for way, name in enumerate(ways)}
    scalars |= {"scale": pairs.scale, "positives": mean(positives_B, even_B)}
    return total, fixed(scalars)


def _tags(batch: Mapping[str, Any], name: str, rows: int, tags: str) -> jax.Array:
    """The ids of one kind of all rows, [B, K]."""
    field = f"{name}_BK"
    wanted = " and ".join(repr(each) for each in TAGS[tags])
    why = (
        f"ego_nce with tags={tags!r} finds positives by it: let clip.fields hold {wanted}, columns that the table must "
        "have"
    )
    tags_BK = jnp.asarray(need(batch, field, why))
    if tags_BK.ndim != 2 or tags_BK.shape[0] != rows or not jnp.issubdtype(tags_BK.dtype, jnp.integer):
        raise ValueError(
            f"{field} has a list of ids, padded with -1, for each of {rows} rows; found {tags_BK.dtype} of shape "
            f"{tags_BK.shape}"
        )
    return tags_BK


def _row(
    names: tuple[str, ...], ways: tuple[str, ...], *, originals_only: bool
) -> Callable[[Rows, Rows, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]:
    """What a row does: its losses and hits, [W] each, one for each way, and how many positives it has."""

    def row(own: Rows, whole: Rows, scale: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        positive_B = whole["valid"]
        for name in names:
            positive_B = positive_B & _shares_tag(own[name], whole[name])
        if originals_only:
            positive_B = positive_B & (whole["index"] % 2 == 0)
        positive_B = (positive_B | (whole["index"] == own["index"])) & whole["valid"]
        found = []
        for way in ways:
            query_E, candidate_BE = (own["video"], whole["text"]) if way == "v2t" else (own["text"], whole["video"])
            logit_B = jnp.where(whole["valid"], scale * cosines(query_E, candidate_BE), MASKED)
            # A difference of two logarithms: the probabilities themselves may be too small for a float.
            right = jax.nn.logsumexp(jnp.where(positive_B, logit_B, MASKED))
            found.append((jax.nn.logsumexp(logit_B) - right, finds(logit_B, positive_B)))
        losses, hits = zip(*found, strict=True)
        return jnp.stack(losses), jnp.stack(hits), positive_B.sum().astype(jnp.float32)

    return row


def _shares_tag(tag_K: jax.Array, tags_BK: jax.Array) -> jax.Array:
    """Which rows have one of these tags; -1 is none.

    Tag after tag and place after place, so that nothing is larger than one number a row, or [chunk, B] for a chunk.
    """

    def one_tag(found_B: jax.Array, tag: jax.Array) -> tuple[jax.Array, None]:
        def one_place(found_B: jax.Array, place_B: jax.Array) -> tuple[jax.Array, None]:
            return found_B | ((place_B == tag) & (tag >= 0)), None

        return jax.lax.scan(one_place, found_B, tags_BK.T)

    # Nowhere true, but made of the tags: as a constant it would be the same on all devices, and what is found is not.
    none_B = tags_BK[:, 0] < -1
    return jax.lax.scan(one_tag, none_B, tag_K)[0]
