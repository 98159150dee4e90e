"""A captioner small enough to train in a test, and video files as people have them."""

import av
import numpy as np

from vidlang.train import stages

TRANSFORMER = {"layers": 2, "width": 16, "heads": 2, "mlp": 16, "dtype": "float32"}
LANGUAGE = {"layers": 2, "width": 16, "heads": 2, "mlp": 16, "vocab": 128, "max_length": 20, "dtype": "float32"}


def corpus_at(root):
    """The data section of eight videos of four scenes."""
    corpus = {"name": "synthetic", "root": str(root), "train_videos": 4, "val_videos": 8, "long_videos": 0}
    return corpus | {"scenes_per_video": 4, "scene_seconds": 1.0, "size": 32, "workers": 1}


def train_captioner(workdir, corpus):
    """A run of two steps."""
    stage = {
        "name": "caption",
        "duration": "2 steps",
        "batch_size": 8,
        "model": {
            "name": "captioner",
            "video": {"transformer": TRANSFORMER, "tubelet": (2, 8, 8)},
            "language": LANGUAGE,
            "resampler": None,
            "train_language": True,
        },
        "dials": {"mask": 0.3},
        "data": {**corpus, "split": "train"},
        "clip": {
            "frames": 2,
            "size": 16,
            "times": {"name": "segments"},
            "crop": {"name": "center"},
            "text_length": 12,
        },
        "tokenizer": f"{corpus['root']}/tokenizer.json",
        "objective": {"name": "captioning"},
        # Gates of the cross-attention are closed at birth; so they open.
        "optimizer": {"learning_rate": 0.1},
    }
    stages.train({"name": "tiny", "seed": 0, "stages": (stage,)}, workdir)
    return workdir


def write_video(path, seconds, *, codec="libx264", fps=12, size=48, sound=False):
    """A drifting gradient, with a tone where wanted, in whatever container the name asks for."""
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=fps)
        video.width = video.height = size
        video.pix_fmt = "yuv420p"
        tone = container.add_stream("aac", rate=8000) if sound else None
        for number in range(int(seconds * fps)):
            rows = (np.arange(size) * 4 + number * 3) % 256
            frame = np.broadcast_to(rows[:, None, None], (size, size, 3)).astype(np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(video.encode())
        if tone is not None:
            _add_tone(container, tone, seconds)
    return path


def _add_tone(container, stream, seconds):
    for start in range(0, int(seconds * 8000), 1024):
        wave = np.sin(np.arange(start, start + 1024) / 8).astype(np.float32)[None]
        frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 8000, start
        container.mux(stream.encode(frame))
    container.mux(stream.encode())
