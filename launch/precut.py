"""Cuts a folder of videos into a chunk store.

    python -m launch.precut --input=VIDEOS --output=STORE --workers=8

Takes about 3 s a core for each 15 s of video. Videos that cannot be read are left out, listed in STORE/failed.jsonl,
and make the exit code 1; without a store it is 2.
"""

from fractions import Fraction

from absl import flags

from launch import cli
from vidlang.data.precut import PrecutSettings, precut

HOUSE = PrecutSettings()
INPUT = flags.DEFINE_string("input", None, "Folder of videos; subfolders are searched too.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "The new store; the folder must not exist.", required=True)
FPS = flags.DEFINE_string("fps", str(HOUSE.fps), "Frames a second in the store, such as 30 or 30000/1001.")
SHORT_SIDE = flags.DEFINE_integer("short_side", HOUSE.short_side, "Shorter side in pixels; nothing is enlarged.")
CHUNK_SECONDS = flags.DEFINE_float("chunk_s", HOUSE.chunk_seconds, "Seconds of a chunk.")
WORKERS = flags.DEFINE_integer("workers", 1, "Processes that cut videos.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a store that exists.")


def main(argv: list[str]) -> None:
    """Reads the flags, cuts, and says what failed."""
    del argv
    try:
        exact = Fraction(FPS.value)
        fps = int(exact) if exact.denominator == 1 else exact
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"--fps must be a number such as 30 or 30000/1001, got {FPS.value!r}") from None
    settings = PrecutSettings(chunk_seconds=CHUNK_SECONDS.value, fps=fps, short_side=SHORT_SIDE.value)
    report = precut(
        INPUT.value, OUTPUT.value, settings, workers=WORKERS.value, overwrite=OVERWRITE.value, progress=_print
    )
    print(f"{len(report.done)} videos in {OUTPUT.value}")
    if report.failed:
        raise SystemExit(f"{len(report.failed)} of the videos could not be read; {OUTPUT.value}/failed.jsonl says why")


def _print(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    cli.run(main)
