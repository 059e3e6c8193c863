"""Which copy a mountpoint gets when none was named: its own, the same each time, nobody else's."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cowfs.store.names import default_names, former_name
from integration.command import COWFS, cowfs
from integration.mounts import MountCopy

#: The last parts of two mountpoints whose names would be the same, as directories.
ONE, OTHER = Path("job/42"), Path("job-42")

Place = Callable[[Path], Path]


@pytest.fixture
def store(xfs: Path) -> Path:
    """A store of the test's own."""
    return xfs / "store"


@pytest.fixture
def place(tmp_path: Path, mount_plain: MountCopy) -> Place:
    """`place(path)` is a new mountpoint with this path below the test's directory."""

    def make(path: Path) -> Path:
        mountpoint = tmp_path / path
        mountpoint.mkdir(parents=True)
        mount_plain.adopt(mountpoint)
        return mountpoint

    return make


@pytest.fixture
def mount(mount_plain: MountCopy, model: Path, store: Path) -> Callable[..., str]:
    """`mount(mountpoint, *options)` mounts a copy of the model; the name that it got."""

    def make(mountpoint: Path, *options: str) -> str:
        mount_plain(model, mountpoint, f"store={store}", *options)
        name: str = mount_plain.record(mountpoint)["copy"]
        return name

    return make


def kept(store: Path) -> list[str]:
    """The names of the copies in a store."""
    return sorted(path.name for path in (store / "copies").iterdir())


def written_by_an_earlier_version(store: Path, name: str) -> None:
    """Make copy.json what it was before it told which mountpoint a name is from."""
    path = store / "copies" / name / "copy.json"
    value: dict[str, Any] = json.loads(path.read_text())
    del value["named_after"]
    path.write_text(json.dumps(value))


@pytest.mark.parametrize("engine", ["fuse", "overlay"])
def test_a_copy_has_a_name_that_can_be_typed_and_is_found_by_its_mountpoint(
    mount: Callable[..., str], mount_plain: MountCopy, place: Place, store: Path, engine: str
) -> None:
    where = place(OTHER)
    name = mount(where, f"engine={engine}")
    assert name.endswith("-job-42")
    assert "\\" not in name
    (where / "mine").write_text("kept")
    said = mount_plain.unmount(where).stdout
    assert said.endswith(f"cowfs rm --store {store} {name}\n")
    assert mount(where, f"engine={engine}") == name
    assert (where / "mine").read_text() == "kept"


def test_two_mountpoints_never_share_a_copy(
    mount: Callable[..., str], mount_plain: MountCopy, place: Place, model: Path, store: Path
) -> None:
    one, other = place(ONE), place(OTHER)
    assert default_names(str(one))[0] == default_names(str(other))[0]
    first = mount(one)
    (one / "mine").write_text("one")
    said = cowfs("mount", "-o", f"store={store}", model, other).stderr
    second: str = mount_plain.record(other)["copy"]
    assert (first, second) == (default_names(str(one))[0], default_names(str(other))[1])
    assert said == (
        f"cowfs: warning: the copy is called {second}, since {first} is another one; "
        "-o copy=NAME gives it a name of your own\n"
    )
    assert not (other / "mine").exists()
    (other / "mine").write_text("other")
    for _ in range(2):  # in either order
        mount_plain.unmount(one)
        mount_plain.unmount(other)
        assert (mount(other), mount(one)) == (second, first)
        assert ((one / "mine").read_text(), (other / "mine").read_text()) == ("one", "other")
    mount_plain.unmount(one)
    mount_plain.unmount(other)
    cowfs("rm", "--store", store, first)
    assert mount(other) == second  # though the better name is free by now
    assert (other / "mine").read_text() == "other"
    assert mount(one) == first
    assert not (one / "mine").exists()


def test_the_copy_of_an_earlier_version_is_found_again(
    mount: Callable[..., str], mount_plain: MountCopy, place: Place, store: Path
) -> None:
    one, other = place(ONE), place(OTHER)
    old = former_name(str(other))
    assert "\\" in old
    mount(other, "copy=" + old.replace("\\", "\\\\"))
    (other / "mine").write_text("old")
    mount_plain.unmount(other)
    written_by_an_earlier_version(store, old)
    assert mount(other) == old
    assert (other / "mine").read_text() == "old"
    mount(one)
    assert not (one / "mine").exists()
    mount_plain.unmount(other)
    cowfs("rm", "--store", store, other)  # by its mountpoint
    assert old not in kept(store)


def test_a_name_of_an_earlier_version_that_says_another_mountpoint_is_not_ours(
    mount: Callable[..., str], mount_plain: MountCopy, place: Place, store: Path
) -> None:
    """/mnt/job was mnt-job, which is what /mnt-job would be called now."""
    elsewhere, where = place(Path("elsewhere")), place(OTHER)
    usual = default_names(str(where))[0]
    mount(elsewhere, f"copy={usual}")
    (elsewhere / "mine").write_text("old")
    mount_plain.unmount(elsewhere)
    written_by_an_earlier_version(store, usual)
    assert mount(where) == default_names(str(where))[1]
    assert not (where / "mine").exists()


def test_a_copy_that_a_user_has_named_is_no_mountpoints(
    mount: Callable[..., str], mount_plain: MountCopy, place: Place
) -> None:
    elsewhere, where = place(Path("elsewhere")), place(OTHER)
    usual = default_names(str(where))[0]
    mount(elsewhere, f"copy={usual}")
    (elsewhere / "mine").write_text("named")
    mount_plain.unmount(elsewhere)
    assert mount(where) == default_names(str(where))[1]
    assert not (where / "mine").exists()
    mount_plain.unmount(where)
    assert mount(where, f"copy={usual}") == usual
    assert (where / "mine").read_text() == "named"


def test_an_ephemeral_copy_leaves_the_name_to_the_next_one(
    mount: Callable[..., str], mount_plain: MountCopy, place: Place
) -> None:
    one, other = place(ONE), place(OTHER)
    first = mount(one, "ephemeral")
    assert mount(other, "ephemeral") != first
    mount_plain.unmount(other)
    mount_plain.unmount(one)
    assert mount(other) == first


def test_copies_that_are_made_at_once_are_not_mixed_up(
    mount_plain: MountCopy, place: Place, model: Path, store: Path
) -> None:
    parts = ["a/b/c", "a-b/c", "a/b-c", "a-b-c", "a/b/c"]  # the last one is there already
    places = [place(Path(part)) for part in parts[:-1]]
    processes = [
        subprocess.Popen([COWFS, "mount", "-o", f"store={store}", model, where])
        for where in [*places, places[0]]
    ]
    codes = [process.wait(60) for process in processes]
    # Of the two of one mountpoint one at least has it; the other may have come too late.
    assert codes[1:4] == [0, 0, 0]
    assert 0 in (codes[0], codes[4])
    names = []
    for where in places:
        names.append(mount_plain.record(where)["copy"])
        (where / "mine").write_text(str(where))
    assert len(set(names)) == len(places)
    assert kept(store) == sorted(names)
    for where in places:
        mount_plain.unmount(where)
    for where, name in zip(places, names, strict=True):
        mount_plain(model, where, f"store={store}")
        assert mount_plain.record(where)["copy"] == name
        assert (where / "mine").read_text() == str(where)


def test_a_damaged_copy_is_not_passed_over(
    mount: Callable[..., str], mount_plain: MountCopy, place: Place, model: Path, store: Path
) -> None:
    """It may be the mountpoint's own: nobody gets an empty copy in its place, silently."""
    where = place(OTHER)
    name = mount(where)
    (where / "mine").write_text("kept")
    mount_plain.unmount(where)
    (store / "copies" / name / "copy.json").write_text("{")
    result = cowfs("mount", "-o", f"store={store}", model, where, check=False)
    assert result.returncode == 32
    assert f"the copy {name} is damaged" in result.stderr
    assert kept(store) == [name]
