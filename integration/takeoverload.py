"""Programs that use a mount while its daemon is killed, and see to it that nothing comes to light.

    python -m integration.takeoverload WORKER ROOT SOURCE SEED

runs one worker on the copy ROOT of the tree SOURCE (`make_source`) until its standard input ends.
Every call must do what it does on any filesystem: one that fails, or succeeds where it must not,
or shows something wrong, is a complaint, and the worker ends.  Its last words are JSON: see
`Report`.  Each worker has directories and files of its own to change.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import mmap
import os
import random
import select
import shutil
import subprocess
import sys
import time
import traceback
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from cowfs.system import syscalls
from integration.streams import Stream

MIB = 1 << 20
LARGE, CHUNK = 48 * MIB, MIB
SMALL, COPY_UPS, LISTED = 300, 60, 10_000
# A clone of more than 16 MiB is made in a thread, while other requests go on.
COPIED_UP = 20 * MIB
RECORD = 4096
# Calls that took less are not worth a line: seconds.
NOTED = 0.01

_libc = ctypes.CDLL(None, use_errno=True)

P = ParamSpec("P")
R = TypeVar("R")


def make_source(path: Path) -> Path:
    """A tree for every worker to find its place in."""
    path.mkdir()
    pattern = random.Random(1).randbytes(CHUNK)
    with (path / "large").open("wb") as file:
        for number in range(LARGE // CHUNK):
            file.write(number.to_bytes(8, "big") + pattern[8:])
    (path / "small").mkdir()
    for number in range(SMALL):
        (path / "small" / f"f{number}").write_bytes(_small(number))
    (path / "up").mkdir()
    with (path / "up" / "0").open("wb") as file:
        for number in range(COPIED_UP // CHUNK):
            file.write(number.to_bytes(8, "big") + pattern[8:])
    for number in range(1, COPY_UPS):
        run("cp", "--reflink=always", path / "up" / "0", path / "up" / str(number))
    (path / "listed").mkdir()
    for number in range(LISTED):
        (path / "listed" / f"entry-{number}").touch()
    for name in ("churn0", "churn1"):
        (path / name / "deep").mkdir(parents=True)
        for number in range(8):
            (path / name / f"old{number}").write_bytes(b"old")
    (path / "copied").mkdir()
    for number in range(40):
        (path / "copied" / f"d{number % 5}").mkdir(exist_ok=True)
        (path / "copied" / f"d{number % 5}" / f"f{number}").write_bytes(_small(number) * number)
    (path / "copied" / "link").symlink_to("d0/f0")
    return path


def _small(number: int) -> bytes:
    return f"small file {number}\n".encode() * 50


def run(*words: str | os.PathLike[str]) -> None:
    """A program that must have nothing to say."""
    done = subprocess.run([os.fspath(word) for word in words], capture_output=True, text=True)
    if done.returncode or done.stderr:
        raise Wrong(f"{words[0]} ended with {done.returncode}: {done.stderr}")


class Wrong(Exception):  # noqa: N818 -- what was seen
    """Something that no filesystem does."""


@dataclass
class Report:
    """*rounds*: how often the worker came around.  *reads*, *calls*: (start on the monotonic
    clock, duration), in seconds, of each that took long, of reading from a file that is open, and
    of all else."""

    worker: str
    rounds: int = 0
    complaints: list[str] = field(default_factory=list)
    reads: list[tuple[float, float]] = field(default_factory=list)
    calls: list[tuple[float, float]] = field(default_factory=list)


class Worker:
    def __init__(self, root: Path, source: Path, seed: int, report: Report) -> None:
        self.root = root
        self.source = source
        self.random = random.Random(seed)
        self.report = report

    def step(self) -> None:
        raise NotImplementedError

    def end(self) -> None:
        """Look whether all is as it was left."""

    def read(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return self._timed(self.report.reads, call, *args, **kwargs)

    def call(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return self._timed(self.report.calls, call, *args, **kwargs)

    def fails(self, number: int, call: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """The call must fail with that errno."""
        try:
            self.call(call, *args, **kwargs)
        except OSError as error:
            if error.errno == number:
                return
            raise
        raise Wrong(f"{call}{args} did not fail with {errno.errorcode[number]}")

    @staticmethod
    def _timed(
        into: list[tuple[float, float]], call: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        start = time.monotonic()
        try:
            return call(*args, **kwargs)
        finally:
            took = time.monotonic() - start
            if took > NOTED:
                into.append((start, took))


def check(seen: object, expected: object, what: object) -> None:
    if seen != expected:
        raise Wrong(f"{what}: {str(seen)[:300]}, not {str(expected)[:300]}")


def checksums(path: Path) -> list[int]:
    with path.open("rb") as file:
        return [zlib.crc32(chunk) for chunk in iter(lambda: file.read(CHUNK), b"")]


class Sequential(Worker):
    """Reads a large shared file that stays open."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.expected = checksums(self.source / "large")
        self.fd = os.open(self.root / "large", os.O_RDONLY)

    def step(self) -> None:
        for number, expected in enumerate(self.expected):
            data = self.read(os.pread, self.fd, CHUNK, number * CHUNK)
            check(zlib.crc32(data), expected, f"chunk {number} of large")
            time.sleep(0.001)
        if self.random.random() < 0.1:
            fd = self.call(os.open, self.root / "large", os.O_RDONLY)
            self.call(os.close, self.fd)
            self.fd = fd


class Mapped(Worker):
    """Reads it through a mapping, which outlives its descriptor."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.expected = checksums(self.source / "large")
        self.map = self._map()

    def _map(self) -> mmap.mmap:
        fd = self.call(os.open, self.root / "large", os.O_RDONLY)
        try:
            return mmap.mmap(fd, LARGE, mmap.MAP_SHARED, mmap.PROT_READ)
        finally:
            self.call(os.close, fd)

    def step(self) -> None:
        for number, expected in enumerate(self.expected):
            part = memoryview(self.map)[number * CHUNK : (number + 1) * CHUNK]
            check(self.read(zlib.crc32, part), expected, f"chunk {number} of the mapping")
            part.release()
            time.sleep(0.001)
        self.map.madvise(mmap.MADV_DONTNEED)
        if self.random.random() < 0.1:
            self.map.close()
            self.map = self._map()


class Small(Worker):
    """Opens, reads and closes small files of the template, and asks for names that are missing."""

    def step(self) -> None:
        number = self.random.randrange(SMALL)
        path = self.root / "small" / f"f{number}"
        fd = self.call(os.open, path, os.O_RDONLY)
        check(self.call(os.read, fd, 1 << 16), _small(number), path)
        check(self.call(os.fstat, fd).st_size, len(_small(number)), path)
        self.call(os.close, fd)
        self.fails(errno.ENOENT, os.stat, self.root / "small" / f"no{number}")
        self.fails(errno.ENODATA, os.getxattr, path, "user.none")


class Synced(Worker):
    """Appends records, and writes over them; what was synced must be there in the end."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.path = self.root / "synced"
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self.log: list[int] = []

    def step(self) -> None:
        number = self.random.randrange(1, 1 << 30)
        at = self.random.randrange(len(self.log) + 1) if len(self.log) < 256 else 0
        done = self.call(os.pwrite, self.fd, self._record(number, at), at * RECORD)
        check(done, RECORD, "bytes written")
        self.call(os.fsync, self.fd)
        self.log[at : at + 1] = [number]
        check(self.call(os.fstat, self.fd).st_size, len(self.log) * RECORD, "size of synced")

    @staticmethod
    def _record(number: int, at: int) -> bytes:
        return f"{number} {at}\n".encode().ljust(RECORD, b".")

    def end(self) -> None:
        data = self.path.read_bytes()
        check(len(data), len(self.log) * RECORD, "size of synced")
        for at, number in enumerate(self.log):
            check(data[at * RECORD :][:RECORD], self._record(number, at), f"record {at}")


class CopyUps(Worker):
    """Changes large files of the template, one after the other."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.expected = checksums(self.source / "up" / "0")
        self.changed: dict[int, int] = {}

    def step(self) -> None:
        number = self.random.randrange(COPY_UPS)
        path = self.root / "up" / str(number)
        at = self.random.randrange(COPIED_UP)
        fd = self.call(os.open, path, os.O_RDWR)
        self.call(os.pwrite, fd, bytes([at % 251]), at)
        self.call(os.close, fd)
        self.changed[number] = at
        with path.open("rb") as file:
            file.seek(at)
            check(self.call(file.read, 1), bytes([at % 251]), path)
            other = (at // CHUNK + 1) % len(self.expected)
            if number not in self.changed:
                data = os.pread(file.fileno(), CHUNK, other * CHUNK)
                check(zlib.crc32(data), self.expected[other], path)
        time.sleep(0.01)

    def end(self) -> None:
        for number, at in self.changed.items():
            fd = os.open(self.root / "up" / str(number), os.O_RDONLY)
            check(os.pread(fd, 1, at), bytes([at % 251]), f"byte {at} of up/{number}")
            check(os.fstat(fd).st_size, COPIED_UP, f"size of up/{number}")
            os.close(fd)


class Listing(Worker):
    """Lists a large directory while it changes: every name that stays comes once."""

    def step(self) -> None:
        directory = self.root / "listed"
        stream = Stream(directory)
        try:
            for _ in range(10):
                name = f"new-{self.random.randrange(1 << 40)}"
                stream.touched.add(name)
                self.call((directory / name).touch, exist_ok=False)
                stream.read(LISTED // 12)
                if self.random.random() < 0.5:
                    self.call(os.unlink, directory / name)
            check(stream.rest(), [], "names that came not once")
        finally:
            stream.close()


class CopiedIn(Worker):
    """Copies trees into the mount, as programs do."""

    def step(self) -> None:
        target = self.root / f"in-{self.random.randrange(1 << 40)}"
        source = self.source / "copied"
        if self.random.random() < 0.5:
            run("cp", "-a", source, target)
        else:
            target.mkdir()
            with subprocess.Popen(
                ["tar", "-C", source, "-cf", "-", "."], stdout=subprocess.PIPE
            ) as packer:
                assert packer.stdout is not None
                with packer.stdout:
                    done = subprocess.run(
                        ["tar", "-C", target, "-xf", "-"],
                        stdin=packer.stdout,
                        capture_output=True,
                        text=True,
                    )
            check((done.returncode, done.stderr, packer.returncode), (0, "", 0), "tar")
        run("diff", "-r", "--no-dereference", source, target)
        run("rm", "-r", target)


@dataclass
class _File:
    data: bytes
    mode: int
    xattrs: dict[str, bytes]
    links: int = 1


class Churn(Worker):
    """Makes, moves and removes names of every kind, and knows what must be there."""

    number = 0

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.top = self.root / f"churn{self.number}"
        self.fd = os.open(self.top, os.O_RDONLY | os.O_DIRECTORY)
        # By path below the top; a directory is None, a symlink its target.
        self.tree: dict[str, _File | str | None] = {"deep": None}
        for old in range(8):
            self.tree[f"old{old}"] = _File(b"old", 0o644, {})
        self.serial = 0

    def step(self) -> None:
        names = [name for name in dir(self) if name.startswith("do_")]
        getattr(self, self.random.choice(names))()

    # -- helpers

    def _new(self) -> str:
        self.serial += 1
        directory = self.random.choice([*self._paths(type(None)), ""])
        # Names come again: what is known of an earlier one must not be mixed up with it.
        while True:
            name = f"n{self.random.randrange(40)}"
            path = f"{directory}/{name}" if directory else name
            if path not in self.tree:
                return path
            directory = path if self.tree[path] is None else ""

    def _paths(self, kind: type | tuple[type, ...]) -> list[str]:
        return [path for path, what in self.tree.items() if isinstance(what, kind)]

    def _file(self) -> tuple[str, _File] | None:
        paths = self._paths(_File)
        if not paths:
            return None
        path = self.random.choice(paths)
        found = self.tree[path]
        assert isinstance(found, _File)
        return path, found

    def _at(self, path: str) -> str:
        return f"{self.top}/{path}"

    def _gone(self, path: str) -> None:
        found = self.tree.pop(path)
        if isinstance(found, _File):
            found.links -= 1

    # -- what is done

    def do_mkdir(self) -> None:
        if len(self._paths(type(None))) > 12:
            return
        path = self._new()
        self.call(os.mkdir, self._at(path), 0o750)
        self.tree[path] = None
        self.fails(errno.EEXIST, os.mkdir, self._at(path))

    def do_rmdir(self) -> None:
        path = self.random.choice(self._paths(type(None)) or [""])
        if not path:
            return
        if any(other.startswith(path + "/") for other in self.tree):
            self.fails(errno.ENOTEMPTY, os.rmdir, self._at(path))
            return
        self.call(os.rmdir, self._at(path))
        del self.tree[path]
        self.fails(errno.ENOENT, os.stat, self._at(path))

    def do_create(self) -> None:
        path = self._new()
        data = f"{path} {self.serial}".encode() * self.random.randrange(1, 400)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        fd = self.call(os.open, self._at(path), flags, 0o640)
        check(self.call(os.write, fd, data), len(data), path)
        self.call(os.close, fd)
        self.tree[path] = _File(data, 0o640, {})
        self.fails(errno.EEXIST, os.open, self._at(path), flags)

    def do_write(self) -> None:
        if (found := self._file()) is None:
            return
        path, file = found
        fd = self.call(os.open, self._at(path), os.O_RDWR | os.O_APPEND)
        more = f"more {self.serial}".encode()
        check(self.call(os.write, fd, more), len(more), path)
        file.data += more
        check(self.call(os.pread, fd, len(file.data) + 9, 0), file.data, path)
        if self.random.random() < 0.3:
            size = self.random.randrange(len(file.data))
            self.call(os.ftruncate, fd, size)
            file.data = file.data[:size]
        check(self.call(os.fstat, fd).st_size, len(file.data), path)
        self.call(os.close, fd)

    def do_unlink(self) -> None:
        path = self.random.choice(self._paths((_File, str)) or [""])
        if path:
            self.call(os.unlink, self._at(path))
            self._gone(path)
            self.fails(errno.ENOENT, os.unlink, self._at(path))

    def do_unlink_open(self) -> None:
        if (found := self._file()) is None:
            return
        path, file = found
        fd = self.call(os.open, self._at(path), os.O_RDWR)
        self.call(os.unlink, self._at(path))
        self._gone(path)
        for _ in range(3):
            check(self.call(os.pread, fd, len(file.data) + 9, 0), file.data, path)
            check(self.call(os.fstat, fd).st_nlink, file.links, f"links of {path}")
            self.call(os.pwrite, fd, b"tail", len(file.data))
            file.data += b"tail"
            self.call(os.fchmod, fd, 0o600)
            file.mode = 0o600
            time.sleep(self.random.random() * 0.02)
        self.call(os.close, fd)

    def do_rename(self) -> None:
        path = self.random.choice(list(self.tree) or [""])
        target = self._new()
        if not path or target.startswith(path + "/"):
            return
        flags = self.random.choice([0, syscalls.RENAME_NOREPLACE])
        self._rename(path, target, flags)
        self._moved(path, target)
        self.fails(errno.ENOENT, os.lstat, self._at(path))

    def do_rename_over(self) -> None:
        paths = self._paths((_File, str))
        if len(paths) < 2:
            return
        path, target = self.random.sample(paths, 2)
        first, second = self.tree[path], self.tree[target]
        if first is second:
            return  # two names of one file: rename(2) does nothing
        if self.random.random() < 0.3:
            args = (self.fd, os.fsencode(path), self.fd, os.fsencode(target))
            self.fails(errno.EEXIST, syscalls.renameat2, *args, syscalls.RENAME_NOREPLACE)
            return
        self._rename(path, target, 0)
        self._gone(target)
        self._moved(path, target)

    def do_exchange(self) -> None:
        if len(self.tree) < 2:
            return
        path, target = self.random.sample(list(self.tree), 2)
        if f"{path}/".startswith(f"{target}/") or f"{target}/".startswith(f"{path}/"):
            return
        self._rename(path, target, syscalls.RENAME_EXCHANGE)
        self._moved(path, "\0")
        self._moved(target, path)
        self._moved("\0", target)

    def _rename(self, path: str, target: str, flags: int) -> None:
        self.call(
            syscalls.renameat2, self.fd, os.fsencode(path), self.fd, os.fsencode(target), flags
        )

    def _moved(self, path: str, target: str) -> None:
        self.tree[target] = self.tree.pop(path)
        for below in [other for other in self.tree if other.startswith(path + "/")]:
            self.tree[target + below.removeprefix(path)] = self.tree.pop(below)

    def do_link(self) -> None:
        if (found := self._file()) is None:
            return
        path, file = found
        target = self._new()
        self.call(os.link, self._at(path), self._at(target))
        self.tree[target] = file
        file.links += 1
        check(self.call(os.stat, self._at(target)).st_nlink, file.links, f"links of {target}")

    def do_symlink(self) -> None:
        path = self._new()
        self.call(os.symlink, f"to {self.serial}", self._at(path))
        self.tree[path] = f"to {self.serial}"
        check(self.call(os.readlink, self._at(path)), self.tree[path], path)

    def do_tmpfile(self) -> None:
        path = self._new()
        fd = self.call(os.open, self.top, os.O_TMPFILE | os.O_RDWR, 0o600)
        data = f"unnamed {self.serial}".encode()
        check(self.call(os.write, fd, data), len(data), path)
        # With a descriptor of a directory it is linkat(2), which follows the link.
        self.call(
            os.link,
            f"/proc/self/fd/{fd}",
            self._at(path),
            src_dir_fd=self.fd,
            follow_symlinks=True,
        )
        self.call(os.close, fd)
        self.tree[path] = _File(data, 0o600, {})

    def do_chmod(self) -> None:
        if (found := self._file()) is not None:
            path, file = found
            file.mode = self.random.choice([0o600, 0o644, 0o755])
            self.call(os.chmod, self._at(path), file.mode)
            check(self.call(os.stat, self._at(path)).st_mode & 0o7777, file.mode, path)

    def do_xattr(self) -> None:
        if (found := self._file()) is None:
            return
        path, file = found
        name = f"user.n{self.random.randrange(3)}"
        if name in file.xattrs and self.random.random() < 0.5:
            self.call(os.removexattr, self._at(path), name)
            del file.xattrs[name]
            return
        value = str(self.random.random()).encode()
        if name in file.xattrs:
            self.fails(errno.EEXIST, os.setxattr, self._at(path), name, value, os.XATTR_CREATE)
            self.call(os.setxattr, self._at(path), name, value, os.XATTR_REPLACE)
        else:
            self.call(os.setxattr, self._at(path), name, value, os.XATTR_CREATE)
        file.xattrs[name] = value

    def do_list(self) -> None:
        directory = self.random.choice([*self._paths(type(None)), ""])
        above = f"{directory}/" if directory else ""
        expected = sorted(
            path.removeprefix(above)
            for path in self.tree
            if path.startswith(above) and "/" not in path.removeprefix(above)
        )
        seen = sorted(self.call(os.listdir, self._at(directory)))
        check(seen, expected, f"names in {directory or 'the top'}")

    def do_thin_out(self) -> None:
        while len(self.tree) > 60:
            self.do_unlink()
            if not self._paths((_File, str)):
                return

    def end(self) -> None:
        seen = {}
        for where, directories, files in os.walk(self.top):
            for name in (*directories, *files):
                path = os.path.relpath(os.path.join(where, name), self.top)
                seen[path] = os.lstat(os.path.join(where, name))
        check(sorted(seen), sorted(self.tree), f"what is in {self.top}")
        for path, what in self.tree.items():
            if isinstance(what, str):
                check(os.readlink(self._at(path)), what, path)
            elif isinstance(what, _File):
                check(Path(self._at(path)).read_bytes(), what.data, path)
                check(seen[path].st_mode & 0o7777, what.mode, f"mode of {path}")
                check(seen[path].st_nlink, what.links, f"links of {path}")
                names = os.listxattr(self._at(path))
                found = {name: os.getxattr(self._at(path), name) for name in names}
                check(found, what.xattrs, f"attributes of {path}")


class MoreChurn(Churn):
    number = 1


WORKERS: dict[str, type[Worker]] = {
    "sequential": Sequential,
    "mapped": Mapped,
    "small": Small,
    "synced": Synced,
    "copy-ups": CopyUps,
    "listing": Listing,
    "copied-in": CopiedIn,
    "churn": Churn,
    "more-churn": MoreChurn,
}


def _told_to_end() -> bool:
    return bool(select.select([0], [], [], 0)[0])


def main(name: str, root: Path, source: Path, seed: int) -> Report:
    report = Report(name)
    try:
        worker = WORKERS[name](root, source, seed, report)
        while not _told_to_end():
            worker.step()
            report.rounds += 1
        worker.end()
    except Exception:
        report.complaints.append(f"{name}, round {report.rounds}: {traceback.format_exc()}")
    return report


class Load:
    """Every worker, each in its process."""

    def __init__(self, root: Path, source: Path, seed: int, names: list[str] | None = None) -> None:
        self._processes = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "integration.takeoverload"),
                    *(name, str(root), str(source), str(seed + number)),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=Path(__file__).parent.parent,
            )
            for number, name in enumerate(names or WORKERS)
        ]

    def end(self, patience: float = 60) -> list[Report]:
        """Tell them to end, and hear what they have seen.

        A worker that does not end within so many seconds fails the test.
        """
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
            process.stdin = None
        reports = []
        try:
            for process in self._processes:
                said, _ = process.communicate(timeout=patience)
                assert process.returncode == 0, process.args
                reports.append(Report(**json.loads(said)))
        finally:
            self.kill()
        return reports

    def kill(self) -> None:
        for process in self._processes:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=2)
            if process.stdout is not None:
                process.stdout.close()


if __name__ == "__main__":
    assert shutil.which("tar")
    done = main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
    json.dump(asdict(done), sys.stdout)
