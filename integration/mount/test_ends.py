"""How a mount ends, and what may end without it: nobody hangs, and nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cowfs.system import syscalls
from integration import kernel
from integration.command import cowfs, run
from integration.mounts import MountCopy, daemon_of
from integration.trees import make_model
from integration.volumes import Volume


@pytest.mark.parametrize("who", ["keeper_pid", "daemon_pid"])
def test_sigterm_unmounts_what_is_idle(mount_copy: MountCopy, model: Path, who: str) -> None:
    root = mount_copy(model, None, "copy=idle")
    (root / "new").write_text("kept")
    record = mount_copy.record(root)
    os.kill(record[who], signal.SIGTERM)
    assert kernel.wait_for_end(record["keeper_pid"], 20)
    assert kernel.wait_for_end(record["daemon_pid"], 0)
    assert not os.path.ismount(root)
    mount_copy(model, root, "copy=idle")
    assert (root / "new").read_text() == "kept"


def test_sigterm_leaves_what_is_in_use_and_says_what_to_do(
    mount_copy: MountCopy, model: Path
) -> None:
    root = mount_copy(model)
    record = mount_copy.record(root)
    with (root / "new").open("w") as file:
        os.kill(record["keeper_pid"], signal.SIGTERM)
        said = f"{root} is in use and stays mounted; end what uses it (fuser -vm {root})"
        deadline = time.monotonic() + 30
        while said not in mount_copy.log(root):
            assert time.monotonic() < deadline, mount_copy.log(root)
            time.sleep(0.05)
        file.write("all the same")
    assert (root / "new").read_text() == "all the same"
    assert mount_copy.record(root)["daemon_pid"] == record["daemon_pid"]


def test_daemon_whose_keeper_was_killed_serves_on(mount_copy: MountCopy, model: Path) -> None:
    root = mount_copy(model)
    record = mount_copy.record(root)
    os.kill(record["keeper_pid"], signal.SIGKILL)
    assert kernel.wait_for_end(record["keeper_pid"], 10)
    (root / "new").write_text("no keeper")
    assert (root / "new").read_text() == "no keeper"
    used = kernel.cpu_ticks(record["daemon_pid"])
    time.sleep(0.5)
    assert kernel.cpu_ticks(record["daemon_pid"]) - used <= 2, "it spins"
    refused = cowfs("upgrade", root, check=False)
    assert refused.returncode == 32
    assert "does not answer" in refused.stderr


def test_daemon_that_dies_after_its_volume_was_shut_down_leaves_errors_and_no_hang(
    mount_copy: MountCopy, small_xfs: Callable[..., Volume]
) -> None:
    volume = small_xfs(64)
    root = mount_copy(make_model(volume.mountpoint / "model"))
    record = mount_copy.record(root)
    with (root / "new").open("w") as file:
        file.write("x")
        file.flush()
        run("xfs_io", "-x", "-c", "shutdown", volume.mountpoint)
        os.kill(record["daemon_pid"], signal.SIGKILL)
        for call in (
            lambda: os.stat(root / "never-asked-for"),
            lambda: os.mkdir(root / "directory"),
            lambda: os.write(file.fileno(), b"y"),
            lambda: os.fsync(file.fileno()),
        ):
            with pytest.raises(OSError, match=r"Input/output error|not connected|Aborted|abort"):
                call()
        assert subprocess.run(["timeout", "20", "ls", root], capture_output=True).returncode == 2


def test_an_aborted_connection_leaves_an_error_and_never_the_directory_below(
    mount_copy: MountCopy, model: Path
) -> None:
    root = mount_copy.mountpoint()
    covered = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        mount_copy(model, root, "copy=aborted")
        record = mount_copy.record(root)
        (root / "kept").write_text("from before")
        assert kernel.abort_connections() == [str(root)]
        assert kernel.wait_for_end(record["keeper_pid"], 20)
        with pytest.raises(OSError, match="not connected"):
            (root / "checkpoint").write_text("lost")
        assert os.listdir(covered) == []
        assert f"until it is unmounted with: cowfs umount {root}\n" in mount_copy.log(root)
        cowfs("umount", root)
    finally:
        os.close(covered)
    mount_copy(model, root, "copy=aborted")
    assert (root / "kept").read_text() == "from before"


def test_an_ephemeral_copy_whose_connection_is_aborted_is_left_until_it_is_unmounted(
    mount_plain: MountCopy, model: Path
) -> None:
    root = mount_plain(model, None, "ephemeral", "copy=brief")
    record = mount_plain.record(root)
    copy = Path(record["store"], "copies", "brief")
    kernel.abort_connections()
    assert kernel.wait_for_end(record["keeper_pid"], 20)
    assert "the copy brief is left for cowfs gc to discard" in mount_plain.log(root)
    assert copy.exists()
    cowfs("umount", root)
    cowfs("gc", "--store", record["store"])
    assert not copy.exists()


def test_an_ephemeral_copy_is_gone_after_a_forced_unmount(
    mount_plain: MountCopy, model: Path
) -> None:
    # The kernel aborts the connection, and takes the mount away after that.
    root = mount_plain(model, None, "ephemeral", "copy=brief")
    record = mount_plain.record(root)
    run("umount", "-i", "-f", root)
    assert kernel.wait_for_end(record["keeper_pid"], 20)
    assert not Path(record["store"], "copies", "brief").exists()
    assert "is unmounted, and the copy brief is discarded" in mount_plain.log(root)


def test_an_ephemeral_copy_that_is_unmounted_between_two_daemons_is_discarded(
    mount_plain: MountCopy, model: Path
) -> None:
    root = mount_plain(model, None, "ephemeral", "copy=brief")
    record = mount_plain.record(root)
    os.kill(record["keeper_pid"], signal.SIGSTOP)
    os.kill(record["daemon_pid"], signal.SIGKILL)
    assert kernel.wait_for_end(record["daemon_pid"], 10)
    syscalls.umount2(os.fsencode(root), syscalls.UMOUNT_NOFOLLOW)
    os.kill(record["keeper_pid"], signal.SIGCONT)
    assert kernel.wait_for_end(record["keeper_pid"], 20)
    assert not Path(record["store"], "copies", "brief").exists()


def test_what_a_daemon_has_refused_to_end_for_is_not_asked_of_the_next_one(
    mount_plain: MountCopy, model: Path
) -> None:
    root = mount_plain(model)
    record = mount_plain.record(root)
    with (root / "new").open("w"):
        os.kill(record["keeper_pid"], signal.SIGHUP)
        deadline = time.monotonic() + 20
        while "is in use and stays mounted" not in mount_plain.log(root):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    os.kill(record["daemon_pid"], signal.SIGKILL)
    mount_plain.wait_until_served(root, other_than=record["daemon_pid"])
    assert not kernel.wait_for_end(record["keeper_pid"], 0.5)
    assert (root / "new").exists()


def test_mount_in_a_namespace_that_ends_goes_with_it(
    mount_copy: MountCopy, model: Path, tmp_path: Path
) -> None:
    # It is the only one that shows the copy: keeper and daemon do not keep it alive for nobody.
    root = mount_copy(model)
    record = mount_copy.record(root)
    inside = tmp_path / "inside"
    inside.mkdir()
    script = 'mount --bind "$0" "$1" && echo && exec sleep 60'
    with subprocess.Popen(
        [*kernel.in_own_mounts(script), root, inside], stdout=subprocess.PIPE
    ) as container:
        assert container.stdout is not None
        container.stdout.readline()
        run("umount", "-i", root)
        within = ["nsenter", f"--mount=/proc/{container.pid}/ns/mnt"]
        run(*within, "sh", "-c", 'echo changed >"$0/config.json"', inside)
        os.kill(daemon_of(record["keeper_pid"]), signal.SIGKILL)
        assert run(*within, "cat", inside / "config.json").stdout == "changed\n"
        container.kill()
    assert kernel.wait_for_end(record["keeper_pid"], 20)
