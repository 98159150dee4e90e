"""ActivityNet Captions: 20,000 videos of two minutes on average, with a sentence for each of some overlapping events.

| split | videos | sentences | file in `root` |
|---|---|---|---|
| train | 10,009 | 37,421 | train.json |
| val1 | 4,917 | 17,505 | val_1.json |
| val2 | 4,885 | 17,031 | val_2.json |

val1 and val2 are two people's annotations of the same videos. The files come from the dataset's pages (Krishna et al.,
"Dense-captioning events in videos"); videos are called v_..., as ActivityNet's files are. A handful of the published
events end before they start or lie beyond their video: read them with bad_clips="drop".

Protocols: clips="segments" is captioning event by event. clips="videos" is paragraph retrieval, and summaries: the
text is all sentences of a video with `joiner` between them. `first_seconds` keeps only that much of each clip:
LongViViT retrieves on val1 with the first 16 s, which no other work does; 0 keeps everything.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vidlang.data.clips import ClipTable
from vidlang.datasets._files import field, read_json
from vidlang.datasets._tables import Rows, cached, choose, published
from vidlang.datasets._texts import first_end, items, naming, paragraph, span, texts

FILES = {"train": "train.json", "val1": "val_1.json", "val2": "val_2.json"}
CLIPS = ("segments", "videos")
ORIGIN = "ActivityNet Captions come from the dataset's pages"


def load(
    split: str,
    *,
    root: str,
    store: str,
    clips: str = "segments",
    joiner: str = " ",
    first_seconds: float = 0,
    video_name: str = "{video}",
    bad_clips: str = "error",
) -> ClipTable:
    """Events (`id` is VIDEO_NUMBER) or whole videos (`id` is the video's name)."""
    choose("split of ActivityNet Captions", split, list(FILES))
    choose("clips of ActivityNet Captions", clips, CLIPS)
    path, name, first = published(root, FILES[split], origin=ORIGIN), naming(video_name), first_end(first_seconds)
    options = {"split": split, "clips": clips, "joiner": joiner, "first_seconds": first_seconds}
    options |= {"video_name": video_name, "bad_clips": bad_clips}

    def make() -> ClipTable:
        return _rows(path, name, joiner if clips == "videos" else None, first).table(store, bad_clips)

    return cached("activitynet_captions", [path], options, store, make)


def _rows(path: Path, name: Callable[[str], str], joiner: str | None, first: float | None) -> Rows:
    rows = Rows(path)
    for place, where, key, entry in items(read_json(path), dict, path, "video"):
        sentences, times = texts(entry, "sentences", where), field(entry, "timestamps", list, where)
        if len(sentences) != len(times):
            raise ValueError(f"{where}: it has {len(sentences)} sentences and {len(times)} timestamps")
        if joiner is not None:
            length = field(entry, "duration", float, where)
            end = first if first is not None and first < length else None
            rows.add(place, video=name(key), end=end, texts=[paragraph(sentences, joiner)], id=key)
            continue
        for number, (sentence, time) in enumerate(zip(sentences, times, strict=True)):
            start, end = span(time, f"{where}: timestamp {number}")
            if first is not None:
                end = min(end, start + first)
            inside = f"{place}, sentence {number}"
            rows.add(inside, video=name(key), start=start, end=end, texts=[sentence], id=f"{key}_{number}")
    return rows
