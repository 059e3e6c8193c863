"""Offers to the channel are taken back when nothing else can come in between."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import trio
import trio.testing

from cowfs.overlay.inodes import ROOT_ID
from cowfs.system import syscalls
from integration.overlay.test_restore import NoTouching, World


class TakenBack(NoTouching):
    """The nodes whose offers were taken back since others were made."""

    def __init__(self) -> None:
        self.nodes: list[object] = []

    def take_back(self, node: object) -> None:
        self.nodes.append(node)


def test_nothing_is_offered_whose_name_changes_after_a_wait(xfs: Path) -> None:
    source = xfs / "source"
    for name in ("moved", "other"):
        (source / name).mkdir(parents=True)
    (source / "other" / "file").touch()
    world = World(xfs / "copy", source)
    moved, other, file = (world.lookup(path) for path in ("moved", "other", "other/file"))
    operations: Any = world.operations
    operations.touching = taken_back = TakenBack()
    ctx = SimpleNamespace(uid=0, gid=0, pid=os.getpid(), umask=0)
    exchange = (ROOT_ID, b"/2/moved", other, b"file", syscalls.RENAME_EXCHANGE, ctx)
    seen: list[object] = []

    def rename(*args: Any) -> Any:
        seen.extend(taken_back.nodes)
        return original(*args)

    async def wait_for_another_rename() -> None:
        async with trio.open_nursery() as nursery, operations._backing.moving:
            nursery.start_soon(operations.rename, *exchange)
            await trio.testing.wait_all_tasks_blocked()
            taken_back.nodes.clear()  # all may be offered again

    original = world.overlay.rename
    with mock.patch.object(world.overlay, "rename", rename):
        trio.run(wait_for_another_rename)
    assert world.lookup("moved") == file
    assert set(seen) == {world.overlay.nodes.get(moved), world.overlay.nodes.get(file)}
    world.close()
