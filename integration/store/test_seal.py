"""Sealing on a real XFS volume: the template is the source, or there is none."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cowfs.store import seal
from cowfs.store.store import Store, Template
from cowfs.system import jsonfile, syscalls
from cowfs.system.errors import CowfsError, MountFailure, SystemFailure
from cowfs.trees import cloning, workers
from cowfs.trees.cloning import Progress
from cowfs.trees.scan import Scan, Scanner, SourceChanged
from integration.trees import tree_state
from integration.volumes import Volume

SPARSE = 16 << 20  # bytes


@pytest.fixture
def store(xfs: Path) -> Iterator[Store]:
    with contextlib.closing(Store.for_source(str(xfs), None)) as store:
        yield store


def below(source: Path) -> Iterator[Path]:
    """Everything in it. Path.rglob() fails for the long symlink, in Python before 3.11.4."""
    for where, directories, files in os.walk(source):
        yield from (Path(where, name) for name in (*directories, *files))


@pytest.fixture
def source(xfs: Path) -> Path:
    """A directory with one of everything that a template can hold."""
    source = xfs / "source"
    (source / "sub" / "deeper").mkdir(parents=True)
    (source / "empty").mkdir()
    (source / "weights").write_bytes(os.urandom(300_000))
    (source / "nothing").write_bytes(b"")
    with (source / "sparse").open("wb") as file:
        file.truncate(SPARSE)
        file.seek(SPARSE // 2)
        file.write(b"island")
    (source / os.fsdecode(b"\xff\xfe \n")).write_bytes(b"odd name")
    (source / "odd \udcff").mkdir()
    (source / "link").symlink_to("inside/\udcff")
    (source / "sub" / "dangling").symlink_to("x" * 1000)
    os.mkfifo(source / "fifo", 0o640)
    os.mknod(source / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(source / "sub" / "block", stat.S_IFBLK | 0o600, os.makedev(7, 300))
    (source / "one name").write_text("linked")
    os.link(source / "one name", source / "sub" / "other name")
    os.link(source / "one name", source / "sub" / "deeper" / "third")
    os.link(source / "fifo", source / "sub" / "fifo")
    os.link(source / "link", source / "sub" / "link", follow_symlinks=False)
    for name, mode in (("weights", 0o4755), ("nothing", 0o000), ("sub", 0o3777), ("empty", 0o500)):
        (source / name).chmod(mode)
    for name in ("weights", "sub/dangling", "fifo", "empty"):
        os.chown(source / name, 1234, 5678, follow_symlinks=False)
    (source / "weights").chmod(0o6755)  # chown has cleared it
    os.setxattr(source / "weights", "user.note", b"\0\1\2")
    os.setxattr(source / "weights", b"user.\xff", b"odd name")
    os.setxattr(source / "nothing", "user.big", b"x" * 40_000)
    os.setxattr(source / "sub", "trusted.mine", b"x")
    os.setxattr(source / "link", "trusted.link", b"x", follow_symlinks=False)
    os.setxattr(source / "fifo", "trusted.fifo", b"x")
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    os.setxattr(source / "sparse", "security.capability", capability)
    subprocess.run(["setfacl", "-m", "u:1:rwx,g:2:r", source / "weights"], check=True)
    subprocess.run(["setfacl", "-d", "-m", "u:1:rwx", source / "sub"], check=True)
    for index, path in enumerate(sorted(below(source))):
        times = (10**18 + index, 1_500_000_000_000_000_001 + index)
        os.utime(path, ns=times, follow_symlinks=False)
    os.utime(source, ns=(1, -1))
    return source


class Recorder:
    """A progress bar that remembers."""

    def __init__(self) -> None:
        self.total = self.done = self.size = 0

    def begin(self, files: int, size: int) -> None:
        self.total, self.size, self.done = files, size, 0

    def advance(self, files: int) -> None:
        self.done += files


def sealed(
    store: Store,
    source: Path,
    warn: Callable[[str], None] = pytest.fail,
    progress: Progress | None = None,
) -> Template:
    return seal.seal(store, str(source), progress=progress, warn=warn)


def is_immutable(path: Path) -> bool:
    fd = os.open(path, os.O_RDONLY)
    try:
        return bool(syscalls.get_file_flags(fd) & syscalls.FS_IMMUTABLE_FL)
    finally:
        os.close(fd)


def physical(path: Path) -> list[int]:
    with path.open("rb") as file:
        return [extent.physical for extent in syscalls.fiemap(file.fileno())]


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """Every worker has ended, and was waited for."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    before = children.read_text()
    yield
    assert children.read_text() == before


def assert_nothing_half_made(store: Store) -> None:
    for part in ("templates", "partial", "trash"):
        assert os.listdir(Path(store.path) / part) == []


def many_files(path: Path, count: int = 3000) -> Path:
    """Enough for several processes, with a directory that is many chunks."""
    for index in range(count):
        directory = path / ("big" if index % 2 else f"d{index % 50}")
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"f{index}").write_bytes(b"%d" % index)
    return path


# --- what a template is ---------------------------------------------------------------------------


@pytest.mark.quick
def test_template_is_the_source_with_every_attribute(store: Store, source: Path) -> None:
    before = tree_state(source)
    template = sealed(store, source)
    assert tree_state(Path(template.tree)) == before
    assert tree_state(source) == before, "the source is only read"
    for path in below(source):
        if not path.is_symlink() and path.is_file():
            assert is_immutable(Path(template.tree) / path.relative_to(source))
    assert (Path(template.tree) / "sparse").stat().st_blocks < 1000
    assert physical(Path(template.tree) / "weights") == physical(source / "weights")
    assert template.source == str(source)
    assert template.entries == len(before)
    assert sorted(map(sorted, template.hard_links)) == [
        [b"fifo", b"sub/fifo"],
        [b"link", b"sub/link"],
        [b"one name", b"sub/deeper/third", b"sub/other name"],
    ]
    assert template.bytes == 300_000 + SPARSE + len("odd name") + len("linked")


def test_template_made_by_several_processes_is_the_source_too(store: Store, source: Path) -> None:
    many_files(source / "many")
    before = tree_state(source)
    recorder = Recorder()
    template = sealed(store, source, progress=recorder)
    assert tree_state(Path(template.tree)) == before
    assert is_immutable(Path(template.tree) / "many" / "big" / "f2999")
    assert recorder.done == recorder.total > 3000
    assert recorder.size == template.bytes


def test_template_is_found_again_and_read_back(store: Store, source: Path) -> None:
    template = sealed(store, source)
    inode = os.stat(template.tree).st_ino
    assert sealed(store, source) == template
    assert os.stat(template.tree).st_ino == inode
    assert store.templates() == [template]
    assert seal.fingerprint(store, str(source)) == template.id
    assert os.listdir(Path(store.path) / "partial") == []


def test_template_of_an_earlier_state_goes_when_no_copy_needs_it(
    store: Store, source: Path
) -> None:
    first = sealed(store, source)
    copy = store.acquire("kept", str(source), persistent=True, prepare=lambda: first)
    (source / "weights").write_bytes(b"second")
    second = sealed(store, source)
    assert {template.id for template in store.templates()} == {first.id, second.id}
    copy.release()
    store.remove("kept")
    (source / "weights").write_bytes(b"third state")
    third = sealed(store, source)
    assert [template.id for template in store.templates()] == [third.id]


def test_change_within_one_tick_of_the_clock_makes_another_template(
    store: Store, source: Path
) -> None:
    (source / "weights").write_bytes(b"1")
    first = sealed(store, source)
    (source / "weights").write_bytes(b"2")
    second = sealed(store, source)
    assert first.id != second.id
    assert (Path(second.tree) / "weights").read_bytes() == b"2"


def test_marks_of_overlays_are_not_copied(store: Store, source: Path) -> None:
    os.setxattr(source / "sub", "trusted.overlay.opaque", b"y")
    os.setxattr(source / "weights", "trusted.cowfs.ino", b"x")
    template = sealed(store, source)
    assert "trusted.overlay.opaque" not in os.listxattr(os.path.join(template.tree, "sub"))
    assert "trusted.cowfs.ino" not in os.listxattr(os.path.join(template.tree, "weights"))
    assert "trusted.mine" in os.listxattr(os.path.join(template.tree, "sub"))


def test_139_gb_of_sparse_files_take_less_than_half_a_second(store: Store, xfs: Path) -> None:
    source = xfs / "big"
    source.mkdir()
    for index in range(30):
        with (source / f"model-{index}").open("wb") as file:
            file.truncate(139 * 10**9 // 30)
            for place in range(0, 4 * 10**9, 10**8):
                file.seek(place)
                file.write(b"real extent")
    os.sync()
    started = time.monotonic()
    template = sealed(store, source)
    assert time.monotonic() - started < 0.5
    assert template.bytes > 138 * 10**9
    assert (Path(template.tree) / "model-29").stat().st_blocks * 512 < 10**6


def test_tree_deeper_than_a_path_can_be_long_is_sealed_and_removed(store: Store, xfs: Path) -> None:
    (xfs / "deep").mkdir()
    fd = os.open(xfs / "deep", os.O_RDONLY)
    for index in range(60):
        name = f"{index:02}".ljust(200, "x")
        os.mkdir(name, dir_fd=fd)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0o640, dir_fd=fd))
        deeper = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    os.close(fd)
    template = sealed(store, xfs / "deep")
    assert template.entries == 121
    shutil.rmtree(xfs / "deep")
    store.collect()
    assert_nothing_half_made(store)


# --- what is left out -----------------------------------------------------------------------------


def test_sockets_and_whiteouts_are_left_out_with_a_warning(store: Store, source: Path) -> None:
    before = tree_state(source)
    for name in ("whiteout", "sub/whiteout"):
        os.mknod(source / name, stat.S_IFCHR, 0)
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(source)
        try:
            listener.bind("socket")
        finally:
            os.chdir("/")
    os.utime(source / "sub", ns=(1, before["sub"].mtime_ns or 0))
    os.utime(source, ns=(1, -1))
    warnings: list[str] = []
    template = sealed(store, source, warn=warnings.append)
    assert tree_state(Path(template.tree)) == before
    assert len(warnings) == 2
    assert f"{source}/socket" in warnings[0]
    assert f"{source}/whiteout" in warnings[1]
    assert f"{source}/sub/whiteout" in warnings[1]
    assert template.entries == len(before)


def test_mounts_are_left_out_with_one_warning(
    store: Store, source: Path, xfs: Path, tmp_path: Path
) -> None:
    """Another filesystem, a directory of the same one, and a file."""
    (source / "bind").mkdir()
    (source / "tmpfs").mkdir()
    (source / "file").write_text("hidden")
    (xfs / "elsewhere").mkdir()
    (xfs / "elsewhere" / "secret").write_text("x")
    with contextlib.ExitStack() as stack:
        for command in (
            ["mount", "-t", "tmpfs", "none", source / "tmpfs"],
            ["mount", "--bind", xfs / "elsewhere", source / "bind"],
            ["mount", "--bind", xfs / "elsewhere" / "secret", source / "file"],
        ):
            subprocess.run(command, check=True)
            stack.callback(subprocess.run, ["umount", command[-1]], check=True)
        stack.callback(os.umask, os.umask(0o077))  # as a mount's processes have it
        warnings: list[str] = []
        template = sealed(store, source, warn=warnings.append)
        assert sealed(store, source, warn=warnings.append) == template
    tree = Path(template.tree)
    modes = [stat.S_IMODE((tree / name).stat().st_mode) for name in ("bind", "tmpfs", "file")]
    assert modes == [0o755, 0o755, 0o644], "users may look at what stands in for a mount"
    assert list((tree / "bind").iterdir()) == []
    assert list((tree / "tmpfs").iterdir()) == []
    assert (tree / "file").read_bytes() == b""
    assert len(warnings) == 2, "one for each time"
    for name in ("bind", "tmpfs", "file"):
        assert f"{source}/{name}" in warnings[0]
    assert sealed(store, source) != template, "what was hidden belongs to it now"


def test_store_in_the_source_is_left_out(xfs: Path) -> None:
    """Of this test's own, so that the source is small."""
    (xfs / "file").write_text("x")
    with contextlib.closing(Store.for_source(str(xfs), str(xfs / "store"))) as store:
        template = sealed(store, xfs)
        assert os.listdir(template.tree) == ["file"]
        assert sealed(store, xfs) == template


# --- what cannot be sealed ------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["", "templates", "copies"])
def test_source_in_the_store_is_refused(store: Store, place: str) -> None:
    with pytest.raises(MountFailure, match="is in the store"):
        sealed(store, Path(store.path) / place)


def test_source_that_is_missing_or_a_file_is_refused(store: Store, xfs: Path) -> None:
    with pytest.raises(MountFailure, match=f"{xfs}/none does not exist"):
        sealed(store, xfs / "none")
    (xfs / "file").write_text("x")
    with pytest.raises(MountFailure, match=f"{xfs}/file is not a directory"):
        sealed(store, xfs / "file")


@pytest.mark.parametrize("count", [10, 2000])
def test_source_that_keeps_changing_is_refused_and_the_file_named(
    store: Store, xfs: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = many_files(xfs / "source", count)
    clone_all = workers.clone_all

    def clone_and_write(*arguments: object) -> None:
        clone_all(*arguments)  # type: ignore[arg-type]
        with (source / "d0" / "f0").open("ab") as file:
            file.write(b"more")

    monkeypatch.setattr(workers, "clone_all", clone_and_write)
    monkeypatch.setattr(seal, "_PAUSE", 0)
    with pytest.raises(MountFailure, match=rf"keeps changing \({source}/d0/f0\)"):
        sealed(store, source)
    assert_nothing_half_made(store)


def test_source_that_changes_once_is_sealed_in_its_last_state(
    store: Store, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone_all = workers.clone_all
    later = iter(["new", "newer"])

    def clone_and_write(*arguments: object) -> None:
        clone_all(*arguments)  # type: ignore[arg-type]
        for name in later:
            (source / name).write_text(name)
            break

    monkeypatch.setattr(workers, "clone_all", clone_and_write)
    template = sealed(store, source)
    assert (Path(template.tree) / "newer").read_text() == "newer"
    assert [found.id for found in store.templates()] == [template.id]


@pytest.mark.parametrize("count", [0, 2000])
@pytest.mark.parametrize("what", ["symlink", "fifo", "directory", "nothing"])
def test_file_that_becomes_something_else_is_a_change(xfs: Path, what: str, count: int) -> None:
    """Its owner exchanges it between the scan and the clone. Nothing is followed, nothing hangs."""
    source = many_files(xfs / "source", count)
    source.mkdir(exist_ok=True)
    (source / "file").write_text("x")
    (xfs / "tree").mkdir()
    with Scanner(str(source), None) as scanner:
        found = scanner.scan()
        (source / "file").unlink()
        match what:
            case "symlink":
                (source / "file").symlink_to("/etc/shadow")
            case "fifo":
                os.mkfifo(source / "file")
            case "directory":
                (source / "file").mkdir()
        with pytest.raises(SourceChanged, match=r"^file$"):
            clone_scan(scanner, found, xfs / "tree")


def clone_scan(scanner: Scanner, found: Scan, tree: Path) -> None:
    fd = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.closing(cloning.Cloner(scanner.fd, fd, 0o777)) as cloner:
            cloner.make_directories(found.directories)
        workers.clone_all(scanner.fd, fd, cloning.chunks(found), lambda _: None)
    finally:
        os.close(fd)


def test_directory_that_becomes_a_symlink_is_a_change(xfs: Path) -> None:
    source = xfs / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "passwd").write_text("x")
    (xfs / "tree").mkdir()
    with Scanner(str(source), None) as scanner:
        found = scanner.scan()
        (source / "sub").rename(source / "away")
        (source / "sub").symlink_to("/etc")
        with pytest.raises(SourceChanged, match=r"^sub$"):
            clone_scan(scanner, found, xfs / "tree")


# --- ended early ----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [100, 3000])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_interrupted_sealing_leaves_nothing(
    store: Store, xfs: Path, count: int, error: type[BaseException]
) -> None:
    source = many_files(xfs / "source", count)

    class Interrupted(Recorder):
        def advance(self, files: int) -> None:
            super().advance(files)
            if self.done > self.total // 2:
                raise error

    with pytest.raises(error):
        sealed(store, source, progress=Interrupted())
    assert_nothing_half_made(store)


def test_killed_worker_is_told_and_leaves_nothing(
    store: Store, xfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = many_files(xfs / "source")
    clone_chunk = cloning.Cloner.clone_chunk

    def die(self: cloning.Cloner, piece: cloning.Chunk) -> None:
        clone_chunk(self, piece)
        if piece.directory.path == "d10":
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(cloning.Cloner, "clone_chunk", die)
    with pytest.raises(SystemFailure, match="killed"):
        sealed(store, source)
    assert_nothing_half_made(store)


@pytest.mark.parametrize("again", ["same state", "changed"])
def test_what_a_kill_leaves_is_cleaned_by_the_next_start(
    store: Store, xfs: Path, again: str
) -> None:
    source = many_files(xfs / "source", 600)

    class Killed(Recorder):
        def advance(self, files: int) -> None:
            super().advance(files)
            os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        try:
            sealed(store, source, progress=Killed())
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    [left] = os.listdir(Path(store.path) / "partial")
    assert left.startswith("template-")
    if again == "changed":
        (source / "more").write_text("x")
    copy = store.acquire(
        "next", str(source), persistent=False, prepare=lambda: sealed(store, source)
    )
    assert tree_state(Path(copy.template.tree)) == tree_state(source)
    assert len(store.templates()) == 1
    assert os.listdir(Path(store.path) / "partial") == []
    assert len(os.listdir(Path(store.path) / "trash")) == 1  # which others empty
    store.remove_rubbish()
    assert os.listdir(Path(store.path) / "trash") == []
    copy.discard()


def test_two_at_once_seal_once(store: Store, xfs: Path) -> None:
    source = many_files(xfs / "source", 400)
    made = xfs / "made"
    made.mkdir()
    pids = []
    for number in range(4):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                with contextlib.closing(Store.open(store.path)) as own:
                    recorder = Recorder()
                    template = sealed(own, source, progress=recorder)
                    (made / str(number)).write_text(f"{template.id} {recorder.done > 0}")
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 4
    results = [path.read_text().split() for path in made.iterdir()]
    [template] = store.templates()
    assert {result[0] for result in results} == {template.id}
    assert [result[1] for result in results].count("True") == 1
    assert os.listdir(Path(store.path) / "partial") == []


def fill_with_names(volume: Volume) -> None:
    """Fill it until not even a name fits: XFS keeps some blocks back for these."""
    volume.fill()
    directory = volume.mountpoint / "names"
    with contextlib.suppress(OSError):
        directory.mkdir()
        for number in range(100_000):
            (directory / str(number)).touch()


@pytest.mark.parametrize("count", [400, 6000])
def test_full_volume_is_told_and_left_clean(small_xfs: Callable[..., Volume], count: int) -> None:
    volume = small_xfs(64)
    source = many_files(volume.mountpoint / "source", count)
    with contextlib.closing(Store.for_source(str(source), None)) as store:
        fill_with_names(volume)
        with pytest.raises(MountFailure, match=r"no space left on the volume .* MiB") as caught:
            sealed(store, source)
        assert str(volume.mountpoint) in str(caught.value)
        assert_nothing_half_made(store)
        shutil.rmtree(volume.mountpoint / "names")
        assert tree_state(Path(sealed(store, source).tree)) == tree_state(source)


def test_io_error_names_the_volume(
    store: Store, source: Path, monkeypatch: pytest.MonkeyPatch, xfs_volume: Volume
) -> None:
    def fail(target: int, origin: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(syscalls, "ficlone", fail)
    with pytest.raises(MountFailure, match=f"I/O error on the volume {xfs_volume.mountpoint}"):
        sealed(store, source)
    assert_nothing_half_made(store)


def test_damaged_template_is_told_and_not_removed(store: Store, source: Path) -> None:
    template = sealed(store, source)
    fd = os.open(template.path, os.O_RDONLY)
    jsonfile.write(fd, "manifest.json", {"format": 1})
    os.close(fd)
    with pytest.raises(MountFailure, match=f"the template {template.path} is damaged"):
        sealed(store, source)
    assert os.path.isdir(template.tree)


def test_store_on_another_volume_is_refused(source: Path, small_xfs: Callable[..., Volume]) -> None:
    other = small_xfs(64)
    with contextlib.closing(Store.for_source(str(other.mountpoint), None)) as store:
        with pytest.raises(CowfsError, match="different volumes"):
            sealed(store, source)
        assert_nothing_half_made(store)
