"""A kernel before 6.9 cannot send the requests of a dead daemon to another one.

There a mount has one daemon. When it dies, everybody is told so (ENOTCONN), and nothing is written
to the directory that the mount covers. COWFS_RESEND=off makes mounts do so on any kernel.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from integration import kernel
from integration.command import COWFS, cowfs
from integration.mounts import MountCopy
from integration.otherversion import OtherVersion

DEAD = {errno.ENOTCONN, errno.ECONNABORTED}


@pytest.fixture(autouse=True)
def _without_resend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COWFS_RESEND", "off")


def assert_dead(call: Callable[[], object]) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 -- of two errnos
        call()
    assert caught.value.errno in DEAD


def end_of(mounts: MountCopy, root: Path) -> None:
    """Kill the daemon, and wait until its keeper has ended, too."""
    record = mounts.record(root)
    os.kill(record["daemon_pid"], signal.SIGKILL)
    assert kernel.wait_for_end(record["keeper_pid"], 10)
    assert "and this kernel lets no other one go on" in mounts.log(root)


def test_a_dead_daemon_leaves_an_error_and_never_the_directory_below(
    mount_copy: MountCopy, model: Path
) -> None:
    below = mount_copy.mountpoint()
    covered = os.open(below, os.O_RDONLY | os.O_DIRECTORY)
    try:
        root = mount_copy(model, below, "copy=dead")
        (root / "kept").write_text("from before")
        with (root / "open").open("w") as file:
            end_of(mount_copy, root)
            assert_dead(lambda: (root / "checkpoint").write_text("lost"))
            assert_dead(lambda: os.mkdir(root / "directory"))
            assert_dead(lambda: os.fsync(file.fileno()))
        assert os.listdir(covered) == []
        assert cowfs("umount", root).stdout == (
            f"unmounted {root}; its daemon had died. A kept copy of it is listed by: cowfs list\n"
        )
        assert os.listdir(covered) == []
    finally:
        os.close(covered)
    mount_copy(model, root, "copy=dead")
    assert (root / "kept").read_text() == "from before"
    store = mount_copy.record(root)["store"]
    mount_copy.unmount(root)
    assert cowfs("check", "--store", store, "dead").returncode == 0


def test_calls_that_wait_for_a_daemon_that_dies_end_with_it(
    mount_copy: MountCopy, model: Path
) -> None:
    root = mount_copy(model)
    daemon = mount_copy.daemon_pid(root)
    os.kill(daemon, signal.SIGSTOP)
    with subprocess.Popen(["mkdir", root / "never"], stderr=subprocess.PIPE, text=True) as waiting:
        time.sleep(0.3)
        assert waiting.poll() is None
        os.kill(daemon, signal.SIGKILL)
        _, said = waiting.communicate(timeout=20)
        assert waiting.returncode == 1
    assert "not connected" in said or "abort" in said.lower()


def test_nobody_can_mount_over_what_is_dead_by_accident(mount_copy: MountCopy, model: Path) -> None:
    root = mount_copy(model)
    end_of(mount_copy, root)
    refused = cowfs("mount", model, root, check=False)
    assert refused.returncode == 32
    assert f"unmount it with: cowfs umount {root}" in refused.stderr


def test_an_ephemeral_copy_of_a_dead_daemon_is_discarded_later(
    mount_copy: MountCopy, model: Path
) -> None:
    root = mount_copy(model, None, "ephemeral", "copy=brief")
    store = Path(mount_copy.record(root)["store"])
    end_of(mount_copy, root)
    cowfs("umount", root)
    assert (store / "copies" / "brief").exists()
    cowfs("gc", "--store", store)
    assert not (store / "copies" / "brief").exists()


def test_a_daemon_that_hangs_is_not_replaced(mount_copy: MountCopy, model: Path) -> None:
    root = mount_copy(model, None, "watchdog=1")
    daemon = mount_copy.daemon_pid(root)
    os.kill(daemon, signal.SIGSTOP)
    time.sleep(2.5)
    os.kill(daemon, signal.SIGCONT)
    (root / "new").write_text("all the same")
    assert mount_copy.daemon_pid(root) == daemon


def test_an_upgrade_is_refused_and_the_mount_goes_on(
    mount_copy: MountCopy, model: Path, tmp_path: Path
) -> None:
    root = mount_copy(model)
    before = mount_copy.record(root)
    with (root / "open").open("w") as file:
        refused = cowfs("upgrade", root, check=False)
        assert refused.returncode == 32
        assert f"{root} cannot be taken over: this kernel" in refused.stderr
        other = OtherVersion(tmp_path / "other", "99.1")
        again = subprocess.run(
            other.command("upgrade", str(root)), cwd="/", stderr=subprocess.PIPE, text=True
        )
        assert again.returncode == 32
        assert again.stderr == refused.stderr
        file.write("goes on")
    assert (root / "open").read_text() == "goes on"
    assert mount_copy.record(root) == before


@pytest.mark.parametrize("who", ["keeper_pid", "daemon_pid"])
def test_sigterm_unmounts(mount_copy: MountCopy, model: Path, who: str) -> None:
    root = mount_copy(model)
    record = mount_copy.record(root)
    os.kill(record[who], signal.SIGTERM)
    assert kernel.wait_for_end(record["keeper_pid"], 20)
    assert not os.path.ismount(root)


def test_a_daemon_goes_on_without_its_keeper(mount_copy: MountCopy, model: Path) -> None:
    root = mount_copy(model)
    record = mount_copy.record(root)
    os.kill(record["keeper_pid"], signal.SIGKILL)
    assert kernel.wait_for_end(record["keeper_pid"], 10)
    (root / "new").write_text("no keeper")
    mount_copy.unmount(root)
    mount_copy(model, root)
    assert (root / "new").read_text() == "no keeper"


def test_in_the_foreground_the_end_of_the_daemon_is_that_of_the_command(
    mount_plain: MountCopy, model: Path, tmp_path: Path
) -> None:
    root = mount_plain.mountpoint()
    command = [COWFS, "mount", "-f", model, root]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=environment
        ) as process:
            assert manager.recv(4096).startswith(b"READY=1\n")
            os.kill(mount_plain.daemon_pid(root), signal.SIGKILL)
            _, said = process.communicate(timeout=20)
            assert process.returncode == 32
    assert "the mount answers ENOTCONN" in said
    assert_dead(lambda: os.listdir(root))
    cowfs("umount", root)
