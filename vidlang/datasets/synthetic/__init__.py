"""The embedded corpus: small videos of shapes that act one after another, with every kind of annotation.

It is a real dataset in small: H.264 videos, cut into a chunk store by the same code as a user's own, clips in
ClipTables. A grammar decides what happens before anything is drawn, so all annotations are true.

| annotations | one row is | columns besides video, start, end, texts |
|---|---|---|
| pairs | a scene of two events, with a twin in the other order | verbs, nouns, group, choices, answer, kind |
| narrations | an event, with a paraphrase | verbs, nouns, label, group (the scene) |
| classes | an event | verbs, nouns, label (the action: verb and object) |
| multiple_choice | an event and five narrations | question, choices, answer, kind (inter or intra video) |
| questions | a question about a scene, a run of events or a long video | question, choices, answer, kind |
| summaries | a minutes-long video and a paragraph | verbs, nouns, choices, answer |
| open_questions | those of them that a short list of answers answers, `answer_list` | question, answers, answer, kind |
| spans | a query whose answer is the seconds of an event in a long video | question, verbs, nouns |

Train videos are several scenes of two events, one after another; a val video is one scene. No pair of events of a val
scene occurs in a train scene, though each event does. `long_videos` minutes-long ones come on top, for each split.
"""

from pathlib import Path

from vidlang.core.config import did_you_mean
from vidlang.data.clips import ClipTable
from vidlang.datasets.synthetic.annotations import KINDS, SPLITS, answer_list
from vidlang.datasets.synthetic.corpus import ensure, ensure_tokenizer, table_path
from vidlang.datasets.synthetic.parsing import parse_events
from vidlang.datasets.synthetic.settings import Settings

__all__ = ["answer_list", "load", "parse_events", "tokenizer_path"]


def load(
    split: str,
    *,
    root: str,
    annotations: str = "pairs",
    train_videos: int = 400,
    val_videos: int = 240,
    long_videos: int = 4,
    scenes_per_video: int = 6,
    scene_seconds: float = 4.0,
    long_seconds: float = 180.0,
    size: int = 80,
    fps: int = 8,
    colours: int = 8,
    shapes: int = 6,
    verbs: int = 10,
    seed: int = 0,
    workers: int = 2,
) -> ClipTable:
    """Clips of one split with one kind of annotation; the whole corpus is made at the first call for its settings.

    The same settings give the same corpus for both splits and all annotations; `workers` processes make it. The
    tokenizer of its words is written to `root`/tokenizer.json.
    """
    _check(split, annotations, workers)
    settings = Settings(
        train_videos=train_videos,
        val_videos=val_videos,
        long_videos=long_videos,
        scenes_per_video=scenes_per_video,
        scene_seconds=float(scene_seconds),
        long_seconds=float(long_seconds),
        size=size,
        fps=fps,
        colours=colours,
        shapes=shapes,
        verbs=verbs,
        seed=seed,
    )
    ensure_tokenizer(tokenizer_path(root))
    path = table_path(ensure(Path(root), settings, workers), split, annotations)
    if not path.exists():
        raise ValueError(
            f"synthetic corpus: these settings give no {annotations!r} for {split!r}, which takes long "
            f"videos or more videos; found {long_videos=}, {train_videos=} and {val_videos=}"
        )
    return ClipTable.open(path)


def _check(split: str, annotations: str, workers: int) -> None:
    for what, value, known in (("split", split, SPLITS), ("annotations", annotations, tuple(KINDS))):
        if value not in known:
            hint = did_you_mean(value, known)
            raise ValueError(f"synthetic corpus: unknown {what} {value!r}{hint}; there are: {', '.join(known)}")
    if workers < 1:
        raise ValueError(f"synthetic corpus: workers={workers}, expected 1 (this process) or more")


def tokenizer_path(root: str) -> Path:
    """Where `load` writes the tokenizer, whatever the other settings."""
    return Path(root) / "tokenizer.json"
