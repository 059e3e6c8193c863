"""How the helpers of mount(8) are called, and what they make of it; nothing is mounted."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Any

import pytest

from cowfs.commands import mounthelper, umounthelper
from cowfs.mount import launch, unmount
from cowfs.mount.options import parse
from cowfs.system.errors import InternalError, Interrupted, MountFailure, SystemFailure, UsageError


@pytest.fixture
def mounted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What launch.mount was called with: source, mountpoint, options, pretend."""
    calls: list[tuple[Any, ...]] = []

    def mount(source: str, mountpoint: str, options: Any, *, pretend: bool, **_: Any) -> int:
        calls.append((source, mountpoint, options, pretend))
        return 0

    monkeypatch.setattr(launch, "mount", mount)
    monkeypatch.setattr(mounthelper, "_note_for_umount", lambda *_, **__: None)
    return calls


@pytest.mark.parametrize("order", list(itertools.permutations(["/src", "-v", "-oro,noexec"])))
def test_options_stand_anywhere(mounted: list[tuple[Any, ...]], order: tuple[str, ...]) -> None:
    assert mounthelper.main([*order, "/mnt"]) == 0
    assert mounted == [("/src", "/mnt", parse(["ro,noexec"]), False)]


def test_all_that_mount_may_say_is_understood(mounted: list[tuple[Any, ...]]) -> None:
    arguments = ["/src", "/mnt", "-s", "-f", "-n", "-v", "-o", "rw,bogus", "-t", "fuse.cowfs"]
    assert mounthelper.main([*arguments, "-o", "copy=a\\,b"]) == 0
    assert mounted == [("/src", "/mnt", parse(["rw,copy=a\\,b"]), True)]


@pytest.mark.parametrize("main", [mounthelper.main, umounthelper.main])
@pytest.mark.parametrize("arguments", [[], ["a", "b", "c"], ["-z"], ["a", "b", "-N"]])
def test_a_wrong_call_is_one_line_with_the_right_one(
    main: Any, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    assert "usage: " in line
    assert "[-N NAMESPACE]" in line


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("wrong"), 1),
        (SystemFailure("wrong"), 2),
        (InternalError("wrong"), 4),
        (Interrupted("wrong"), 8),
        (MountFailure("wrong"), 32),
        (KeyboardInterrupt(), 8),
        (MemoryError(), 2),
        (ZeroDivisionError("what"), 4),
    ],
)
def test_every_failure_is_one_line_and_an_exit_code_of_mount(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
) -> None:
    def fail(*_: object, **__: object) -> int:
        raise error

    monkeypatch.setattr(launch, "mount", fail)
    monkeypatch.setattr(unmount, "unmount", fail)
    assert mounthelper.main(["/src", "/mnt"]) == umounthelper.main(["/mnt"]) == code
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["mount.cowfs", "umount.cowfs"]


def test_a_mountpoint_inside_its_source_is_refused(
    mounted: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert mounthelper.main(["/src", "/src/sub/dir"]) == 32
    assert "is inside the source /src" in capsys.readouterr().err
    assert mounted == []
    assert mounthelper.main(["/src", "/src"]) == 0  # in place of it
    assert mounthelper.main(["/src", "/src2"]) == 0


def test_a_namespace_that_is_not_there_is_refused(
    mounted: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert mounthelper.main(["/src", "/mnt", "-N", "/nowhere"]) == 32
    assert "cannot enter the mount namespace /nowhere" in capsys.readouterr().err
    assert mounthelper.main(["/src", "/mnt", "-N", "0"]) == 32
    assert mounted == []


def test_a_machine_without_mount_leaves_no_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounthelper, "_MOUNT", "/nowhere/mount")
    mounthelper._note_for_umount("/mnt", network=True)


@pytest.mark.parametrize("module", ["mounthelper", "umounthelper"])
def test_a_helper_imports_nothing_that_it_does_not_need(module: str) -> None:
    """Start-up is most of the time that it takes."""
    code = (
        f"import sys; from cowfs.commands import {module}\n"
        "heavy = {'click', 'rich', 'trio', 'pyfuse3', 'subprocess', 'asyncio', 'logging'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
