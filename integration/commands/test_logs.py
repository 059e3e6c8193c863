"""`cowfs logs`: what those have to say who serve a mount."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from integration.command import COWFS, cowfs, one_error, run
from integration.mounts import RECORDS, MountCopy


@pytest.mark.quick
def test_the_log_of_a_mount_and_its_last_lines(mount_plain: MountCopy, model: Path) -> None:
    mountpoint = mount_plain(model)
    first = mount_plain.daemon_pid(mountpoint)
    os.kill(first, signal.SIGKILL)
    mount_plain.wait_until_served(mountpoint, other_than=first)
    shown = cowfs("logs", mountpoint).stdout
    log = log_of(mount_plain, mountpoint)
    assert log.read_text().startswith(shown)  # the next daemon may just have written more
    assert f"the daemon {first} ended" in shown
    with log.open("a") as end:
        end.write("the one before\nthe last line\n")
    assert cowfs("logs", "-n", "1", mountpoint).stdout == "the last line\n"


def has_open(pid: int, path: Path) -> bool:
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            if os.readlink(fd) == str(path):
                return True
    return False


def log_of(mounts: MountCopy, mountpoint: Path) -> Path:
    return RECORDS / f"{mounts.record(mountpoint)['device']}.log"


@pytest.mark.parametrize("engine", ["fuse", "overlay"])
def test_a_log_that_is_followed_ends_with_the_mount(
    mount_plain: MountCopy, model: Path, engine: str
) -> None:
    mountpoint = mount_plain(model, None, f"engine={engine}")
    with subprocess.Popen(
        [COWFS, "logs", "--follow", "--lines", "0", mountpoint], stdout=subprocess.PIPE, text=True
    ) as following:
        assert following.stdout is not None
        log = log_of(mount_plain, mountpoint)
        while not has_open(following.pid, log):
            assert following.poll() is None
        if engine == "fuse":
            first = mount_plain.daemon_pid(mountpoint)
            os.kill(first, signal.SIGKILL)
            assert f"the daemon {first} ended" in following.stdout.readline()
        mount_plain.unmount(mountpoint)
        following.communicate(timeout=30)
        assert following.returncode == 0


def test_nothing_in_a_log_is_obeyed_by_the_terminal(mount_plain: MountCopy, model: Path) -> None:
    mountpoint = mount_plain(model)
    with log_of(mount_plain, mountpoint).open("ab") as log:
        log.write(b"\x1b[2J \xff\n")
    assert cowfs("logs", "-n1", mountpoint).stdout == "\\x1b[2J \\xff\n"


def test_there_is_no_log_of_what_is_not_mounted(tmp_path: Path) -> None:
    refused = cowfs("logs", tmp_path, check=False)
    assert refused.returncode == 1
    assert "is not mounted" in one_error(refused)


def test_only_root_reads_logs(mount_plain: MountCopy, model: Path) -> None:
    mountpoint = mount_plain(model)
    user = ("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups")
    refused = run(*user, COWFS, "logs", mountpoint, check=False)
    assert refused.returncode == 1
    assert "run cowfs as root" in one_error(refused)


def test_who_serves_in_the_foreground_is_named(mount_plain: MountCopy, model: Path) -> None:
    mountpoint = mount_plain.mountpoint()
    with subprocess.Popen(
        [COWFS, "mount", "--foreground", model, mountpoint],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            assert process.stderr is not None
            while not (mountpoint / "config.json").exists():
                assert process.poll() is None
            refused = one_error(cowfs("logs", mountpoint, check=False))
            assert f"is served in the foreground by process {process.pid}" in refused
            assert "pipe:[" in refused
        finally:
            process.terminate()
            process.wait(30)
