"""`cowfs rm`, `gc` and `store`: what they free and say, and what they ask before."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from integration import kernel, screens
from integration.command import COWFS, Result, cowfs, one_error, run
from integration.mounts import MountCopy
from integration.screens import on_terminal
from integration.trees import tree_state
from integration.volumes import MIB, Volume, remove_tree


@pytest.fixture
def volume_(small_xfs: Callable[..., Volume]) -> Volume:
    """A volume for the test alone."""
    return small_xfs(400)


def make_source(path: Path, size: int = 8 * MIB) -> Path:
    """A source with one file of this size."""
    path.mkdir(parents=True)
    (path / "weights").write_bytes(os.urandom(size))
    return path


def write(path: Path, size: int = MIB) -> None:
    """Change the first bytes of a file, and have them on the disk."""
    with path.open("r+b") as file:
        file.write(os.urandom(size))
        os.fsync(file.fileno())


def kept(mounts: MountCopy, source: Path, name: str, *options: str, size: int = MIB) -> None:
    """A copy that is not mounted, with changes of this size."""
    mountpoint = mounts(source, None, f"copy={name}", *options)
    if size:
        write(mountpoint / "weights", size)
    mounts.unmount(mountpoint)


def names_in(store: Path, part: str) -> list[str]:
    return sorted(path.name for path in (store / part).iterdir())


# --- rm -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["fuse", "overlay"])
def test_rm_frees_what_it_says_at_once(
    mount_plain: MountCopy, volume_: Volume, engine: str
) -> None:
    source = make_source(volume_.mountpoint / "model")
    store = volume_.mountpoint / ".cowfs"
    for name in ("one", "two"):
        kept(mount_plain, source, name, f"engine={engine}")
    remove_tree(source)
    before = volume_.free()
    said = cowfs("rm", "--store", store, "one").stdout
    assert said == (
        "discarded copy one (1 file): frees 1.0 MiB; its template stays, 1 other copy needs it\n"
    )
    assert names_in(store, "templates") != []
    middle = volume_.free()
    assert MIB <= middle - before < 2 * MIB
    said = cowfs("rm", "--store", store, "two").stdout
    assert said == (
        "discarded copy two (1 file) and its template, which no other copy needs: frees 9.0 MiB\n"
    )
    assert 9 * MIB <= volume_.free() - middle < 10 * MIB
    for part in ("copies", "templates", "lowers", "trash"):
        assert not (store / part).exists() or names_in(store, part) == []


def test_what_the_source_has_too_is_not_counted(mount_plain: MountCopy, volume_: Volume) -> None:
    source = make_source(volume_.mountpoint / "model")
    kept(mount_plain, source, "one", "engine=overlay", size=0)
    said = cowfs("rm", "--store", volume_.mountpoint / ".cowfs", "one").stdout
    assert said == (
        "discarded copy one (no changed files) and its template, which no other copy needs: "
        "frees 0 B\n"
    )


def test_a_source_is_known_where_set_source_has_moved_it(
    mount_plain: MountCopy, volume_: Volume
) -> None:
    source = make_source(volume_.mountpoint / "model")
    store = volume_.mountpoint / ".cowfs"
    for name in ("one", "two"):
        kept(mount_plain, source, name)
    moved = source.rename(volume_.mountpoint / "moved")
    cowfs("rm", "--store", store, "two")
    cowfs("set-source", "--store", store, "one", moved)
    kept(mount_plain, moved, "new")
    before = volume_.free()
    assert names_in(store, "copies") == ["new", "one"]
    assert len(names_in(store, "templates")) == 2
    rows = json.loads(cowfs("list", "--json", "--store", store).stdout)
    assert [row["frees"] for row in rows] == [MIB, MIB]
    said = cowfs("rm", "--store", store, "one").stdout
    assert said.endswith("and its template, which no other copy needs: frees 1.0 MiB\n")
    assert MIB <= volume_.free() - before < 2 * MIB


def test_another_template_is_known_where_set_source_has_moved_its_source(
    mount_plain: MountCopy, volume_: Volume
) -> None:
    source = make_source(volume_.mountpoint / "model")
    store = volume_.mountpoint / ".cowfs"
    kept(mount_plain, source, "old")
    moved = source.rename(volume_.mountpoint / "moved")
    cowfs("set-source", "--store", store, "old", moved)
    kept(mount_plain, moved, "new")
    remove_tree(moved)
    before = volume_.free()
    assert "frees 1.0 MiB" in cowfs("rm", "--store", store, "new").stdout
    assert "frees 9.0 MiB" in cowfs("rm", "--store", store, "old").stdout
    assert 10 * MIB <= volume_.free() - before < 11 * MIB


def test_an_older_template_with_the_same_files_is_counted(
    mount_plain: MountCopy, volume_: Volume
) -> None:
    source = make_source(volume_.mountpoint / "model")
    kept(mount_plain, source, "old")
    (source / "more").write_bytes(os.urandom(2 * MIB))
    kept(mount_plain, source, "new")
    remove_tree(source)
    store = volume_.mountpoint / ".cowfs"
    assert "frees 3.0 MiB" in cowfs("rm", "--store", store, "new").stdout
    assert "frees 9.0 MiB" in cowfs("rm", "--store", store, "old").stdout


def test_rm_of_a_damaged_copy(mount_plain: MountCopy, volume_: Volume) -> None:
    source = make_source(volume_.mountpoint / "model")
    kept(mount_plain, source, "broken")
    store = volume_.mountpoint / ".cowfs"
    (store / "copies/broken/copy.json").write_text("{")
    said = cowfs("rm", "--store", store, "broken").stdout
    assert said == "discarded copy broken (1 file): frees 1.0 MiB\n"
    kept(mount_plain, source, "hollow")
    remove_tree(store / "copies/hollow/upper")
    said = cowfs("rm", "--store", store, "hollow").stdout
    assert "discarded copy hollow (whatever is in it, it is damaged)" in said


def test_rm_asks_on_a_terminal_about_changes(mount_plain: MountCopy, volume_: Volume) -> None:
    source = make_source(volume_.mountpoint / "model")
    store = volume_.mountpoint / ".cowfs"
    kept(mount_plain, source, "mine")
    kept(mount_plain, source, "same", size=0)
    refused = on_terminal(COWFS, "rm", "--store", store, "mine", answer="\n")
    screens.compare(__file__, "rm-refused", refused.text)
    assert refused.returncode == 0
    assert names_in(store, "copies") == ["mine", "same"]
    unasked = on_terminal(COWFS, "rm", "--store", store, "same")
    screens.compare(__file__, "rm-unchanged", unasked.text)
    agreed = on_terminal(COWFS, "rm", "--store", store, "mine", answer="y\n")
    screens.compare(__file__, "rm-agreed", agreed.text)
    assert names_in(store, "copies") == []
    kept(mount_plain, source, "mine")
    assert "?" not in on_terminal(COWFS, "rm", "-y", "--store", store, "mine").text
    assert names_in(store, "copies") == []


def test_mounts_that_begin_while_copies_of_their_source_are_removed(
    mount_plain: MountCopy, volume_: Volume
) -> None:
    """The template goes with the last copy, and a mount that has just found it seals it anew."""
    source = make_source(volume_.mountpoint / "model", MIB)
    store = volume_.mountpoint / ".cowfs"
    first = mount_plain.mountpoint()
    second = mount_plain.mountpoint()
    complaints: list[str] = []

    def mount_and_remove(mountpoint: Path, name: str) -> None:
        for _ in range(6):
            for arguments in (
                ("mount", "-o", f"copy={name}", source, mountpoint),
                ("umount", mountpoint),
                ("rm", "--store", store, name),
            ):
                result = cowfs(*arguments, check=False, timeout=100)
                if result.returncode != 0:
                    complaints.append(f"{arguments}: {result.stderr}")
                elif arguments[0] == "mount" and not (mountpoint / "weights").exists():
                    complaints.append("a copy has no files")

    other = threading.Thread(target=mount_and_remove, args=(second, "second"))
    other.start()
    mount_and_remove(first, "first")
    other.join()
    assert complaints == []
    assert names_in(store, "templates") == []


# --- gc -------------------------------------------------------------------------------------------


def test_gc_says_what_it_frees_and_what_stays(mount_plain: MountCopy, volume_: Volume) -> None:
    source = make_source(volume_.mountpoint / "model")
    store = volume_.mountpoint / ".cowfs"
    kept(mount_plain, source, "passing", "ephemeral", size=0)
    said = cowfs("gc", "--store", store).stdout
    assert said == (
        f"{store}: removed 0 templates and 0 ephemeral copies; kept for unchanged sources: "
        "1 template\n"
    )
    left = mount_plain(source, None, "copy=left,ephemeral,engine=fuse")
    write(left / "weights")
    mount_plain.kill(left)
    remove_tree(source)
    before = volume_.free()
    said = cowfs("gc", "--store", store).stdout
    assert said == (f"{store}: removed 1 template and 1 ephemeral copy, which frees 9.0 MiB\n")
    assert 9 * MIB <= volume_.free() - before < 10 * MIB


# --- stores ---------------------------------------------------------------------------------------


def stores_below(path: Path) -> dict[str, dict[str, Any]]:
    """What `cowfs store` knows below a directory, by path."""
    rows = json.loads(cowfs("store", "--json").stdout)
    return {row["path"]: row for row in rows if str(row["path"]).startswith(f"{path}/")}


def test_a_store_elsewhere_is_found_as_long_as_it_may_come_back(
    mount_plain: MountCopy, volume_: Volume
) -> None:
    source = make_source(volume_.mountpoint / "model")
    store = volume_.mountpoint / "deep/store"
    store.parent.mkdir()
    name = f"elsewhere-{volume_.image.parent.parent.name}"
    kept(mount_plain, source, name, f"store={store}")
    assert stores_below(volume_.mountpoint) == {
        str(store): {
            "path": str(store),
            "volume": str(volume_.mountpoint),
            "copies": 1,
            "mounted": 0,
            "templates": 1,
            "bytes": MIB,
            "bytes_exact": True,
            "state": "idle",
        }
    }
    assert name in {row["name"] for row in json.loads(cowfs("list", "--json").stdout)}
    assert "1 copy" in cowfs("check", name).stdout
    volume_.unmount()
    absent = stores_below(volume_.mountpoint)[str(store)]
    assert (absent["state"], absent["copies"]) == ("volume not mounted", None)
    assert name not in {row["name"] for row in json.loads(cowfs("list", "--json").stdout)}
    volume_.mount()
    assert stores_below(volume_.mountpoint)[str(store)]["state"] == "idle"
    assert f"discarded copy {name} " in cowfs("rm", name).stdout
    remove_tree(store)
    assert stores_below(volume_.mountpoint) == {}
    assert str(store) not in str([path.read_text() for path in kernel.REGISTRY.iterdir()])


def test_a_store_at_the_top_of_its_volume_needs_no_note(
    mount_plain: MountCopy, volume_: Volume
) -> None:
    source = make_source(volume_.mountpoint / "model")
    store = volume_.mountpoint / ".cowfs"
    kept(mount_plain, source, "one", f"store={store}", size=0)
    assert list(stores_below(volume_.mountpoint)) == [str(store)]
    volume_.unmount()
    assert stores_below(volume_.mountpoint) == {}
    volume_.mount()


def test_what_lies_at_the_path_of_a_store_is_not_taken_for_it(
    mount_plain: MountCopy, volume_: Volume
) -> None:
    """Whoever owns the directory above may have put another of root's directories there."""
    source = make_source(volume_.mountpoint / "model")
    store = volume_.mountpoint / "theirs/store"
    store.parent.mkdir()
    kept(mount_plain, source, "one", f"store={store}", size=0)
    treasure = volume_.mountpoint / "treasure"
    (treasure / "trash").mkdir(parents=True, mode=0o700)
    (treasure / "trash/valuable").touch()
    treasure.chmod(0o700)
    store.rename(volume_.mountpoint / "moved")
    treasure.rename(store)
    rows = stores_below(volume_.mountpoint)
    assert str(store) not in rows
    assert names_in(store.parent, "store") == ["trash"]
    assert names_in(store, "trash") == ["valuable"]
    refused = one_error(cowfs("store", "rm", "--yes", volume_.mountpoint / "model", check=False))
    assert "is open to other users" in refused


@pytest.mark.quick
def test_store_rm_refuses_what_is_no_store(volume_: Volume) -> None:
    secret = volume_.mountpoint / "secret"
    secret.mkdir(mode=0o700)
    (secret / "file").touch()
    refused = one_error(cowfs("store", "rm", "--yes", secret, check=False))
    assert "is none" in refused
    assert names_in(volume_.mountpoint, "secret") == ["file"]
    refused = one_error(cowfs("store", "rm", "--yes", secret / "none", check=False))
    assert "there is no store" in refused
    assert one_error(cowfs("list", "--store", secret, check=False)) == (
        f"cowfs: the store {secret} is none: name a directory .cowfs, or leave --store out"
    )


@pytest.mark.parametrize("engine", ["fuse", "overlay"])
def test_store_rm_removes_a_store_with_all_that_is_in_it(
    mount_plain: MountCopy, volume_: Volume, engine: str
) -> None:
    source = make_source(volume_.mountpoint / "model")
    store = volume_.mountpoint / "store"
    kept(mount_plain, source, "one", f"store={store}", f"engine={engine}")
    mountpoint = mount_plain(source, None, "copy=two", f"store={store}", f"engine={engine}")
    refused = cowfs("store", "rm", "--yes", store, check=False)
    assert refused.returncode == 32
    assert one_error(refused) == (
        f"cowfs: the copy two is mounted at {mountpoint}: unmount it first"
    )
    assert sorted(os.listdir(volume_.mountpoint)) == ["model", "store"]
    mount_plain.unmount(mountpoint)
    refused = cowfs("store", "rm", store, check=False)
    assert refused.returncode == 1
    assert one_error(refused) == (
        f"cowfs: the store {store} with 2 kept copies (1 with changes) and 1 template is left "
        "alone: say --yes to remove it for good"
    )
    assert names_in(store, "copies") == ["one", "two"]
    asked = on_terminal(COWFS, "store", "rm", store, answer="n\n")
    assert " ".join(asked.text.split()).endswith(f"the store {store} is kept")
    before = volume_.free()
    remove_tree(source)
    said = cowfs("store", "rm", "--yes", store).stdout
    assert said == (
        f"removed the store {store} with 2 kept copies (1 with changes) and 1 template: frees "
        "9.0 MiB\n"
    )
    assert volume_.free() - before >= 9 * MIB
    assert os.listdir(volume_.mountpoint) == []
    assert stores_below(volume_.mountpoint) == {}
    assert "there is no store" in one_error(cowfs("store", "rm", store, check=False))


def test_store_rm_that_fails_half_way_can_be_repeated(
    mount_plain: MountCopy, volume_: Volume
) -> None:
    source = make_source(volume_.mountpoint / "model")
    store = volume_.mountpoint / "store"
    kept(mount_plain, source, "one", f"store={store}")
    in_the_way = store / "trash/busy"
    in_the_way.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", in_the_way], check=True)
    try:
        failed = cowfs("store", "rm", "--yes", store, check=False)
        assert failed.returncode == 32
        assert "Device or resource busy" in one_error(failed)
        assert sorted(os.listdir(volume_.mountpoint)) == ["model", "store"]
    finally:
        subprocess.run(["umount", in_the_way], check=True)
    cowfs("store", "rm", "--yes", store)
    assert os.listdir(volume_.mountpoint) == ["model"]


def test_store_rm_that_is_killed_can_be_repeated(
    mount_plain: MountCopy, volume_: Volume, tmp_path: Path
) -> None:
    """At its first changes, in the middle, and at its last ones: the last of all forgets it."""
    source = make_source(volume_.mountpoint / "model")
    other, store = (volume_.mountpoint / name for name in ("other", "store"))
    kept(mount_plain, source, "mine", f"store={other}", size=0)
    before = tree_state(other)
    trace = tmp_path / "trace"

    def removed(*inject: str) -> Result:
        strace = ("strace", "-o", trace, "-e", "trace=renameat2,unlinkat", *inject)
        kept(mount_plain, source, "one", f"store={store}")
        return run(*strace, COWFS, "store", "rm", "--yes", store, check=False)

    assert removed().returncode == 0
    calls = [line.partition("(")[0] for line in trace.read_text().splitlines()]
    renames, unlinks = calls.count("renameat2"), calls.count("unlinkat")
    seen = set()
    for call, nth in (
        *(("renameat2", nth) for nth in (1, 2, renames)),
        *(("unlinkat", nth) for nth in (unlinks // 2, unlinks - 3, unlinks - 2, unlinks - 1)),
    ):
        killed = removed("-e", f"inject={call}:signal=SIGKILL:when={nth}")
        assert killed.returncode == -signal.SIGKILL
        seen |= {name.partition("-")[0] for name in os.listdir(volume_.mountpoint)}
        said = cowfs("store", "rm", "--yes", store).stdout
        assert said.startswith(("removed the store ", "forgot the store "))
        assert sorted(os.listdir(volume_.mountpoint)) == ["model", "other"]
        assert stores_below(volume_.mountpoint).keys() == {str(other)}
    assert seen == {"model", "other", "store", ".store.removed"}
    assert tree_state(other) == before
    assert (source / "weights").stat().st_size == 8 * MIB


def test_a_store_that_is_not_there_is_forgotten_when_asked(
    mount_plain: MountCopy, volume_: Volume
) -> None:
    source = make_source(volume_.mountpoint / "model")
    store = volume_.mountpoint / "store"
    kept(mount_plain, source, "one", f"store={store}", size=0)
    volume_.unmount()
    assert cowfs("store", "rm", store).stdout == (
        f"forgot the store {store}, which is not there; what its volume has stays as it is\n"
    )
    assert stores_below(volume_.mountpoint) == {}
    volume_.mount()
    assert names_in(store, "copies") == ["one"]


# --- what the guide says of moving and backing up -------------------------------------------------


def test_a_volume_moves_as_the_guide_says(
    mount_plain: MountCopy, volume_: Volume, tmp_path: Path
) -> None:
    source = make_source(volume_.mountpoint / "model")
    kept(mount_plain, source, "job")
    with (source / "weights").open("rb") as file:
        file.seek(MIB)
        rest = file.read()
    old, volume_.mountpoint = volume_.mountpoint, tmp_path / "new"
    volume_.mountpoint.mkdir()
    subprocess.run(["umount", "-i", old], check=True)
    volume_.mount()
    store = volume_.mountpoint / ".cowfs"
    mountpoint = mount_plain.mountpoint()
    result = cowfs("mount", "-o", f"copy=job,store={store}", source, mountpoint)
    assert "goes on without its source" in result.stderr
    assert (mountpoint / "weights").read_bytes()[MIB:] == rest
    mount_plain.unmount(mountpoint)
    volume_.unmount()
    volume_.mountpoint.rmdir()
    volume_.mountpoint = old
    volume_.mount()


def test_a_copy_is_backed_up_and_restored_as_the_guide_says(
    mount_plain: MountCopy, model: Path, xfs_volume: Volume, tmp_path: Path
) -> None:
    store = xfs_volume.mountpoint / ".cowfs"
    mountpoint = mount_plain(model, None, "copy=job")
    write(mountpoint / "weights.bin", 4096)
    (mountpoint / "config.json").unlink()
    (mountpoint / "new").write_text("mine")
    (mountpoint / "tokenizer").rename(mountpoint / "renamed")
    wanted = tree_state(mountpoint)
    backup = tmp_path / "backup"
    backup.mkdir()
    # without the window rsync lets a time stand that is wrong by less than a second
    rsync = ("rsync", "-aHAX", "--modify-window=-1", "--numeric-ids")
    run(*rsync, f"{mountpoint}/", f"{backup}/")
    mount_plain.unmount(mountpoint)

    copies, archive = store / "copies", tmp_path / "job.tar"
    attributes = ("--xattrs", "--xattrs-include=*", "--acls")
    create = ("tar", "--format=posix", *attributes, "--sparse", "-C", copies, "-cf", archive, "job")
    run(*create)
    remove_tree(copies / "job")
    run("tar", *attributes, "--numeric-owner", "-C", copies, "-xpf", archive)
    assert "clean" in cowfs("check", "--store", store, "job").stdout
    mount_plain(model, mountpoint, "copy=job")
    assert tree_state(mountpoint) == wanted
    mount_plain.unmount(mountpoint)

    cowfs("rm", "--store", store, "job")
    mount_plain(model, mountpoint, "copy=job")
    run(*rsync, "--delete", f"{backup}/", f"{mountpoint}/")
    assert tree_state(mountpoint) == wanted
