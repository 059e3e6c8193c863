"""A copy that the kernel's overlayfs serves: everything around it is as with FUSE."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cowfs.mount.privileges import CAPABILITIES
from integration import kernel
from integration.command import COWFS, Result, cowfs, one_error, run
from integration.host import container
from integration.mounts import MountCopy
from integration.trees import make_model, tree_state, with_ctimes
from integration.volumes import Volume, unmount

OVERLAY = "engine=overlay"
ODD = "a,b:c d\\e\nf=g\\054%é"


@pytest.fixture
def mounts(mount_plain: MountCopy) -> MountCopy:
    return mount_plain


def listed(store: Path) -> dict[str, dict[str, Any]]:
    rows = json.loads(cowfs("list", "--json", "--store", store).stdout)
    return {row["name"]: row for row in rows}


def store_of(mounts: MountCopy, mountpoint: Path) -> Path:
    return Path(mounts.record(mountpoint)["store"])


def checked(store: Path) -> None:
    found = cowfs("check", "--all", "--store", store).stdout
    assert found.endswith(": clean\n"), found


# --- the life of a copy ---------------------------------------------------------------------------


@pytest.mark.quick
def test_copy_is_writable_kept_and_goes_on_with_either_engine(
    mounts: MountCopy, model: Path
) -> None:
    before = with_ctimes(model)
    mountpoint = mounts(model, None, OVERLAY, "copy=mine")
    assert kernel.session_mounts()[-1].fstype == "overlay"
    store = store_of(mounts, mountpoint)
    assert tree_state(mountpoint).keys() == tree_state(model).keys()
    with (mountpoint / "weights.bin").open("ab") as file:
        file.write(b"tail")
    (mountpoint / "tokenizer").rename(mountpoint / "renamed")
    (mountpoint / "config.json").unlink()
    (mountpoint / "new").write_text("new")
    state = _comparable(mountpoint)
    said = mounts.unmount(mountpoint).stdout
    assert said.startswith("kept copy mine (2 files, 2 deletions"), said
    for engine in ("engine=fuse", OVERLAY, "engine=auto"):
        mounts(model, mountpoint, engine, "copy=mine")
        assert _comparable(mountpoint) == state, engine
        mounts.unmount(mountpoint)
        checked(store)
    assert with_ctimes(model) == before


def _comparable(root: Path) -> dict[str, tuple[object, ...]]:
    """Without the link counts of directories and files, which overlayfs has in its own way."""
    return {path: (e.mode, e.uid, e.size, e.content) for path, e in tree_state(root).items()}


def test_list_says_which_engine_serves(mounts: MountCopy, model: Path) -> None:
    one, other = mounts(model, None, OVERLAY, "copy=a"), mounts(model, None, "copy=b")
    store = store_of(mounts, one)
    rows = listed(store)
    assert (rows["a"]["engine"], rows["b"]["engine"]) == ("overlay", "fuse")
    assert rows["a"]["mountpoint"] == str(one)
    mounts.unmount(one)
    mounts.unmount(other)
    assert listed(store)["a"]["engine"] is None


def test_ephemeral_copy_is_gone_when_umount_returns(mounts: MountCopy, model: Path) -> None:
    mountpoint = mounts(model, None, OVERLAY, "ephemeral", "copy=gone")
    store = store_of(mounts, mountpoint)
    (mountpoint / "weights.bin").write_bytes(b"x" * 10000)
    assert mounts.unmount(mountpoint).stdout == "discarded ephemeral copy gone\n"
    assert os.listdir(store / "copies") == os.listdir(store / "trash") == []


def test_copy_without_changes_follows_its_source(mounts: MountCopy, model: Path) -> None:
    mountpoint = mounts(model, None, OVERLAY)
    store = store_of(mounts, mountpoint)
    (mountpoint / "weights.bin").read_bytes()
    mounts.unmount(mountpoint)
    (model / "config.json").write_text("newer")
    mounts(model, mountpoint, OVERLAY)
    assert (mountpoint / "config.json").read_text() == "newer"
    mounts.unmount(mountpoint)
    cowfs("gc", "--store", store)
    assert len(os.listdir(store / "templates")) == len(os.listdir(store / "lowers")) == 1


def test_read_only_copy_refuses_changes(mounts: MountCopy, model: Path) -> None:
    mountpoint = mounts(model, None, OVERLAY, "ro")
    with pytest.raises(OSError, match="Read-only"):
        (mountpoint / "new").touch()
    assert (mountpoint / "config.json").read_text() == (model / "config.json").read_text()
    mounts.unmount(mountpoint)


def test_mount_options_of_mount8_are_those_of_the_mount(mounts: MountCopy, model: Path) -> None:
    mountpoint = mounts(model, None, OVERLAY, "noexec", "suid")
    options = run("findmnt", "-no", "VFS-OPTIONS", mountpoint).stdout.strip().split(",")
    assert {"noexec", "nodev"} <= set(options)
    assert "nosuid" not in options
    mounts.unmount(mountpoint)


def test_names_hold_what_paths_may_hold(mounts: MountCopy, model: Path, xfs: Path) -> None:
    source, below = xfs / ODD, xfs / f"mnt{ODD}"
    model.rename(source)
    below.mkdir()
    for engine in (OVERLAY, "engine=fuse", OVERLAY):
        copy = f"copy={ODD}".replace("\\", "\\\\").replace(",", "\\,")
        store = f"store={xfs / 'st,o:r e'}".replace(",", "\\,")
        mounts(source, below, engine, copy, store)
        (below / "new").write_text(engine)
        mounts.unmount(below)
    assert (xfs / "st,o:r e" / "copies" / ODD / "upper" / "new").read_text() == OVERLAY


# --- the trees that overlayfs reads ---------------------------------------------------------------


def test_copies_share_one_tree_and_its_pages(mounts: MountCopy, model: Path) -> None:
    copies = [mounts(model, None, OVERLAY) for _ in range(3)]
    store = store_of(mounts, copies[0])
    [lower] = (store / "lowers").iterdir()
    report = json.loads(cowfs("warm", "--json", copies[0]).stdout)
    assert report["errors"] == []
    assert report["resident_after"] == report["bytes"] > 0
    assert json.loads(cowfs("warm", "--json", lower / "tree").stdout)["read"] == 0
    again = json.loads(cowfs("warm", "--json", copies[2]).stdout)
    assert again["read"] == 0
    for copy in copies:
        mounts.unmount(copy)


def test_trees_go_with_their_template(mounts: MountCopy, model: Path) -> None:
    mountpoint = mounts(model, None, OVERLAY, "ephemeral")
    store = store_of(mounts, mountpoint)
    mounts.unmount(mountpoint)
    assert len(os.listdir(store / "lowers")) == 1
    (model / "config.json").write_text("newer")
    cowfs("gc", "--store", store)
    assert os.listdir(store / "lowers") == os.listdir(store / "templates") == []


def test_tree_that_was_changed_is_found_and_made_anew(mounts: MountCopy, model: Path) -> None:
    mountpoint = mounts(model, None, OVERLAY, "copy=mine")
    store = store_of(mounts, mountpoint)
    [lower] = (store / "lowers").iterdir()
    with (lower / "tree" / "weights.bin").open("r+b") as file:
        file.write(b"oops")
    # In use: it is told, and left.
    assert cowfs("check", "--all", "--repair", "--store", store, check=False).returncode == 16
    mounts.unmount(mountpoint)
    found = cowfs("check", "--all", "--store", store, check=False)
    assert found.returncode == 16
    assert str(lower) in found.stdout
    assert cowfs("check", "--all", "--repair", "--store", store, check=False).returncode == 64
    assert os.listdir(store / "lowers") == []
    checked(store)
    mounts(model, mountpoint, OVERLAY, "copy=mine")
    assert (mountpoint / "weights.bin").read_bytes() == (model / "weights.bin").read_bytes()
    mounts.unmount(mountpoint)


def test_half_made_tree_is_never_used(mounts: MountCopy, model: Path) -> None:
    mountpoint = mounts(model, None, "copy=mine")
    store = store_of(mounts, mountpoint)
    mounts.unmount(mountpoint)
    [template] = os.listdir(store / "templates")
    half = store / "partial" / f"lower-{template}" / "tree"
    half.mkdir(parents=True)
    (half / "config.json").write_text("half")
    mounts(model, mountpoint, OVERLAY, "copy=mine")
    assert (mountpoint / "config.json").read_text() == (model / "config.json").read_text()
    assert os.listdir(store / "partial") == []
    mounts.unmount(mountpoint)


def test_template_is_as_it_was(mounts: MountCopy, model: Path) -> None:
    mountpoint = mounts(model, None, "copy=mine")
    record = mounts.record(mountpoint)
    mounts.unmount(mountpoint)
    tree = Path(record["store"], "templates", record["template"], "tree")
    before = with_ctimes(tree)
    mounts(model, mountpoint, OVERLAY, "copy=mine")
    for path in sorted(mountpoint.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with path.open("ab") as file:
                file.write(b"x")
    mounts.unmount(mountpoint)
    assert with_ctimes(tree) == before
    checked(Path(record["store"]))


# --- unmounting -----------------------------------------------------------------------------------


def test_busy_mount_stays_and_its_holder_is_named(mounts: MountCopy, model: Path) -> None:
    mountpoint = mounts(model, None, OVERLAY)
    with (mountpoint / "config.json").open():
        refused = cowfs("umount", mountpoint, check=False)
    assert refused.returncode == 32
    assert f"(pid {os.getpid()})" in one_error(refused)
    mounts.unmount(mountpoint)


def test_detached_copy_is_in_use_until_its_last_file_is_closed(
    mounts: MountCopy, model: Path
) -> None:
    mountpoint = mounts(model, None, OVERLAY, "copy=held", "ephemeral")
    store = store_of(mounts, mountpoint)
    pid = mounts.daemon_pid(mountpoint)
    with (mountpoint / "weights.bin").open("r+b") as file:
        cowfs("umount", "--lazy", mountpoint)
        for engine in ("fuse", "overlay"):
            refused = cowfs(
                "mount", "-o", f"copy=held,engine={engine}", model, mountpoint, check=False
            )
            assert refused.returncode == 32
            assert "in use" in one_error(refused)
        file.write(b"late")
        assert (store / "copies/held/upper/weights.bin").exists()
    assert kernel.wait_for_end(pid, 10)
    assert os.listdir(store / "copies") == []


def test_copy_is_in_use_as_long_as_another_namespace_has_it(mounts: MountCopy, model: Path) -> None:
    mountpoint = mounts(model, None, OVERLAY, "copy=held")
    pid = mounts.daemon_pid(mountpoint)
    with container() as process:
        said = cowfs("umount", mountpoint).stdout
        assert f"(pid {process.pid})" in said
        refused = cowfs("mount", "-o", "copy=held", model, mountpoint, check=False)
        assert "in use" in one_error(refused)
    assert kernel.wait_for_end(pid, 10)
    mounts(model, mountpoint, "copy=held")
    mounts.unmount(mountpoint)


def test_umount8_has_the_same_effect_a_moment_later(mounts: MountCopy, model: Path) -> None:
    mountpoint = mounts(model, None, OVERLAY, "ephemeral")
    store, pid = store_of(mounts, mountpoint), mounts.daemon_pid(mountpoint)
    unmount(mountpoint)
    assert kernel.wait_for_end(pid, 10)
    assert os.listdir(store / "copies") == []


def test_sigterm_unmounts_an_idle_mount(mounts: MountCopy, model: Path) -> None:
    mountpoint = mounts(model, None, OVERLAY)
    pid = mounts.daemon_pid(mountpoint)
    os.kill(pid, signal.SIGTERM)
    assert kernel.wait_for_end(pid, 10)
    assert os.listdir(mountpoint) == []


def test_sigterm_of_a_busy_mount_is_heeded_when_its_user_is_gone(
    mounts: MountCopy, model: Path
) -> None:
    mountpoint = mounts(model, None, OVERLAY)
    pid = mounts.daemon_pid(mountpoint)
    with (mountpoint / "config.json").open():
        os.kill(pid, signal.SIGTERM)
        time.sleep(0.5)
        assert not kernel.wait_for_end(pid, 0)
    assert kernel.wait_for_end(pid, 10)


def test_another_mount_on_top_is_left_alone(mounts: MountCopy, model: Path) -> None:
    mountpoint = mounts(model, None, OVERLAY)
    pid = mounts.daemon_pid(mountpoint)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", mountpoint], check=True)
    os.kill(pid, signal.SIGHUP)
    time.sleep(0.5)
    assert os.path.ismount(mountpoint)
    unmount(mountpoint)
    assert (mountpoint / "config.json").exists()
    mounts.unmount(mountpoint)


# --- nobody attends -------------------------------------------------------------------------------


def test_copy_whose_attendant_was_killed_goes_on_and_is_refused_to_others(
    mounts: MountCopy, model: Path
) -> None:
    mountpoint, other = mounts(model, None, OVERLAY, "copy=held"), mounts.mountpoint()
    store = store_of(mounts, mountpoint)
    _kill_attendant(mounts, mountpoint)
    (mountpoint / "config.json").write_text("after")
    assert listed(store)["held"]["mountpoint"] == str(mountpoint)
    for engine in ("fuse", "overlay"):
        refused = cowfs("mount", "-o", f"copy=held,engine={engine}", model, other, check=False)
        assert refused.returncode == 32
        assert f"it is mounted at {mountpoint}" in one_error(refused)
    assert cowfs("rm", "held", "--store", store, check=False).returncode == 32
    assert cowfs("check", "held", "--store", store, check=False).returncode == 32
    assert cowfs("umount", mountpoint).stdout.startswith("kept copy held (1 file")
    mounts(model, other, "copy=held", "engine=fuse")
    assert (other / "config.json").read_text() == "after"
    mounts.unmount(other)
    checked(store)


def test_detached_copy_without_attendant_is_refused_and_put_away_later(
    mounts: MountCopy, model: Path
) -> None:
    mountpoint = mounts(model, None, OVERLAY, "copy=held", "ephemeral")
    store = store_of(mounts, mountpoint)
    _kill_attendant(mounts, mountpoint)
    with (mountpoint / "config.json").open():
        cowfs("umount", "--lazy", mountpoint)
        refused = cowfs("mount", "-o", "copy=held", model, mountpoint, check=False)
        assert "in use" in one_error(refused)
        assert "0 ephemeral copies" in cowfs("gc", "--store", store).stdout
    assert "1 ephemeral copy" in cowfs("gc", "--store", store).stdout
    assert os.listdir(store / "copies") == []


def test_umount_discards_an_ephemeral_copy_that_nobody_attends(
    mounts: MountCopy, model: Path
) -> None:
    mountpoint = mounts(model, None, OVERLAY, "ephemeral", "copy=gone")
    store = store_of(mounts, mountpoint)
    _kill_attendant(mounts, mountpoint)
    assert cowfs("umount", mountpoint).stdout == "discarded ephemeral copy gone\n"
    assert os.listdir(store / "copies") == []


def _kill_attendant(mounts: MountCopy, mountpoint: Path) -> None:
    pid = mounts.daemon_pid(mountpoint)
    os.kill(pid, signal.SIGKILL)
    assert kernel.wait_for_end(pid, 10)


def test_launcher_that_dies_after_the_mount_leaves_a_copy_that_is_refused(
    mounts: MountCopy, model: Path
) -> None:
    mountpoint = mounts.mountpoint()
    code = (
        "import os, sys; from cowfs.commands import cli; from cowfs.mount import launch\n"
        "launch._start_attendant = lambda overlay: os._exit(9)\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    arguments = ("mount", "-o", "engine=overlay,copy=held", str(model), str(mountpoint))
    assert run(sys.executable, "-I", "-c", code, *arguments, check=False).returncode == 9
    assert (mountpoint / "config.json").exists()
    other = mounts.mountpoint()
    assert cowfs("mount", "-o", "copy=held", model, other, check=False).returncode == 32
    unmount(mountpoint)
    mounts(model, other, "copy=held")
    mounts.unmount(other)


# --- what was FUSE's ------------------------------------------------------------------------------


def test_written_file_with_its_old_mtime_shows_what_was_written(
    mounts: MountCopy, model: Path
) -> None:
    mountpoint = mounts(model, None, "engine=fuse", "copy=mine")
    weights = mountpoint / "weights.bin"
    weights.chmod(0o600)  # the copy's own file, which is read in the template
    mounts.unmount(mountpoint)
    mounts(model, mountpoint, OVERLAY, "copy=mine")
    before = weights.stat()
    with weights.open("r+b") as file:
        file.write(b"written")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    mounts.unmount(mountpoint)
    mounts(model, mountpoint, "engine=fuse", "copy=mine")
    assert weights.stat().st_mtime_ns == before.st_mtime_ns
    with weights.open("rb") as file:
        assert file.read(7) == b"written"
    mounts.unmount(mountpoint)


def test_no_mark_of_cowfs_is_seen_through_overlayfs_nor_copied(
    mounts: MountCopy, model: Path
) -> None:
    mountpoint = mounts(model, None, "engine=fuse", "copy=mine")
    (mountpoint / "small.bin").chmod(0o600)
    (mountpoint / "tokenizer").chmod(0o700)
    mounts.unmount(mountpoint)
    mounts(model, mountpoint, OVERLAY, "copy=mine")
    for path in (mountpoint, *mountpoint.rglob("*")):
        names = os.listxattr(path, follow_symlinks=False)
        assert not [name for name in names if name.startswith("trusted.")], path
    run("cp", "-a", mountpoint / "small.bin", mountpoint / "twin.bin")
    mounts.unmount(mountpoint)
    mounts(model, mountpoint, "engine=fuse", "copy=mine")
    one, twin = (mountpoint / "small.bin").stat(), (mountpoint / "twin.bin").stat()
    assert one.st_ino != twin.st_ino
    mounts.unmount(mountpoint)


def test_upgrade_has_nothing_to_do(mounts: MountCopy, model: Path) -> None:
    mountpoint = mounts(model, None, OVERLAY)
    assert "nothing to upgrade" in cowfs("upgrade", mountpoint).stdout
    mounts.unmount(mountpoint)


def test_what_is_fuses_alone_is_refused(mounts: MountCopy, model: Path) -> None:
    mountpoint = mounts.mountpoint()
    for word in ("passthrough=off", "clone=open", "inplace=*.h5"):
        refused = cowfs("mount", "-o", f"{OVERLAY},{word}", model, mountpoint, check=False)
        assert refused.returncode == 1
        assert word in one_error(refused)


def test_a_part_of_a_copy_is_refused_as_a_source(mounts: MountCopy, model: Path) -> None:
    mountpoint = mounts(model, None, OVERLAY)
    refused = cowfs("mount", mountpoint / "tokenizer", mounts.mountpoint(), check=False)
    assert "only all of a copy can be copied" in one_error(refused)
    assert "already a cowfs mount" in one_error(cowfs("mount", model, mountpoint, check=False))
    mounts.unmount(mountpoint)


# --- engine=auto ----------------------------------------------------------------------------------


def _mount_with(change: str, model: Path, mountpoint: Path) -> Result:
    """`cowfs mount` on a kernel that is said to be otherwise."""
    code = (
        "import sys; from cowfs.commands import cli; from cowfs.mount import engine\n"
        "from cowfs.store import overlayfs\n"
        f"{change}\n"
        "sys.exit(cli.main())"
    )  # fmt: skip
    return run(sys.executable, "-I", "-c", code, "mount", model, mountpoint, check=False)


_NO_PASSTHROUGH = "engine.has_passthrough = lambda: False"
_NO_OVERLAYFS = (
    "import errno\n"
    "def refuse(*_): raise OSError(errno.ENODEV, 'No such device')\n"
    "overlayfs.mount = refuse"
)


def test_auto_is_overlayfs_without_passthrough(mounts: MountCopy, model: Path) -> None:
    mountpoint = mounts.mountpoint()
    result = _mount_with(_NO_PASSTHROUGH, model, mountpoint)
    assert (result.returncode, result.stderr) == (0, "")
    assert mounts.record(mountpoint)["engine"] == "overlay"
    mounts.unmount(mountpoint)


def test_auto_is_fuse_where_overlayfs_is_refused(mounts: MountCopy, model: Path) -> None:
    mountpoint = mounts.mountpoint()
    result = _mount_with(f"{_NO_PASSTHROUGH}\n{_NO_OVERLAYFS}", model, mountpoint)
    assert result.returncode == 0
    assert "this kernel has no overlayfs" in result.stderr
    assert "FUSE serves it" in result.stderr
    assert mounts.record(mountpoint)["engine"] == "fuse"
    (mountpoint / "new").touch()
    mounts.unmount(mountpoint)


def test_overlayfs_that_was_asked_for_and_refused_is_an_error(
    mounts: MountCopy, model: Path
) -> None:
    mountpoint = mounts.mountpoint()
    code = (
        "import sys; from cowfs.commands import cli; from cowfs.store import overlayfs\n"
        f"{_NO_OVERLAYFS}\n"
        "sys.exit(cli.main())"
    )  # fmt: skip
    command = (sys.executable, "-I", "-c", code, "mount", "-o", OVERLAY, model, mountpoint)
    result = run(*command, check=False)
    assert result.returncode == 32
    assert "this kernel has no overlayfs" in one_error(result)
    assert not os.path.ismount(mountpoint)


def test_auto_is_fuse_where_root_has_no_inotify_left(mounts: MountCopy, model: Path) -> None:
    mountpoint = mounts.mountpoint()
    full = (
        "import errno; from cowfs.system import syscalls\n"
        "def refuse(*_): raise OSError(errno.EMFILE, 'Too many open files')\n"
        "syscalls.watch_end = refuse"
    )
    result = _mount_with(f"{_NO_PASSTHROUGH}\n{full}", model, mountpoint)
    assert result.returncode == 0
    assert "fs.inotify.max_user_instances" in result.stderr
    assert mounts.record(mountpoint)["engine"] == "fuse"
    mounts.unmount(mountpoint)


def test_what_the_last_mount_with_its_device_has_left_is_gone_before_it_has_a_record(
    mounts: MountCopy, model: Path
) -> None:
    leaving = """
import os
from cowfs.system import mountinfo; from cowfs.mount import overlaymount
from cowfs.store import runtime
mount, write = overlayfs.mount, overlaymount.write_record
def mount_and_leave(*arguments):
    mount(*arguments)
    left = runtime.control_path(mountinfo.mounted_at(sys.argv[-1]).device)
    if not os.path.exists(left):
        os.mknod(left)
def look_and_write(record, pid):
    assert not os.path.exists(runtime.control_path(record.device))
    write(record, pid)
overlayfs.mount, overlaymount.write_record = mount_and_leave, look_and_write
"""
    mountpoint = mounts.mountpoint()
    result = _mount_with(f"{_NO_PASSTHROUGH}\n{leaving}", model, mountpoint)
    assert (result.returncode, result.stderr) == (0, "")
    mounts.unmount(mountpoint)


# --- what it may do -------------------------------------------------------------------------------

_UNCHECKED = (
    "import sys; from cowfs.commands import cli; from cowfs.mount import launch\n"
    "launch._require_privileges = lambda _: None\n"
    "sys.exit(cli.main())"
)
_FILE_CAPABILITY = struct.pack("<5I", 0x02000000, 1, 0, 0, 0)


@pytest.mark.parametrize("lacking", CAPABILITIES)
def test_overlayfs_needs_each_capability_that_fuse_does(
    mounts: MountCopy, xfs: Path, lacking: str
) -> None:
    """Which is why there is one list of them: without one the mount fails, or a call in it."""
    source = xfs / "source"
    source.mkdir()
    for name in ("able", "theirs"):
        (source / name).write_text(name)
    os.setxattr(source / "able", "security.capability", _FILE_CAPABILITY)
    os.chown(source / "theirs", 65534, 65534)
    (source / "theirs").chmod(0o6755)
    mountpoint = mounts.mountpoint()
    result = run(
        *("setpriv", f"--bounding-set=-{lacking.lower()}", sys.executable, "-I", "-c", _UNCHECKED),
        *("mount", "-o", OVERLAY, source, mountpoint),
        check=False,
    )
    if result.returncode != 0:
        assert "ermission" in one_error(result) or "not permitted" in one_error(result)
        return
    with (mountpoint / "theirs").open("a") as file:
        file.write("by root, who keeps setuid and setgid")
    assert not (mountpoint / "theirs").stat().st_mode & 0o6000


# --- the question whether overlayfs has a copy ----------------------------------------------------

_WITHOUT = ("setpriv", "--bounding-set=-dac_read_search")


def test_without_the_capability_to_tell_overlayfs_is_not_used(
    mounts: MountCopy, model: Path
) -> None:
    # The kernel would say "not in use" of each copy: two of them would write to one upper layer.
    mountpoint = mounts.mountpoint()
    result = run(*_WITHOUT, COWFS, "mount", "-o", OVERLAY, model, mountpoint, check=False)
    assert result.returncode == 1
    assert "CAP_DAC_READ_SEARCH" in one_error(result)
    assert not os.path.ismount(mountpoint)


def test_without_the_capability_to_tell_a_copy_counts_as_in_use(
    mounts: MountCopy, model: Path
) -> None:
    mountpoint = mounts(model, None, OVERLAY, "copy=held")
    store = store_of(mounts, mountpoint)
    _kill_attendant(mounts, mountpoint)
    other = mounts.mountpoint()
    for arguments in (("mount", "-o", "copy=held", model, other), ("rm", "--store", store, "held")):
        result = run(*_WITHOUT, COWFS, *arguments, check=False)
        assert result.returncode != 0, arguments
    (mountpoint / "new").touch()
    assert not os.path.ismount(other)
    unmount(mountpoint)
    mounts(model, other, "copy=held")
    assert (other / "new").exists()
    mounts.unmount(other)


def test_copies_on_a_full_volume_are_listed_and_removed(
    mounts: MountCopy, small_xfs: Callable[..., Volume]
) -> None:
    top = small_xfs(64).mountpoint
    source = make_model(top / "model")
    mountpoint = mounts(source, None, OVERLAY, "copy=full")
    brief = mounts(source, None, OVERLAY, "copy=brief", "ephemeral")
    store = store_of(mounts, mountpoint)
    _kill_attendant(mounts, brief)
    with contextlib.suppress(OSError), (mountpoint / "ballast").open("wb") as file:
        while True:
            os.write(file.fileno(), bytes(1 << 16))
    with contextlib.suppress(OSError):
        for number in range(100_000):
            (mountpoint / f"inode-{number}").mkdir()
    mounts.unmount(mountpoint)
    unmount(brief)
    assert sorted(listed(store)) == ["brief", "full"]
    cowfs("gc", "--store", store)
    assert sorted(listed(store)) == ["full"]
    cowfs("rm", "--store", store, "full")
    assert listed(store) == {}


def test_a_store_has_no_part_for_overlayfs_before_it_needs_one(
    mounts: MountCopy, model: Path
) -> None:
    mountpoint = mounts(model, None, "engine=fuse")
    store = store_of(mounts, mountpoint)
    mounts.unmount(mountpoint)
    cowfs("gc", "--store", store)
    checked(store)
    assert "lowers" not in os.listdir(store)


# --- in the foreground ----------------------------------------------------------------------------


def test_foreground_serves_until_sigterm(mounts: MountCopy, model: Path) -> None:
    mountpoint = mounts.mountpoint()
    command = [COWFS, "mount", "--foreground", "-o", OVERLAY, model, mountpoint]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            pid = _pid_in_record(mounts, mountpoint)
        finally:
            process.terminate()
        _, said = process.communicate(timeout=20)
    assert (process.returncode, pid) == (0, process.pid)
    assert "is unmounted, and the copy" in said
    assert os.listdir(mountpoint) == []


def _pid_in_record(mounts: MountCopy, mountpoint: Path, patience: float = 20) -> int:
    deadline = time.monotonic() + patience
    while True:
        try:
            return mounts.daemon_pid(mountpoint)
        except (AssertionError, FileNotFoundError):
            assert time.monotonic() < deadline, "it has no record"
            time.sleep(0.01)


def test_mount_is_ready_when_systemd_is_told(
    mounts: MountCopy, model: Path, tmp_path: Path
) -> None:
    import socket

    mountpoint = mounts.mountpoint()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        command = [COWFS, "mount", "--foreground", "-o", OVERLAY, model, mountpoint]
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "FDSTORE": "100"}
        with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as process:
            stored: dict[str, int] = {}
            while b"READY=1" not in (message := _message(manager, stored)):
                pass
            assert message
            assert sorted(stored) == ["lock", "order", "watch"]
            # systemctl restart: the mount stays, and the next one goes on with it.
            process.send_signal(signal.SIGUSR1)
            assert process.wait(20) == 0
        (mountpoint / "between").touch()
        again: dict[str, int] = {}
        with _restarted(command, environment, stored) as process:
            while b"READY=1" not in _message(manager, again):
                pass
            assert (mountpoint / "between").exists()
            assert _pid_in_record(mounts, mountpoint) == process.pid
            unmount(mountpoint)
            assert process.wait(20) == 0
    for fd in (*stored.values(), *again.values()):
        os.close(fd)


def _message(manager: Any, stored: dict[str, int]) -> bytes:
    import socket

    text, fds, _, _ = socket.recv_fds(manager, 4096, 4)
    if fds and b"FDSTORE=1" in text:
        stored[text.rpartition(b"FDNAME=")[2].decode()] = fds[0]
    return text


@contextlib.contextmanager
def _restarted(
    command: list[Any], environment: dict[str, str], stored: dict[str, int]
) -> Iterator[subprocess.Popen[bytes]]:
    """As the service manager does it: sd_listen_fds_with_names(3)."""
    names = list(stored)
    sources = [os.dup(fd) for fd in stored.values()]
    high = [os.dup2(fd, 50 + index) for index, fd in enumerate(sources)]
    moves = "; ".join(f"exec {3 + index}<&{fd}" for index, fd in enumerate(high))
    script = f'{moves}; export LISTEN_PID=$$ LISTEN_FDS={len(names)}; exec "$@"'
    environment = {**environment, "LISTEN_FDNAMES": ":".join(names)}
    with subprocess.Popen(
        ["bash", "-c", script, "bash", *command], env=environment, pass_fds=high
    ) as process:
        yield process
    for fd in (*sources, *high):
        os.close(fd)
