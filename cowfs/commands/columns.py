"""Tables for people: one line for each row, whatever is in it and however narrow the terminal is.

On a terminal the columns that may be cut share what the others leave, and what is cut shows an
ellipsis. Elsewhere nothing is cut.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TextIO

from cowfs.commands.report import display_width as width
from cowfs.commands.report import printable

_GAP = "  "
_LEAST = 8  # cells that are left of what is cut


class Column(NamedTuple):
    """cut: where its cells lose what has no room; None: they are never cut."""

    header: str
    cut: Callable[[str, int, str], str] | None = None


def table(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], out: TextIO | None = None
) -> None:
    """Print rows in columns; cells may hold anything."""
    out = out if out is not None else sys.stdout
    room = shutil.get_terminal_size().columns if out.isatty() else None
    for line in lines(columns, rows, room, _ellipsis(out)):
        out.write(line + "\n")


def lines(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], room: int | None, mark: str = "…"
) -> Iterator[str]:
    """The same, line by line; room: for so many cells, None: nothing is cut."""
    safe = [[printable(cell) for cell in row] for row in rows]
    everything = [[column.header for column in columns], *safe]
    widths = [max(width(line[index]) for line in everything) for index in range(len(columns))]
    if room is not None:
        _narrow(widths, columns, room)
    for line in everything:
        cells = [
            cell if column.cut is None or width(cell) <= has else column.cut(cell, has, mark)
            for cell, column, has in zip(line, columns, widths, strict=True)
        ]
        padded = (cell + " " * (has - width(cell)) for cell, has in zip(cells, widths, strict=True))
        yield _GAP.join(padded).rstrip()


def _narrow(widths: list[int], columns: Sequence[Column], room: int) -> None:
    """Take cells from the widest columns that may be cut, until all fit or nothing can go."""
    excess = sum(widths) + len(_GAP) * (len(widths) - 1) - room
    cut = [index for index, column in enumerate(columns) if column.cut is not None]
    while excess > 0:
        widest = max(cut, key=lambda index: widths[index], default=None)
        if widest is None or widths[widest] <= _LEAST:
            return
        widths[widest] -= 1
        excess -= 1


def at_the_left(text: str, room: int, mark: str) -> str:
    """For paths: their ends tell them apart."""
    return mark + _last(text, room - width(mark))


def in_the_middle(text: str, room: int, mark: str) -> str:
    """For names: begin and end may both tell."""
    left = (room - width(mark) + 1) // 2
    begin = ""
    for character in text:
        if width(begin + character) > left:
            break
        begin += character
    return begin + mark + _last(text, room - width(mark) - width(begin))


def _last(text: str, room: int) -> str:
    """As much of its end as there is room for."""
    end = ""
    for character in reversed(text):
        if width(character + end) > room:
            break
        end = character + end
    return end


def _ellipsis(out: TextIO) -> str:
    try:
        "…".encode(out.encoding or "ascii")
    except UnicodeEncodeError:
        return "..."
    return "…"
