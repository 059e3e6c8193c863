"""Keeper and attendant are not killed when memory is short.

They are small, and what they hold cannot be replaced; a daemon can.
"""

from __future__ import annotations

_SCORE = "/proc/{}/oom_score_adj"
_inherited: str | None = None


def protect() -> None:
    """This process, as far as we may; what it starts inherits that."""
    global _inherited
    try:
        with open(_SCORE.format("self")) as file:
            _inherited = file.read()
        with open(_SCORE.format("self"), "w") as file:
            file.write("-1000")
    except OSError:
        _inherited = None  # not allowed in this container


def unprotect(pid: int) -> None:
    """A process that we have started: it gets the score that we had."""
    if _inherited is not None:
        try:
            with open(_SCORE.format(pid), "w") as file:
                file.write(_inherited)
        except OSError:
            pass
