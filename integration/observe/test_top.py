"""`cowfs top`: each byte is told of the right thread and file, whoever serves it."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cowfs.observe import bpf
from integration.command import COWFS, cowfs, one_error, run
from integration.mounts import MountCopy

MIB = 1 << 20
WATCHED = Path(__file__).with_name("watched.py")


@pytest.fixture
def source(xfs: Path) -> Path:
    directory = xfs / "source"
    (directory / "inner").mkdir(parents=True)
    for name in ("read", "mapped", "inner/third"):
        (directory / name).write_bytes(os.urandom(6 * MIB + 1000))
    return directory


@contextmanager
def watching(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """`cowfs top --json ARGUMENTS`, which has begun to count."""
    with subprocess.Popen(
        [COWFS, "top", "--json", "--interval", "0.3", *arguments],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            process.stdout.readline()
            yield process
        finally:
            process.kill()


def end(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """Have it end after a look that begins now; all looks since `watching` began."""
    assert process.stdout is not None
    now = time.time()
    looks = []
    while not looks or looks[-1]["time"] - looks[-1]["seconds"] < now:
        looks.append(json.loads(process.stdout.readline()))
    os.kill(process.pid, signal.SIGINT)
    looks += [json.loads(line) for line in process.stdout]
    assert process.wait(30) == 0
    return looks


Key = tuple[int, str]


def summed(looks: list[dict[str, Any]]) -> dict[Key, dict[str, int]]:
    """What each thread has done with each file, over all looks."""
    found: dict[Key, dict[str, int]] = {}
    for row in (row for look in looks for row in look["rows"]):
        one = found.setdefault((row["tid"], row["file"]), {"pid": row["pid"]})
        assert one["pid"] == row["pid"]
        for field in ("reads", "read_bytes", "writes", "written_bytes", "faults"):
            one[field] = one.get(field, 0) + row[field]
    return found


def play(root: Path) -> dict[str, Any]:
    """Run the program to be watched in a copy; what it says of itself."""
    files = [root / "read", root / "mapped", root / "written"]
    done = subprocess.run(
        [sys.executable, WATCHED, *files], input="go\n", capture_output=True, text=True, check=True
    )
    said = json.loads(done.stdout)
    assert isinstance(said, dict)
    return said


@pytest.mark.quick
@pytest.mark.parametrize("options", ["passthrough=auto", "passthrough=off", "engine=overlay"])
def test_each_byte_is_told_of_its_thread_and_file(
    mount_plain: MountCopy, source: Path, options: str
) -> None:
    root = mount_plain(source, None, options)
    with watching(root) as process:
        said = play(root)
        looks = end(process)
    assert not any(look["missing"] or look["lost"] for look in looks)
    found = summed(looks)
    reader, mapper, writer = said["reader"], said["mapper"], said["writer"]
    served = options == "passthrough=off"

    read = found[reader["tid"], "read"]
    assert read["pid"] == said["pid"]
    assert abs(read["read_bytes"] - reader["bytes"]) <= reader["bytes"] / 100
    if not served:  # FUSE reads ahead, in pieces of its own
        assert reader["calls"] <= read["reads"] <= reader["calls"] + 1

    mapped = found[mapper["tid"], "mapped"]
    assert mapped["pid"] == said["pid"]
    # Those that are not of the file are few: of Python's own memory.
    assert mapper["faults"] * 0.9 - 10 <= mapped["faults"] <= mapper["faults"] + 2
    if served:  # its faults ask for what is not there
        assert abs(mapped["read_bytes"] - mapper["bytes"]) <= mapper["bytes"] / 100
    else:
        assert mapped["read_bytes"] == 0

    written = found[writer["pid"], "written"]
    assert written["pid"] == writer["pid"]
    assert abs(written["written_bytes"] - writer["bytes"]) <= writer["bytes"] / 100

    mine = {said["pid"], writer["pid"]}
    assert {tid for tid, _ in found} <= {reader["tid"], mapper["tid"], *mine}
    assert {path for _, path in found} <= {"read", "mapped", "written"}


def test_who_shares_a_template_is_told_together(mount_plain: MountCopy, source: Path) -> None:
    roots = [mount_plain(source) for _ in range(2)]
    with watching(roots[1]) as process:
        (roots[1] / "read").read_bytes()
        (roots[1] / "own").write_bytes(bytes(MIB))
        rows = [row for look in end(process) for row in look["rows"]]
    [shared] = [row for row in rows if row["file"] == "read" and row["tid"] == os.getpid()]
    assert shared["mountpoint"] is None
    assert shared["mountpoints"] == sorted(map(str, roots))
    assert (shared["cgroup"] is not None) == bool(Path("/proc/self/cgroup").read_text())
    [own] = [row for row in rows if row["file"] == "own"]
    assert own["mountpoint"] == str(roots[1])


def test_of_several_copies_only_what_is_asked_for(mount_plain: MountCopy, source: Path) -> None:
    root = mount_plain(source)
    with watching("--directory", "inner", "--pid", str(os.getpid()), root) as process:
        (root / "inner/third").read_bytes()
        (root / "read").read_bytes()
        run("cat", root / "inner/third")
        found = summed(end(process))
    assert set(found) == {(os.getpid(), "inner/third")}


def test_it_goes_on_with_the_next_daemon(mount_plain: MountCopy, source: Path) -> None:
    root = mount_plain(source, None, "passthrough=off")
    pid = mount_plain.daemon_pid(root)
    with watching(root) as process:
        os.kill(pid, signal.SIGKILL)
        mount_plain.wait_until_served(root, other_than=pid)
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.readline()
        (root / "read").read_bytes()
        found = summed(end(process))
    assert found[os.getpid(), "read"]["read_bytes"] == 6 * MIB + 1000


def maps_of(pid: int) -> set[int]:
    """The BPF maps that a process has, by number. Each program keeps those that it uses."""
    found = set()
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        for line in info.read_text().splitlines():
            if line.startswith("map_id:"):
                found.add(int(line.split()[1]))
    return found


def is_there(map_id: int) -> bool:
    """Whether anybody, a program of the kernel's too, still has this map: BPF_MAP_GET_FD_BY_ID."""
    attributes = ctypes.create_string_buffer(struct.pack("=III", map_id, 0, 0))
    fd = bpf.libc.syscall(ctypes.c_long(bpf.SYS_BPF), ctypes.c_int(14), attributes, 12)
    if fd >= 0:
        os.close(fd)
    return bool(fd >= 0)


def test_a_killed_one_leaves_nothing_and_another_goes_on(
    mount_plain: MountCopy, source: Path
) -> None:
    root = mount_plain(source)
    with watching(root) as one, watching(root) as other:
        maps = maps_of(one.pid)
        assert maps
        assert not maps & maps_of(other.pid)
        assert all(map(is_there, maps))
        one.kill()
        one.wait()
        deadline = time.monotonic() + 30  # the kernel frees them when it has time
        while any(map(is_there, maps)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (root / "read").read_bytes()
        assert summed(end(other))[os.getpid(), "read"]["read_bytes"] == 6 * MIB + 1000


def test_without_the_privilege_it_says_what_it_does_not_see(
    mount_plain: MountCopy, source: Path
) -> None:
    root = mount_plain(source, None, "passthrough=off")
    bounded = ("setpriv", "--bounding-set=-bpf,-perfmon,-sys_admin", "--inh-caps=-all")
    with subprocess.Popen(
        [*bounded, COWFS, "top", "--json", "--interval", "0.3", "--count", "4", root],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (root / "read").read_bytes()
        looks = [json.loads(line) for line in process.stdout]
    assert all("no BPF" in look["missing"][0] for look in looks)
    assert summed(looks)[os.getpid(), "read"]["read_bytes"] == 6 * MIB + 1000


def test_one_look_below_the_other(mount_plain: MountCopy, source: Path) -> None:
    root = mount_plain(source)
    shown = cowfs("top", "-C", "--interval", "0.1", "--count", "2", root).stdout
    assert shown.count("TID") == 2
    assert "\x1b" not in shown


def test_wrong_calls_are_refused(mount_plain: MountCopy, source: Path) -> None:
    root = mount_plain(source)
    for words in (("--all", root), ("--sort", "size", root), (source,)):
        refused = cowfs("top", *words, check=False)
        assert refused.returncode == 1
        one_error(refused)
    user = ("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups")
    refused = run(*user, COWFS, "top", root, check=False)
    assert refused.returncode == 1
    assert "run cowfs as root" in one_error(refused)
