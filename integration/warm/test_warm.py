"""`cowfs warm`, and what else asks for pages ahead: they come to where copies share them."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cowfs.system.syscalls import cachestat
from integration.command import COWFS, cowfs, run
from integration.conftest import Mode
from integration.mounts import MountCopy
from integration.trees import make_model

pytestmark = pytest.mark.alone  # they look at the page cache
MIB = 1 << 20
SIZE = 32 * MIB


def resident(path: Path) -> int:
    """Bytes of a file in the page cache of its own inode."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return cachestat(fd, 0, max(os.fstat(fd).st_size, 1)) * mmap.PAGESIZE
    finally:
        os.close(fd)


@pytest.fixture(autouse=True)
def _nobody_takes_pages_away() -> Iterator[None]:
    """DAMON's pageout, where a machine has it on, takes pages of files that are in use, too."""
    states = Path("/sys/kernel/mm/damon/admin/kdamonds").glob("*/state")
    running = [state for state in states if state.read_text() == "on\n"]
    try:
        for state in running:
            state.write_text("off")
        yield
    finally:
        for state in running:
            state.write_text("on")


def drop(path: Path) -> None:
    """Take a file's pages out of memory."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
    assert resident(path) == 0


def warm(*args: str | Path) -> dict[str, Any]:
    outcome: dict[str, Any] = json.loads(cowfs("warm", "--json", *args).stdout)
    return outcome


def template(mounts: MountCopy, mountpoint: Path) -> Path:
    record = mounts.record(mountpoint)
    return Path(record["store"], "templates", record["template"], "tree")


def upper(mounts: MountCopy, mountpoint: Path) -> Path:
    record = mounts.record(mountpoint)
    return Path(record["store"], "copies", record["copy"], "upper")


@pytest.fixture
def weights(xfs: Path) -> Path:
    """A directory with one large file."""
    path = xfs / "weights"
    path.mkdir()
    (path / "model.bin").write_bytes(os.urandom(MIB) * (SIZE // MIB))
    return path


def test_a_warm_copy_has_one_set_of_pages_and_it_is_the_shared_one(
    mount_copy: MountCopy, weights: Path
) -> None:
    first, second = mount_copy(weights), mount_copy(weights)
    backing = template(mount_copy, first) / "model.bin"
    drop(backing)
    outcome = warm(first)
    assert (outcome["files"], outcome["bytes"], outcome["read"]) == (1, SIZE, SIZE)
    assert (outcome["resident_before"], outcome["resident_after"]) == (0, SIZE)
    assert resident(backing) == SIZE
    assert resident(first / "model.bin") == 0
    again = warm(second)
    assert (again["resident_before"], again["read"]) == (SIZE, 0)


@pytest.mark.quick
def test_warm_reads_what_the_copy_shows_and_not_what_it_hides(
    mount_copy: MountCopy, model: Path
) -> None:
    mountpoint = mount_copy(model)
    with (mountpoint / "weights.bin").open("r+b") as file:
        file.write(b"mine")
    (mountpoint / "small.bin").unlink()
    (mountpoint / "tokenizer").rename(mountpoint / "moved")
    (mountpoint / "new").write_bytes(bytes(MIB))
    tree, own = template(mount_copy, mountpoint), upper(mount_copy, mountpoint)
    hidden = [tree / "weights.bin", tree / "small.bin"]
    shown = [own / "weights.bin", own / "new", tree / "tokenizer" / "vocab.txt"]
    for path in (*hidden, *shown):
        drop(path)
    outcome = warm(mountpoint)
    assert [resident(path) for path in hidden] == [0, 0]
    for path in shown:
        assert resident(path) >= path.stat().st_size
    assert outcome["resident_after"] == outcome["bytes"]


def test_warm_of_one_file_or_directory_of_a_copy_leaves_the_others(
    mount_copy: MountCopy, model: Path
) -> None:
    mountpoint = mount_copy(model)
    tree = template(mount_copy, mountpoint)
    paths = [tree / "weights.bin", tree / "tokenizer/deep/er/leaf", tree / "config.json"]
    for path in paths:
        drop(path)
    outcome = warm(mountpoint / "weights.bin", mountpoint / "tokenizer" / "deep")
    assert outcome["files"] == 2
    assert [resident(path) > 0 for path in paths] == [True, True, False]


def test_with_clone_open_the_pages_of_the_clone_are_the_ones(
    mount_copy: MountCopy, weights: Path
) -> None:
    mountpoint = mount_copy(weights, None, "clone=open")
    drop(template(mount_copy, mountpoint) / "model.bin")
    warm(mountpoint)
    assert resident(upper(mount_copy, mountpoint) / "model.bin") == SIZE
    assert resident(template(mount_copy, mountpoint) / "model.bin") == 0


def test_what_is_changed_in_place_is_cloned_and_the_clone_warmed(
    mount_copy: MountCopy, mode: Mode, weights: Path
) -> None:
    weights.joinpath("model.bin").rename(weights / "train.log")
    mountpoint = mount_copy(weights)
    drop(template(mount_copy, mountpoint) / "train.log")
    warm(mountpoint)
    cloned = mode == "passthrough"
    assert (upper(mount_copy, mountpoint) / "train.log").exists() == cloned
    shown = (upper if cloned else template)(mount_copy, mountpoint)
    assert resident(shown / "train.log") == SIZE


def test_a_file_with_other_attributes_is_warmed_where_it_is_read(
    mount_copy: MountCopy, weights: Path
) -> None:
    mountpoint = mount_copy(weights)
    (mountpoint / "model.bin").chmod(0o640)
    drop(template(mount_copy, mountpoint) / "model.bin")
    warm(mountpoint)
    assert resident(template(mount_copy, mountpoint) / "model.bin") == SIZE
    assert resident(upper(mount_copy, mountpoint) / "model.bin") == 0


def test_who_sees_nothing_but_the_mount_warms_the_shared_pages_through_it(
    mount_copy: MountCopy, mode: Mode, weights: Path
) -> None:
    weights.joinpath("model.bin").chmod(0o644)
    mountpoint = mount_copy(weights, None, "ephemeral")
    bound = mount_copy.mountpoint()
    run("mount", "--bind", mountpoint, bound)
    backing = template(mount_copy, mountpoint) / "model.bin"
    try:
        for as_user in ([], ["setpriv", "--reuid=1000", "--clear-groups"]):
            drop(bound / "model.bin")
            drop(backing)
            said = run(*as_user, COWFS, "warm", "--json", bound if not as_user else mountpoint)
            outcome = json.loads(said.stdout)
            assert (outcome["read"], outcome["errors"]) == (SIZE, [])
            assert outcome["resident_after"] == (None if as_user else SIZE)
            assert resident(backing) == SIZE
            # Without passthrough the mount has pages of its own besides.
            assert resident(bound / "model.bin") == (0 if mode == "passthrough" else SIZE)
    finally:
        run("umount", bound)


def hub_snapshot(hub: Path) -> Path:
    """A cache of huggingface_hub with one file; the directory that has a link to it."""
    model = hub / "models--a--b"
    snapshot = model / "snapshots" / "rev" / "sub"
    snapshot.mkdir(parents=True)
    (model / "blobs").mkdir()
    (model / "blobs" / "weights").write_bytes(os.urandom(MIB) * (SIZE // MIB))
    (snapshot / "model.bin").symlink_to("../../../blobs/weights")
    return snapshot


def test_a_copy_of_a_hub_snapshot_is_warmed_as_its_files(mount_copy: MountCopy, xfs: Path) -> None:
    mountpoint = mount_copy(hub_snapshot(xfs / "hub").parent)
    backing = template(mount_copy, mountpoint) / "sub" / "model.bin"
    drop(backing)
    outcome = warm(mountpoint)
    assert (outcome["files"], outcome["read"]) == (1, SIZE)
    assert resident(backing) == SIZE


def test_a_snapshot_in_a_copy_of_the_whole_cache_is_warmed_behind_its_links(
    mount_copy: MountCopy, xfs: Path
) -> None:
    snapshot = hub_snapshot(xfs / "hub")
    mountpoint = mount_copy(xfs / "hub")
    backing = template(mount_copy, mountpoint) / "models--a--b" / "blobs" / "weights"
    drop(backing)
    outcome = warm(mountpoint / snapshot.parent.relative_to(xfs / "hub"))
    assert (outcome["files"], outcome["read"]) == (1, SIZE)
    assert resident(backing) == SIZE


def test_a_snapshot_that_is_no_copy_is_warmed_behind_its_links(xfs: Path) -> None:
    snapshot = hub_snapshot(xfs / "hub")
    blob = (snapshot / "model.bin").resolve()
    drop(blob)
    (snapshot / "planted").symlink_to("/proc/kcore")
    outcome = warm(snapshot.parent)
    assert (outcome["files"], outcome["read"], outcome["errors"]) == (1, SIZE, [])
    assert resident(blob) == SIZE


def test_a_limit_ends_it_and_the_next_run_goes_on(weights: Path) -> None:
    drop(weights / "model.bin")
    first = warm(weights, "--limit", "10M")
    assert (first["read"], first["limit_reached"]) == (10 * MIB, True)
    # the kernel reads ahead of us, by its own limits
    assert 10 * MIB <= resident(weights / "model.bin") < SIZE
    said = cowfs("warm", weights, "--limit", "1M").stdout
    assert "the limit is 1.0 MiB, --limit" in said
    last = warm(weights)
    assert last["resident_before"] + last["read"] == SIZE
    assert not last["limit_reached"]
    assert resident(weights / "model.bin") == SIZE


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_the_report_so_far_and_the_next_run_goes_on(
    weights: Path, number: signal.Signals
) -> None:
    drop(weights / "model.bin")
    slow = ("strace", "-D", "-f", "-o", "/dev/null", "-e", "trace=preadv,preadv2")
    slow = (*slow, "-e", "inject=preadv,preadv2:delay_exit=50000")
    command = [*slow, COWFS, "warm", "--jobs", "1", "--json", weights]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert _eventually(lambda: resident(weights / "model.bin") >= SIZE // 4)
        process.send_signal(number)
        said, _ = process.communicate(timeout=30)
    assert process.returncode == 8
    outcome = json.loads(said)
    assert outcome["interrupted"]
    assert outcome["errors"] == []
    assert 0 < outcome["read"] < SIZE
    assert outcome["resident_after"] >= outcome["read"]
    again = warm(weights)
    assert again["resident_before"] + again["read"] == SIZE


def test_hard_links_count_once_and_holes_links_and_special_files_cost_nothing(xfs: Path) -> None:
    plain = make_model(xfs / "plain")
    os.mkfifo(plain / "fifo")
    regular = {
        (st.st_dev, st.st_ino): st.st_blocks * 512
        for path in plain.rglob("*")
        if path.is_file() and not path.is_symlink()
        for st in [path.stat()]
    }
    os.sync()
    outcome = warm(plain, plain / "weights.bin")
    assert outcome["files"] == len(regular)
    assert 4 * MIB < outcome["bytes"] < 6 * MIB  # and not the hole of 64 MiB
    assert outcome["resident_after"] == outcome["bytes"]


def test_other_mounts_below_a_path_are_left_out(mount_plain: MountCopy, weights: Path) -> None:
    mountpoint = mount_plain(weights, mount_plain.mountpoint())
    (mountpoint.parent / "beside").write_text("seen")
    assert warm(mountpoint.parent)["files"] == 1


def test_a_path_that_is_not_there_is_named_and_nothing_is_read(weights: Path) -> None:
    drop(weights / "model.bin")
    result = cowfs("warm", weights, weights / "none", check=False)
    assert result.returncode == 1
    assert result.stderr == f"cowfs: {weights / 'none'}: No such file or directory\n"
    assert resident(weights / "model.bin") == 0


# --- what asks for pages ahead --------------------------------------------------------------------


# In pieces, since the kernel cuts off more than its limit of read-ahead.
_PIECES = range(0, SIZE, MIB)


def _fadvise(fd: int) -> None:
    for offset in _PIECES:
        os.posix_fadvise(fd, offset, MIB, os.POSIX_FADV_WILLNEED)


def _readahead(fd: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for offset in _PIECES:
        assert libc.readahead(fd, ctypes.c_longlong(offset), ctypes.c_size_t(MIB)) == 0


def _madvise(fd: int) -> None:
    with mmap.mmap(fd, SIZE, mmap.MAP_SHARED, mmap.PROT_READ) as mapping:
        for offset in _PIECES:
            mapping.madvise(mmap.MADV_WILLNEED, offset, MIB)


@pytest.mark.parametrize("ask", [_fadvise, _readahead, _madvise])
def test_what_is_asked_for_ahead_comes_into_the_pages_that_copies_share(
    mount_copy: MountCopy, mode: Mode, weights: Path, ask: Callable[[int], None]
) -> None:
    mountpoint = mount_copy(weights)
    backing = template(mount_copy, mountpoint) / "model.bin"
    drop(backing)
    fd = os.open(mountpoint / "model.bin", os.O_RDONLY)
    try:
        ask(fd)
        assert _eventually(lambda: resident(backing) == SIZE)
        copied = SIZE if mode == "relayed" else 0
        assert _eventually(lambda: cachestat(fd, 0, SIZE) * mmap.PAGESIZE == copied)
        assert os.read(fd, SIZE) == (weights / "model.bin").read_bytes()
    finally:
        os.close(fd)


@pytest.fixture
def relayed(mount_plain: MountCopy, weights: Path) -> Path:
    """A copy that is not passed through, with nothing of its file in memory."""
    mountpoint = mount_plain(weights, None, "passthrough=off")
    drop(template(mount_plain, mountpoint) / "model.bin")
    return mountpoint


def _read(path: Path, offsets: Iterable[int]) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        for offset in offsets:
            os.pread(fd, 65536, offset)
    finally:
        os.close(fd)


def test_who_reads_on_from_where_it_was_is_read_ahead_of_but_not_without_end(
    mount_plain: MountCopy, relayed: Path
) -> None:
    backing = template(mount_plain, relayed) / "model.bin"
    _read(relayed / "model.bin", range(0, 4 * 65536, 65536))
    mount_plain.unmount(relayed)  # which waits for what reads ahead
    assert 16 * MIB <= resident(backing) < SIZE


def test_who_reads_here_and_there_is_not_read_ahead_of(
    mount_plain: MountCopy, relayed: Path
) -> None:
    backing = template(mount_plain, relayed) / "model.bin"
    _read(relayed / "model.bin", [0, 20 * MIB, 4 * MIB, 28 * MIB, 12 * MIB])
    mount_plain.unmount(relayed)
    assert 0 < resident(backing) < 8 * MIB


def _dropped(path: Path) -> bool:
    try:
        drop(path)
    except AssertionError:
        return False
    return True


def test_what_was_read_once_is_there_for_later_readers_and_mappings(
    mount_plain: MountCopy, relayed: Path, weights: Path
) -> None:
    """Without passthrough, too: of the backing file nothing is left, and nobody asks for it."""
    content = (weights / "model.bin").read_bytes()
    backing = template(mount_plain, relayed) / "model.bin"
    assert (relayed / "model.bin").read_bytes() == content
    assert _eventually(lambda: _dropped(backing))  # who reads ahead may be at it yet
    with (relayed / "model.bin").open("rb") as file:
        assert file.read() == content
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
            assert mapping[:] == content
    assert resident(backing) == 0
    with (relayed / "model.bin").open("r+b", buffering=0) as file:
        file.write(b"changed")
    assert (relayed / "model.bin").read_bytes() == b"changed" + content[7:]


def _eventually(holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + 10
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
