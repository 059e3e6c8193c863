"""A daemon that takes over finds every node that the kernel holds, and answers what comes again.

No mount: the handlers are called as pyfuse3 calls them, by a client that holds names and node ids
as the kernel does. A kill ends an operation at any change that it makes on the disk; what survives
is the disk, the vault, and the channel's table of open files. effort.py makes more and other
programs.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pyfuse3
import pytest
import trio
import xattr
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from cowfs.overlay import index, restore
from cowfs.overlay.backing import Backing
from cowfs.overlay.index import InodeIndex, shown
from cowfs.overlay.inodes import ROOT_ID, NotYetFound
from cowfs.overlay.inplace import InPlace
from cowfs.overlay.operations import Operations
from cowfs.overlay.overlay import Overlay
from cowfs.overlay.pieces import at_once
from cowfs.overlay.restore import Restoration
from cowfs.store import copies
from cowfs.system import syscalls
from integration.effort import EFFORT, SEED

EXAMPLES = 20 * EFFORT
STEPS = 40
USER = 1000
EXCHANGE = syscalls.RENAME_EXCHANGE


class Killed(BaseException):
    """The daemon has ended here."""


class Executioner:
    """Ends the daemon instead of its Nth change from now on; what it tries later is not done."""

    def __init__(self) -> None:
        self.left: int | None = None

    def pass_by(self) -> None:
        if self.left is None:
            return
        self.left -= 1
        if self.left < 0:
            raise Killed

    def watch(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.pass_by()
            return function(*args, **kwargs)

        return watched

    @contextmanager
    def watching(self) -> Iterator[None]:
        names = "rename unlink mkdir mknod symlink rmdir utime chown chmod ftruncate"
        places: list[tuple[object, str]] = [(os, name) for name in names.split()]
        places += [(syscalls, name) for name in ("renameat2", "link_fd", "open_tmpfile", "ficlone")]
        places += [(xattr, "setxattr"), (xattr, "removexattr")]
        patches = [
            mock.patch.object(place, name, self.watch(getattr(place, name)))
            for place, name in places
        ]
        for patch in patches:
            patch.start()
        try:
            yield
        finally:
            for patch in patches:
                patch.stop()


class FakeVault:
    """The keeper's side: it survives."""

    def __init__(self, executioner: Executioner) -> None:
        self._executioner = executioner
        self.held: dict[str, int] = {}

    def put(self, name: str, fd: int) -> None:
        self._executioner.pass_by()
        assert len(name) <= 200
        assert name.isascii()
        if name in self.held:
            os.close(self.held[name])
        self.held[name] = os.dup(fd)

    def drop(self, name: str) -> None:
        self._executioner.pass_by()
        if name in self.held:
            os.close(self.held.pop(name))

    def hand_out(self) -> dict[str, int]:
        return {name: os.dup(fd) for name, fd in self.held.items()}

    def close(self) -> None:
        for fd in self.held.values():
            os.close(fd)


class FakeChannel:
    """The channel's table: it survives, too. A reader of a shared file has it by passthrough."""

    def __init__(self) -> None:
        self.files: dict[int, list[Any]] = {}  # node id: fd, kind, reading, readers, writers
        self.mappable: set[int] = set()
        self.told: list[tuple[Any, ...]] = []

    def open(self, nodeid: int, writing: bool, _uid: int) -> bool:
        if nodeid not in self.files:
            return False
        self.files[nodeid][3 + writing] += 1
        return True

    def unopen(self, nodeid: int, writing: bool) -> None:
        self.files[nodeid][3 + writing] -= 1

    def is_scarce(self) -> bool:
        return False

    def require_room(self, uid: int) -> None:
        pass

    def hold(self, nodeid: int, uid: int) -> None:
        pass

    def let(self, nodeid: int) -> None:
        pass

    def count_copy_up(self, took_ns: int) -> None:
        pass

    def attach(
        self, nodeid: int, fd: int, kind: int, reading: int, writing: bool, _uid: int
    ) -> None:
        assert nodeid not in self.files
        self.files[nodeid] = [fd, kind, reading, 1 - writing, int(writing)]

    def switch(self, nodeid: int, fd: int) -> bool:
        if nodeid not in self.files:
            return False
        os.close(self.files[nodeid][0])
        self.files[nodeid][:2] = [fd, 1]
        return True

    def revoke(self, nodeid: int) -> tuple[int, int, int, bool] | None:
        if nodeid not in self.files:
            return None
        _fd, kind, reading, readers, writers = self.files[nodeid]
        if readers + writers == 0:
            self.forget(nodeid)
            return None
        return kind, readers, writers, reading == 1

    def is_shared(self, nodeid: int) -> bool:
        return nodeid in self.files and self.files[nodeid][1] == 0

    def writers(self, nodeid: int) -> int:
        return int(self.files[nodeid][4]) if nodeid in self.files else 0

    def is_volatile(self, nodeid: int) -> bool:
        if nodeid in self.mappable:
            return True
        return self._is_passed_through(nodeid) and self.files[nodeid][4] > 0

    def mark_mappable(self, nodeid: int) -> None:
        if self._is_passed_through(nodeid):
            self.mappable.add(nodeid)

    def _is_passed_through(self, nodeid: int) -> bool:
        return nodeid in self.files and self.files[nodeid][2] == 1

    def backing_fd(self, nodeid: int) -> int:
        if nodeid not in self.files:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return os.dup(self.files[nodeid][0])

    def invalidate_entry(self, parent: int, name: bytes) -> None:
        self.told.append(("entry", parent, name))

    def invalidate_attr(self, nodeid: int) -> None:
        self.told.append(("attr", nodeid))

    def invalidate_listing(self, nodeid: int) -> None:
        self.told.append(("listing", nodeid))

    def forget(self, nodeid: int) -> None:
        if nodeid in self.files:
            os.close(self.files.pop(nodeid)[0])
        self.mappable.discard(nodeid)

    def release_all(self, nodeid: int) -> None:
        if nodeid in self.files:
            self.files[nodeid][3:] = [0, 0]

    def close(self) -> None:
        for nodeid in list(self.files):
            self.forget(nodeid)


class NoPriming:
    def looked_up(self, directory: object) -> None:
        pass

    def take_back(self, node: object) -> None:
        pass


class NoTouching:
    def take(self) -> None:
        pass

    def take_back(self, node: object) -> None:
        pass

    def changed(self, node: object) -> None:
        pass

    @contextmanager
    def making_no_offers(self) -> Iterator[None]:
        yield


class World:
    """A copy that is served, killed, and served again."""

    def __init__(self, root: Path, tree: Path) -> None:
        root.mkdir()
        (root / "upper").mkdir()
        (root / "work").mkdir()
        self.root, self.tree = root, tree
        names: dict[int, list[bytes]] = {}
        for path in sorted(tree.rglob("*")):
            if not path.is_dir() and path.lstat().st_nlink > 1:
                names.setdefault(path.lstat().st_ino, []).append(bytes(path.relative_to(tree)))
        self._groups = list(names.values())
        self._executioner = Executioner()
        self.vault = FakeVault(self._executioner)
        self.channel = FakeChannel()
        self._umask = os.umask(0)
        self._requests = itertools.count(2, 2)
        self.was_cut_short = False
        self.kills = 0
        self.start()

    def start(self) -> None:
        for name in ("upper", "work"):
            setattr(self, name, os.open(self.root / name, os.O_RDONLY))
        copies._undo_unfinished_groups(self.work, self.upper)  # type: ignore[attr-defined]
        os.close(self.upper)  # type: ignore[attr-defined]
        os.close(self.work)  # type: ignore[attr-defined]
        fds = (os.open(path, os.O_PATH) for path in (self.tree, self.root / "upper"))
        self.overlay = Overlay(
            *fds, os.open(self.root / "work", os.O_PATH), self._groups, self.vault
        )
        self.restoration = Restoration(self.overlay, self.vault.hand_out())
        priming: Any = NoPriming()
        touching: Any = NoTouching()
        backing = Backing(
            self.overlay,
            self.channel,
            priming,
            touching,
            passthrough=True,
            share_min=0,
            read_only=False,
            clone="auto",
            in_place=InPlace(),
            synchronous=False,
        )
        self.operations = Operations(
            self.overlay,
            backing,
            priming,
            touching,
            read_only=False,
            on_forgotten=self.channel.forget,
        )

    def kill(self) -> None:
        """Nothing is put away: closing descriptors is what the kernel does, too."""
        self.overlay.close()
        self.close_forgotten()
        self.start()

    def close_forgotten(self) -> None:
        """Descriptors that are open for nothing: of an operation that was cut short, at most."""
        known = {*self.vault.held.values(), *(file[0] for file in self.channel.files.values())}
        for name in os.listdir("/proc/self/fd"):
            try:
                path = os.readlink(f"/proc/self/fd/{name}")
            except FileNotFoundError:
                continue  # that of the listing itself
            if int(name) not in known and path.startswith(str(self.root.parent)):
                assert self.was_cut_short, path
                os.close(int(name))
        self.was_cut_short = False

    def close(self) -> None:
        self.overlay.close()
        self.close_forgotten()
        self.vault.close()
        self.channel.close()
        os.umask(self._umask)
        shutil.rmtree(self.root)

    def call(self, name: str, *args: Any, uid: int = 0) -> Any:
        """A request of *uid*; OSError as its caller sees it."""
        ctx = SimpleNamespace(uid=uid, gid=uid, pid=os.getpid(), umask=0o022)
        try:
            if name not in ("lookup", "getattr") or args[0] not in self.overlay.nodes:
                return trio.run(lambda: getattr(self.operations, name)(*args, ctx))
            try:
                getattr(self.operations, name)(*args, ctx).send(None)
            except StopIteration as done:  # these wait for nothing, and come often
                return done.value
            raise AssertionError(name)
        except pyfuse3.FUSEError as error:
            raise OSError(error.errno, os.strerror(error.errno)) from None

    def change(self, name: str, *args: Any, kill_at: int | None = None, uid: int = 0) -> Any:
        """A request during which the daemon may be killed; then it comes again, marked."""
        exchange = name == "rename" and args[4] == EXCHANGE
        if exchange:
            args = (args[0], b"/%d/%s" % (next(self._requests), args[1]), *args[2:])
        self._executioner.left = kill_at
        try:
            with self._executioner.watching():
                answer = self.call(name, *args, uid=uid)
                self._executioner.pass_by()  # after the last change, before the answer
            return answer
        except Killed:
            self.was_cut_short = True
            self.kills += 1
        finally:
            self._executioner.left = None
        self.kill()
        return self.call(name, *self._marked(name, args, exchange), uid=uid)

    @staticmethod
    def _marked(name: str, args: tuple[Any, ...], exchange: bool) -> tuple[Any, ...]:
        if name in ("setattr", "open") or (name == "create" and args[1] == b"/"):
            return args
        if name == "rename":
            old = args[1] if exchange else b"/" + args[1]
            return (args[0], old, args[2], b"/" + args[3], args[4])
        at, mark = {"link": (2, b"/"), "removexattr": (1, b"//"), "setxattr": (1, b"//")}.get(
            name, (1, b"/")
        )
        return (*args[:at], mark + args[at], *args[at + 1 :])

    # -- what a user asks

    def lookup(self, path: str) -> int:
        """The node id of a path, one lookup more for each component."""
        nodeid = ROOT_ID
        for part in path.split("/") if path else ():
            nodeid = self.call("lookup", nodeid, os.fsencode(part)).st_ino
            if nodeid == 0:
                raise FileNotFoundError(errno.ENOENT, path)
        return nodeid

    def stat(self, nodeid: int) -> pyfuse3.EntryAttributes:
        return self.call("getattr", nodeid)

    def read(self, nodeid: int) -> bytes:
        """What whoever has the node open reads, or would read."""
        node = self.overlay.nodes.get(nodeid)
        if node.replaced:
            return os.pread(self.channel.files[nodeid][0], 100, 0)
        fd = self.overlay.layers.open(node, os.O_RDONLY)
        try:
            return os.pread(fd, 100, 0)
        finally:
            os.close(fd)

    def names(self, nodeid: int) -> set[bytes]:
        directory = self.overlay.nodes.directory(nodeid)
        return {name for _place, name in self.overlay.listings.of(directory).after(0)}

    def forget(self, nodeid: int, count: int = 1000) -> None:
        trio.run(self.operations.forget, [(nodeid, count)])

    def make(self, path: str, data: bytes = b"") -> int:
        parent, name = self._split(path)
        nodeid = self.change("create", parent, name, stat.S_IFREG | 0o644, os.O_RDWR)[1].st_ino
        os.pwrite(self.channel.files[nodeid][0], data, 0)
        self.channel.release_all(nodeid)
        return nodeid

    def make_unnamed(self) -> None:
        args = (ROOT_ID, b"/", stat.S_IFREG | 0o600, os.O_RDWR)
        self.unnamed = self.change("create", *args)[1].st_ino
        self.channel.release_all(self.unnamed)

    def do(self, name: str, path: str, *args: Any, kill_at: int | None = None) -> Any:
        return self.change(name, *self._split(path), *args, kill_at=kill_at)

    def rename(self, old: str, new: str, flags: int = 0, kill_at: int | None = None) -> None:
        self.change("rename", *self._split(old), *self._split(new), flags, kill_at=kill_at)

    def _split(self, path: str) -> tuple[int, bytes]:
        parent, _, name = path.rpartition("/")
        return self.lookup(parent), os.fsencode(name)


def make_tree(tree: Path) -> Path:
    """d0..d2 with two directories each; files everywhere, some of them with a second name."""
    tree.mkdir()
    for number in range(3):
        for directory in (f"d{number}", f"d{number}/s0", f"d{number}/s1"):
            (tree / directory).mkdir()
            for name in ("f0", "f1"):
                (tree / directory / name).write_bytes(os.fsencode(f"{directory}/{name}"))
        (tree / f"d{number}/l").symlink_to("f0")
        os.link(tree / f"d{number}/f0", tree / f"d{number}/s0/h")
    os.mkfifo(tree / "d0/p")
    os.link(tree / "d0/p", tree / "d1/p")
    return tree


@pytest.fixture
def world(xfs: Path) -> Iterator[World]:
    world = World(xfs / "copy", make_tree(xfs / "tree"))
    yield world
    world.close()


# --- nodes ----------------------------------------------------------------------------------------


def held(world: World) -> dict[str, int]:
    """Every path of the copy, and the node id that it has been given out with."""
    found = {"": ROOT_ID}
    pending = [""]
    while pending:
        path = pending.pop()
        for name in world.names(found[path]):
            child = f"{path}/{os.fsdecode(name)}" if path else os.fsdecode(name)
            found[child] = world.call("lookup", found[path], name).st_ino
            if stat.S_ISDIR(world.stat(found[child]).st_mode):
                pending.append(child)
    return found


def check_found(world: World, nodes: dict[str, int], *, order: int = 1) -> None:
    """After a kill every node is asked for by its number first, then by its name."""
    before = {path: (world.stat(n).st_mode, world.stat(n).st_size) for path, n in nodes.items()}
    world.kill()
    for path in list(before)[::order]:
        shown = world.stat(nodes[path])
        assert (shown.st_mode, shown.st_size) == before[path], path
        assert shown.st_ino == nodes[path]
    assert held(world) == nodes


@pytest.mark.parametrize("order", [1, -1], ids=["parents first", "children first"])
def test_nodes_of_the_template_are_found_by_their_number(world: World, order: int) -> None:
    check_found(world, held(world), order=order)


@pytest.mark.parametrize("order", [1, -1], ids=["parents first", "children first"])
def test_nodes_are_found_where_changes_have_put_them(world: World, order: int) -> None:
    world.rename("d0", "moved")
    world.rename("moved/s0", "d1/s0-of-d0")
    world.do("mkdir", "new", 0o755)
    world.rename("d2", "new/deep")
    world.make("new/deep/s1/file", b"made")
    world.rename("new/deep/f1", "d1/f1")  # replaces
    world.do("unlink", "d1/s1/f0")
    world.do("unlink", "d1/s1/f1")
    world.do("rmdir", "d1/s1")
    world.do("mkdir", "d1/s1", 0o755)  # hides what the template has there
    world.make("d1/s1/f0", b"other")
    check_found(world, held(world), order=order)


def test_directories_that_are_renamed_afterwards_lead_to_what_is_in_them(world: World) -> None:
    nodes = held(world)
    world.kill()
    world.stat(nodes["d0/s0/f1"])  # the walk is done before what follows
    world.rename("d1", "d0/s0/d1")
    world.rename("d0/s0", "d2/s0/s0")
    world.rename("d2", "two")
    for old, new in (("d1/s0/f0", "two/s0/s0/d1/s0/f0"), ("d1/l", "two/s0/s0/d1/l"),
                     ("d0/s0/f0", "two/s0/s0/f0"), ("d2/s1/f1", "two/s1/f1")):  # fmt: skip
        assert world.stat(nodes[old]).st_ino == nodes[old]
        assert world.lookup(new) == nodes[old]


def test_a_place_that_the_walk_has_not_seen_is_found_by_another_walk(world: World) -> None:
    nodes = held(world)
    world.kill()
    world.stat(nodes["d0/f1"])
    world.rename("d1", "d0/d1")
    for path in ("d1", "d0"):
        world.forget(nodes[path])
    assert nodes["d1"] not in world.overlay.nodes
    assert world.stat(nodes["d1/s0/f1"]).st_ino == nodes["d1/s0/f1"]


def test_a_node_that_was_asked_for_stays_until_it_is_forgotten(world: World) -> None:
    nodes = held(world)
    world.kill()
    world.lookup("d0")
    node = world.overlay.lookup(world.overlay.nodes.directory(nodes["d0"]), b"f1")[0]
    world.stat(nodes["d0/f1"])
    world.overlay.prune(node)
    assert nodes["d0/f1"] in world.overlay.nodes
    world.forget(nodes["d0/f1"])
    assert nodes["d0/f1"] not in world.overlay.nodes


def test_a_number_that_nothing_has_is_stale(world: World) -> None:
    world.kill()
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        world.stat(12345678)


def test_files_without_a_name_stay_until_they_are_forgotten(world: World) -> None:
    made = world.make("made", b"made")
    nodes = held(world)
    unnamed = world.change("create", ROOT_ID, b"/", stat.S_IFREG | 0o600, os.O_RDWR)[1].st_ino
    for path in ("made", "d0/f1", "d0/l", "d1/s1/f0", "d1/s1/f1"):
        world.do("unlink", path)
    world.do("rmdir", "d1/s1")
    gone = [made, unnamed, *(nodes[path] for path in ("d0/f1", "d0/l", "d1/s1/f0", "d1/s1"))]
    world.forget(nodes["d1/s1/f1"])
    for _life in range(2):
        world.kill()
        assert [world.stat(nodeid).st_nlink for nodeid in gone] == [0] * len(gone)
        assert world.read(made) == b"made"
        assert world.read(nodes["d0/f1"]) == b"d0/f1"
        assert world.call("readlink", nodes["d0/l"]) == b"f0"
        assert stat.S_ISDIR(world.stat(nodes["d1/s1"]).st_mode)
        world.call("open", nodes["d0/f1"], os.O_RDWR)  # a copy of its own, without a name
        world.channel.release_all(nodes["d0/f1"])
    assert world.call("link", unnamed, ROOT_ID, b"named").st_ino == unnamed
    for nodeid in gone:
        world.forget(nodeid)
    assert world.vault.held == {}
    assert world.lookup("named") == unnamed


def test_readers_of_a_replaced_file_keep_it_and_its_number(world: World) -> None:
    nodes = held(world)
    old = nodes["d0/f1"]
    world.call("open", old, os.O_RDONLY)
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        world.call("open", old, os.O_RDWR)
    successor = world.lookup("d0/f1")
    world.call("open", successor, os.O_RDWR)
    os.pwrite(world.channel.files[successor][0], b"longer than before", 0)
    for _life in range(2):
        world.kill()
        world.forget(successor)  # too early, as after a lookup that failed
        assert world.stat(old).st_size == len("d0/f1")
        assert world.stat(old).st_nlink == 1
        assert world.stat(successor).st_size == len("longer than before")
        assert world.lookup("d0/f1") == successor
    world.do("unlink", "d0/f1")
    world.kill()
    assert world.read(successor) == b"longer than before"
    world.forget(old)
    world.forget(successor)
    assert world.vault.held == {}


def test_a_file_that_was_copied_up_before_is_replaced_by_the_next_daemon(world: World) -> None:
    nodes = held(world)
    old = nodes["d0/f0"]
    world.call("open", old, os.O_RDONLY)
    world.rename("d0/s0/h", "d1/h")  # both names are private from here on
    world.rename("d0/f0", "d2/s0/renamed")
    world.kill()
    world.channel.told.clear()
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        world.call("open", old, os.O_RDWR)
    stale = {("entry", nodes["d1"], b"h"), ("entry", nodes["d2/s0"], b"renamed")}
    assert {told for told in world.channel.told if told[0] == "entry"} == stale
    world.kill()  # before the kernel heard of it
    assert {("entry", *name) for name in world.restoration.stale_names()} == stale
    assert world.lookup("d1/h") == world.lookup("d2/s0/renamed") != old
    assert world.stat(old).st_size == len("d0/f0")


def test_a_forgotten_node_leaves_nothing_in_the_channel(world: World) -> None:
    nodeid = world.make("made", b"made")
    world.kill()
    assert nodeid in world.channel.files
    world.forget(nodeid)
    assert nodeid not in world.channel.files


def test_every_entry_of_a_copy_has_one_place(world: World) -> None:
    world.rename("d0", "d1/d0")
    world.do("unlink", "d2/f1")
    nodes = held(world)
    made = InodeIndex(shown(world.overlay.layers, world.overlay.nodes.root_ino))
    assert len(made) == len(nodes) - 1
    for path, nodeid in nodes.items():
        if path:
            parent, _, name = path.rpartition("/")
            directory = nodes[parent] if parent else world.overlay.nodes.root_ino
            assert (directory, os.fsencode(name)) in list(made.names_of(nodeid))


def test_others_are_served_while_a_node_is_looked_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One walk finds the nodes of all who ask meanwhile."""
    nodes = held(world)
    world.kill()
    monkeypatch.setattr(index, "READ", 2)
    monkeypatch.setattr(index, "RUN", 8)
    walks = served = 0
    turns = world.operations._backing.turns

    def counted(*copy: Any) -> Iterator[tuple[int, int, bytes]]:
        nonlocal walks
        walks += 1
        return shown(*copy)

    monkeypatch.setattr(restore, "shown", counted)
    found: list[int] = []
    context = SimpleNamespace(uid=0, gid=0, pid=os.getpid(), umask=0o022)
    wanted = [nodes["d2/s1/f0"], nodes["d0/s0"], nodes["d1/p"]]

    async def ask(nodeid: int) -> None:
        found.append((await world.operations.getattr(nodeid, context)).st_ino)

    async def main() -> None:
        nonlocal served
        async with trio.open_nursery() as nursery:
            for nodeid in wanted:
                nursery.start_soon(ask, nodeid)
            while not found:
                await world.operations.lookup(ROOT_ID, b"d1", context)
                served += 1
                await trio.lowlevel.checkpoint()

    trio.run(main)
    assert set(found) == set(wanted)
    assert walks == 1
    assert served > len(nodes) // 2 // 2
    assert turns.taken > len(nodes) // 2 // 2  # it is progress


def test_a_node_is_found_though_its_directory_is_moved_during_the_walk(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodeid = world.lookup("d1/s0/f1")
    world.kill()
    monkeypatch.setattr(index, "READ", 1)
    with pytest.raises(NotYetFound) as unknown:
        world.overlay.nodes.get(nodeid)
    places = itertools.cycle(["d1", "d0/m", "m", "d2/m"])
    here, moves = next(places), 0
    search = unknown.value.search
    while True:
        try:
            next(search)
        except StopIteration as end:
            found = end.value
            break
        there = next(places)
        world.rename(here, there)
        here, moves = there, moves + 1
    assert found
    assert moves > 2
    assert world.stat(nodeid).st_ino == nodeid == world.lookup(f"{here}/s0/f1")


def test_a_directory_that_goes_during_the_walk_is_not_walked(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.do("mkdir", "d0/empty", 0o755)
    nodeid = world.lookup("d2/s1/f0")
    world.kill()
    monkeypatch.setattr(index, "READ", 1)
    read = []
    for entry in shown(world.overlay.layers, world.overlay.nodes.root_ino):
        read.append(entry)
        if entry[2] == b"empty":
            world.do("rmdir", "d0/empty")
    assert nodeid in {ino for ino, _parent, _name in read}


def test_a_number_that_leads_to_nothing_is_looked_for_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.kill()
    walks = 0

    def counted(*copy: Any) -> Iterator[tuple[int, int, bytes]]:
        nonlocal walks
        walks += 1
        return shown(*copy)

    monkeypatch.setattr(restore, "shown", counted)
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        world.call("getattr", 1 << 40)
    assert walks == 1


def test_a_listing_goes_on_in_another_process(world: World) -> None:
    root = world.overlay.nodes.root
    before = list(world.overlay.listings.of(root).after(0))
    pid = os.fork()
    if pid == 0:
        world.start()
        after = list(world.overlay.listings.of(world.overlay.nodes.root).after(0))
        os._exit(after != before)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# --- requests that come again ---------------------------------------------------------------------


@pytest.mark.parametrize("value", [b"same", b"other"])
def test_attribute_that_is_made_again_is_there_only_once(world: World, value: bytes) -> None:
    nodeid = world.lookup("d0/f0")
    world.call("setxattr", nodeid, b"user.a", b"same")
    if value == b"same":
        world.call("setxattr", nodeid, b"//user.a", value)
    else:
        with pytest.raises(FileExistsError):
            world.call("setxattr", nodeid, b"//user.a", value)
    assert world.call("getxattr", nodeid, b"user.a") == b"same"
    world.call("removexattr", nodeid, b"user.a")
    world.call("removexattr", nodeid, b"//user.a")
    with pytest.raises(OSError, match=os.strerror(errno.ENODATA)):
        world.call("removexattr", nodeid, b"user.a")


def test_directory_that_was_moved_is_told_of_again(world: World) -> None:
    nodes = held(world)
    world.rename("d0/s0", "d1/new")
    world.channel.told.clear()
    world.kill()
    world.call("rename", nodes["d0"], b"/s0", nodes["d1"], b"/new", 0)
    assert world.channel.told == [("listing", nodes["d0/s0"])]


def test_exchange_of_another_request_does_not_count(world: World) -> None:
    nodes = held(world)
    world.rename("d0", "d1", EXCHANGE)
    world.kill()
    world.call("rename", ROOT_ID, b"/9999/d0", ROOT_ID, b"/d1", EXCHANGE)
    assert (world.lookup("d0"), world.lookup("d1")) == (nodes["d0"], nodes["d1"])


def own(world: World, path: str) -> None:
    """Give the copy a file or directory of its own."""
    nodeid = world.lookup(path)
    node = world.overlay.nodes.get(nodeid)
    if stat.S_ISDIR(world.stat(nodeid).st_mode):
        world.overlay.ensure_upper(world.overlay.nodes.directory(nodeid))
    elif stat.S_ISREG(world.stat(nodeid).st_mode):
        world.call("open", nodeid, os.O_RDWR)
        world.channel.release_all(nodeid)
    else:
        names = at_once(world.overlay.links.names_of(node))
        at_once(world.overlay.copy_up_special(node, names))


def emptied(world: World, path: str) -> None:
    for name in world.names(world.lookup(path)):
        world.do("unlink", f"{path}/{os.fsdecode(name)}")


def change_mode(world: World, nodeid: int, kill_at: int | None) -> None:
    names = ("size", "uid", "gid", "atime", "mtime")
    fields = SimpleNamespace(update_mode=True, **{f"update_{name}": False for name in names})
    attributes = pyfuse3.EntryAttributes()
    attributes.st_mode = 0o751
    world.change("setattr", nodeid, attributes, fields, None, kill_at=kill_at)


def open_rw(world: World, nodeid: int, kill_at: int | None) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        world.change("open", nodeid, os.O_RDWR, kill_at=kill_at)


#: What comes before, and the change that is killed.
Change = tuple[Callable[[World], Any], Callable[[World, dict[str, int], int | None], Any]]
CHANGES: dict[str, Change] = {
    "mkdir": (lambda _w: None, lambda w, _n, k: w.do("mkdir", "d0/x", 0o755, kill_at=k)),
    "mkdir over a whiteout": (
        lambda w: (emptied(w, "d0/s1"), w.do("rmdir", "d0/s1")),
        lambda w, _n, k: w.do("mkdir", "d0/s1", 0o755, kill_at=k),
    ),
    "mkdir by a user in a setgid directory": (
        lambda w: (own(w, "d0"), (w.root / "upper/d0").chmod(0o2777)),
        lambda w, n, k: w.change("mkdir", n["d0"], b"x", 0o755, uid=USER, kill_at=k),
    ),
    "symlink by a user": (
        lambda _w: None,
        lambda w, n, k: w.change("symlink", n["d0/s0"], b"x", b"to", uid=USER, kill_at=k),
    ),
    "mknod over a whiteout": (
        lambda w: w.do("unlink", "d0/l"),
        lambda w, _n, k: w.do("mknod", "d0/l", stat.S_IFIFO | 0o600, 0, kill_at=k),
    ),
    "create over a whiteout": (
        lambda w: w.do("unlink", "d0/f1"),
        lambda w, _n, k: w.do("create", "d0/f1", stat.S_IFREG | 0o600, os.O_RDWR, kill_at=k),
    ),
    "link": (
        lambda _w: None,
        lambda w, n, k: w.change("link", n["d0/f0"], n["d1"], b"x", kill_at=k),
    ),
    "link of what a reader has open": (
        lambda w: w.call("open", w.lookup("d0/f0"), os.O_RDONLY),
        lambda w, n, k: w.change("link", n["d0/f0"], n["d1"], b"x", kill_at=k),
    ),
    "link of what has no name": (
        lambda w: w.make_unnamed(),
        lambda w, n, k: w.change("link", w.unnamed, n["d1"], b"x", kill_at=k),
    ),
    "unlink": (lambda _w: None, lambda w, _n, k: w.do("unlink", "d0/f1", kill_at=k)),
    "unlink of the copy's own file": (
        lambda w: own(w, "d0/f1"),
        lambda w, _n, k: w.do("unlink", "d0/f1", kill_at=k),
    ),
    "unlink of one name of several": (
        lambda _w: None,
        lambda w, _n, k: w.do("unlink", "d0/p", kill_at=k),
    ),
    "rmdir": (
        lambda w: emptied(w, "d0/s1"),
        lambda w, _n, k: w.do("rmdir", "d0/s1", kill_at=k),
    ),
    "rename of a file": (
        lambda _w: None,
        lambda w, _n, k: w.rename("d0/f0", "d1/s0/x", kill_at=k),
    ),
    "rename over a file": (
        lambda _w: None,
        lambda w, _n, k: w.rename("d0/f1", "d1/f1", kill_at=k),
    ),
    "rename over one name of several": (
        lambda _w: None,
        lambda w, _n, k: w.rename("d0/f1", "d1/f0", kill_at=k),
    ),
    "rename of a directory": (
        lambda _w: None,
        lambda w, _n, k: w.rename("d0/s0", "d1/x", kill_at=k),
    ),
    "rename of a directory over a whiteout": (
        lambda w: w.do("unlink", "d1/f0"),
        lambda w, _n, k: w.rename("d0/s0", "d1/f0", kill_at=k),
    ),
    "rename over a directory of whiteouts": (
        lambda w: emptied(w, "d1/s0"),
        lambda w, _n, k: w.rename("d0/s0", "d1/s0", kill_at=k),
    ),
    "exchange of files": (
        lambda _w: None,
        lambda w, _n, k: w.rename("d0/f0", "d1/s0/h", EXCHANGE, kill_at=k),
    ),
    "exchange of a file and a directory": (
        lambda _w: None,
        lambda w, _n, k: w.rename("d0/f0", "d1/s0", EXCHANGE, kill_at=k),
    ),
    "open for writing": (
        lambda _w: None,
        lambda w, n, k: w.change("open", n["d0/f0"], os.O_RDWR, kill_at=k),
    ),
    "open for writing of what a reader has open": (
        lambda w: w.call("open", w.lookup("d0/f0"), os.O_RDONLY),
        lambda w, n, k: open_rw(w, n["d0/f0"], k),
    ),
    "chmod of a directory": (
        lambda _w: None,
        lambda w, n, k: change_mode(w, n["d0/s0"], k),
    ),
    "chmod of a file without a name": (
        lambda w: (w.lookup("d0/f1"), w.do("unlink", "d0/f1")),
        lambda w, n, k: change_mode(w, n["d0/f1"], k),
    ),
    "chmod of a directory without a name": (
        lambda w: (emptied(w, "d0/s1"), w.do("rmdir", "d0/s1")),
        lambda w, n, k: change_mode(w, n["d0/s1"], k),
    ),
}


def seen(world: World, nodeid: int) -> tuple[Any, ...]:
    st = world.stat(nodeid)
    data = world.read(nodeid) if stat.S_ISREG(st.st_mode) else b""
    return st.st_mode, st.st_nlink, st.st_uid, st.st_gid, data


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_is_killed_anywhere_is_done_once(xfs: Path, change: str) -> None:
    tree = make_tree(xfs / "tree")
    before, act = CHANGES[change]

    def outcome(kill_at: int | None) -> tuple[Any, int]:
        """What is seen by number and by name after the change, and how often it was killed."""
        world = World(xfs / "copy", tree)
        try:
            nodes = held(world)
            before(world)
            act(world, nodes, kill_at)
            kills = world.kills
            by_number = {path: seen(world, nodeid) for path, nodeid in nodes.items()}
            places = {nodeid: path for path, nodeid in nodes.items()}
            by_name = {
                path: (places.get(nodeid), seen(world, nodeid))
                for path, nodeid in held(world).items()
            }
            world.kill()
            assert {path: seen(world, nodeid) for path, nodeid in nodes.items()} == by_number
            return (by_number, by_name), kills
        finally:
            world.close()

    expected, _kills = outcome(None)
    for kill_at in itertools.count():
        found, kills = outcome(kill_at)
        assert found == expected, kill_at
        if kills == 0:
            break
    assert kill_at > 1


# --- programs -------------------------------------------------------------------------------------


class Entry:
    """What must be there: one inode."""

    def __init__(self, kind: str, data: bytes = b"") -> None:
        self.kind, self.data = kind, data
        self.nodeid = 0  # by which the client knows it, once it has looked it up
        self.children: dict[str, Entry] = {}
        self.names = 1


NAMES = st.sampled_from(["d0", "d1", "d2", "s0", "s1", "f0", "f1", "h", "p", "l", "x"])
KILLS = st.one_of(st.none(), st.integers(0, 12))


class Client(RuleBasedStateMachine):
    """Changes a copy, and knows what must come of it."""

    def __init__(self, make_world: Callable[[], World]) -> None:
        super().__init__()
        self._make_world = make_world
        self._serial = 0
        self.gone: list[Entry] = []
        # Node id, size, and the inode that has taken over its name; the size is what readers of
        # the old bytes see, -1 when they have left.
        self.replaced: list[tuple[int, int, Entry]] = []

    @initialize()
    def begin(self) -> None:
        self.world = self._make_world()
        inodes: dict[int, Entry] = {}

        def described(path: Path) -> Entry:
            info = path.lstat()
            if info.st_ino in inodes:
                inodes[info.st_ino].names += 1
                return inodes[info.st_ino]
            if path.is_symlink():
                entry = Entry("link", os.fsencode(path.readlink()))
            elif path.is_dir():
                entry = Entry("directory")
                entry.children = {child.name: described(child) for child in path.iterdir()}
            else:
                fifo = path.is_fifo()
                entry = Entry("fifo" if fifo else "file", b"" if fifo else path.read_bytes())
            inodes[info.st_ino] = entry
            return entry

        self.top = described(self.world.tree)
        self.top.nodeid = ROOT_ID

    # -- the client's side of the kernel

    def walk(self) -> Iterator[tuple[Entry, str, Entry]]:
        pending = [self.top]
        while pending:
            directory = pending.pop()
            for name, child in sorted(directory.children.items()):
                yield directory, name, child
                if child.kind == "directory":
                    pending.append(child)

    def directories(self) -> list[Entry]:
        return [self.top, *(entry for *_, entry in self.walk() if entry.kind == "directory")]

    def learn(self, parent: Entry, name: str) -> Entry:
        """Look a name up, as the kernel does before it asks for a change."""
        entry = parent.children[name]
        answer = self.world.call("lookup", parent.nodeid, os.fsencode(name))
        self.check_id(entry, answer.st_ino)
        return entry

    def check_id(self, entry: Entry, nodeid: int) -> None:
        assert nodeid
        assert entry.nodeid in (0, nodeid), "one inode, one number"
        entry.nodeid = nodeid

    def reach(self, directory: Entry) -> bool:
        """Have the number of a directory that is somewhere in the tree."""
        if directory.nodeid:
            return True
        for parent, name, entry in self.walk():
            if entry is directory and self.reach(parent):
                self.learn(parent, name)
                return True
        return False

    def choose(self, data: st.DataObject) -> tuple[Entry, str]:
        directory = data.draw(st.sampled_from(self.directories()), label="directory")
        assert self.reach(directory)
        if directory.children and data.draw(st.booleans()):
            return directory, data.draw(st.sampled_from(sorted(directory.children)))
        return directory, data.draw(NAMES)

    def lose(self, entry: Entry) -> None:
        entry.names -= 1
        if entry.names == 0:
            self.gone.append(entry)

    def add(self, parent: Entry, name: str, entry: Entry, nodeid: int) -> None:
        parent.children[name] = entry
        self.check_id(entry, nodeid)

    def succeeds(self, expected: int, *args: Any, kill_at: int | None) -> bool:
        """Whether a change is done; else it must fail with the errno *expected*."""
        try:
            self.world.change(*args, kill_at=kill_at)
        except OSError as error:
            if error.errno != expected:
                raise
            return False
        return True

    # -- what it does

    @rule(data=st.data(), kill=KILLS, what=st.sampled_from(["mkdir", "symlink", "mknod", "create"]),
          uid=st.sampled_from([0, USER]))  # fmt: skip
    def make(self, data: st.DataObject, kill: int | None, what: str, uid: int) -> None:
        parent, name = self.choose(data)
        if name in parent.children:
            return
        args: dict[str, tuple[Any, ...]] = {
            "mkdir": (0o755,),
            "symlink": (b"target",),
            "mknod": (stat.S_IFIFO | 0o644, 0),
            "create": (stat.S_IFREG | 0o644, os.O_RDWR),
        }
        answer = self.world.change(
            what, parent.nodeid, os.fsencode(name), *args[what], kill_at=kill, uid=uid
        )
        kinds = {"mkdir": "directory", "symlink": "link", "mknod": "fifo", "create": "file"}
        entry = Entry(kinds[what], b"target" if what == "symlink" else b"")
        attributes = answer[1] if what == "create" else answer
        assert attributes.st_uid == uid
        self.add(parent, name, entry, attributes.st_ino)
        if what == "create":
            self.write_open(entry)

    def write_open(self, entry: Entry, nodeid: int = 0) -> None:
        """Write through the descriptor that was opened last, and close it.

        *nodeid*: of a replaced node, through which it was opened.
        """
        nodeid = nodeid or entry.nodeid
        self._serial += 1
        data = b"written %d" % self._serial
        fd = self.world.channel.files[nodeid][0]
        os.ftruncate(fd, 0)
        os.pwrite(fd, data, 0)
        entry.data = data
        self.world.channel.files[nodeid][4] -= 1

    @rule(data=st.data(), kill=KILLS)
    def write(self, data: st.DataObject, kill: int | None) -> None:
        parent, name = self.choose(data)
        if name not in parent.children or parent.children[name].kind != "file":
            return
        entry = self.learn(parent, name)
        if not self.succeeds(errno.ESTALE, "open", entry.nodeid, os.O_RDWR, kill_at=kill):
            self.replaced.append((entry.nodeid, len(entry.data), entry))
            entry.nodeid = 0
            self.learn(parent, name)
            self.world.change("open", entry.nodeid, os.O_RDWR)
        self.write_open(entry)

    @rule(data=st.data())
    def come_back_to_a_replaced_file(self, data: st.DataObject) -> None:
        """As the root of a bind mount of the file does, which has no name to look up."""
        world = self.world
        if not self.replaced:
            return
        index = data.draw(st.integers(0, len(self.replaced) - 1))
        nodeid, size, entry = self.replaced[index]
        with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
            world.call("open", nodeid, os.O_RDWR)
        if size >= 0:
            with pytest.raises(OSError, match=os.strerror(errno.ETXTBSY)):
                world.call("open", nodeid, os.O_RDWR)
            world.channel.forget(nodeid)  # the last reader leaves
            self.replaced[index] = (nodeid, -1, entry)
            with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
                world.call("open", nodeid, os.O_RDWR)
        world.call("open", nodeid, os.O_RDWR)
        self.write_open(entry, nodeid)

    @rule(data=st.data())
    def open_and_keep(self, data: st.DataObject) -> None:
        parent, name = self.choose(data)
        if name in parent.children and parent.children[name].kind == "file":
            self.world.call("open", self.learn(parent, name).nodeid, os.O_RDONLY)

    @rule(data=st.data(), kill=KILLS)
    def chmod(self, data: st.DataObject, kill: int | None) -> None:
        parent, name = self.choose(data)
        if name not in parent.children or parent.children[name].kind == "link":
            return
        entry = self.learn(parent, name)
        change_mode(self.world, entry.nodeid, kill)
        assert stat.S_IMODE(self.world.stat(entry.nodeid).st_mode) == 0o751

    @rule(data=st.data(), kill=KILLS)
    def link(self, data: st.DataObject, kill: int | None) -> None:
        (parent, name), (directory, new) = self.choose(data), self.choose(data)
        if name not in parent.children or new in directory.children:
            return
        entry = self.learn(parent, name)
        if entry.kind == "directory":
            return
        args = (entry.nodeid, directory.nodeid, os.fsencode(new))
        nodeid = self.world.change("link", *args, kill_at=kill).st_ino
        self.add(directory, new, entry, nodeid)
        entry.names += 1

    @rule(data=st.data(), kill=KILLS)
    def remove(self, data: st.DataObject, kill: int | None) -> None:
        parent, name = self.choose(data)
        if name not in parent.children:
            return
        entry = self.learn(parent, name)
        act = "rmdir" if entry.kind == "directory" else "unlink"
        args = (act, parent.nodeid, os.fsencode(name))
        if not self.succeeds(errno.ENOTEMPTY, *args, kill_at=kill):
            assert entry.children
            return
        assert not entry.children
        del parent.children[name]
        self.lose(entry)

    @rule(data=st.data(), kill=KILLS, flags=st.sampled_from([0, 0, EXCHANGE]))
    def rename(self, data: st.DataObject, kill: int | None, flags: int) -> None:
        (parent, name), (directory, new) = self.choose(data), self.choose(data)
        if name not in parent.children or (flags and new not in directory.children):
            return
        entry = self.learn(parent, name)
        target = self.learn(directory, new) if new in directory.children else None
        if target is entry or self.is_below(directory, entry) or (
            target is not None and (flags or target.kind == "directory")
            and self.is_below(parent, target)
        ):  # fmt: skip
            return  # the kernel refuses it by itself, or does nothing
        expected = 0
        if target is not None and not flags and "directory" in (target.kind, entry.kind):
            if entry.kind != "directory":
                expected = errno.EISDIR
            elif target.kind != "directory":
                expected = errno.ENOTDIR
            elif target.children:
                expected = errno.EEXIST
        args = (parent.nodeid, os.fsencode(name), directory.nodeid, os.fsencode(new), flags)
        if not self.succeeds(expected, "rename", *args, kill_at=kill):
            return
        assert not expected
        if target is entry:
            return
        del parent.children[name]
        directory.children[new] = entry
        if flags:
            assert target is not None
            parent.children[name] = target
        elif target is not None:
            self.lose(target)

    def is_below(self, directory: Entry, top: Entry) -> bool:
        return directory is top or any(
            self.is_below(directory, child)
            for child in top.children.values()
            if child.kind == "directory"
        )

    @rule(data=st.data(), kill=KILLS)
    def make_unnamed(self, data: st.DataObject, kill: int | None) -> None:
        parent, _name = self.choose(data)
        args = (parent.nodeid, b"/", stat.S_IFREG | 0o600, os.O_RDWR)
        entry = Entry("file")
        self.check_id(entry, self.world.change("create", *args, kill_at=kill)[1].st_ino)
        self.write_open(entry)
        entry.names = 0
        self.gone.append(entry)

    @rule()
    def kill(self) -> None:
        self.world.kill()

    @rule()
    def forget_what_is_gone(self) -> None:
        for entry in self.gone:
            if entry.nodeid:
                self.world.channel.release_all(entry.nodeid)
                self.world.forget(entry.nodeid)
        self.gone.clear()

    @rule(data=st.data())
    def forget_a_file(self, data: st.DataObject) -> None:
        parent, name = self.choose(data)
        entry = parent.children.get(name)
        if entry is not None and entry.kind != "directory" and entry.nodeid:
            self.world.channel.release_all(entry.nodeid)
            self.world.forget(entry.nodeid)

    # -- what it sees

    @rule()
    def look_at_everything(self) -> None:
        """By number first, so that nothing helps to find it; then by name."""
        world = self.world
        entries = {id(entry): entry for *_, entry in self.walk() if entry.nodeid}
        for entry in [*entries.values(), *self.gone]:
            if entry.nodeid:
                self.check(entry)
        for nodeid, size, entry in self.replaced:
            assert world.stat(nodeid).st_size == (len(entry.data) if size < 0 else size)
        for directory in self.directories():
            assert self.reach(directory)
            assert world.names(directory.nodeid) == set(map(os.fsencode, directory.children))
        for parent, name, _entry in list(self.walk()):
            self.check(self.learn(parent, name))

    def check(self, entry: Entry) -> None:
        shown = self.world.stat(entry.nodeid)
        assert shown.st_ino == entry.nodeid
        kinds = {"directory": stat.S_IFDIR, "file": stat.S_IFREG, "link": stat.S_IFLNK}
        assert stat.S_IFMT(shown.st_mode) == kinds.get(entry.kind, stat.S_IFIFO)
        if entry.kind == "file":
            assert self.world.read(entry.nodeid) == entry.data
        elif entry.kind == "link":
            assert self.world.call("readlink", entry.nodeid) == entry.data
        if entry.kind != "directory":
            assert shown.st_nlink == entry.names

    def teardown(self) -> None:
        try:
            self.world.kill()
            self.look_at_everything()
        finally:
            self.world.close()


@pytest.mark.timeout(600 * EFFORT)
def test_what_was_killed_anywhere_comes_out_as_if_it_had_not_been(xfs: Path) -> None:
    tree = make_tree(xfs / "tree")
    numbers = itertools.count()

    def make_world() -> World:
        return World(xfs / f"copy{next(numbers)}", tree)

    run = seed(SEED)(run_state_machine_as_test)
    run(
        lambda: Client(make_world),
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
