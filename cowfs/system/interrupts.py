"""SIGINT and SIGTERM while something long is made that must be put away again."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

from cowfs.system.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def sigterm_like_sigint() -> Iterator[None]:
    """In this block SIGTERM raises KeyboardInterrupt too, for what leaves nothing to put away."""
    before = signal.getsignal(signal.SIGTERM)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Interrupts:
    """SIGINT and SIGTERM, let through only where an exception does no harm.

    Elsewhere they are noted and raised at the next `allowed()` or `check()`; so no signal can come
    between taking a lock and remembering that it was taken.
    """

    def __init__(self, outcome: str) -> None:
        """`outcome` says for the message what an interruption leaves."""
        self._outcome = outcome
        self._pending: int | None = None
        self._allowed = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a shell's "&"
                self._before[number] = signal.signal(number, self._arrived)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self._pending is not None:
            name = signal.Signals(self._pending).name
            raise Interrupted(f"interrupted by {name}; {self._outcome}")

    @contextlib.contextmanager
    def allowed(self) -> Iterator[None]:
        """In this block a signal raises Interrupted at once."""
        self._allowed = True
        try:
            self.check()
            yield
        finally:
            self._allowed = False

    def _arrived(self, number: int, _frame: FrameType | None) -> None:
        self._pending = number
        if self._allowed:
            self._allowed = False  # once: what it unwinds must not be torn by a second one
            self.check()
