"""What a crash may not bring about: of a process (SIGKILL) and of the machine (XFS shut down).

The tests under load take some rounds; effort.py makes them more.
"""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cowfs.overlay.inodes import Node
from cowfs.overlay.overlay import Overlay
from cowfs.overlay.pieces import at_once
from cowfs.store import seal
from cowfs.store.store import Copy, Store
from cowfs.system import syscalls
from integration import crashload, kernel
from integration.command import COWFS, cowfs, run
from integration.effort import CHANCE, EFFORT
from integration.mounts import MountCopy
from integration.trees import Entry, make_model, tree_state, with_ctimes
from integration.volumes import Volume

LINKS = 4
ROUNDS = 3 * EFFORT
REPOSITORY = Path(__file__).parent.parent


def findings(store: Path) -> list[tuple[str, str]]:
    """What `cowfs check` finds: (status, what)."""
    result = cowfs("check", "--all", "--json", "--store", store, check=False)
    found = json.loads(result.stdout)
    assert found["in_use"] == []
    return [
        (finding["status"], f"{finding['path']}: {finding['detail']}")
        for finding in found["findings"]
    ]


# --- under load -----------------------------------------------------------------------------------


class Load:
    """Writers in a copy, and what is to be found of their work after a crash."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._first = 1
        self._running: list[subprocess.Popen[str]] = []

    def _log(self, writer: int) -> Path:
        return self._directory / f"log{writer}"

    def start(self, root: Path, seed: str) -> None:
        for writer in range(crashload.WRITERS):
            self._log(writer).write_text("")
            arguments = [root, self._log(writer), seed, writer, self._first]
            command = [sys.executable, "-m", "integration.crashload", *map(str, arguments)]
            self._running.append(
                subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
            )

    def wait(self, allowed: set[int]) -> None:
        """Wait until every writer has met an error, which has to be one of these."""
        running, self._running = self._running, []
        said, hung = [], []
        for process in running:
            try:
                said.append(process.communicate(timeout=20)[0])
            except subprocess.TimeoutExpired:
                stack = Path(f"/proc/{process.pid}/stack").read_text()
                hung.append(f"a writer hangs:\n{stack}")
        if hung:
            kernel.abort_connections()
            for process in running:
                process.kill()
                process.communicate(timeout=20)
        assert not hung, "\n".join(hung)
        wrong = [line for line in said if not line or int(line.split()[0]) not in allowed]
        assert not wrong, "\n".join(wrong)

    def verify(self, root: Path, *, after: str) -> int:
        """Compare with the logs; bring everything into a known state. Gives the number of acts."""
        complaints = []
        acts, highest = 0, self._first
        for writer in range(crashload.WRITERS):
            bounds = crashload.replay(self._log(writer), after=after, first=self._first)
            for number, slot in enumerate(crashload.slots(root, writer)):
                low, high = bounds.get(number, (self._first - 1, self._first - 1))
                acts += high - self._first + 1
                highest = max(highest, high)
                try:
                    found = slot.states(low, high)
                except (crashload.Damaged, OSError) as error:
                    complaints.append(f"{slot.name}, {low} to {high}: {error!r}")
                    continue
                if not any(low <= n <= high for n in found):
                    complaints.append(f"{slot.name} is in {found}, not in {low} to {high}")
        assert not complaints, "\n".join(complaints)
        for writer in range(crashload.WRITERS):
            for slot in crashload.slots(root, writer):
                slot.act(highest + 1)
                slot.sync()
        self._first = highest + 2
        return acts

    def end(self) -> None:
        for process in self._running:
            process.kill()
            process.communicate(timeout=20)


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    load = Load(tmp_path)
    yield load
    load.end()


def _sealed(template: Path) -> dict[str, tuple[Entry, int]]:
    """A template; the times of its manifest say when it was used last."""
    state = with_ctimes(template)
    manifest, _ = state["manifest.json"]
    return {**state, "manifest.json": (manifest._replace(mtime_ns=0), 0)}


@pytest.mark.timeout(120 * EFFORT)
def test_killed_daemon_loses_no_call_that_had_returned(
    mount_copy: MountCopy, xfs: Path, load: Load, mode: str
) -> None:
    source = crashload.make_source(xfs / "source")
    options = ("copy=crash", f"store={xfs / 'store'}")
    root = mount_copy(source, None, *options)
    [template] = (xfs / "store" / "templates").iterdir()
    before = with_ctimes(source), _sealed(template)
    chance = random.Random(f"{CHANCE} {mode}")
    acts = 0
    for number in range(ROUNDS):
        load.start(root, f"{CHANCE} {mode} {number}")
        time.sleep(chance.uniform(0.3, 1))
        mount_copy.orphan(root)
        load.wait({errno.ENOTCONN, errno.ECONNABORTED})
        kernel.detach(str(root))
        errors = [found for found in findings(xfs / "store") if found[0] != "harmless"]
        assert not errors, errors
        mount_copy(source, root, *options)
        assert os.listdir(xfs / "store/copies/crash/work") == []
        acts += load.verify(root, after="d")
    mount_copy.unmount(root)
    assert acts > 50
    assert [status for status, _ in findings(xfs / "store") if status != "harmless"] == []
    assert (with_ctimes(source), _sealed(template)) == before


def restart(volume: Volume, root: Path, pid: int) -> None:
    """What an administrator does after the volume was shut down."""
    kernel.detach(str(root))
    ended = kernel.wait_for_end(pid, 15)
    if not ended:
        os.kill(pid, signal.SIGKILL)
        kernel.wait_for_end(pid, 10)
    volume.unmount()
    volume.mount()
    assert ended, "the daemon outlives its mount"


@pytest.mark.timeout(120 * EFFORT)
def test_volume_that_goes_down_loses_nothing_that_was_synced(
    mount_copy: MountCopy,
    small_xfs: Callable[..., Volume],
    load: Load,
    mode: str,
) -> None:
    volume = small_xfs(512)
    source = crashload.make_source(volume.mountpoint / "source")
    store = volume.mountpoint / ".cowfs"
    root = mount_copy(source, None, "copy=crash")
    [template] = (store / "templates").iterdir()
    run("sync", "-f", volume.mountpoint)
    before = with_ctimes(source), _sealed(template)
    chance = random.Random(f"{CHANCE} {mode}")
    acts = 0
    for number in range(ROUNDS):
        load.start(root, f"{CHANCE} {mode} {number}")
        time.sleep(chance.uniform(0.3, 1))
        pid = mount_copy.daemon_pid(root)
        flush = chance.choice(([], ["-f"]))
        run("xfs_io", "-x", "-c", " ".join(["shutdown", *flush]), volume.mountpoint)
        load.wait({errno.EIO})
        restart(volume, root, pid)
        errors = [found for found in findings(store) if found[0] != "harmless"]
        assert not errors, errors
        mount_copy(source, root, "copy=crash")
        assert os.listdir(store / "copies/crash/work") == []
        acts += load.verify(root, after="s")
    mount_copy.unmount(root)
    assert acts > 50
    assert [status for status, _ in findings(store) if status != "harmless"] == []
    assert (with_ctimes(source), _sealed(template)) == before


# --- hard links -----------------------------------------------------------------------------------


def linked_source(path: Path) -> Path:
    """A model with a file and a fifo that have several names in several directories."""
    make_model(path)
    (path / "other").mkdir()
    os.mkfifo(path / "fifo0")
    for number in range(1, LINKS):
        os.link(path / "hard1", path / ("other" if number % 2 else ".") / f"more{number}")
        os.link(path / "fifo0", path / ("other" if number % 2 else ".") / f"fifo{number}")
    return path


def take(store: Store, source: Path) -> Copy:
    return store.acquire(
        "copy",
        str(source),
        persistent=True,
        prepare=lambda: seal.seal(store, str(source), progress=None, warn=pytest.fail),
    )


def opened(copy: Copy) -> Overlay:
    groups = [list(group) for group in copy.template.hard_links]
    return Overlay(*copy.directories(), groups)


def copy_up(overlay: Overlay, name: bytes) -> Node:
    node, _st = overlay.lookup(overlay.nodes.root, name)
    names = at_once(overlay.links.names_of(node))
    if name.startswith(b"fifo"):
        at_once(overlay.copy_up_special(node, names))
        return node
    copying, source = overlay.begin_copy_up(node, keep_data=True, to_write=True)
    try:
        copying.clone()
        at_once(overlay.publish(node, copying, names))
    finally:
        copying.close()
        os.close(source)
    return node


def killed_at_call(copy: Copy, name: bytes, calls: int) -> bool:
    """Copy a file up in a process that is killed instead of its Nth link(2); whether it was."""
    pid = os.fork()
    if pid == 0:
        left = [calls]
        link = syscalls.link_fd

        def counted(fd: int, dir_fd: int, new: bytes) -> None:
            left[0] -= 1
            if left[0] == 0:
                os._exit(9)
            link(fd, dir_fd, new)

        try:
            os.umask(0)
            syscalls.link_fd = counted
            copy_up(opened(copy), name)
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 9)
    return code == 9


def shown(copy: Copy) -> dict[str, set[int]]:
    """The inode numbers that users see for the names of each group, names looked up both ways."""
    numbers: dict[str, set[int]] = {"hard": set(), "fifo": set()}
    names = [b"hard1", b"more2", b"fifo0", b"fifo2", b"tokenizer/hard2", b"other/more1"]
    names += [b"other/more3", b"other/fifo1", b"other/fifo3"]
    for order in (names, names[::-1]):
        overlay = opened(copy)
        try:
            for path in order:
                place = overlay.nodes.root
                for part in path.split(b"/"):
                    place, _st = overlay.lookup(place, part)  # type: ignore[assignment]
                overlay.getattr(place)
                numbers["fifo" if b"fifo" in path else "hard"].add(place.nodeid)
        finally:
            overlay.close()
    return numbers


@pytest.mark.parametrize("name", ["hard1", "fifo0"])
def test_file_with_several_names_is_copied_up_with_all_of_them_or_none(
    xfs: Path, name: str
) -> None:
    source = linked_source(xfs / "model")
    umask = os.umask(0o022)
    with contextlib.closing(Store.for_source(str(source), None)) as store:
        copy = take(store, source)
        before = tree_state(Path(copy.upper))
        calls = 1
        while killed_at_call(copy, os.fsencode(name), calls):
            copy.release()
            copy = take(store, source)
            assert tree_state(Path(copy.upper)).keys() <= {*before, "other", "tokenizer"}
            assert all(len(numbers) == 1 for numbers in shown(copy).values())
            assert os.listdir(copy.work) == []
            calls += 1
        assert calls > LINKS
        assert all(len(numbers) == 1 for numbers in shown(copy).values())
        assert os.listdir(copy.work) == []
        copy.release()
    os.umask(umask)


def failing(monkeypatch: pytest.MonkeyPatch, function: str, fails: Callable[[bytes], bool]) -> None:
    """Let a function of os fail for some names."""
    real = getattr(os, function)

    def refuse(name: bytes, *args: object, **kwargs: object) -> object:
        if fails(os.fsencode(name)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(name, *args, **kwargs)

    monkeypatch.setattr(os, function, refuse)


@pytest.mark.parametrize("name", ["hard1", "fifo0"])
def test_group_whose_mark_cannot_be_taken_away_is_not_there(
    xfs: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Else the next mount would take the names back, with what was written to the file by then."""
    source = linked_source(xfs / "model")
    with contextlib.closing(Store.for_source(str(source), None)) as store:
        copy = take(store, source)
        with contextlib.closing(opened(copy)) as overlay:
            with monkeypatch.context() as broken:
                failing(broken, "unlink", lambda entry: entry.startswith(b"#group"))
                with pytest.raises(OSError, match="No space"):
                    copy_up(overlay, os.fsencode(name))
                assert not [entry for _, _, names in os.walk(copy.upper) for entry in names]
                assert not overlay.lookup(overlay.nodes.root, os.fsencode(name))[0].upper
            copy_up(overlay, os.fsencode(name))  # it can be tried again
            assert len([entry for _, _, names in os.walk(copy.upper) for entry in names]) >= LINKS
        copy.release()
        copy = take(store, source)
        assert len([entry for _, _, names in os.walk(copy.upper) for entry in names]) >= LINKS
        assert os.listdir(copy.work) == []
        copy.release()


def test_nobody_comes_to_a_group_that_cannot_be_taken_back(
    xfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = linked_source(xfs / "model")
    with contextlib.closing(Store.for_source(str(source), None)) as store:
        copy = take(store, source)
        with contextlib.closing(opened(copy)) as overlay:
            root = overlay.nodes.root
            with monkeypatch.context() as broken:
                failing(broken, "unlink", lambda _entry: True)
                for _ in range(2):
                    with pytest.raises(OSError, match="No space"):
                        copy_up(overlay, b"hard1")
                with pytest.raises(OSError, match="No space"):
                    overlay.lookup(root, b"hard1")
                assert os.path.exists(os.path.join(copy.upper, "hard1"))
            assert not overlay.lookup(root, b"hard1")[0].upper
            assert not os.path.exists(os.path.join(copy.upper, "hard1"))
            assert not os.path.exists(os.path.join(copy.upper, "tokenizer/hard2"))
            copy_up(overlay, b"hard1")
        copy.release()


def test_failed_rename_leaves_nothing_in_work(xfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = linked_source(xfs / "model")
    with contextlib.closing(Store.for_source(str(source), None)) as store:
        copy = take(store, source)
        with contextlib.closing(opened(copy)) as overlay:
            root = overlay.nodes.root
            node = copy_up(overlay, b"weights.bin")
            overlay.unlink(root, b"config.json")  # a whiteout, over which the new name comes
            with monkeypatch.context() as broken:
                failing(broken, "rename", lambda _entry: True)
                for create in (
                    lambda: overlay.create_file(root, b"config.json", 0o600, 0, (0, 0)),
                    lambda: overlay.create_symlink(root, b"config.json", b"x", (0, 0)),
                    lambda: overlay.link(node, root, b"config.json"),
                ):
                    with pytest.raises(OSError, match="No space"):
                        create()
            assert os.listdir(copy.work) == []
            assert overlay.getattr(node).st_nlink == 1
            overlay.link(node, root, b"config.json")
            assert overlay.getattr(node).st_nlink == 2
        copy.release()


# --- what fsync promises --------------------------------------------------------------------------


def synced(
    path: Path, flags: int = os.O_RDONLY, change: Callable[[int], object] | None = None
) -> None:
    fd = os.open(path, flags, 0o600)
    try:
        if change is not None:
            change(fd)
        os.fsync(fd)
    finally:
        os.close(fd)


def data_synced(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(fd, data, 0)
        os.fdatasync(fd)
    finally:
        os.close(fd)


def mapped(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        with mmap.mmap(fd, len(data)) as memory:
            memory[:] = data
            memory.flush()
    finally:
        os.close(fd)


def unnamed(path: Path) -> None:
    fd = os.open(path.parent, os.O_TMPFILE | os.O_WRONLY, 0o600)
    try:
        os.write(fd, b"unnamed")
        syscalls.link_fd(fd, -1, os.fsencode(path))
        os.fsync(fd)
    finally:
        os.close(fd)


def renamed(old: Path, new: Path) -> None:
    old.rename(new)
    synced(new.parent)
    synced(old.parent)


def removed(path: Path) -> None:
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink()
    synced(path.parent)


def made(path: Path) -> None:
    path.mkdir()
    synced(path.parent)


def small(path: Path) -> None:
    """A directory for one change, which so finds nothing of its own in the upper layer."""
    (path / "deep" / "er").mkdir(parents=True)
    (path / "other").mkdir()
    (path / "deep" / "er" / "leaf").write_text("leaf")
    (path / "small").write_text("small")
    (path / "script").write_text("script")
    (path / "large").write_bytes(b"large" * 400_000)
    (path / "hard").write_text("one inode")
    os.link(path / "hard", path / "other" / "hard")


#: Changes that are durable when they return.
DATA: dict[str, Callable[[Path], object]] = {
    "write": lambda root: synced(root / "small", os.O_WRONLY, lambda fd: os.write(fd, b"new")),
    "write-large": lambda root: data_synced(root / "large", b"new" * 100_000),
    "write-deep": lambda root: data_synced(root / "deep/er/leaf", b"new"),
    "write-link": lambda root: data_synced(root / "other/hard", b"new"),
    "append": lambda root: synced(
        root / "large", os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, b"more")
    ),
    "mapping": lambda root: mapped(root / "large", b"mapped" * 1000),
    "truncate": lambda root: synced(root / "large", os.O_WRONLY, lambda fd: os.ftruncate(fd, 5000)),
    "empty": lambda root: synced(root / "large", os.O_WRONLY | os.O_TRUNC),
}
NAMES: dict[str, Callable[[Path], object]] = {
    "chmod": lambda root: synced(
        root / "deep/er/leaf", os.O_RDONLY, lambda fd: os.fchmod(fd, 0o600)
    ),
    "attribute": lambda root: synced(
        root / "small", os.O_RDONLY, lambda fd: os.setxattr(fd, "user.new", b"new")
    ),
    "create": lambda root: synced(
        root / "deep/er/new", os.O_WRONLY | os.O_CREAT, lambda fd: os.write(fd, b"new")
    ),
    "unnamed": lambda root: unnamed(root / "deep/er/new"),
    "directory": lambda root: made(root / "deep/er/new"),
    "symlink": lambda root: [(root / "deep/er/new").symlink_to("target"), synced(root / "deep/er")],
    "link": lambda root: [os.link(root / "small", root / "deep/new"), synced(root / "small")],
    "unlink": lambda root: removed(root / "deep/er/leaf"),
    "unlink-link": lambda root: removed(root / "hard"),
    "rename": lambda root: renamed(root / "deep/er/leaf", root / "leaf"),
    "replace": lambda root: renamed(root / "script", root / "deep/er/leaf"),
    "rename-directory": lambda root: renamed(root / "deep", root / "other/deep"),
    "recreate": lambda root: [
        removed(root / "small"),
        synced(root / "small", os.O_WRONLY | os.O_CREAT, lambda fd: os.write(fd, b"again")),
    ],
}


def lost(
    mounts: MountCopy, volume: Volume, changes: dict[str, Callable[[Path], object]]
) -> list[str]:
    """Make each change, lose the log at once, and see whether it is there; gives what is not.

    One at a time: the next fsync would write the whole log.
    """
    source = volume.mountpoint / "source"
    for name in changes:
        small(source / name)
    root = mounts(source, None, "copy=synced")
    found = []
    for name, change in changes.items():
        change(root / name)
        expected = tree_state(root / name, times=name != "mapping")
        pid = mounts.daemon_pid(root)
        run("xfs_io", "-x", "-c", "shutdown", volume.mountpoint)
        restart(volume, root, pid)
        mounts(source, root, "copy=synced")
        if tree_state(root / name, times=name != "mapping") != expected:
            found.append(name)
    mounts.unmount(root)
    assert findings(volume.mountpoint / ".cowfs") == []
    return found


def test_data_that_was_synced_is_there_when_the_log_is_lost_right_after(
    mount_copy: MountCopy, small_xfs: Callable[..., Volume]
) -> None:
    assert lost(mount_copy, small_xfs(256), DATA) == []


def test_name_that_was_synced_is_there_when_the_log_is_lost_right_after(
    mount_plain: MountCopy, small_xfs: Callable[..., Volume]
) -> None:
    assert lost(mount_plain, small_xfs(256), NAMES) == []


def test_sync_of_a_directory_fails_when_its_changes_were_lost(
    small_xfs: Callable[..., Volume],
) -> None:
    volume = small_xfs()
    (volume.mountpoint / "old").touch()
    fd = os.open(volume.mountpoint, os.O_RDONLY)
    try:
        syscalls.fsync_directory(fd)
        (volume.mountpoint / "old").rename(volume.mountpoint / "new")
        run("xfs_io", "-x", "-c", "shutdown", volume.mountpoint)
        with pytest.raises(OSError, match="Input/output error"):
            syscalls.fsync_directory(fd)
    finally:
        os.close(fd)


# --- commands that are killed ---------------------------------------------------------------------


def kill_everything(mountpoint: Path, others: set[int]) -> None:
    """Kill what the command has left; `others` are the processes of before."""
    for pid in set(kernel.session_processes()) - others:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        kernel.wait_for_end(pid, 10)
    path = str(mountpoint)
    for mount in kernel.mounts():
        if mount.mountpoint == path:
            kernel.detach(path)


def in_the_middle(chance: random.Random, longest: float, *arguments: str | Path) -> None:
    """Kill a command, and all that it started, at some moment of its first seconds."""
    command = [str(COWFS), *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(chance.uniform(0, longest))
    process.kill()
    process.wait(timeout=20)


@pytest.mark.timeout(120 * EFFORT)
def test_command_that_is_killed_leaves_what_the_next_one_puts_right(
    mount_plain: MountCopy, xfs: Path
) -> None:
    source = make_model(xfs / "source")
    for number in range(3000):
        (source / "many" / f"more{number}").touch()
    store = xfs / "store"
    root = mount_plain.mountpoint()
    chance = random.Random(f"{CHANCE} commands")
    before = with_ctimes(source)
    others = set(kernel.session_processes())
    mount = ("mount", "-o", f"store={store},copy=killed", source, root)
    for number in range(ROUNDS):
        (source / "config.json").write_text(f"{number}")  # so that the next mount seals
        before = with_ctimes(source)
        in_the_middle(chance, 0.6, *mount)
        kill_everything(root, others)
        if store.exists():
            assert [found for found in findings(store) if found[0] != "harmless"] == []
        cowfs(*mount)
        assert (root / "config.json").read_text() == f"{number}"
        (root / "config.json").write_text("changed")
        in_the_middle(chance, 0.5, "umount", root)
        kill_everything(root, others)
        assert [found for found in findings(store) if found[0] != "harmless"] == []
        cowfs(*mount)
        assert (root / "config.json").read_text() == "changed"
        cowfs("umount", root)
        in_the_middle(chance, 0.4, "rm", "--store", store, "killed")
        assert [found for found in findings(store) if found[0] != "harmless"] == []
        cowfs("rm", "--store", store, "killed", check=False)
        assert not (store / "copies" / "killed").exists()
        (source / "config.json").write_text("another state")
        in_the_middle(chance, 0.6, "gc", "--store", store)
        assert [found for found in findings(store) if found[0] != "harmless"] == []
        cowfs("gc", "--store", store)
        assert findings(store) == []
        assert os.listdir(store / "templates") == os.listdir(store / "partial") == []
        assert os.listdir(store / "trash") == []
    after = with_ctimes(source)
    assert {**after, "config.json": None} == {**before, "config.json": None}


def test_copy_that_was_synced_has_its_template_when_the_log_is_lost_after_sealing(
    mount_plain: MountCopy, small_xfs: Callable[..., Volume]
) -> None:
    """Sealing syncs nothing itself: whatever comes after it in the log has it before it."""
    volume = small_xfs(256)
    source = make_model(volume.mountpoint / "source")
    run("sync", "-f", volume.mountpoint)
    expected = tree_state(source)
    store = volume.mountpoint / ".cowfs"
    root = mount_plain(source, None, "copy=new")
    pid = mount_plain.daemon_pid(root)
    data_synced(root / "small.bin", b"new")
    run("xfs_io", "-x", "-c", "shutdown", volume.mountpoint)
    restart(volume, root, pid)
    assert findings(store) == []
    [template] = (store / "templates").iterdir()
    assert tree_state(template / "tree") == expected
    mount_plain(source, root, "copy=new")
    assert (root / "small.bin").read_bytes()[:3] == b"new"


def test_volume_that_goes_down_right_after_a_mount_has_the_copy_whole_or_not_at_all(
    mount_plain: MountCopy, small_xfs: Callable[..., Volume]
) -> None:
    volume = small_xfs(256)
    source = make_model(volume.mountpoint / "source")
    run("sync", "-f", volume.mountpoint)
    store = volume.mountpoint / ".cowfs"
    root = mount_plain.mountpoint()
    for flush in ("", " -f"):
        mount_plain(source, root, "copy=new")
        run("xfs_io", "-x", "-c", f"shutdown{flush}", volume.mountpoint)
        restart(volume, root, mount_plain.daemon_pid(root))
        if store.exists():
            assert [found for found in findings(store) if found[0] != "harmless"] == []
        mount_plain(source, root, "copy=new")
        assert tree_state(root) == tree_state(source)
        mount_plain.unmount(root)
