"""The source of a kept copy: mistyped, moved, mounted elsewhere, gone, or another one."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cowfs.store import copies, seal
from cowfs.store.store import Copy, Store
from cowfs.system import syscalls
from integration.command import Result, cowfs, one_error
from integration.mounts import MountCopy
from integration.trees import make_model, tree_state
from integration.volumes import Volume, unmount


def listed(store: Path) -> dict[str, dict[str, Any]]:
    rows = json.loads(cowfs("list", "--json", "--store", store).stdout)
    return {row["name"]: row for row in rows}


@pytest.fixture
def store(volume: Volume) -> Path:
    return volume.mountpoint / ".cowfs"


@pytest.fixture
def refused(mount_plain: MountCopy) -> Callable[..., str]:
    """`refused(source, *options)` is what `cowfs mount` says of a source that it does not mount."""

    def mount(source: Path, *options: str) -> str:
        words = [word for option in options for word in ("-o", option)]
        mountpoint = mount_plain.mountpoint()
        result = cowfs("mount", *words, source, mountpoint, check=False)
        assert result.returncode == 32
        assert not os.listdir(mountpoint)
        return one_error(result)

    return mount


def kept(mounts: MountCopy, source: Path, *, changed: bool, engine: str = "fuse") -> dict[str, Any]:
    """A copy named `job` of a source, which was unmounted; what it looked like."""
    root = mounts(source, None, "copy=job", f"engine={engine}")
    if changed:
        (root / "mine").write_text("mine")
    state = tree_state(root)
    mounts.unmount(root)
    return state


def set_source(store: Path, *args: str | Path, check: bool = True) -> Result:
    return cowfs("set-source", "--store", store, *args, check=check)


# --- there is none --------------------------------------------------------------------------------


def test_a_typo_is_told_with_what_may_be_meant(
    refused: Callable[..., str], model: Path, xfs: Path
) -> None:
    (xfs / "unlike").mkdir()
    line = refused(xfs / "modle")
    assert f"source {xfs / 'modle'} does not exist: did you mean {model}?" in line
    line = refused(xfs / "modl" / "tokeniser")
    assert f"did you mean {model / 'tokenizer'}?" in line
    assert "name an existing directory" in refused(xfs / "modl" / "nothing")
    (xfs / "link").symlink_to(xfs / "modell")
    line = refused(xfs / "link")
    assert f"(it leads to {xfs / 'modell'}): did you mean {model}?" in line
    assert not (xfs / ".cowfs").exists()


def test_a_typo_in_the_source_of_a_clone_is_told(model: Path, xfs: Path) -> None:
    failed = cowfs("clone", xfs / "modle", xfs / "clone", check=False)
    assert f"does not exist: did you mean {model}?" in one_error(failed)


@pytest.mark.parametrize("changed", [True, False])
def test_a_typo_in_the_source_of_a_kept_copy_is_told_first(
    mount_plain: MountCopy,
    refused: Callable[..., str],
    store: Path,
    model: Path,
    xfs: Path,
    changed: bool,
) -> None:
    kept(mount_plain, model, changed=changed)
    line = refused(xfs / "modle", "copy=job")
    assert line.startswith(f"cowfs: source {xfs / 'modle'} does not exist: did you mean {model}?")
    assert "cowfs rm" not in line
    line = refused(xfs / "quite" / "another", "copy=job")
    assert line.startswith(f"cowfs: source {xfs / 'quite' / 'another'} does not exist")
    assert f"the copy job is one of {model}" in line
    assert "cowfs rm" not in line
    assert listed(store)["job"]["source"] == str(model)


@pytest.mark.parametrize("engine", ["fuse", "overlay"])
@pytest.mark.parametrize("changed", [True, False])
def test_a_copy_goes_on_without_its_source(
    mount_plain: MountCopy, model: Path, changed: bool, engine: str
) -> None:
    before = kept(mount_plain, model, changed=changed, engine=engine)
    shutil.rmtree(model)
    root = mount_plain.mountpoint()
    result = cowfs("mount", "-o", f"copy=job,engine={engine}", model, root)
    assert f"goes on without its source {model}, which is gone" in result.stderr
    assert tree_state(root) == before
    (root / "more").write_text("more")


def test_an_ephemeral_mount_takes_no_copy_whose_source_is_gone(
    mount_plain: MountCopy, refused: Callable[..., str], store: Path, model: Path
) -> None:
    kept(mount_plain, model, changed=False)
    shutil.rmtree(model)
    assert "does not exist" in refused(model, "copy=job", "ephemeral")
    assert listed(store)["job"]["persistent"]


# --- it is somewhere else -------------------------------------------------------------------------


def pasted(line: str, start: str) -> list[str]:
    """The command in a message that begins like this, as a shell takes it."""
    command = line[line.index(start) :].split(";")[0].rstrip()
    return shlex.split(command)[1:]


@pytest.mark.parametrize("engine", ["fuse", "overlay"])
def test_a_renamed_source_is_told_to_its_copy(
    mount_plain: MountCopy,
    refused: Callable[..., str],
    store: Path,
    model: Path,
    xfs: Path,
    engine: str,
) -> None:
    before = kept(mount_plain, model, changed=True, engine=engine)
    template = listed(store)["job"]["template"]
    moved = model.rename(xfs / "a new name")
    line = refused(moved, "copy=job")
    assert f"the copy job is one of {model}, not of {moved}, and has changes (1 file)" in line
    assert line.index("cowfs set-source") < line.index("cowfs rm")
    done = cowfs(*pasted(line, "cowfs set-source"), "--store", store)
    assert done.stdout == f"copy job is one of {moved} from now on, not of {model}\n"
    root = mount_plain.mountpoint()
    again = cowfs("mount", "-o", f"copy=job,engine={engine}", moved, root)
    assert again.stderr == ""  # it has not moved on
    assert tree_state(root) == before
    mount_plain.unmount(root)
    (moved / "config.json").write_text("{}")
    again = cowfs("mount", "-o", f"copy=job,engine={engine}", moved, root)
    assert "has moved on since" in again.stderr
    assert tree_state(root) == before
    row = listed(store)["job"]
    assert (row["source"], row["template"]) == (str(moved), template)


def test_a_volume_that_is_mounted_elsewhere_is_told_to_its_copies(
    mount_plain: MountCopy,
    refused: Callable[..., str],
    small_xfs: Callable[..., Volume],
    tmp_path: Path,
) -> None:
    volume = small_xfs(64)
    model = make_model(volume.mountpoint / "model")
    (model / "left out").mkdir()
    before = kept(mount_plain, model, changed=True)
    unmount(volume.mountpoint)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run(["mount", "-o", "loop", volume.image, elsewhere], check=True)
    try:
        line = refused(elsewhere / "model", "copy=job")
        cowfs(*pasted(line, "cowfs set-source"), "--store", elsewhere / ".cowfs")
        root = mount_plain(elsewhere / "model", None, "copy=job")
        assert tree_state(root) == before
        mount_plain.unmount(root)
    finally:
        unmount(elsewhere)
        volume.mount()


def test_another_directory_is_told_apart_and_taken_by_force(
    mount_plain: MountCopy, store: Path, model: Path, xfs: Path
) -> None:
    before = kept(mount_plain, model, changed=True)
    other = xfs / "other"
    subprocess.run(["cp", "-a", model, other], check=True)
    set_source(store, "job", other)  # it looks the same
    (other / "tokenizer" / "vocab.txt").write_text("another")
    set_source(store, "job", model)
    failed = set_source(store, "job", other, check=False)
    line = one_error(failed)
    assert f"{other} is not as {model} was" in line
    assert "tokenizer/vocab.txt differs" in line
    assert listed(store)["job"]["source"] == str(model)
    cowfs(*pasted(line, "cowfs set-source"), "--store", store)
    root = mount_plain.mountpoint()
    mounted = cowfs("mount", "-o", "copy=job", other, root)
    assert "stays with the state that its source" in mounted.stderr
    assert tree_state(root) == before


@pytest.mark.parametrize("what", ["missing", "more", "kind", "deeper"])
def test_every_difference_counts(
    mount_plain: MountCopy, store: Path, model: Path, xfs: Path, what: str
) -> None:
    kept(mount_plain, model, changed=True)
    other = xfs / "other"
    subprocess.run(["cp", "-a", model, other], check=True)
    if what == "missing":
        (other / "many" / "f007").unlink()
    elif what == "more":
        (other / "many" / "f200").touch()
    elif what == "kind":
        (other / "empty").unlink()
        (other / "empty").mkdir()
    else:
        (other / "tokenizer" / "deep" / "er").rename(other / "tokenizer" / "deep" / "est")
    line = one_error(set_source(store, "job", other, check=False))
    name = {
        "missing": "many/f007",
        "more": "many/f200",
        "kind": "empty",
        "deeper": "tokenizer/deep/er",
    }[what]
    assert f"{name} differs" in line


def test_what_a_template_leaves_out_is_no_difference(
    mount_plain: MountCopy, store: Path, model: Path, xfs: Path
) -> None:
    os.mknod(model / "whiteout", 0o600 | 0o020000, 0)
    (model / "place").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", model / "place"], check=True)
    try:
        kept(mount_plain, model, changed=True)
    finally:
        subprocess.run(["umount", model / "place"], check=True)
    moved = model.rename(xfs / "moved")
    subprocess.run(["mount", "-t", "tmpfs", "none", moved / "place"], check=True)
    try:
        (moved / "place" / "in another filesystem").touch()
        set_source(store, "job", moved)
    finally:
        subprocess.run(["umount", moved / "place"], check=True)


@pytest.mark.quick
def test_a_copy_without_changes_is_pointed_anywhere_on_its_volume(
    mount_plain: MountCopy, store: Path, model: Path, xfs: Path, ext4_volume: Volume
) -> None:
    kept(mount_plain, model, changed=False)
    other = xfs / "other"
    other.mkdir()
    (other / "file").write_text("other")
    for wrong, says in (
        (ext4_volume.mountpoint, "is on another volume than the copy job"),
        (store, f"is in the store {store}"),
        (xfs / "othr", f"did you mean {other}?"),
        (model / "config.json", "is not a directory"),
    ):
        failed = set_source(store, "job", wrong, check=False)
        assert failed.returncode == 32
        assert says in one_error(failed)
    assert "no copy jbo" in one_error(set_source(store, "jbo", other, check=False))
    set_source(store, "job", other)
    root = mount_plain(other, None, "copy=job")
    assert os.listdir(root) == ["file"]
    failed = set_source(store, "job", model, check=False)
    assert f"it is mounted at {root}" in one_error(failed)
    assert listed(store)["job"]["source"] == str(other)


# --- it is another one ----------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["ephemeral"], ["engine=overlay"]])
def test_a_copy_without_changes_gives_way(
    mount_plain: MountCopy, store: Path, model: Path, xfs: Path, options: list[str]
) -> None:
    kept(mount_plain, model, changed=False)
    other = make_model(xfs / "other")
    (other / "other").touch()
    root = mount_plain.mountpoint()
    mounted = cowfs("mount", "-o", ",".join(["copy=job", *options]), other, root)
    assert mounted.stderr == (
        f"cowfs: warning: the copy job of {model} had no changes, and is replaced by one of"
        f" {other}\n"
    )
    assert tree_state(root).keys() == tree_state(other).keys()
    row = listed(store)["job"]
    assert (row["source"], row["persistent"]) == (str(other), "ephemeral" not in options)


def test_a_copy_that_is_all_that_is_left_of_its_source_does_not(
    mount_plain: MountCopy, refused: Callable[..., str], store: Path, model: Path, xfs: Path
) -> None:
    before = kept(mount_plain, model, changed=False)
    other = make_model(xfs / "other")
    shutil.rmtree(model)
    for options in ([], ["ephemeral"]):
        line = refused(other, "copy=job", *options)
        assert f"the copy job is one of {model}, not of {other}, and has what is left" in line
    cowfs("gc", "--store", store)
    root = mount_plain.mountpoint()
    cowfs("mount", "-o", "copy=job", model, root)
    assert tree_state(root) == before


@pytest.mark.parametrize("named", [False, True])
def test_a_copy_keeps_its_place_when_its_source_moves(
    mount_plain: MountCopy, store: Path, model: Path, xfs: Path, named: bool
) -> None:
    root = mount_plain(model, None, *(["copy=job"] if named else []))
    (root / "mine").write_text("mine")
    name = mount_plain.record(root)["copy"]
    mount_plain.unmount(root)
    before = json.loads((store / "copies" / name / "copy.json").read_text())
    moved = model.rename(xfs / "moved")
    set_source(store, name, moved)
    after = json.loads((store / "copies" / name / "copy.json").read_text())
    assert after == {**before, "source": str(moved)}
    mount_plain(moved, root, *(["copy=job"] if named else []))
    assert (root / "mine").read_text() == "mine"


@pytest.mark.parametrize("what", ["file", "deletion", "directory", "root"])
def test_a_copy_with_any_change_does_not(
    mount_plain: MountCopy,
    refused: Callable[..., str],
    store: Path,
    model: Path,
    xfs: Path,
    what: str,
) -> None:
    root = mount_plain(model, None, "copy=job")
    if what == "file":
        (root / "mine").touch()
        (root / "config.json").chmod(0o600)
    elif what == "deletion":
        (root / "config.json").unlink()
    elif what == "directory":
        (root / "mine").mkdir()
    else:
        root.chmod(0o700)
    before = tree_state(root)
    mount_plain.unmount(root)
    (xfs / "other").mkdir()
    holds = {"file": "2 files", "deletion": "1 deletion"}.get(what, "of directories alone")
    for options in ([], ["ephemeral"]):
        line = refused(xfs / "other", "copy=job", *options)
        assert f"the copy job is one of {model}, not of {xfs / 'other'}" in line
        assert f"has changes ({holds}): mount {model} to go on with it" in line
    mount_plain(model, root, "copy=job")
    assert tree_state(root) == before


@pytest.fixture
def opened(xfs: Path) -> Iterator[Store]:
    with closing(Store.for_source(str(xfs), None)) as opened:
        yield opened


def take(store: Store, source: Path) -> Copy:
    return store.acquire(
        "job",
        str(source),
        persistent=True,
        prepare=lambda: seal.seal(store, str(source), progress=None, warn=pytest.fail),
        warn=lambda _line: None,
    )


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_crash_leaves_one_copy_or_the_other(
    opened: Store, model: Path, xfs: Path, after: bool
) -> None:
    take(opened, model).release()
    other = xfs / "other"
    other.mkdir()
    pid = os.fork()
    if pid == 0:
        rename = syscalls.renameat2

        def killed(*args: Any) -> None:
            if args[-1] == syscalls.RENAME_EXCHANGE:
                if after:
                    rename(*args)
                os._exit(9)
            rename(*args)

        try:
            syscalls.renameat2 = killed
            take(opened, other)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    found = copies.read(opened, "job")
    assert found.source == str(other if after else model)
    copy = take(opened, other)
    assert not copy.has_changes()
    assert os.listdir(Path(opened.path) / "partial") == []
    copy.release()
