"""How long something is waited for.  Nothing here looks at a clock: who asks says what time it is,
by CLOCK_MONOTONIC in seconds.
"""

from __future__ import annotations

# The number of steps of a patience.
STEPS = 4


class Deadline:
    """A moment."""

    def __init__(self, at: float) -> None:
        #: When to look again.
        self.next = at

    def is_over(self, now: float) -> bool:
        """Whether it has come."""
        return now >= self.next


class Patience(Deadline):
    """How long a word of a daemon is waited for: seconds in which we ran, and it could.

    No clock tells for how long the two of us were suspended, paused or frozen.  So the time is made
    of steps, each of which begins when we look: such a pause takes one of them at most, and if we
    slept through a whole one ourselves, the counting begins again.
    """

    def __init__(self, seconds: float, now: float) -> None:
        self._step = seconds / STEPS
        self._left = STEPS
        super().__init__(now + self._step)

    def is_over(self, now: float) -> bool:
        """Whether all of it has passed; to be asked whenever `next` has come."""
        if now < self.next:
            return False
        late = now - self.next
        self._left = STEPS if late >= self._step else self._left - 1
        self.next = now + self._step
        return self._left == 0
