"""`cowfs stats`: what a mount has done, read out of memory, whoever serves it by now."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from integration.command import COWFS, cowfs, one_error, run
from integration.mounts import MountCopy
from integration.otherversion import OtherVersion

MIB = 1 << 20


@pytest.fixture
def source(xfs: Path) -> Path:
    """Two large files, and small ones."""
    directory = xfs / "source"
    directory.mkdir()
    for name in ("one", "two"):
        (directory / name).write_bytes(os.urandom(4 * MIB))
    for number in range(20):
        (directory / f"small{number}").write_text(str(number))
    return directory


def stats(mountpoint: Path, *options: str) -> dict[str, Any]:
    [found] = json.loads(cowfs("stats", "--json", *options, mountpoint).stdout)
    assert isinstance(found, dict)
    return found


@pytest.mark.quick
def test_what_a_program_does_is_counted(mount_plain: MountCopy, source: Path) -> None:
    root = mount_plain(source, None, "passthrough=off")
    before = stats(root)
    assert before["takeovers"] == 0
    assert before["passthrough"] is False

    (root / "one").read_bytes()
    (root / "new").write_bytes(bytes(3 * MIB))
    (root / "two").open("r+b").close()  # an open for writing makes it private
    (root / "two").read_bytes()
    for _ in range(5):
        (root / "small1").read_text()
    os.chmod(root / "small2", 0o600)
    with pytest.raises(OSError, match="No data"):
        os.getxattr(root / "one", "user.nothing")
    holder = (root / "one").open("rb")

    after = stats(root)
    holder.close()
    assert after["bytes"] == {
        "read_shared": 4 * MIB + 1,
        "read_private": 4 * MIB,
        "written": 3 * MIB,
        "copied": 0,
        "passed_through": 0,
    }
    assert after["copy_ups"] - before["copy_ups"] == 2
    assert after["clones"]["count"] >= 2
    assert 0 < after["clones"]["max_seconds"] <= after["clones"]["seconds"]
    assert after["opens"]["answered_by_channel"] >= 4
    assert after["opens"]["count"] > after["opens"]["answered_by_channel"]
    assert after["requests"]["GETXATTR"]["failed"] >= 1
    assert after["requests"]["WRITE"]["count"] >= 3
    assert after["open_files"] == 1
    assert after["handles"] == 1
    assert after["handles_passed_through"] == 0
    assert after["nodes"] >= 5
    assert after["daemon_memory"] > MIB
    assert after["keeper_memory"] > MIB
    assert after["cpu_seconds"] > 0


def test_passed_through_bytes_are_said_to_be_unseen(mount_plain: MountCopy, source: Path) -> None:
    root = mount_plain(source)
    with (root / "one").open("rb") as file:
        file.read()
        found = stats(root)
        assert found["handles_passed_through"] == 1
        shown = cowfs("stats", root).stdout
    assert found["passthrough"] is True
    assert found["bytes"]["passed_through"] is None
    assert found["bytes"]["read_shared"] == 0
    assert "passed-through bytes are not seen here" in " ".join(shown.split())


def test_a_daemon_that_is_stopped_is_read_like_any_other(
    mount_plain: MountCopy, source: Path
) -> None:
    root = mount_plain(source, None, "passthrough=off")
    (root / "one").read_bytes()
    processes = [mount_plain.record(root)[f"{who}_pid"] for who in ("keeper", "daemon")]
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    try:
        assert stats(root)["bytes"]["read_shared"] == 4 * MIB
    finally:
        for pid in processes:
            os.kill(pid, signal.SIGCONT)


def numbers(found: Any) -> dict[str, float]:
    """All that only grows, by where it stands."""
    grown = {
        f"requests.{name}.{field}": value
        for name, one in found["requests"].items()
        for field, value in one.items()
    }
    for group in ("bytes", "clones", "opens"):
        grown |= {f"{group}.{name}": value or 0 for name, value in found[group].items()}
    return grown | {name: found[name] for name in ("takeovers", "copy_ups", "cpu_seconds")}


def test_nothing_goes_back_when_daemons_are_killed(mount_plain: MountCopy, source: Path) -> None:
    root = mount_plain(source, None, "passthrough=off")
    last = numbers(stats(root))
    with subprocess.Popen(
        [COWFS, "stats", "--json", "--interval", "0.1", root], stdout=subprocess.PIPE, text=True
    ) as watching:
        assert watching.stdout is not None
        for kill in range(3):
            (root / f"new{kill}").write_bytes(bytes(MIB))
            (root / f"small{kill}").write_text("changed")
            pid = mount_plain.daemon_pid(root)
            os.kill(pid, signal.SIGKILL)
            mount_plain.wait_until_served(root, other_than=pid)
            (root / "one").read_bytes()
        end = numbers(stats(root))
        os.kill(watching.pid, signal.SIGINT)
        samples = [numbers(json.loads(line)) for line in watching.stdout]
        assert watching.wait(30) == 0
    for sample in [*samples, end]:
        went_back = [name for name, value in last.items() if sample[name] < value]
        assert not went_back
        last = sample
    assert end["takeovers"] == 3
    assert end["bytes.written"] >= 3 * MIB + 3 * len("changed")
    assert end["copy_ups"] == 3


def test_counters_pass_to_another_version_and_back(
    mount_plain: MountCopy, source: Path, tmp_path: Path
) -> None:
    other = OtherVersion(tmp_path / "other", "99.1")
    root = mount_plain(source, None, "passthrough=off")
    (root / "one").read_bytes()
    run(*other.command("upgrade", root), cwd="/")
    (root / "two").read_bytes()
    cowfs("upgrade", root)
    found = stats(root)
    assert found["takeovers"] == 2
    assert found["bytes"]["read_shared"] == 8 * MIB


def test_columns_fit_a_terminal(mount_plain: MountCopy, source: Path) -> None:
    root = mount_plain(source)
    with subprocess.Popen(
        [COWFS, "stats", "--interval", "0.3", "--count", "2", root],
        stdout=subprocess.PIPE,
        text=True,
    ) as watching:
        assert watching.stdout is not None
        while watching.poll() is None:
            (root / "small1").read_text()
        groups, titles, *lines = watching.stdout.read().splitlines()
    assert watching.returncode == 0
    assert len(lines) == 2
    assert "bytes/s by backing" in groups
    assert titles.split()[1:5] == ["shared", "private", "written", "passed"]
    for line in (groups, titles, *lines):
        assert len(line) <= 80
    cells = lines[-1].split()
    assert cells[4] == "unseen"
    assert int(cells[7]) > 0
    assert cells[8].endswith("%")


def test_it_ends_with_the_mount(mount_plain: MountCopy, source: Path) -> None:
    root = mount_plain(source)
    with subprocess.Popen(
        [COWFS, "stats", "--json", "--interval", "0.1", root], stdout=subprocess.PIPE, text=True
    ) as watching:
        assert watching.stdout is not None
        watching.stdout.readline()
        mount_plain.unmount(root)
        watching.communicate(timeout=30)
        assert watching.returncode == 0


_SERIES = re.compile(r'(cowfs_\w+)\{((?:\w+="(?:[^"\\\n]|\\[\\"n])*",?)+)\} ([0-9.e+-]+)')
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def exposed(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """The series of an exposition; fails on a line that is none."""
    found = {}
    typed = set()
    for line in text.splitlines():
        if line.startswith("#"):
            kind = re.fullmatch(r"# TYPE (\w+) (?:counter|gauge)", line)
            assert kind or re.fullmatch(r"# HELP \w+ \S.*", line), line
            typed |= {kind[1]} if kind else set()
            continue
        match = _SERIES.fullmatch(line)
        assert match, line
        assert match[1] in typed
        found[match[1], frozenset(_LABEL.findall(match[2]))] = float(match[3])
    return found


def test_prometheus_reads_it(mount_plain: MountCopy, source: Path, tmp_path: Path) -> None:
    odd = tmp_path / 'quo"te\\ and\nline'
    odd.mkdir()
    root = mount_plain(source, odd, "passthrough=off", "copy=odd")
    (root / "one").read_bytes()
    series = exposed(cowfs("stats", "--prometheus", root).stdout)
    escaped = str(odd).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    mount = {("mountpoint", escaped), ("copy", "odd")}
    read = {*mount, ("direction", "read"), ("backing", "shared")}
    assert series["cowfs_bytes_total", frozenset(read)] == 4 * MIB
    assert series["cowfs_requests_total", frozenset({*mount, ("request", "read")})] >= 4
    assert series["cowfs_takeovers_total", frozenset(mount)] == 0
    names = {name for name, _ in series}
    assert {"cowfs_cpu_seconds_total", "cowfs_resident_memory_bytes", "cowfs_nodes"} <= names


def test_overlayfs_counts_nothing_and_says_so(mount_plain: MountCopy, source: Path) -> None:
    root = mount_plain(source, None, "engine=overlay")
    found = stats(root)
    assert found["requests"] is None
    assert found["keeper_memory"] > 0
    assert "counts nothing" in cowfs("stats", root).stdout
    text = cowfs("stats", "--prometheus", root).stdout
    assert f'cowfs_cpu_seconds_total{{mountpoint="{root}"' in text
    assert f'cowfs_nodes{{mountpoint="{root}"' not in text


def test_all_mounts_are_told_apart(mount_plain: MountCopy, source: Path) -> None:
    roots = [mount_plain(source, None, "passthrough=off") for _ in range(2)]
    (roots[1] / "one").read_bytes()
    found = {one["mountpoint"]: one for one in json.loads(cowfs("stats", "--json").stdout)}
    read = [found[str(root)]["bytes"]["read_shared"] for root in roots]
    assert read == [0, 4 * MIB]


def test_wrong_calls_are_refused(mount_plain: MountCopy, source: Path, tmp_path: Path) -> None:
    root = mount_plain(source)
    for words in (
        ("--all", root),
        ("--prometheus", "--json", root),
        ("--count", "2", root),
        ("--interval", "0", root),
        (tmp_path,),
    ):
        refused = cowfs("stats", *words, check=False)
        assert refused.returncode == 1
        one_error(refused)
    user = ("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups")
    refused = run(*user, COWFS, "stats", root, check=False)
    assert refused.returncode == 1
    assert "run cowfs as root" in one_error(refused)
