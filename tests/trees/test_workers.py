"""Sharing pieces of work out among processes."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cowfs.trees import workers


class Stop(Exception):  # noqa: N818 -- what a signal's handler raises
    pass


def note(path: Path, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, f"{text}\n".encode())
    os.close(fd)


def one_at_a_time(_piece: object) -> int:
    return workers.BATCH


def test_every_piece_is_done_once_and_told(tmp_path: Path) -> None:
    pieces = list(range(40))

    @contextmanager
    def worker(_umask: int) -> Iterator[Callable[[int], None]]:
        yield lambda piece: note(tmp_path / "log", str(piece))

    done: list[int] = []
    workers.do_all(3, worker, pieces, done.append, one_at_a_time)
    assert sorted(done) == pieces
    assert sorted(map(int, (tmp_path / "log").read_text().split())) == pieces


def test_workers_begin_nothing_once_their_parent_has_given_up(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    log = tmp_path / "log"

    @contextmanager
    def worker(_umask: int) -> Iterator[Callable[[int], None]]:
        os.close(writer)

        def do(piece: int) -> None:
            note(log, str(piece))
            if piece:
                os.read(reader, 1)  # until the gate opens

        yield do

    # opens when the parent waits for its workers
    gate = threading.Timer(1, os.close, (writer,))

    def give_up(_piece: int) -> None:
        gate.start()
        raise Stop

    with pytest.raises(Stop):
        workers.do_all(2, worker, list(range(8)), give_up, one_at_a_time)
    gate.join()
    os.close(reader)
    # the first worker has done 0 and been in 1, the other one in 2
    assert set(log.read_text().split()) <= {"0", "1", "2"}


def test_a_failure_in_one_process_leaves_the_others_silent(
    capfd: pytest.CaptureFixture[str],
) -> None:
    reader, writer = os.pipe()

    @contextmanager
    def worker(_umask: int) -> Iterator[Callable[[int], None]]:
        def do(piece: int) -> None:
            if piece == 0:  # the parent does not read what else is answered
                os.write(writer, b"x" * 8)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "here")
            os.read(reader, 1)

        yield do

    for _ in range(20):
        with pytest.raises(OSError, match="No space left on device: 'here'"):
            workers.do_all(3, worker, list(range(6)), lambda _: None, one_at_a_time)
    os.close(reader)
    os.close(writer)
    assert capfd.readouterr().err == ""
