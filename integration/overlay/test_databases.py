"""Programs that lock, map and replace files under each other's hands: databases and model caches.

Several processes work in one copy, on files that the template has.
"""

from __future__ import annotations

import contextlib
import mmap
import shelve
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from integration.mounts import MountCopy
from integration.trees import MIB

PROCESSES = 4
ROUNDS = 25


def together(script: str, *args: str | Path) -> None:
    """Run as many processes of the same Python script; all of them must succeed."""
    command = [sys.executable, "-c", script, *map(str, args)]
    processes = [subprocess.Popen(command) for _ in range(PROCESSES)]
    assert [process.wait() for process in processes] == [0] * PROCESSES


_COUNT = """
import sqlite3, sys
with sqlite3.connect(sys.argv[1], timeout=100, isolation_level=None) as database:
    for _ in range(int(sys.argv[2])):
        database.execute("begin immediate")
        (number,) = database.execute("select number from counter").fetchone()
        database.execute("update counter set number = ?", (number + 1,))
        database.execute("insert into log values (?, randomblob(3000))", (number,))
        database.execute("commit")
"""


@pytest.fixture(params=["delete", "wal"])
def database(request: pytest.FixtureRequest, model: Path) -> Path:
    """A database of more than 1 MiB in the source, in each journal mode."""
    path = model / "database"
    connection = sqlite3.connect(path)
    connection.execute(f"pragma journal_mode = {request.param}")
    connection.execute("create table counter (number)")
    connection.execute("insert into counter values (0)")
    connection.execute("create table log (number unique, noise)")
    connection.execute("create table weights as select randomblob(2000000) as blob")
    connection.commit()
    connection.close()
    return path


def check(path: Path) -> list[int]:
    """The numbers in the log of a database that is sound."""
    connection = sqlite3.connect(path)
    assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
    numbers = [number for (number,) in connection.execute("select number from log order by 1")]
    assert connection.execute("select number from counter").fetchone() == (len(numbers),)
    connection.close()
    return numbers


def test_processes_count_in_one_database(mount_copy: MountCopy, database: Path) -> None:
    before = database.read_bytes()
    copy = mount_copy(database.parent)
    together(_COUNT, copy / "database", str(ROUNDS))
    assert check(copy / "database") == list(range(PROCESSES * ROUNDS))
    mount_copy.unmount(copy)
    mount_copy(database.parent, copy)
    assert check(copy / "database") == list(range(PROCESSES * ROUNDS))
    assert database.read_bytes() == before


def test_a_killed_writer_leaves_a_sound_database(mount_copy: MountCopy, database: Path) -> None:
    path = mount_copy(database.parent) / "database"
    for _ in range(3):
        known = len(check(path))
        with subprocess.Popen([sys.executable, "-c", _COUNT, path, "1000000"]) as process:
            with contextlib.closing(sqlite3.connect(path, timeout=100)) as reader:
                while _number(reader) == known:
                    time.sleep(0.01)
            process.kill()
        numbers = check(path)
        assert numbers == list(range(len(numbers)))
        assert len(numbers) > known


def _number(connection: sqlite3.Connection) -> int:
    (number,) = connection.execute("select number from counter").fetchone()
    return int(number)


_DOWNLOAD = """
import fcntl, hashlib, os, pathlib, sys, time
cache, data = pathlib.Path(sys.argv[1]), bytes(range(256)) * 8192
name = hashlib.sha256(data).hexdigest()
blob, part = cache / "blobs" / name, cache / "blobs" / (name + ".incomplete")
lock = os.open(cache / "lock", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
while True:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        break
    except BlockingIOError:
        time.sleep(0.01)
if not blob.exists():
    with part.open("ab") as file:
        while file.tell() < len(data):
            file.write(data[file.tell() : file.tell() + 100_000])
    assert part.read_bytes() == data
    with (cache / "downloads").open("a") as file:
        file.write("one\\n")
    os.replace(part, blob)
    os.symlink(os.path.join("..", "..", "blobs", name), cache / "snapshots" / "main" / "new")
fcntl.flock(lock, fcntl.LOCK_UN)
assert (cache / "snapshots" / "main" / "new").read_bytes() == data
"""


def test_a_model_hubs_cache_is_filled_once_by_all_of_its_users(
    mount_copy: MountCopy, model: Path
) -> None:
    (model / "blobs").mkdir()
    (model / "snapshots" / "main").mkdir(parents=True)
    (model / "weights.bin").rename(model / "blobs" / "old")
    (model / "snapshots" / "main" / "old").symlink_to("../../blobs/old")
    old = (model / "blobs" / "old").read_bytes()
    copy = mount_copy(model)
    together(_DOWNLOAD, copy)
    assert (copy / "downloads").read_text() == "one\n"
    assert (copy / "snapshots" / "main" / "old").read_bytes() == old
    assert sorted(path.name[-10:] for path in (copy / "blobs").iterdir()) == sorted(
        ["old", (copy / "snapshots" / "main" / "new").readlink().name[-10:]]
    )


def test_tensors_are_mapped_saved_and_replaced(mount_copy: MountCopy, model: Path) -> None:
    weights: dict[str, numpy.ndarray[Any, Any]] = {
        "a": numpy.arange(MIB, dtype=numpy.float32),
        "b": numpy.eye(8),
    }
    save_file(weights, model / "model.safetensors")
    path = mount_copy(model) / "model.safetensors"
    with safe_open(path, framework="np") as mapped, path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        old = bytes(memory)
        tuned = {name: tensor + 1 for name, tensor in load_file(path).items()}
        save_file(tuned, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)
        assert bytes(memory) == old
        assert numpy.array_equal(mapped.get_tensor("a"), weights["a"])
        memory.close()
    for name, tensor in load_file(path).items():
        assert numpy.array_equal(tensor, weights[name] + 1)
    assert numpy.array_equal(load_file(model / "model.safetensors")["a"], weights["a"])
    stored = numpy.memmap(path, mode="r+", dtype=numpy.uint8)
    stored[-4:] = 255
    stored.flush()
    assert path.read_bytes().endswith(b"\xff" * 4)


def test_a_shelf_of_the_source_goes_on_in_the_copy(mount_copy: MountCopy, model: Path) -> None:
    with shelve.open(str(model / "shelf")) as shelf:  # noqa: S301
        shelf.update({str(number): [number] for number in range(300)})
    copy = mount_copy(model)
    with shelve.open(str(copy / "shelf"), writeback=True) as shelf:  # noqa: S301
        for number in range(300):
            shelf[str(number)].append("more")
    mount_copy.unmount(copy)
    mount_copy(model, copy)
    with shelve.open(str(copy / "shelf"), "r") as shelf:  # noqa: S301
        assert dict(shelf) == {str(number): [number, "more"] for number in range(300)}
    with shelve.open(str(model / "shelf"), "r") as shelf:  # noqa: S301
        assert shelf["7"] == [7]
