"""Who keeps a mount busy, and what is said about a copy afterwards."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cowfs.mount import unmount
from cowfs.mount.mountpoint import Mountpoint
from cowfs.store import runtime
from cowfs.system import mountinfo, processes
from cowfs.system.errors import UsageError
from cowfs.system.mountinfo import Mount
from cowfs.system.processes import Place, Process

OTHER = Mount(999_999_999, "4095:1048575", "/nowhere", "fuse.cowfs", "/data")


@contextmanager
def process(code: str, cwd: Path) -> Iterator[int]:
    """A Python process that has run the code, and waits."""
    with subprocess.Popen(
        [sys.executable, "-c", f"{code}\nprint(flush=True)\ninput()"],
        cwd=cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        try:
            yield child.pid
        finally:
            child.kill()


def test_a_process_in_a_directory_of_the_mount_holds_it(tmp_path: Path) -> None:
    mount = OTHER._replace(mountpoint=os.path.realpath(tmp_path))
    (tmp_path / "sub").mkdir()
    with process("", cwd=tmp_path / "sub") as pid:
        found = [holder for holder in unmount.holders(mount) if holder.pid == pid]
        name = Path(f"/proc/{pid}/comm").read_text().rstrip()
    assert [holder.name for holder in found] == [name]


def test_a_process_with_an_open_file_of_the_mount_holds_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    fdinfo = mountinfo.holding(os.path.realpath(tmp_path))
    mount = OTHER._replace(mount_id=fdinfo.mount_id)
    with process(f"file = open({str(tmp_path / 'file')!r})", cwd=Path("/proc")) as pid:
        assert pid in [holder.pid for holder in unmount.holders(mount)]


def test_a_process_with_a_mapping_of_the_mount_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * mmap.PAGESIZE)
    device = os.stat(path).st_dev
    mount = OTHER._replace(device=f"{os.major(device)}:{os.minor(device)}")
    code = (
        f"import mmap\nwith open({str(path)!r}, 'rb') as file:\n"
        " m = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)"
    )
    with process(code, cwd=Path("/proc")) as pid:
        assert pid in [holder.pid for holder in unmount.holders(mount)]


def test_nobody_holds_what_nobody_uses() -> None:
    assert list(unmount.holders(OTHER)) == []


def test_what_is_not_mounted_is_not_unmounted(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{tmp_path} is not mounted: cowfs list"):
        unmount.find(str(tmp_path))


def test_what_is_not_ours_is_left_to_umount() -> None:
    with pytest.raises(UsageError, match=r"/proc is not a cowfs mount but proc"):
        unmount.find("/proc")


def test_a_mountpoint_is_found_through_links_and_from_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path(os.path.realpath(tmp_path))
    (tmp_path / "mnt").mkdir()
    (tmp_path / "link").symlink_to("mnt")
    mount = OTHER._replace(mountpoint=str(real / "mnt"))
    monkeypatch.setattr(mountinfo, "read", lambda: [mount])
    monkeypatch.chdir(tmp_path)
    for name in ("mnt", "./mnt/", "link", str(tmp_path / "mnt"), "../" + real.name + "/mnt"):
        assert unmount.find(name) == mount


class _Place:
    """Stands in for the place of a mount, and unmounts it."""

    def unmount(self, flags: int) -> None:
        pass


@pytest.mark.parametrize("code", [errno.ESRCH, errno.EINVAL])
def test_a_number_that_only_a_session_still_has_is_no_process_to_wait_for(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """pidfd_open(2) of the keeper that was killed, whose daemon goes on: EINVAL before 6.13."""

    def refuse(_pid: int) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pidfd_open", refuse)
    record = runtime.Record(
        device=OTHER.device,
        mountpoint=OTHER.mountpoint,
        source="/data",
        store="/data/.cowfs",
        copy="nowhere",
        template="0" * 32,
        daemon_pid=4_000_001,
        keeper_pid=4_000_002,
        started=0.0,
        options="",
        persistent=True,
    )
    monkeypatch.setattr(runtime, "of", lambda _mount: record)
    monkeypatch.setattr(unmount, "find", lambda _path: OTHER)
    monkeypatch.setattr(Mountpoint, "of", lambda _mount: _Place())
    monkeypatch.setattr(processes, "places", lambda _device: [])
    assert unmount.unmount(OTHER.mountpoint).elsewhere is None


def take_away(
    monkeypatch: pytest.MonkeyPatch, before: list[Place], after: list[Place]
) -> Place | None:
    """Where `OTHER` is said to be mounted yet, by what was there before and after its unmount."""
    looks = [after, before]
    monkeypatch.setattr(unmount, "find", lambda _path: OTHER)
    monkeypatch.setattr(runtime, "of", lambda _mount: None)
    monkeypatch.setattr(Mountpoint, "of", lambda _mount: _Place())
    monkeypatch.setattr(processes, "places", lambda _device: looks.pop())
    return unmount.unmount(OTHER.mountpoint).elsewhere


def test_the_next_mount_with_the_same_numbers_is_not_the_one_that_was_unmounted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = Place("mnt:[1]", OTHER, None)
    another = Place("mnt:[1]", OTHER._replace(mountpoint="/mnt/next"), None)
    assert take_away(monkeypatch, [ours], [another]) is None


def test_other_places_of_a_copy_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Place("mnt:[1]", OTHER, None)
    bound = Place("mnt:[1]", OTHER._replace(mount_id=7, mountpoint="/mnt/bound"), None)
    container = Place("mnt:[2]", OTHER, Process(8, "sleep"))
    assert take_away(monkeypatch, [ours, bound], [bound]) == bound
    assert take_away(monkeypatch, [ours, container], [container]) == container
