"""Let a captioner say what videos show.

python examples/caption.py runs/demo_caption one.mp4 two.mov
"""

import sys

import vidlang


def main(model: str, *videos: str) -> None:
    """Prints each video's name and its sentence, the best of four beams."""
    sentences = vidlang.load(model).caption(videos, how="beam", beams=4)
    for video, sentence in zip(videos, sentences, strict=True):
        print(f"{video}: {sentence}")


if __name__ == "__main__":
    main(*sys.argv[1:])
