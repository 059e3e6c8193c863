"""The commands as a user calls them: what they do, what they say, with which exit code."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cowfs import __version__
from integration import kernel
from integration.command import COWFS, cowfs, one_error, run
from integration.host import container
from integration.mounts import MountCopy
from integration.volumes import Volume


def wait_until(condition: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.01)


def mounted(path: Path) -> kernel.Mount | None:
    found = [mount for mount in kernel.mounts() if mount.mountpoint == os.path.realpath(path)]
    return found[-1] if found else None


def listed(xfs: Path) -> list[dict[str, Any]]:
    """The copies of sources in this test's directory."""
    rows: list[dict[str, Any]] = json.loads(cowfs("list", "--json").stdout)
    return [row for row in rows if row["source"].startswith(f"{xfs}/")]


@contextmanager
def in_foreground(source: Path, mountpoint: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`cowfs mount --foreground`, from the moment when the mount answers."""
    with subprocess.Popen(
        [COWFS, "mount", "--foreground", *options, source, mountpoint],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            wait_until(lambda: mounted(mountpoint) is not None or process.poll() is not None)
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()


# --- mount ----------------------------------------------------------------------------------------


@pytest.mark.quick
def test_mount_says_nothing_and_returns_when_the_mount_answers(
    mount_plain: MountCopy, model: Path
) -> None:
    mountpoint = mount_plain.mountpoint()
    result = cowfs("mount", model, mountpoint)
    assert (result.stdout, result.stderr) == ("", "")
    assert (mountpoint / "config.json").read_text() == (model / "config.json").read_text()


def test_paths_are_taken_from_the_callers_directory(mount_plain: MountCopy, model: Path) -> None:
    mountpoint = mount_plain.mountpoint()
    (model.parent / "link").symlink_to("model")
    relative = os.path.relpath(mountpoint, model.parent)
    cowfs("mount", "link", relative, cwd=model.parent)
    assert mount_plain.record(mountpoint)["source"] == str(model)
    cowfs("umount", relative, cwd=model.parent)
    assert mounted(mountpoint) is None


def test_names_that_are_not_utf8_work_everywhere(mount_plain: MountCopy, xfs: Path) -> None:
    odd = os.fsdecode(b"m\xf6del \x1b[31m\n")
    source = xfs / odd
    source.mkdir()
    (source / "file").write_text("x")
    mountpoint = mount_plain.mountpoint() / odd
    mountpoint.mkdir()
    mount_plain.adopt(mountpoint)
    cowfs("mount", "-o", f"copy={odd}", source, mountpoint)
    assert (mountpoint / "file").read_text() == "x"
    [row] = listed(xfs)
    assert (row["name"], row["source"], row["mountpoint"]) == (odd, str(source), str(mountpoint))
    shown = cowfs("list").stdout
    assert "m\\xf6del \\x1b[31m\\x0a" in shown
    assert "\x1b" not in shown
    (mountpoint / "file").write_text("y")
    said = cowfs("umount", mountpoint).stdout
    assert "\x1b" not in said
    assert len(said.splitlines()) == 1
    cowfs("rm", "--store", row["store"], odd)
    assert listed(xfs) == []


def mount_flags(mountpoint: Path) -> set[str]:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        fields = line.split()
        if fields[1] == str(mountpoint):
            return set(fields[3].split(","))
    raise AssertionError(f"{mountpoint} is not mounted")


def test_a_copy_trusts_no_setuid_bit_and_no_device_unless_told(
    mount_plain: MountCopy, model: Path
) -> None:
    assert {"nosuid", "nodev", "rw"} <= mount_flags(mount_plain(model))
    flags = mount_flags(mount_plain(model, None, "suid,dev,noexec,noatime"))
    assert {"noexec", "noatime"} <= flags
    assert not flags & {"nosuid", "nodev"}


def test_a_read_only_copy_refuses_every_change(mount_plain: MountCopy, model: Path) -> None:
    mountpoint = mount_plain(model, None, "ro")
    assert "ro" in mount_flags(mountpoint)
    for change in (
        lambda: (mountpoint / "new").touch(),
        lambda: (mountpoint / "config.json").write_text("x"),
        lambda: (mountpoint / "config.json").unlink(),
        lambda: (mountpoint / "config.json").chmod(0o600),
    ):
        with pytest.raises(OSError, match="Read-only file system"):
            change()
    assert "no changed files" in mount_plain.unmount(mountpoint).stdout


def test_a_daemon_keeps_nothing_of_its_caller(mount_plain: MountCopy, model: Path) -> None:
    """Not the terminal, not the directory, not a pipe that somebody waits for the end of."""
    mountpoint = mount_plain.mountpoint()
    reading, writing = os.pipe()
    with subprocess.Popen(
        [COWFS, "mount", model, mountpoint], pass_fds=[writing], cwd=model
    ) as process:
        os.close(writing)
        assert process.wait(20) == 0
    os.set_blocking(reading, False)
    assert os.read(reading, 1) == b""
    os.close(reading)
    pid = mount_plain.daemon_pid(mountpoint)
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    keeper = mount_plain.record(mountpoint)["keeper_pid"]
    assert os.readlink(f"/proc/{keeper}/cwd") == "/"
    assert os.getsid(pid) == os.getsid(keeper) == keeper
    assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"


def test_foreground_serves_until_it_is_unmounted(
    mount_plain: MountCopy, model: Path, xfs: Path
) -> None:
    mountpoint = mount_plain.mountpoint()
    with in_foreground(model, mountpoint) as process:
        wait_until(lambda: (mountpoint / "config.json").exists())
        wait_until(lambda: bool(listed(xfs)) and listed(xfs)[0]["keeper_pid"] == process.pid)
        (mountpoint / "mine").touch()
        assert "kept copy" in cowfs("umount", mountpoint).stdout
        assert process.wait(20) == 0
        assert process.stderr is not None
        said = process.stderr.readlines()
        # Where tests run, limits may be small.
        assert [line for line in said if "fs.nr_open" not in line] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_foreground_unmounts_when_it_is_asked_to_end(
    mount_plain: MountCopy, model: Path, xfs: Path, number: signal.Signals
) -> None:
    mountpoint = mount_plain.mountpoint()
    with in_foreground(model, mountpoint, "-o", "ephemeral") as process:
        wait_until(lambda: (mountpoint / "config.json").exists())
        wait_until(lambda: bool(listed(xfs)) and listed(xfs)[0]["keeper_pid"] == process.pid)
        process.send_signal(number)
        assert process.wait(20) == 0
    assert mounted(mountpoint) is None
    assert listed(xfs) == []


def test_foreground_failure_is_one_line(model: Path, xfs: Path) -> None:
    (xfs / "mountpoint").mkdir()
    result = cowfs("mount", "--foreground", "-o", "bogus", model, xfs / "mountpoint", check=False)
    assert result.returncode == 1
    one_error(result)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_mount_leaves_nothing(
    xfs: Path, xfs_volume: Volume, number: signal.Signals
) -> None:
    source = xfs / "big"
    source.mkdir()
    for index in range(12_000):
        (source / f"file{index}").touch()
    mountpoint = xfs / "mountpoint"
    mountpoint.mkdir()
    store = xfs_volume.mountpoint / ".cowfs"
    with subprocess.Popen(
        [COWFS, "mount", source, mountpoint], stderr=subprocess.PIPE, text=True
    ) as process:
        wait_until(lambda: any((store / "partial").glob("*")) if store.exists() else False)
        process.send_signal(number)
        assert process.wait(20) == 8
        assert process.stderr is not None
        [line] = process.stderr.read().splitlines()
    assert line == f"cowfs: interrupted by {number.name}; nothing is mounted"
    assert mounted(mountpoint) is None
    for part in ("copies", "partial", "trash", "templates"):
        assert list((store / part).iterdir()) == [], part


def test_a_mount_that_is_interrupted_while_it_becomes_ready_is_undone(
    xfs: Path, model: Path, xfs_volume: Volume
) -> None:
    """The daemon has its orders already, and mounts after its launcher was told to stop."""
    mountpoint = xfs / "mountpoint"
    mountpoint.mkdir()
    copies = xfs_volume.mountpoint / ".cowfs" / "copies"
    # One that is its launcher's child, which can be found as soon as it is there.
    started = {**os.environ, "COWFS_FORKER": "off"}
    with subprocess.Popen(
        [COWFS, "mount", model, mountpoint], stderr=subprocess.PIPE, text=True, env=started
    ) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        wait_until(lambda: bool(children.read_text()))
        pid = int(children.read_text().split()[0])
        # Before its execve(2) the launcher waits for it, and would be stopped with it.
        wait_until(lambda: b"cowfs.keeper" in Path(f"/proc/{pid}/cmdline").read_bytes())
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: copies.is_dir() and bool(list(copies.iterdir())))
        time.sleep(0.1)  # it waits for the daemon by now
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
        os.kill(pid, signal.SIGCONT)
        assert process.wait(30) == 8
    assert mounted(mountpoint) is None
    assert list(copies.iterdir()) == []
    assert kernel.wait_for_end(pid, 0)


# --- umount ---------------------------------------------------------------------------------------


@pytest.mark.quick
def test_umount_counts_what_was_kept(mount_copy: MountCopy, model: Path) -> None:
    mountpoint = mount_copy(model, None, "copy=counted")
    (mountpoint / "new").write_bytes(b"x" * 5000)
    (mountpoint / "tokenizer" / "vocab.txt").write_text("changed")
    (mountpoint / "config.json").unlink()
    said = mount_copy.unmount(mountpoint).stdout
    match = re.fullmatch(
        r"kept copy counted \(2 files, 1 deletion, (.*) private\); "
        r"discard it with: cowfs rm (--store \S+ )?counted\n",  # where another run has one, too
        said,
    )
    assert match, said
    assert match[1].endswith("KiB")


def test_umount_of_a_copy_without_changes_says_so(mount_copy: MountCopy, model: Path) -> None:
    mountpoint = mount_copy(model, None, "copy=same")
    (mountpoint / "weights.bin").read_bytes()
    said = mount_copy.unmount(mountpoint).stdout
    assert re.fullmatch(
        r"kept copy same \(no changed files\); discard it with: cowfs rm (--store \S+ )?same\n",
        said,
    )


def test_umount_of_an_ephemeral_copy_says_that_it_is_gone(
    mount_copy: MountCopy, model: Path
) -> None:
    mountpoint = mount_copy(model, None, "copy=job,ephemeral")
    (mountpoint / "new").touch()
    assert mount_copy.unmount(mountpoint).stdout == "discarded ephemeral copy job\n"


def test_umount_returns_when_the_daemon_has_finished(mount_copy: MountCopy, model: Path) -> None:
    mountpoint = mount_copy(model)
    pid = mount_copy.daemon_pid(mountpoint)
    cowfs("umount", mountpoint)
    assert kernel.wait_for_end(pid, 0)
    cowfs("mount", model, mountpoint)


def test_umount_of_a_busy_mount_says_who_holds_it(mount_copy: MountCopy, model: Path) -> None:
    mountpoint = mount_copy(model)
    with subprocess.Popen(["sleep", "60"], cwd=mountpoint / "tokenizer") as sleeper:
        try:
            result = cowfs("umount", mountpoint, check=False)
        finally:
            sleeper.kill()
    assert result.returncode == 32
    line = one_error(result)
    assert f"{mountpoint} is busy" in line
    assert f"sleep (pid {sleeper.pid})" in line
    assert "--lazy" in line
    assert mounted(mountpoint) is not None


def test_umount_of_a_mount_with_another_in_it_names_that(
    mount_copy: MountCopy, model: Path
) -> None:
    mountpoint = mount_copy(model)
    inner = mountpoint / "tokenizer"
    run("mount", "-t", "tmpfs", "tmpfs", inner)
    try:
        line = one_error(cowfs("umount", mountpoint, check=False))
    finally:
        run("umount", inner)
    assert f"{inner} is mounted in it" in line


def test_lazy_umount_lets_a_user_finish(mount_copy: MountCopy, model: Path) -> None:
    mountpoint = mount_copy(model, None, "copy=lazy")
    pid = mount_copy.daemon_pid(mountpoint)
    with (mountpoint / "new").open("w+") as file:
        file.write("before")
        file.flush()
        said = cowfs("umount", "--lazy", mountpoint).stdout
        assert "copy lazy is released when its last open file is closed" in said
        assert mounted(mountpoint) is None
        file.write(" and after")
        file.seek(0)
        assert file.read() == "before and after"
    assert kernel.wait_for_end(pid, 10)
    cowfs("mount", "-o", "copy=lazy", model, mountpoint)
    assert (mountpoint / "new").read_text() == "before and after"


def test_umount_says_in_which_container_the_copy_is_still_mounted(
    mount_copy: MountCopy, model: Path
) -> None:
    mountpoint = mount_copy(model)
    daemon = mount_copy.daemon_pid(mountpoint)
    with container() as process:
        said = cowfs("umount", mountpoint, timeout=20).stdout
        where = f"at {mountpoint} in the mount namespace of sleep (pid {process.pid})"
        assert said == f"unmounted {mountpoint}; the copy is still mounted {where}\n"
        inside = ["nsenter", f"--mount=/proc/{process.pid}/ns/mnt", "cat"]
        assert run(*inside, mountpoint / "config.json").stdout.startswith("{")
    assert kernel.wait_for_end(daemon, 10)


def test_umount_of_a_mount_whose_daemon_was_killed(mount_plain: MountCopy, model: Path) -> None:
    mountpoint = mount_plain(model, None, "copy=orphan")
    mount_plain.orphan(mountpoint)
    with pytest.raises(OSError, match="Transport endpoint"):
        os.listdir(mountpoint)
    said = cowfs("umount", mountpoint).stdout
    assert "its daemon had died" in said
    assert mounted(mountpoint) is None


@pytest.mark.parametrize(
    ("where", "says"), [("nothing", "is not mounted"), ("tmpfs", "is not a cowfs mount but tmpfs")]
)
def test_umount_of_what_is_not_ours_is_refused(tmp_path: Path, where: str, says: str) -> None:
    if where == "tmpfs":
        run("mount", "-t", "tmpfs", "tmpfs", tmp_path)
    try:
        result = cowfs("umount", tmp_path, check=False)
    finally:
        if where == "tmpfs":
            run("umount", tmp_path)
    assert result.returncode == 1
    assert says in one_error(result)


def test_plain_umount_ends_the_daemon_too(mount_copy: MountCopy, model: Path, xfs: Path) -> None:
    mountpoint = mount_copy(model, None, "ephemeral")
    pid = mount_copy.daemon_pid(mountpoint)
    run("umount", "-i", mountpoint)
    assert kernel.wait_for_end(pid, 10)
    assert listed(xfs) == []


# --- list, rm, gc ---------------------------------------------------------------------------------


def test_list_shows_no_pid_between_two_daemons(
    mount_plain: MountCopy, model: Path, xfs: Path
) -> None:
    root = mount_plain(model)
    record = mount_plain.record(root)
    os.kill(record["keeper_pid"], signal.SIGSTOP)
    os.kill(record["daemon_pid"], signal.SIGKILL)
    try:
        assert kernel.wait_for_end(record["daemon_pid"], 10)
        (row,) = listed(xfs)
        assert (row["mountpoint"], row["daemon_pid"]) == (str(root), None)
        assert row["keeper_pid"] == record["keeper_pid"]
    finally:
        os.kill(record["keeper_pid"], signal.SIGCONT)
    pid = mount_plain.wait_until_served(root, other_than=record["daemon_pid"])
    assert [row["daemon_pid"] for row in listed(xfs)] == [pid]


@pytest.mark.quick
def test_list_knows_kept_and_mounted_copies(
    mount_plain: MountCopy, model: Path, xfs: Path, xfs_volume: Volume
) -> None:
    first = mount_plain(model, None, "copy=first")
    mount_plain.unmount(first)
    started = time.time()
    second = mount_plain(model, None, "copy=second,ephemeral")
    rows = {row["name"]: row for row in listed(xfs)}
    assert sorted(rows) == ["first", "second"]
    assert rows["first"]["mountpoint"] is None
    assert rows["first"]["daemon_pid"] is None
    assert rows["first"]["persistent"]
    assert rows["second"]["mountpoint"] == str(second)
    assert rows["second"]["daemon_pid"] == mount_plain.daemon_pid(second)
    assert not rows["second"]["persistent"]
    assert abs(rows["second"]["created"] - started) < 10
    assert rows["first"]["template"] == rows["second"]["template"]
    lines = cowfs("list", "--store", xfs_volume.mountpoint / ".cowfs").stdout.splitlines()
    assert lines[0].split()[:3] == ["NAME", "STATE", "USED"]
    assert {line.split()[0] for line in lines[1:]} == {"first", "second"}


def test_list_counts_only_bytes_that_are_not_shared(
    mount_plain: MountCopy, model: Path, xfs: Path
) -> None:
    mountpoint = mount_plain(model)
    with (mountpoint / "weights.bin").open("r+b") as file:
        file.write(b"x" * 65536)
        os.fsync(file.fileno())
    [row] = listed(xfs)
    assert 65536 <= row["private_bytes"] < 1 << 20  # of a file of 4 MiB


def test_list_of_a_store_that_is_not_there(tmp_path: Path) -> None:
    result = cowfs("list", "--store", tmp_path / "none", check=False)
    assert result.returncode in (1, 32)
    assert str(tmp_path / "none") in one_error(result)


@pytest.mark.quick
def test_rm_discards_what_is_not_mounted_and_leaves_the_source(
    mount_plain: MountCopy, model: Path, xfs: Path
) -> None:
    name = f"gone-{xfs.name}"  # rm looks into every store of the machine
    mountpoint = mount_plain(model, None, f"copy={name}")
    (mountpoint / "config.json").write_text("mine")
    mount_plain.unmount(mountpoint)
    source = (model / "config.json").read_text()
    cowfs("rm", name)
    assert listed(xfs) == []
    assert (model / "config.json").read_text() == source
    cowfs("mount", "-o", f"copy={name}", model, mountpoint)
    assert (mountpoint / "config.json").read_text() == source


def test_rm_of_a_mounted_copy_names_the_way_out(
    mount_plain: MountCopy, model: Path, xfs: Path
) -> None:
    name = f"used-{xfs.name}"
    mountpoint = mount_plain(model, None, f"copy={name}")
    result = cowfs("rm", name, check=False)
    assert result.returncode == 32
    line = one_error(result)
    assert name in line
    assert str(mountpoint) in line
    assert (mountpoint / "config.json").exists()


def test_rm_of_an_unknown_copy() -> None:
    result = cowfs("rm", "never-made", check=False)
    assert result.returncode == 1
    assert "never-made" in one_error(result)
    assert "cowfs list" in result.stderr


def test_rm_of_a_name_that_two_stores_have_asks_which(
    mount_plain: MountCopy, model: Path, xfs: Path, small_xfs: Callable[..., Volume]
) -> None:
    other = small_xfs(300)
    (other.mountpoint / "model").mkdir()
    name = f"twin-{xfs.name}"
    for source in (model, other.mountpoint / "model"):
        mount_plain.unmount(mount_plain(source, None, f"copy={name}"))
    result = cowfs("rm", name, check=False)
    assert result.returncode == 1
    assert str(other.mountpoint / ".cowfs") in one_error(result)
    cowfs("rm", "--store", other.mountpoint / ".cowfs", name)
    assert [row["name"] for row in listed(xfs)] == [name]


@pytest.mark.quick
def test_gc_drops_a_template_that_nobody_uses_any_more(
    mount_plain: MountCopy, model: Path, xfs_volume: Volume
) -> None:
    store = xfs_volume.mountpoint / ".cowfs"
    mountpoint = mount_plain(model, None, "copy=old")
    (model / "config.json").write_text("moved on")
    cowfs("gc", "--store", store)
    assert len(list((store / "templates").iterdir())) == 1
    assert (mountpoint / "config.json").read_text() != "moved on"
    mount_plain.unmount(mountpoint)
    cowfs("rm", "--store", store, "old")
    cowfs("gc", "--store", store)
    assert list((store / "templates").iterdir()) == []
    assert list((store / "trash").iterdir()) == []


# --- doctor ---------------------------------------------------------------------------------------


@pytest.mark.quick
def test_doctor_finds_nothing_wrong_where_mounts_work(xfs: Path) -> None:
    result = cowfs("doctor", xfs, "--json")
    report = json.loads(result.stdout)
    assert report["ok"] is True
    checks = {check["name"]: check for check in report["checks"]}
    wanted = {"kernel", "privileges", "/dev/fuse", "overlayfs", "passthrough", "io_uring"}
    wanted |= {"reflink", "pyfuse3", "libfuse", "trio", "cowfs.channel", "liburing"}
    assert wanted <= set(checks)
    assert checks["reflink"]["status"] == "ok"
    for name in ("pyfuse3", "libfuse", "trio", "liburing"):
        assert re.match(r"\d+(\.\d+)+", checks[name]["detail"]), checks[name]
    release = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
    assert checks["passthrough"]["status"] == ("ok" if release >= (6, 9) else "degraded")
    assert len(cowfs("doctor").stdout.splitlines()) >= len(checks)


def test_doctor_says_what_to_do_about_a_volume_that_cannot_clone(ext4_volume: Volume) -> None:
    result = cowfs("doctor", ext4_volume.mountpoint, check=False)
    assert result.returncode == 32
    assert str(ext4_volume.mountpoint) in result.stdout
    assert "mkfs.xfs -m reflink=1" in result.stdout
    assert result.stderr == ""


def test_doctor_without_privileges_reports_and_does_not_fail(xfs: Path) -> None:
    result = run("setpriv", "--bounding-set=-all", COWFS, "doctor", xfs, "--json", check=False)
    assert result.returncode == 32, result.stderr
    checks = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert checks["privileges"]["status"] == "failed"
    assert "root" in checks["privileges"]["remedy"]
    assert result.stderr == ""


def test_doctor_leaves_nothing_on_the_volume(xfs: Path, xfs_volume: Volume) -> None:
    before = sorted(xfs_volume.mountpoint.iterdir())
    mounts = kernel.session_mounts()
    cowfs("doctor", xfs)
    assert sorted(xfs_volume.mountpoint.iterdir()) == before
    assert kernel.session_mounts() == mounts
    assert list(xfs.iterdir()) == []


def test_version_is_that_of_the_package() -> None:
    assert cowfs("--version").stdout == f"cowfs {__version__}\n"
