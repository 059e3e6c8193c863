"""Readers of a shared file and a writer of the same name, in one copy and in several."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cowfs.system.syscalls import fiemap, set_immutable
from integration.conftest import Mode
from integration.mounts import MountCopy

MIB = 1 << 20
OLD, NEW = b"old!" * (MIB // 4), b"new!" * (MIB // 4)
FIEMAP_EXTENT_SHARED = 0x2000


@pytest.fixture
def source(xfs: Path) -> Path:
    """Two files of the same kind, above and below `share_min`."""
    path = xfs / "source"
    path.mkdir()
    (path / "large").write_bytes(OLD * 4)
    (path / "small").write_bytes(OLD[: MIB // 2])
    return path


@pytest.fixture
def two(mount_copy: MountCopy, source: Path) -> tuple[Path, Path]:
    """Two copies of it."""
    return mount_copy(source), mount_copy(source)


def write(path: Path) -> None:
    with path.open("r+b", buffering=0) as file:
        file.write(NEW[: MIB // 4])


def store_through_mapping(path: Path) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[: MIB // 4] = NEW[: MIB // 4]


def write_with_o_trunc(path: Path) -> None:
    path.write_bytes(NEW[: MIB // 4])


def truncate_then_write(path: Path) -> None:
    os.truncate(path, 0)
    with path.open("ab") as file:
        file.write(NEW[: MIB // 4])


@pytest.mark.parametrize("name", ["large", "small"])
@pytest.mark.parametrize(
    "change", [write, store_through_mapping, write_with_o_trunc, truncate_then_write]
)
def test_writer_comes_while_a_reader_has_the_file_open_and_mapped(
    two: tuple[Path, Path], source: Path, name: str, change: Callable[[Path], None], mode: Mode
) -> None:
    copy, other = two
    before = (copy / name).read_bytes()
    inode = (copy / name).stat().st_ino
    with (
        (copy / name).open("rb") as reader,
        mmap.mmap(reader.fileno(), 0, prot=mmap.PROT_READ) as mapped,
    ):
        assert mapped[:MIB] == before[:MIB]
        change(copy / name)
        assert (copy / name).read_bytes()[: MIB // 4] == NEW[: MIB // 4]
        # Two files that live at the same time never share a number.
        parted = name == "large" and mode == "passthrough"
        assert ((copy / name).stat().st_ino != inode) == parted
        assert os.fstat(reader.fileno()).st_ino == inode
        if name == "large" and os.fstat(reader.fileno()).st_size == len(before):
            # It keeps what it opened, or sees what was written: never a mixture of its own making.
            seen = os.pread(reader.fileno(), MIB // 4, 0)
            assert seen in (before[: MIB // 4], NEW[: MIB // 4])
            assert mapped[: MIB // 4] == seen
    assert (copy / name).read_bytes()[: MIB // 4] == NEW[: MIB // 4]
    assert (other / name).read_bytes() == before
    assert (source / name).read_bytes() == before


@pytest.mark.parametrize("name", ["large", "small"])
def test_reader_of_a_passed_through_file_keeps_its_bytes(
    mount_plain: MountCopy, source: Path, name: str
) -> None:
    copy = mount_plain(source, None, "passthrough=on", "share_min=1")
    before = (source / name).read_bytes()
    with (copy / name).open("rb") as reader:
        write_with_o_trunc(copy / name)
        assert os.fstat(reader.fileno()).st_size == len(before)
        assert reader.read() == before
    assert (copy / name).read_bytes() == NEW[: MIB // 4]


@pytest.mark.parametrize("options", [(), ("clone=open",), ("share_min=1",), ("share_min=1T",)])
def test_ten_writers_and_readers_at_once(
    mount_copy: MountCopy, source: Path, options: tuple[str, ...]
) -> None:
    copy = mount_copy(source, None, *options)
    errors: list[BaseException] = []
    gate = threading.Barrier(20)

    def run(act: Callable[[], None]) -> None:
        try:
            gate.wait()
            act()
        except BaseException as error:
            errors.append(error)

    def writer(number: int) -> Callable[[], None]:
        def act() -> None:
            with (copy / "large").open("r+b", buffering=0) as file:
                os.pwrite(file.fileno(), bytes([number]) * 4096, number * 4096)

        return act

    def reader() -> None:
        for _ in range(20):
            assert len((copy / "large").read_bytes()) == 4 * MIB

    threads = [threading.Thread(target=run, args=(writer(n),)) for n in range(10)]
    threads += [threading.Thread(target=run, args=(reader,)) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    data = (copy / "large").read_bytes()
    assert [data[n * 4096] for n in range(10)] == list(range(10))
    assert data[40960:] == (OLD * 4)[40960:]
    assert (source / "large").read_bytes() == OLD * 4


def test_clone_open_keeps_all_descriptors_together(mount_copy: MountCopy, source: Path) -> None:
    copy = mount_copy(source, None, "clone=open")
    with (copy / "large").open("rb", buffering=0) as reader:
        write(copy / "large")
        assert reader.read(MIB // 4) == NEW[: MIB // 4]


def test_first_write_shares_what_it_does_not_change(
    mount_plain: MountCopy, source: Path, xfs_volume: object
) -> None:
    copy = mount_plain(source)
    write(copy / "large")
    record = mount_plain.record(copy)
    private = Path(record["store"], "copies", record["copy"], "upper", "large")
    with private.open("rb") as file:
        extents = fiemap(file.fileno())
    shared = sum(e.length for e in extents if e.flags & FIEMAP_EXTENT_SHARED)
    own = sum(e.length for e in extents if not e.flags & FIEMAP_EXTENT_SHARED)
    assert shared >= 3 * MIB
    assert MIB // 4 <= own <= MIB


def test_template_refuses_to_be_written(mount_plain: MountCopy, source: Path) -> None:
    copy = mount_plain(source)
    record = mount_plain.record(copy)
    template = Path(record["store"], "templates", record["template"], "tree", "large")
    assert template.read_bytes() == OLD * 4
    with pytest.raises(PermissionError):
        template.open("r+b")


def test_the_kernel_itself_cannot_write_to_a_template(mount_plain: MountCopy, source: Path) -> None:
    """It opens a backing file again without asking for permissions, the immutable flag among them;
    so that flag is taken away here."""
    copy = mount_plain(source, None, "passthrough=on")
    record = mount_plain.record(copy)
    template = Path(record["store"], "templates", record["template"], "tree", "large")
    with template.open("rb") as file:
        set_immutable(file.fileno(), on=False)
        try:
            with (copy / "large").open("rb"):
                backing = [
                    link
                    for link in Path(f"/proc/{record['daemon_pid']}/fd").iterdir()
                    if link.exists() and link.samefile(template)
                ]
                assert backing
                for link in backing:
                    with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
                        link.open("r+b")
        finally:
            set_immutable(file.fileno(), on=True)


@pytest.mark.quick
def test_second_name_shows_what_was_written_through_the_first(
    mount_copy: MountCopy, source: Path
) -> None:
    copy = mount_copy(source)
    with (copy / "large").open("rb") as reader:
        os.link(copy / "large", copy / "second")
        assert (copy / "second").stat().st_size == 4 * MIB
        with (copy / "large").open("ab") as writer:
            writer.write(NEW)
        assert (copy / "second").stat().st_size == 5 * MIB
        assert (copy / "second").read_bytes() == OLD * 4 + NEW
        assert (copy / "second").stat().st_nlink == 2
        assert reader.read() in (OLD * 4, OLD * 4 + NEW)
    assert os.path.samefile(copy / "large", copy / "second")
