"""The first listing of a large directory is made in pieces; what changes meanwhile is in it.

The handlers are called by themselves, and a piece is a few names, so that small directories do.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest
import trio

from cowfs.overlay import listing, operations
from cowfs.overlay.inodes import ROOT_ID, Directory
from cowfs.overlay.listing import Listing
from integration.overlay.test_restore import EXCHANGE, SEED, World

FILES, SUBDIRECTORIES = 30, 10
ROUNDS = 20


@pytest.fixture
def world(xfs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Directories that are merged of both layers, so that their links have to be counted."""
    for directory in ("large", "d0", "d1", "d2", "d3", "gone"):
        (xfs / "tree" / directory).mkdir(parents=True)
        for number in range(FILES):
            (xfs / "tree" / directory / f"f{number}").touch()
    for number in range(SUBDIRECTORIES):
        (xfs / f"tree/large/s{number}").mkdir()
    world = World(xfs / "copy", xfs / "tree")
    for directory in ("large", "d0", "d1", "d2", "d3"):
        world.do("unlink", f"{directory}/f0")
    for number in range(FILES):
        world.do("unlink", f"gone/f{number}")
    monkeypatch.setattr(listing, "READ", 4)
    monkeypatch.setattr(operations, "LISTED", 4)
    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)
    yield world
    world.close()


def reply(token: list[tuple[bytes, Any, int]], name: bytes, attributes: Any, next_: int) -> bool:
    token.append((name, attributes, next_))
    return True


async def read(world: World, nodeid: int, told: list[bytes]) -> None:
    """As the kernel does: from behind the last name again, until there is none."""
    place = 0
    while True:
        entries: list[tuple[bytes, Any, int]] = []
        await world.operations.readdir(nodeid, place, entries)
        for name, attributes, _next in entries:
            node = world.overlay.nodes.by_ino(attributes.st_ino)
            if isinstance(node, Directory) and name not in (b".", b".."):
                now = world.overlay.nlink(node, world.overlay.getattr(node))
                assert attributes.st_nlink == now  # the kernel is told what is true then
        if not entries:
            return
        told += [name for name, _attributes, _next in entries]
        place = entries[-1][2]


def directory_of(world: World, path: str) -> Directory:
    entry = trio.run(world.operations.lookup, ROOT_ID, os.fsencode(path), context())
    directory = world.overlay.nodes.directory(entry.st_ino)
    world.overlay.listings.drop(directory)
    return directory


def made_anew(world: World, directory: Directory) -> Listing:
    return Listing(world.overlay.listings._merge(directory))


def context() -> SimpleNamespace:
    return SimpleNamespace(uid=0, gid=0, pid=os.getpid(), umask=0o022)


def beside(world: World, *requests: Callable[[], Any], until: Callable[[], bool]) -> int:
    """How often somebody else was served while the requests were, before it was so."""
    served = under_way = 0

    async def ask(request: Callable[[], Any]) -> None:
        nonlocal under_way
        await request()
        under_way -= 1

    async def main() -> None:
        nonlocal served, under_way
        under_way = len(requests)
        async with trio.open_nursery() as nursery:
            for request in requests:
                nursery.start_soon(ask, request)
            while under_way:
                await world.operations.lookup(ROOT_ID, b"nothing", context())
                served += not until()
                await trio.lowlevel.checkpoint()

    trio.run(main)
    return served


def test_others_are_served_while_a_directory_is_listed_first(world: World) -> None:
    large = directory_of(world, "large")
    told: list[bytes] = []
    turns = world.operations._backing.turns
    before = turns.taken
    served = beside(
        world,
        lambda: read(world, large.nodeid, told),
        until=lambda: world.overlay.listings.kept(large) is not None,
    )
    assert served > (FILES + SUBDIRECTORIES) // 4
    assert turns.taken - before > (FILES + SUBDIRECTORIES) // 4  # it is progress
    names = {b"f%d" % n for n in range(1, FILES)} | {b"s%d" % n for n in range(SUBDIRECTORIES)}
    assert len(told) == len(names) + 2
    assert set(told) == names | {b".", b".."}


@pytest.mark.parametrize("request_", ["lookup", "getattr", "getxattr", "setattr", "readdir"])
def test_others_are_served_while_the_links_of_a_directory_are_counted(
    world: World, request_: str
) -> None:
    large = directory_of(world, "large")
    fields = {f"update_{name}": False for name in ("size", "mode", "uid", "atime", "mtime")}
    change = SimpleNamespace(update_gid=True, **fields)
    attributes = pyfuse3.EntryAttributes()
    attributes.st_gid = 5
    arguments: dict[str, tuple[Any, ...]] = {
        "lookup": (ROOT_ID, b"large", context()),
        "getattr": (large.nodeid, context()),
        "getxattr": (large.nodeid, b"/statx", context()),
        "setattr": (large.nodeid, attributes, change, None, context()),
        "readdir": (world, ROOT_ID, []),
    }
    call = read if request_ == "readdir" else getattr(world.operations, request_)
    assert (
        beside(
            world,
            lambda: call(*arguments[request_]),
            until=lambda: world.overlay.listings.kept(large) is not None,
        )
        > (FILES + SUBDIRECTORIES) // 4
    )
    assert large.children == 0
    assert world.stat(large.nodeid).st_nlink == 2 + SUBDIRECTORIES


def test_others_are_served_while_a_directory_is_found_to_be_empty(world: World) -> None:
    """It has nothing but whiteouts, and each is looked at."""
    gone = directory_of(world, "gone")
    served = beside(
        world,
        lambda: world.operations.rmdir(ROOT_ID, b"gone", context()),
        until=lambda: world.overlay.listings.kept(gone) is not None or gone.parent is None,
    )
    assert gone.parent is None
    assert served > FILES // 4


def test_what_changes_meanwhile_is_in_the_listing(world: World) -> None:
    """Names come, go, and change from a file to a directory, before they were read and after."""
    large = directory_of(world, "large")
    chance = random.Random(SEED)
    numbers = itertools.count()

    def change() -> None:
        shown = made_anew(world, large)
        one, other = chance.sample([name for _place, name in shown.after(0)], 2)
        names = [b"f%d" % number for number in range(FILES)] + [b"n%d" % next(numbers)]
        free = chance.choice([name for name in names if name not in shown])
        kind = chance.randrange(6)
        try:
            if kind == 0:
                world.change("unlink", large.nodeid, one)
            elif kind == 1:
                world.change("rmdir", large.nodeid, one)
            elif kind == 2:
                world.change("mkdir", large.nodeid, free, 0o755)
            elif kind == 3:
                world.change("mknod", large.nodeid, free, stat.S_IFREG | 0o644, 0)
            else:
                flags = EXCHANGE if kind == 4 else 0
                world.change("rename", large.nodeid, one, large.nodeid, other, flags)
        except OSError as error:
            assert error.errno in (errno.EISDIR, errno.ENOTDIR, errno.EEXIST)  # noqa: PT017

    changed = 0
    for _ in range(ROUNDS):
        world.overlay.listings.drop(large)
        for _ in world.overlay.listings.made(large):
            if chance.random() < 0.7:  # fewer than are entered in a piece
                change()
                changed += 1
        made, right = world.overlay.listings.kept(large), made_anew(world, large)
        assert made is not None
        assert list(made.after(0)) == list(right.after(0))
        assert made.subdirectories == right.subdirectories
    assert changed > ROUNDS


def test_two_that_begin_together_read_it_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = directory_of(world, "large")
    real, reads = listing._scan, 0

    def scan(fd: int) -> Iterator[tuple[bytes, int]]:
        nonlocal reads
        reads += 1
        return real(fd)

    monkeypatch.setattr(listing, "_scan", scan)
    told: list[list[bytes]] = [[], []]
    beside(
        world,
        *(lambda one=one: read(world, large.nodeid, one) for one in told),
        until=lambda: False,
    )
    assert told[0] == told[1]
    assert len(told[0]) == FILES + SUBDIRECTORIES + 1
    assert reads == 2  # one for each layer


def test_an_error_half_way_is_for_one_and_leaves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = directory_of(world, "large")
    real, fails = listing._scan, True

    def scan(fd: int) -> Iterator[tuple[bytes, int]]:
        nonlocal fails
        for count, entry in enumerate(real(fd)):
            if fails and count > FILES // 2:
                fails = False
                raise OSError(errno.EIO, "Input/output error")
            yield entry

    monkeypatch.setattr(listing, "_scan", scan)
    outcomes: list[int] = []

    async def try_to_read() -> None:
        told: list[bytes] = []
        try:
            await read(world, large.nodeid, told)
            outcomes.append(len(told))
        except pyfuse3.FUSEError as error:
            outcomes.append(-error.errno)

    beside(world, try_to_read, try_to_read, until=lambda: False)
    assert sorted(outcomes) == [-errno.EIO, FILES + SUBDIRECTORIES + 1]
    assert not world.overlay.listings._making


def test_an_error_of_one_directory_is_not_that_of_who_waits_for_another(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is room for one of them, so whoever wants the second goes on with the first."""
    monkeypatch.setattr(listing, "MADE_AT_ONCE", 1)
    first, second = directory_of(world, "d0"), directory_of(world, "d1")
    real, failing = listing._scan, world.overlay.layers.lower(first)

    def scan(fd: int) -> Iterator[tuple[bytes, int]]:
        for count, entry in enumerate(real(fd)):
            if fd == failing and count > FILES // 2:
                raise OSError(errno.EIO, "Input/output error")
            yield entry

    monkeypatch.setattr(listing, "_scan", scan)
    listings = world.overlay.listings
    next(listings.made(first))
    assert len(listings.of(second)) == FILES - 1
    with pytest.raises(OSError, match="Input/output"):
        listings.of(first)


def test_few_are_made_at_once_and_all_are_made(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "MADE_AT_ONCE", 2)
    directories = [directory_of(world, path) for path in ("large", "d0", "d1", "d2", "d3")]
    most = 0

    def look() -> bool:
        nonlocal most
        most = max(most, len(world.overlay.listings._making))
        return False

    requests = (
        lambda nodeid=directory.nodeid: read(world, nodeid, []) for directory in directories
    )
    beside(world, *requests, until=look)
    assert most == 2
    assert all(world.overlay.listings.kept(directory) is not None for directory in directories)


def test_a_directory_that_is_removed_while_its_links_are_counted(world: World) -> None:
    gone = directory_of(world, "gone")
    links: list[int] = []

    async def count() -> None:
        links.append((await world.operations.getattr(gone.nodeid, context())).st_nlink)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            while gone not in world.overlay.listings._making:
                await trio.lowlevel.checkpoint()
            world.overlay.rmdir(world.overlay.nodes.root, b"gone")

    trio.run(main)
    assert links == [0]
    assert not world.overlay.listings._making
    assert world.overlay.listings.kept(gone) is None


def test_what_is_told_of_directories_is_true_when_it_is_told(world: World) -> None:
    """They change while the links of others are counted."""
    directories = [directory_of(world, path) for path in ("large", "d0", "d1", "d2", "d3")]
    told: list[bytes] = []
    changes = 0

    async def change() -> None:
        nonlocal changes
        while True:
            for directory in directories:
                name = b"new%d" % changes
                await world.operations.mkdir(directory.nodeid, name, 0o755, context())
            changes += 1
            await trio.lowlevel.checkpoint()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(change)
            await read(world, ROOT_ID, told)
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert changes > 5
    assert sorted(told) == [b".", b"..", b"d0", b"d1", b"d2", b"d3", b"gone", b"large"]
