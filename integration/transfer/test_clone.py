"""`cowfs clone` on real volumes: what cp -a makes, from shared blocks, or nothing."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cowfs.system import syscalls
from integration.command import COWFS, Result, run
from integration.trees import differences, make_model, tree_state
from integration.volumes import MIB, Volume

Cowfs = Callable[..., Result]
USER = 1234


@pytest.fixture
def rich(model: Path) -> Path:
    """The model, with what only plain copies keep."""
    os.mkfifo(model / "fifo", 0o640)
    os.mknod(model / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(model / "whiteout", stat.S_IFCHR | 0o600, 0)
    os.setxattr(model / "tokenizer", "trusted.overlay.opaque", b"y")
    os.setxattr(model / "weights.bin", b"user.\xff", b"odd")
    subprocess.run(["setfacl", "-m", "u:1:rwx", model / "config.json"], check=True)
    subprocess.run(["setfacl", "-d", "-m", "u:1:rwx", model / "many"], check=True)
    (model / os.fsdecode(b"\xff\xfe \n")).write_bytes(b"odd name")
    (model / "script.sh").chmod(0o4751)
    (model / "small.bin").chmod(0o6711)  # not root's: chown(2) takes these bits away
    os.utime(model / "latest", ns=(0, 10 << 60), follow_symlinks=False)  # in the year 2335
    os.utime(model / "many" / "f007", ns=(0, 10 << 60))
    os.utime(model, ns=(1, 10 << 60))
    return model


def assert_same(expected: Path, got: Path) -> None:
    assert differences(tree_state(expected), tree_state(got)) == ""


def physical(path: Path) -> list[int]:
    with path.open("rb") as file:
        return [extent.physical for extent in syscalls.fiemap(file.fileno())]


@pytest.mark.quick
def test_a_cloned_tree_is_the_source_and_shares_its_blocks(
    cowfs: Cowfs, rich: Path, xfs: Path
) -> None:
    cowfs("clone", rich, xfs / "copy")
    assert_same(rich, xfs / "copy")
    assert physical(xfs / "copy" / "weights.bin") == physical(rich / "weights.bin")
    assert sorted(os.listdir(xfs)) == ["copy", "model"]


def test_many_files_are_cloned_by_several_processes(cowfs: Cowfs, xfs: Path) -> None:
    for number in range(2500):
        path = xfs / "source" / str(number % 7) / str(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(number))
    cowfs("clone", xfs / "source", xfs / "copy")
    assert_same(xfs / "source", xfs / "copy")


@pytest.mark.parametrize("name", ["weights.bin", "latest", "fifo", "whiteout"])
def test_a_single_entry_is_cloned(cowfs: Cowfs, rich: Path, xfs: Path, name: str) -> None:
    cowfs("clone", rich / name, xfs / "copy")
    old, new = os.lstat(rich / name), os.lstat(xfs / "copy")
    assert (old.st_mode, old.st_rdev, old.st_size, old.st_mtime_ns) == (
        (new.st_mode, new.st_rdev, new.st_size, new.st_mtime_ns)
    )
    if name == "weights.bin":
        assert physical(rich / name) == physical(xfs / "copy")
    if name == "latest":
        assert os.readlink(xfs / "copy") == os.readlink(rich / name)


def test_sockets_are_left_out_with_a_warning(cowfs: Cowfs, model: Path, xfs: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(model / "socket"))
    result = cowfs("clone", model, xfs / "copy")
    assert "warning: left out of the copy: sockets" in result.stderr
    assert not os.path.lexists(xfs / "copy" / "socket")


def test_an_existing_destination_is_refused_and_untouched(
    cowfs: Cowfs, model: Path, xfs: Path
) -> None:
    (xfs / "directory").mkdir()
    (xfs / "dangling").symlink_to("nowhere")
    for name in ("directory", "dangling"):
        result = cowfs("clone", model, xfs / name, check=False)
        assert result.returncode == 1
        assert "exists, and nothing is written into or over it" in result.stderr
    assert os.listdir(xfs / "directory") == []
    assert sorted(os.listdir(xfs)) == ["dangling", "directory", "model"]


def test_a_destination_in_the_source_is_refused(cowfs: Cowfs, model: Path) -> None:
    result = cowfs("clone", model, model / "tokenizer" / "copy", check=False)
    assert result.returncode == 1
    assert "is inside the source" in result.stderr
    assert os.listdir(model / "tokenizer" / "deep") == ["er"]


def test_a_volume_that_cannot_clone_is_told_with_the_ways_out(
    cowfs: Cowfs, model: Path, ext4_volume: Volume
) -> None:
    place = ext4_volume.mountpoint / "copy"
    before = sorted(os.listdir(ext4_volume.mountpoint))
    result = cowfs("clone", model, place, check=False)
    assert result.returncode == 32
    assert "different volumes" in result.stderr
    assert f"cowfs clone --reflink=auto {model} {place}" in result.stderr
    assert sorted(os.listdir(ext4_volume.mountpoint)) == before


@pytest.mark.parametrize("ring", ["on", "off"])
def test_auto_copies_what_cannot_be_cloned(
    cowfs: Cowfs, small_xfs: Callable[..., Volume], ring: str, rich: Path
) -> None:
    other = small_xfs(64, reflink=False).mountpoint
    cowfs("clone", "--reflink=auto", rich, other / "over", env={"COWFS_IO_URING": ring})
    cowfs("clone", "--reflink=auto", other / "over", other / "within")
    result = cowfs("clone", other / "over", other / "no", check=False)
    assert "cannot clone files (FICLONE)" in result.stderr
    assert_same(rich, other / "over")
    assert_same(rich, other / "within")
    assert (other / "within" / "sparse.bin").stat().st_blocks * 512 < 1 << 20
    assert sorted(os.listdir(other)) == ["over", "within"]


def test_what_a_crash_left_is_removed_by_the_next_clone(
    cowfs: Cowfs, model: Path, xfs: Path
) -> None:
    left = xfs / ".copy.cowfs-clone" / "tree" / "deep" / "er"
    (xfs / ".copy.cowfs-clone").mkdir(mode=0o700)
    left.mkdir(parents=True)
    (left / "file").write_text("rubbish")
    cowfs("clone", model, xfs / "copy")
    assert_same(model, xfs / "copy")
    assert sorted(os.listdir(xfs)) == ["copy", "model"]


def test_a_hidden_directory_of_somebody_else_is_not_used(
    cowfs: Cowfs, model: Path, xfs: Path
) -> None:
    hidden = xfs / ".copy.cowfs-clone"
    hidden.mkdir(mode=0o700)
    os.chown(hidden, 1234, 1234)
    result = cowfs("clone", model, xfs / "copy", check=False)
    assert result.returncode == 32
    assert "was not made by this user" in result.stderr
    assert not (xfs / "copy").exists()


def test_a_full_volume_is_told_and_nothing_is_left(
    cowfs: Cowfs, small_xfs: Callable[..., Volume]
) -> None:
    volume = small_xfs(32)
    source = volume.mountpoint / "source"
    source.mkdir()
    for number in range(4000):
        (source / str(number)).touch()
    os.setxattr(source / "0", "user.large", b"x" * 60_000)
    ballast = volume.fill(leave=MIB)
    before = sorted(os.listdir(volume.mountpoint))
    result = cowfs("clone", source, volume.mountpoint / "copy", check=False)
    assert result.returncode == 32
    assert f"no space left on the volume {volume.mountpoint} while copying" in result.stderr
    assert result.stderr.count("\n") == 1
    assert sorted(os.listdir(volume.mountpoint)) == before
    ballast.unlink()
    cowfs("clone", source, volume.mountpoint / "copy")
    assert_same(source, volume.mountpoint / "copy")


def test_a_volume_that_fails_is_told_and_nothing_is_made(
    cowfs: Cowfs, small_xfs: Callable[..., Volume]
) -> None:
    volume = small_xfs(64)
    model = make_model(volume.mountpoint / "model")
    os.sync()
    command = ["xfs_io", "-x", "-c", "shutdown", volume.mountpoint]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    result = cowfs("clone", model, volume.mountpoint / "copy", check=False)
    assert result.returncode == 32
    assert "Input/output error" in result.stderr
    assert result.stderr.count("\n") == 1
    volume.unmount()
    volume.mount()
    assert os.listdir(volume.mountpoint) == ["model"]


def test_an_interrupted_clone_leaves_nothing(cowfs: Cowfs, xfs: Path) -> None:
    source = xfs / "source"
    for number in range(6000):
        path = source / str(number % 60) / str(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for number in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen(
            [COWFS, "clone", source, xfs / "copy"], stderr=subprocess.PIPE, text=True
        )
        hidden = xfs / ".copy.cowfs-clone" / "tree" / "0"
        while not hidden.exists():
            time.sleep(0.0005)
            assert process.poll() is None
        process.send_signal(number)
        said = process.communicate(timeout=30)[1]
        assert process.returncode == 8
        assert f"interrupted by {signal.Signals(number).name}; nothing was made" in said
        assert os.listdir(xfs) == ["source"]
    cowfs("clone", source, xfs / "copy")
    assert_same(source, xfs / "copy")


def test_a_user_clones_a_tree_that_its_modes_forbid_to_write_in(
    cowfs: Cowfs, model: Path, xfs: Path
) -> None:
    for path in (model / "many", *model.glob("many/*"), xfs):
        os.chown(path, USER, USER)
    (model / "many").chmod(0o555)
    user = f"--reuid={USER}", f"--regid={USER}", "--clear-groups"
    run("setpriv", *user, COWFS, "clone", model / "many", xfs / "copy")
    assert_same(model / "many", xfs / "copy")
    assert sorted(os.listdir(xfs)) == ["copy", "model"]
