"""What can be known to be wrong before the first batch, each in one sentence."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vidlang.data.chunks import ChunkStore, open_store
from vidlang.data.clips import ClipTable
from vidlang.data.features.rows import RowFeatures
from vidlang.data.fields import Field, read_fields
from vidlang.data.plan import ClipSpec, Frames
from vidlang.data.prompts import Prompt
from vidlang.data.tokenizer import Tokenizer

# How many of the longest prompts are looked at: those of most letters may not be those of most tokens.
MOST_LETTERS = 16


def check_setup(table: ClipTable, tokenizer: Tokenizer | None, spec: ClipSpec) -> Frames:
    """Opens the table's store, or its features, after everything that a config can get wrong was looked at."""
    if tokenizer is None and spec.text_length:
        raise ValueError(
            f"clip.text_length is {spec.text_length} and there is no tokenizer; name one, or leave text_length out."
        )
    if tokenizer is not None and tokenizer.length != spec.text_length:
        raise ValueError(
            f"The tokenizer makes {tokenizer.length} tokens and clip.text_length is {spec.text_length}; make the "
            "tokenizer with Tokenizer(path, spec.text_length)."
        )
    if tokenizer is not None and spec.text not in table.columns:
        raise ValueError(
            f"clip.text is {spec.text!r}, and the table has no such column; it has {', '.join(table.columns)}."
        )
    if spec.prompt is not None:
        if tokenizer is None:
            raise ValueError(f"clip.prompt is {spec.prompt!r} and there is no tokenizer; name one, or leave it out.")
        _check_prompts(table, tokenizer, Prompt(spec.prompt))
    for field in read_fields(table, spec.fields):
        _check_field(table, field)
    if spec.text_only:
        return None
    if (features := spec.feature_spec) is not None:
        return RowFeatures(table, features)
    if table.store is None:
        raise ValueError("The clip table names no chunk store; build it with ClipTable.from_columns(..., store=path).")
    store = open_store(table.store)
    _check_videos(table, store)
    return store


def check_training(table: ClipTable, tokenizer: Tokenizer | None, spec: ClipSpec) -> Frames:
    """As check_setup, and where texts are learned from, every clip needs one."""
    store = check_setup(table, tokenizer, spec)
    if tokenizer is None:
        return store
    without = table.lengths("texts") == 0 if spec.text == "texts" else _empty(table, spec.text)
    if silent := int(without.sum()):
        raise ValueError(f"{silent} of {len(table)} clips have no text to train on; leave them out of the table.")
    return store


def _empty(table: ClipTable, column: str) -> np.ndarray:
    return pc.fill_null(pc.equal(table.arrow(column), ""), True).to_numpy()


def _check_prompts(table: ClipTable, tokenizer: Tokenizer, prompt: Prompt) -> None:
    """The prompts of most letters leave room for a text: looked at now, and not at the step at which one comes."""
    prompt.check(table)
    letters_N = np.zeros(len(table), np.int64)
    for name in prompt.columns:
        column = table.arrow(name)
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            letters_N += pc.fill_null(pc.utf8_length(column), 0).to_numpy()
    longest = np.argsort(-letters_N, kind="stable")[:MOST_LETTERS].tolist()
    tokenizer.encode_prompted([prompt.of(table, row) for row in longest], [""] * len(longest))


def _check_field(table: ClipTable, field: Field) -> None:
    """A field goes to the device, which has no 64-bit integers: what does not fit would become another number."""
    bounds, name, dtype = np.iinfo(np.int32), field.column, field.dtype
    if dtype.kind not in "iu" or dtype.itemsize < 4 or dtype == np.int32:
        return
    values = table.column(name)
    if bounds.min <= values.min() and values.max() <= bounds.max:
        return
    row = int(np.flatnonzero((values < bounds.min) | (values > bounds.max))[0])
    raise ValueError(
        f"Column {name!r} of the clip table has the value {values[row]} in clip {row}, and fields must fit into 32 "
        f"bits ({bounds.min} to {bounds.max}); number the values anew, or leave the column out of clip.fields."
    )


def _check_videos(table: ClipTable, store: ChunkStore) -> None:
    names = pc.unique(table.arrow("video"))
    absent = names.filter(pa.array(~store.contains_many(names)))
    if len(absent):
        raise ValueError(
            f"{len(absent)} videos of the clip table are not in the chunk store {table.store}, the first is "
            f"{pc.min(absent).as_py()!r}; precut them, or leave their clips out with table.only_videos(store.videos)."
        )
