"""System calls come out in a copy as on XFS, wherever in the copy the files are that they meet."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.conformance.cases import Case
from integration.conformance.families import CASES
from integration.conformance.furniture import furnish
from integration.conformance.overlayfs import DIFFERENT, ENDLESS
from integration.conformance.processes import apart
from integration.conformance.readonly import allow_what_changes_nothing, refuse_every_change
from integration.conformance.runner import Stage, as_it_is, by_overlayfs
from integration.mounts import MountCopy
from integration.trees import tree_state
from integration.volumes import unmount


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(stage: Stage, copy: Path, engine: str, case: Case) -> None:
    if engine == "overlayfs":
        stage.check_overlayfs(case, copy)
    else:
        stage.check(case, copy)


def test_every_difference_of_overlayfs_is_that_of_a_case() -> None:
    assert DIFFERENT.keys() | ENDLESS.keys() <= {case.name for case in CASES}


@pytest.mark.quick
def test_read_only_mount_refuses_every_change_and_nothing_else(
    stage: Stage, copies: MountCopy, engine: str
) -> None:
    source = stage.source.parent / "plain"
    if not source.exists():
        source.mkdir()
        apart(_inside(source, furnish))
    native = copies.mountpoint()
    subprocess.run(["mount", "--bind", source, native], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", native], check=True)
    copy = copies(source, None, "ro")
    for root in (native, copy):
        apart(_inside(root, refuse_every_change))
        apart(_inside(root, allow_what_changes_nothing))
    show = by_overlayfs if engine == "overlayfs" else as_it_is
    assert show(tree_state(copy)) == show(tree_state(native))
    copies.unmount(copy)
    unmount(native)


def _inside(root: Path, act: Callable[[], object]) -> Callable[[], object]:
    def inside() -> object:
        os.chdir(root)
        return act()

    return inside


def test_what_the_cases_left_is_there_after_a_remount(
    stage: Stage, copies: MountCopy, copy: Path, engine: str
) -> None:
    copies.unmount(copy)
    copies(stage.source, copy)
    show = by_overlayfs if engine == "overlayfs" else as_it_is
    stage.check_trees(copy, ("moved", "new"), show=show)
