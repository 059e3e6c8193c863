"""`cowfs gc` takes what nobody needs, by what was asked of it, and never what is in use."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.command import COWFS, cowfs, one_error
from integration.effort import EFFORT, SEED
from integration.mounts import MountCopy
from integration.trees import tree_state
from integration.volumes import MIB, Volume, remove_tree

DAY = 86400


def templates(store: Path) -> dict[str, Path]:
    """The source of each template."""
    found = {}
    for path in (store / "templates").iterdir():
        text = (path / "manifest.json").read_text()
        found[Path(text.split('"source": "')[1].split('"')[0]).name] = path
    return found


def make(xfs: Path, name: str, size: int = MIB) -> Path:
    source = xfs / name
    source.mkdir()
    (source / "weights").write_bytes(os.urandom(size))
    return source


def used(mount_plain: MountCopy, source: Path, store: Path, days_ago: float) -> None:
    """A template that was last in use so long ago, and of which nobody has a copy."""
    mount_plain.unmount(mount_plain(source, None, f"store={store}", "ephemeral"))
    when = time.time() - days_ago * DAY
    os.utime(templates(store)[source.name] / "manifest.json", (when, when))


def gc(store: Path, *options: str) -> list[str]:
    return cowfs("gc", *options, "--store", store).stdout.splitlines()


@pytest.mark.quick
def test_dry_run_says_what_goes_and_nothing_does(mount_plain: MountCopy, xfs: Path) -> None:
    store = xfs / "store"
    source = make(xfs, "model")
    left = mount_plain(source, None, f"store={store}", "ephemeral", "copy=left", "engine=fuse")
    mount_plain.kill(left)
    partial = store / "partial" / "copy-half"
    partial.mkdir()
    (partial / "file").write_bytes(os.urandom(MIB))
    remove_tree(source)
    before = tree_state(store)
    told = gc(store, "--dry-run")
    assert tree_state(store) == before
    assert told[0].startswith("would remove the template ")
    assert f" of {source}, last used " in told[0]
    assert told[1] == "would remove the ephemeral copy left"
    summary = f"{store}: would remove 1 template and 1 ephemeral copy, which frees 2.0 MiB"
    assert told[2:] == [summary]
    assert gc(store) == [summary.replace("would remove", "removed")]
    for part in ("templates", "copies", "partial", "trash"):
        assert not list((store / part).iterdir())
    assert gc(store, "--dry-run") == gc(store, "--dry-run")


def test_a_template_is_kept_for_its_age(mount_plain: MountCopy, xfs: Path) -> None:
    store = xfs / "store"
    for name, age in (("old", 3.0), ("young", 1.0), ("there", 9.0)):
        used(mount_plain, make(xfs, name), store, age)
    for name in ("old", "young"):
        remove_tree(xfs / name)
    assert gc(store, "--keep-template", "2d")[-1].endswith("; kept: 2 templates")
    assert templates(store).keys() == {"young", "there"}
    assert "kept for unchanged sources: 1 template" in gc(store)[-1]
    assert templates(store).keys() == {"there"}
    cowfs("check", "--all", "--store", store)  # a use is no change of a template


def test_use_of_a_copy_is_use_of_its_template(mount_plain: MountCopy, xfs: Path) -> None:
    store = xfs / "store"
    source = make(xfs, "model")
    used(mount_plain, source, store, 9.0)
    copy = mount_plain(source, None, f"store={store}", "copy=kept")
    remove_tree(source)
    mount_plain.unmount(copy)
    [template] = templates(store).values()
    assert (template / "manifest.json").stat().st_mtime > time.time() - DAY
    assert gc(store, "--low-space", "100", "--max-bytes", "0")[-1].startswith(
        f"{store}: removed 0 templates"
    )


def test_the_least_recently_used_go_first(mount_plain: MountCopy, xfs: Path) -> None:
    store = xfs / "store"
    for name, age in (("b", 1.0), ("c", 2.0), ("a", 3.0), ("shares", 9.0)):
        used(mount_plain, make(xfs, name, 2 * MIB), store, age)
    for name in ("a", "b", "c"):
        remove_tree(xfs / name)
    forever = ("--keep-template", "1y")
    assert "removed 1 template" in gc(store, *forever, "--max-bytes", "5M")[-1]
    assert templates(store).keys() == {"b", "c", "shares"}
    assert "removed 1 template" in gc(store, *forever, "--max-bytes", "2M")[-1]
    assert templates(store).keys() == {"b", "shares"}
    told = gc(store, *forever, "--low-space", "100")[-1]
    assert "removed 1 template" in told
    assert "more would have to be free for --low-space 100" in told
    assert templates(store).keys() == {"shares"}  # nothing would be won


def test_low_space_ends_when_there_is_enough(
    mount_plain: MountCopy, small_xfs: Callable[..., Volume]
) -> None:
    volume = small_xfs(128)
    store = volume.mountpoint / ".cowfs"
    for name, age in (("first", 3.0), ("second", 2.0)):
        source = make(volume.mountpoint, name, 10 * MIB)
        used(mount_plain, source, store, age)
        remove_tree(source)
    space = os.statvfs(volume.mountpoint)
    percent = (volume.free() / space.f_frsize + 5 * MIB / space.f_frsize) * 100 / space.f_blocks
    forever = ("--keep-template", "1y")
    told = gc(store, *forever, "--low-space", str(percent), "--dry-run")
    assert " of its own" in told[0]
    assert str(volume.mountpoint / "first") in told[0]
    assert gc(store, *forever, "--low-space", str(percent))[-1].startswith(
        f"{store}: removed 1 template"
    )
    assert templates(store).keys() == {"second"}
    assert "removed 0 templates" in gc(store, *forever, "--low-space", str(percent))[-1]


@pytest.mark.parametrize(
    "option", [("--keep-template", "soon"), ("--max-bytes", "-1"), ("--low-space", "101")]
)
def test_what_is_no_limit_is_said(xfs: Path, option: tuple[str, str]) -> None:
    result = cowfs("gc", *option, check=False)
    assert result.returncode == 1
    assert option[1] in one_error(result)


@pytest.mark.timeout(600 * EFFORT)
def test_gc_beside_everything_else(mount_plain: MountCopy, xfs: Path) -> None:
    """Random schedules of mounts, copies of copies, imports, clones, unmounts, removals and gc."""
    store = xfs / "store"
    sources = [make(xfs, name, 4096) for name in ("a", "b")]
    elsewhere = xfs / "elsewhere"
    shutil.copytree(sources[0], elsewhere)
    states = [tree_state(source) for source in sources]
    chance = random.Random(f"{SEED} gc")
    limits = ("--low-space", "100", "--max-bytes", "0")
    for turn in range(3 * EFFORT):
        mounted = [mount_plain.mountpoint() for _ in range(3)]
        one, two, three = mounted
        on = ("-o", f"store={store}")
        commands: list[tuple[str | Path, ...]] = [
            ("mount", *on, "-o", "ephemeral", sources[0], one),
            ("mount", *on, "-o", "copy=kept", sources[1], two),
            ("import", elsewhere, xfs / f"imported{turn}"),
            ("clone", sources[0], xfs / f"cloned{turn}"),
            *([("gc", "--store", store, *limits)] * 3),
        ]
        chance.shuffle(commands)
        running = []
        for words in commands:
            running.append((words, subprocess.Popen([COWFS, *words], stdout=subprocess.DEVNULL)))
            time.sleep(chance.random() * 0.2)
        for words, process in running:
            assert process.wait(60) == 0, words
        again = subprocess.Popen([COWFS, "gc", "--store", store, *limits])
        cowfs("mount", *on, two, three)
        assert again.wait(60) == 0
        shown = zip((one, two, three), (0, 1, 1), strict=True)
        for path, source in shown:
            assert (path / "weights").read_bytes() == (sources[source] / "weights").read_bytes()
        for path in mounted:
            mount_plain.unmount(path)
        cowfs("check", "--all", "--store", store)
        cowfs("rm", "-y", "--store", store, "kept", three)
        gc(store, *limits)
        for part in ("partial", "trash", "copies"):
            assert not list((store / part).iterdir())
        # They share all they have with their sources, which are as they were.
        assert templates(store).keys() <= {"a", "b"}
    assert [tree_state(source) for source in sources] == states
    for source in sources:
        remove_tree(source)
    gc(store)
    assert not list((store / "templates").iterdir())
