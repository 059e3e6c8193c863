"""Filling the page cache: what is planned, what fails, and what an interrupt leaves."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
from pathlib import Path

import pytest

from cowfs.commands import cli
from cowfs.system import syscalls
from cowfs.warm import backing, filling

MIB = 1 << 20


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Three files of 8 MiB each."""
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(os.urandom(MIB) * 8)
    return tmp_path


@pytest.fixture
def nothing_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "_look", lambda _fd, _file: lambda _offset, _length: 0)


def test_parts_that_lack_pages_are_found_and_counted_exactly() -> None:
    there = {3, 700, 701, 702, 5000}  # pages

    def look(offset: int, length: int) -> int:
        return 4096 * sum(offset <= page * 4096 < offset + length for page in there)

    parts = list(filling._missing(look, 0, 64 * MIB))
    assert sum(missing for _, _, missing in parts) == 64 * MIB - 4096 * len(there)
    end = 0
    for offset, length, _ in parts:
        assert offset == end
        end = offset + length
    assert end == 64 * MIB
    assert list(filling._missing(lambda _offset, length: length, 0, 64 * MIB)) == []


@pytest.mark.usefixtures("nothing_in_memory")
@pytest.mark.parametrize(
    ("limit", "read"), [(0, 0), (4095, 0), (5 * MIB + 1, 5 * MIB), (16 * MIB, 16 * MIB)]
)
def test_a_limit_is_kept_to_the_page(files: Path, limit: int, read: int) -> None:
    outcome = filling.warm([str(files)], limit=limit)
    assert outcome.read == read
    assert outcome.limit_reached


@pytest.mark.usefixtures("nothing_in_memory")
def test_without_a_limit_what_memory_has_to_spare_is_the_limit(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "_meminfo", lambda: {"MemAvailable": 16 * MIB})
    outcome = filling.warm([str(files)])
    assert (outcome.limit, outcome.read, outcome.limit_reached) == (14 * MIB, 14 * MIB, True)


def test_memory_max_of_a_control_group_counts_with_the_pages_that_can_go(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text(f"{100 * MIB}\n")
    (tmp_path / "memory.current").write_text(f"{90 * MIB}\n")
    (tmp_path / "memory.stat").write_text(
        f"anon 5\ninactive_file {40 * MIB}\nactive_file {20 * MIB}\n"
    )
    assert filling._left(str(tmp_path)) == 70 * MIB


@pytest.mark.usefixtures("nothing_in_memory")
def test_a_file_that_cannot_be_read_is_named_and_the_others_are_read(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = os.preadv
    broken = (files / "b").stat().st_ino

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        if os.fstat(fd).st_ino == broken and offset >= 2 * MIB:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    assert cli.main(["warm", "--json", str(files)]) == 2
    said = capsys.readouterr()
    assert said.err == f"cowfs: {files / 'b'}: Input/output error\n"
    outcome = json.loads(said.out)
    assert outcome["read"] == 18 * MIB
    assert outcome["errors"] == [{"path": str(files / "b"), "error": "Input/output error"}]


@pytest.mark.usefixtures("nothing_in_memory")
def test_an_interrupt_ends_it_with_the_report_so_far(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = os.preadv
    waiting = threading.get_ident()
    interrupt = threading.Lock()

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        if interrupt.acquire(blocking=False):
            signal.pthread_kill(waiting, signal.SIGINT)
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    assert cli.main(["warm", "--json", str(files)]) == 8
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["interrupted"]
    assert outcome["files"] == 3


def test_who_may_not_know_what_is_in_memory_is_told_so_and_everything_is_read(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(filling, "_look", lambda _fd, _file: None)
    outcome = filling.warm([str(files)])
    assert (outcome.resident_before, outcome.resident_after) == (None, None)
    assert outcome.read == 24 * MIB
    assert cli.main(["warm", str(files)]) == 0
    assert "in memory before: not told to this user" in capsys.readouterr().out


def test_a_kernel_without_cachestat_tells_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Linux 6.5. 4 MiB are in memory, since they were written; the rest is a hole."""
    path = tmp_path / "a"
    with path.open("wb", buffering=0) as file:
        file.write(os.urandom(4 * MIB))
        file.truncate(8 * MIB)
    with path.open("rb") as file:

        def told() -> list[int]:
            ranges = [(0, 8 * MIB), (4096 + 5, MIB), (3 * MIB, 2 * MIB), (6 * MIB, MIB)]
            return [syscalls.pages_in_memory(file.fileno(), *each) for each in ranges]

        before = told()
        assert before == [1024, 257, 256, 0]
        monkeypatch.setattr(syscalls, "_SYS_CACHESTAT", 9999)
        with pytest.raises(OSError, match="not implemented"):
            syscalls.cachestat(file.fileno(), 0, 1)
        assert told() == before
    outcome = filling.warm([str(path)])
    assert (outcome.bytes, outcome.resident_before, outcome.resident_after) == (4 * MIB,) * 3
    assert outcome.read == 0


@pytest.mark.parametrize("size", ["-1", "1.5G", "much", ""])
def test_a_limit_that_is_no_size_is_refused(
    files: Path, size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["warm", f"--limit={size}", str(files)]) == 1
    assert "is not a size" in capsys.readouterr().err


def test_a_directory_that_cannot_be_opened_is_named_and_the_rest_is_found(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (files / "closed").mkdir()
    real = backing.syscalls.open_below

    def open_below(root: int, path: bytes, flags: int, resolve: int = 0) -> int:
        if path == b"closed":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(root, path, flags, resolve)

    monkeypatch.setattr(backing.syscalls, "open_below", open_below)
    outcome = filling.warm([str(files)])
    assert outcome.files == 3
    assert outcome.errors == [(str(files / "closed"), "Permission denied")]
