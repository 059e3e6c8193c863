"""A copy of a copy is what that was at one moment, whoever wrote to it, and has its own life."""

from __future__ import annotations

import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from integration.command import COWFS, cowfs, one_error, run
from integration.effort import EFFORT, SEED
from integration.hand import Hand
from integration.mounts import MountCopy
from integration.pair import as_overlayfs_shows_it, comparable
from integration.randomops import LARGE, Plan, make_source
from integration.trees import Entry, differences, tree_state
from integration.volumes import Volume

ENGINES = pytest.mark.parametrize("engine", ["fuse", "overlay"])
STEPS = 80 * EFFORT


def same(one: dict[str, Entry], other: dict[str, Entry]) -> None:
    different = differences(comparable(one), comparable(other))
    assert not different, different


def copies_of(store: Path) -> list[str]:
    return sorted(entry.name for entry in (store / "copies").iterdir())


# --- what it shows --------------------------------------------------------------------------------


@ENGINES
@pytest.mark.timeout(600 * EFFORT)
def test_copy_of_a_copy_is_as_a_reflink_copy_of_it(
    mount_plain: MountCopy, xfs: Path, engine: str
) -> None:
    """Random operations in a copy and on XFS; then a copy of each; and each goes on by itself.

    overlayfs parts hard links, and is judged by what it shows itself.
    """
    origin = make_source(xfs / "source")
    store = xfs / "store"
    options = (f"store={store}", f"engine={engine}", "dev", "suid")
    native = xfs / "native"
    run("cp", "-a", "--reflink=always", origin, native)
    shown = [(mount_plain(origin, None, *options), native)]
    chance = random.Random(f"{SEED} {engine}")

    def judge() -> None:
        for copy, beside in shown if engine == "fuse" else []:
            different = differences(Hand(beside).tree(), Hand(copy).tree())
            assert not different, different

    for depth in range(2):
        copy, beside = shown[-1]
        change_both(chance, copy, beside, engine)
        frozen = xfs / f"native{depth}"
        run("cp", "-a", "--reflink=always", beside, frozen)
        shown.append((mount_plain(copy, None, *options), frozen))
        same(tree_state(copy), tree_state(shown[-1][0]))
    for one in (0, 2, 1):
        states = [tree_state(copy) for copy, _ in shown]
        change_both(chance, *shown[one], engine)
        for other in {0, 1, 2} - {one}:
            same(states[other], tree_state(shown[other][0]))
    judge()
    states = [tree_state(copy) for copy, _ in shown]
    for copy, _ in shown:
        mount_plain.unmount(copy)
    cowfs("check", "--all", "--store", store)
    [template] = (store / "templates").iterdir()
    for name, state in zip(copies_of(store), states, strict=True):
        same(as_overlayfs_shows_it(template / "tree", store / "copies" / name), state)


def change_both(source: random.Random, copy: Path, beside: Path, engine: str) -> None:
    """The same random operations in both."""
    hands = Hand(beside), Hand(copy)
    # What overlayfs does is not always what XFS does: there the copy itself is drawn from.
    drawn = hands[0] if engine == "fuse" else hands[1]
    plan = Plan(source, drawn.root, lambda: list(drawn.fds))
    # A descriptor of a large shared file may show what it opened: docs/semantics.md.
    apart = {"copy_range", "link_fd", "map", "map_store", "map_read"}
    try:
        for _ in range(STEPS):
            operation = plan.draw()
            if operation.name in apart:
                continue
            for hand in hands if engine == "fuse" else hands[1:]:
                hand.do(operation)
    finally:
        for hand in hands:
            hand.close_all()


@ENGINES
def test_unchanged_files_share_their_pages_and_changed_ones_their_blocks(
    mount_plain: MountCopy, xfs: Path, model: Path, engine: str
) -> None:
    one = mount_plain(model, None, f"store={xfs / 'store'}", f"engine={engine}")
    (one / "config.json").write_bytes(os.urandom(1 << 20))
    os.sync()
    two = mount_plain(one, None, f"engine={engine}")
    record = [mount_plain.record(path) for path in (one, two)]
    assert record[0]["template"] == record[1]["template"]
    names = copies_of(xfs / "store")
    uppers = [xfs / "store" / "copies" / name / "upper" for name in names]
    for upper in uppers:
        assert sorted(os.listdir(upper)) == ["config.json"]
    extents = [run("filefrag", "-v", upper / "config.json").stdout for upper in uppers]
    physical = [line.split(":")[2] for text in extents for line in text.splitlines()[3:-1]]
    assert physical[: len(physical) // 2] == physical[len(physical) // 2 :]
    assert all("shared" in text for text in extents)


def test_marks_go_with_it(mount_plain: MountCopy, xfs: Path) -> None:
    """Inode numbers, renamed directories, and what is still read from the template."""
    one = mount_plain(make_source(xfs / "source"), None, f"share_min={LARGE}")
    (one / "large").chmod(0o600)
    (one / "a").rename(one / "moved")
    shutil.rmtree(one / "d")
    (one / "d").mkdir()
    with (one / "group").open("a") as file:
        file.write("more")
    os.link(one / "group", one / "third")
    two = mount_plain(one, None, f"share_min={LARGE}")
    for name in ("large", "moved/b/c/large", "group", "third"):
        assert (two / name).stat().st_ino == (one / name).stat().st_ino
    assert (two / "group").stat().st_nlink == (one / "group").stat().st_nlink
    with (two / "large").open("r+b") as file:
        file.write(b"two")
    assert (one / "large").read_bytes()[:3] != b"two"
    assert (two / "large").read_bytes()[:3] == b"two"
    same(tree_state(mount_plain(two, None)), tree_state(two))


def test_what_is_stored_through_a_mapping_is_in_it(
    mount_copy: MountCopy, model: Path, mode: str
) -> None:
    one = mount_copy(model)
    with (one / "mapped").open("w+b") as file:
        file.truncate(1 << 20)
        with mmap.mmap(file.fileno(), 0) as mapped:
            mapped[5000:5005] = b"early"
            two = mount_copy(one)
            mapped[5000:5005] = b"later"
            assert (two / "mapped").read_bytes()[5000:5005] == b"early"


def test_files_without_a_name_are_left_out(mount_plain: MountCopy, model: Path) -> None:
    one = mount_plain(model)
    with (one / "gone").open("w+b") as file:
        file.write(b"data")
        file.flush()
        (one / "gone").unlink()
        two = mount_plain(one)
        assert not (two / "gone").exists()
        assert os.pread(file.fileno(), 4, 0) == b"data"


# --- while others write ---------------------------------------------------------------------------

_WRITER = """
import os, sys, time
root, pause = sys.argv[1], float(sys.argv[2])
one = os.open(root + "/one", os.O_RDWR | os.O_CREAT)
two = os.open(root + "/two", os.O_RDWR | os.O_CREAT)
for file in one, two:
    os.pwrite(file, b"%016d" % 0 * 512, 0)
os.mkdir(root + "/left")
os.mkdir(root + "/right")
os.close(os.open(root + "/left/ball", os.O_CREAT))
os.close(os.open(root + "/ready", os.O_CREAT))
here, there = "left", "right"
number = 0
while True:
    number += 1
    os.pwrite(one, b"%016d" % number * 512, 0)
    os.pwrite(two, b"%016d" % number * 512, 0)
    time.sleep(pause)
    os.rename(f"{root}/{here}/ball", f"{root}/{there}/ball")
    here, there = there, here
    with open(root + "/new", "w") as file:
        file.write(str(number))
    os.replace(root + "/new", root + "/current")
    time.sleep(pause)
"""


@contextmanager
def writing(root: Path, pause: float) -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-c", _WRITER, str(root), str(pause)]) as writer:
        try:
            while not (root / "ready").exists():
                time.sleep(0.01)
            yield
        finally:
            writer.kill()


@ENGINES
def test_it_has_one_moment_of_a_copy_that_is_written_to(
    mount_plain: MountCopy, model: Path, engine: str
) -> None:
    """Files that are written one after the other, a file that is moved to and fro, and one that is
    replaced: each copy has a state that there was."""
    one = mount_plain(model, None, f"engine={engine}")
    with writing(one, 0.02):
        for turn in range(4 * EFFORT):
            time.sleep(random.Random(f"{SEED} {turn}").random() / 20)
            two = mount_plain(one, None, f"engine={engine}", "ephemeral")
            first, second = (set_of(two / name) for name in ("one", "two"))
            assert first in (second, second + 1)
            balls = [name for name in ("left", "right") if (two / name / "ball").exists()]
            assert len(balls) == 1
            if (two / "current").exists():
                current = int((two / "current").read_text())
                assert current in (first, first - 1)
            mount_plain.unmount(two)


def set_of(path: Path) -> int:
    """The number that a file is full of; it has been written as a whole."""
    data = path.read_bytes()
    [number] = {data[at : at + 16] for at in range(0, len(data), 16)}
    return int(number)


def test_one_file_that_is_written_to_without_a_pause_delays_nothing(
    mount_plain: MountCopy, model: Path
) -> None:
    one = mount_plain(model)
    script = "while :; do echo line; done >> $0"
    with subprocess.Popen(["sh", "-c", script, str(one / "log")]) as writer:
        try:
            while not (one / "log").exists():
                time.sleep(0.01)
            two = mount_plain(one)
            log = (two / "log").read_bytes()
        finally:
            writer.kill()
    assert log == (b"line\n" * (len(log) // 5 + 1))[: len(log)]
    assert (one / "log").read_bytes().startswith(log)


@pytest.mark.parametrize("killed", [signal.SIGSTOP, signal.SIGKILL])
def test_it_needs_no_daemon_of_the_other(
    mount_plain: MountCopy, xfs: Path, model: Path, killed: signal.Signals
) -> None:
    one = mount_plain(model, None, f"store={xfs / 'store'}", "copy=one")
    (one / "mine").write_bytes(b"kept")
    state = tree_state(one)
    if killed == signal.SIGKILL:
        mount_plain.orphan(one)
        refused = cowfs("mount", one, mount_plain.mountpoint(), check=False)
        assert "name it as copy:NAME" in one_error(refused)
        two = mount_plain("copy:one", None, f"store={xfs / 'store'}", "copy=two")
    else:
        pid = mount_plain.daemon_pid(one)
        os.kill(pid, signal.SIGSTOP)
        try:
            two = mount_plain(one, None, "copy=two")
        finally:
            os.kill(pid, signal.SIGCONT)
    same(tree_state(two), state)


# --- names and lives ------------------------------------------------------------------------------


@pytest.mark.quick
def test_either_may_go_first(mount_plain: MountCopy, xfs: Path, model: Path) -> None:
    store = xfs / "store"
    one = mount_plain(model, None, f"store={store}", "copy=one")
    (one / "mine").write_text("one")
    state = tree_state(one)
    two = mount_plain("copy:one", None, f"store={store}", "copy=two")
    mount_plain.unmount(one)
    three = mount_plain("copy:one", None, f"store={store}", "copy=three")  # not mounted
    cowfs("rm", "-y", "--store", store, "one")
    for path in (two, three):
        same(tree_state(path), state)
        mount_plain.unmount(path)
    assert len(list((store / "templates").iterdir())) == 1
    listed = cowfs("list", "--store", store).stdout
    assert f"{model} (copy:one)" in listed
    again = cowfs("mount", "-o", f"store={store},copy=two", "copy:one", two)
    assert "goes on without the copy one that it was made of" in again.stderr
    same(tree_state(two), state)
    mount_plain.unmount(two)
    cowfs("rm", "-y", "--store", store, "two")
    cowfs("rm", "-y", "--store", store, "three")
    assert not list((store / "templates").iterdir())


def test_it_goes_on_with_what_was_written_to_it(mount_plain: MountCopy, model: Path) -> None:
    one = mount_plain(model)
    (one / "mine").write_text("one")
    two = mount_plain(one)
    (two / "mine").write_text("two")
    mount_plain.unmount(two)
    (one / "mine").write_text("another")
    mount_plain(one, two)
    assert (two / "mine").read_text() == "two"
    mount_plain.unmount(two)
    cowfs("mount", model, two)  # the source, at this mountpoint
    assert (two / "mine").read_text() == "two"
    mount_plain.unmount(two)
    mount_plain.unmount(one)
    mount_plain(one, two)  # a mountpoint that nothing is mounted on now
    assert (two / "mine").read_text() == "two"
    three = mount_plain(one)
    assert (three / "mine").read_text() == "another"


def test_options_are_as_ever(mount_plain: MountCopy, xfs: Path, model: Path) -> None:
    one = mount_plain(model, None, f"store={xfs / 'store'}")
    (one / "mine").write_text("one")
    two = mount_plain(one, None, "ro", "ephemeral", "copy=snapshot")
    with pytest.raises(OSError, match="Read-only"):
        (two / "mine").write_text("two")
    assert "snapshot" in copies_of(xfs / "store")
    mount_plain.unmount(two)
    assert "snapshot" not in copies_of(xfs / "store")
    run("mount", "--bind", one, two)
    try:
        three = mount_plain(two)
        assert (three / "mine").read_text() == "one"
    finally:
        run("umount", two)


def test_what_cannot_be_is_said(mount_plain: MountCopy, xfs: Path, model: Path) -> None:
    store = xfs / "store"
    one = mount_plain(model, None, f"store={store}", "copy=one")
    place = mount_plain.mountpoint()

    def refused(source: str | Path, *options: str, code: int = 32) -> str:
        arguments = [arg for option in options for arg in ("-o", option)]
        result = cowfs("mount", *arguments, source, place, check=False)
        assert result.returncode == code
        return one_error(result)

    assert "only all of a copy can be copied" in refused(one / "tokenizer")
    assert "there is no copy two" in refused("copy:two", f"store={store}")
    assert "cannot be a copy of itself" in refused(one, "copy=one")
    assert "leave out store=" in refused(one, f"store={xfs / 'other'}")
    refused("copy:", code=1)
    refused("copy:..", code=1)
    part = mount_plain.mountpoint()
    run("mount", "--bind", one / "tokenizer", part)
    try:
        assert "only all of a copy can be copied" in refused(part)
    finally:
        run("umount", part)
    two = mount_plain(model, None, f"store={store}", "copy=two")
    (two / "mine").touch()
    mount_plain.unmount(two)
    said = refused(one, "copy=two")
    assert "not of the copy one" in said
    assert "cowfs rm" in said
    assert copies_of(store) == ["one", "two"]


def test_helper_of_mount(mount_plain: MountCopy, model: Path, xfs: Path) -> None:
    one = mount_plain(model, None, f"store={xfs / 'store'}", "copy=one")
    (one / "mine").write_text("one")
    place = mount_plain.mountpoint()
    program = [sys.executable, "-I", "-m", "cowfs.mounthelper", "copy:one", place, "-n"]
    run(*map(str, program), "-o", f"rw,nofail,store={xfs / 'store'}")
    assert (place / "mine").read_text() == "one"
    run(*map(str, program), "-o", f"remount,ro,store={xfs / 'store'}")
    with pytest.raises(OSError, match="Read-only"):
        (place / "mine").write_text("two")


# --- what can go wrong ----------------------------------------------------------------------------


def test_volume_that_is_full(
    mount_plain: MountCopy, small_xfs: Callable[..., Volume], tmp_path: Path
) -> None:
    volume = small_xfs(64)
    source = volume.mountpoint / "source"
    source.mkdir()
    (source / "file").write_text("model")
    one = mount_plain(source)
    for number in range(3000):
        (one / f"{number:05}").touch()
    ballast = volume.fill()
    place = mount_plain.mountpoint()
    result = cowfs("mount", one, place, check=False)
    assert result.returncode == 32
    assert "no space left on the volume" in one_error(result)
    store = volume.mountpoint / ".cowfs"
    assert len(copies_of(store)) == 1
    ballast.unlink()
    mount_plain(one, place)
    assert len(list(place.iterdir())) == 3001
    mount_plain.unmount(place)
    mount_plain.unmount(one)


def test_killed_at_any_moment_nothing_half_made_is_seen(
    mount_plain: MountCopy, xfs: Path, model: Path
) -> None:
    store = xfs / "store"
    one = mount_plain(model, None, f"store={store}", "copy=one")
    for number in range(1500):
        (one / f"{number:04}").write_text("x")
    place = mount_plain.mountpoint()
    chance = random.Random(f"{SEED} kill")
    for _ in range(4 * EFFORT):
        with subprocess.Popen([COWFS, "mount", "-o", "copy=two", one, place]) as mounting:
            time.sleep(chance.random() * 0.8)
            mounting.kill()
        time.sleep(0.2)
        if place.is_mount():
            assert len(list(place.iterdir())) == len(list(one.iterdir()))
            mount_plain.unmount(place)
        result = cowfs("check", "--all", "--store", store, check=False)
        assert result.returncode == 0, result
        cowfs("gc", "--store", store)
        assert not list((store / "partial").iterdir())
        assert set(copies_of(store)) <= {"one", "two"}
        if "two" in copies_of(store):
            cowfs("rm", "-y", "--store", store, "two")
