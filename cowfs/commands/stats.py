"""`cowfs stats`: what mounts have done, as people, JSON and Prometheus read it.

At once it tells all since the mount began; at intervals what came in between, in columns.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from cowfs.commands import columns, report
from cowfs.commands.columns import Column
from cowfs.observe import exposition, sample
from cowfs.observe.sample import Sample

_REQUESTS = (
    *(Column("REQUEST"), Column("COUNT"), Column("FAILED"), Column("IN CHANNEL")),
    *(Column("MEAN"), Column("LONGEST")),
)


def samples(mountpoint: str | None) -> list[Sample]:
    """Of one mount, or of all, by mountpoint. CowfsError."""
    taken = [sample.take(record) for record in sample.records(mountpoint)]
    return sorted((one for one in taken if one is not None), key=lambda one: one.key[1])


def show(found: list[Sample]) -> None:
    """All since the mounts began, for people."""
    for number, one in enumerate(found):
        if number:
            print()
        for line in _lines(one):
            report.tell(line)
        rows = [_request_row(name, one) for name in sorted(one.requests)]
        if rows:
            columns.table(_REQUESTS, rows)


def show_json(found: list[Sample]) -> None:
    print(json.dumps([one.as_json() for one in found], indent=2))


def show_prometheus(found: list[Sample]) -> None:
    for line in exposition.lines(found):
        print(line)


def watch(mountpoint: str | None, interval: float, count: int | None, *, as_json: bool) -> None:
    """A line for each mount at each interval, until there is none, or it is interrupted."""
    before = {one.key: one for one in samples(mountpoint)}
    several = mountpoint is None
    # The same one from now on, whatever is mounted in its place later.
    wanted = None if several else set(before)
    shown = 0
    try:
        while before and (count is None or shown < count):
            time.sleep(interval)
            now = {one.key: one for one in samples(None) if wanted is None or one.key in wanted}
            if not as_json and now and shown % _LINES_OF_A_PAGE == 0:
                for line in _heads(several):
                    print(line)
            for key, one in now.items():
                if as_json:
                    print(json.dumps(one.as_json()))
                elif key in before:
                    print(_line(before[key], one, several=several))
            _flush()
            before = now
            shown += 1
    except KeyboardInterrupt:
        pass  # the usual way to end it


def _flush() -> None:
    print(end="", flush=True)


# ---------------------------------------------------------------- since the mount began


def _lines(one: Sample) -> Iterator[str]:
    record, cost = one.record, one.cost
    about = f"{record.mountpoint}: copy {record.copy}, cowfs {record.version or 'of old'}"
    if one.counts is None:
        yield f"{about}; the kernel's overlayfs serves it, and counts nothing"
        yield f"CPU time: {cost.cpu:.2f} s; attendant {report.human_size(cost.keeper_memory)}"
        return
    counts = one.counts
    yield f"{about}, taken over {report.count(one.takeovers, 'time')}"
    yield (
        f"requests: {one.total('count')}, {one.total('errors')} failed, "
        f"{one.total('answered_here')} answered by the channel"
    )
    opens, hits = one.request("OPEN", "count"), one.request("OPEN", "answered_here")
    yield f"opens: {opens}, {hits} of them repeat opens that the channel answered"
    unseen = "; passed-through bytes are not seen here" if counts["passthrough"] else ""
    yield (
        f"read: {_size(one, 'read_shared')} of shared files, {_size(one, 'read_private')} of "
        f"private ones; written: {_size(one, 'written')}; copied: {_size(one, 'copied')}{unseen}"
    )
    clones = one.tally("clones")
    took = ""
    if clones:
        mean = _milliseconds(one.tally("clone_ns") / clones)
        longest = _milliseconds(one.tally("clone_max_ns"))
        took = f", {report.count(clones, 'clone')} of {mean} on average, {longest} at most"
    yield f"copy-ups: {one.tally('copy_ups')}{took}"
    yield (
        f"now: {report.count(one.tally('nodes'), 'node')}, "
        f"{report.count(counts['files'], 'open file')}, "
        f"{report.count(counts['handles'], 'handle')}, {counts['passed']} passed through"
    )
    yield (
        f"CPU time: {cost.cpu:.2f} s; daemon {report.human_size(cost.daemon_memory)}, "
        f"keeper {report.human_size(cost.keeper_memory)}"
    )


def _request_row(name: str, one: Sample) -> tuple[str, ...]:
    count = one.request(name, "count")
    return (
        name,
        str(count),
        str(one.request(name, "errors")),
        str(one.request(name, "answered_here")),
        _milliseconds(one.request(name, "total_ns") / count),
        _milliseconds(one.request(name, "max_ns")),
    )


def _size(one: Sample, word: str) -> str:
    return report.human_size(one.tally(word))


def _milliseconds(nanoseconds: float) -> str:
    return f"{nanoseconds / 1e6:.3f} ms"


# ---------------------------------------------------------------- at intervals


class _Cell(NamedTuple):
    """value: of what has come between two samples, in so many seconds."""

    title: str
    width: int
    value: Callable[[Sample, Sample, float], str]


def _each_second(total: Callable[[Sample], int]) -> Callable[[Sample, Sample, float], str]:
    return lambda before, now, seconds: _number((total(now) - total(before)) / seconds)


def _bytes_each_second(word: str) -> Callable[[Sample, Sample, float], str]:
    def value(before: Sample, now: Sample, seconds: float) -> str:
        return report.compact_size(int((now.tally(word) - before.tally(word)) / seconds))

    return value


def _passed(_before: Sample, now: Sample, _seconds: float) -> str:
    return "unseen" if now.counts is not None and now.counts["passthrough"] else "-"


def _clone_time(before: Sample, now: Sample, _seconds: float) -> str:
    clones = now.tally("clones") - before.tally("clones")
    took = now.tally("clone_ns") - before.tally("clone_ns")
    return f"{took / clones / 1e6:.1f}" if clones else "-"


def _hits(before: Sample, now: Sample, _seconds: float) -> str:
    opens = now.request("OPEN", "count") - before.request("OPEN", "count")
    hits = now.request("OPEN", "answered_here") - before.request("OPEN", "answered_here")
    return f"{100 * hits / opens:.0f}%" if opens else "-"


def _files(_before: Sample, now: Sample, _seconds: float) -> str:
    return _number(now.counts["files"]) if now.counts is not None else "-"


def _cpu(before: Sample, now: Sample, seconds: float) -> str:
    return f"{100 * (now.cost.cpu - before.cost.cpu) / seconds:.0f}%"


def _memory(_before: Sample, now: Sample, _seconds: float) -> str:
    return report.compact_size(now.cost.daemon_memory + now.cost.keeper_memory)


# As those of dstat: 80 cells together.
_GROUPS = (
    ("req/s", (_Cell("all", 5, _each_second(lambda one: one.total("count"))),)),
    (
        "bytes/s by backing",
        (
            _Cell("shared", 6, _bytes_each_second("read_shared")),
            _Cell("private", 7, _bytes_each_second("read_private")),
            _Cell("written", 7, _bytes_each_second("written")),
            _Cell("passed", 6, _passed),
        ),
    ),
    (
        "copy-ups/s",
        (
            _Cell("all", 5, _each_second(lambda one: one.tally("copy_ups"))),
            _Cell("ms", 4, _clone_time),
        ),
    ),
    (
        "opens/s",
        (
            _Cell("all", 5, _each_second(lambda one: one.request("OPEN", "count"))),
            _Cell("hits", 4, _hits),
        ),
    ),
    (
        "now",
        (
            _Cell("nodes", 5, lambda _before, now, _seconds: _number(now.tally("nodes"))),
            _Cell("files", 5, _files),
        ),
    ),
    ("cost", (_Cell("cpu", 4, _cpu), _Cell("mem", 5, _memory))),
)
_LINES_OF_A_PAGE = 20


def _heads(several: bool) -> tuple[str, str]:
    groups, titles = [], []
    for name, cells in _GROUPS:
        width = sum(cell.width for cell in cells) + len(cells) - 1
        groups.append(name.center(width, "-"))
        titles.append(" ".join(cell.title.rjust(cell.width) for cell in cells))
    end = " mounted at" if several else ""
    return " ".join(groups), " ".join(titles) + end


def _line(before: Sample, now: Sample, *, several: bool) -> str:
    seconds = max(now.clock - before.clock, 1e-3)
    cells = [
        cell.value(before, now, seconds).rjust(cell.width) for _, cells in _GROUPS for cell in cells
    ]
    end = f" {report.printable(now.record.mountpoint)}" if several else ""
    return " ".join(cells) + end


def _number(value: float) -> str:
    """At most five characters."""
    for unit in ("", "k", "M", "G"):
        if value < (99_999.5 if not unit else 9_999.5):
            return f"{value:.0f}{unit}"
        value /= 1000
    return f"{value:.0f}T"
