"""How long a daemon is waited for, whatever becomes of the machine meanwhile."""

from __future__ import annotations

from cowfs.mount.deadlines import Patience


def looks(*times: float) -> list[bool]:
    """Whether a patience of 40 s, which began at 100, was over at each of these times."""
    patience = Patience(40, 100)
    return [patience.is_over(now) for now in times]


def test_patience_is_made_of_steps_that_a_pause_takes_one_of() -> None:
    assert looks(109, 110, 120, 130, 139, 140) == [False] * 5 + [True]
    # Frozen at 101 until 119: of what is left nothing is lost.
    assert looks(119, 129, 139, 148, 149) == [False] * 4 + [True]
    # For as long as it takes four times.
    assert looks(110, 120, 130, 290, 300, 310, 320, 330) == [False] * 7 + [True]
