"""Fixtures of the plays: the nursery of a module's actors, and the stage of a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from integration.effort import EFFORT
from integration.mounts import MountCopy
from integration.programs.actors import Nursery
from integration.programs.turns import Stage
from integration.watchdog import Watchdog

#: Seconds for a test: what fails is played again, to make it shorter.
SECONDS = 240


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(SECONDS * EFFORT))


@pytest.fixture(scope="module")
def nursery(request: pytest.FixtureRequest, session: Watchdog) -> Iterator[Nursery]:
    """Forks actors for the `Player` of the test's module."""
    nursery = Nursery(f"integration.programs.{Path(request.path).stem}")
    yield nursery
    nursery.close()


@pytest.fixture
def make_stage(mount_copy: MountCopy, nursery: Nursery, xfs: Path) -> Callable[..., Stage]:
    """`make_stage(fill, *options)`: `integration.programs.turns.Stage` in each mode."""

    def make(fill: Callable[[Path], None], *options: str) -> Stage:
        return Stage(mount_copy, nursery, xfs, fill, *options)

    return make
