"""What takes long in one handler lets the others have their turns, and shows nothing half done.

The handlers are called by themselves, so that the order of things is known.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest
import trio

from cowfs.overlay import listing
from cowfs.overlay.inodes import ROOT_ID, Directory
from cowfs.overlay.links import LOOKED_UP
from cowfs.overlay.priming import Priming
from cowfs.system import syscalls
from integration.overlay.test_restore import World

NAMES = 5 * LOOKED_UP


@pytest.fixture
def world(xfs: Path) -> Iterator[World]:
    """A group of hard links, each in a directory of its own, and a directory of plain files."""
    tree = xfs / "tree"
    for number in range(NAMES):
        (tree / f"d{number}").mkdir(parents=True)
        if number:
            os.link(tree / "d0/name", tree / f"d{number}/name")
        else:
            (tree / "d0/name").write_bytes(b"data")
    for directory in ("full", "other"):
        (tree / directory).mkdir()
        for number in range(3):
            (tree / directory / f"f{number}").touch()
    world = World(xfs / "copy", tree)
    yield world
    world.close()


def context(uid: int = 0) -> SimpleNamespace:
    return SimpleNamespace(uid=uid, gid=uid, pid=os.getpid(), umask=0o022)


def change_of_mode(mode: int) -> tuple[pyfuse3.EntryAttributes, Any]:
    fields = {f"update_{name}": False for name in ("size", "uid", "gid", "atime", "mtime")}
    attributes = pyfuse3.EntryAttributes()
    attributes.st_mode = mode
    return attributes, SimpleNamespace(update_mode=True, **fields)


def upper_inodes(world: World) -> set[int]:
    names = (world.root / "upper" / f"d{number}/name" for number in range(NAMES))
    return {path.stat().st_ino for path in names if path.exists()}


async def chmod(world: World, nodeid: int, mode: int) -> None:
    await world.operations.setattr(nodeid, *change_of_mode(mode), None, context())


def test_names_of_a_file_change_together_while_others_are_served(world: World) -> None:
    nodeid = world.lookup("d0/name")
    directories = [world.lookup(f"d{number}") for number in range(NAMES)]
    before = world.stat(nodeid).st_mode
    done = trio.Event()
    served = 0

    async def change() -> None:
        await chmod(world, nodeid, 0o4711)
        done.set()

    async def look() -> None:
        nonlocal served
        while not done.is_set():
            if upper_inodes(world):  # in the middle of it
                for directory in directories:
                    found = await world.operations.lookup(directory, b"name", context())
                    assert (found.st_ino, found.st_mode) == (nodeid, before)
                served += 1
            await trio.lowlevel.checkpoint()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(change)
            nursery.start_soon(look)

    trio.run(main)
    assert served > 1
    assert len(upper_inodes(world)) == 1
    for number in range(NAMES):
        found = world.call("lookup", directories[number], b"name")
        assert (found.st_ino, stat.S_IMODE(found.st_mode)) == (nodeid, 0o4711)


def test_directories_that_move_meanwhile_take_their_names_along(world: World) -> None:
    """Among them those that were looked at already, and those that were not."""
    nodeid = world.lookup("d0/name")
    done = trio.Event()

    async def change() -> None:
        await chmod(world, nodeid, 0o4711)
        done.set()

    async def move() -> None:
        number = 1
        while not done.is_set() and number + 1 < NAMES:
            for old in (number, NAMES - number):
                name = b"d%d" % old
                await world.operations.rename(ROOT_ID, name, ROOT_ID, b"m" + name, 0, context())
            await trio.lowlevel.checkpoint()
            number += 1
            if number > NAMES // 2 - 1:
                return

    async def main() -> None:
        for number in range(NAMES):
            await world.operations.lookup(ROOT_ID, b"d%d" % number, context())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(change)
            nursery.start_soon(move)

    trio.run(main)
    found = list((world.root / "upper").glob("*/name"))
    assert len(found) == NAMES
    assert len({path.stat().st_ino for path in found}) == 1
    assert len({path.parent.name for path in found if path.parent.name.startswith("md")}) > 2


def test_a_group_that_cannot_get_all_names_gets_none(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodeid = world.lookup("d0/name")
    real, calls = syscalls.link_fd, 0

    def fails_late(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == NAMES - 2:
            raise OSError(28, "No space left on device")
        real(*args)

    monkeypatch.setattr(syscalls, "link_fd", fails_late)
    before = world.stat(nodeid).st_mode
    with pytest.raises(pyfuse3.FUSEError) as refused:
        trio.run(chmod, world, nodeid, 0o4711)
    assert refused.value.errno == 28
    assert not upper_inodes(world)
    assert not os.listdir(world.root / "work")
    assert world.stat(world.lookup(f"d{NAMES - 1}/name")).st_mode == before
    monkeypatch.undo()
    trio.run(chmod, world, nodeid, 0o4711)
    assert len(upper_inodes(world)) == 1


class Gate:
    """Lets a call in a thread wait until somebody else was served."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self.entered, self.opened = threading.Event(), threading.Event()

    def __call__(self, *args: Any) -> Any:
        self.entered.set()
        assert self.opened.wait(20), "nobody else was served meanwhile"
        return self._function(*args)


def test_whiteouts_of_a_removed_directory_are_cleared_away_beside_others(world: World) -> None:
    for number in range(3):
        world.do("unlink", f"full/f{number}")
    work: Any = world.overlay.work
    gate = work.clear_away = Gate(work.clear_away)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.operations.rmdir, ROOT_ID, b"full", context())
            assert await trio.to_thread.run_sync(gate.entered.wait, 20)
            assert (await world.operations.lookup(ROOT_ID, b"full", context())).st_ino == 0
            gate.opened.set()

    trio.run(main)
    assert not os.listdir(world.root / "work")


def test_whiteouts_of_a_replaced_directory_are_cleared_away_beside_others(world: World) -> None:
    for number in range(3):
        world.do("unlink", f"full/f{number}")
    nodeid = world.lookup("other")
    work: Any = world.overlay.work
    gate = work.clear_away = Gate(work.clear_away)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                world.operations.rename, ROOT_ID, b"other", ROOT_ID, b"full", 0, context()
            )
            assert await trio.to_thread.run_sync(gate.entered.wait, 20)
            assert (await world.operations.lookup(ROOT_ID, b"full", context())).st_ino == nodeid
            gate.opened.set()

    trio.run(main)
    assert world.names(nodeid) == {b"f0", b"f1", b"f2"}
    assert not os.listdir(world.root / "work")


def test_an_open_that_fails_after_it_was_counted_is_taken_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodeid = world.lookup("d0/name")

    def fails(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(world.operations, "_drop_privileges", fails)
    with pytest.raises(OSError, match="Input/output"):
        world.call("open", nodeid, os.O_RDWR | os.O_TRUNC)
    assert world.channel.files[nodeid][3:] == [0, 0]
    monkeypatch.setattr(world.operations, "_entry", fails)
    for name in (b"new", b"/"):  # with a name, and without
        with pytest.raises(OSError, match="Input/output"):
            world.call("create", ROOT_ID, name, stat.S_IFREG | 0o644, os.O_RDWR)
    assert all(file[3:] == [0, 0] for file in world.channel.files.values())
    assert not world.vault.held
    for nodeid in list(world.channel.files):
        world.channel.forget(nodeid)


def test_a_primed_name_that_nobody_asks_for_makes_room(world: World) -> None:
    """Its node, and its directory, are not kept for it."""
    world.forget(world.lookup("full"))
    nodes = world.overlay.nodes
    before = len(nodes)
    inodes = [(world.tree / f"full/f{number}").stat().st_ino for number in range(3)]

    class Table:
        def prime(
            self, _parent: int, _fd: int, names: list[bytes]
        ) -> tuple[list[tuple[bytes, int]], list[int]]:
            return [(name, inodes[int(name[1:])]) for name in names], given_up

    channel: Any = Table()
    priming = Priming(world.overlay, channel)
    given_up: list[int] = []
    full, _st = world.overlay.lookup(nodes.root, b"full")
    assert isinstance(full, Directory)
    priming._prime_batch(full, [b"f0", b"f1"])
    assert len(nodes) == before + 3
    given_up = [inodes[0]]
    priming._prime_batch(full, [b"f2"])
    assert inodes[0] not in nodes
    given_up = inodes[1:]
    priming._prime_batch(full, [])
    assert len(nodes) == before


def test_listings_are_kept_within_bounds(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    overlay = world.overlay
    monkeypatch.setattr(listing, "KEPT_LISTINGS", 3)
    directories = [world.lookup(f"d{number}") for number in range(4)]
    for nodeid in directories:
        overlay.listings.of(overlay.nodes.directory(nodeid))
    kept = overlay.listings._kept
    assert [overlay.nodes.directory(nodeid) in kept for nodeid in directories] == [
        *(False, True, True, True)
    ]
    monkeypatch.setattr(listing, "KEPT_NAMES", 4)
    large = overlay.nodes.directory(world.lookup("full"))
    assert len(overlay.listings.of(large)) == 3
    assert overlay.nodes.directory(directories[2]) not in kept
    assert overlay.nodes.directory(directories[3]) in kept
    root = overlay.listings.of(overlay.nodes.root)  # the last one, whatever its size
    assert len(root) == NAMES + 2
    assert large not in kept
    assert overlay.listings.of(overlay.nodes.root) is root


def test_cookies_of_a_listing_say_the_same_however_it_came_about() -> None:
    names = [b"name%d" % number for number in range(500)]
    made = listing.Listing((name, False) for name in names)
    grown = listing.Listing(iter(()))
    for name in (*names, b"gone"):
        grown.add(name, is_directory=False)
    grown.remove(b"gone", is_directory=False)
    assert list(grown.after(0)) == list(made.after(0))
    place, _name = list(made.after(0))[250]
    assert list(made.after(place)) == list(made.after(0))[250:]
    for name in names:
        grown.remove(name, is_directory=False)
    assert grown.is_empty()


def test_names_with_one_hash_have_places_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listing, "_hash", lambda name: len(name))
    made = listing.Listing((name, False) for name in (b"b", b"aa", b"a", b"c"))
    assert list(made.after(0)) == [(1, b"a"), (2, b"b"), (3, b"c"), (4, b"aa")]
    made.remove(b"a", is_directory=False)
    made.remove(b"b", is_directory=False)
    made.remove(b"aa", is_directory=False)
    assert list(made.after(0)) == [(3, b"c")]


def test_a_deep_tree_costs_no_more_than_its_names(xfs: Path) -> None:
    """A path for each of its directories would grow with the square of the depth, and opening each
    by its path would take as long."""
    depth, name = 15, b"n" * 200
    path = b"/".join([name] * depth)
    (xfs / "tree" / os.fsdecode(path)).mkdir(parents=True)
    world = World(xfs / "copy", xfs / "tree")
    try:
        layers, directory = world.overlay.layers, world.overlay.nodes.root
        opened: list[bytes] = []

        class Counting(type(layers)):  # type: ignore[misc]
            def open_lower(self, path: bytes, flags: int) -> int:
                opened.append(path)
                return int(super().open_lower(path, flags))

        layers.__class__ = Counting
        kept = 0
        for _ in range(depth):
            node, _st = world.overlay.lookup(directory, name)
            assert isinstance(node, Directory)
            assert node.lower_path is not None
            kept += len(node.lower_path.name)
            node.lookups += 1
            layers.lower(node)
            directory = node
        assert directory.template_path == path
        assert (kept, opened) == (depth * len(name), [])
        # One that was moved is found by its path.
        layers.close_directory(directory)
        directory.displace()
        layers.lower(directory)
        assert opened == [path]
    finally:
        world.close()
