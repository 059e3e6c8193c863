"""What a peer is: something that shows a source directory at a place where files can be used."""

# ruff: noqa: ARG002 - every peer has the parameters of Peer, whether it needs them or not

from __future__ import annotations

import os
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.environment import Environment
from bench.system import BenchError, is_mountpoint, patient_teardown, unmount

READY_SECONDS = 60.0
REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class View:
    """A source as one peer shows it."""

    root: Path
    daemons: Callable[[], list[int]] = list  # processes that serve it
    is_fuse: bool = False

    def drop(self, *paths: Path) -> None:
        """Drop the pages that FUSE has of these files; those of the files behind it stay."""
        for path in paths if self.is_fuse else ():
            fd = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)

    @property
    def connection(self) -> int | None:
        """Minor device number of a FUSE mount, by which the kernel names its connection."""
        return os.minor(self.root.stat().st_dev) if self.is_fuse else None


class Peer(ABC):
    """One way to get at the files of a source."""

    name: str

    def missing(self, env: Environment) -> str | None:
        """Why this peer cannot be used here, or None if it can."""
        return None

    @abstractmethod
    def mounted(
        self, env: Environment, source: Path, *, private: bool = False
    ) -> AbstractContextManager[View]:
        """Show `source` for as long as the block runs.

        With `private` the view may be written to without changing `source`.
        """


@contextmanager
def served(
    command: Sequence[str | Path], mountpoint: Path, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a daemon in the foreground until it has mounted; unmount and reap it at the end.

    The daemon gets a session of its own: Ctrl-C is to end the benchmark, and not to take the daemon
    away from a mount that is still in use.
    """
    with log.open("wb") as output:
        daemon = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=REPOSITORY,  # where `python -m bench.loopback` is found
            start_new_session=True,
        )
    try:
        await_mount(mountpoint, daemon, log)
        yield daemon
    finally:
        with patient_teardown():
            unmount(mountpoint)
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def await_mount(mountpoint: Path, daemon: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until something is mounted and answers; BenchError if the daemon ends before that."""
    end = time.monotonic() + READY_SECONDS
    while not is_mountpoint(mountpoint):
        if daemon.poll():  # 0: it went to the background by itself
            said = log.read_text(errors="replace").strip().splitlines() or ["no message"]
            raise BenchError(f"{log.parent.name}: ended: {said[-1]}")
        if time.monotonic() > end:
            raise BenchError(f"{log.parent.name}: did not mount")
        time.sleep(0.0005)
    mountpoint.stat()
