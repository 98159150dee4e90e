"""Prompts: what stands before the text of an example, made from the columns of its row."""

from __future__ import annotations

import itertools
import string
from typing import Any

from vidlang.data.clips import ClipTable


class Prompt:
    """A template such as "question: {question} answer:"; a column's name stands in braces, a brace itself is doubled.

    Of a column with a list of texts, the first is taken.
    """

    def __init__(self, template: str) -> None:
        try:
            parts = [
                (words, name) for words, name, form, turn in string.Formatter().parse(template) if not (form or turn)
            ]
            whole = list(string.Formatter().parse(template))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"the prompt {template!r} is no template: {error}; double the braces that are words"
            ) from None
        if len(parts) != len(whole) or any(name == "" for _, name in parts):
            raise ValueError(
                f"the prompt {template!r} has braces without the name of a column, or with more than that in them; "
                "write {question}, and double the braces that are words"
            )
        self.template, self._parts = template, parts
        self.columns = tuple(name for _, name in parts if name is not None)

    def check(self, table: ClipTable) -> None:
        """ValueError where the table lacks a column of the template."""
        lacking = [name for name in self.columns if name not in table.columns]
        if lacking:
            raise ValueError(
                f"the prompt {self.template!r} asks for the column {lacking[0]!r}, and the table has "
                f"{', '.join(table.columns)}"
            )

    def of(self, table: ClipTable, row: int) -> str:
        """The prompt of a row."""
        told = ((words, "" if name is None else _words(table.cell(row, name))) for words, name in self._parts)
        return "".join(itertools.chain.from_iterable(told))


def _words(value: Any) -> str:
    if isinstance(value, list):
        value = value[0] if value else ""
    return "" if value is None else str(value)
