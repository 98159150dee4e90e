"""A JSON object that is too big for memory, entry by entry."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from vidlang.datasets._files import open_text

# Letters that are read at once; an entry may be longer.
BLOCK = 16 << 20
# No published entry comes near; a value that does not end by then is a mistake in the file.
LONGEST = 1 << 28
_SPACE = re.compile(r"[ \t\r\n]*")


def stream_object(path: Path) -> Iterator[tuple[str, Any]]:
    """(key, value) of each entry of the object that a file holds."""
    with open_text(path) as file:
        text = _Text(path, file)
        text.letter("{")
        if text.peek() == "}":
            text.letter("}")
        else:
            more = True
            while more:
                key = text.value()
                if not isinstance(key, str):
                    raise text.error(f"a name was expected, found {key!r}")
                text.letter(":")
                yield key, text.value()
                more = text.letter(",}") == ","
        if found := text.peek():
            raise text.error(f"{found!r} follows it")


class _Text:
    """The text of a file from some place on, with more of it where that is needed."""

    def __init__(self, path: Path, file: IO[str]) -> None:
        self._path, self._file = path, file
        self._text, self._place, self._ended = "", 0, False

    def letter(self, wanted: str) -> str:
        """The next letter, which must be one of these."""
        found = self.peek()
        if not found or found not in wanted:
            raise self.error(f"{' or '.join(wanted)} was expected, found {found or 'the end'!r}")
        self._place += 1
        return found

    def value(self) -> Any:
        """The next value."""
        self.peek()
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self._text, self._place)
            except RecursionError as error:
                raise self.error("its lists or objects lie too deep in one another") from error
            except ValueError as error:
                if self._ended or len(self._text) - self._place > LONGEST:
                    raise self.error(str(error)) from error
            else:
                # A number may go on where the text that was read ends.
                if end < len(self._text) or self._ended:
                    self._place = end
                    return value
            self._more()

    def peek(self) -> str:
        """The next letter that is no white space; nothing at the end of the file."""
        while True:
            found = _SPACE.match(self._text, self._place)
            assert found is not None, "no space is a match too"
            self._place = found.end()
            if self._place < len(self._text) or self._ended:
                return self._text[self._place : self._place + 1]
            self._more()

    def _more(self) -> None:
        added = self._file.read(BLOCK)
        self._text, self._place, self._ended = self._text[self._place :] + added, 0, not added

    def error(self, reason: str) -> ValueError:
        """What to raise."""
        return ValueError(f"{self._path} is not one JSON object: {reason}; is the download complete?")
