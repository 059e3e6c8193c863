"""What a message says to paste works when it is pasted, whatever the names in it.

Each test provokes a message, gives the command in it to a shell, and looks whether that helped.
tests/test_remedies.py sees to it that no message has a command that was not quoted.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cowfs.mount.options import join
from cowfs.system import syscalls
from integration import kernel
from integration.command import COWFS, Result, cowfs, one_error, run
from integration.mounts import MountCopy
from integration.trees import make_model
from integration.volumes import MIB, Volume, remove_tree

#: A name that does harm where it is not quoted.
ODD = "it's $(touch pwned) \\x2d *;c"

#: A word of a command, as the shell reads it; not what a sentence goes on with.
_WORD = r"""(?:\$'(?:\\.|[^'\\])*'|'[^']*'|"[^"]*"|[^\s;,'"()])+"""
_WORDS = rf"(?: (?!(?:or|does|shows|tells|the)\b){_WORD})*"


def command_in(said: str, begins: str) -> str:
    """The last command in a message that begins with these words."""
    *_, found = re.finditer(rf"(?<![^\s(]){re.escape(begins)}{_WORDS}", said)
    return found[0]


def paste(said: str, begins: str, *, shell: str = "sh", cwd: Path | str = "/") -> Result:
    """Run the command in a message that begins with these words; it has to succeed."""
    path = f"{COWFS.parent}:{os.environ['PATH']}"
    return run(shell, "-c", command_in(said, begins), cwd=cwd, env={"PATH": path})


def refused(*args: str | Path, code: int = 32) -> str:
    """What `cowfs ARGS...` says, which has to fail."""
    result = cowfs(*args, check=False)
    assert result.returncode == code, result
    return one_error(result)


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[Path]:
    """A directory for mountpoints with a name that does harm."""
    path = tmp_path / ODD
    path.mkdir()
    yield path
    assert not list(tmp_path.rglob("pwned"))
    assert not Path("/pwned").exists()


@pytest.fixture
def source(xfs: Path) -> Path:
    """A model in a directory with such a name."""
    return make_model(xfs / ODD)


@pytest.fixture
def store(xfs: Path) -> Path:
    """A store with such a name."""
    return xfs / f"store of {ODD}"


@pytest.fixture
def own_volume(odd: Path) -> Iterator[Volume]:
    """A volume of the test's own, below a directory with such a name."""
    volume = Volume.xfs(odd / "own", 64 * MIB)
    yield volume
    volume.remove()
    remove_tree(odd / "own")


Mount = Callable[..., Path]


@pytest.fixture
def mount(mount_plain: MountCopy, source: Path, odd: Path, store: Path) -> Mount:
    """`mount(name, *options)` mounts a copy on the directory of that name in the odd one."""

    def make(name: str, *options: str) -> Path:
        mountpoint = odd / name
        mountpoint.mkdir(exist_ok=True)
        mount_plain(source, mountpoint, join([f"store={store}"]), *options)
        return mountpoint

    return make


def copies(store: Path) -> set[str]:
    """The names of the copies in a store."""
    return {path.name for path in (store / "copies").iterdir()}


# --- copies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shell"),
    [
        ("plain", "sh"),
        ("two words", "sh"),
        ("it's", "sh"),
        ('"$HOME"', "sh"),
        ("$(touch pwned);`touch pwned`", "sh"),
        ("-rf", "sh"),
        ("--store", "sh"),
        (r"mnt-job\x2d42", "sh"),
        ("*", "sh"),
        ("~", "sh"),
        ("#1", "sh"),
        ("größe", "sh"),
        ("模型", "sh"),
        ("a\n\x1b[31m\udcff'\\\t\u202e1\n", "bash"),
    ],
)
def test_rm_of_what_umount_has_kept(
    mount: Mount, mount_plain: MountCopy, store: Path, name: str, shell: str
) -> None:
    mountpoint = mount("here", join([f"copy={name}"]))
    said = mount_plain.unmount(mountpoint).stdout
    assert said.count("\n") == 1
    assert copies(store) == {name}
    paste(said, "cowfs rm", shell=shell)
    assert copies(store) == set()


def test_rm_of_a_copy_in_the_store_of_a_volume_needs_no_store(
    mount_plain: MountCopy, model: Path, tmp_path: Path
) -> None:
    name = f"copy.of.{tmp_path.name}"
    said = mount_plain.unmount(mount_plain(model, None, f"copy={name}")).stdout
    assert command_in(said, "cowfs rm") == f"cowfs rm {name}"
    paste(said, "cowfs rm")
    assert name not in cowfs("list").stdout


def test_rm_of_a_copy_of_something_else(
    mount: Mount, mount_plain: MountCopy, model: Path, store: Path
) -> None:
    mountpoint = mount("here", "copy=a b")
    (mountpoint / "mine").touch()
    mount_plain.unmount(mountpoint)
    option = join([f"store={store}", "copy=a b"])
    paste(refused("mount", "-o", option, model, mountpoint), "cowfs rm")
    assert copies(store) == set()
    cowfs("mount", "-o", option, model, mountpoint)


def test_rm_of_a_kept_copy_that_an_ephemeral_mount_would_discard(
    mount: Mount, mount_plain: MountCopy, source: Path, store: Path
) -> None:
    mountpoint = mount("here", "copy=a b")
    (mountpoint / "mine").touch()
    mount_plain.unmount(mountpoint)
    option = join([f"store={store}", "copy=a b", "ephemeral"])
    paste(refused("mount", "-o", option, source, mountpoint), "cowfs rm")
    cowfs("mount", "-o", option, source, mountpoint)


@pytest.mark.parametrize("lost", ["copy.json", "template"])
def test_rm_of_a_damaged_copy(
    mount: Mount, mount_plain: MountCopy, source: Path, store: Path, lost: str
) -> None:
    mountpoint = mount("here", "copy=a b")
    (mountpoint / "mine").touch()
    mount_plain.unmount(mountpoint)
    if lost == "template":
        [template] = (store / "templates").iterdir()
        template.rename(store.parent / "away")
    else:
        (store / "copies" / "a b" / lost).write_text("{")
    option = join([f"store={store}", "copy=a b"])
    paste(refused("mount", "-o", option, source, mountpoint), "cowfs rm")
    cowfs("mount", "-o", option, source, mountpoint)


def test_umount_of_a_copy_that_is_in_use(mount: Mount, source: Path, store: Path) -> None:
    first = mount("first", "copy=a b")
    second = first.with_name("second")
    second.mkdir()
    option = join([f"store={store}", "copy=a b"])
    paste(refused("mount", "-o", option, source, second), "cowfs umount")
    cowfs("mount", "-o", option, source, second)
    cowfs("umount", second)


def test_gc_frees_space_for_the_next_mount(
    mount_plain: MountCopy, own_volume: Volume, odd: Path
) -> None:
    store, source = own_volume.mountpoint / "the store", own_volume.mountpoint / "source"
    source.mkdir()
    for number in range(1000):
        (source / str(number)).touch()
    mountpoint = odd / "here"
    mountpoint.mkdir()
    option = join([f"store={store}", "ephemeral"])
    mount_plain(source, mountpoint, option)
    mount_plain.unmount(mountpoint)
    (source / "new").touch()  # so that nobody needs the template any more
    with (own_volume.mountpoint / "ballast").open("wb") as ballast:
        for step in (MIB, 65536, 4096):
            with contextlib.suppress(OSError):
                while True:
                    os.posix_fallocate(ballast.fileno(), os.fstat(ballast.fileno()).st_size, step)
    said = refused("mount", "-o", option, source, mountpoint)
    assert "no space left" in said
    assert "--store '" in command_in(said, "cowfs gc")  # or it would sweep all stores
    assert "removed 1 template" in paste(said, "cowfs gc").stdout
    assert paste(said, "cowfs list").stdout.startswith("NAME")


# --- mountpoints ----------------------------------------------------------------------------------


def test_mkdir_of_the_mountpoint(mount: Mount, source: Path, odd: Path, store: Path) -> None:
    mountpoint = odd / "deep" / ODD
    option = join([f"store={store}"])
    paste(refused("mount", "-o", option, source, mountpoint), "mkdir -p")
    cowfs("mount", "-o", option, source, mountpoint)
    cowfs("umount", mountpoint)


def test_umount_of_what_is_mounted_there_already(mount: Mount, source: Path, store: Path) -> None:
    mountpoint = mount("here")
    option = join([f"store={store}"])
    paste(refused("mount", "-o", option, source, mountpoint), "cowfs umount")
    cowfs("mount", "-o", option, source, mountpoint)


def test_umount_lazy_of_a_busy_mount(mount: Mount) -> None:
    mountpoint = mount("here")
    with (mountpoint / "config.json").open():
        paste(refused("umount", mountpoint), "cowfs umount --lazy")
    assert str(mountpoint) not in [one.mountpoint for one in kernel.mounts()]


def test_umount_of_a_mount_in_the_mount(mount: Mount) -> None:
    mountpoint = mount("here")
    inner = mountpoint / "tokenizer"
    run("mount", "-t", "tmpfs", "tmpfs", inner)
    paste(refused("umount", mountpoint), "umount")
    cowfs("umount", mountpoint)


def test_umount_of_what_is_not_ours(odd: Path) -> None:
    run("mount", "-t", "tmpfs", "tmpfs", odd)
    paste(refused("umount", odd, code=1), "umount")
    assert str(odd) not in [one.mountpoint for one in kernel.mounts()]


def test_umount_of_another_filesystem_that_has_lost_its_daemon(odd: Path, source: Path) -> None:
    dead = odd / "dead"
    dead.mkdir()
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    data = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
    syscalls.mount(b"dead", os.fsencode(dead), b"fuse.dead", 0, data)
    os.close(device)
    with pytest.raises(OSError, match="Transport endpoint") as failure:
        os.listdir(dead)
    assert failure.value.errno == errno.ENOTCONN
    paste(refused("mount", dead, odd), "umount -l")
    assert os.listdir(dead) == []


def test_umount_of_a_mount_whose_daemon_is_dead(mount: Mount, mount_plain: MountCopy) -> None:
    mountpoint = mount("here")
    mount_plain.orphan(mountpoint)
    paste(refused("upgrade", mountpoint, code=1), "cowfs umount")
    assert str(mountpoint) not in [one.mountpoint for one in kernel.mounts()]


def test_list_after_the_unmount_of_a_mount_whose_daemon_is_dead(
    mount: Mount, mount_plain: MountCopy
) -> None:
    mountpoint = mount("here")
    mount_plain.orphan(mountpoint)
    paste(cowfs("umount", mountpoint).stdout, "cowfs list")


def test_list_of_what_is_mounted(odd: Path) -> None:
    paste(refused("umount", odd, code=1), "cowfs list")
    paste(refused("rm", odd, code=1), "cowfs list")


def test_fuser_of_a_copy_that_cannot_become_read_only(mount: Mount, source: Path) -> None:
    mountpoint = mount("here")
    helper = [COWFS.with_name("python"), "-m", "cowfs.mounthelper"]
    with (mountpoint / "mine").open("w"):
        result = run(*helper, source, mountpoint, "-o", "remount,ro", check=False)
        assert result.returncode == 32
        assert str(os.getpid()) in paste(result.stderr, "fuser -vm").stdout


# --- stores and volumes ---------------------------------------------------------------------------


def test_chmod_of_a_store_that_is_open_to_others(mount: Mount, source: Path, store: Path) -> None:
    store.mkdir()
    store.chmod(0o755)
    where = store.parent / "mnt"
    where.mkdir()
    paste(refused("mount", "-o", join([f"store={store}"]), source, where), "chmod 700")
    mount("here")


def test_mkdir_for_a_store(mount_plain: MountCopy, source: Path, odd: Path, xfs: Path) -> None:
    option = join([f"store={xfs / ODD / 'none' / 'store'}"])
    mountpoint = mount_plain.mountpoint()
    paste(refused("mount", "-o", option, source, mountpoint), "mkdir -p")
    cowfs("mount", "-o", option, source, mountpoint)


def test_remount_of_a_volume_that_is_read_only(
    mount_plain: MountCopy, own_volume: Volume, odd: Path
) -> None:
    source = own_volume.mountpoint / "source"
    source.mkdir()
    mountpoint = mount_plain.mountpoint()

    def read_only() -> None:
        run("mount", "-o", "remount,ro", own_volume.mountpoint)

    read_only()
    paste(refused("mount", source, mountpoint), "mount -o remount,rw")
    cowfs("mount", source, mountpoint)
    cowfs("umount", mountpoint)
    read_only()
    report = cowfs("doctor", source, check=False).stdout
    [line] = [line for line in report.splitlines() if "mount -o remount" in line]
    paste(line, "mount -o remount,rw")
    assert (
        f"reflink        ok        {own_volume.mountpoint} (xfs)" in cowfs("doctor", source).stdout
    )
    read_only()
    paste(refused("clone", source, source.parent / "clone"), "mount -o remount,rw")
    cowfs("clone", source, source.parent / "clone")


def test_list_for_a_source_in_a_store(
    mount: Mount, mount_plain: MountCopy, store: Path, source: Path
) -> None:
    mountpoint = mount("here")
    mount_plain.unmount(mountpoint)
    said = refused("mount", "-o", join([f"store={store}"]), store / "templates", mountpoint)
    assert str(source) in paste(said, "cowfs list").stdout


def test_import_of_what_cannot_be_cloned(ext4_volume: Volume, odd: Path) -> None:
    source = ext4_volume.mountpoint / ODD
    source.mkdir()
    try:
        said = refused("mount", source, odd)
    finally:
        source.rmdir()
    # It names a volume of the machine, on which nothing is made here.
    command = command_in(said, "cowfs import")
    words = run("sh", "-c", f"printf '%s\\0' {command}").stdout.split("\0")
    assert words[:3] == ["cowfs", "import", str(source)]
    assert os.path.basename(words[3]) == ODD


# --- check ----------------------------------------------------------------------------------------


@pytest.fixture
def kept(mount: Mount, mount_plain: MountCopy, store: Path) -> Path:
    """A copy that was written to and is not mounted; its directory."""
    mountpoint = mount("here", "copy=a b")
    (mountpoint / "mine").touch()
    mount_plain.unmount(mountpoint)
    return store / "copies" / "a b"


def found(store: Path, problem: str) -> str:
    """The first line of `cowfs check` about a finding of this kind."""
    result = cowfs("check", "--json", "--all", "--store", store, check=False)
    findings = json.loads(result.stdout)["findings"]
    remedy = next(one["remedy"] for one in findings if one["problem"] == problem)
    lines = cowfs("check", "--all", "--store", store, check=False).stdout.splitlines()
    return next(line for line in lines if line.endswith(f": {remedy}"))


def test_rm_of_a_copy_without_its_upper_directory(kept: Path, store: Path) -> None:
    shutil.rmtree(kept / "upper")
    paste(found(store, "no-upper"), "cowfs rm")
    assert cowfs("check", "--all", "--store", store).stdout.endswith("clean\n")


def test_chmod_and_chown_of_a_directory_that_is_open(kept: Path, store: Path) -> None:
    kept.chmod(0o755)
    os.chown(kept, 1, -1)
    line = found(store, "mode")
    paste(line, "chown root")
    paste(line, "chmod 700")
    assert (kept.stat().st_uid, stat.S_IMODE(kept.stat().st_mode)) == (0, 0o700)


def test_chattr_of_a_file_of_a_template(kept: Path, store: Path) -> None:
    [tree] = (store / "templates").glob("*/tree")
    run("chattr", "-i", tree / "config.json")
    paste(found(store, "not-immutable"), "chattr +i")
    assert cowfs("check", "--all", "--store", store).stdout.endswith("clean\n")


def test_gc_of_a_template_that_was_written(kept: Path, store: Path) -> None:
    [tree] = (store / "templates").glob("*/tree")
    file = tree / "config.json"
    run("chattr", "-i", file)
    file.write_bytes(file.read_bytes() + b"!")
    run("chattr", "+i", file)
    line = found(store, "written")
    shutil.rmtree(store / "copies" / "a b")  # cowfs rm takes the template as well
    (store.parent / ODD / "config.json").touch()
    assert "removed 1 template" in paste(line, "cowfs gc").stdout
    assert not tree.exists()


# --- clone and import -----------------------------------------------------------------------------


def test_clone_of_the_data_where_blocks_cannot_be_shared(source: Path, own_volume: Volume) -> None:
    place = own_volume.mountpoint / "-clone of it"
    paste(refused("clone", source / "config.json", place), "cowfs clone")
    assert place.read_bytes() == (source / "config.json").read_bytes()


@pytest.mark.parametrize("command", ["clone", "import"])
def test_mkdir_for_a_destination(source: Path, xfs: Path, command: str) -> None:
    place = xfs / "none" / ODD / "copy"
    paste(refused(command, source, place, code=1), "mkdir -p")
    cowfs(command, source, place)


@pytest.fixture
def interrupted(odd: Path, xfs: Path) -> tuple[Path, Path]:
    """Source and destination of an import that was killed when it had done a part."""
    source, place = odd / "source", xfs / f"copy of {ODD}"
    source.mkdir()
    for number in range(3000):
        (source / str(number)).write_text(str(number))
    (source / "large").write_bytes(os.urandom(MIB) * 64)
    process = subprocess.Popen([COWFS, "import", "--region=1M", source, place])
    journal = xfs / f".{place.name}.cowfs-import" / "journal"
    while not journal.exists() or journal.stat().st_size < 1000:
        time.sleep(0.001)
        assert process.poll() is None
    process.kill()
    process.wait()
    while "is at work" in cowfs("import", source, place, check=False).stderr:
        time.sleep(0.01)  # its workers end after the batch at hand
    return source, place


def test_resume_of_an_import(interrupted: tuple[Path, Path]) -> None:
    source, place = interrupted
    paste(refused("import", source, place, code=1), "cowfs import --resume")
    assert (place / "large").read_bytes() == (source / "large").read_bytes()


def test_rm_of_an_unfinished_import(interrupted: tuple[Path, Path], odd: Path) -> None:
    _, place = interrupted
    other = odd / "other"
    other.mkdir()
    paste(refused("import", other, place, code=1), "rm -rf")
    cowfs("import", other, place)


def test_rm_of_an_import_whose_state_is_damaged(interrupted: tuple[Path, Path]) -> None:
    source, place = interrupted
    [state] = place.parent.glob(".*.cowfs-import/*.json")
    state.write_text("{")
    paste(refused("import", source, place), "rm -rf")
    cowfs("import", source, place)


# --- help -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "begins"),
    [
        (["mount", "-o", "bogus", "/a", "/b"], "cowfs mount --help"),
        (["rm"], "cowfs rm --help"),
        (["upgrade"], "cowfs upgrade --help"),
        (["check"], "cowfs check --help"),
        (["bogus"], "cowfs --help"),
    ],
)
def test_help_about_a_wrong_call(call: list[str], begins: str) -> None:
    assert paste(refused(*call, code=1), begins).stdout.startswith("Usage: cowfs ")
