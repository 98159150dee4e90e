"""Tell what a video shows among descriptions of your own, with no training for them.

python examples/classify.py runs/demo my_video.mp4 "a red circle spins" "a blue square grows"
"""

import sys

import vidlang


def main(model: str, video: str, *labels: str) -> None:
    """Prints the descriptions, the likeliest first."""
    [found] = vidlang.load(model).classify(video, labels, template="{}")
    for label, probability in found:
        print(f"{probability:.3f}  {label}")


if __name__ == "__main__":
    main(*sys.argv[1:])
