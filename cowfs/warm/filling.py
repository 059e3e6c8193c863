"""Filling the page cache with files, in parallel.

First it is asked what is in memory already, then the rest is read into buffers that are thrown
away. Reading, and not posix_fadvise(WILLNEED): a call of that is cut to the read-ahead limit of the
device without a word (1 to 3 MiB), is not waited for, and tells of no error.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from cowfs.system import syscalls
from cowfs.warm.backing import File, Found

JOBS = 4
MIB = 1 << 20

_STRETCH = 64 * MIB  # what one thread reads of a file at a time
_BLOCK = MIB  # what one call reads
# What is kept free where no limit is given, as a part of what is available.
_RESERVE = 8

_Item = TypeVar("_Item")


class Progress(Protocol):
    """Is told how far the reading is; calls never overlap."""

    def begin(self, files: int, size: int) -> None:
        """*size* bytes of *files* files are to be read."""

    def advance(self, size: int, /) -> None:
        """*size* more bytes were read."""


@dataclass
class Outcome:
    """What was done. Sizes in bytes; those of holes are not counted.

    resident_before, resident_after: in memory; None where the kernel does not tell us.
    limit: how much could be read at most. limit_reached: whether something was left out for it.
    """

    files: int = 0
    bytes: int = 0
    resident_before: int | None = 0
    read: int = 0
    resident_after: int | None = 0
    seconds: float = 0.0
    limit: int = 0
    limit_reached: bool = False
    interrupted: bool = False
    errors: list[tuple[str, str]] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        errors = [{"path": path, "error": error} for path, error in self.errors]
        return {**vars(self), "errors": errors}


@dataclass(frozen=True)
class _Stretch:
    """Parts of one file that are not in memory; `missing` bytes of them."""

    file: File
    parts: list[tuple[int, int]]
    missing: int


@dataclass
class _Examined:
    """What a file is made of and how much of that is in memory, in bytes; None: not told."""

    bytes: int = 0
    resident: int | None = 0
    stretches: list[_Stretch] = field(default_factory=list)


def warm(
    paths: Sequence[str],
    *,
    limit: int | None = None,
    jobs: int = JOBS,
    progress: Progress | None = None,
) -> Outcome:
    """Read what is at or below the paths and not in memory, at most `limit` bytes.

    Without a limit: what the machine and our control group have to spare. An interrupt ends the
    reading; what failed for one file is in the outcome. OSError for a path that cannot be found.
    """
    outcome = Outcome()
    started = time.monotonic()
    with Found() as found:
        found.failed = lambda path, error: outcome.errors.append((path, _reason(error)))
        for path in paths:
            try:
                found.add(path)
            except OSError as error:
                raise OSError(error.errno, _reason(error), path) from None
        outcome.files = len(found.files)
        try:
            examined = _examine(found.files, jobs, outcome)
            outcome.bytes = sum(each.bytes for each in examined)
            outcome.resident_before = _total(examined)
            outcome.limit = spare(outcome.resident_before or 0) if limit is None else limit
            plan = list(_within(outcome.limit, (s for each in examined for s in each.stretches)))
            outcome.limit_reached = sum(stretch.missing for stretch in plan) < sum(
                stretch.missing for each in examined for stretch in each.stretches
            )
            _read(plan, jobs, outcome, progress)
        except KeyboardInterrupt:
            outcome.interrupted = True
        outcome.seconds = time.monotonic() - started
        outcome.resident_after = _total(_examine(found.files, jobs, Outcome()))
    return outcome


def spare(in_use: int = 0) -> int:
    """Bytes that may be read without driving out what is needed, `in_use` of them left alone."""
    free = [_meminfo()["MemAvailable"], *_control_groups()]
    return max(0, min(free) * (_RESERVE - 1) // _RESERVE - in_use)


def _meminfo() -> dict[str, int]:
    with open("/proc/meminfo") as lines:
        fields = (line.split() for line in lines)
        return {words[0].rstrip(":"): int(words[1]) * 1024 for words in fields}


def _control_groups(root: str = "/sys/fs/cgroup") -> Iterator[int]:
    """What is left of memory.max in our control group (version 2) and all above it, in bytes.

    The pages that we read are charged to us. Those of files that are charged already make room.
    """
    with contextlib.suppress(OSError):
        with open("/proc/self/cgroup") as lines:
            paths = [line.rstrip("\n")[3:] for line in lines if line.startswith("0::")]
        path = (paths[0] if paths else "/").strip("/")
        while True:
            with contextlib.suppress(OSError, ValueError, KeyError):
                yield _left(os.path.join(root, path))
            if not path:
                return
            path = os.path.dirname(path)


def _left(group: str) -> int:
    def content(name: str) -> str:
        with open(os.path.join(group, name)) as file:
            return file.read()

    stat = dict(line.split() for line in content("memory.stat").splitlines())
    files = int(stat["inactive_file"]) + int(stat["active_file"])
    return int(content("memory.max")) - int(content("memory.current")) + files


# --- what is in memory ----------------------------------------------------------------------------


def _examine(files: Sequence[File], jobs: int, outcome: Outcome) -> list[_Examined]:
    """How much of each file is where, in the order of the files."""
    examined = [_Examined() for _ in files]

    def examine(item: tuple[int, File]) -> None:
        index, file = item
        with _blaming(file, outcome), _opened(file) as fd:
            _examine_open(fd, file, examined[index])

    _in_parallel(examine, enumerate(files), jobs)
    return examined


def _examine_open(fd: int, file: File, result: _Examined) -> None:
    look = _look(fd, file)
    for start, length in _data(fd):
        result.bytes += length
        for offset in range(start, start + length, _STRETCH):
            size = min(_STRETCH, start + length - offset)
            parts = list(_missing(look, offset, size)) if look else [(offset, size, size)]
            missing = sum(part[2] for part in parts)
            if missing:
                ranges = [part[:2] for part in parts]
                result.stretches.append(_Stretch(file, ranges, missing))
            if look is None:
                result.resident = None
            elif result.resident is not None:
                result.resident += size - missing


def _look(fd: int, file: File) -> Callable[[int, int], int] | None:
    """What tells how many bytes of a range are in memory; None when we are not told."""
    st = os.fstat(fd)
    if os.geteuid() not in (0, st.st_uid) and not os.access(f"/proc/self/fd/{fd}", os.W_OK):
        return None
    call = syscalls.mincore if file.mapped else syscalls.pages_in_memory
    try:
        call(fd, 0, 1)
    except OSError:
        return None
    return lambda offset, length: min(length, call(fd, offset, length) * mmap.PAGESIZE)


def _missing(
    look: Callable[[int, int], int], offset: int, length: int
) -> Iterator[tuple[int, int, int]]:
    """(offset, length, bytes that are not in memory) of the parts of a range that lack some."""
    missing = length - look(offset, length)
    if missing == length or (missing and length <= _BLOCK):
        yield offset, length, missing
    elif missing:
        half = -(-length // (2 * _BLOCK)) * _BLOCK
        yield from _missing(look, offset, half)
        yield from _missing(look, offset + half, length - half)


def _data(fd: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of what is no hole. Both are multiples of a page, but for the end."""
    size, end = os.fstat(fd).st_size, 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole is left
                return
            raise
        start -= start % mmap.PAGESIZE
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end - start


def _total(examined: Iterable[_Examined]) -> int | None:
    total = 0
    for each in examined:
        if each.resident is None:
            return None
        total += each.resident
    return total


# --- reading --------------------------------------------------------------------------------------


def _within(limit: int, stretches: Iterable[_Stretch]) -> Iterator[_Stretch]:
    """The stretches up to `limit` bytes, the last one cut."""
    for stretch in stretches:
        if stretch.missing <= limit:
            limit -= stretch.missing
            yield stretch
            continue
        parts = []
        for offset, length in stretch.parts:
            length = min(length, limit - limit % mmap.PAGESIZE)
            if length:
                parts.append((offset, length))
                limit -= length
        if parts:
            yield _Stretch(stretch.file, parts, sum(length for _, length in parts))
        return


def _read(plan: Sequence[_Stretch], jobs: int, outcome: Outcome, progress: Progress | None) -> None:
    lock = threading.Lock()
    if progress is not None:
        size = sum(stretch.missing for stretch in plan)
        progress.begin(len({id(stretch.file) for stretch in plan}), size)

    stop = threading.Event()

    def read(stretch: _Stretch) -> None:
        length = sum(length for _, length in stretch.parts)
        buffer = memoryview(bytearray(min(_BLOCK, length)))
        done = counted = 0
        with _blaming(stretch.file, outcome), _opened(stretch.file) as fd:
            for offset, size in _blocks(stretch.parts):
                if stop.is_set():
                    return
                done += os.preadv(fd, [buffer[:size]], offset)
                # of what was there in part, the share that was not
                news = stretch.missing * done // length - counted
                counted += news
                with lock:
                    outcome.read += news
                    if progress is not None:
                        progress.advance(news)

    _in_parallel(read, plan, jobs, stop)


def _blocks(parts: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for offset, length in parts:
        for start in range(offset, offset + length, _BLOCK):
            yield start, min(_BLOCK, offset + length - start)


def _in_parallel(
    work: Callable[[_Item], None],
    items: Iterable[_Item],
    jobs: int,
    stop: threading.Event | None = None,
) -> None:
    """Do the work for every item in `jobs` threads. What it raises ends all of them."""
    pending, lock = iter(items), threading.Lock()
    ended = stop or threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            while not ended.is_set():
                with lock:
                    item = next(pending)
                work(item)
        except StopIteration:
            pass
        except BaseException as error:
            failures.append(error)
            ended.set()

    threads = [threading.Thread(target=run) for _ in range(jobs)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException:
        ended.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
        raise
    if failures:
        raise failures[0]


@contextlib.contextmanager
def _opened(file: File) -> Iterator[int]:
    fd = file.open()
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _blaming(file: File, outcome: Outcome) -> Iterator[None]:
    """Note what fails for a file, once, and go on. One that has gone away is no failure."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESTALE):
            note = (file.shown, _reason(error))
            if note not in outcome.errors:
                outcome.errors.append(note)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
