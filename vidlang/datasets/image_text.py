"""Image-text pairs: images are videos of one frame, which a store of images holds.

| split | rows | files in `root` |
|---|---|---|
| any name, such as train | a line each | NAME.jsonl, which you write or download, beside any folder of images |
| a split of a TFDS dataset | an image each | the dataset's own folder, with dataset_info.json |

A line of NAME.jsonl is an object such as {"image": "cats/1.jpg", "caption": "a cat asleep"}; a caption may be a list of
several. `image_key` and `text_key` say how the file calls them (Hugging Face's image folders: "file_name" and "text").
An image is called by its path in the folder that was adopted as the store, less its suffix; see `_texts.naming`.

A TFDS dataset must be the one that the store was adopted from, the same split. `text_key` is then a feature of texts
(a nested one such as "captions/text"), or of classes: the text is the class's name, and `label` its number. Reading the
texts reads the whole dataset once, images too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vidlang.core.config import did_you_mean
from vidlang.data.chunks import ChunkStore, open_store
from vidlang.data.clips import ClipTable
from vidlang.data.stores.record_reader import RecordReader
from vidlang.data.stores.remote import open_folder
from vidlang.datasets._files import field, open_text, read_lines
from vidlang.datasets._tables import cached, checked_parts, published
from vidlang.datasets._texts import naming, texts

INFO = "dataset_info.json"
ORIGIN = (
    f"write it with a line such as {{'image': 'a.jpg', 'caption': '...'}}, or name a TFDS dataset's folder ({INFO})"
)
# Lines or records that are turned into columns at once.
ROWS = 1 << 16
Part = tuple[pa.Table, np.ndarray]
Row = dict[str, Any]


def load(
    split: str,
    *,
    root: str,
    store: str,
    image_key: str = "image",
    text_key: str = "caption",
    video_name: str = "{video}",
    bad_clips: str = "error",
) -> ClipTable:
    """One row an image, with its texts."""
    path, name = published(root, f"{split}.jsonl", INFO, origin=ORIGIN), naming(video_name)
    options = {"split": split, "image_key": image_key, "text_key": text_key, "video_name": video_name}

    def make() -> Iterator[pa.Table]:
        if path.name == INFO:
            rows, what = _records(path.parent, split, text_key, store), "record"
        else:
            rows, what = _lines(path, image_key, text_key, name), "line"
        return checked_parts(_parts(rows), store, bad_clips, lambda row: f"{path}, {what} {row}")

    return cached("image_text", [path], {**options, "bad_clips": bad_clips}, store, make)


def _lines(path: Path, image_key: str, text_key: str, name: Callable[[str], str]) -> Iterator[tuple[int, Row]]:
    for place, record in read_lines(path):
        where = f"{path}, {place}"
        video = name(field(record, image_key, str, where))
        yield int(place.removeprefix("line ")), {"video": video, "texts": texts(record, text_key, where)}


def _records(root: Path, split: str, text_key: str, store: str) -> Iterator[tuple[int, Row]]:
    """The texts of the records that the store's images are."""
    opened = open_store(store)
    shards = opened.header["shards"]
    if opened.kind != "images" or not shards or not all(f"-{split}.array_record" in shard for shard in shards):
        raise ValueError(
            f"the store {store!r} was not adopted from the split {split!r} of a TFDS dataset; adopt {str(root)!r} with "
            f"the layout 'tfds_images' and split={split!r}"
        )
    reader, classes = RecordReader(open_folder(root), shards), _classes(root, text_key)
    for video, number in zip(opened.videos, _first_records(opened), strict=True):
        record, where = reader.read(number), f"{root}, record {number}"
        if text_key not in record:
            hint = did_you_mean(text_key, record)
            raise ValueError(f"{where}: there is no feature {text_key!r}{hint}; found {', '.join(record) or 'none'}")
        yield number, {"video": video, **_told(record[text_key], classes, f"{where}, feature {text_key!r}")}


def _first_records(store: ChunkStore) -> list[int]:
    numbers: list[int] = store.columns["first_record"].to_pylist()
    return numbers


def _told(values: list[bytes] | list[int], classes: list[str], where: str) -> Row:
    told: list[str] = []
    for value in values:
        if isinstance(value, bytes):
            told.append(value.decode("utf-8", errors="replace"))
        elif 0 <= value < len(classes):
            return {"texts": [classes[value]], "label": value}
        else:
            raise ValueError(f"{where}: found {value}, and {len(classes)} names of classes in its .labels.txt")
    return {"texts": told}


def _classes(root: Path, feature: str) -> list[str]:
    """Names of the classes of a feature, which TFDS keeps in a file of their own; none for a feature of texts."""
    path = root / f"{feature.replace('/', '-')}.labels.txt"
    if not path.is_file():
        return []
    with open_text(path) as file:
        return file.read().splitlines()


def _parts(rows: Iterator[tuple[int, Row]]) -> Iterator[Part]:
    """Whole images: from their first moment to their end."""
    numbers: list[int] = []
    columns: dict[str, list[Any]] = {}
    for number, row in rows:
        numbers.append(number)
        for key, value in row.items():
            columns.setdefault(key, []).append(value)
        if len(numbers) == ROWS:
            yield _part(numbers, columns)
            numbers, columns = [], {}
    if numbers:
        yield _part(numbers, columns)


def _part(numbers: list[int], columns: dict[str, list[Any]]) -> Part:
    arrays = {name: pa.array(values, ClipTable.type_of(name)) for name, values in columns.items()}
    times = {"start": np.zeros(len(numbers)), "end": np.full(len(numbers), np.nan)}
    return pa.table({"video": arrays.pop("video"), **times, **arrays}), np.array(numbers)
