"""Steps of several actors, each done in a reflink copy on XFS and in a mounted copy, and compared.

Knows nothing about the programs. A play has a directory of its own, in which no file has been
written since the mount: the source has many that are alike.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from integration.command import run
from integration.effort import EFFORT, SEED
from integration.mounts import MountCopy
from integration.programs.actors import Actor, Nursery, Outcome
from integration.volumes import remove_tree

OPTIONS = tuple(option for option in os.environ.get("COWFS_TURNS_OPTIONS", "").split(",") if option)

#: Directories of a source, one for each play; after so many the source is mounted again.
PLACES = 25
#: Plays in which hypothesis looks for a shorter one that fails: each takes a good part of a second.
SHRINKS = 60

Step = tuple[Any, ...]
Example = TypeVar("Example")


class Side:
    """One directory and the actors in it, by name. They come when they are first spoken to."""

    def __init__(self, root: Path, nursery: Nursery) -> None:
        self.root = root
        self._nursery = nursery
        self._actors: dict[str, Actor] = {}

    def begin(self, name: str, action: str, args: tuple[Any, ...]) -> Actor:
        if name not in self._actors:
            self._actors[name] = self._nursery.actor(self.root)
        actor = self._actors[name]
        actor.begin(action, args)
        return actor

    def finish(self, name: str) -> Outcome:
        outcome = self._actors[name].finish()
        if outcome.kind == "ended":
            del self._actors[name]
        return outcome

    def kill(self, name: str) -> None:
        """The actor gets SIGKILL; one who is spoken to under its name later is another process."""
        if name in self._actors:
            self._actors.pop(name).kill()

    def end(self) -> None:
        while self._actors:
            self._actors.popitem()[1].kill()


class Turns:
    """One play: two sides, and what was done so far."""

    def __init__(self, stage: Stage, native: Side, copy: Side, source: Side) -> None:
        self._stage = stage
        self.native = native
        self.copy = copy
        self.source = source
        self.history: list[str] = []
        self._steps = 0
        #: The steps at which the daemon gets SIGKILL, counted from 1: "before" it or "during" it.
        self.kills: dict[int, str] = {}

    def do(self, name: str, action: str, *args: Any) -> Outcome:
        """A step of the actor *name*, on XFS and in the copy; both must come out the same."""
        expected, got = self.both(name, action, *args)
        self.compare(expected, got)
        return expected

    def both(self, name: str, action: str, *args: Any) -> tuple[Outcome, Outcome]:
        """What came of the step on XFS and in the copy."""
        self._steps += 1
        kill = self.kills.pop(self._steps, None)
        if kill == "before":
            self.history.append("the daemon is killed")
            self._stage.kill_daemon()
        self.history.append(f"{name}: {', '.join(map(repr, (action, *args)))}")
        self.native.begin(name, action, args)
        expected = self.native.finish(name)
        if kill == "during":
            self._stage.wait_for_daemon()
        self.copy.begin(name, action, args)
        if kill == "during":
            self.history[-1] += ", and the daemon is killed meanwhile"
            self._stage.kill_daemon()
        got = self.copy.finish(name)
        self.history[-1] += f" -> {str(expected)[:200]}"
        return expected, got

    def in_source(self, name: str, action: str, *args: Any) -> Outcome:
        """What comes of a step in the source, where no other actor has changed anything."""
        self.source.begin(name, action, args)
        return self.source.finish(name)

    def compare(self, expected: object, got: object) -> None:
        assert got == expected, self.told(f"\n  XFS:  {expected}\n  copy: {got}")

    def told(self, what: str) -> str:
        """A complaint with the steps that lead to it."""
        return "\n".join([*self.history[-40:], what])

    def play(self, steps: Iterable[Step]) -> None:
        """Steps as (actor, action, *args); the action "killed" is SIGKILL for the actor."""
        for name, action, *args in steps:
            if action == "killed":
                self.kill(name)
            else:
                self.do(name, action, *args)

    def gives(self, value: object, name: str, action: str, *args: Any) -> None:
        """A step that must give *value*, on XFS too, lest a story is not about what it says."""
        outcome = self.do(name, action, *args)
        assert outcome == ("gave", value), self.told(f"gave {outcome}, not {value!r}")

    def fails(self, text: str, name: str, action: str, *args: Any) -> None:
        """A step that must fail, with *text* in the error."""
        outcome = self.do(name, action, *args)
        assert outcome.kind == "failed", self.told(f"{outcome}, and did not fail")
        assert text in str(outcome.what), self.told(f"failed with {outcome.what}, not {text}")

    def kill(self, name: str) -> None:
        """SIGKILL for an actor, on both sides."""
        self.history.append(f"{name} is killed")
        for side in (self.native, self.copy, self.source):
            side.kill(name)


class Stage:
    """A source with many directories that *fill* has filled alike, its copy, and a reflink copy."""

    def __init__(
        self,
        mounts: MountCopy,
        nursery: Nursery,
        base: Path,
        fill: Callable[[Path], None],
        *options: str,
    ) -> None:
        self._mounts = mounts
        self._nursery = nursery
        self._base = base
        self._options = (*options, *OPTIONS)
        self._source = base / "source"
        self._source.mkdir()
        self._number = 0
        self._left: list[str] = []
        self._killed = 0  # the last daemon that was
        self.mountpoint: Path | None = None
        first = self._source / "play0"
        first.mkdir()
        fill(first)
        for number in range(1, PLACES):
            run("cp", "-a", "--reflink=always", first, self._source / f"play{number}")

    @contextlib.contextmanager
    def turns(self) -> Iterator[Turns]:
        """A play, in a directory that nobody has been in. Its actors are gone at the end."""
        if not self._left:
            self._set_up()
        place = self._left.pop()
        assert self.mountpoint is not None
        roots = (self._native(), self.mountpoint, self._source)
        sides = [Side(root / place, self._nursery) for root in roots]
        try:
            yield Turns(self, *sides)
        finally:
            for side in sides:
                side.end()

    def _native(self) -> Path:
        return self._base / f"native{self._number}"

    def _set_up(self) -> None:
        if self.mountpoint is not None:
            self._mounts.unmount(self.mountpoint)
            remove_tree(self._native())
        self._number += 1
        run("cp", "-a", "--reflink=always", self._source, self._native())
        options = (*self._options, f"copy={self._base.name}-{self._number}")
        self.mountpoint = self._mounts(self._source, self.mountpoint, *options)
        self._left = sorted(path.name for path in self._source.iterdir())

    def wait_for_daemon(self) -> int:
        """The daemon that serves, as soon as that is another one than the last that was killed:
        that one has its record for a moment still.
        """
        assert self.mountpoint is not None
        return self._mounts.wait_until_served(self.mountpoint, other_than=self._killed)

    def kill_daemon(self) -> None:
        """SIGKILL for the daemon that serves."""
        self._killed = self.wait_for_daemon()
        os.kill(self._killed, signal.SIGKILL)

    def playing(self, play: Callable[[Turns, Example], None]) -> Callable[[Example], None]:
        """Such a play, each time in a directory that nobody has been in."""

        def one(example: Example) -> None:
            with self.turns() as turns:
                play(turns, example)

        return one


def ending_with(
    check: Callable[[Turns, str], None],
) -> Callable[[Turns, tuple[str, list[Step]]], None]:
    """A play of the steps for one file, which ends with a look at that file."""

    def play(turns: Turns, example: tuple[str, list[Step]]) -> None:
        name, steps = example
        turns.play(steps)
        check(turns, name)

    return play


@st.composite
def interleavings(
    draw: Callable[[st.SearchStrategy[int]], int],
    plan: Callable[[random.Random], tuple[str, list[Step]]],
) -> tuple[str, list[Step]]:
    """The name of a file, and the steps that a plan makes for it at random.

    Left to itself hypothesis likes the simple and what it has had before: most of its steps would
    fail. So it draws the plan's seed, and which of the steps are left out: that is how it shortens.
    """
    name, steps = plan(random.Random(draw(st.integers(0, (1 << 32) - 1))))
    return name, [step for step in steps if draw(st.integers(0, 19))]


def explore(
    examples: int, strategy: st.SearchStrategy[Example], play: Callable[[Example], None]
) -> None:
    """Play what hypothesis makes up; what fails is shortened for a while, not for minutes."""
    passed: set[str] = set()
    failed: set[str] = set()
    shrinks = 0

    def bounded(example: Example) -> None:
        nonlocal shrinks
        shown = repr(example)
        if shown in passed:
            return  # hypothesis repeats itself a lot
        if failed and shown not in failed:
            shrinks += 1
            if shrinks > SHRINKS:
                return
        try:
            play(example)
        except BaseException:
            failed.add(shown)
            raise
        passed.add(shown)

    settings(
        max_examples=examples * EFFORT,
        phases=[Phase.generate, Phase.shrink],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )(seed(SEED)(given(strategy)(bounded)))()
