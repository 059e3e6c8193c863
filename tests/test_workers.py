"""Sharing pieces of work out among processes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cowfs import workers


class Stop(Exception):  # noqa: N818 -- what a signal's handler raises
    pass


def note(path: Path, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, f"{text}\n".encode())
    os.close(fd)


def one_at_a_time(_piece: object) -> int:
    return workers.BATCH


def test_every_piece_is_done_once_and_a_lane_by_one_process_at_a_time(tmp_path: Path) -> None:
    pieces = [(lane, number) for lane in (1, 2, 3, None) for number in range(12)]

    def worker(_umask: int) -> Callable[[tuple[int | None, int]], None]:
        def do(piece: tuple[int | None, int]) -> None:
            log = tmp_path / str(piece[0])
            note(log, f"begin {piece[1]}")
            time.sleep(0.002)
            note(log, f"end {piece[1]}")

        return do

    done: list[tuple[int | None, int]] = []
    workers.do_all(3, worker, pieces, done.append, one_at_a_time, lambda piece: piece[0])
    assert sorted(done, key=str) == sorted(pieces, key=str)
    for lane in (1, 2, 3):
        expected = [f"{what} {number}" for number in range(12) for what in ("begin", "end")]
        assert (tmp_path / str(lane)).read_text().splitlines() == expected


def test_workers_begin_nothing_once_their_parent_has_given_up(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    log = tmp_path / "log"

    def worker(_umask: int) -> Callable[[int], None]:
        os.close(writer)

        def do(piece: int) -> None:
            note(log, str(piece))
            if piece:
                os.read(reader, 1)  # until the gate opens

        return do

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
