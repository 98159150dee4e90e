"""All the choices that change the content of a corpus, checked."""

import dataclasses

from vidlang.datasets.synthetic.grammar import COLOURS, SHAPES, VERBS


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that changes the content of a corpus; its fingerprint names the folder."""

    train_videos: int
    val_videos: int
    long_videos: int  # minutes-long videos, so many for each split
    scenes_per_video: int  # of a train video; a val video is one scene
    scene_seconds: float  # a scene of two events
    long_seconds: float
    size: int
    fps: int
    colours: int
    shapes: int
    verbs: int
    seed: int

    def __post_init__(self) -> None:
        for name, most in (("colours", len(COLOURS)), ("shapes", len(SHAPES)), ("verbs", len(VERBS))):
            if not 3 <= getattr(self, name) <= most:
                raise ValueError(f"synthetic corpus: {name}={getattr(self, name)}, expected 3 to {most}")
        for name in ("train_videos", "val_videos"):
            if getattr(self, name) < 2 or getattr(self, name) % 2:
                raise ValueError(
                    f"synthetic corpus: {name}={getattr(self, name)}, expected an even number from 2 on, "
                    "because videos come as twins with the two orders of the same events"
                )
        if self.long_videos < 0 or self.scenes_per_video < 1 or self.seed < 0:
            raise ValueError(f"synthetic corpus: no count may be negative and scenes_per_video is at least 1: {self}")
        if self.size < 32 or self.size % 2:
            raise ValueError(f"synthetic corpus: size={self.size}, expected an even number of pixels from 32 on")
        if self.event_frames < 4:
            raise ValueError(
                f"synthetic corpus: scene_seconds={self.scene_seconds} at fps={self.fps} leaves {self.event_frames} "
                "frames for each of two events, expected 4 or more"
            )
        if self.long_seconds < 4 * self.scene_seconds:
            raise ValueError(
                f"synthetic corpus: long_seconds={self.long_seconds}, expected four scenes or more "
                f"({4 * self.scene_seconds} s)"
            )

    @property
    def event_frames(self) -> int:
        """Frames of one event of a short scene, and of one run of an action in a long video."""
        return int(round(self.scene_seconds * self.fps / 2))
