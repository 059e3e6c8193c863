"""Programs of operations that hypothesis makes up: in a copy and on XFS beside it.

What differs is shrunk to a short program. After each one the copy is looked at from outside too:
`Pair.check_at_rest`. effort.py makes more and other programs.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from integration.effort import EFFORT, SEED
from integration.mounts import MountCopy
from integration.pair import Origin, Pair, drop_caches
from integration.randomops import WEIGHTS, Operation, Plan, make_source

EXAMPLES = 8 * EFFORT
STEPS = 60


@st.composite
def _operations(draw: Callable[[st.SearchStrategy[Any]], Any], name: str) -> Operation:
    """One that `Plan` draws for the present state: with its randomness shrinks the program."""
    machine: Changes = draw(st.runner())
    source = draw(st.randoms(use_true_random=False))
    hand = machine.pair.native
    return Plan(source, hand.root, lambda: list(hand.fds)).draw(name)


class Changes(RuleBasedStateMachine):
    """*make_pair* gives a new copy of the same source for each program."""

    def __init__(self, make_pair: Callable[[], Pair]) -> None:
        super().__init__()
        self.pair = make_pair()
        self._failed = False

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except BaseException:
            self._failed = True
            raise

    @rule()
    def compare(self) -> None:
        self._try(self.pair.compare_trees)

    @rule()
    def drop_caches(self) -> None:
        drop_caches()

    @rule()
    def remount(self) -> None:
        self._try(self.pair.remount)

    @rule()
    def kill_the_daemon(self) -> None:
        self._try(self.pair.kill_and_mount)

    def teardown(self) -> None:
        try:
            if not self._failed:
                self.pair.check_at_rest()
        finally:
            self.pair.discard()


def _rule(name: str) -> object:
    def change(self: Changes, operation: Operation) -> None:
        self._try(lambda: self.pair.do(operation))

    change.__name__ = name
    return rule(operation=_operations(name))(change)


# A rule for each operation, since hypothesis leaves some rules out of each program; frequent
# operations have more than one.
for _name, _weight in WEIGHTS.items():
    for _number in range(1 + _weight // 4):
        setattr(Changes, f"{_name}{_number}", _rule(_name))


@pytest.mark.parametrize("clone", ["write", "open"])
@pytest.mark.timeout(900 * EFFORT)
def test_programs_of_operations_do_as_on_xfs(
    mount_copy: MountCopy, xfs: Path, mode: str, clone: str
) -> None:
    origin = Origin(mount_copy, make_source(xfs / "source"), (f"clone={clone}",))
    snapshots = mode == "passthrough" and clone == "write"
    numbers: Iterator[int] = itertools.count()

    def make_pair() -> Pair:
        number = next(numbers)
        return Pair(origin, f"copy{number}", xfs / f"native{number}", snapshots=snapshots)

    machine = functools.partial(Changes, make_pair)
    run_state_machine_as_test(
        cast("type[Changes]", seed(f"{SEED} {mode} {clone}")(machine)),
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
