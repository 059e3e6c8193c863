"""What the commands show people: numbers, ages, a progress bar, text that is safe to print.

Knows nothing about copies or mounts. rich is imported only where a terminal shows what it draws: it
takes longer to import than a mount takes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
import unicodedata
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TextIO, TypeVar

if TYPE_CHECKING:
    import rich.progress

_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_AGES = ((365 * 86400, "y"), (86400, "d"), (3600, "h"), (60, "m"), (1, "s"))


# What a message says to paste: from a colon on, until it goes on in words; and where help is.
_PROGRAM = "(?:(?:cowfs|mkdir|modprobe|sysctl|chmod|chown|systemctl|pip|apt) |u?mount [-/])"
_COMMAND = re.compile(rf"(?<=: ){_PROGRAM}.*?(?=; (?!{_PROGRAM})|, or |$)|cowfs(?: [\w-]+)? --help")


def printable(text: str) -> str:
    """One line without anything that a terminal would obey, or that is no character at all.

    File names are bytes that others chose: control characters, bidirectional overrides, surrogates
    (bytes that are not UTF-8, as os.fsdecode gives them) come out as backslash escapes.
    """
    return "".join(
        character if character.isprintable() else _escaped(character) for character in text
    )


def human_size(amount: int) -> str:
    """Bytes for people: "0 B", "1023 B", "1.0 KiB", "139.0 GiB"."""
    if amount < 1024:
        return f"{amount} B"
    value = float(amount)
    units = iter(_UNITS)
    unit = "B"
    while value >= 1023.95:  # what would be rounded to 1024.0 belongs to the next unit
        value /= 1024
        unit = next(units)
    return f"{value:.1f} {unit}"


def compact_size(amount: int) -> str:
    """The same in a column, at most five characters: "0", "1023", "1.0K", "139G"."""
    number, _, unit = human_size(amount).partition(" ")
    if unit == "B":
        return number
    return (number if float(number) < 10 else f"{float(number):.0f}") + unit[0]


def age(seconds: float) -> str:
    """How long ago, in the biggest unit that fits: "12s", "5m", "3h", "40d", "2y"."""
    whole = max(0, int(seconds))
    for length, letter in _AGES:
        if whole >= length:
            return f"{whole // length}{letter}"
    return "0s"


def count(number: int, singular: str, plural: str | None = None) -> str:
    """ "1 file", "2 files", "0 entries"."""
    return f"{number} {singular if number == 1 else plural or singular + 's'}"


def columns(out: TextIO) -> int | None:
    """How wide the terminal is that a stream leads to; None where it leads elsewhere."""
    try:
        return os.get_terminal_size(out.fileno()).columns or None if out.isatty() else None
    except (OSError, ValueError):
        return None


def display_width(text: str) -> int:
    """Cells that it takes on a terminal."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def folded(text: str, width: int | None, indent: str = "  ") -> list[str]:
    """The text in lines of at most *width* columns, broken between words; None: in one line.

    A command that is there to be pasted is not broken: it has a line of its own, and the terminal
    breaks one that is too long. So it does with a word.
    """
    if width is None or display_width(text) <= width:
        return [text]
    first, *words = _COMMAND.sub(lambda match: match[0].replace(" ", "\0"), text).split(" ")
    lines = [first]
    for word in words:
        longer = f"{lines[-1]} {word}"
        if display_width(longer) <= width:
            lines[-1] = longer
        elif word:
            lines.append(indent + word)
    return [line.rstrip().replace("\0", " ") for line in lines]


def tell(text: str, indent: str = "  ", out: TextIO | None = None) -> None:
    """Print a line so that a terminal need not break it, with nothing in it that one would obey."""
    out = out if out is not None else sys.stdout
    for line in folded(printable(text), columns(out), indent):
        out.write(line + "\n")


class SealingBar:
    """A progress bar on a terminal, once sealing turns out to take long. See cloning.Progress.

    Seconds that a user would not notice do not need it, and rich takes longer to import than many
    templates take to seal.
    """

    QUIET_SECONDS = 0.7

    def __init__(self, out: TextIO, doing: str = "sealing") -> None:
        self._out = out
        self._doing = doing
        self._started = time.monotonic()
        self._files = self._done = 0
        self._title = ""
        self._bar: rich.progress.Progress | None = None
        self._task: rich.progress.TaskID | None = None

    def begin(self, files: int, size: int) -> None:
        """*files* files, of *size* bytes, are to be done from here on."""
        self.close()
        self._files, self._done = files, 0
        self._title = f"{self._doing} {count(files, 'file')}, {human_size(size)}"

    def advance(self, files: int) -> None:
        """*files* more are done."""
        self._done += files
        if self._bar is None:
            if time.monotonic() - self._started < self.QUIET_SECONDS:
                return
            self._bar = self._draw()
            self._task = self._bar.add_task(self._title, total=self._files)
        assert self._task is not None
        # More may turn up than was known at the beginning.
        total = max(self._files, self._done)
        self._bar.update(self._task, completed=self._done, total=total)

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _draw(self) -> rich.progress.Progress:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            *self._numbers(),
            console=Console(file=self._out),
            transient=True,
        )
        bar.start()
        return bar

    def _numbers(self) -> Sequence[rich.progress.ProgressColumn]:
        from rich.progress import MofNCompleteColumn

        return (MofNCompleteColumn(),)


class WarmingBar(SealingBar):
    """The same, which counts bytes. See warm.Progress."""

    def begin(self, files: int, size: int) -> None:
        """*size* bytes of *files* files are to be read from here on."""
        super().begin(files, size)
        self._files = size

    def _numbers(self) -> Sequence[rich.progress.ProgressColumn]:
        return _numbers_of_bytes()


def _numbers_of_bytes() -> Sequence[rich.progress.ProgressColumn]:
    from rich.progress import DownloadColumn, ProgressColumn, TimeRemainingColumn
    from rich.text import Text

    class Speed(ProgressColumn):
        """In the units of all other sizes, which rich's own column is not."""

        def render(self, task: rich.progress.Task) -> Text:
            speed = task.finished_speed or task.speed
            shown = "?" if speed is None else f"{human_size(int(speed))}/s"
            return Text(shown, style="progress.data.speed")

    return DownloadColumn(binary_units=True), Speed(), TimeRemainingColumn()


def sealing_progress() -> contextlib.AbstractContextManager[SealingBar | None]:
    """What shows on stderr how far sealing is; None where nobody watches."""
    return _progress(SealingBar, "sealing")


def checking_progress() -> contextlib.AbstractContextManager[SealingBar | None]:
    """The same for `cowfs check`."""
    return _progress(SealingBar, "checking")


def warming_progress() -> contextlib.AbstractContextManager[WarmingBar | None]:
    """The same for `cowfs warm`, in bytes."""
    return _progress(WarmingBar, "reading")


def cloning_progress() -> contextlib.AbstractContextManager[SealingBar | None]:
    """The same for `cowfs clone`."""
    return _progress(SealingBar, "cloning")


_Bar = TypeVar("_Bar", bound=SealingBar)


@contextlib.contextmanager
def _progress(kind: type[_Bar], doing: str) -> Iterator[_Bar | None]:
    if not sys.stderr.isatty():
        yield None
        return
    bar = kind(sys.stderr, doing)
    try:
        yield bar
    finally:
        bar.close()


class ImportBar:
    """A progress bar of files and bytes, with the rate and the time left; importing.Progress."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._bar: rich.progress.Progress | None = None
        self._task: rich.progress.TaskID | None = None

    def begin(self, doing: str, files: int, size: int) -> None:
        """*files* files, of *size* bytes, are ahead."""
        self.close()
        self._bar = self._draw()
        self._task = self._bar.add_task(f"{doing} {count(files, 'file')}", total=size)

    def advance(self, files: int, size: int) -> None:  # noqa: ARG002 -- a Progress
        """*files* more files, of *size* bytes, are done."""
        assert self._bar is not None
        assert self._task is not None
        self._bar.advance(self._task, size)

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _draw(self) -> rich.progress.Progress:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            *_numbers_of_bytes(),
            console=Console(file=self._out),
            transient=True,
        )
        bar.start()
        return bar


class ImportLines:
    """The same as lines of JSON, at most two a second."""

    SECONDS = 0.5

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._doing = ""
        self._total = (0, 0)
        self._done = (0, 0)
        self._told = 0.0

    def begin(self, doing: str, files: int, size: int) -> None:
        """*files* files, of *size* bytes, are ahead."""
        self._doing, self._total, self._done = doing, (files, size), (0, 0)
        self._tell()

    def advance(self, files: int, size: int) -> None:
        """*files* more files, of *size* bytes, are done."""
        self._done = (self._done[0] + files, self._done[1] + size)
        if time.monotonic() - self._told >= self.SECONDS or self._done == self._total:
            self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        line = {
            "event": "progress",
            "doing": self._doing,
            "files": self._done[0],
            "total_files": self._total[0],
            "bytes": self._done[1],
            "total_bytes": self._total[1],
        }
        with contextlib.suppress(BrokenPipeError):  # nobody reads any more: the work goes on
            self._out.write(json.dumps(line) + "\n")
            self._out.flush()


@contextlib.contextmanager
def import_progress(as_json: bool) -> Iterator[ImportBar | ImportLines | None]:
    """What shows how far an import is: lines on stdout, a bar on a terminal, or nothing."""
    if as_json:
        yield ImportLines(sys.stdout)
        return
    if not sys.stderr.isatty():
        yield None
        return
    bar = ImportBar(sys.stderr)
    try:
        yield bar
    finally:
        bar.close()


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"  # the byte that it stands for
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
