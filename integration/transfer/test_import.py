"""`cowfs import` between real volumes: the tree is the source's, or there is none."""

from __future__ import annotations

import codecs
import errno
import itertools
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cowfs import copying
from cowfs.mount import probes
from cowfs.system import ondisk, syscalls
from cowfs.system.errors import CowfsError
from cowfs.transfer import filecopy, importing
from cowfs.transfer.importing import Options
from cowfs.trees import filedata
from integration.command import COWFS, Result
from integration.trees import Entry, differences, make_model, tree_state
from integration.volumes import MIB, Volume

pytestmark = pytest.mark.filesystems("xfs", "btrfs")

Cowfs = Callable[..., Result]
REGION = 1 << 20
USER = 1234
IO_URING_DISABLED = Path("/proc/sys/kernel/io_uring_disabled")  # Linux 6.6


@pytest.fixture
def source(outside: Path) -> Path:
    """A model with one of everything, which has small files and files of several regions."""
    model = make_model(outside / "model")
    os.mkfifo(model / "fifo", 0o640)
    os.mknod(model / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.link(model / "fifo", model / "tokenizer" / "fifo")
    os.link(model / "weights.bin", model / "tokenizer" / "weights.bin")
    os.setxattr(model / "weights.bin", b"user.\xff", b"odd")
    subprocess.run(["setfacl", "-m", "u:1:rwx", model / "config.json"], check=True)
    subprocess.run(["setfacl", "-d", "-m", "u:1:rwx", model / "many"], check=True)
    (model / os.fsdecode(b"\xff\xfe \n")).write_bytes(b"odd name")
    (model / "odd \udcff").mkdir()
    (model / "odd \udcff" / "in it").write_text("x")
    (model / "script.sh").chmod(0o4751)
    (model / "tokenizer").chmod(0o2555)
    os.utime(model, ns=(1, 1_234_567_890_123_456_789))
    return model


def seen(root: Path) -> dict[str, Entry]:
    """The tree without the second face that XFS gives to each ACL, and numbers of subdirectories,
    which btrfs does not count."""
    return {
        path: entry._replace(
            nlink=0 if stat.S_ISDIR(entry.mode) else entry.nlink,
            xattrs=tuple(x for x in entry.xattrs if not x[0].startswith("trusted.SGI_ACL_")),
        )
        for path, entry in tree_state(root).items()
    }


def assert_same(expected: Path, got: Path) -> None:
    assert differences(seen(expected), seen(got)) == ""


def bring(source: Path, destination: Path, **options: Any) -> importing.Result:
    """An import in this process, in small regions."""
    return importing.import_(
        str(source),
        str(destination),
        Options(**{"region": REGION, "jobs": 1, **options}),
        warn=pytest.fail,
        progress=None,
    )


def as_user(work: Callable[[], object]) -> str:
    """Do something as a user without rights; the error that it ends with, or nothing."""
    codecs.lookup("ascii")  # here: the user may not be allowed to read the interpreter's files
    assert copying.Ring
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setgroups([])
            os.setresgid(USER, USER, USER)
            os.setresuid(USER, USER, USER)
            work()
            code = 0
        except CowfsError as error:
            os.write(writer, str(error).encode())
            code = 0
        except BaseException as error:
            os.write(writer, repr(error).encode())
        finally:
            os._exit(code)
    os.close(writer)
    with open(reader) as stream:
        said = stream.read()
    assert os.waitpid(pid, 0)[1] == 0, said
    return said


class Stop(Exception):  # noqa: N818 -- what a signal's handler raises
    pass


def interrupted(
    monkeypatch: pytest.MonkeyPatch, source: Path, destination: Path, pieces: int
) -> None:
    """An import that ends like one that was interrupted, after so many pieces."""
    left = iter(range(pieces))
    copy = filecopy.Copier.copy

    def stop(self: filecopy.Copier, piece: filecopy.Piece) -> None:
        if next(left, None) is None:
            raise Stop
        copy(self, piece)

    with monkeypatch.context() as patched:
        patched.setattr(filecopy.Copier, "copy", stop)
        with pytest.raises(Stop):
            bring(source, destination)


# --- what is made ---------------------------------------------------------------------------------


@pytest.mark.quick
@pytest.mark.parametrize("ring", ["on", "off"])
def test_an_imported_tree_is_the_source(cowfs: Cowfs, source: Path, xfs: Path, ring: str) -> None:
    env = {"COWFS_IO_URING": ring}
    result = cowfs("import", "--region=1M", "--verify", source, xfs / "copy", env=env)
    assert result == (0, "", "")
    assert_same(source, xfs / "copy")
    assert os.listdir(xfs) == ["copy"]
    assert (xfs / "copy" / "sparse.bin").stat().st_blocks * 512 < MIB


def test_io_uring_that_the_kernel_refuses_is_done_without(
    source: Path, xfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(depth: int, block: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("cowfs.copying.Ring", refuse)
    bring(source, xfs / "copy")
    assert_same(source, xfs / "copy")


@pytest.fixture
def forbidden_io_uring() -> Iterator[None]:
    """The kernel refuses io_uring to everybody."""
    before = IO_URING_DISABLED.read_text()
    try:
        IO_URING_DISABLED.write_text("2")
        yield
    finally:
        IO_URING_DISABLED.write_text(before)


@pytest.mark.alone
@pytest.mark.usefixtures("forbidden_io_uring")
def test_an_import_where_io_uring_is_forbidden_brings_the_same(
    cowfs: Cowfs, source: Path, xfs: Path
) -> None:
    assert "kernel.io_uring_disabled" in (probes.io_uring() or "")
    result = cowfs("import", "--region=1M", "--verify", source, xfs / "copy")
    assert result == (0, "", "")
    assert_same(source, xfs / "copy")


def test_a_large_file_is_one_extent(outside: Path, xfs: Path) -> None:
    (outside / "source").mkdir()
    (outside / "source" / "large").write_bytes(os.urandom(MIB) * 48)
    bring(outside / "source", xfs / "copy", jobs=2)
    with (xfs / "copy" / "large").open("rb") as file:
        extents = syscalls.fiemap(file.fileno())
    joined = [
        after
        for before, after in itertools.pairwise(extents)
        if after.physical != before.physical + before.length
    ]
    assert len(joined) <= 1
    assert_same(outside / "source", xfs / "copy")


def test_a_source_on_the_same_volume_is_cloned(model: Path, xfs: Path) -> None:
    bring(model, xfs / "copy")
    assert_same(model, xfs / "copy")
    with (xfs / "copy" / "weights.bin").open("rb") as file:
        assert all(e.flags & syscalls.FIEMAP_EXTENT_SHARED for e in syscalls.fiemap(file.fileno()))


def test_a_large_file_takes_few_system_calls(outside: Path, xfs: Path, tmp_path: Path) -> None:
    sizes = (128, 320)  # both large enough for all processes
    calls = []
    for size in sizes:
        source = outside / str(size)
        source.mkdir()
        (source / "large").write_bytes(os.urandom(MIB) * size)
        log = tmp_path / source.name
        command = ["strace", "-f", "-o", log, COWFS, "import", source, xfs / source.name]
        subprocess.run(command, check=True, timeout=60)
        lines = log.read_text().splitlines()
        calls.append(sum(" resumed>" not in line for line in lines))
    # what the interpreter does to start is the same for both
    assert calls[1] - calls[0] < 1.5 * (sizes[1] - sizes[0])


@pytest.mark.alone
def test_large_files_stay_out_of_the_page_cache(outside: Path, xfs: Path) -> None:
    (outside / "source").mkdir()
    for name in ("warm", "cold"):
        (outside / "source" / name).write_bytes(os.urandom(8 * MIB + 100))
    os.sync()
    with (outside / "source" / "cold").open("rb") as cold:
        os.posix_fadvise(cold.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        bring(outside / "source", xfs / "copy")
        assert syscalls.cachestat(cold.fileno(), 0, 8 * MIB) == 0
    for name in ("warm", "cold"):
        with (xfs / "copy" / name).open("rb") as copied:
            assert syscalls.cachestat(copied.fileno(), 0, 8 * MIB) == 0
    assert_same(outside / "source", xfs / "copy")


def test_default_acls_and_setgid_of_the_place_are_not_inherited(source: Path, xfs: Path) -> None:
    subprocess.run(["setfacl", "-d", "-m", "u:7:rwx", xfs], check=True)
    os.chown(xfs, 0, 4321)
    xfs.chmod(0o2755)
    bring(source, xfs / "copy")
    assert_same(source, xfs / "copy")


def test_acls_that_only_nfs_knows_are_left_out(
    source: Path, xfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = ondisk.list_xattrs
    monkeypatch.setattr(ondisk, "list_xattrs", lambda where: [*listed(where), b"system.nfs4_acl"])
    bring(source, xfs / "copy")
    assert_same(source, xfs / "copy")


def test_a_mount_of_what_cannot_be_cloned_names_the_import(
    cowfs: Cowfs, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "mnt").mkdir()
    result = cowfs("mount", source, tmp_path / "mnt", check=False)
    assert result.returncode == 32
    assert f"cowfs import {source} /" in result.stderr
    assert not (source.parent.parent / ".cowfs").exists()


def test_sockets_are_left_out_with_a_warning(cowfs: Cowfs, source: Path, xfs: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(source / "socket"))
    result = cowfs("import", source, xfs / "copy")
    assert "warning: left out of the copy: sockets" in result.stderr
    (source / "socket").unlink()
    expected, got = seen(source), seen(xfs / "copy")
    assert differences({**expected, ".": got["."]}, got) == ""  # unlink has set its time


def test_json_lines_tell_the_progress_and_the_result(cowfs: Cowfs, source: Path, xfs: Path) -> None:
    result = cowfs("import", "--json", "--region=1M", source, xfs / "copy")
    *progress, last = map(json.loads, result.stdout.splitlines())
    assert last["event"] == "done"
    assert last["size"] == progress[0]["total_bytes"] == progress[-1]["bytes"]
    assert progress[-1]["files"] == progress[0]["total_files"]
    failed = cowfs("import", "--json", source, xfs / "copy", check=False)
    assert json.loads(failed.stdout)["event"] == "failed"
    assert json.loads(failed.stdout)["exit_code"] == failed.returncode == 1


# --- interrupted, and gone on with ----------------------------------------------------------------


@pytest.mark.parametrize("pieces", [1, 5, 40])
def test_resume_goes_on_without_copying_again_what_is_there(
    source: Path, xfs: Path, monkeypatch: pytest.MonkeyPatch, pieces: int
) -> None:
    interrupted(monkeypatch, source, xfs / "copy", pieces)
    assert os.listdir(xfs) == [".copy.cowfs-import"]
    copied = []
    copy = filecopy.Copier.copy

    def count(self: filecopy.Copier, piece: filecopy.Piece) -> None:
        copied.append(piece)
        copy(self, piece)

    monkeypatch.setattr(filecopy.Copier, "copy", count)
    bring(source, xfs / "copy", resume=True)
    assert_same(source, xfs / "copy")
    assert os.listdir(xfs) == ["copy"]
    done = [p for p in copied if isinstance(p, filecopy.Region)]
    everything = 4 + 64  # regions of weights.bin and sparse.bin
    assert len(done) == max(everything - pieces, 0)


def test_a_signal_leaves_a_state_that_resume_accepts(
    cowfs: Cowfs, outside: Path, xfs: Path
) -> None:
    source = outside / "source"
    source.mkdir()
    for number in range(6):
        (source / f"{number}.bin").write_bytes(os.urandom(MIB) * 32)
    for number in (signal.SIGTERM, signal.SIGINT):
        command = [COWFS, "import", "--json", "--region=1M", "--resume", source, xfs / "copy"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.send_signal(number)
        said = process.stderr.read().decode()
        process.stdout.close()
        process.stderr.close()
        assert process.wait(timeout=30) == 8
        assert f"interrupted by {signal.Signals(number).name}" in said
        assert f"cowfs import --resume {source} {xfs / 'copy'}" in said
        assert not (xfs / "copy").exists()
    cowfs("import", "--resume", "--verify", source, xfs / "copy")
    assert_same(source, xfs / "copy")


def test_a_killed_import_is_gone_on_with(cowfs: Cowfs, outside: Path, xfs: Path) -> None:
    source = outside / "source"
    source.mkdir()
    for number in range(3000):
        (source / f"{number}").write_text(str(number))
    (source / "large").write_bytes(os.urandom(MIB) * 64)
    command = [COWFS, "import", "--region=1M", source, xfs / "copy"]
    process = subprocess.Popen(command)
    journal = xfs / ".copy.cowfs-import" / "journal"
    while not journal.exists() or journal.stat().st_size < 1000:
        time.sleep(0.001)
        assert process.poll() is None
    process.kill()
    process.wait()
    assert not (xfs / "copy").exists()
    while True:  # its workers end after the batch at hand
        result = cowfs("import", "--resume", source, xfs / "copy", check=False)
        if "is at work" not in result.stderr:
            break
    assert result.returncode == 0, result.stderr
    assert_same(source, xfs / "copy")


def test_a_state_is_named_without_resume_and_refused_for_another_source(
    source: Path, outside: Path, xfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(monkeypatch, source, xfs / "copy", 3)
    with pytest.raises(CowfsError, match=r"unfinished import .* cowfs import --resume .* rm -rf"):
        bring(source, xfs / "copy")
    (outside / "other").mkdir()
    with pytest.raises(CowfsError, match=f"is one of {source}, not of {outside / 'other'}"):
        bring(outside / "other", xfs / "copy", resume=True)
    bring(source, xfs / "copy", resume=True)
    assert_same(source, xfs / "copy")


def test_what_changed_since_the_interruption_is_copied_again(
    source: Path, xfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(monkeypatch, source, xfs / "copy", 70)
    (source / "weights.bin").write_bytes(os.urandom(3 * MIB))
    (source / "many" / "f007").write_text("changed")
    (source / "many" / "f008").unlink()
    shutil.rmtree(source / "tokenizer" / "deep")
    (source / "empty").unlink()
    (source / "empty").mkdir()
    bring(source, xfs / "copy", resume=True, verify=True)
    assert_same(source, xfs / "copy")


def test_lines_that_no_sync_followed_do_not_count_after_a_reboot(
    source: Path, xfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cowfs.transfer.journal._boot_id", lambda: "before")
    interrupted(monkeypatch, source, xfs / "copy", 70)
    monkeypatch.setattr("cowfs.transfer.journal._boot_id", lambda: "after")
    assert bring(source, xfs / "copy", resume=True).kept == 0
    assert_same(source, xfs / "copy")


# --- what goes wrong ------------------------------------------------------------------------------


def test_a_source_that_changes_is_told_and_not_published(
    source: Path, xfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:

        def write(fd: int) -> None:
            (source / "small.bin").write_bytes(b"changed")

        patched.setattr(syscalls, "syncfs", write)
        with pytest.raises(CowfsError, match=r"small\.bin was changed while it was imported"):
            bring(source, xfs / "copy")
    assert os.listdir(xfs) == [".copy.cowfs-import"]
    bring(source, xfs / "copy", resume=True)
    assert_same(source, xfs / "copy")


@pytest.mark.parametrize("ring", ["on", "off"])
def test_a_source_that_shrinks_under_the_copy_is_told(
    source: Path, xfs: Path, monkeypatch: pytest.MonkeyPatch, ring: str
) -> None:
    monkeypatch.setenv("COWFS_IO_URING", ring)
    move = filedata.Mover.move

    def shrink(self: filedata.Mover, parts: list[filedata.Part]) -> None:
        if any(part.end == 4096 for part in parts):
            os.truncate(source / "small.bin", 1000)
        move(self, parts)

    monkeypatch.setattr(filedata.Mover, "move", shrink)
    with pytest.raises(CowfsError, match=r"small\.bin was changed while it was imported"):
        bring(source, xfs / "copy")
    assert not (xfs / "copy").exists()


def test_a_full_volume_is_told_and_gone_on_with_when_there_is_space(
    outside: Path, small_xfs: Callable[..., Volume]
) -> None:
    volume = small_xfs(64)
    source = outside / "source"
    source.mkdir()
    for number in range(4):
        (source / f"{number}.bin").write_bytes(os.urandom(MIB) * 8)
    ballast = volume.fill(leave=20 * MIB)
    with pytest.raises(CowfsError, match="no space left on the volume") as caught:
        bring(source, volume.mountpoint / "copy")
    assert str(volume.mountpoint) in str(caught.value)
    assert not (volume.mountpoint / "copy").exists()
    ballast.unlink()
    bring(source, volume.mountpoint / "copy", resume=True)
    assert_same(source, volume.mountpoint / "copy")


def test_verify_names_a_file_that_reads_back_differently(
    source: Path, xfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = xfs / ".copy.cowfs-import" / "tree" / "small.bin"
    with monkeypatch.context() as patched:

        def corrupt(fd: int) -> None:
            with target.open("r+b") as file:
                file.write(b"damage")
            os.utime(target, ns=(0, (source / "small.bin").stat().st_mtime_ns))

        patched.setattr(syscalls, "syncfs", corrupt)
        with pytest.raises(CowfsError, match=r"small\.bin reads back differently"):
            bring(source, xfs / "copy", verify=True)
    assert not (xfs / "copy").exists()
    bring(source, xfs / "copy", resume=True, verify=True)
    assert_same(source, xfs / "copy")


def test_a_file_that_may_not_be_read_is_named(outside: Path, xfs: Path) -> None:
    source = outside / "source"
    source.mkdir()
    (source / "mine").write_text("mine")
    (source / "secret").write_text("root's")
    for path in (source, source / "mine", xfs):
        os.chown(path, USER, USER)
    (source / "secret").chmod(0)
    said = as_user(lambda: bring(source, xfs / "copy"))
    assert said == f"no permission to copy {source / 'secret'}: run cowfs as root"
    assert os.listdir(xfs) == []
    (source / "secret").unlink()
    (source / "mine").chmod(0o440)
    assert as_user(lambda: bring(source, xfs / "copy")) == ""
    assert_same(source, xfs / "copy")


def test_a_user_imports_a_tree_that_its_modes_forbid_to_write_in(
    outside: Path, xfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = outside / "source"
    (source / "sub" / "deep" / "er").mkdir(parents=True)
    (source / "sub" / "deep" / "er" / "file").write_text("1")
    (source / "sub" / "file").write_text("2")
    for path in (source, *source.rglob("*"), xfs):
        os.chown(path, USER, USER)
    for path in (source, source / "sub", source / "sub" / "deep", source / "sub" / "deep" / "er"):
        path.chmod(0o555)
    os.utime(source, ns=(1, 2))
    assert as_user(lambda: bring(source, xfs / "copy")) == ""
    assert_same(source, xfs / "copy")
    with monkeypatch.context() as patched:
        patched.setattr(syscalls, "syncfs", lambda _: (source / "late").touch())
        source.chmod(0o755)
        said = as_user(lambda: bring(source, xfs / "other"))
    assert "was changed while it was imported" in said
    (source / "late").unlink()
    shutil.rmtree(source / "sub" / "deep")
    source.chmod(0o555)
    shutil.rmtree(xfs / "copy")
    # what the try has left has its modes already, and some of it is to be removed
    assert as_user(lambda: bring(source, xfs / "other", resume=True)) == ""
    assert_same(source, xfs / "other")
    assert os.listdir(xfs) == ["other"]


@pytest.mark.parametrize("ring", ["on", "off"])
def test_a_source_that_cannot_be_read_any_further_is_told_and_gone_on_with_when_it_can(
    small_xfs: Callable[..., Volume], xfs: Path, monkeypatch: pytest.MonkeyPatch, ring: str
) -> None:
    monkeypatch.setenv("COWFS_IO_URING", ring)
    volume = small_xfs(64)
    source = volume.mountpoint / "source"
    source.mkdir()
    (source / "large").write_bytes(os.urandom(8 * MIB))
    (source / "small").write_bytes(b"1")
    os.sync()
    move = filedata.Mover.move

    def fail(self: filedata.Mover, parts: list[filedata.Part]) -> None:
        if parts[0].start == 3 * REGION:
            command = ["xfs_io", "-x", "-c", "shutdown", volume.mountpoint]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        move(self, parts)

    with monkeypatch.context() as patched:
        patched.setattr(filedata.Mover, "move", fail)
        with pytest.raises(CowfsError, match=r"I/O error while copying .*/large: .*--resume"):
            bring(source, xfs / "copy")
    assert os.listdir(xfs) == [".copy.cowfs-import"]
    volume.unmount()
    volume.mount()
    bring(source, xfs / "copy", resume=True, verify=True)
    assert_same(source, xfs / "copy")


def test_a_quota_that_is_used_up_is_told(
    source: Path, xfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: filedata.Mover, parts: list[filedata.Part]) -> None:
        raise filedata.Failed(OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), len(parts) - 1)

    with monkeypatch.context() as patched:
        patched.setattr(filedata.Mover, "move", refuse)
        said = f"disk quota exceeded on the volume .* while copying {source}/sparse.bin"
        with pytest.raises(CowfsError, match=said):
            bring(source, xfs / "copy")
    assert os.listdir(xfs) == []
    bring(source, xfs / "copy")
    assert_same(source, xfs / "copy")


def test_places_that_cannot_be_are_refused(cowfs: Cowfs, source: Path, xfs: Path) -> None:
    (xfs / "there").mkdir()
    (xfs / "file").touch()
    for arguments, said in (
        ((source, xfs / "there"), "exists, and nothing is written into or over it"),
        ((source, source / "tokenizer" / "copy"), "is inside the source"),
        ((source / "tokenizer", source), "exists, and nothing is written into or over it"),
        ((source, xfs / "no" / "copy"), f"mkdir -p {xfs / 'no'}"),
        ((source, xfs / "file" / "copy"), "is not a directory"),
        ((source / "nothing", xfs / "copy"), "does not exist"),
        ((xfs / "file", xfs / "copy"), "is not a directory"),
        (("--region=1k", source, xfs / "copy"), "at least 1M"),
    ):
        result = cowfs("import", *arguments, check=False)
        assert result.returncode == 1
        assert said in result.stderr
        assert result.stderr.count("\n") == 1
    assert sorted(os.listdir(xfs)) == ["file", "there"]
