"""A file that grows, and those who have it mapped: nobody dies of SIGBUS within its size.

And what programs are told of a file while it changes: without passthrough the kernel keeps
attributes of open files too.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import struct
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from integration import growth
from integration.growth import PAGE, VIEWS, WAYS, Grow, Mapping, View
from integration.mounts import MountCopy

MIB = 1 << 20
OLD = 10**18  # nanoseconds since 1970

# Bytes of the files of the template; `new` ones are made in the copy.
SIZES = {"new": 10, "small": 5000, "large": 2 * MIB + 77}

# Processes that wait for a size, and others that keep the processors busy meanwhile.
WATCHERS, SPINNERS = 4, 4
ROUNDS = 40
GOAL = 150 * PAGE + 77
PATIENCE = 15  # seconds that a watcher waits for one file


@pytest.fixture
def source(xfs: Path) -> Path:
    path = xfs / "source"
    path.mkdir()
    for name in ("small", "large"):
        (path / name).write_bytes(b"o" * SIZES[name])
    return path


def _fork(function: Callable[..., None], *args: object) -> int:
    """Do it in a process of its own; an exception is printed, and ends it with 1."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        function(*args)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _end(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextlib.contextmanager
def _busy_processors() -> Iterator[None]:
    def spin() -> None:
        while True:
            pass

    pids = [_fork(spin) for _ in range(SPINNERS)]
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


# --- one process, or one after the other ----------------------------------------------------------


def _touch(path: Path, grow: Grow, view: View, old: int, new: int) -> None:
    """Everything that is in the file is in the mapping, and the other way round."""
    fd = os.open(path, os.O_RDWR)
    mapping = view(path, fd, old, new, lambda: grow(path, fd, old, new))
    data = os.pread(fd, new + 1, 0)
    assert len(data) == new
    assert mapping.load(new) == data
    mapping.store(new - 1, b"Z")
    assert os.pread(fd, 1, new - 1) == (b"Z" if mapping.stores_show else data[-1:])
    assert path.stat().st_size == os.fstat(fd).st_size == new


def _touch_only_to_read(path: Path, grow: Grow, view: View, old: int, new: int) -> None:
    fd = os.open(path, os.O_RDWR)
    mapping = view(path, fd, old, new, lambda: grow(path, fd, old, new))
    assert mapping.load(new) == os.pread(fd, new + 1, 0)


def _touch_every_mapping(directory: Path, kind: str, grow: Grow, place: mmap.mmap) -> None:
    """*place* says to whoever outlives this process how far it came."""
    old = SIZES[kind]
    new = old + 5 * PAGE + 77
    path = directory / kind
    for number, view in enumerate(VIEWS):
        place[0] = number
        if kind == "new":
            path.unlink(missing_ok=True)
            path.write_bytes(b"o" * old)
        else:
            os.truncate(path, old)
        reads = view in (growth.by_a_reader, growth.before_to_read)
        touch = _touch_only_to_read if reads else _touch
        touch(path, grow, view, old, new)


def _failures(directory: Path, kind: str) -> list[str]:
    """Every way to grow a file, with every way to map it."""
    found = []
    with mmap.mmap(-1, 1) as place:
        for grow in WAYS:
            code = _end(_fork(_touch_every_mapping, directory, kind, grow, place))
            if code:
                found.append(f"{grow.__name__}, mapped {VIEWS[place[0]].__name__}: {code}")
    return found


@pytest.mark.parametrize("kind", SIZES)
def test_every_mapping_has_what_a_file_has_grown_by(
    mount_copy: MountCopy, source: Path, kind: str
) -> None:
    copy = mount_copy(source)
    assert not _failures(copy, kind)
    assert not _failures(source, kind), "XFS itself"


# --- several processes ----------------------------------------------------------------------------


def _make_and_grow(directory: Path, grow: Grow) -> None:
    for number in range(ROUNDS):
        path = directory / f"file{number}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        grow(path, fd, 0, GOAL)
        os.close(fd)


def _wait_map_and_store(directory: Path, place: int) -> None:
    """Believe every size that is told, and store where nobody else does."""
    for number in range(ROUNDS):
        fd = _open_when_there(directory / f"file{number}")
        size = 0
        while size < GOAL:
            size = _wait_until_larger(lambda: os.fstat(fd).st_size, size)  # noqa: B023 - at once
            mapping = Mapping(fd, size)
            mapping.load(size)
            if size == GOAL:
                mapping.store(size - 1 - place, b"%d" % place)
            mapping.close()
        os.close(fd)


def _open_when_there(path: Path) -> int:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return os.open(path, os.O_RDWR)
        except FileNotFoundError:
            assert time.monotonic() < deadline


def _wait_until_larger(size: Callable[[], int], known: int) -> int:
    deadline = time.monotonic() + PATIENCE
    while (told := size()) <= known:
        assert time.monotonic() < deadline, f"it has {told} bytes"
    return told


# One change each, of a file of which the kernel has the attributes: docs/semantics.md has the rest.
RACED: tuple[Grow, ...] = (
    growth.ftruncate,
    growth.truncate,
    growth.write,
    growth.pwrite_of_the_last_byte,
    growth.fallocate_from_the_start,
    growth.zero_range,
    growth.copy_file_range,
)


@pytest.mark.parametrize("grow", RACED)
def test_a_size_that_is_told_can_be_mapped(mount_copy: MountCopy, source: Path, grow: Grow) -> None:
    """The process that made a file larger does not have to get a processor again before."""
    copy = mount_copy(source)
    with _busy_processors():
        pids = [_fork(_wait_map_and_store, copy, place) for place in range(WATCHERS)]
        pids.append(_fork(_make_and_grow, copy, grow))
        assert [_end(pid) for pid in pids] == [0] * (WATCHERS + 1)
    ends = {(copy / f"file{number}").read_bytes()[-WATCHERS:] for number in range(ROUNDS)}
    assert ends == {b"3210"}


def _change_the_size(path: Path, number: int, ends: float) -> None:
    """One of those who share a file whose second page is its last one all the time."""
    fd = os.open(path, os.O_RDWR)
    mapping = Mapping(fd, 2 * PAGE)
    rounds = 0
    while time.monotonic() < ends:
        rounds += 1
        size = PAGE + 1 + (rounds * 37 + number) % (PAGE - 1)
        if number == 0:
            os.ftruncate(fd, size)
        elif number == 1:
            os.pwrite(fd, b"w", size)
        elif number == 2:
            mapping.store(PAGE, b"s")
        elif number == 3:
            os.fsync(fd)
        else:
            assert PAGE < os.fstat(fd).st_size <= 2 * PAGE


def test_truncations_writebacks_and_stats_of_one_page_do_not_wait_for_each_other(
    mount_copy: MountCopy, source: Path
) -> None:
    copy = mount_copy(source)
    path = copy / "small"
    ends = time.monotonic() + 4
    pids = [_fork(_change_the_size, path, number, ends) for number in (0, 0, 1, 2, 2, 3, 4, 4)]
    assert [_end(pid) for pid in pids] == [0] * len(pids)
    assert len(path.read_bytes()) == path.stat().st_size


# --- what is told while a file changes ------------------------------------------------------------


def _upper(mounts: MountCopy, copy: Path, name: str) -> Path:
    record = mounts.record(copy)
    return Path(record["store"], "copies", record["copy"], "upper", name)


def _comes_true(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_blocks_are_those_of_the_file_when_its_last_writer_has_left(
    mount_copy: MountCopy, source: Path
) -> None:
    """XFS allocates ahead of a file that grows, and takes that back when it is closed."""
    copy = mount_copy(source)
    path = copy / "new"
    with path.open("wb", buffering=0) as file:
        for _ in range(40):
            file.write(b"x" * 100_000)
            os.fstat(file.fileno())
    beneath = _upper(mount_copy, copy, "new")
    assert _comes_true(lambda: path.stat().st_blocks == beneath.stat().st_blocks)
    assert path.stat().st_blocks < 4_000_000 // 512 * 1.05


def test_stores_move_the_mtime_when_they_are_written(mount_copy: MountCopy, source: Path) -> None:
    copy = mount_copy(source)
    path = copy / "small"
    fd = os.open(path, os.O_RDWR)
    mapping = Mapping(fd, SIZES["small"])
    for _ in range(20):
        os.utime(path, ns=(OLD, OLD))
        mapping.store(0, b"s")
        watcher = _fork(_stat_for_a_while, path)
        os.fsync(fd)
        assert _end(watcher) == 0
        told = path.stat()
        assert told.st_mtime_ns > OLD
        assert told.st_mtime_ns == _upper(mount_copy, copy, "small").stat().st_mtime_ns
    mapping.close()
    os.close(fd)


def _stat_for_a_while(path: Path) -> None:
    for _ in range(300):
        path.stat()


def test_asynchronous_direct_writes_move_the_mtime(mount_copy: MountCopy, source: Path) -> None:
    copy = mount_copy(source)
    path = copy / "large"
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    with _Aio() as aio:
        for _ in range(20):
            os.utime(path, ns=(OLD, OLD))
            aio.begin_to_write(fd, PAGE)
            path.stat()  # before or after: the kernel keeps what it is told
            assert aio.wait() == PAGE
            assert path.stat().st_mtime_ns > OLD
    os.close(fd)


class _Aio:
    """One write at a time by io_submit(2)."""

    _SETUP, _DESTROY, _GETEVENTS, _SUBMIT = 206, 207, 208, 209  # on x86-64
    _PWRITE = 1

    def __init__(self) -> None:
        self._syscall = ctypes.CDLL(None, use_errno=True).syscall
        self._context = ctypes.c_ulong()
        assert self._syscall(self._SETUP, 1, ctypes.byref(self._context)) == 0
        self._memory = Mapping(-1, PAGE, flags=growth.PRIVATE | 0x20)  # anonymous: it is aligned

    def __enter__(self) -> _Aio:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._syscall(self._DESTROY, self._context) == 0
        self._memory.close()

    def begin_to_write(self, fd: int, size: int) -> None:
        # data, key, flags, opcode, priority, descriptor, buffer, bytes, offset
        control = struct.pack(
            "=QIIHhIQQq16x", 0, 0, 0, self._PWRITE, 0, fd, self._memory.address, size, 0
        )
        self._control = ctypes.create_string_buffer(control, len(control))
        pointer = ctypes.pointer(ctypes.cast(self._control, ctypes.c_void_p))
        assert self._syscall(self._SUBMIT, self._context, ctypes.c_long(1), pointer) == 1

    def wait(self) -> int:
        event = ctypes.create_string_buffer(32)
        one = ctypes.c_long(1)
        assert self._syscall(self._GETEVENTS, self._context, one, one, event, None) == 1
        result: int = struct.unpack("=QQqq", event.raw)[2]
        return result


def test_bits_that_a_write_takes_away_are_gone_for_everybody(
    mount_copy: MountCopy, source: Path
) -> None:
    copy = mount_copy(source)
    for name in ("small", "large"):
        path = copy / name
        path.chmod(0o6777)
        with path.open("r+b", buffering=0) as held:
            assert os.fstat(held.fileno()).st_mode & 0o7777 == 0o6777
            assert _end(_fork(_write_as_nobody, path)) == 0
            assert os.fstat(held.fileno()).st_mode & 0o7777 == 0o777
            assert os.fstat(held.fileno()).st_size == path.stat().st_size == SIZES[name] + 1


def _write_as_nobody(path: Path) -> None:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    with path.open("ab", buffering=0) as file:
        file.write(b"x")
