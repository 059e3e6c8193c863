"""Files that programs change in place are cloned before their first reader has them."""

from __future__ import annotations

import errno
import itertools
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import duckdb
import lmdb
import pytest

from cowfs.overlay.inplace import HEAD_SIZE, InPlace
from integration.mounts import MountCopy
from integration.trees import MIB
from integration.volumes import Volume

SIZE = 2 * MIB
OLD, NEW = b"old!", b"new!"


def write(path: Path) -> None:
    with path.open("r+b", buffering=0) as file:
        file.write(NEW)


def seen_by_an_older_reader(path: Path) -> bytes:
    with path.open("rb", buffering=0) as reader:
        write(path)
        return os.pread(reader.fileno(), 4, 0)


@pytest.fixture
def source(xfs: Path) -> Path:
    path = xfs / "source"
    path.mkdir()
    for name in ("train.log", "weights.bin", "model.h5"):
        (path / name).write_bytes(OLD * (SIZE // 4))
    (path / "database").write_bytes(b"SQLite format 3\0".ljust(SIZE, b"\0"))
    return path


@pytest.mark.parametrize(
    ("options", "coherent"),
    [
        ((), {"train.log", "database"}),
        (("inplace=*.h5",), {"train.log", "database", "model.h5"}),
        (("clone=write",), set()),
        (("clone=open",), {"train.log", "database", "model.h5", "weights.bin"}),
        (("share_min=1G",), {"train.log", "database", "model.h5", "weights.bin"}),
    ],
)
def test_their_readers_see_what_is_written_later(
    mount_plain: MountCopy, source: Path, options: tuple[str, ...], coherent: set[str]
) -> None:
    copy = mount_plain(source, None, "passthrough=on", *options)
    names = sorted(path.name for path in source.iterdir())
    assert {name for name in names if seen_by_an_older_reader(copy / name) == NEW} == coherent
    assert all((source / name).read_bytes()[:4] != NEW for name in names)


def test_they_keep_their_number(mount_plain: MountCopy, source: Path) -> None:
    path = mount_plain(source, None, "passthrough=on") / "train.log"
    number = path.stat().st_ino
    assert seen_by_an_older_reader(path) == NEW
    assert path.stat().st_ino == number


def test_a_changed_attribute_does_not_hide_them(mount_plain: MountCopy, source: Path) -> None:
    path = mount_plain(source, None, "passthrough=on") / "train.log"
    path.chmod(0o600)
    renamed = path.rename(path.with_name("log"))  # by which it would not be known
    again = renamed.rename(path)
    assert seen_by_an_older_reader(again) == NEW


def _for_ever(act: Callable[[], object]) -> None:
    while True:
        act()


def fill(directory: Path) -> None:
    """Until there is no room for a block or an inode."""

    def until_full(act: Callable[[], object]) -> None:
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            _for_ever(act)

    with (directory / "filler").open("wb", buffering=0) as filler:
        until_full(lambda: filler.write(bytes(64 << 10)))
        until_full(lambda: filler.write(bytes(512)))
    numbers = itertools.count()
    until_full(lambda: (directory / f"empty{next(numbers)}").touch())


def test_a_full_volume_keeps_nobody_from_reading(
    mount_plain: MountCopy, small_xfs: Callable[..., Volume]
) -> None:
    volume = small_xfs(64)
    source = volume.mountpoint / "source"
    source.mkdir()
    (source / "train.log").write_bytes(OLD * (SIZE // 4))
    copy = mount_plain(source)
    fill(volume.mountpoint)
    assert (copy / "train.log").read_bytes() == OLD * (SIZE // 4)


def _lmdb(path: Path) -> Path:
    with lmdb.open(str(path)) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"a", b"b")
    return path / "data.mdb"


def _duckdb(path: Path) -> Path:
    with duckdb.connect(str(path)) as connection:
        connection.execute("create table t as select 1 as a")
    return path


def _sqlite(path: Path) -> Path:
    connection = sqlite3.connect(path)
    connection.execute("pragma journal_mode = wal")
    connection.execute("create table t (a)")
    connection.commit()
    connection.close()
    return path


@pytest.mark.parametrize("make", [_lmdb, _duckdb, _sqlite])
def test_what_real_programs_make_is_known(xfs: Path, make: Callable[[Path], Path]) -> None:
    path = make(xfs / "made")
    assert InPlace().is_known(b"made", path.read_bytes()[:HEAD_SIZE])
