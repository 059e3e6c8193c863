"""What a scan of a source finds, and whether it sees a change."""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cowfs.system import syscalls
from cowfs.trees import scan
from cowfs.trees.scan import Scan, Scanner, SourceChanged, first_difference


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = Path(os.path.realpath(tmp_path)) / "source"
    (source / "sub" / "deeper").mkdir(parents=True)
    (source / "file").write_bytes(b"12345")
    (source / "sub" / "one").write_bytes(b"x" * 100)
    os.link(source / "sub" / "one", source / "other")
    (source / "link").symlink_to("file")
    os.mkfifo(source / "fifo")
    return source


def scanned(source: Path, leave_out: tuple[int, int] | None = None) -> Scan:
    with Scanner(str(source), leave_out) as scanner:
        return scanner.scan()


def test_scan_sorts_entries_by_what_is_to_be_made_of_them(source: Path) -> None:
    os.link(source / "file", source.parent / "outside")
    found = scanned(source)
    assert [directory.path for directory in found.directories] == ["", "sub", "sub/deeper"]
    root = found.directories[0]
    assert root.files == ["file"], "its other name is outside"
    assert sorted(root.special) == ["fifo", "link"]
    assert root.subdirectories == ["sub"]
    [places] = found.links
    assert {place.directory.path_of(place.name) for place in places} == {"other", "sub/one"}
    assert found.entries == 8
    assert found.bytes == 105, "each file once"


CHANGES: dict[str, Callable[[Path], object]] = {
    "file": lambda source: (source / "file").write_bytes(b"123456"),
    "other": lambda source: os.utime(source / "sub" / "one", ns=(1, 1)),  # one of its names
    "new": lambda source: (source / "new").write_bytes(b""),
    "link": lambda source: (source / "link").unlink(),
    "fifo": lambda source: (source / "fifo").chmod(0o600),
    "sub/deeper/x": lambda source: (source / "sub" / "deeper" / "x").mkdir(),
}


@pytest.mark.parametrize("path", CHANGES)
def test_change_is_seen_and_named(source: Path, path: str) -> None:
    before = scanned(source)
    assert first_difference(before, scanned(source)) is None
    time.sleep(0.02)  # coarse clocks
    CHANGES[path](source)
    after = scanned(source)
    assert before.digest != after.digest
    assert first_difference(before, after) == path


def test_change_of_the_source_itself_is_seen(source: Path) -> None:
    before = scanned(source)
    time.sleep(0.02)
    source.chmod(0o700)
    assert first_difference(before, scanned(source)) == ""


def test_names_alone_make_a_difference(tmp_path: Path) -> None:
    """Two lists of names that are equal when they are written one after the other."""
    one, other = scan.Directory(), scan.Directory()
    one.names, other.names = ["ab", "c"], ["a", "bc"]
    before, after = Scan(), Scan()
    before.digest, after.digest = b"1", b"2"
    before.directories, after.directories = [one], [other]
    assert first_difference(before, after) is not None


def test_store_in_the_source_is_left_out(source: Path) -> None:
    before = scanned(source)
    times = source.stat()
    store = source / ".cowfs"
    (store / "templates").mkdir(parents=True)
    os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))
    st = store.stat()
    found = scanned(source, (st.st_dev, st.st_ino))
    assert ".cowfs" not in found.directories[0].names
    assert found.entries == before.entries


def test_sockets_are_left_out(source: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(source)
        try:
            listener.bind("socket")
        finally:
            os.chdir("/")
    found = scanned(source)
    assert [place.path for place in found.sockets] == ["socket"]
    assert "socket" not in found.directories[0].special


def test_recent_change_is_scanned_again_when_the_clock_has_moved_on(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Scanner(str(source), None) as scanner:
        (source / "file").write_bytes(b"now")
        found = scanner.settled()
        assert time.time_ns() - found.newest_ctime >= 10_000_000
        monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("nothing is recent any more"))
        scanner.settled()


def test_names_that_are_not_utf_8_are_kept(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff\n\xc3")).write_bytes(b"")
    found = scanned(Path(os.path.realpath(tmp_path)))
    assert found.directories[0].files == [os.fsdecode(b"\xff\n\xc3")]


def test_source_behind_a_symlink_is_not_followed(source: Path) -> None:
    (source.parent / "way").symlink_to(source)
    with pytest.raises(NotADirectoryError):
        Scanner(str(source.parent / "way"), None)


def test_directory_that_is_exchanged_for_a_symlink_is_a_change(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is exchanged after it was listed and before it is entered."""
    open_below = syscalls.open_below

    def exchange(dir_fd: int, path: bytes, flags: int, resolve: int = 0) -> int:
        if path == b"sub":
            (source / "sub").rename(source / "away")
            (source / "sub").symlink_to("/etc")
        return open_below(dir_fd, path, flags, resolve)

    with Scanner(str(source), None) as scanner:
        monkeypatch.setattr(syscalls, "open_below", exchange)
        with pytest.raises(SourceChanged, match="sub"):
            scanner.scan()


def nested(tmp_path: Path, depth: int) -> Path:
    """So many directories in each other, with names of 200 bytes and a file in each."""
    deep = Path(os.path.realpath(tmp_path)) / "deep"
    deep.mkdir()
    fd = os.open(deep, os.O_RDONLY)
    name = "x" * 200
    for _ in range(depth):
        os.mkdir(name, dir_fd=fd)
        deeper = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=fd))
    os.close(fd)
    return deep


def test_paths_longer_than_the_kernel_takes_are_scanned(tmp_path: Path) -> None:
    found = scanned(nested(tmp_path, 30))
    assert found.entries == 61
    last = found.directories[-1]
    assert last.path_of("file") == "x" * 200 + ("/" + "x" * 200) * 29 + "/file"
    assert scan.key_of_path(last.path_of("file")) == last.key_of("file")
    keys = {directory.key for directory in found.directories}
    assert len(keys) == 31, "each has its own"


def test_a_directory_costs_the_same_at_every_depth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bytes of names that are looked up, and in bytes that are kept."""
    source = nested(tmp_path, 100)
    looked_up = []
    openat2 = syscalls.openat2

    def counted(dir_fd: int, path: bytes, *args: int) -> int:
        looked_up.append(len(path))
        return openat2(dir_fd, path, *args)

    with Scanner(str(source), None) as scanner:
        monkeypatch.setattr(syscalls, "openat2", counted)
        found = scanner.scan()
    assert found.entries == 201
    assert sum(looked_up) < 100 * 250
    assert max(len(directory.key) for directory in found.directories) < syscalls.PATH_MAX


def test_fingerprint_is_the_one_that_templates_have_their_names_from(source: Path) -> None:
    """Another one would seal every source again, and part copies from their templates."""
    record, lengths = struct.Struct("<QQqq"), struct.Struct("<QQQ")

    def records(*paths: Path) -> bytes:
        looked_at = map(os.lstat, paths)
        return b"".join(
            record.pack(st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns) for st in looked_at
        )

    digest = hashlib.blake2b(records(source), digest_size=32)
    for place in ("", "sub", "sub/deeper"):
        names = sorted(os.listdir(source / place))
        own = records(*(source / place / name for name in names))
        text = "\0".join(names).encode()
        digest.update(lengths.pack(len(place), len(text), len(own)) + place.encode() + text + own)
    assert scanned(source).digest == digest.digest()
