"""`cowfs top`: a table of threads and files, anew at each interval.

On a terminal it fills the screen, and keys change its order. Elsewhere, or with -C, one table comes
below the other; as JSON each is a line.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from cowfs.commands import columns, report
from cowfs.commands.columns import Column
from cowfs.observe.activity import Activity, Row

_COLUMNS = (
    *(Column("TID"), Column("PID"), Column("COMM"), Column("READS"), Column("WRITES")),
    *(Column("R_KB"), Column("W_KB"), Column("FAULTS"), Column("BY")),
    Column("FILE", columns.at_the_left),
)

_KEYS = {
    "a": "all",
    "r": "reads",
    "w": "writes",
    "R": "read-kb",
    "W": "written-kb",
    "f": "faults",
    "n": "file",
}
_ORDER: dict[str, Callable[[Row], Any]] = {
    "all": lambda row: (-row.read_bytes - row.written, -row.reads - row.writes - row.faults),
    "reads": lambda row: -row.reads,
    "writes": lambda row: -row.writes,
    "read-kb": lambda row: -row.read_bytes,
    "written-kb": lambda row: -row.written,
    "faults": lambda row: -row.faults,
    "file": lambda row: (row.mountpoints, row.path),
}


@dataclass(frozen=True)
class Choice:
    """Which rows to show. directory: a path in the copy. rows: at most so many; None: as many as
    the screen has room for, or all."""

    pid: int | None
    directory: str | None
    rows: int | None
    sort: str

    def of(self, rows: list[Row]) -> list[Row]:
        """Those in their order."""
        below = None if self.directory is None else os.path.normpath(self.directory).lstrip("/")
        chosen = [
            row
            for row in rows
            if self.pid in (None, row.pid) and (below is None or _is_below(row.path, below))
        ]
        order = _ORDER[self.sort]
        return sorted(chosen, key=lambda row: (order(row), row.path, row.tid))[: self.rows]


def run(
    mountpoint: str | None,
    choice: Choice,
    *,
    interval: float,
    count: int | None,
    clear: bool,
    as_json: bool,
    warn: Callable[[str], None],
) -> None:
    """Until the mount ends, count looks were shown, or it is interrupted. CowfsError."""
    full = clear and not as_json and sys.stdout.isatty() and sys.stdin.isatty()
    activity = Activity(mountpoint)
    try:
        for reason in activity.missing:
            if not (full or as_json):
                warn(f"not seen here: {reason}")
        activity.start(interval)
        with contextlib.suppress(KeyboardInterrupt):  # the usual way to end it
            if full:
                _fill_the_screen(activity, choice, interval, count)
            else:
                _print(activity, choice, interval, count, as_json=as_json)
    finally:
        activity.close()


def _print(
    activity: Activity, choice: Choice, interval: float, count: int | None, *, as_json: bool
) -> None:
    shown = 0
    while activity.records and (count is None or shown < count):
        began = time.monotonic()
        time.sleep(interval)
        rows = choice.of(activity.step(interval))
        if as_json:
            look = {
                "time": time.time(),
                "seconds": time.monotonic() - began,
                "missing": activity.missing,
                "lost": activity.lost,
                "rows": [row.as_json() for row in rows],
            }
            print(json.dumps(look), flush=True)
        else:
            print(f"{time.strftime('%H:%M:%S')} {_summary(rows, activity)}")
            columns.table(_COLUMNS, [_cells(row) for row in rows])
            print(flush=True)
        shown += 1


def _summary(rows: list[Row], activity: Activity) -> str:
    read, written = sum(row.read_bytes for row in rows), sum(row.written for row in rows)
    lost = f", {activity.lost} lost" if activity.lost else ""
    return f"read {report.human_size(read)}, written {report.human_size(written)}{lost}"


def _cells(row: Row) -> tuple[str, ...]:
    if len(row.mountpoints) == 1:
        file = os.path.join(row.mountpoints[0], row.path)
    else:
        file = f"{row.path} (in {len(row.mountpoints)} copies)"
    return (
        str(row.tid),
        str(row.pid or "-"),
        row.name or "-",
        str(row.reads),
        str(row.writes),
        str((row.read_bytes + 1023) // 1024),
        str((row.written + 1023) // 1024),
        str(row.faults),
        "cowfs" if row.served else "kernel",
        file,
    )


def _is_below(path: str, directory: str) -> bool:
    return directory in ("", ".") or path == directory or path.startswith(directory + "/")


# ---------------------------------------------------------------- the whole screen


def _fill_the_screen(
    activity: Activity, choice: Choice, interval: float, count: int | None
) -> None:
    from rich.console import Console
    from rich.live import Live

    shown, rows = 0, list[Row]()
    console = Console(highlight=False, markup=False)
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        while activity.records and (count is None or shown < count):
            until = time.monotonic() + interval
            while (left := until - time.monotonic()) > 0:
                key = pressed(left)
                if key == "q":
                    return
                if key in _KEYS:
                    choice = replace(choice, sort=_KEYS[key])
                    live.update(_screen(activity, rows, choice), refresh=True)
            rows = activity.step(interval)
            live.update(_screen(activity, rows, choice), refresh=True)
            shown += 1


def _screen(activity: Activity, rows: list[Row], choice: Choice) -> Any:
    from rich.text import Text

    size = shutil.get_terminal_size()
    chosen = choice.of(rows)
    lines = [f"{time.strftime('%H:%M:%S')} {_summary(chosen, activity)}; by {choice.sort}"]
    lines += [f"not seen here: {reason}" for reason in activity.missing]
    room = size.lines - len(lines) - 1
    lines += columns.lines(_COLUMNS, [_cells(row) for row in chosen[: max(room, 0)]], size.columns)
    cut = [report.printable(line)[: size.columns] for line in lines]
    return Text("\n".join(cut[: size.lines]), no_wrap=True, overflow="crop")


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Gives a call that waits for a key, at most so many seconds: "" when there was none."""
    import termios
    import tty

    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)

    def pressed(seconds: float) -> str:
        ready, _, _ = select.select([fd], [], [], seconds)
        return os.read(fd, 1).decode("ascii", "replace") if ready else ""

    tty.setcbreak(fd)
    try:
        yield pressed
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
