"""Paints a scene: a shape with an outline and a texture acts over a drifting textured background.

The same pixels come out on every machine: sines are read from a table of rounded integers, and everything else is
float32 arithmetic that IEEE 754 defines exactly (add, multiply, divide, square root, floor), element by element.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np

from vidlang.datasets.synthetic.grammar import PATTERNS, SHAPES, VERBS, Background, Event, Scene, Video

RGB = np.array(  # in the order of grammar.COLOURS
    [
        (225, 20, 30),
        (15, 165, 50),
        (30, 60, 235),
        (250, 225, 20),
        (248, 248, 248),
        (165, 35, 190),
        (30, 215, 225),
        (250, 130, 10),
    ],
    np.float32,
)
TURN = 1024  # steps of a full turn
SINE = np.array([round(math.sin(2 * math.pi * step / TURN) * 2**14) for step in range(TURN)], np.float32) / 2**14
BLOCK = 64  # frames painted at once: large enough for numpy, small enough for the cache


def sin(turns: np.ndarray) -> np.ndarray:
    """Sine of an angle in steps of 1/1024 turn."""
    return SINE[turns % TURN]


def cos(turns: np.ndarray) -> np.ndarray:
    """Cosine of an angle in steps of 1/1024 turn."""
    return SINE[(turns + TURN // 4) % TURN]


def render_video(video: Video, size: int, fps: int) -> Iterator[np.ndarray]:
    """Frames of a video, uint8 [H, W, C]."""
    for scene in video.scenes:
        for first in range(0, scene.frames, BLOCK):
            yield from render_scene(scene, np.arange(first, min(first + BLOCK, scene.frames)), size, fps)


def render_scene(scene: Scene, frames_T: np.ndarray, size: int, fps: int) -> np.ndarray:
    """The given frames of one scene, uint8 [T, H, W, C]."""
    canvas_THWC = paint_background(scene.background, frames_T, size, fps)
    for event in scene.events:
        inside_T = np.flatnonzero((frames_T >= event.start) & (frames_T < event.start + event.frames))
        if len(inside_T):
            shown = slice(inside_T[0], inside_T[-1] + 1)
            paint_event(canvas_THWC[shown], event, frames_T[shown] - event.start, size)
    return canvas_THWC


def paint_background(background: Background, frames_T: np.ndarray, size: int, fps: int) -> np.ndarray:
    """A two-coloured texture that drifts with constant speed, uint8 [T, H, W, C]."""
    axis = np.arange(size, dtype=np.float32)
    shift = np.float32(size / 1000 / fps) * frames_T.astype(np.float32)
    x_TW = axis - shift[:, None] * np.float32(background.speed_x)
    y_TH = axis - shift[:, None] * np.float32(background.speed_y)
    c, s = cos(np.array(background.angle)), sin(np.array(background.angle))
    scale = np.float32(1000 / (size * background.period))
    u_THW = wrap((x_TW * (c * scale))[:, None, :] + (y_TH * (s * scale))[:, :, None])
    v_THW = wrap((y_TH * (c * scale))[:, :, None] - (x_TW * (s * scale))[:, None, :])
    share_THW = TEXTURES[PATTERNS[background.pattern]](u_THW, v_THW)
    first, second = np.array(background.first, np.float32), np.array(background.second, np.float32)
    ramp = np.linspace(0, 1, 256, dtype=np.float32)[:, None]
    shades = (first + ramp * (second - first) + np.float32(0.5)).astype(np.uint8)
    return shades.take((share_THW * np.float32(255)).astype(np.uint8), axis=0)


def wrap(value: np.ndarray) -> np.ndarray:
    """The fractional part (much faster than the % of floats)."""
    return value - np.floor(value)


def soft(value: np.ndarray, steepness: float) -> np.ndarray:
    """0 below zero, 1 above, with a ramp between so that edges do not flicker."""
    return np.clip(value * np.float32(steepness) + np.float32(0.5), 0, 1)


def _stripes(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return soft(np.abs(u - np.float32(0.5)) - np.float32(0.25), 12)


def _dots(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    u, v = u - np.float32(0.5), v - np.float32(0.5)
    return soft(np.float32(0.09) - (u * u + v * v), 20)


def _checks(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    u, v = np.abs(u - np.float32(0.5)) - np.float32(0.25), np.abs(v - np.float32(0.5)) - np.float32(0.25)
    return soft(u * v, 120)


def _waves(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.abs(u - np.float32(0.5)) * np.float32(2)


TEXTURES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "stripes": _stripes,
    "dots": _dots,
    "checks": _checks,
    "waves": _waves,
}


def paint_event(canvas_THWC: np.ndarray, event: Event, frames_T: np.ndarray, size: int) -> None:
    """Paints the event's object into the canvas as it stands in each of its frames."""
    x_T, y_T, scale_T, turn_T, alpha_T = pose(event, frames_T)
    x_T, y_T, radius_T = (value * np.float32(size) for value in (x_T, y_T, scale_T * np.float32(event.radius / 1000)))
    reach_T = radius_T * np.float32(1.5) + 2  # only the part of the canvas where the object can be is computed
    left, right = max(0, int((x_T - reach_T).min())), min(size, int((x_T + reach_T).max()) + 1)
    top, bottom = max(0, int((y_T - reach_T).min())), min(size, int((y_T + reach_T).max()) + 1)
    x_THW = (np.arange(left, right, dtype=np.float32) + np.float32(0.5) - x_T[:, None])[:, None, :]
    y_THW = (np.arange(top, bottom, dtype=np.float32) + np.float32(0.5) - y_T[:, None])[:, :, None]
    c, s, radius = cos(turn_T)[:, None, None], sin(turn_T)[:, None, None], radius_T[:, None, None]
    u_THW, v_THW = (x_THW * c + y_THW * s) / radius, (y_THW * c - x_THW * s) / radius
    inside_THW = -distance(SHAPES[event.shape], u_THW, v_THW) * radius  # pixels from the edge, positive inside
    outline = np.float32(max(1.0, size / 64))
    cover_THW = np.clip(inside_THW + np.float32(0.5), 0, 1) * alpha_T[:, None, None]
    fill_THW = np.clip(inside_THW - outline + np.float32(0.5), 0, 1)
    texture = (_stripes, _checks)[event.texture]
    marks_THW = texture(wrap((u_THW + np.float32(0.2)) * np.float32(0.8)), wrap(v_THW * np.float32(0.8)))
    light_THW = fill_THW * (np.float32(0.88) - np.float32(0.25) * marks_THW) + np.float32(0.12)
    for channel, level in enumerate(RGB[event.colour]):  # numpy is slow over a last axis of three
        region_THW = canvas_THWC[:, top:bottom, left:right, channel]
        blend_THW = region_THW + cover_THW * (light_THW * level - region_THW)
        region_THW[:] = (blend_THW + np.float32(0.5)).astype(np.uint8)


def distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance to the outline of a shape of about unit radius (v points down), negative inside."""
    if shape == "circle":
        return np.sqrt(u * u + v * v) - np.float32(0.95)
    if shape == "ring":
        return np.abs(np.sqrt(u * u + v * v) - np.float32(0.72)) - np.float32(0.3)
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - np.float32(0.82)
    if shape == "cross":
        a, b = np.abs(u), np.abs(v)
        return np.maximum(np.maximum(a, b) - np.float32(1), np.minimum(a, b) - np.float32(0.33))
    if shape == "triangle":
        return np.maximum(v - np.float32(0.65), np.float32(0.866) * np.abs(u) - np.float32(0.5) * v - np.float32(0.6))
    # A star is where at most one of the five sides of a pentagon is left behind.
    corners = np.arange(5) * TURN // 5
    first = second = np.full_like(u, -np.inf)
    for c, s in zip(cos(corners), sin(corners), strict=True):
        side = u * s + v * c - np.float32(0.42)
        first, second = np.maximum(first, side), np.maximum(second, np.minimum(first, side))
    return second


def pose(event: Event, frames_T: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Centre x, y (shares of the side), scale, turn (1/1024) and opacity of the object in each frame."""
    count = len(frames_T)
    phase = ((frames_T % event.cycle) * 2 + 1).astype(np.float32) / np.float32(2 * event.cycle)
    x, y = np.full(count, event.x / 1000, np.float32), np.full(count, event.y / 1000, np.float32)
    scale, alpha = np.ones(count, np.float32), np.ones(count, np.float32)
    turn = np.full(count, event.tilt)
    verb = VERBS[event.verb].base
    across = np.float32(0.25) + np.float32(0.5) * phase  # from one side to the other
    if verb == "slide right":
        x = across
    elif verb == "slide left":
        x = 1 - across
    elif verb == "slide down":
        y = across
    elif verb == "slide up":
        y = 1 - across
    elif verb == "grow":
        scale = np.float32(0.45) + np.float32(1.05) * phase
    elif verb == "shrink":
        scale = np.float32(1.5) - np.float32(1.05) * phase
    elif verb == "spin":  # half a turn: a whole one in four frames would leave squares and crosses as they were
        turn = turn + (phase * np.float32(TURN / 2)).astype(np.int64)
    elif verb == "blink":
        alpha = 1 - np.floor(phase * np.float32(5)) % 2
    elif verb == "vanish":
        alpha = 1 - phase
    else:  # bounce: three hops
        y = np.float32(0.7) - np.float32(0.4) * np.abs(sin((phase * np.float32(1.5 * TURN)).astype(np.int64)))
    return x, y, scale, turn, alpha
