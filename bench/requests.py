"""Counts the requests that the kernel sends to a FUSE daemon, from outside of every daemon.

The tracepoint fuse:fuse_request_send (Linux 6.11) fires once a request and names the connection. A
tracefs instance of the benchmark's own keeps this apart from any other tracing on the machine.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .system import BenchError, patient_teardown, run, unmount


class RequestCounter:
    """Counts requests; `available` is False on a kernel without the tracepoint or tracefs."""

    def __init__(self, instance: Path | None) -> None:
        self._instance = instance

    @property
    def available(self) -> bool:
        return self._instance is not None

    @contextmanager
    def counting(self, connection: int | None) -> Iterator[Callable[[], int | None]]:
        """Count while the block runs; the yielded function tells the number afterwards.

        `connection` is the minor device number of the mount; None (not FUSE) counts as 0 requests.
        """
        if connection is None or self._instance is None:
            count = 0 if connection is None else None
            yield lambda: count
            return
        event = self._instance / "events/fuse/fuse_request_send"
        (self._instance / "trace").write_text("")
        (event / "filter").write_text(f"connection == {connection}")
        (event / "enable").write_text("1")
        try:
            yield self._entries
        finally:
            (event / "enable").write_text("0")

    def _entries(self) -> int:
        assert self._instance is not None
        found = 0
        for stats in self._instance.glob("per_cpu/cpu*/stats"):
            # what did not fit into the ring was counted as an overrun
            for value in re.findall(r"^(?:entries|overrun): (\d+)$", stats.read_text(), re.M):
                found += int(value)
        return found


@contextmanager
def request_counter(work: Path) -> Iterator[RequestCounter]:
    """A counter for as long as the block runs; never fails, see `available`."""
    tracefs = work / "tracing"
    tracefs.mkdir()
    instance = tracefs / "instances" / f"cowfs-bench-{os.getpid()}"
    try:
        try:
            run(["mount", "-t", "tracefs", "nodev", tracefs])
            instance.mkdir()
            usable = (instance / "events/fuse/fuse_request_send").is_dir()
        except (BenchError, OSError):
            usable = False
        yield RequestCounter(instance if usable else None)
    finally:
        with patient_teardown():
            if instance.is_dir():
                instance.rmdir()
            unmount(tracefs)
            tracefs.rmdir()
