"""Everything that can be wrong with a mount: one clear line that names the thing and the remedy,
the right exit code, and nothing left behind.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from io import FileIO
from pathlib import Path

import pytest

from cowfs.mount.privileges import CAPABILITIES
from integration import kernel
from integration.command import COWFS, Result, cowfs, run
from integration.mounts import MountCopy
from integration.volumes import MIB, Volume

STORE_PARTS = ("templates", "copies", "partial", "trash")


def contents(store: Path) -> dict[str, list[str]]:
    """The entries of each part of a store; of one that is not there, none."""
    return {
        part: sorted(os.listdir(store / part)) if (store / part).is_dir() else []
        for part in STORE_PARTS
    }


class Refusals:
    """Mounts that must be refused, on the XFS volume of the tests."""

    def __init__(self, store: Path, mountpoint: Path) -> None:
        self.store = store
        self.mountpoint = mountpoint

    def __call__(
        self,
        *arguments: str | os.PathLike[str],
        code: int,
        says: Sequence[str | Path],
        through: Sequence[str | os.PathLike[str]] = (),
    ) -> Result:
        """`cowfs mount ARGUMENTS` fails with this code and one line that says these things.

        It changes neither the mounts nor the store. `through` is put before the command.
        """
        mounts, before = kernel.session_mounts(), contents(self.store)
        result = run(*through, COWFS, "mount", *arguments, check=False)
        assert result.returncode == code, result
        assert result.stdout == ""
        [line] = result.stderr.splitlines()
        assert line.startswith("cowfs: "), line
        for words in says:
            assert str(words) in line, line
        assert kernel.session_mounts() == mounts
        assert contents(self.store) == before
        return result


@pytest.fixture
def refused(xfs_volume: Volume, tmp_path: Path) -> Refusals:
    """Also makes an empty directory to mount on."""
    (tmp_path / "mnt").mkdir()
    return Refusals(xfs_volume.mountpoint / ".cowfs", tmp_path / "mnt")


# --- the source -----------------------------------------------------------------------------------


def test_source_missing(refused: Refusals, xfs: Path) -> None:
    source = xfs / "none"
    says = [f"source {source} does not exist", "name an existing directory"]
    refused(source, refused.mountpoint, code=32, says=says)


def test_source_below_a_file(refused: Refusals, model: Path) -> None:
    source = model / "config.json" / "x"
    refused(source, refused.mountpoint, code=32, says=[source, "is not a directory"])


def test_source_not_a_directory(refused: Refusals, model: Path) -> None:
    source = model / "config.json"
    says = [f"source {source} is not a directory", "name the directory"]
    refused(source, refused.mountpoint, code=32, says=says)


def test_source_that_is_a_symlink_to_nothing(refused: Refusals, model: Path) -> None:
    source = model / "dangling"
    refused(source, refused.mountpoint, code=32, says=[source, "does not exist"])


#: Root with everything but the right to read what belongs to others.
NO_OVERRIDE = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


def test_source_unreadable(refused: Refusals, model: Path) -> None:
    os.chown(model, 1000, 1000)
    model.chmod(0o700)
    says = [f"source {model} is not readable", "Permission denied", "run cowfs as"]
    refused(model, refused.mountpoint, code=32, says=says, through=NO_OVERRIDE)


def test_source_with_an_unreadable_file(refused: Refusals, model: Path) -> None:
    os.chown(model / "weights.bin", 1000, 1000)
    (model / "weights.bin").chmod(0)
    says = ["no permission to mount", "CAP_DAC_OVERRIDE", "run it as root"]
    refused(model, refused.mountpoint, code=1, says=says, through=NO_OVERRIDE)


def test_source_on_ext4(refused: Refusals, ext4_volume: Volume) -> None:
    source = ext4_volume.mountpoint / "model"
    source.mkdir(exist_ok=True)
    says = [f"volume {ext4_volume.mountpoint} (ext4)", "mkfs.xfs -m reflink=1"]
    refused(source, refused.mountpoint, code=32, says=says)
    assert not (ext4_volume.mountpoint / ".cowfs").exists()


def test_source_on_xfs_without_reflink(refused: Refusals, small_xfs: Callable[..., Volume]) -> None:
    volume = small_xfs(64, reflink=False)
    source = volume.mountpoint / "model"
    source.mkdir()
    says = [f"volume {volume.mountpoint} (xfs)", "reflink=1"]
    refused(source, refused.mountpoint, code=32, says=says)
    assert not (volume.mountpoint / ".cowfs").exists()


def test_source_on_another_volume_than_the_store(
    refused: Refusals, model: Path, small_xfs: Callable[..., Volume]
) -> None:
    store = small_xfs(64).mountpoint / "store"
    says = [f"source {model}", f"store {store}", "different volumes", "leave out -o store="]
    refused("-o", f"store={store}", model, refused.mountpoint, code=32, says=says)
    assert not store.exists()


def test_source_inside_the_store(refused: Refusals, mount_plain: MountCopy, model: Path) -> None:
    mount_plain.unmount(mount_plain(model))
    [template] = (refused.store / "templates").iterdir()
    for source in (refused.store, refused.store / "copies", template / "tree"):
        says = [f"source {source} is in", f"the store {refused.store}", "cowfs list"]
        refused(source, refused.mountpoint, code=32, says=says)


def test_source_inside_a_store_of_another_name(
    refused: Refusals, mount_plain: MountCopy, model: Path, xfs: Path
) -> None:
    store = xfs / "own-store"
    mount_plain.unmount(mount_plain(model, None, f"store={store}"))
    arguments = ("-o", f"store={store}", store / "templates", refused.mountpoint)
    refused(*arguments, code=32, says=[f"source {store}/templates is in", f"the store {store}"])


def test_source_that_contains_the_store_is_copied_without_it(
    mount_plain: MountCopy, small_xfs: Callable[..., Volume]
) -> None:
    volume = small_xfs(64)
    (volume.mountpoint / "file").write_text("x")
    mountpoint = mount_plain.mountpoint()
    result = cowfs("mount", volume.mountpoint, mountpoint)
    assert (result.stdout, result.stderr) == ("", "")
    assert [path.name for path in mountpoint.iterdir()] == ["file"]
    mount_plain.unmount(mountpoint)
    # A second mount makes no template of the first one's traces.
    cowfs("mount", volume.mountpoint, mountpoint)
    assert len(list((volume.mountpoint / ".cowfs" / "templates").iterdir())) == 1
    mount_plain.unmount(mountpoint)


def test_source_with_other_mounts_in_it_is_copied_without_them_with_one_warning(
    mount_plain: MountCopy, model: Path
) -> None:
    inner = [model / "tokenizer" / "deep", model / "more"]
    inner[1].mkdir()
    for path in inner:
        run("mount", "-t", "tmpfs", "tmpfs", path)
        (path / "inside").touch()
    mountpoint = mount_plain.mountpoint()
    try:
        result = cowfs("mount", model, mountpoint)
    finally:
        for path in inner:
            run("umount", path)
    [line] = result.stderr.splitlines()
    assert line.startswith("cowfs: warning: left out of the copy")
    assert all(str(path) in line for path in inner)
    assert list((mountpoint / "more").iterdir()) == []
    assert list((mountpoint / "tokenizer" / "deep").iterdir()) == []
    assert (mountpoint / "tokenizer" / "vocab.txt").exists()


def test_source_that_is_a_part_of_a_copy(
    refused: Refusals, mount_plain: MountCopy, model: Path
) -> None:
    mounted = mount_plain(model)
    says = [
        f"source {mounted / 'tokenizer'} is a part of the copy mounted at {mounted}",
        "only all of a copy can be copied",
        "cowfs clone",
    ]
    refused(mounted / "tokenizer", refused.mountpoint, code=32, says=says)


def test_source_that_is_a_part_of_a_copy_whose_daemon_is_dead(
    refused: Refusals, mount_plain: MountCopy, model: Path
) -> None:
    mounted = mount_plain(model)
    mount_plain.orphan(mounted)
    says = ["only all of a copy can be copied"]
    refused(mounted / "tokenizer", refused.mountpoint, code=32, says=says)


# --- the mountpoint -------------------------------------------------------------------------------


def test_mountpoint_missing(refused: Refusals, model: Path, tmp_path: Path) -> None:
    mountpoint = tmp_path / "none"
    says = [f"mountpoint {mountpoint} does not exist", f"mkdir -p {mountpoint}"]
    refused(model, mountpoint, code=32, says=says)


def test_mountpoint_not_a_directory(refused: Refusals, model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    says = [f"mountpoint {tmp_path}/file is not a directory", "name a directory"]
    refused(model, tmp_path / "file", code=32, says=says)


def test_mountpoint_not_empty_is_mounted_over(mount_plain: MountCopy, model: Path) -> None:
    mountpoint = mount_plain.mountpoint()
    (mountpoint / "hidden").write_text("still here")
    mount_plain(model, mountpoint)
    assert not (mountpoint / "hidden").exists()
    mount_plain.unmount(mountpoint)
    assert (mountpoint / "hidden").read_text() == "still here"


def test_mountpoint_inside_the_source(mount_plain: MountCopy, model: Path) -> None:
    mountpoint = model / "tokenizer"
    mount_plain(model, mountpoint)
    assert (mountpoint / "tokenizer" / "vocab.txt").exists()
    assert (mountpoint / "config.json").exists()


def test_mountpoint_that_is_the_source(mount_plain: MountCopy, model: Path) -> None:
    before = (model / "config.json").read_text()
    mount_plain(model, model)
    (model / "config.json").write_text("mine")
    mount_plain.unmount(model)
    assert (model / "config.json").read_text() == before


def test_mountpoint_that_is_mounted_already(
    refused: Refusals, mount_plain: MountCopy, model: Path
) -> None:
    mounted = mount_plain(model)
    says = [
        f"mountpoint {mounted} is already a cowfs mount of {model}",
        f"cowfs umount {mounted}",
        "another directory",
    ]
    refused("-o", "copy=other", model, mounted, code=32, says=says)
    assert (mounted / "config.json").exists()


def test_mountpoint_inside_the_store(refused: Refusals, model: Path) -> None:
    refused.store.mkdir(mode=0o700, exist_ok=True)
    says = [f"mountpoint {refused.store}", "is inside the store", "outside"]
    refused(model, refused.store, code=32, says=says)


def test_mountpoint_that_would_hide_the_store(
    refused: Refusals, model: Path, xfs_volume: Volume
) -> None:
    says = [f"would hide the store {refused.store}", "name a directory"]
    refused(model, xfs_volume.mountpoint, code=32, says=says)


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("bogus", ["unknown option 'bogus'", "cowfs(5)"]),
        ("copi=job", ["unknown option 'copi=job'", "did you mean copy=NAME?"]),
        ("ro,nosiud", ["unknown option 'nosiud'", "nosuid"]),
        ("clone=never", ["clone=never", "write clone=auto|write|open"]),
        ("passthrough", ["passthrough", "write passthrough=auto|on|off"]),
        ("share_min=1X", ["share_min=1X", "is not a size", "share_min=64k"]),
        ("ephemeral=yes", ["ephemeral=yes", "takes no value"]),
        ("store=", ["store=", "write store=DIR"]),
    ],
)
def test_option_unknown_or_malformed(
    refused: Refusals, model: Path, options: str, says: list[str]
) -> None:
    refused("-o", options, model, refused.mountpoint, code=1, says=says)


def test_passthrough_on_where_there_is_none(
    refused: Refusals, model: Path, xfs: Path, mount_plain: MountCopy
) -> None:
    """`on` mounts with passthrough or not at all; a kernel that has it cannot refuse here."""
    mounted = mount_plain.mountpoint()
    result = cowfs("mount", "-o", "passthrough=on", model, mounted, check=False)
    release = tuple(map(int, os.uname().release.split("-")[0].split(".")[:2]))
    if release >= (6, 9):
        assert result.returncode == 0, result
    else:
        assert result.returncode == 32
        assert "passthrough=auto" in result.stderr


# --- the copy's name ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", ["the name of a copy is empty", "-o copy=NAME"]),
        ("a/b", ["'a/b' cannot be the name of a copy", "no slash"]),
        ("..", ["'..' cannot be the name of a copy"]),
        ("x" * 256, ["256 bytes", "at most 255"]),
        ("ü" * 128, ["256 bytes", "at most 255"]),
    ],
)
def test_name_that_cannot_be_one(
    refused: Refusals, model: Path, name: str, says: list[str]
) -> None:
    refused("-o", f"copy={name}", model, refused.mountpoint, code=1, says=says)


def test_name_of_255_bytes_is_one(mount_plain: MountCopy, model: Path) -> None:
    mountpoint = mount_plain(model, None, f"copy={'x' * 255}")
    (mountpoint / "new").touch()
    assert "x" * 255 in mount_plain.unmount(mountpoint).stdout


def test_name_in_use_by_a_running_mount(
    refused: Refusals, mount_plain: MountCopy, model: Path
) -> None:
    mounted = mount_plain(model, None, "copy=taken")
    says = ["copy taken is in use", f"mounted at {mounted}", "-o copy=NAME"]
    refused("-o", "copy=taken", model, refused.mountpoint, code=32, says=says)
    assert (mounted / "config.json").exists()


def test_name_of_a_copy_kept_from_another_source(
    refused: Refusals, mount_plain: MountCopy, model: Path, xfs: Path
) -> None:
    mounted = mount_plain(model, None, "copy=kept")
    (mounted / "mine").write_text("mine")
    mount_plain.unmount(mounted)
    (xfs / "other").mkdir()
    says = [f"copy kept is one of {model}", str(xfs / "other"), "cowfs rm ", "copy=NAME"]
    refused("-o", "copy=kept", xfs / "other", refused.mountpoint, code=32, says=says)
    mount_plain(model, mounted, "copy=kept")
    assert (mounted / "mine").read_text() == "mine"


def test_ephemeral_mount_does_not_take_what_was_kept(
    refused: Refusals, mount_plain: MountCopy, model: Path
) -> None:
    mounted = mount_plain(model, None, "copy=precious")
    (mounted / "mine").write_text("mine")
    mount_plain.unmount(mounted)
    says = ["copy precious is kept", "without -o ephemeral"]
    refused("-o", "copy=precious,ephemeral", model, refused.mountpoint, code=32, says=says)
    mount_plain(model, mounted, "copy=precious")
    assert (mounted / "mine").read_text() == "mine"


# --- the store ------------------------------------------------------------------------------------


def test_store_of_somebody_else(refused: Refusals, model: Path, xfs: Path) -> None:
    store = xfs / "store"
    store.mkdir(mode=0o700)
    os.chown(store, 1000, 1000)
    says = [f"store {store} is owned by uid 1000, not by root", "-o store=DIR"]
    refused("-o", f"store={store}", model, refused.mountpoint, code=32, says=says)
    assert list(store.iterdir()) == []


@pytest.mark.parametrize("bits", [0o777, 0o770, 0o755, 0o1777])
def test_store_open_to_others(refused: Refusals, model: Path, xfs: Path, bits: int) -> None:
    store = xfs / "store"
    store.mkdir()
    store.chmod(bits)
    says = [f"store {store} is open to other users", f"{bits:04o}", f"chmod 700 {store}"]
    refused("-o", f"store={store}", model, refused.mountpoint, code=32, says=says)
    assert list(store.iterdir()) == []


def test_store_that_is_a_file_or_a_link(refused: Refusals, model: Path, xfs: Path) -> None:
    (xfs / "file").touch()
    says = [f"store {xfs}/file is not a directory", "-o store=DIR"]
    refused("-o", f"store={xfs}/file", model, refused.mountpoint, code=32, says=says)


def test_store_on_a_read_only_volume(refused: Refusals, small_xfs: Callable[..., Volume]) -> None:
    volume = small_xfs(64)
    source = volume.mountpoint / "model"
    source.mkdir()
    run("mount", "-o", "remount,ro", volume.mountpoint)
    try:
        mounts = kernel.session_mounts()
        result = cowfs("mount", source, refused.mountpoint, check=False)
        assert kernel.session_mounts() == mounts
    finally:
        run("mount", "-o", "remount,rw", volume.mountpoint)
    assert result.returncode == 32
    [line] = result.stderr.splitlines()
    assert "read-only" in line
    assert "remount,rw" in line


# --- a full volume --------------------------------------------------------------------------------


def fill(volume: Volume) -> Path:
    """A file that takes every block which the volume gives."""
    ballast = volume.mountpoint / "ballast"
    fd = os.open(ballast, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        for step in (16 * MIB, MIB, 65536, 4096):
            with contextlib.suppress(OSError):
                while True:
                    os.posix_fallocate(fd, os.fstat(fd).st_size, step)
            # What the last attempt took beyond the end of the file would be free again when XFS
            # looks for space.
            os.ftruncate(fd, os.fstat(fd).st_size)
    finally:
        os.close(fd)
    return ballast


def make_files(directory: Path, count: int, size: int) -> Path:
    directory.mkdir()
    for index in range(count):
        (directory / f"file{index:05}").write_bytes(b"%05d" % index * (size // 5))
    return directory


def test_volume_full_in_the_middle_of_sealing(
    refused: Refusals, mount_plain: MountCopy, small_xfs: Callable[..., Volume]
) -> None:
    volume = small_xfs(300)
    source = make_files(volume.mountpoint / "model", 4000, 500)
    store = volume.mountpoint / ".cowfs"
    mount_plain.unmount(mount_plain(make_files(volume.mountpoint / "other", 1, 5)))
    # XFS has preallocated blocks behind each file; it would take them back when space is short.
    volume.unmount()
    volume.mount()
    ballast = fill(volume)
    os.truncate(ballast, ballast.stat().st_size - MIB)  # enough to begin with
    before, mounts = contents(store), kernel.session_mounts()
    result = cowfs("mount", source, refused.mountpoint, check=False)
    assert result.returncode == 32
    [line] = result.stderr.splitlines()
    assert f"no space left on the volume {volume.mountpoint} while sealing {source}" in line
    assert "free at least" in line
    assert kernel.session_mounts() == mounts
    assert contents(store) == before
    ballast.unlink()
    cowfs("mount", source, refused.mountpoint)
    assert (refused.mountpoint / "file03999").read_bytes() == b"03999" * 100
    cowfs("umount", refused.mountpoint)


def test_volume_full_before_there_is_a_store(
    refused: Refusals, small_xfs: Callable[..., Volume]
) -> None:
    volume = small_xfs(64)
    source = make_files(volume.mountpoint / "model", 1, 5)
    fill(volume)
    for index in range(1000):  # and every inode that needs no block
        try:
            (volume.mountpoint / f"file{index}").touch()
        except OSError:
            break
    result = cowfs("mount", source, refused.mountpoint, check=False)
    assert result.returncode == 32
    [line] = result.stderr.splitlines()
    assert str(volume.mountpoint) in line
    assert "full" in line or "no space left" in line
    assert "free some" in line
    store = volume.mountpoint / ".cowfs"
    assert all(not names for names in contents(store).values())


def try_to_change(path: Path, changed: list[str]) -> bool:
    """Have the file copied up; False when there is no space for that."""
    try:
        path.chmod(0o600)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False
    changed.append(path.name)
    return True


def test_volume_full_in_the_middle_of_copy_up(
    mount_copy: MountCopy, small_xfs: Callable[..., Volume]
) -> None:
    volume = small_xfs(300)
    source = make_files(volume.mountpoint / "model", 4000, 500)
    mountpoint = mount_copy(source)
    upper = volume.mountpoint / ".cowfs" / "copies"
    ballast = fill(volume)
    changed: list[str] = []
    full = next(path for path in sorted(mountpoint.iterdir()) if not try_to_change(path, changed))
    # Nothing half-made: what failed is as it was, what went well is whole, the mount lives on.
    assert full.stat().st_mode & 0o777 == 0o644
    assert full.read_bytes() == (source / full.name).read_bytes()
    [copy] = upper.iterdir()
    assert sorted(os.listdir(copy / "upper")) == changed
    assert all((copy / "upper" / name).stat().st_size == 500 for name in changed)
    with pytest.raises(OSError, match="No space left"):
        full.open("r+b")
    ballast.unlink()
    full.chmod(0o600)
    full.write_bytes(b"there is room again")
    assert full.read_bytes() == b"there is room again"
    assert list((copy / "work").iterdir()) == []


def overwrite(file: FileIO) -> int:
    """Write the file anew, block after block; the bytes that there was space for."""
    written = 0
    try:
        while written < 4 * MIB:
            count = file.write(b"y" * 65536)
            os.fsync(file.fileno())
            written += count
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    return written


def test_volume_full_in_the_middle_of_a_write(
    mount_copy: MountCopy, small_xfs: Callable[..., Volume]
) -> None:
    volume = small_xfs(300)
    source = make_files(volume.mountpoint / "model", 3, 4 * MIB)
    mountpoint = mount_copy(source)
    (mountpoint / "file00000").open("r+b").close()  # cloned while there was room
    ballast = fill(volume)
    with (mountpoint / "file00000").open("r+b", buffering=0) as file:
        written = overwrite(file)
        assert written < 4 * MIB
        file.seek(0)
        assert file.read(written) == b"y" * written
    with contextlib.suppress(OSError):
        (mountpoint / "new").write_bytes(b"z" * MIB)
    assert (mountpoint / "file00001").read_bytes() == (source / "file00001").read_bytes()
    assert (source / "file00000").read_bytes() == b"00000" * (4 * MIB // 5)
    ballast.unlink()
    (mountpoint / "new").write_bytes(b"z" * MIB)
    assert (mountpoint / "new").read_bytes() == b"z" * MIB


# --- the machine ----------------------------------------------------------------------------------


def test_no_capability(refused: Refusals, model: Path) -> None:
    through = ["setpriv", "--bounding-set=-sys_admin"]
    says = ["no permission to mount", "CAP_SYS_ADMIN", "run it as root"]
    refused(model, refused.mountpoint, code=1, says=says, through=through)


def test_no_capability_at_all(refused: Refusals, model: Path) -> None:
    """As it is for any other user; who might not be able to read the command itself, though."""
    through = ["setpriv", "--bounding-set=-all"]
    refused(model, refused.mountpoint, code=1, says=["CAP_SYS_ADMIN"], through=through)


@pytest.mark.parametrize("lacking", CAPABILITIES)
def test_each_capability_is_missed_by_mount_and_doctor_alike(
    refused: Refusals, model: Path, lacking: str
) -> None:
    through = ["setpriv", f"--bounding-set=-{lacking.lower()}"]
    result = run(*through, COWFS, "doctor", model, "--json", check=False)
    checks = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert result.returncode == 32, result
    assert checks["privileges"]["status"] == "failed"
    assert f"CAP_{lacking}" in str(checks["privileges"])
    refused(
        model,
        refused.mountpoint,
        through=through,
        code=1,
        says=["no permission to mount", f"CAP_{lacking}", f"--cap-add {lacking}"],
    )


def test_user_namespace(refused: Refusals, model: Path) -> None:
    through = ["unshare", "--user", "--map-root-user"]
    refused(model, refused.mountpoint, code=1, says=["user namespace"], through=through)


def test_no_fuse_device(refused: Refusals, model: Path) -> None:
    hide = 'mount -t tmpfs tmpfs /dev && exec "$@"'
    through = [*kernel.in_own_mounts(hide), "sh"]
    says = ["cannot open /dev/fuse", "modprobe fuse", "--device /dev/fuse"]
    fuse = ("-o", "engine=fuse")  # the kernel's overlayfs, which auto takes there, needs none
    refused(*fuse, model, refused.mountpoint, code=2, says=says, through=through)


def test_daemon_that_is_killed_before_the_mount_is_ready(refused: Refusals, xfs: Path) -> None:
    source = make_files(xfs / "big", 8000, 5)
    with subprocess.Popen(
        [COWFS, "mount", source, refused.mountpoint], stderr=subprocess.PIPE, text=True
    ) as process:
        daemon = wait_for_daemon(process.pid)
        os.kill(daemon, signal.SIGKILL)
        assert process.wait(30) == 4
        assert process.stderr is not None
        [line] = process.stderr.read().splitlines()
    assert line.startswith("cowfs: the daemon died before the mount was ready (killed by signal 9)")
    assert contents(refused.store)["copies"] == []
    assert contents(refused.store)["partial"] == []
    cowfs("mount", source, refused.mountpoint)
    cowfs("umount", refused.mountpoint)


def children(pid: int) -> list[int]:
    try:
        return [*map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    except FileNotFoundError:
        return []


def wait_for_daemon(launcher: int) -> int:
    """The process of the daemon that a `cowfs mount` has started."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for keeper in children(launcher):
            for child in children(keeper):
                with contextlib.suppress(FileNotFoundError):
                    if b"cowfs.daemon" in Path(f"/proc/{child}/cmdline").read_bytes():
                        return child
        time.sleep(0.002)
    raise AssertionError("it starts no daemon")
