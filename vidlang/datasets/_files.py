"""Published files read into plain values: json, json lines and pickles, with errors that name file and place."""

from __future__ import annotations

import gc
import json
import math
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from vidlang.core.config import did_you_mean

KINDS = {str: "a text", float: "a number", int: "a whole number", list: "a list", dict: "an object", bool: "true/false"}

# Letters beyond the first 65,536 are two such numbers in JSON; one alone is none.
_ESCAPED = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(path: Path) -> Any:
    """The value of a JSON file."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # of JSON, and of text that is no UTF-8
        raise ValueError(f"{path} is not JSON: {error}; is the download complete?") from error


def read_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, value) of each line of a file of JSON lines; empty lines are skipped."""
    with path.open("rb") as file:
        for number, data in enumerate(file, start=1):
            where = f"{path}, line {number}"
            try:
                line = data.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{where}: not UTF-8, found {short(data[error.start :])}; save it as UTF-8") from error
            if line.strip():
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{where}: not JSON: {error}") from error
                if _ESCAPED.search(line):
                    _check_letters(value, where)
                yield f"line {number}", value


def _check_letters(value: Any, where: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = short(error.object[error.start : error.end])
        raise ValueError(f"{where}: {half} is half a letter (a lone surrogate), which no text may hold") from error


class _PlainUnpickler(pickle.Unpickler):
    """Numbers, texts, lists, tuples and dicts only: a pickle may otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        # Numbers that numpy computed are pickled through these three.
        if (module.replace("._core.", ".core."), name) == ("numpy.core.multiarray", "scalar"):
            return _plain_number
        if (module, name) in (("numpy", "dtype"), ("_codecs", "encode")):
            return np.dtype if module == "numpy" else _latin_bytes
        raise ValueError(f"it holds a {module}.{name}; only plain numbers, texts, lists and dicts are read")


def _plain_number(kind: np.dtype, data: bytes) -> Any:
    if kind.kind not in "biuf" or len(data) != kind.itemsize:
        raise ValueError(f"it holds a value of type {kind}; only plain numbers are read")
    return np.frombuffer(data, kind)[0].item()


def _latin_bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError(f"it holds bytes encoded as {encoding!r}, which no plain number has")
    return text.encode("latin1")


def read_pickle(path: Path) -> Any:
    """The plain value of a pickle; anything that could run code is refused."""
    # Millions of small objects come to life and none of them dies: looking for dead ones takes longer than reading.
    collecting = gc.isenabled()
    gc.disable()
    try:
        with path.open("rb") as file:
            return _PlainUnpickler(file).load()
    except Exception as error:  # a damaged pickle can raise almost anything
        raise ValueError(f"{path} cannot be read as a pickle of plain values: {error}") from error
    finally:
        if collecting:
            gc.enable()


def field(record: Any, key: str, kind: type, where: str, default: Any = ...) -> Any:
    """One value of a JSON object, of the kind it must have; `where` names the record in errors."""
    if not isinstance(record, Mapping):
        raise ValueError(f"{where}: expected an object, found {short(record)}")
    if key not in record:
        if default is not ...:
            return default
        raise ValueError(
            f"{where}: there is no {key!r}{did_you_mean(key, record)}; found {', '.join(record) or 'none'}"
        )
    value = record[key]
    if kind is float and isinstance(value, int):
        try:
            float(value)
        except OverflowError:
            raise ValueError(f"{where}: {key!r} must be a number below 1e308, found {short(value)}") from None
    fits = isinstance(value, (int, float) if kind is float else kind) and (kind is bool or not isinstance(value, bool))
    if not fits:
        raise ValueError(f"{where}: {key!r} must be {KINDS[kind]}, found {short(value)}")
    return value


def number(record: Any, key: str, where: str) -> float:
    """One number of a JSON object, which may be written as a text, as some publishers do."""
    value = record.get(key) if isinstance(record, Mapping) else None
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ValueError(f"{where}: {key!r} must be a number, found {short(value)}") from None
    else:
        value = float(field(record, key, float, where))
    if not math.isfinite(value):
        raise ValueError(f"{where}: {key!r} must be a number, found {value}")
    return value


def parse_ids(text: str, where: str) -> list[int]:
    """Whole numbers of a list written as text, such as "[192, 115]"; "" and "[]" are empty."""
    inner = text.strip().removeprefix("[").removesuffix("]").strip()
    try:
        return [int(part) for part in inner.split(",")] if inner else []
    except ValueError:
        raise ValueError(f"{where}: must be a list of whole numbers, found {short(text)}") from None


def open_text(path: Path) -> IO[str]:
    """A text file, without the mark that some programs put in front of UTF-8."""
    return path.open(encoding="utf-8-sig", errors="replace")


def short(value: Any) -> str:
    """A value as errors show it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
