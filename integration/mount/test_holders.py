"""Who has a copy that is mounted here no more, and that nobody else's mount is taken for ours."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cowfs.commands import outcome
from cowfs.mount import unmount
from cowfs.system import processes
from cowfs.system.errors import MountFailure
from integration import kernel
from integration.command import cowfs, one_error
from integration.host import container
from integration.mounts import MountCopy


def test_a_copy_that_a_container_holds_is_refused_with_its_name(
    mount_plain: MountCopy, model: Path
) -> None:
    mountpoint = mount_plain(model, None, "copy=held")
    daemon = mount_plain.daemon_pid(mountpoint)
    with container() as process:
        assert f"sleep (pid {process.pid})" in cowfs("umount", mountpoint).stdout
        for command in (("mount", "-o", "copy=held", model, mountpoint), ("rm", "held")):
            said = one_error(cowfs(*command, check=False))
            assert (
                f"the copy held is in use: it is still mounted at {mountpoint} in the mount "
                f"namespace of sleep (pid {process.pid})" in said
            )
        assert cowfs("list").stdout.count("held") == 1
    assert kernel.wait_for_end(daemon, 10)
    mount_plain(model, mountpoint, "copy=held")


def test_a_copy_of_which_a_file_is_open_is_refused_with_the_name_of_who_has_it(
    mount_plain: MountCopy, model: Path
) -> None:
    mountpoint = mount_plain(model, None, "copy=held")
    daemon = mount_plain.daemon_pid(mountpoint)
    with subprocess.Popen(["sleep", "1000"], cwd=mountpoint) as process:
        cowfs("umount", "--lazy", mountpoint)
        said = one_error(cowfs("mount", "-o", "copy=held", model, mountpoint, check=False))
        process.kill()
    assert f"it was detached, and sleep (pid {process.pid}) has something of it open" in said
    assert kernel.wait_for_end(daemon, 10)


def test_a_copy_whose_lock_somebody_has_is_refused_with_his_name(
    mount_plain: MountCopy, model: Path, xfs: Path
) -> None:
    mountpoint = mount_plain(model, None, "copy=locked")
    store = Path(mount_plain.record(mountpoint)["store"])
    mount_plain.unmount(mountpoint)
    with subprocess.Popen(
        ["flock", store / "copies/locked/lock", "sh", "-c", "echo; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        said = one_error(cowfs("rm", "--store", store, "locked", check=False))
        process.communicate()
    assert "is just making or ending a mount of it" in said
    assert "(pid " in said


def test_a_path_that_leads_to_another_mount_by_now_is_left_alone(
    mount_plain: MountCopy, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As the owner of a directory above could arrange it, between a look and the unmount.
    for name in ("mine", "other"):
        (tmp_path / name / "m").mkdir(parents=True)
        mount_plain(model, tmp_path / name / "m", f"copy={name}")
    find = unmount.find

    def find_and_move(mountpoint: str) -> unmount.Mount:
        found = find(mountpoint)
        (tmp_path / "mine").rename(tmp_path / "moved")
        (tmp_path / "other").rename(tmp_path / "mine")
        return found

    monkeypatch.setattr(unmount, "find", find_and_move)
    with pytest.raises(MountFailure, match="leads to something else than the mount"):
        unmount.unmount(str(tmp_path / "mine" / "m"), lazy=True)
    for name in ("mine", "moved"):
        assert os.path.ismount(tmp_path / name / "m")
        mount_plain.adopt(tmp_path / name / "m")


def test_a_user_that_is_just_ending_is_waited_for(
    mount_plain: MountCopy, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As one is that was killed, and that nobody waits for: it has the mount until it has ended.
    mountpoint = mount_plain(model, None, "copy=killed")
    with subprocess.Popen(["sleep", "1000"], cwd=mountpoint) as process:
        with pytest.raises(MountFailure, match=rf"held by sleep \(pid {process.pid}\)"):
            unmount.unmount(str(mountpoint), lazy=False)
        asked: list[int] = []

        def is_ending(pid: int) -> bool:
            asked.append(pid)
            if len(asked) == 3:
                process.kill()
            return True

        monkeypatch.setattr(unmount, "_is_ending", is_ending)
        assert "kept copy killed" in outcome.line(unmount.unmount(str(mountpoint)))
        assert set(asked) == {process.pid}


def test_who_was_killed_is_ending() -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        assert not unmount._is_ending(process.pid)
        process.kill()
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            assert unmount._is_ending(process.pid)
        assert unmount._is_ending(process.pid)  # a zombie
    assert unmount._is_ending(process.pid)


def test_a_later_mount_with_the_same_device_number_is_another_one(
    mount_plain: MountCopy, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mountpoint = mount_plain(model, None, "copy=first")
    [place] = processes.places(mount_plain.record(mountpoint)["device"])
    later = place._replace(mount=place.mount._replace(mount_id=place.mount.mount_id + 1000))
    answers = [[place], [later]]
    monkeypatch.setattr(processes, "places", lambda _device: answers.pop(0))
    assert "kept copy first" in outcome.line(unmount.unmount(str(mountpoint)))
