"""mount(8), umount(8) and fstab with copies, through the helpers that `cowfs install` puts into
/sbin.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from integration import kernel
from integration.command import Result, cowfs, run
from integration.conftest import Mode
from integration.host import Host
from integration.mounts import RECORDS
from integration.trees import make_model
from integration.volumes import Volume

USER = 65534


@pytest.fixture
def host(xfs: Path, tmp_path: Path) -> Iterator[Host]:
    """A machine on which cowfs is installed."""
    directory = tmp_path / "installed"
    directory.mkdir()
    host = Host(directory)
    yield host
    host.close()


@pytest.fixture
def mnt(tmp_path: Path) -> Path:
    """An empty directory to mount on."""
    (tmp_path / "mnt").mkdir()
    return tmp_path / "mnt"


@pytest.fixture
def copies(xfs_volume: Volume) -> Path:
    """Where the store of the tests' volume has its copies."""
    return xfs_volume.mountpoint / ".cowfs" / "copies"


def findmnt(host: Host, mountpoint: Path) -> dict[str, str]:
    """What findmnt(8) shows of a mount."""
    columns = ("FSTYPE", "SOURCE", "OPTIONS")
    line = host.run("findmnt", "-rno", ",".join(columns), mountpoint).stdout.rstrip("\n")
    return dict(zip(columns, line.split(" "), strict=True))


def lines_of_fstab(path: Path, *lines: str) -> Path:
    """A file as fstab, of these lines."""
    path.write_text("".join(f"{line} 0 0\n" for line in lines), errors="surrogateescape")
    return path


def in_fstab(path: Path) -> str:
    """A path as it is written in fstab."""
    return re.sub(r"[\s\\]", lambda match: f"\\{ord(match[0]):03o}", str(path))


def refused(result: Result, code: int, *says: str | Path, by: str = "mount.cowfs") -> None:
    """The command ended with this code and one line that says these things."""
    assert result.returncode == code, result
    [line] = result.stderr.splitlines()
    assert line.startswith(f"{by}: "), line
    for words in says:
        assert str(words) in line


def write(path: Path) -> int:
    """Try to write to a file; 0 or the errno."""
    try:
        path.write_text("changed")
    except OSError as error:
        return error.errno or -1
    return 0


# --- mounting -------------------------------------------------------------------------------------


@pytest.mark.quick
@pytest.mark.parametrize("fstype", ["cowfs", "fuse.cowfs"])
def test_a_mount_shows_its_type_its_source_and_its_options(
    host: Host, model: Path, mnt: Path, fstype: str
) -> None:
    options = "ro,noexec,copy=job,clone=open,noatime"
    done = host.run("mount", "-t", fstype, model, mnt, "-o", options)
    assert (done.stdout, done.stderr) == ("", "")
    seen = findmnt(host, mnt)
    assert (seen["FSTYPE"], seen["SOURCE"]) == ("fuse.cowfs", str(model))
    assert {"ro", "noexec", "noatime", "nosuid", "nodev"} <= set(seen["OPTIONS"].split(","))
    [line] = [line for line in host.run("mount").stdout.splitlines() if str(mnt) in line]
    assert line.startswith(f"{model} on {mnt} type fuse.cowfs (ro,")
    space = host.run("df", "-hT", mnt).stdout.splitlines()[1].split()
    assert (space[0], space[1], space[-1]) == (str(model), "fuse.cowfs", str(mnt))


def test_the_daemon_is_on_its_own_when_mount_returns(host: Host, model: Path, mnt: Path) -> None:
    # run() sees the end of the output, which nobody but mount(8) may hold
    host.run("mount", "-t", "cowfs", model, mnt)
    pid = host.daemon(mnt)
    assert os.getsid(pid) in host.processes(mnt)
    assert os.readlink(f"/proc/{pid}/fd/0") == os.devnull
    log = str(RECORDS / f"{host.mounted_at(mnt).device}.log")
    assert [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (1, 2)] == [log, log]
    assert (host.root_of(mnt) / "config.json").read_text() == (model / "config.json").read_text()


def test_a_caller_without_standard_streams_can_mount(host: Host, model: Path, mnt: Path) -> None:
    closed = ("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh")
    host.run(*closed, "mount.cowfs", model, mnt)
    pid = host.daemon(mnt)
    assert os.readlink(f"/proc/{pid}/fd/0") == os.devnull
    assert (host.root_of(mnt) / "config.json").read_text() == (model / "config.json").read_text()
    host.run(*closed, "umount.cowfs", mnt)
    assert host.mounts() == []
    assert host.run(*closed, "mount.cowfs", model / "none", mnt, check=False).returncode == 32


def test_words_of_fstab_are_accepted_and_not_passed_on(host: Host, model: Path, mnt: Path) -> None:
    words = "defaults,_netdev,noauto,nofail,auto,user,group,comment=mine,x-a.b=c,X-d"
    host.run("mount", "-t", "cowfs", model, mnt, "-o", words)
    options = findmnt(host, mnt)["OPTIONS"]
    assert "rw" in options.split(",")
    # by hand, none of them taken away by mount(8)
    host.run("umount", mnt)
    host.run("mount.cowfs", model, mnt, "-o", words)
    shown = [
        line
        for line in run("cat", f"/proc/{host.pid}/mounts").stdout.splitlines()
        if str(mnt) in line
    ]
    assert shown == [
        f"{model} {mnt} fuse.cowfs rw,nosuid,nodev,relatime,user_id=0,group_id=0,"
        "default_permissions,allow_other 0 0"
    ]


def test_fake_does_everything_but_mount(host: Host, model: Path, mnt: Path, copies: Path) -> None:
    assert "could have mounted" in host.run("mount", "-vft", "cowfs", model, mnt).stdout
    assert host.mounts() == []
    assert not copies.exists()
    missing = model / "none"
    refused(host.run("mount", "-ft", "cowfs", missing, mnt, check=False), 32, missing)


def test_sloppy_passes_over_unknown_options_only(host: Host, model: Path, mnt: Path) -> None:
    result = host.run("mount", "-t", "cowfs", model, mnt, "-o", "ro,bogus=1", check=False)
    refused(result, 1, "unknown option 'bogus=1'")
    host.run("mount", "-s", "-t", "cowfs", model, mnt, "-o", "ro,bogus=1")
    assert "ro" in findmnt(host, mnt)["OPTIONS"].split(",")
    host.run("umount", mnt)
    result = host.run("mount", "-s", "-t", "cowfs", model, mnt, "-o", "clone=never", check=False)
    refused(result, 1, "clone=never")


def test_verbose_says_what_was_done(host: Host, model: Path, mnt: Path) -> None:
    said = host.run("mount", "-v", "-t", "cowfs", model, mnt, "-o", "copy=job").stdout
    assert f"mount.cowfs: mounted a copy of {model} on {mnt}" in said
    said = host.run("umount", "-v", mnt).stdout
    assert "kept copy job (no changed files)" in said


def test_another_mount_namespace_is_entered(host: Host, model: Path, mnt: Path) -> None:
    run(host.sbin / "mount.cowfs", model, mnt, "-N", str(host.pid))
    assert host.mounted_at(mnt).source == str(model)
    assert not any(kernel.is_cowfs(mount) for mount in kernel.session_mounts())
    run(host.sbin / "umount.cowfs", mnt, "-N", f"/proc/{host.pid}/ns/mnt")
    assert host.mounts() == []


# --- fstab ----------------------------------------------------------------------------------------


def test_fstab_with_spaces_and_odd_bytes(host: Host, xfs: Path, tmp_path: Path) -> None:
    odd = os.fsdecode(b"a b\tc\\d\xff,e")
    source = make_model(xfs / odd)
    (tmp_path / odd).mkdir()
    line = f"{in_fstab(source)} {in_fstab(tmp_path / odd)} cowfs copy=my\\040own\\,one,noexec"
    fstab = lines_of_fstab(tmp_path / "fstab", line)
    host.run("mount", "-a", "-T", fstab)
    [mount] = host.mounts()
    assert (mount.mountpoint, mount.source) == (str(tmp_path / odd), str(source))
    record = (RECORDS / f"{mount.device}.json").read_text()
    assert '"my own,one"' in record
    host.run("umount", tmp_path / odd)
    assert host.mounts() == []


def test_mount_all_mounts_nothing_twice(host: Host, model: Path, tmp_path: Path) -> None:
    for name in ("one", "my two", "never"):
        (tmp_path / name).mkdir()
    fstab = lines_of_fstab(
        tmp_path / "fstab",
        f"{model} {tmp_path}/one cowfs defaults,nofail",
        f"{model} {in_fstab(tmp_path / 'my two')} fuse.cowfs ro,noexec,copy=two",
        f"{model} {tmp_path}/never cowfs noauto",
    )
    host.run("mount", "-a", "-T", fstab)
    mounted = host.mounts()
    assert [Path(mount.mountpoint).name for mount in mounted] == ["one", "my two"]
    again = host.run("mount", "-av", "-T", fstab)
    assert again.stdout.count("already mounted") == 2
    assert host.mounts() == mounted


def test_mounts_of_one_source_made_at_once(host: Host, model: Path, tmp_path: Path) -> None:
    names = ("one", "two", "three")
    for name in names:
        (tmp_path / name).mkdir()
    lines = [f"{model} {tmp_path}/{name} cowfs defaults" for name in names]
    host.run("mount", "-a", "-F", "-T", lines_of_fstab(tmp_path / "fstab", *lines))
    assert sorted(Path(mount.mountpoint).name for mount in host.mounts()) == sorted(names)
    for name in names:
        host.run("umount", tmp_path / name)
    assert host.mounts() == []


def test_the_mount_table_put_into_fstab_makes_the_same_mounts(
    host: Host, model: Path, tmp_path: Path
) -> None:
    for name, options in (("one", "defaults"), ("my two", "ro,noexec,noatime,suid")):
        (tmp_path / name).mkdir()
        host.run("mount", "-t", "cowfs", model, tmp_path / name, "-o", options)

    def table() -> list[str]:
        lines = Path(f"/proc/{host.pid}/mounts").read_text().splitlines()
        return [line for line in lines if " fuse.cowfs " in line]

    before = table()
    fstab = tmp_path / "fstab"
    fstab.write_text("\n".join(before) + "\n")
    host.run("mount", "-a", "-T", fstab)
    assert table() == before
    for name in ("one", "my two"):
        host.run("umount", tmp_path / name)
    host.run("mount", "-a", "-T", fstab)
    assert table() == before


# --- remount --------------------------------------------------------------------------------------


def test_a_writable_mount_goes_read_only_and_back(
    host: Host, mode: Mode, model: Path, mnt: Path
) -> None:
    passthrough = f"passthrough={'on' if mode == 'passthrough' else 'off'}"
    host.run("mount", "-t", "cowfs", model, mnt, "-o", f"{passthrough},noexec")
    small, big = host.root_of(mnt) / "config.json", host.root_of(mnt) / "weights.bin"
    assert write(small) == 0
    for _time in range(2):
        host.run("mount", "-o", "remount,ro", mnt)
        options = set(findmnt(host, mnt)["OPTIONS"].split(","))
        assert {"ro", "noexec", "nosuid", "nodev"} <= options
        assert write(small) == write(big) == write(host.root_of(mnt) / "new") == errno.EROFS
        # what is read meanwhile, must not be in the way of later changes
        kept = small.open(), big.open("rb")
        assert kept[0].read() == "changed"
        host.run("mount", "-o", "remount,rw", mnt)
        assert "rw" in findmnt(host, mnt)["OPTIONS"].split(",")
        assert write(small) == write(big) == write(host.root_of(mnt) / "new") == 0
        for file in kept:
            file.close()
        assert big.read_text() == "changed"


def test_setuid_and_devices_are_trusted_by_a_word_that_mount_hands_on(
    host: Host, model: Path, mnt: Path
) -> None:
    host.run("mount", "-t", "cowfs", model, mnt, "-o", "suid,dev")
    assert {"nosuid", "nodev"} <= set(findmnt(host, mnt)["OPTIONS"].split(","))
    host.run("umount", mnt)
    host.run("mount", "-t", "cowfs", model, mnt, "-o", "allow_suid,allow_dev")
    for change in ("ro", "rw"):
        assert not {"nosuid", "nodev"} & set(findmnt(host, mnt)["OPTIONS"].split(","))
        host.run("mount", "-o", f"remount,{change}", mnt)
    host.run("mount", "-o", "remount,nosuid", mnt)
    options = set(findmnt(host, mnt)["OPTIONS"].split(","))
    assert "nosuid" in options
    assert "nodev" not in options


def test_a_mount_that_began_read_only_stays_so(
    host: Host, mode: Mode, model: Path, mnt: Path
) -> None:
    passthrough = f"passthrough={'on' if mode == 'passthrough' else 'off'}"
    host.run("mount", "-t", "cowfs", model, mnt, "-o", f"ro,{passthrough}")
    result = host.run("mount", "-o", "remount,rw", mnt, check=False)
    refused(result, 32, mnt, "was mounted read-only", "mount it again with rw")
    assert "ro" in findmnt(host, mnt)["OPTIONS"].split(",")
    assert write(host.root_of(mnt) / "config.json") == errno.EROFS
    host.run("mount", "-o", "remount,ro,noexec", mnt)
    assert {"ro", "noexec"} <= set(findmnt(host, mnt)["OPTIONS"].split(","))


def test_the_kernels_own_remount_of_a_read_only_mount_does_no_harm(
    host: Host, mode: Mode, model: Path, mnt: Path
) -> None:
    """Without the helper the kernel says rw; the daemon goes on to refuse every change."""
    passthrough = f"passthrough={'on' if mode == 'passthrough' else 'off'}"
    before = {path.name: path.read_bytes() for path in model.iterdir() if path.is_file()}
    host.run("mount", "-t", "cowfs", model, mnt, "-o", f"ro,{passthrough}")
    host.run("mount", "-i", "-o", "remount,rw", mnt)
    seen = host.root_of(mnt)
    assert "rw" in findmnt(host, mnt)["OPTIONS"].split(",")
    for path in seen.iterdir():
        if stat.S_ISREG(path.lstat().st_mode):
            assert write(path) == errno.EROFS
    assert write(seen / "new") == errno.EROFS
    with pytest.raises(OSError, match="Read-only"):
        (seen / "config.json").unlink()
    with pytest.raises(OSError, match="Read-only"):
        (seen / "config.json").chmod(0o777)
    assert {name: (seen / name).read_bytes() for name in before} == before


def test_a_remount_with_the_options_of_fstab(
    host: Host, model: Path, mnt: Path, tmp_path: Path
) -> None:
    line = f"{model} {mnt} cowfs copy=job,clone=open,share_min=2M,noexec,nofail,x-mine"
    fstab = lines_of_fstab(tmp_path / "fstab", line)
    host.run("mount", "-a", "-T", fstab)
    host.run("mount", "-T", fstab, "-o", "remount,ro", mnt)
    assert {"ro", "noexec"} <= set(findmnt(host, mnt)["OPTIONS"].split(","))


@pytest.mark.parametrize("option", ["copy=other", "clone=write", "ephemeral", "share_min=4k"])
def test_what_only_a_new_mount_can_change_is_refused(
    host: Host, model: Path, mnt: Path, option: str
) -> None:
    host.run("mount", "-t", "cowfs", model, mnt, "-o", "copy=job,clone=open")
    result = host.run("mount", "-o", f"remount,ro,{option}", mnt, check=False)
    refused(result, 32, mnt, f"cannot change {option.partition('=')[0]}", "mount it again")
    assert "rw" in findmnt(host, mnt)["OPTIONS"].split(",")


def test_a_remount_that_the_kernel_refuses_says_why(host: Host, model: Path, mnt: Path) -> None:
    host.run("mount", "-t", "cowfs", model, mnt)
    with (host.root_of(mnt) / "config.json").open("a"):
        result = host.run("mount", "-o", "remount,ro", mnt, check=False)
    refused(result, 32, mnt, "open for writing")
    assert "rw" in findmnt(host, mnt)["OPTIONS"].split(",")


def test_one_of_two_places_can_be_read_only(
    host: Host, model: Path, mnt: Path, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    host.run("mount", "-t", "cowfs", model, mnt)
    host.run("mount", "--bind", mnt, tmp_path / "other")
    host.run("mount", "-o", "remount,bind,ro", tmp_path / "other")
    assert write(host.root_of(tmp_path / "other") / "config.json") == errno.EROFS
    assert write(host.root_of(mnt) / "config.json") == 0


def test_a_remount_of_what_is_no_copy(host: Host, model: Path, mnt: Path) -> None:
    result = host.run("mount.cowfs", model, mnt, "-o", "remount,ro", check=False)
    refused(result, 32, mnt, "is not a mounted copy")
    host.run("mount", "-t", "cowfs", model, mnt)
    result = host.run("mount.cowfs", model.parent, mnt, "-o", "remount,ro", check=False)
    refused(result, 32, f"is a copy of {model}, not of {model.parent}")


# --- unmounting -----------------------------------------------------------------------------------


def test_nothing_is_noted_of_a_mount_that_is_gone_or_told_so(
    host: Host, model: Path, mnt: Path
) -> None:
    notes = host.root_of(Path("/run/mount/utab"))
    host.run("mount", "-t", "cowfs", model, mnt, "-o", "_netdev")
    assert f"TARGET={mnt} ROOT=/ OPTS=uhelper=cowfs,_netdev" in notes.read_text()
    host.run("umount", mnt)
    assert notes.read_text() == ""
    host.run("mount", "-n", "-t", "cowfs", model, mnt)
    assert notes.read_text() == ""
    host.run("umount", mnt)


def test_an_ephemeral_copy_is_gone_when_umount_returns(
    host: Host, model: Path, mnt: Path, copies: Path
) -> None:
    host.run("mount", "-t", "cowfs", model, mnt, "-o", "ephemeral,copy=job")
    for number in range(200):
        write(host.root_of(mnt) / f"file{number}")
    pid = host.daemon(mnt)
    host.run("umount", mnt)
    assert not (copies / "job").exists()
    assert list((copies.parent / "trash").iterdir()) == []
    assert kernel.wait_for_end(pid, 0)


@pytest.mark.parametrize("how", [("umount", "-i"), ("umount", "-i", "-l")])
def test_an_ephemeral_copy_is_gone_a_moment_after_any_other_unmount(
    host: Host, model: Path, mnt: Path, copies: Path, how: tuple[str, ...]
) -> None:
    host.run("mount", "-t", "cowfs", model, mnt, "-o", "ephemeral,copy=job")
    write(host.root_of(mnt) / "file")
    pid = host.daemon(mnt)
    host.run(*how, mnt)
    assert kernel.wait_for_end(pid, 20)
    assert not (copies / "job").exists()


def test_a_busy_mount_is_refused_with_who_holds_it(host: Host, model: Path, mnt: Path) -> None:
    host.run("mount", "-t", "cowfs", model, mnt)
    with (host.root_of(mnt) / "config.json").open():
        refused(host.run("umount", mnt, check=False), 32, mnt, "is busy", by="umount.cowfs")
        said = host.run("umount", "-r", mnt).stderr
        assert "read-only now" in said
        assert write(host.root_of(mnt) / "config.json") == errno.EROFS
        assert {"ro", "nosuid", "nodev"} <= set(findmnt(host, mnt)["OPTIONS"].split(","))
        host.run("umount", "-l", mnt)
        assert host.mounts() == []


def test_a_copy_that_is_mounted_elsewhere_too_lives_on(
    host: Host, model: Path, mnt: Path, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    host.run("mount", "-t", "cowfs", model, mnt, "-o", "ephemeral")
    host.run("mount", "--bind", mnt, tmp_path / "other")
    pid = host.daemon(mnt)
    assert f"still mounted at {tmp_path}/other" in host.run("umount", "-v", mnt).stdout
    assert write(host.root_of(tmp_path / "other") / "config.json") == 0
    host.run("umount", tmp_path / "other")
    assert kernel.wait_for_end(pid, 20)


def test_force_frees_a_mount_that_does_not_answer(host: Host, model: Path, mnt: Path) -> None:
    host.run("mount", "-t", "cowfs", model, mnt)
    pids = host.processes(mnt)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        host.run("umount", "-f", mnt)
        assert host.mounts() == []
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    assert all(kernel.wait_for_end(pid, 20) for pid in pids)


# --- bad input ------------------------------------------------------------------------------------


Arguments = Callable[[Path, Path], "list[str | Path]"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (lambda source, _mnt: [source, source / "tokenizer"], 32, "is inside the source"),
        (lambda source, mnt: [source / "none", mnt], 32, "does not exist"),
        (lambda source, mnt: [source / "config.json", mnt], 32, "is not a directory"),
        (lambda source, mnt: [source, mnt, "-o", "nosiud"], 1, "unknown option 'nosiud'"),
        (lambda source, mnt: [source, mnt, "-o", "share_min=x"], 1, "is not a size"),
        (lambda source, mnt: [source, mnt, "-o", "copy=a/b"], 1, "cannot be the name"),
        (lambda source, mnt: [source, mnt, "-o", f"store={mnt}/s"], 32, "store"),
    ],
)
def test_bad_input_is_one_line_and_the_code_of_mount(
    host: Host, model: Path, mnt: Path, arguments: Arguments, code: int, says: str
) -> None:
    refused(host.run("mount", "-t", "cowfs", *arguments(model, mnt), check=False), code, says)
    assert host.mounts() == []


@pytest.mark.parametrize("helper", ["mount.cowfs", "umount.cowfs"])
@pytest.mark.parametrize("arguments", [(), ("one", "two", "three"), ("-x",), ("-o",), ("a", "-N")])
def test_a_helper_called_wrongly_says_how_it_is_called(
    host: Host, helper: str, arguments: tuple[str, ...]
) -> None:
    result = host.run(helper, *arguments, check=False)
    refused(result, 1, f"usage: {helper} ", "mount(8)", by=helper)


def test_who_may_not_mount_is_told_so(host: Host, model: Path, mnt: Path, tmp_path: Path) -> None:
    refused(host.run("mount.cowfs", model, mnt, check=False, user=USER), 1, "no permission")
    # mount(8) drops its own rights before it calls a helper, so user in fstab does not help
    fstab = lines_of_fstab(tmp_path / "fstab", f"{model} {mnt} cowfs noauto,user")
    host.run("mount", "--bind", fstab, "/etc/fstab")
    refused(host.run("mount", mnt, check=False, user=USER), 1, "no permission")
    host.run("mount", "-t", "cowfs", model, mnt)
    result = host.run("umount.cowfs", mnt, check=False, user=USER)
    refused(result, 1, "no permission", by="umount.cowfs")


def test_two_mounts_of_one_copy(host: Host, model: Path, mnt: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    host.run("mount", "-t", "cowfs", model, mnt, "-o", "copy=job")
    result = host.run(
        "mount", "-t", "cowfs", model, tmp_path / "other", "-o", "copy=job", check=False
    )
    refused(result, 32, "job", "in use")


def test_a_mount_without_its_daemon(host: Host, model: Path, mnt: Path) -> None:
    host.run("mount", "-t", "cowfs", model, mnt, "-o", "copy=job")
    for pid in host.processes(mnt):
        os.kill(pid, signal.SIGKILL)
        assert kernel.wait_for_end(pid, 10)
    result = host.run("mount", "-o", "remount,ro", mnt, check=False)
    refused(result, 32, mnt, "has died")
    host.run("umount", mnt)
    assert host.mounts() == []
    assert "job" in cowfs("list").stdout


def test_a_remount_outlives_its_daemon(host: Host, model: Path, mnt: Path) -> None:
    host.run("mount", "-t", "cowfs", model, mnt, "-o", "noexec")
    assert write(host.root_of(mnt) / "small.bin") == 0
    host.run("mount", "-o", "remount,ro,noexec", mnt)
    for flags in ({"ro", "noexec"}, {"rw", "noexec"}):
        daemon = host.daemon(mnt)
        os.kill(daemon, signal.SIGKILL)
        assert kernel.wait_for_end(daemon, 10)
        assert (host.root_of(mnt) / "small.bin").read_text() == "changed"
        assert flags <= set(findmnt(host, mnt)["OPTIONS"].split(","))
        assert write(host.root_of(mnt) / "config.json") == (errno.EROFS if "ro" in flags else 0)
        host.run("mount", "-o", "remount,rw,noexec", mnt)


# --- engine=overlay -------------------------------------------------------------------------------


def test_a_copy_of_overlayfs_is_mounted_and_gone_a_moment_after_umount(
    host: Host, model: Path, mnt: Path, copies: Path
) -> None:
    host.run("mount", "-t", "cowfs", "-o", "engine=overlay,ephemeral,copy=job", model, mnt)
    seen = findmnt(host, mnt)
    assert (seen["FSTYPE"], seen["SOURCE"]) == ("overlay", str(model))
    host.root_of(mnt / "new").write_text("new")
    assert os.listdir(copies) == ["job"]
    attendant = host.daemon(mnt)
    host.run("umount", mnt)
    assert kernel.wait_for_end(attendant, 10)
    assert os.listdir(copies) == []


def test_a_copy_of_overlayfs_goes_read_only_and_back(host: Host, model: Path, mnt: Path) -> None:
    host.run("mount", "-t", "cowfs", "-o", "engine=overlay", model, mnt)
    inside = host.root_of(mnt / "new")
    host.run("mount", "-t", "cowfs", "-o", "remount,ro", model, mnt)
    assert write(inside) == errno.EROFS
    host.run("mount", "-t", "cowfs", "-o", "remount,rw", model, mnt)
    assert write(inside) == 0
    changed = host.run("mount", "-t", "cowfs", "-o", "remount,engine=fuse", model, mnt, check=False)
    refused(changed, 32, "a remount cannot change engine")


def test_a_copy_of_overlayfs_that_began_read_only_stays_so(
    host: Host, model: Path, mnt: Path
) -> None:
    host.run("mount", "-t", "cowfs", "-o", "engine=overlay,ro", model, mnt)
    changed = host.run("mount", "-t", "cowfs", "-o", "remount,rw", model, mnt, check=False)
    refused(changed, 32, "was mounted read-only")
    assert write(host.root_of(mnt / "new")) == errno.EROFS
