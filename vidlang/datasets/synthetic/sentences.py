"""The sentences of the corpus. All of them are lower case, without punctuation, from one small vocabulary."""

from vidlang.datasets.synthetic.grammar import COLOURS, PATTERNS, SHAPES, VERBS, Event, Scene, Video

NUMBERS = "zero one two three four five six seven eight nine ten".split()
WHICH_FIRST = "which shape moves first"
WHICH_LAST = "which shape moves last"
HOW_MANY = "how many events happen"
WHAT_HAPPENS = "what happens"


def thing(event: Event) -> str:
    """The object without an article: red circle."""
    return f"{COLOURS[event.colour]} {SHAPES[event.shape]}"


def narration(event: Event) -> str:
    """What happens: a red circle slides left."""
    return f"{article(thing(event))} {VERBS[event.verb].third}"


def narrations(event: Event) -> list[str]:
    """The narration and a paraphrase in other words."""
    return [
        narration(event),
        f"{article(COLOURS[event.colour])} colored {SHAPES[event.shape]} {VERBS[event.verb].other}",
    ]


def article(words: str) -> str:
    """The words with their indefinite article."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def order_captions(scene: Scene) -> list[str]:
    """Caption of a scene of two events, and a paraphrase; only the order of its halves tells it from its twin's."""
    first, second = scene.events
    plain, other = narration(first), narration(second)
    return [f"{plain} then {other}", f"first {plain} and after that {other}"]


def summary(video: Video) -> str:
    """One paragraph about a whole video, place by place."""
    sentences = []
    for number, scene in enumerate(video.scenes):
        opening = "at first in a place with" if number == 0 else "after that in a place with"
        told = " and then ".join(narration(event) for event in scene.events)
        sentences.append(f"{opening} {PATTERNS[scene.background.pattern]} {told}")
    return " ".join(sentences)


def what_does(event: Event) -> str:
    """Asks for the verb."""
    return f"what does the {thing(event)} do"


def what_follows(event: Event) -> str:
    """Asks for the next event."""
    return f"what happens right after the {thing(event)} {VERBS[event.verb].third}"


def when_does(event: Event) -> str:
    """Asks for the seconds of an event."""
    return f"when does the {thing(event)} {VERBS[event.verb].base}"


def vocabulary() -> list[str]:
    """Texts with every word that the corpus can say, whatever its settings: the tokenizer never depends on them."""
    first, second = (Event(c, c, c, 0, 4, 4, 500, 500, 160, 0, 0) for c in (0, 1))
    frame = [
        WHICH_FIRST,
        WHICH_LAST,
        HOW_MANY,
        WHAT_HAPPENS,
        what_does(first),
        what_follows(first),
        when_does(first),
        "a an",
    ]
    frame += ["first and after that then colored at in place with", *narrations(second)]
    verbs = [f"{verb.third} {verb.base} {verb.other}" for verb in VERBS]
    return [*frame, *verbs, *COLOURS, *SHAPES, *PATTERNS, *NUMBERS]
