"""What hostile users, full and broken volumes and a killed daemon may not bring about."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import itertools
import os
import signal
import stat
import subprocess
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cowfs.overlay.listing import LAST_COOKIE, Listing
from cowfs.overlay.overlay import Overlay
from cowfs.store import seal
from cowfs.store.store import Copy, Store
from cowfs.system import syscalls
from integration import kernel
from integration.command import cowfs, run
from integration.mounts import MountCopy
from integration.oracle import Oracle
from integration.posix.notes import acting_as
from integration.trees import make_model, tree_state
from integration.volumes import MIB, Volume

USER = 1000
#: More than the daemon keeps directories open (`layers.CACHED_DIRECTORIES`), and more than the
#: interpreter's stack is deep.
DEEP = 1100
#: As a path longer than PATH_MAX: names of one byte and a slash each.
DEEPER = 2200

FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)


def error_of(action: Callable[..., object], *args: Any, **kwargs: Any) -> str:
    """The name of the errno that a call fails with, "" when it does not."""
    try:
        action(*args, **kwargs)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def create(name: str, data: bytes = b"", *, dir_fd: int | None = None) -> None:
    fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600, dir_fd=dir_fd)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def read(name: str, *, dir_fd: int | None = None) -> bytes:
    fd = os.open(name, os.O_RDONLY, dir_fd=dir_fd)
    try:
        return os.read(fd, 1 << 20)
    finally:
        os.close(fd)


@contextlib.contextmanager
def chain(top: Path, depth: int, *, decoys: bool = False) -> Iterator[int]:
    """Make directories in each other and give a descriptor of the deepest.

    With `decoys` each but the deepest has a file "victim" in it.
    """
    top.mkdir()
    fd = os.open(top, os.O_PATH)
    try:
        for level in range(depth):
            if decoys:
                create("victim", b"decoy %d" % level, dir_fd=fd)
            os.mkdir("d", dir_fd=fd)
            child = os.open("d", os.O_PATH, dir_fd=fd)
            os.close(fd)
            fd = child
        yield fd
    finally:
        os.close(fd)


# --- users inside of a copy -----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["rename", "exchange", "link"])
def test_change_between_deep_directories_touches_what_was_named(
    mount_plain: MountCopy, model: Path, how: str
) -> None:
    """Nothing else, above all nothing that the user has no right to: the decoys are root's."""
    root = mount_plain(model)
    (root / "open").mkdir()
    (root / "open").chmod(0o777)
    with chain(root / "roots", DEEP, decoys=True) as theirs:
        os.chmod(f"/proc/self/fd/{theirs}", 0o777)
        with acting_as(USER), chain(root / "open" / "users", DEEP, decoys=True) as mine:
            create("victim", b"mine", dir_fd=mine)
            if how == "rename":
                os.rename("victim", "new", src_dir_fd=mine, dst_dir_fd=theirs)
                assert os.listdir(f"/proc/self/fd/{mine}") == []
            elif how == "link":
                os.link("victim", "new", src_dir_fd=mine, dst_dir_fd=theirs)
            else:
                create("new", b"other", dir_fd=theirs)
                syscalls.renameat2(mine, b"victim", theirs, b"new", syscalls.RENAME_EXCHANGE)
                assert read("victim", dir_fd=mine) == b"other"
            assert read("new", dir_fd=theirs) == b"mine"
    decoys = run("find", root / "roots", "-name", "victim", "-uid", "0").stdout.splitlines()
    assert len(decoys) == DEEP


def test_deep_directories_keep_nobody_from_changing_linked_files(
    mount_plain: MountCopy, model: Path
) -> None:
    root = mount_plain(model)
    (root / "open").mkdir()
    (root / "open").chmod(0o777)
    with acting_as(USER), chain(root / "open" / "users", DEEPER):
        pass
    (root / "hard1").write_bytes(b"changed")
    assert (root / "tokenizer" / "hard2").read_bytes() == b"changed"


@pytest.mark.parametrize("how", ["write", "truncate", "allocate", "punch", "copy_file_range"])
@pytest.mark.parametrize("name", ["config.json", "weights.bin"])
def test_setuid_goes_with_every_change_by_a_user(oracle: Oracle, how: str, name: str) -> None:
    def act(root: Path) -> int:
        path = root / name
        path.chmod(0o6777)
        with acting_as(USER):
            fd = os.open(path, os.O_RDWR)
            source = os.open(root / "script.sh", os.O_RDONLY)
            try:
                if how == "write":
                    os.write(fd, b"x")
                elif how == "truncate":
                    os.ftruncate(fd, 3)
                elif how == "allocate":
                    os.posix_fallocate(fd, 0, 8 * MIB)
                elif how == "punch":
                    mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
                    assert _libc.fallocate(fd, mode, ctypes.c_long(0), ctypes.c_long(4096)) == 0
                else:
                    os.copy_file_range(source, fd, 5)
            finally:
                os.close(source)
                os.close(fd)
        return path.stat().st_mode

    assert stat.S_IMODE(oracle.same(act)) == 0o777


def test_fallocate_of_a_setuid_file_by_somebody_else_succeeds(oracle: Oracle) -> None:
    """The kernel asks for a change of attributes first that names none."""

    def act(root: Path) -> int:
        fd = os.open(root / "config.json", os.O_RDWR)
        os.fchmod(fd, 0o6711)
        with acting_as(USER):
            os.posix_fallocate(fd, 0, 8 * MIB)
        os.close(fd)
        return (root / "config.json").stat().st_mode

    assert stat.S_IMODE(oracle.same(act)) == 0o711


@pytest.mark.parametrize("gid", [USER, 2000, 3000])
@pytest.mark.parametrize("how", ["write", "ftruncate", "truncate", "O_TRUNC", "allocate", "chgrp"])
def test_setgid_without_group_execution_stays_for_the_group_only(
    oracle: Oracle, how: str, gid: int
) -> None:
    def act(root: Path) -> int:
        path = root / "small.bin"
        os.chown(path, USER, gid)
        path.chmod(0o2666)
        with acting_as(USER, [2000]):
            if how == "truncate":
                os.truncate(path, 3)
            elif how == "chgrp":
                os.chown(path, -1, USER)
            else:
                fd = os.open(path, os.O_RDWR | (os.O_TRUNC if how == "O_TRUNC" else 0))
                if how == "write":
                    os.write(fd, b"x")
                elif how == "ftruncate":
                    os.ftruncate(fd, 3)
                elif how == "allocate":
                    os.posix_fallocate(fd, 0, 8 * MIB)
                os.close(fd)
        return path.stat().st_mode

    oracle.same(act)


def test_setgid_goes_when_somebody_outside_of_the_group_sets_an_acl(oracle: Oracle) -> None:
    def act(root: Path) -> int:
        path = root / "small.bin"
        os.chown(path, USER, 2000)
        path.chmod(0o2755)
        run("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups",
            "setfacl", "-m", "u:1001:rx", path)  # fmt: skip
        return path.stat().st_mode

    assert not oracle.same(act) & stat.S_ISGID


def test_change_of_mode_follows_no_symlink(xfs: Path) -> None:
    """Kernels before 6.6 send it for symlinks too (chmod of /proc/self/fd/N)."""
    for name in ("tree", "upper", "work"):
        (xfs / name).mkdir()
    victim = xfs / "victim"
    victim.touch(0o600)
    umask = os.umask(0o022)  # the overlay leaves it at 0
    try:
        overlay = Overlay(
            *(os.open(xfs / name, os.O_PATH) for name in ("tree", "upper", "work")), []
        )
        try:
            link = overlay.create_symlink(
                overlay.nodes.root, b"link", os.fsencode(victim), (USER, USER)
            )
            assert error_of(lambda: overlay.set_mode(link, 0o777)) == "ENOTSUP"
        finally:
            overlay.close()
    finally:
        os.umask(umask)
    assert stat.S_IMODE(victim.stat().st_mode) == 0o600


def test_odd_names_and_attributes_come_out_as_on_xfs(oracle: Oracle) -> None:
    names = [b"\xff\xfe", b"a\nb", b"\x01", b" ", b"...", b"#1", b"x" * 255, b"x" * 256, b".cowfs"]
    attributes = [
        b"user.\xff",
        b"user.",
        b"user.a\nb",
        b"user." + b"n" * 250,
        b"user." + b"n" * 251,
        b"user.overlay.opaque",
        b"trusted.x",
        b"security.x",
        b"system.x",
        b"x",
    ]

    def act(root: Path) -> list[str]:
        directory = os.fsencode(root / "odd")
        os.mkdir(directory)
        os.chown(directory, USER, USER)
        seen = []
        moved, link = directory + b"/moved", directory + b"/link"
        with acting_as(USER):
            for name in names:
                path = directory + b"/" + name
                seen += [error_of(create, os.fsdecode(path)), error_of(os.rename, path, moved)]
            for name in attributes:
                for size in (0, 65536, 65537):
                    seen.append(error_of(os.setxattr, moved, name, b"v" * size))
                seen.append(error_of(os.setxattr, moved, name, b"", os.XATTR_CREATE))
                seen.append(error_of(os.getxattr, moved, name))
            os.symlink("/etc/passwd", link)
            for name in attributes:
                seen.append(error_of(os.setxattr, link, name, b"1", follow_symlinks=False))
        return seen

    oracle.same(act)


def test_user_sees_no_trusted_attribute(oracle: Oracle) -> None:
    os.setxattr(oracle.native / "config.json", "trusted.secret", b"")
    os.setxattr(oracle.copy / "config.json", "trusted.secret", b"")

    def act(root: Path) -> list[str]:
        with acting_as(USER):
            return sorted(os.listxattr(root / "config.json"))

    assert oracle.same(act) == ["user.origin"]


# --- the daemon -----------------------------------------------------------------------------------


def test_no_operation_leaves_a_descriptor_behind(mount_copy: MountCopy, model: Path) -> None:
    root = mount_copy(model, None, "watchdog=2")  # a ping twice a second
    descriptors = Path(f"/proc/{mount_copy.daemon_pid(root)}/fd")

    def everything() -> None:
        os.chdir(root)
        for n in range(60):
            create("f", b"data")
            os.rename("f", "g")
            os.link("g", "h")
            os.symlink("g", "s")
            os.mkdir("d")
            create("d/x")
            os.rename("d", "e")
            for action in (
                lambda: os.mkdir("g"),
                lambda: os.rename("g", "g/x"),
                lambda: os.rename("g", "e"),
                lambda: os.rmdir("e"),
                lambda: os.unlink("absent"),
                lambda: os.mkdir("n" * 256),
                lambda: os.setxattr("g", "user.large", b"v" * 65537),
                lambda: os.symlink("t" * 2000, "long"),
            ):
                assert error_of(action)
            with open(f"many/f{n:03}", "r+b") as file, open(f"many/f{n:03}", "rb"):
                os.unlink(f"many/f{n:03}")
                file.write(b"x")
            os.chmod(f"many/f{n + 60:03}", 0o640)
            os.listdir("many")
            for name in ("g", "h", "s", "e/x"):
                os.unlink(name)
            os.rmdir("e")

    here = Path.cwd()
    try:
        with (root / "config.json").open("rb"):
            before = len(os.listdir(descriptors))
            everything()
            # Clones that were made ahead of the changes of mode go after two pings.
            deadline = time.monotonic() + 20
            while len(os.listdir(descriptors)) > before + 5:  # of directories
                assert time.monotonic() < deadline, len(os.listdir(descriptors)) - before
                time.sleep(0.1)
    finally:
        os.chdir(here)


def test_listing_forgets_the_names_that_are_gone() -> None:
    listing = Listing(iter([(b"first", False), (b"second", True)]))
    tracemalloc.start()
    try:
        for _ in range(50_000):
            listing.add(b"temporary", is_directory=False)
            listing.remove(b"temporary", is_directory=False)
        used, _peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 50_000
    listing.add(b"last", is_directory=False)
    listed = list(listing.after(0))
    assert sorted(name for _place, name in listed) == [b"first", b"last", b"second"]
    for index, (place, _name) in enumerate(listed):
        assert list(listing.after(place)) == listed[index:]


def test_killed_daemon_frees_its_callers_and_loses_nothing(
    mount_copy: MountCopy, model: Path
) -> None:
    root = mount_copy(model)
    script = """
        i=0
        while printf %s $i > "$1/w$2-$i.tmp" && mv "$1/w$2-$i.tmp" "$1/w$2-$i"; do
            echo "w$2-$i"
            i=$((i + 1))
        done
    """
    writers = [
        subprocess.Popen(
            ["sh", "-c", script, "sh", root, str(n)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for n in range(4)
    ]
    time.sleep(0.5)
    mount_copy.orphan(root)
    done = [name for w in writers for name in w.communicate(timeout=10)[0].split()]
    assert done
    cowfs("umount", root)
    mount_copy(model, root)
    assert {name: (root / name).read_text() for name in done} == {
        name: name.partition("-")[2] for name in done
    }


def test_hangup_unmounts(mount_plain: MountCopy, model: Path) -> None:
    """The terminal of `cowfs mount --foreground` is closed: what is left is no dead mount."""
    root = mount_plain(model)
    pid = mount_plain.daemon_pid(root)
    os.kill(pid, signal.SIGHUP)
    assert kernel.wait_for_end(pid, 10)
    assert not os.path.ismount(root)
    assert os.listdir(root) == []


def test_daemon_unmounts_nothing_but_its_own_mount(
    mount_plain: MountCopy, model: Path, tmp_path: Path
) -> None:
    """The owner of a directory above the mountpoint puts another in its place."""
    (tmp_path / "users" / "here").mkdir(parents=True)
    (tmp_path / "roots" / "here").mkdir(parents=True)
    run("mount", "-t", "tmpfs", "none", tmp_path / "roots" / "here")
    try:
        root = mount_plain(model, tmp_path / "users" / "here")
        pid = mount_plain.daemon_pid(root)
        (tmp_path / "users").rename(tmp_path / "moved")
        (tmp_path / "users").symlink_to("roots")
        mount_plain.adopt(tmp_path / "moved" / "here")
        os.kill(pid, signal.SIGTERM)
        assert kernel.wait_for_end(pid, 10)
        assert os.path.ismount(tmp_path / "roots" / "here")
        assert not os.path.ismount(tmp_path / "moved" / "here")
    finally:
        subprocess.run(["umount", tmp_path / "roots" / "here"], check=False)


def test_copy_with_very_deep_directories_is_unmounted_counted_and_removed(
    mount_plain: MountCopy, model: Path
) -> None:
    root = mount_plain(model, None, "copy=deep")
    with chain(root / "top", DEEPER) as fd:
        create("leaf", dir_fd=fd)
    store = mount_plain.record(root)["store"]
    assert "1 file" in mount_plain.unmount(root).stdout
    cowfs("list")
    cowfs("rm", "--store", store, "deep")


# --- volumes that are full or broken --------------------------------------------------------------


def _changes(root: Path) -> dict[str, Callable[[], object]]:
    return {
        "create": lambda: create(str(root / "new")),
        "mkdir": lambda: (root / "new").mkdir(),
        "symlink": lambda: (root / "new").symlink_to("t" * 900),
        "fifo": lambda: os.mkfifo(root / "new"),
        "first write": lambda: os.close(os.open(root / "config.json", os.O_RDWR)),
        "first write, large": lambda: os.close(os.open(root / "weights.bin", os.O_RDWR)),
        "first write, linked": lambda: os.close(os.open(root / "hard1", os.O_RDWR)),
        "truncate": lambda: os.truncate(root / "tokenizer" / "vocab.txt", 1),
        "chmod": lambda: (root / "empty").chmod(0o600),
        "chmod of a directory": lambda: (root / "tokenizer").chmod(0o700),
        "setxattr": lambda: os.setxattr(root / "small.bin", "user.x", b"v" * 60000),
        "link": lambda: os.link(root / "script.sh", root / "new"),
        "rename": lambda: (root / "many" / "f001").rename(root / "many" / "g001"),
        "unlink": lambda: (root / "many" / "f002").unlink(),
        "rmdir": lambda: (root / "tokenizer" / "deep" / "er").rmdir(),
        "rename of a directory": lambda: (root / "many").rename(root / "more"),
    }


def _fill_to_the_brim(volume: Volume) -> None:
    """No block and no inode is left; the last ones go to empty files."""
    volume.fill()
    with contextlib.suppress(OSError):
        for n in range(100_000):
            create(str(volume.mountpoint / "crowd" / str(n)))
    ballast = volume.mountpoint / "ballast"
    with ballast.open("ab") as file, contextlib.suppress(OSError):
        os.posix_fallocate(file.fileno(), ballast.stat().st_size, 4096)


def test_full_volume_fails_changes_whole_and_recovers(
    mount_copy: MountCopy, small_xfs: Callable[..., Volume]
) -> None:
    volume = small_xfs(64)
    model = make_model(volume.mountpoint / "model")
    (model / "tokenizer" / "deep" / "er" / "leaf").unlink()
    (volume.mountpoint / "crowd").mkdir()
    root = mount_copy(model)
    upper = Path(mount_copy.record(root)["store"], "copies", mount_copy.record(root)["copy"])
    before = tree_state(root)
    _fill_to_the_brim(volume)
    errors = {what: error_of(change) for what, change in _changes(root).items()}
    assert errors == dict.fromkeys(errors, "ENOSPC")
    assert tree_state(root) == before
    assert list((upper / "work").iterdir()) == []
    (volume.mountpoint / "ballast").unlink()
    for what, change in _changes(root).items():
        assert not error_of(change), what
        if os.path.isdir(root / "new"):  # pathlib minds where the symlink leads to
            (root / "new").rmdir()
        elif os.path.lexists(root / "new"):
            (root / "new").unlink()


def test_volume_that_was_shut_down_gives_errors_and_hangs_nobody(
    mount_copy: MountCopy, small_xfs: Callable[..., Volume]
) -> None:
    volume = small_xfs(64)
    root = mount_copy(make_model(volume.mountpoint / "model"))
    pid = mount_copy.daemon_pid(root)
    (root / "config.json").write_text("changed")
    run("xfs_io", "-x", "-c", "shutdown", volume.mountpoint)
    errors = {what: error_of(change) for what, change in _changes(root).items()}
    assert errors == dict.fromkeys(errors, "EIO")
    assert error_of(lambda: os.stat(root / "never-asked-for")) == "EIO"
    ticks = kernel.cpu_ticks(pid)
    time.sleep(0.5)
    assert kernel.cpu_ticks(pid) - ticks <= 2
    said = mount_copy.unmount(root).stdout
    assert "discarded" not in said


# --- the data plane -------------------------------------------------------------------------------


def test_appends_of_several_processes_do_not_mix(mount_copy: MountCopy, model: Path) -> None:
    root = mount_copy(model)
    script = 'for i in $(seq 200); do printf %100s "" | tr " " "$2" >> "$1"; done'
    writers = [
        subprocess.Popen(["sh", "-c", script, "sh", root / "log", letter]) for letter in "abc"
    ]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0]
    data = (root / "log").read_bytes()
    assert len(data) == 3 * 200 * 100
    assert all(len(set(data[at : at + 100])) == 1 for at in range(0, len(data), 100))


def test_template_keeps_its_bytes_whatever_users_do(mount_copy: MountCopy, model: Path) -> None:
    root = mount_copy(model)
    record = mount_copy.record(root)
    tree = Path(record["store"], "templates", record["template"], "tree")
    before = {p: hashlib.sha256(p.read_bytes()).digest() for p in tree.rglob("*") if p.is_file()}
    readers = [p.open("rb") for p in root.rglob("*") if p.is_file()]
    for reader in readers:
        reader.read(10)
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("r+b") as file:
                file.write(b"overwritten")
            os.truncate(path, 3)
            with contextlib.suppress(OSError):
                fd = os.open(f"/proc/self/fd/{readers[0].fileno()}", os.O_RDWR)
                os.write(fd, b"through an old reader")
                os.close(fd)
    for reader in readers:
        reader.close()
    assert before == {
        p: hashlib.sha256(p.read_bytes()).digest() for p in tree.rglob("*") if p.is_file()
    }


# --- the store ------------------------------------------------------------------------------------


def test_fsync_makes_durable_what_came_after_the_open(
    mount_copy: MountCopy, small_xfs: Callable[..., Volume]
) -> None:
    """The descriptor is one of the template's file; what changes is the copy's own."""
    volume = small_xfs(64)
    source = make_model(volume.mountpoint / "model")
    root = mount_copy(source, None, "copy=durable")
    run("sync", "-f", volume.mountpoint)
    with (root / "weights.bin").open("rb") as file:
        (root / "weights.bin").chmod(0o640)
        os.setxattr(root / "weights.bin", "user.kept", b"yes")
        os.fsync(file.fileno())
    run("xfs_io", "-x", "-c", "shutdown", volume.mountpoint)
    mount_copy.unmount(root)
    volume.unmount()
    volume.mount()
    mount_copy(source, root, "copy=durable")
    assert stat.S_IMODE((root / "weights.bin").stat().st_mode) == 0o640
    assert os.getxattr(root / "weights.bin", "user.kept") == b"yes"


def test_store_that_is_exchanged_after_its_check_is_not_followed(xfs: Path, model: Path) -> None:
    """The owner of the volume's root may rename the store at any moment."""
    store = Store.for_source(str(model), str(xfs / "store"))
    copy = store.acquire(
        "copy",
        str(model),
        persistent=True,
        prepare=lambda: seal.seal(store, str(model), progress=None, warn=print),
    )
    served = Copy.adopt(store, "copy", copy.lock_fd)
    (xfs / "store").rename(xfs / "true")
    fake = xfs / "fake"
    for path in ("copies/copy/upper", "copies/copy/work", f"templates/{copy.template.id}/tree"):
        (fake / path).mkdir(parents=True)
    (xfs / "store").symlink_to(fake)
    umask = os.umask(0o022)
    try:
        overlay = Overlay(*served.directories(), [])
        try:
            root = os.stat(xfs / "true" / "copies" / "copy" / "upper")
            assert os.path.samestat(os.fstat(overlay.layers.upper_root_fd), root)
            tree = os.stat(xfs / "true" / "templates" / copy.template.id / "tree")
            assert os.path.samestat(os.fstat(overlay.layers.tree_fd), tree)
        finally:
            overlay.close()
    finally:
        os.umask(umask)
        copy.release()
        store.close()


def test_names_with_the_same_hash_are_listed_and_removed_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cowfs.overlay.listing._hash", lambda name: name[0])
    names = [b"a1", b"a2", b"a3", b"b1", b"b2"]
    for order in itertools.permutations(names):
        listing = Listing(iter([(name, False) for name in names[:2]]))
        for name in names[2:]:
            listing.add(name, is_directory=False)
        left = set(names)
        for name in order:
            assert {name for _place, name in listing.after(0)} == left
            places = [place for place, _name in listing.after(0)]
            assert places == sorted(set(places))
            listing.remove(name, is_directory=False)
            left.remove(name)
        assert listing.is_empty()


def test_offsets_of_a_directory_fit_programs_of_32_bits() -> None:
    listing = Listing((b"%d" % number, False) for number in range(100_000))
    places = [place for place, _name in listing.after(0)]
    assert len(places) == 100_000
    assert 0 <= places[0] < places[-1] <= LAST_COOKIE - 3
    assert LAST_COOKIE < 1 << 31
