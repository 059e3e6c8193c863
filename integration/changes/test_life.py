"""diff, commit, reset and rename of copies, as a user calls them."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cowfs.system import syscalls
from integration.changes.manifest import complaints
from integration.command import COWFS, Result, one_error, run
from integration.command import cowfs as run_cowfs
from integration.effort import EFFORT, SEED
from integration.mounts import MountCopy
from integration.trees import Entry, differences, tree_state
from integration.volumes import MIB, Volume

Cowfs = Callable[..., Result]


def shown(root: Path) -> dict[str, Entry]:
    """A tree, but for the links of directories, which overlayfs does not count."""
    return {
        path: entry._replace(nlink=0) if stat.S_ISDIR(entry.mode) else entry
        for path, entry in tree_state(root).items()
    }


def change(root: Path) -> None:
    """One of each thing that makes a copy differ from its template."""
    with (root / "weights.bin").open("r+b") as file:
        file.write(b"mine")
    (root / "new").write_bytes(os.urandom(MIB))
    (root / "small.bin").unlink()
    (root / "many" / "f003").unlink()
    (root / "many" / "f003").mkdir()
    (root / "many" / "f003" / "inner").write_text("inner")
    (root / "many" / "f004").rename(root / "many" / "g004")
    (root / "config.json").chmod(0o600)
    os.setxattr(root / "config.json", "user.mine", b"yes")
    (root / "tokenizer").rename(root / "moved")
    (root / "moved" / "deep").rename(root / "deep")
    (root / "moved" / "added").write_text("added")
    (root / "tokenizer").mkdir()
    (root / "tokenizer" / "vocab.txt").write_text("another")


CHANGES = {
    ("added", "many/f003/inner"): [],
    ("added", "moved/added"): [],
    ("added", "new"): [],
    ("added", "tokenizer"): [],
    ("added", "tokenizer/vocab.txt"): [],
    ("changed", "config.json"): ["mode", "xattr"],
    ("changed", "many/f003"): ["type"],
    ("changed", "weights.bin"): ["content"],
    ("removed", "small.bin"): [],
    ("renamed", "deep"): [],
    ("renamed", "many/g004"): [],
    ("renamed", "moved"): [],
}


def told(cowfs: Cowfs, *words: str | Path) -> dict[str, Any]:
    """What `cowfs diff --json` says."""
    result = cowfs("diff", "--json", *words, check=False)
    found: dict[str, Any] = json.loads(result.stdout)
    assert result.returncode == int(found["different"])
    return found


def kinds(found: dict[str, Any]) -> dict[tuple[str, str], list[str]]:
    return {(one["kind"], one["path"]): one["what"] for one in found["changes"]}


@pytest.mark.quick
@pytest.mark.parametrize("way", ["passthrough=on", "passthrough=off", "engine=overlay"])
def test_diff_tells_each_kind_of_change_while_mounted_and_after(
    cowfs: Cowfs, mount_plain: MountCopy, model: Path, way: str
) -> None:
    root = mount_plain(model, None, way, "copy=job")
    assert cowfs("diff", root).stdout == ""
    change(root)
    before, after = shown(model), shown(root)
    # overlayfs copies small files up without cloning them, and keeps no inode numbers.
    words = ["--content"] if way == "engine=overlay" else []
    found = told(cowfs, *words, root)
    assert kinds(found) == CHANGES
    assert not complaints(before, after, found["changes"])
    mount_plain.unmount(root)
    assert told(cowfs, *words, "job") == found
    by_path = {one["path"]: one for one in found["changes"]}
    assert by_path["moved"]["old_path"] == "tokenizer"
    assert by_path["new"]["size"] == by_path["new"]["private"] == MIB
    assert 0 < by_path["weights.bin"]["private"] < MIB
    result = cowfs("diff", *words, "--stat", "job", check=False)
    assert result.stdout.startswith("5 added, 1 removed, 3 changed, 3 renamed: ")
    names = cowfs("diff", *words, "--name-only", "job", check=False).stdout.splitlines()
    assert names == sorted(path for _, path in CHANGES)
    lines = cowfs("diff", *words, "job", check=False).stdout.splitlines()
    assert "renamed tokenizer -> moved/" in lines


def test_content_is_read_only_when_that_is_asked_for(
    cowfs: Cowfs, mount_plain: MountCopy, model: Path
) -> None:
    root = mount_plain(model)
    data = (root / "weights.bin").read_bytes()
    (root / "weights.bin").write_bytes(data)
    assert kinds(told(cowfs, root)) == {("changed", "weights.bin"): ["content"]}
    assert cowfs("diff", "--content", root).stdout == ""
    os.utime(root / "config.json", ns=(1, 1))
    assert ("changed", "config.json") not in kinds(told(cowfs, root))
    assert kinds(told(cowfs, "--times", "--content", root)) == {
        ("changed", "config.json"): ["times"],
        ("changed", "weights.bin"): ["times"],
    }


def test_copies_are_compared_with_each_other_and_with_the_source(
    cowfs: Cowfs, mount_plain: MountCopy, model: Path
) -> None:
    one, two = (mount_plain(model, None, f"copy={name}") for name in ("one", "two"))
    (one / "both").write_text("the same")
    shutil.copy2(one / "both", two / "both")
    (one / "config.json").write_text("mine")
    (two / "small.bin").unlink()
    assert kinds(told(cowfs, "--content", one, "two")) == {
        ("added", "small.bin"): [],
        ("changed", "config.json"): ["content"],
    }
    (model / "script.sh").write_text("moved on")
    (model / "later").write_text("later")
    found = told(cowfs, "--source", two)
    assert kinds(found) == {
        ("added", "both"): [],
        ("changed", "script.sh"): ["content"],
        ("removed", "later"): [],
        ("removed", "small.bin"): [],
    }
    origins = {one["path"]: one["origin"] for one in found["changes"]}
    assert origins == {
        "both": "copy",
        "script.sh": "source",
        "later": "source",
        "small.bin": "copy",
    }


def test_names_of_one_file_that_were_parted_or_joined_are_told(
    cowfs: Cowfs, mount_plain: MountCopy, model: Path
) -> None:
    root = mount_plain(model)
    shutil.copy2(root / "hard1", root / "aside")
    (root / "aside").rename(root / "hard1")
    (root / "many" / "f001").unlink()
    os.link(root / "many" / "f000", root / "many" / "f001")
    (root / "many" / "f000").write_text("1")  # one more name alone is told by that name
    os.link(root / "many" / "f005", root / "again")
    found = kinds(told(cowfs, "--content", root))
    assert "links" in found.pop(("changed", "hard1"), []) + found.pop(
        ("changed", "tokenizer/hard2"), []
    )
    links = [path for (_, path), what in found.items() if "links" in what]
    assert len(links) == 1
    assert links[0] in ("many/f000", "many/f001")
    assert ("added", "again") in found


def physical(path: Path) -> list[int]:
    with path.open("rb") as file:
        return [extent.physical for extent in syscalls.fiemap(file.fileno())]


@pytest.mark.quick
def test_commit_makes_a_source_of_clones(
    cowfs: Cowfs, mount_plain: MountCopy, model: Path, xfs: Path
) -> None:
    root = mount_plain(model, None, "copy=job")
    change(root)
    before = shown(root)
    cowfs("commit", root, xfs / "mounted")
    mount_plain.unmount(root)
    cowfs("commit", "job", xfs / "plain")
    for place in (xfs / "mounted", xfs / "plain"):
        assert differences(before, shown(place)) == ""
        assert physical(place / "sparse.bin") == physical(model / "sparse.bin")
        marks = [os.listxattr(path, follow_symlinks=False) for path in place.rglob("*")]
        assert not any(name.startswith("trusted.") for names in marks for name in names)
    again = mount_plain(xfs / "plain")
    assert differences(before, shown(again)) == ""
    assert [name for name in os.listdir(xfs) if name.startswith(".")] == []


def test_layer_is_applied_by_umoci(
    cowfs: Cowfs, mount_plain: MountCopy, model: Path, xfs: Path
) -> None:
    (model / "replaced").mkdir()
    (model / "replaced" / "old").write_text("old")
    root = mount_plain(model)
    change(root)
    shutil.rmtree(root / "replaced")
    (root / "replaced").mkdir()
    (root / "replaced" / "new").write_text("new")
    (root / "sparse2").touch()
    os.truncate(root / "sparse2", 64 * MIB)
    (root / "ha\udcffte").write_text("a name that is no text")
    os.setxattr(root / "new", "user.binary", bytes(range(256)))
    os.symlink("new", root / "link")
    os.mkfifo(root / "fifo")
    with (root / "hard1").open("a") as file:
        file.write("more")
    os.link(root / "many" / "f005", root / "linked")
    os.utime(root / "new", ns=(1, 1_234_567_890_123_456_789))
    cowfs("commit", root, "--oci", xfs / "layer.tar")
    assert (xfs / "layer.tar").stat().st_blocks * 512 < 16 * MIB  # holes are holes
    run("tar", "--xattrs", "--xattrs-include=*", "-C", model, "-cf", xfs / "base.tar", ".")
    image = f"{xfs}/image"
    run("umoci", "init", "--layout", image)
    run("umoci", "new", "--image", f"{image}:copy")
    for layer in ("base.tar", "layer.tar"):
        run("umoci", "raw", "add-layer", "--image", f"{image}:copy", xfs / layer)
    run("umoci", "unpack", "--image", f"{image}:copy", xfs / "bundle")
    expected, got = shown(root), shown(xfs / "bundle" / "rootfs")
    # The times of what only the first layer has are whole seconds there.
    for tree in (expected, got):
        for path, entry in tree.items():
            assert entry.mtime_ns is not None
            tree[path] = entry._replace(mtime_ns=entry.mtime_ns // 10**9)
    assert differences(expected, got) == ""


@pytest.mark.quick
def test_reset_takes_back_some_paths_or_all(
    cowfs: Cowfs, mount_plain: MountCopy, model: Path
) -> None:
    root = mount_plain(model, None, "copy=job")
    change(root)
    refused = cowfs("reset", root, check=False)
    assert refused.returncode == 32
    assert str(root) in one_error(refused)
    mount_plain.unmount(root)
    alone = cowfs("reset", "job", "tokenizer", check=False)
    assert alone.returncode == 1
    assert "renamed to" in one_error(alone)
    inside = cowfs("reset", "job", "tokenizer/deep/er/leaf", check=False)
    assert "reset that directory" in one_error(inside)
    cowfs("reset", "job", "small.bin", "many", "./weights.bin")
    left = kinds(told(cowfs, "job"))
    assert left == {
        key: what
        for key, what in CHANGES.items()
        if key[1] not in ("small.bin", "weights.bin") and not key[1].startswith("many")
    }
    cowfs("reset", "job", "tokenizer", "moved", "deep")
    assert set(kinds(told(cowfs, "job"))) == {("added", "new"), ("changed", "config.json")}
    assert cowfs("check", "job").stdout.endswith("clean\n")
    cowfs("reset", "job")
    assert cowfs("diff", "job").stdout == ""
    mount_plain(model, root, "copy=job")
    assert differences(shown(model), shown(root)) == ""


def test_a_file_that_has_left_what_is_reset_is_one_of_its_own(
    cowfs: Cowfs, mount_plain: MountCopy, model: Path
) -> None:
    root = mount_plain(model, None, "copy=job")
    (root / "weights.bin").rename(root / "aside")
    with (root / "hard1").open("a") as file:
        file.write("mine")
    mount_plain.unmount(root)
    cowfs("reset", "job", "weights.bin", "hard1")
    assert cowfs("check", "job").stdout.endswith("clean\n")
    mount_plain(model, root, "copy=job")
    assert (root / "aside").read_bytes() == (root / "weights.bin").read_bytes()
    assert (root / "aside").stat().st_ino != (root / "weights.bin").stat().st_ino
    assert (root / "hard1").read_text() == "one inode, two names\n"
    assert (root / "tokenizer" / "hard2").read_text() == "one inode, two names\nmine"


@pytest.mark.quick
def test_rename_gives_a_kept_copy_another_name(
    cowfs: Cowfs, mount_plain: MountCopy, model: Path, xfs_volume: Volume
) -> None:
    root = mount_plain(model)
    (root / "mine").write_text("mine")
    assert cowfs("rename", root, "kept", check=False).returncode == 32
    mount_plain.unmount(root)
    cowfs("rename", root, "kept")
    assert "no copy" in one_error(cowfs("diff", root, check=False))
    mount_plain("kept", root, f"store={xfs_volume.mountpoint}/.cowfs")
    assert (root / "mine").read_text() == "mine"
    mount_plain.unmount(root)
    mount_plain(model, root, "copy=another")
    mount_plain.unmount(root)
    taken = cowfs("rename", "kept", "another", check=False)
    assert taken.returncode == 1
    assert "copy another" in one_error(taken)
    assert cowfs("check", "--all").stdout.endswith("clean\n")


def test_bad_input_is_one_line_and_leaves_nothing(
    cowfs: Cowfs, mount_plain: MountCopy, model: Path, xfs: Path, tmp_path: Path
) -> None:
    root = mount_plain(model, None, "copy=job")
    (root / ".wh.odd").touch()
    store = mount_plain.record(root)["store"]
    mount_plain.unmount(root)
    (xfs / "there").mkdir()
    before = sorted(os.listdir(xfs))
    for code, words, said in (
        (2, ("diff", "nothing"), "no copy nothing"),
        (2, ("diff", "job", "nothing"), "no copy nothing"),
        (2, ("diff", "job", "job", "--source"), "not both"),
        (2, ("diff", "--bogus", "job"), "bogus"),
        (2, ("diff", "--json", "--stat", "job"), "one of"),
        (1, ("commit", "job"), "DESTINATION"),
        (1, ("commit", "job", xfs / "there"), "exists"),
        (1, ("commit", "job", tmp_path / "other"), "another volume"),
        (1, ("commit", "job", f"{store}/copies/mine"), "in the store"),
        (1, ("commit", "job", xfs / "no" / "place"), "mkdir"),
        (1, ("commit", "nothing", xfs / "new"), "no copy nothing"),
        (32, ("commit", "job", "--oci", xfs / "layer"), ".wh.odd"),
        (1, ("commit", "job", "--oci", f"{store}/layer"), "in the store"),
        (1, ("reset", "job", "../job"), "'..'"),
        (1, ("reset", "job", "/etc"), "seen from its top"),
        (1, ("reset", "job", "no/where"), "there is no no/where"),
        (1, ("reset", "job", "many", "no/where"), "there is no no/where"),
        (1, ("rename", "job", "a/b"), "slash"),
        (1, ("rename", "job", "job"), "already"),
        (1, ("rename", "nothing", "some"), "no copy nothing"),
    ):
        result = cowfs(*words, check=False)
        assert result.returncode == code, (words, result)
        assert said in one_error(result), words
    assert sorted(os.listdir(xfs)) == before
    assert cowfs("check", "--all").stdout.endswith("clean\n")
    assert ("added", ".wh.odd") in kinds(told(cowfs, "job"))


def test_a_full_volume_leaves_the_copy_as_it_was(
    mount_plain: MountCopy, small_xfs: Callable[..., Volume]
) -> None:
    volume = small_xfs(64).mountpoint
    (volume / "source").mkdir()
    for number in range(50):
        (volume / "source" / f"f{number}").write_text(str(number))
    root = mount_plain(volume / "source", None, "copy=job")
    for number in range(3000):
        (root / f"mine{number}").touch()
    before = shown(root)
    mount_plain.unmount(root)
    _fill_up(volume)
    for words in (("commit", "job", volume / "new"), ("reset", "job", "f1", "mine1")):
        result = run_cowfs(words[0], "--store", volume / ".cowfs", *words[1:], check=False)
        assert result.returncode == 32, result
        assert re.search("no space left|is full", one_error(result))
    assert not (volume / "new").exists()
    (volume / "filler").unlink()
    mount_plain(volume / "source", root, "copy=job")
    assert differences(before, shown(root)) == ""


def _fill_up(volume: Path) -> None:
    with (volume / "filler").open("wb", buffering=0) as filler:
        for size in (MIB, 4096):
            try:
                while True:
                    filler.write(bytes(size))
            except OSError:
                continue
    with (volume / "filler").open("rb") as filler:
        os.fsync(filler.fileno())


@pytest.mark.timeout(300 * EFFORT)
def test_a_commit_that_is_killed_can_be_given_again(
    cowfs: Cowfs, mount_plain: MountCopy, xfs: Path, xfs_volume: Volume
) -> None:
    root, place = _changed(mount_plain, xfs, 0), xfs / "new"
    before = shown(root)
    mount_plain.unmount(root)
    store = ["--store", str(xfs_volume.mountpoint / ".cowfs")]
    chance = random.Random(SEED)
    took = 0.5
    for _ in range(3 * EFFORT):
        started = time.monotonic()
        if not _kill_after(chance.uniform(0.4, 1.1) * took, ["commit", *store, "job0", str(place)]):
            took = time.monotonic() - started
        if place.exists():
            assert differences(before, shown(place)) == ""
            shutil.rmtree(place)
        assert cowfs("check", "job0").stdout.endswith("clean\n")
        cowfs("commit", "job0", place)
        assert differences(before, shown(place)) == ""
        assert not [name for name in os.listdir(xfs) if name.startswith(".")]
        shutil.rmtree(place)


def _changed(mounts: MountCopy, xfs: Path, turn: int) -> Path:
    """A mounted copy with many changes."""
    if not (xfs / "source").exists():
        for number in range(400):
            path = xfs / "source" / str(number % 5) / str(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(str(number))
    root = mounts(xfs / "source", None, f"copy=job{turn}")
    for number in range(0, 400, 2):
        (root / str(number % 5) / str(number)).write_text("changed")
    return root


@pytest.mark.timeout(300 * EFFORT)
def test_a_reset_that_is_killed_leaves_all_or_nothing(
    cowfs: Cowfs, mount_plain: MountCopy, xfs: Path, xfs_volume: Volume
) -> None:
    store = ["--store", str(xfs_volume.mountpoint / ".cowfs")]
    chance = random.Random(SEED)
    took = 0.5
    for turn in range(3 * EFFORT):
        mount_plain.unmount(_changed(mount_plain, xfs, turn))
        whole = _unweighed(cowfs, f"job{turn}")
        rest = [one for one in whole if not one["path"].startswith("0/")]
        for words, after in ((["0"], rest), ([], [])):
            started = time.monotonic()
            killed = _kill_after(
                chance.uniform(0.4, 1.1) * took, ["reset", *store, f"job{turn}", *words]
            )
            if not killed:
                took = time.monotonic() - started
            assert _unweighed(cowfs, f"job{turn}") in (whole, after)
            assert cowfs("check", "--all").returncode == 0
            cowfs("reset", f"job{turn}", *words)
            whole = _unweighed(cowfs, f"job{turn}")
            assert whole == after


def _unweighed(cowfs: Cowfs, name: str) -> list[dict[str, Any]]:
    """The changes, but for private bytes: what was killed may have left clones that share them."""
    return [{**one, "private": 0} for one in told(cowfs, name)["changes"]]


def _kill_after(seconds: float, words: list[str]) -> bool:
    """Start the command and kill it with all of its processes; whether it was still there."""
    process = subprocess.Popen(
        [str(COWFS), *words],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False
