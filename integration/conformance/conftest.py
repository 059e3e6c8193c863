"""Fixtures of the cases: one mount serves them all, so what is left behind is looked for once."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration import kernel
from integration.conformance.cases import Case
from integration.conformance.furniture import SHARE_MIN
from integration.conformance.runner import Stage
from integration.conftest import MODES
from integration.leaks import Leaks
from integration.mounts import MountCopy
from integration.volumes import Volume, remove_tree
from integration.watchdog import Watchdog

OPTIONS = ("suid", "dev", f"share_min={SHARE_MIN}")
SECONDS = 60  # that a test may take, before the connection of its mount is aborted


@pytest.fixture(autouse=True)
def nothing_left_behind(session: Watchdog) -> Iterator[None]:
    """In place of the check around each test: looking takes longer than a case does."""
    session.arm(SECONDS)
    yield
    session.disarm()


@pytest.fixture(scope="module")
def directory(session: Watchdog) -> Iterator[Path]:
    """For the mountpoints. Nothing may be left in it, or running, at the end."""
    leaks = Leaks()
    base = kernel.session_dir() / "tmp"
    base.mkdir(exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix="posix-", dir=base))
    path.chmod(0o755)
    yield path
    remove_tree(path)
    complaints = leaks.take_away()
    assert not complaints, "\n".join(complaints)


@pytest.fixture(scope="module")
def stage(request: pytest.FixtureRequest, xfs_volume: Volume, directory: Path) -> Iterator[Stage]:
    """Of the cases that this run has selected."""
    selected: list[Any] = [
        case
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and "case" in item.fixturenames
        and isinstance(case := item.callspec.params["case"], Case)
    ]
    root = xfs_volume.mountpoint / directory.name
    root.mkdir()
    yield Stage(root, selected)
    remove_tree(root)
    remove_tree(xfs_volume.mountpoint / ".cowfs")


ENGINES = {
    "passthrough": ("passthrough=on", *OPTIONS),
    "relayed": ("passthrough=off", *OPTIONS),
    "overlayfs": ("engine=overlay", *OPTIONS),
}


@pytest.fixture(scope="module", params=[*MODES, "overlayfs"])
def engine(request: pytest.FixtureRequest) -> str:
    """What serves the copies."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def copies(engine: str, stage: Stage, directory: Path) -> Iterator[MountCopy]:
    """Mounts copies in one mode."""
    below = directory / engine
    below.mkdir()
    mounts = MountCopy(below, ENGINES[engine])
    yield mounts
    mounts.clean_up()


@pytest.fixture(scope="module")
def copy(stage: Stage, copies: MountCopy) -> Path:
    """The copy in which the cases are done."""
    mountpoint = copies(stage.source)
    stage.settle(mountpoint)
    return mountpoint
