"""Stores and copies on a real XFS volume: whose copy is it, may it be taken, what may go."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cowfs.store import copies, emptying, garbage, runtime, seal, space
from cowfs.store.store import Copy, Store, Template, volume_of
from cowfs.system import ondisk, syscalls
from cowfs.system.errors import MountFailure, UsageError
from cowfs.trees import removal
from integration.mounts import MountCopy
from integration.trees import make_model
from integration.volumes import Volume

pytestmark = pytest.mark.filesystems("xfs", "btrfs")

Take = Callable[..., Copy]


@pytest.fixture
def store(xfs: Path) -> Iterator[Store]:
    with contextlib.closing(Store.for_source(str(xfs), None)) as store:
        yield store


@pytest.fixture
def source(xfs: Path) -> Path:
    return make_model(xfs / "model")


class Warnings(list[str]):
    """What `acquire` had to say."""


@pytest.fixture
def warnings() -> Warnings:
    return Warnings()


@pytest.fixture
def take(store: Store, warnings: Warnings) -> Iterator[Take]:
    """`take(name, source, persistent=True)` acquires a copy as a mount does."""
    taken: list[Copy] = []

    def acquire(name: str, source: Path, persistent: bool = True) -> Copy:
        copy = store.acquire(
            name,
            str(source),
            persistent=persistent,
            prepare=lambda: seal.seal(store, str(source), progress=None, warn=pytest.fail),
            warn=warnings.append,
        )
        taken.append(copy)
        return copy

    yield acquire
    for copy in taken:
        # Most tests have released theirs, and the number may mean another file by now.
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(copy.lock_fd), os.stat(os.path.join(copy.path, "lock"))):
                copy.release()


def listed(store: Store) -> list[str]:
    return [copy.name for copy in store.copies()]


def parts(store: Store) -> dict[str, int]:
    return {part: len(os.listdir(Path(store.path) / part)) for part in ("partial", "trash")}


# --- the store ------------------------------------------------------------------------------------


def test_store_is_made_on_the_volume_of_the_source_for_root_alone(
    source: Path, volume: Volume
) -> None:
    shutil.rmtree(volume.mountpoint / ".cowfs", ignore_errors=True)
    with contextlib.closing(Store.for_source(str(source), None)) as store:
        assert store.path == str(volume.mountpoint / ".cowfs")
        assert stat.S_IMODE(os.stat(store.path).st_mode) == 0o700
        assert sorted(os.listdir(store.path)) == [
            "copies",
            "partial",
            "templates",
            "trash",
        ]
    with contextlib.closing(Store.for_source(str(source), None)):
        pass
    with contextlib.closing(Store.open(store.path)) as again:
        assert again.identity == store.identity


def test_store_can_be_named(source: Path, xfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(xfs)
    with contextlib.closing(Store.for_source(str(source), "mine")) as store:
        assert store.path == str(xfs / "mine")
    with pytest.raises(MountFailure, match=r"mkdir -p .*none"):
        Store.for_source(str(source), str(xfs / "none" / "mine"))


@pytest.mark.parametrize("filesystem", ["ext4", "xfs without reflink"])
def test_volume_without_clones_is_refused_and_left_as_it_was(
    filesystem: str, ext4_volume: Volume, small_xfs: Callable[..., Volume]
) -> None:
    volume = ext4_volume if filesystem == "ext4" else small_xfs(64, reflink=False)
    before = sorted(os.listdir(volume.mountpoint))
    with pytest.raises(MountFailure, match=f"{volume.mountpoint} .*reflink=1"):
        Store.for_source(str(volume.mountpoint), None)
    assert sorted(os.listdir(volume.mountpoint)) == before


def test_store_on_another_volume_than_the_source_is_refused(
    source: Path, small_xfs: Callable[..., Volume]
) -> None:
    other = small_xfs(64)
    with pytest.raises(MountFailure, match="different volumes"):
        Store.for_source(str(source), str(other.mountpoint / "store"))
    assert not (other.mountpoint / "store").exists()


@pytest.mark.parametrize(
    ("problem", "says"),
    [
        ("owner", "is owned by uid 1000"),
        ("mode", "mode 0770.*chmod 700"),
        ("symlink", "symlink"),
        ("file", "is not a directory"),
    ],
)
def test_store_that_others_could_reach_is_refused(
    source: Path, xfs: Path, problem: str, says: str
) -> None:
    path = xfs / "store"
    match problem:
        case "owner":
            path.mkdir(0o700)
            os.chown(path, 1000, 0)
        case "mode":
            path.mkdir()
            path.chmod(0o770)
        case "symlink":
            (xfs / "real").mkdir(0o700)
            path.symlink_to("real")
        case "file":
            path.write_text("x")
    for attempt in (
        lambda: Store.for_source(str(source), str(path)),
        lambda: Store.open(str(path)),
    ):
        with pytest.raises(MountFailure, match=says) as caught:
            attempt()
        assert str(path) in str(caught.value)


def test_store_that_is_missing_is_not_opened_and_not_made_for_a_missing_source(
    xfs: Path,
) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        Store.open(str(xfs / "none"))
    with pytest.raises(MountFailure, match=f"source {xfs}/none"):
        Store.for_source(str(xfs / "none"), str(xfs / "store"))
    assert not (xfs / "store").exists()


def test_source_in_the_store_is_refused(store: Store) -> None:
    with pytest.raises(MountFailure, match="is in the store"):
        Store.for_source(os.path.join(store.path, "templates"), store.path)


def test_read_only_volume_is_told(small_xfs: Callable[..., Volume]) -> None:
    volume = small_xfs(64)
    subprocess.run(["mount", "-o", "remount,ro", volume.mountpoint], check=True)
    with pytest.raises(MountFailure, match="read-only"):
        Store.for_source(str(volume.mountpoint), None)


def test_stores_of_mounted_volumes_are_discovered_each_once(
    store: Store, xfs: Path, volume: Volume, tmp_path: Path
) -> None:
    bind = tmp_path / "bind"
    bind.mkdir()
    subprocess.run(["mount", "--bind", volume.mountpoint, bind], check=True)
    try:
        found = Store.discover()
    finally:
        subprocess.run(["umount", bind], check=True)
    assert [other.identity for other in found].count(store.identity) == 1
    for other in found:
        other.close()


def test_volume_of_a_path_is_its_mount(xfs: Path, volume: Volume, tmp_path: Path) -> None:
    assert volume_of(str(xfs)) == str(volume.mountpoint)
    assert volume_of(str(volume.mountpoint)) == str(volume.mountpoint)
    assert volume_of(str(xfs / "not" / "there")) == str(volume.mountpoint)
    bind = tmp_path / "bind"
    bind.mkdir()
    subprocess.run(["mount", "--bind", xfs, bind], check=True)
    try:
        assert volume_of(str(bind / "x")) == str(bind)
    finally:
        subprocess.run(["umount", bind], check=True)


# --- taking a copy --------------------------------------------------------------------------------


@pytest.mark.quick
def test_new_copy_is_empty_and_has_the_root_of_its_template(source: Path, take: Take) -> None:
    os.setxattr(source, "user.note", b"x")
    subprocess.run(["setfacl", "-d", "-m", "u:1:rwx", source], check=True)
    os.chown(source, 1234, 5678)
    source.chmod(0o2750)
    os.utime(source, ns=(123, 456))
    copy = take("job", source)
    tree, upper = os.stat(copy.template.tree), os.stat(copy.upper)
    assert os.listdir(copy.upper) == os.listdir(copy.work) == []
    for field in ("st_mode", "st_uid", "st_gid", "st_mtime_ns"):
        assert getattr(upper, field) == getattr(tree, field)
    assert (upper.st_uid, stat.S_IMODE(upper.st_mode)) == (1234, 0o2750)
    assert os.getxattr(copy.upper, "user.note") == b"x"
    assert "system.posix_acl_default" in os.listxattr(copy.upper)
    assert ondisk.get_ino(os.fsencode(copy.upper)) == tree.st_ino
    assert stat.S_IMODE(os.stat(copy.path).st_mode) == 0o700
    assert not copy.has_changes()


CHANGES: dict[str, Callable[[str], object]] = {
    "file": lambda upper: Path(upper, "x").touch(),
    "whiteout": lambda upper: os.mknod(os.path.join(upper, "x"), stat.S_IFCHR, 0),
    "mode": lambda upper: os.chmod(upper, 0o711),
    "owner": lambda upper: os.chown(upper, 7, -1),
    "group": lambda upper: os.chown(upper, -1, 7),
    "time": lambda upper: os.utime(upper, ns=(1, 1)),
    "attribute": lambda upper: os.setxattr(upper, "user.x", b""),
    "acl": lambda upper: subprocess.run(["setfacl", "-m", "u:1:r", upper], check=True),
}


@pytest.mark.parametrize("what", CHANGES)
def test_kept_copy_with_any_change_keeps_its_template(
    source: Path, take: Take, what: str, warnings: Warnings
) -> None:
    copy = take("job", source)
    CHANGES[what](copy.upper)
    assert copy.has_changes()
    copy.release()
    again = take("job", source)
    assert warnings == []
    assert again.template == copy.template
    again.release()
    (source / "config.json").write_text("moved on")
    last = take("job", source)
    assert last.template == copy.template
    assert last.has_changes()
    [warning] = warnings
    assert "job has changes" in warning
    assert "moved on" in warning


def test_marks_of_overlays_and_access_times_are_no_changes(source: Path, take: Take) -> None:
    copy = take("job", source)
    st = os.stat(copy.upper)
    os.setxattr(copy.upper, "trusted.overlay.impure", b"y")
    os.utime(copy.upper, ns=(5, st.st_mtime_ns))
    assert not copy.has_changes()


def test_kept_copy_without_changes_follows_its_source(
    store: Store, source: Path, take: Take
) -> None:
    first = take("job", source)
    (Path(first.work) / "left over").mkdir()
    first.release()
    same = take("job", source)
    assert same.template == first.template
    assert os.listdir(same.work) == []
    same.release()
    os.chmod(source, 0o711)
    second = take("job", source)
    assert second.template != first.template
    assert stat.S_IMODE(os.stat(second.upper).st_mode) == 0o711
    assert second.created == first.created
    assert parts(store) == {"partial": 0, "trash": 1}  # the first one
    with pytest.raises(MountFailure, match="in use"):
        take("job", source)
    second.release()
    store.collect()
    assert [template.id for template in store.templates()] == [second.template.id]


@pytest.mark.quick
def test_kept_copy_with_changes_outlives_its_source(
    source: Path, take: Take, warnings: Warnings
) -> None:
    copy = take("job", source)
    (Path(copy.upper) / "mine").write_text("x")
    copy.release()
    shutil.rmtree(source)
    again = take("job", source)
    assert (Path(again.upper) / "mine").read_text() == "x"
    [warning] = warnings
    assert f"{source}, which is gone" in warning


def test_kept_copy_without_changes_outlives_its_source(
    source: Path, take: Take, warnings: Warnings
) -> None:
    copy = take("job", source)
    template = copy.template
    copy.release()
    shutil.rmtree(source)
    assert take("job", source).template == template
    [warning] = warnings
    assert f"{source}, which is gone" in warning


def test_kept_copy_with_changes_is_refused_to_another_source_with_the_ways_out(
    store: Store, source: Path, xfs: Path, take: Take
) -> None:
    copy = take("job", source)
    (Path(copy.upper) / "mine").write_text("x")
    copy.release()
    (xfs / "other").mkdir()
    for persistent in (True, False):
        with pytest.raises(MountFailure, match=r"1 file.*copy=NAME.*cowfs rm .*job") as caught:
            take("job", xfs / "other", persistent=persistent)
        assert str(source) in str(caught.value)
    assert [copy.source for copy in store.copies()] == [str(source)]


def test_ephemeral_mount_never_takes_the_place_of_what_was_written(
    store: Store, source: Path, take: Take
) -> None:
    copy = take("job", source)
    (Path(copy.upper) / "mine").write_text("x")
    copy.release()
    with pytest.raises(MountFailure, match="was written to"):
        take("job", source, persistent=False)
    assert take("job", source).has_changes()


def test_ephemeral_mount_takes_the_place_of_a_kept_copy_without_changes(
    store: Store, source: Path, take: Take
) -> None:
    take("job", source).release()
    copy = take("job", source, persistent=False)
    assert not copy.persistent
    copy.discard()
    assert listed(store) == []
    assert parts(store) == {"partial": 0, "trash": 1}  # the kept one


@pytest.mark.parametrize("name", ["job", "another"])
def test_ephemeral_copy_of_a_killed_daemon_is_dropped_at_the_next_start(
    store: Store, source: Path, xfs: Path, take: Take, name: str
) -> None:
    left = take("job", source, persistent=False)
    (Path(left.upper) / "file").write_text("x")
    left.release()
    (xfs / "other").mkdir()
    copy = take(name, xfs / "other")
    assert listed(store) == [name]
    assert copy.persistent
    assert not copy.has_changes()


def test_copy_in_use_is_refused_and_its_mount_named(
    store: Store, source: Path, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = take("job", source, persistent=False)
    with pytest.raises(MountFailure, match="in use"):
        take("job", source)
    with pytest.raises(MountFailure, match="in use"):
        store.remove("job")
    record = runtime.Record(
        "0:9", "/mnt/x", str(source), store.path, "job", "", 42, None, 0.0, "", False
    )
    monkeypatch.setattr(runtime, "all", lambda: [record])
    with pytest.raises(MountFailure, match=r"mounted at /mnt/x \(daemon 42\)"):
        take("job", source)
    take("other", source)
    assert sorted(listed(store)) == ["job", "other"]
    assert [info.mounted for info in store.copies()] == [True, True]
    copy.release()
    assert [info.mounted for info in store.copies()] == [False, True]


def test_lock_can_be_handed_to_another_process(store: Store, source: Path, take: Take) -> None:
    copy = take("job", source)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with contextlib.closing(Store.open(store.path)) as own:
                adopted = Copy.adopt(own, "job", copy.lock_fd)
                (Path(adopted.upper) / "from the daemon").touch()
                same = (adopted.template, adopted.source) == (copy.template, copy.source)
                code = 0 if same and adopted.persistent and adopted.has_changes() else 1
        finally:
            os._exit(code)
    duplicate = os.dup(copy.lock_fd)
    copy.release()
    with pytest.raises(MountFailure, match="in use"):
        take("job", source)
    assert os.waitpid(pid, 0)[1] == 0
    os.close(duplicate)
    assert take("job", source).has_changes()


@pytest.mark.parametrize("name", ["", "a/b", "..", "x" * 256])
def test_impossible_name_is_refused_before_anything_is_made(
    store: Store, source: Path, take: Take, name: str
) -> None:
    with pytest.raises(UsageError):
        take(name, source)
    with pytest.raises(UsageError):
        store.remove(name)
    assert store.templates() == []


@pytest.mark.parametrize("name", ["x" * 255, os.fsdecode(b"\xff"), "...", "lock"])
def test_any_other_name_works(store: Store, source: Path, take: Take, name: str) -> None:
    take(name, source).release()
    assert take(name, source).name == name
    assert listed(store) == [name]


@pytest.mark.parametrize("text", ["", "{}", '{"format": 99}', None])
def test_damaged_copy_is_told_and_never_removed_unasked(
    store: Store,
    source: Path,
    take: Take,
    text: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    copy = take("job", source, persistent=False)
    (Path(copy.upper) / "mine").write_text("x")
    copy.release()
    record = Path(copy.path) / "copy.json"
    if text is None:
        record.unlink()
    else:
        record.write_text(text)
    with pytest.raises(MountFailure, match=r"copy job is damaged.*upper.*cowfs rm .*job"):
        take("job", source)
    (source / "config.json").write_text("second state")
    take("other", source)
    store.collect()
    assert (Path(copy.upper) / "mine").read_text() == "x"
    assert os.path.isdir(copy.template.tree), "it may be based on that"
    with caplog.at_level(logging.WARNING):
        assert listed(store) == ["other"]
    assert "copy job is damaged" in caplog.text
    store.remove("job")
    assert not os.path.exists(copy.path)


def test_copy_whose_template_is_gone_is_told(store: Store, source: Path, take: Take) -> None:
    copy = take("job", source)
    copy.release()
    os.rename(copy.template.path, copy.template.path + ".away")
    with pytest.raises(MountFailure, match=f"needs the template {copy.template.path}"):
        take("job", source)
    os.rename(copy.template.path + ".away", copy.template.path)


def test_copy_json_says_what_the_format_page_says(source: Path, take: Take) -> None:
    copy = take("job", source)
    record = json.loads((Path(copy.path) / "copy.json").read_text())
    created = record.pop("created")
    assert created == copy.created
    assert record == {
        "format": 1,
        "name": "job",
        "source": str(source),
        "template": copy.template.id,
        "persistent": True,
        "named_after": "",
    }
    assert sorted(os.listdir(copy.path)) == ["copy.json", "lock", "upper", "work"]


def test_failing_prepare_leaves_no_copy(store: Store, source: Path) -> None:
    def fail() -> Template:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.acquire("job", str(source), persistent=True, prepare=fail)
    assert listed(store) == []
    assert parts(store) == {"partial": 0, "trash": 0}


def test_full_volume_leaves_no_half_made_copy(
    store: Store, source: Path, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = take("first", source)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(ondisk, "set_ino", full)
        with pytest.raises(MountFailure, match="no space left on the volume"):
            take("job", source)
    assert listed(store) == ["first"]
    assert parts(store) == {"partial": 0, "trash": 0}
    first.release()


# --- what may go ----------------------------------------------------------------------------------


def test_remove_discards_a_copy_and_all_that_is_in_it(
    store: Store, source: Path, take: Take
) -> None:
    copy = take("job", source)
    (Path(copy.upper) / "a" / "b").mkdir(parents=True)
    (Path(copy.upper) / "a" / "b" / "c").write_text("x")
    copy.release()
    store.remove("job")
    assert not os.path.exists(copy.path)
    assert parts(store) == {"partial": 0, "trash": 0}
    with pytest.raises(MountFailure, match="no copy job"):
        store.remove("job")


def test_private_bytes_are_those_that_no_other_file_shares(
    store: Store, source: Path, take: Take
) -> None:
    copy = take("job", source)
    upper = Path(copy.upper)
    subprocess.run(["cp", "--reflink=always", source / "weights.bin", upper / "clone"], check=True)
    (upper / "sub").mkdir()
    (upper / "sub" / "new").write_bytes(os.urandom(3 << 20))
    os.link(upper / "sub" / "new", upper / "sub" / "again")
    os.mknod(upper / "whiteout", stat.S_IFCHR, 0)
    os.mkfifo(upper / "fifo")
    (upper / "link").symlink_to(source / "weights.bin")
    os.sync()
    assert copies.private_bytes(store, "job") == 3 << 20
    assert space.Scales(store).copy("job", None).private == 3 << 20


def test_collect_keeps_what_is_needed_and_what_is_current(
    store: Store, source: Path, xfs: Path, take: Take
) -> None:
    current = take("current", source)
    current.discard()
    needed = take("needed", make_model(xfs / "needed"))
    (Path(needed.upper) / "mine").touch()
    needed.release()
    gone = take("gone", make_model(xfs / "gone"))
    gone.discard()
    for name in ("needed", "gone"):
        shutil.rmtree(xfs / name)
    collected = store.collect()
    assert collected.templates == [gone.template.id]
    assert collected.copies == []
    left = {template.id for template in store.templates()}
    assert left == {current.template.id, needed.template.id}
    assert parts(store) == {"partial": 0, "trash": 0}
    assert store.collect().templates == []


def test_collect_drops_ephemeral_copies_that_nobody_serves(
    store: Store, source: Path, take: Take
) -> None:
    served = take("served", source, persistent=False)
    left = take("left", source, persistent=False)
    take("kept", source).release()
    left.release()
    assert store.collect().copies == ["left"]
    assert listed(store) == ["kept", "served"]
    served.discard()


def test_template_that_is_about_to_be_used_is_not_removed(
    store: Store, source: Path, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another mount seals a newer state between our sealing and our copy.json."""
    write = copies.CopyRecord.write
    tried: list[list[str]] = []

    def collect_first(self: copies.CopyRecord, dir_fd: int) -> None:
        tried.append(garbage.trash_unused(store, os.listdir(store.templates_fd)))
        write(self, dir_fd)

    monkeypatch.setattr(copies.CopyRecord, "write", collect_first)
    copy = take("job", source)
    assert tried == [[]]
    assert os.path.isdir(copy.template.tree)
    assert garbage.trash_unused(store, [copy.template.id]) == []


def test_template_of_a_copy_that_was_made_since_the_store_was_opened_stays(
    store: Store, source: Path, take: Take
) -> None:
    """The listing of copies/ is a new one, though its descriptor is older than the copy."""
    with contextlib.closing(Store.open(store.path)) as later:
        sealed = seal.seal(later, str(source), progress=None, warn=pytest.fail)
        copy = later.acquire("later", str(source), persistent=True, prepare=lambda: sealed)
    (source / "config.json").write_text("the source has moved on")
    assert take("another", source).template.id != sealed.id
    assert listed(store) == ["another", "later"]
    assert os.path.isdir(sealed.tree)
    copy.release()


def test_template_that_has_just_been_removed_is_sealed_again(store: Store, source: Path) -> None:
    calls = 0

    def prepare() -> Template:
        nonlocal calls
        calls += 1
        template = seal.seal(store, str(source), progress=None, warn=pytest.fail)
        if calls == 1:
            assert garbage.trash_unused(store, [template.id]) == [template.id]
        return template

    copy = store.acquire("job", str(source), persistent=True, prepare=prepare)
    assert calls == 2
    assert os.path.isdir(copy.template.tree)
    copy.release()


def test_copies_of_one_name_made_at_once_are_one(store: Store, source: Path, xfs: Path) -> None:
    results = xfs / "results"
    results.mkdir()
    gate_out, gate_in = os.pipe()
    pids = []
    for number in range(4):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.close(gate_in)
                with contextlib.closing(Store.open(store.path)) as own:
                    (results / f"{number}").write_text(_take_and_hold(own, source, gate_out))
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    os.close(gate_out)
    while len([path for path in results.iterdir() if path.stat().st_size]) < 3:
        time.sleep(0.01)
    os.close(gate_in)  # three have lost, and the one that has it may end
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 4
    outcomes = [path.read_text() for path in results.iterdir()]
    assert outcomes.count("taken") == 1
    assert sum("in use" in outcome for outcome in outcomes) == 3
    assert listed(store) == ["job"]
    assert parts(store) == {"partial": 0, "trash": 0}


def _take_and_hold(store: Store, source: Path, gate: int) -> str:
    try:
        store.acquire(
            "job",
            str(source),
            persistent=True,
            prepare=lambda: seal.seal(store, str(source), progress=None, warn=pytest.fail),
        )
    except MountFailure as error:
        return str(error)
    os.read(gate, 1)  # its end
    return "taken"


def test_kernel_overlay_shows_a_new_copy_as_its_template(
    source: Path, take: Take, tmp_path: Path
) -> None:
    copy = take("job", source)
    merged = tmp_path / "merged"
    merged.mkdir()
    options = f"lowerdir={copy.template.tree},upperdir={copy.upper},workdir={copy.work}"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "none", merged], check=True)
    try:
        assert sorted(os.listdir(merged)) == sorted(os.listdir(source))
    finally:
        subprocess.run(["umount", merged], check=True)
    copy.release()
    assert os.listdir(take("job", source).work) == [], "what overlayfs left there is cleared"


# --- marks ----------------------------------------------------------------------------------------


def test_marks_are_read_back_through_descriptors_and_paths(xfs: Path) -> None:
    (xfs / "sub").mkdir()
    (xfs / "link").symlink_to("sub")
    fd = os.open(xfs, os.O_RDONLY)
    sub = os.open(xfs / "sub", os.O_RDONLY)
    looked_at = os.open(xfs / "link", os.O_PATH | os.O_NOFOLLOW)
    path = ondisk.proc_path(fd, b"sub")
    try:
        assert ondisk.get_ino(path) is None
        assert ondisk.get_redirect(sub) is None
        assert not ondisk.is_opaque(path)
        ondisk.set_ino(path, 2**63 + 5)
        ondisk.set_opaque(sub)
        ondisk.set_redirect(ondisk.proc_path(sub), b"/a/\xff")
        assert ondisk.get_ino(sub) == 2**63 + 5
        assert ondisk.is_opaque(path)
        assert ondisk.get_redirect(path) == b"/a/\xff"
        ondisk.set_xattr(path, b"trusted.\xff", b"")
        assert ondisk.get_xattr(path, b"trusted.\xff") == b""
        assert {name for name in ondisk.list_xattrs(sub) if not ondisk.is_internal(name)} == {
            b"trusted.\xff"
        }
        with pytest.raises(FileExistsError):
            ondisk.set_xattr(path, b"trusted.\xff", b"", os.XATTR_CREATE)
        ondisk.remove_xattr(path, b"trusted.\xff")
        with pytest.raises(OSError, match="No data"):
            ondisk.set_xattr(path, b"trusted.\xff", b"", os.XATTR_REPLACE)
        # the symlink itself, and not what it leads to
        ondisk.set_xattr(ondisk.proc_path(fd, b"link"), b"trusted.a", b"1")
        ondisk.set_xattr(ondisk.proc_path(looked_at), b"trusted.b", b"2")
        names = os.listxattr(xfs / "link", follow_symlinks=False)
        assert sorted(names) == ["trusted.a", "trusted.b"]
        assert b"trusted.a" not in ondisk.list_xattrs(sub)
        ondisk.set_xattr(sub, ondisk.INO, b"short")
        with pytest.raises(OSError, match="damaged"):
            ondisk.get_ino(sub)
        ondisk.make_whiteout(fd, b"gone")
        assert ondisk.is_whiteout(os.lstat(xfs / "gone"))
        assert not ondisk.is_whiteout(os.lstat("/dev/null"))
    finally:
        for each in (fd, sub, looked_at):
            os.close(each)


def test_stray_files_in_the_store_keep_nobody_from_their_copies(
    store: Store, take: Take, source: Path
) -> None:
    for part in (store.copies_fd, store.partial_fd, store.templates_fd):
        os.close(os.open("README", os.O_CREAT | os.O_WRONLY, dir_fd=part))
    copy = take("job", source)
    assert [info.name for info in store.copies()] == ["job"]
    assert [template.id for template in store.templates()] == [copy.template.id]
    store.collect()
    assert os.path.isdir(copy.template.tree)


def test_extents_of_a_clone_are_those_of_its_source(xfs: Path) -> None:
    (xfs / "a").write_bytes(os.urandom(1 << 20))
    with (xfs / "a").open("rb") as source, (xfs / "b").open("wb+") as target:
        syscalls.ficlone(target.fileno(), source.fileno())
        extents = syscalls.fiemap(target.fileno())
        assert [e.physical for e in extents] == [
            e.physical for e in syscalls.fiemap(source.fileno())
        ]
        assert sum(extent.length for extent in extents) == 1 << 20
        assert all(extent.flags & syscalls.FIEMAP_EXTENT_SHARED for extent in extents)


def test_more_extents_than_one_call_returns_are_all_there(xfs: Path) -> None:
    with (xfs / "a").open("wb") as file:
        for index in range(1300):
            os.pwrite(file.fileno(), b"x", index * 128 * 1024)
        extents = syscalls.fiemap(file.fileno())
    written = [e.logical for e in extents if not e.flags & syscalls.FIEMAP_EXTENT_UNWRITTEN]
    assert written == [index * 128 * 1024 for index in range(1300)]


def test_unnamed_file_gets_its_name_in_one_step(xfs: Path) -> None:
    fd = os.open(xfs, os.O_RDONLY)
    unnamed = syscalls.open_tmpfile(fd, 0o640)
    os.write(unnamed, b"x")
    assert os.listdir(xfs) == []
    syscalls.link_fd(unnamed, fd, b"name")
    with pytest.raises(FileExistsError):
        syscalls.link_fd(unnamed, fd, b"name")
    assert (xfs / "name").read_bytes() == b"x"
    syscalls.set_immutable(unnamed, True)
    with pytest.raises(PermissionError):
        (xfs / "name").unlink()
    syscalls.set_immutable(unnamed, False)
    (xfs / "name").unlink()
    os.close(unnamed)
    os.close(fd)


# --- the trash ------------------------------------------------------------------------------------


def test_a_mount_removes_nothing(
    store: Store, source: Path, xfs: Path, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_trash_fd: int, name: str) -> None:
        raise AssertionError(f"a mount removes {name}")

    take("followed", source).release()
    take("killed", source, persistent=False).release()
    (Path(store.path) / "trash" / "of somebody else").mkdir()
    (Path(store.path) / "partial" / "left by a crash" / "deep").mkdir(parents=True)
    os.chmod(source, 0o711)
    template = take("another", source).template
    (Path(store.path) / "partial" / f"template-{template.id}" / "tree").mkdir(parents=True)
    monkeypatch.setattr(removal, "remove", refuse)
    take("followed", source)
    assert listed(store) == ["another", "followed"]
    assert "of somebody else" in os.listdir(Path(store.path) / "trash")
    assert parts(store) == {"partial": 0, "trash": 5}


def test_the_trash_is_emptied_beside_the_mount(
    mount_plain: MountCopy, model: Path, store: Store
) -> None:
    trash = Path(store.path) / "trash"
    (trash / "of a crash" / "deep").mkdir(parents=True)
    (trash / "of a crash" / "deep" / "file").write_text("x")
    mount_plain(model)
    deadline = time.monotonic() + 20
    while os.listdir(trash):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_one_process_empties_the_trash(store: Store) -> None:
    trash = Path(store.path) / "trash"
    (trash / "rubbish").mkdir()
    fd = os.open(trash, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)  # as cowfs gc has it
    command = [sys.executable, *emptying.EMPTYING, str(store.trash_fd)]
    subprocess.run(command, pass_fds=[store.trash_fd], check=True)
    assert os.listdir(trash) == ["rubbish"]
    store.remove_rubbish()  # whoever is told to empty it does so in any case
    assert os.listdir(trash) == []
    os.close(fd)
