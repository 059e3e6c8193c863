"""Records of running mounts."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cowfs.store import runtime
from cowfs.store.runtime import Record
from cowfs.system import mountinfo, processes
from cowfs.system.mountinfo import Mount

RECORD = Record(
    device="0:99",
    mountpoint="/mnt/a",
    source="/data/\udcff",
    store="/data/.cowfs",
    copy="mnt-a",
    template="f00",
    daemon_pid=os.getpid(),
    keeper_pid=4_000_001,
    version="1.2.3",
    started=1.5,
    options="ro",
    persistent=True,
)


class Table:
    """Stands in for the mount tables of all processes; one that is not named has ended."""

    def __init__(self) -> None:
        self.tables: dict[str, list[Mount]] = {"self": [], str(os.getpid()): []}

    def mount(self, device: str, mountpoint: str, fstype: str = "fuse.cowfs") -> None:
        for mounts in self.tables.values():
            mounts.append(Mount(1, device, mountpoint, fstype, "/data"))

    def read(self, path: str = "/proc/self/mountinfo") -> list[Mount]:
        try:
            return self.tables[path.split("/")[2]]
        except KeyError:
            raise FileNotFoundError(path) from None


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Table:
    table = Table()
    monkeypatch.setattr(mountinfo, "read", table.read)
    monkeypatch.setattr(runtime, "RUN_DIR", str(tmp_path / "run"))
    return table


def found(mountpoint: str) -> Record | None:
    """The record of the topmost mount there."""
    mount = mountinfo.mounted_at(mountpoint)
    return None if mount is None else runtime.of(mount)


def files(tmp_path: Path) -> list[str]:
    return sorted(os.listdir(tmp_path / "run"))


def test_record_is_found_by_the_path_of_its_mount(table: Table, tmp_path: Path) -> None:
    table.mount("0:99", "/mnt/a")
    runtime.write(RECORD)
    assert runtime.all() == [RECORD]
    assert found("/mnt/a") == RECORD
    assert found("/mnt/b") is None
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "run" / "0:99.json").stat().st_mode) == 0o600
    runtime.remove("0:99")
    runtime.remove("0:99")
    assert runtime.all() == []
    assert files(tmp_path) == []


def test_all_mounts_of_a_copy_have_the_one_record(table: Table) -> None:
    table.mount("0:99", "/mnt/a")
    table.mount("0:99", "/mnt/bound")
    runtime.write(RECORD)
    assert found("/mnt/bound") == RECORD
    for mounts in table.tables.values():
        del mounts[0]
    assert found("/mnt/bound") == RECORD


def test_the_topmost_of_two_mounts_at_one_path_is_meant(table: Table) -> None:
    table.mount("0:98", "/mnt/a")
    table.mount("0:99", "/mnt/a")
    runtime.write(RECORD)
    runtime.write(replace(RECORD, device="0:98", copy="other"))
    assert found("/mnt/a") == RECORD


def test_no_record_and_no_directory_is_no_mount(table: Table) -> None:
    assert runtime.all() == []
    assert found("/mnt/a") is None
    runtime.remove("0:99")


def test_record_of_a_mount_that_is_gone_is_deleted(table: Table, tmp_path: Path) -> None:
    runtime.write(RECORD)
    assert runtime.all() == []
    assert files(tmp_path) == []


def test_record_of_a_killed_daemon_is_deleted(table: Table, tmp_path: Path) -> None:
    table.mount("0:99", "/mnt/a")
    runtime.write(replace(RECORD, daemon_pid=4_000_000))
    assert runtime.all() == []
    assert files(tmp_path) == []


def test_a_keeper_alone_keeps_the_record(table: Table) -> None:
    table.mount("0:99", "/mnt/a")
    record = replace(RECORD, daemon_pid=4_000_000, keeper_pid=os.getpid())
    runtime.write(record)
    assert runtime.all() == [record]


def test_the_pid_of_a_process_that_has_ended_or_is_none_of_ours_is_not_told() -> None:
    assert runtime.living(os.getpid()) is None
    ours = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()", "cowfs.daemon"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert ours.stdout is not None
        ours.stdout.readline()
        assert runtime.living(ours.pid) == ours.pid
        ours.kill()
        os.waitid(os.P_PID, ours.pid, os.WEXITED | os.WNOWAIT)  # it waits to be reaped
        assert runtime.living(ours.pid) is None
    finally:
        ours.kill()
        ours.communicate()
    assert runtime.living(ours.pid) is None


def test_device_number_that_is_something_else_now_is_not_taken_for_ours(table: Table) -> None:
    table.mount("0:99", "/mnt/a", fstype="tmpfs")
    runtime.write(RECORD)
    assert runtime.all() == []


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"device": "0:99", "more": 1}'])
def test_damaged_record_is_deleted(table: Table, tmp_path: Path, text: str) -> None:
    table.mount("0:99", "/mnt/a")
    runtime.write(RECORD)
    (tmp_path / "run" / "0:99.json").write_text(text)
    assert runtime.all() == []
    assert files(tmp_path) == []


def test_other_files_are_left_alone(table: Table, tmp_path: Path) -> None:
    assert runtime.log_path("0:99") == str(tmp_path / "run" / "0:99.log")
    (tmp_path / "run" / "0:99.log").write_text("x")
    (tmp_path / "run" / ".0:99.json.1234").write_text("half")
    assert runtime.all() == []
    assert files(tmp_path) == [".0:99.json.1234", "0:99.log"]


def test_symlink_in_place_of_the_directory_is_not_followed(table: Table, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").symlink_to("elsewhere")
    with pytest.raises(NotADirectoryError):
        runtime.write(RECORD)
    assert os.listdir(tmp_path / "elsewhere") == []


def test_record_of_the_next_mount_with_that_device_is_not_removed(
    table: Table, tmp_path: Path
) -> None:
    runtime.write(replace(RECORD, daemon_pid=os.getppid()))
    runtime.remove(RECORD.device)
    assert files(tmp_path) == ["0:99.json"]


def test_record_that_was_replaced_while_it_was_judged_is_kept(
    table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime.write(replace(RECORD, daemon_pid=os.getppid()))  # of a daemon that has ended
    read = table.read

    def read_while_another_mounts(path: str = "/proc/self/mountinfo") -> list[Mount]:
        monkeypatch.setattr(mountinfo, "read", read)
        table.mount(RECORD.device, RECORD.mountpoint)
        runtime.write(RECORD)
        return read(path)

    monkeypatch.setattr(mountinfo, "read", read_while_another_mounts)
    assert runtime.all() == [RECORD]
    assert files(tmp_path) == ["0:99.json"]


def test_records_of_other_versions_are_read_and_stay(table: Table) -> None:
    """Mounts move from one version to the next while both are in use."""
    table.mount(RECORD.device, RECORD.mountpoint)
    runtime.write(RECORD)
    path = Path(runtime.RUN_DIR) / f"{RECORD.device}.json"
    value = json.loads(path.read_text())
    del value["version"]
    value["of_the_future"] = [1, 2]
    path.write_text(json.dumps(value))
    assert runtime.all() == [replace(RECORD, version="")]
    assert path.exists()


def test_what_the_kernel_serves_keeps_its_record_though_another_namespace_looks(
    table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its attendant was killed, and a cowfs in a container reads the records.
    record = replace(RECORD, engine="overlay", daemon_pid=4_000_002)
    runtime.write(record)
    mount = Mount(1, "0:99", "/mnt/a", "overlay", "/data", template="f00")
    there = [processes.Place("mnt:[2]", mount, processes.Process(7, "sh"))]
    monkeypatch.setattr(processes, "places", lambda _device: there)
    assert runtime.all() == []
    assert runtime.elsewhere() == [record]
    there.clear()
    assert runtime.elsewhere() == []
    assert files(tmp_path) == []


def test_what_is_no_file_is_nobodys_record_and_hides_no_other(table: Table, tmp_path: Path) -> None:
    table.mount(RECORD.device, RECORD.mountpoint)
    runtime.write(RECORD)
    (tmp_path / "run" / "0:98.json").mkdir()
    assert runtime.all() == [RECORD]
    assert found(RECORD.mountpoint) == RECORD
    assert runtime.elsewhere() == []
    assert files(tmp_path) == ["0:98.json", "0:99.json"]


def test_a_mount_that_is_ending_takes_nothing_of_the_next_one_away(
    table: Table, tmp_path: Path
) -> None:
    # Its device number is free before its daemon has removed its record.
    table.mount("0:99", "/mnt/a")
    runtime.write(RECORD)
    runtime.claim("0:99")
    runtime.control_socket("0:99").close()
    runtime.remove("0:99")  # by the one that is ending
    assert files(tmp_path) == ["0:99.sock"]


def test_a_copy_that_is_served_on_has_its_record_though_it_is_not_mounted_here(
    table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime.write(RECORD)
    monkeypatch.setattr(runtime, "living", lambda pid: pid)
    assert runtime.all() == []
    assert runtime.elsewhere() == [RECORD]
    monkeypatch.setattr(runtime, "living", lambda _pid: None)
    assert runtime.elsewhere() == []
    assert files(tmp_path) == []
