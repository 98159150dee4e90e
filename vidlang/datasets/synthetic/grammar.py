"""What can happen and be said in the corpus: objects, verbs, events, scenes, videos.

An *object* is a colour and a shape, an *event* is an object doing one verb for a while, a *scene* is a background and
the events that follow one another over it, a *video* is its scenes one after another. Only one object is ever on
screen, and only while its event lasts: the order of two events is the order in which their objects are seen.

Everything is integers: frames, thousandths of the frame's side, class ids.
"""

import dataclasses
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class Verb:
    """One action in the three forms that the annotations need."""

    third: str  # a red circle slides left
    base: str  # when does a red circle slide left
    other: str  # a red circle moves to the left


# The most distinct ones first: settings may keep only the first few of each.
COLOURS = ("red", "green", "blue", "yellow", "white", "purple", "cyan", "orange")
SHAPES = ("circle", "square", "triangle", "cross", "star", "ring")
VERBS = (
    Verb("slides left", "slide left", "moves to the left"),
    Verb("slides right", "slide right", "moves to the right"),
    Verb("grows", "grow", "becomes larger"),
    Verb("spins", "spin", "turns around"),
    Verb("slides up", "slide up", "moves to the top"),
    Verb("slides down", "slide down", "moves to the bottom"),
    Verb("shrinks", "shrink", "becomes smaller"),
    Verb("blinks", "blink", "flashes on and off"),
    Verb("vanishes", "vanish", "fades away"),
    Verb("bounces", "bounce", "jumps up and down"),
)
PATTERNS = ("stripes", "dots", "checks", "waves")


Key = tuple[int, int, int]  # colour, shape, verb: what an event is, apart from how and when it is shown


@dataclasses.dataclass(frozen=True)
class Event:
    """One object doing one verb: what the captions say, and how it looks. Lengths are thousandths of the side."""

    colour: int
    shape: int
    verb: int
    start: int  # frame inside the scene
    frames: int  # a whole number of cycles
    cycle: int  # frames of one run of the action
    x: int
    y: int
    radius: int
    tilt: int  # 1024 is a full turn
    texture: int

    @property
    def key(self) -> Key:
        """Colour, shape and verb."""
        return self.colour, self.shape, self.verb

    @property
    def noun(self) -> int:
        """Class of the object: one for every colour and shape."""
        return self.colour * len(SHAPES) + self.shape

    @property
    def action(self) -> int:
        """Class of verb and object together."""
        return self.verb * len(COLOURS) * len(SHAPES) + self.noun


@dataclasses.dataclass(frozen=True)
class Background:
    """A muted texture of two greys with a tint, which drifts."""

    pattern: int
    first: tuple[int, int, int]
    second: tuple[int, int, int]
    period: int  # thousandths of the side
    angle: int
    speed_x: int  # thousandths of the side a second
    speed_y: int


@dataclasses.dataclass(frozen=True)
class Scene:
    """Events that follow one another over one background; twins share `pair` and differ in the order only."""

    background: Background
    events: tuple[Event, ...]
    start: int  # frame inside the video
    frames: int
    pair: int  # -1 in long videos, which have no twins

    def twin(self) -> "Scene":
        """The same two events at the same places over the same background in the other order."""
        first, second = self.events
        events = (dataclasses.replace(second, start=0), dataclasses.replace(first, start=second.frames))
        return dataclasses.replace(self, events=events)


@dataclasses.dataclass(frozen=True)
class Video:
    """A named video of one split."""

    name: str
    split: str
    long: bool
    scenes: tuple[Scene, ...]

    @property
    def frames(self) -> int:
        """Length of the whole video."""
        return sum(scene.frames for scene in self.scenes)

    def events(self) -> Iterator[tuple[int, Event]]:
        """(first frame in the video, event), in the order of time."""
        for scene in self.scenes:
            for event in scene.events:
                yield scene.start + event.start, event
