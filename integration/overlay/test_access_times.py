"""Access times of files that the kernel reads by itself, as the options of the mount say.

It asks the mount that a backing file was opened by, not the copy's: mount_apart() of
cowfs/system/syscalls.py makes one that says the same.
"""

from __future__ import annotations

import json
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.command import cowfs
from integration.mounts import MountCopy

_LONG_AGO = 1_000_000_000 * 10**9


def _read(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        assert file.read(4096)


def _map(path: Path) -> None:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
        assert mapping[0] >= 0


def _moves(path: Path, access: Callable[[Path], None]) -> bool:
    before = path.stat().st_atime_ns
    access(path)
    return path.stat().st_atime_ns != before


@pytest.mark.parametrize("access", [_read, _map], ids=["read", "mmap"])
@pytest.mark.parametrize(
    ("options", "first", "second"),
    [
        ("noatime", False, False),
        ("relatime", True, False),
        ("rw", True, False),
        ("strictatime", True, True),
    ],
)
def test_reading_a_private_file_moves_its_access_time_as_the_mount_says(
    mount_plain: MountCopy,
    model: Path,
    options: str,
    first: bool,
    second: bool,
    access: Callable[[Path], None],
) -> None:
    weights = mount_plain(model, None, "passthrough=on", options) / "weights.bin"
    with weights.open("r+b") as file:
        file.write(b"private")
    os.utime(weights, ns=(_LONG_AGO, weights.stat().st_mtime_ns))
    assert _moves(weights, access) == first
    time.sleep(0.05)  # the kernel's clock for files ticks a hundred times a second, or more often
    assert _moves(weights, access) == second


@pytest.mark.parametrize("options", ["relatime", "strictatime", "noatime"])
def test_reading_a_shared_file_moves_no_access_time(
    mount_plain: MountCopy, model: Path, options: str
) -> None:
    """It would be that of every copy."""
    for path in model.iterdir():
        os.utime(path, ns=(_LONG_AGO, _LONG_AGO), follow_symlinks=False)
    copy = mount_plain(model, None, "passthrough=on", options)
    record = mount_plain.record(copy)
    tree = Path(record["store"]) / "templates" / record["template"] / "tree"
    for name in ("weights.bin", "config.json"):
        before = (tree / name).stat().st_atime_ns
        _read(copy / name)
        _map(copy / name)
        assert (tree / name).stat().st_atime_ns == before


@pytest.mark.parametrize("engine", ["fuse", "overlay"])
def test_what_cowfs_itself_lists_keeps_its_access_times(
    mount_plain: MountCopy, model: Path, engine: str
) -> None:
    (model / "layers" / "first").mkdir(parents=True)
    copy = mount_plain(model, None, f"engine={engine}")
    record = mount_plain.record(copy)
    (copy / "layers" / "first" / "mine").write_text("changed")
    (copy / "mine").mkdir()
    tree = Path(record["store"]) / "templates" / record["template"] / "tree"
    looked_at = [root / path for root in (copy, tree, model) for path in ("", "layers/first")]
    for path in looked_at:
        os.utime(path, ns=(_LONG_AGO, path.stat().st_mtime_ns))
    before = [path.stat().st_atime_ns for path in looked_at]
    [row] = [
        row
        for row in json.loads(cowfs("list", "--json", "--store", record["store"]).stdout)
        if row["mountpoint"] == str(copy)
    ]
    assert row["private_bytes"] > 0
    cowfs("check", "--all", "--store", record["store"], check=False)
    assert [path.stat().st_atime_ns for path in looked_at] == before
