"""A file of captions as JSON lines, which a command that was killed goes on with; `datasets.narrated` reads it.

The lines of one clip stand together, one for each of its samples, and are written at once.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from vidlang.data.clips import ClipTable
from vidlang.data.prompts import Prompt
from vidlang.serve.captions import Caption

Key = tuple[str, float, float, str]


class CaptionLines:
    """Captions in a file: those that are there, and new ones behind them."""

    def __init__(self, path: str | Path, samples: int = 1) -> None:
        """samples: lines of a clip. The file is not touched before there is something to write."""
        self.path, self._samples = Path(path), samples
        self._made, self._keep = self._read() if self.path.exists() else (Counter[Key](), 0)
        self._file: IO[bytes] | None = None

    def lacking(self, table: ClipTable, rows: Sequence[int], prompt: Prompt) -> np.ndarray:
        """Those of these rows that have no captions after their prompt yet, in order.

        Rows that are alike in all of this count one by one.
        """
        if not self._made:
            return np.array(rows, np.int64)
        found, left = [], Counter(self._made)
        for row in rows:
            video, start, end = (table.cell(row, name) for name in ("video", "start", "end"))
            key = _key(video, start, end, prompt.of(table, row))
            if left[key]:
                left[key] -= 1
            else:
                found.append(row)
        return np.array(found, np.int64)

    def add(self, captions: Sequence[Caption]) -> None:
        """Writes all captions of one clip, in place of what was not written to its end."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab")
            self._file.truncate(self._keep)
        self._file.write("".join(f"{_line(each)}\n" for each in captions).encode())
        self._file.flush()

    def close(self) -> None:
        """Ends the file."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> CaptionLines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> tuple[Counter[Key], int]:
        """(how many times each clip has all its captions, how many bytes of the file are worth keeping)."""
        made, group, keep, here = Counter[Key](), list[Key](), 0, 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                here += len(line)
                if not line.endswith(b"\n"):
                    break  # only the last line can be so
                group.append(self._key_of(line, number))
                if len(group) == self._samples:
                    if len(set(group)) > 1:
                        raise ValueError(
                            f"{self.path}, line {number}: the {self._samples} lines that end here are not of one clip; "
                            "give as many samples as it was made with, or another file"
                        )
                    made[group[0]] += 1
                    group, keep = [], here
        if len(set(group)) > 1:
            raise ValueError(
                f"{self.path} ends with less than {self._samples} lines of one clip; give as many samples as it was "
                "made with, or another file"
            )
        return made, keep

    def _key_of(self, line: bytes, number: int) -> Key:
        try:
            found = json.loads(line)
            found["caption"], found["score"]
            return _key(found["video"], found["start"], found["end"], found.get("prompt", ""))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self.path}, line {number} is no caption ({type(error).__name__}: {error}); give another file"
            ) from error


def _key(video: str, start: Any, end: Any, prompt: str) -> Key:
    return video, round(float(start), 6), round(float(end), 6), prompt


def _line(caption: Caption) -> str:
    values: dict[str, Any] = {"video": caption.video, "start": caption.start, "end": caption.end}
    values |= {"caption": caption.caption, "score": caption.score}
    return json.dumps(values | ({"prompt": caption.prompt} if caption.prompt else {}), ensure_ascii=False)
