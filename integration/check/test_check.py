"""`cowfs check` on a real volume: every kind of damage is found, and what is whole is called so."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cowfs.system.errors import CHECK_LEFT, CHECK_REPAIRED, MountFailure, UsageError
from integration.command import COWFS, Result, cowfs, run
from integration.hand import Hand
from integration.mounts import MountCopy
from integration.randomops import Plan, make_source
from integration.trees import make_model, tree_state
from integration.volumes import Volume

LEFT = MountFailure.exit_code
INO = "trusted.cowfs.ino"
OPAQUE = "trusted.overlay.opaque"
REDIRECT = "trusted.overlay.redirect"


class Store(NamedTuple):
    path: Path

    def copy(self, name: str) -> Path:
        return self.path / "copies" / name

    def template(self, name: str = "made") -> Path:
        record = json.loads((self.copy(name) / "copy.json").read_text())
        return self.path / "templates" / str(record["template"])


def check(store: Store, *arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit code, and what `--json` gives."""
    result = cowfs("check", "--store", store.path, "--json", *arguments, check=False)
    assert result.stderr == "", result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    assert result.returncode == found["exit_code"], found
    return result.returncode, found


def said(found: dict[str, Any], where: Path) -> list[tuple[str, str]]:
    """(problem, status) of every finding at or below a path."""
    return [
        (finding["problem"], finding["status"])
        for finding in found["findings"]
        if Path(finding["path"]).is_relative_to(where)
    ]


@contextmanager
def overlay(copy: Path, template: Path, at: Path) -> Iterator[Path]:
    """The copy as the kernel's overlay shows it, without cowfs."""
    options = f"ro,redirect_dir=follow,lowerdir={copy / 'upper'}:{template / 'tree'}"
    run("mount", "-t", "overlay", "-o", options, "none", at)
    try:
        yield at
    finally:
        run("umount", at)


def view(copy: Path, template: Path, at: Path) -> dict[str, Any]:
    """Everything that is seen of it but the numbers of links, which overlayfs makes up."""
    with overlay(copy, template, at) as root:
        return {
            path: entry._replace(nlink=0, links=(), xattrs=())
            for path, entry in tree_state(root).items()
        }


@pytest.fixture
def store(xfs: Path, mount_plain: MountCopy) -> Store:
    """A store with the copy "made" that has one of everything in its upper layer."""
    source = make_model(xfs / "model")
    os.mkfifo(source / "fifo")
    root = mount_plain(source, None, "copy=made", f"store={xfs / 'store'}")
    (root / "config.json").write_text("changed")
    (root / "many" / "f000").unlink()
    (root / "many" / "f001").rename(root / "many" / "g001")
    (root / "tokenizer").rename(root / "words")
    (root / "hard1").write_text("both of them")
    (root / "new" / "deep").mkdir(parents=True)
    (root / "new" / "mine").write_text("mine")
    (root / "latest").unlink()
    (root / "latest").mkdir()
    os.link(root / "new" / "mine", root / "new" / "mine too")
    (root / "fifo").chmod(0o600)
    mount_plain.unmount(root)
    return Store(xfs / "store")


# --- upper layers ---------------------------------------------------------------------------------


def mark(name: str, attribute: str, value: bytes) -> Callable[[Path, Path], None]:
    def plant(copy: Path, _tree: Path) -> None:
        os.setxattr(copy / "upper" / name, attribute, value, follow_symlinks=False)

    return plant


def number_of(name: str, other: str) -> Callable[[Path, Path], None]:
    """Let a file of the upper layer keep the inode number of another one of the template."""

    def plant(copy: Path, tree: Path) -> None:
        value = os.lstat(tree / other).st_ino.to_bytes(8, "little")
        os.setxattr(copy / "upper" / name, INO, value)

    return plant


def part_links(copy: Path, _tree: Path) -> None:
    (copy / "upper" / "words" / "hard2").unlink()


def double_link(copy: Path, _tree: Path) -> None:
    upper = copy / "upper"
    (upper / "words" / "hard2").unlink()
    run("cp", "-a", upper / "hard1", upper / "words" / "hard2")


def stray_whiteout(copy: Path, _tree: Path) -> None:
    for place in ("new", "many", "latest"):
        os.mknod(copy / "upper" / place / "nothing", stat.S_IFCHR)


def orphans(copy: Path, _tree: Path) -> None:
    (copy / "work" / "#1" / "in" / "each" / "other").mkdir(parents=True)
    (copy / "work" / "#1" / "in" / "file").write_text("half")
    (copy / "work" / "#2").write_text("half")
    (copy / "work" / "link").symlink_to("/etc/passwd")


def unfinished_group(copy: Path, _tree: Path) -> None:
    """As a copy-up leaves it that was killed between two links."""
    os.link(copy / "upper" / "hard1", copy / "work" / "#group7")
    (copy / "upper" / "words" / "hard2").unlink()


def work_is_a_link(copy: Path, _tree: Path) -> None:
    (copy / "work").rmdir()
    (copy / "work").symlink_to(copy.parent.parent.parent / "model")


def work_is_a_file(copy: Path, _tree: Path) -> None:
    (copy / "work").rmdir()
    (copy / "work").write_text("")


class Case(NamedTuple):
    """A damage, what is found of it, and what it is after a repair.

    same: what users see is the same afterwards.
    """

    name: str
    plant: Callable[[Path, Path], object]
    problem: str
    status: str  # before: "error" or "harmless"
    repaired: bool = True
    same: bool = True


UPPER_CASES = [
    Case("opaque-file", mark("config.json", OPAQUE, b"y"), "senseless-mark", "error"),
    Case("opaque-odd", mark("many", OPAQUE, b"perhaps"), "senseless-mark", "error"),
    Case("opaque-root", mark("", OPAQUE, b"y"), "senseless-mark", "error"),
    Case("opaque-x", mark("many", OPAQUE, b"x"), "unknown-mark", "error", False),
    Case("redirect-file", mark("config.json", REDIRECT, b"/many"), "senseless-mark", "error"),
    Case("redirect-root", mark("", REDIRECT, b"/many"), "senseless-mark", "error"),
    Case("redirect-up", mark("new", REDIRECT, b".."), "bad-redirect", "error"),
    Case("redirect-out", mark("new", REDIRECT, b"/../../x"), "bad-redirect", "error"),
    Case("redirect-path", mark("new", REDIRECT, b"a/b"), "bad-redirect", "error"),
    Case("redirect-empty", mark("new", REDIRECT, b""), "bad-redirect", "error"),
    Case("redirect-over", mark("many", REDIRECT, b"//"), "bad-redirect", "error", False),
    Case("redirect-nowhere", mark("new", REDIRECT, b"/nowhere"), "lost-redirect", "error"),
    Case("redirect-to-file", mark("new", REDIRECT, b"/small.bin"), "lost-redirect", "error"),
    Case("redirect-lost", mark("many", REDIRECT, b"/nowhere"), "lost-redirect", "error", False),
    Case("redirect-twice", mark("new", REDIRECT, b"/many"), "double-merge", "error", False),
    Case("redirect-shown", mark("new", REDIRECT, b"/tokenizer/deep"), "double-merge", "error",
         False),
    Case("ino-short", mark("config.json", INO, b"12"), "bad-ino", "error"),
    Case("ino-zero", mark("config.json", INO, bytes(8)), "bad-ino", "error"),
    Case("ino-directory", mark("new", INO, b"\1" + bytes(7)), "senseless-mark", "error"),
    Case("ino-of-directory", number_of("config.json", "many"), "bad-ino", "error"),
    Case("ino-of-fifo", number_of("config.json", "fifo"), "bad-ino", "error"),
    Case("ino-unknown", mark("config.json", INO, b"\xff" * 8), "lost-ino", "harmless"),
    Case("ino-shown", number_of("new/mine", "small.bin"), "double-ino", "error"),
    Case("ino-taken", number_of("new/mine", "config.json"), "double-ino", "error"),
    Case("btime", mark("config.json", "trusted.cowfs.btime", b"noon"), "bad-btime", "error"),
    Case("future", mark("new", "trusted.cowfs.future", b"1"), "unknown-mark", "error", False),
    Case("metacopy", mark("new/mine", "trusted.overlay.metacopy", b""), "unknown-mark", "error",
         False),
    Case("marked-whiteout", mark("many/f000", OPAQUE, b"y"), "senseless-mark", "error"),
    Case("stray-whiteout", stray_whiteout, "stray-whiteout", "harmless"),
    Case("parted", part_links, "parted-links", "error"),
    Case("doubled", double_link, "double-ino", "error"),
    Case("orphans", orphans, "orphans", "harmless"),
    Case("unfinished", unfinished_group, "orphans", "harmless", same=False),
    Case("work-missing", lambda copy, _: (copy / "work").rmdir(), "no-work", "harmless"),
    Case("work-link", work_is_a_link, "no-work", "error"),
    Case("work-file", work_is_a_file, "no-work", "error"),
    Case("work-mode", lambda copy, _: (copy / "work").chmod(0o777), "mode", "error"),
    Case("work-owner", lambda copy, _: os.chown(copy / "work", 1000, 1000), "mode", "error"),
    Case("copy-mode", lambda copy, _: copy.chmod(0o755), "mode", "error"),
    Case("half-record", lambda copy, _: (copy / ".copy.json.1a2b").write_text("{"), "leftover",
         "harmless"),
]  # fmt: skip

BROKEN_CASES = [
    Case("record-cut", lambda copy, _: (copy / "copy.json").write_text("{"), "damaged-copy",
         "error", False),
    Case("record-gone", lambda copy, _: (copy / "copy.json").unlink(), "damaged-copy", "error",
         False),
    Case("upper-gone", lambda copy, _: shutil.rmtree(copy / "upper"), "no-upper", "error", False),
    Case("template-gone", lambda copy, _: (copy / "copy.json").write_text(
        json.dumps({**json.loads((copy / "copy.json").read_text()), "template": "0" * 32})),
        "damaged-copy", "error", False),
    Case("no-directory", lambda copy, _: [shutil.rmtree(copy), copy.touch()], "no-copy", "error",
         False),
]  # fmt: skip


def planted(store: Store, cases: list[Case]) -> None:
    """Make a copy of the copy "made" for each case, and damage it."""
    template = store.template()
    for case in cases:
        run("cp", "-a", "--reflink=always", store.copy("made"), store.copy(case.name))
        upper = store.copy(case.name) / "upper"
        times = {path: path.stat().st_mtime_ns for path in (upper, *upper.glob("*/"))}
        case.plant(store.copy(case.name), template / "tree")
        for path, mtime_ns in times.items():
            if path.is_dir():
                os.utime(path, ns=(mtime_ns, mtime_ns))


def test_every_damage_of_an_upper_layer_is_found_and_repaired_without_a_loss(
    store: Store, tmp_path: Path
) -> None:
    template = store.template()
    before = view(store.copy("made"), template, tmp_path)
    assert check(store, "--all") == (0, check(store, "--all")[1])
    planted(store, UPPER_CASES)
    uppers = {case.name: tree_state(store.copy(case.name) / "upper") for case in UPPER_CASES}

    code, found = check(store, "--all")
    assert code == CHECK_LEFT
    for case in UPPER_CASES:
        where = store.copy(case.name)
        assert set(said(found, where)) == {(case.problem, case.status)}, case.name
        if "work" not in case.name:
            assert tree_state(where / "upper") == uppers[case.name], "a check without --repair"
    assert said(found, store.copy("made")) == []
    for name, status in (("parted", CHECK_LEFT), ("orphans", 0), ("stray-whiteout", 0)):
        assert check(store, name)[0] == status

    assert check(store, "ino-short", "--repair")[0] == CHECK_REPAIRED
    assert check(store, "orphans", "--repair")[0] == 0
    code, found = check(store, "--all", "--repair")
    assert code == CHECK_LEFT
    again = check(store, "--all")[1]
    for case in UPPER_CASES:
        where = store.copy(case.name)
        if case.name not in ("ino-short", "orphans"):
            status = "repaired" if case.repaired else case.status
            assert set(said(found, where)) == {(case.problem, status)}, case.name
        left = set() if case.repaired else {(case.problem, case.status)}
        assert set(said(again, where)) == left, case.name
        if case.repaired and case.same:
            assert view(where, template, tmp_path) == before, case.name
    assert list((store.copy("orphans") / "work").iterdir()) == []
    links = {(store.copy("parted") / "upper" / name).stat().st_ino for name in
             ("hard1", "words/hard2")}  # fmt: skip
    assert len(links) == 1
    assert tree_state(store.path.parent / "model").keys() >= {"config.json", "fifo"}


def test_copy_that_is_broken_is_told_and_nothing_of_it_removed(store: Store) -> None:
    planted(store, BROKEN_CASES)
    states = {case.name: tree_state(store.copy(case.name)) for case in BROKEN_CASES}
    for arguments in ((), ("--repair",)):
        code, found = check(store, "--all", *arguments)
        assert code == CHECK_LEFT
        for case in BROKEN_CASES:
            where = store.copy(case.name)
            assert said(found, where) == [(case.problem, "error")], case.name
            assert tree_state(where) == states[case.name]


def test_what_crashes_leave_in_the_store_is_told_and_removed(store: Store) -> None:
    for part in ("trash/1234", "partial/copy-1", "partial/template-2"):
        (store.path / part / "upper" / "x").mkdir(parents=True)
    (store.path / "trash" / "file").touch()
    (store.path / "trash").chmod(0o755)
    code, found = check(store, "--all")
    assert code == CHECK_LEFT
    assert sorted(said(found, store.path)) == sorted(
        [("leftover", "harmless")] * 4 + [("mode", "error")]
    )
    assert check(store, "made", "--repair")[0] == CHECK_REPAIRED
    assert check(store, "--all")[1]["findings"] == []
    assert os.listdir(store.path / "trash") == os.listdir(store.path / "partial") == []


# --- templates ------------------------------------------------------------------------------------


def flags(path: Path, change: str) -> None:
    run("chattr", change, path)


def remove(template: Path) -> None:
    flags(template / "tree" / "small.bin", "-i")
    (template / "tree" / "small.bin").unlink()


def write(template: Path) -> None:
    path = template / "tree" / "small.bin"
    flags(path, "-i")
    with path.open("r+b") as file:
        file.write(b"X")


def write_and_hide(template: Path) -> None:
    write(template)
    flags(template / "tree" / "small.bin", "+i")


def replace(template: Path) -> None:
    """With a file of the same size and times."""
    path = template / "tree" / "many" / "f007"
    flags(path, "-i")
    run("cp", "-p", path, template / "tree" / "spare")
    (template / "tree" / "spare").rename(path)


def part(template: Path) -> None:
    path = template / "tree" / "tokenizer" / "hard2"
    flags(path, "-i")
    run("cp", "-p", path, template / "tree" / "spare")
    (template / "tree" / "spare").rename(path)
    flags(path, "+i")
    flags(template / "tree" / "hard1", "+i")


def mark_template(template: Path) -> None:
    os.setxattr(template / "tree" / "many", OPAQUE, b"y")


TEMPLATE_CASES: list[tuple[str, Callable[[Path], object], set[str], bool]] = [
    # name, damage, problems, whether it is repaired
    ("removed", remove, {"counts"}, False),
    ("added", lambda t: (t / "tree" / "more").mkdir(), {"counts"}, False),
    ("written", write, {"not-immutable"}, False),
    ("hidden", write_and_hide, {"written"}, False),
    ("replaced", replace, {"not-immutable", "changed"}, False),
    ("unflagged", lambda t: flags(t / "tree" / "many" / "f003", "-i"), {"not-immutable"}, True),
    ("unflagged-link", lambda t: flags(t / "tree" / "hard1", "-i"), {"not-immutable"}, True),
    ("parted", part, {"counts", "hard-links"}, False),
    ("marked", mark_template, {"mark-in-template", "changed"}, False),
    ("chmod", lambda t: (t / "tree" / "many").chmod(0o700), {"changed"}, False),
    ("chown", lambda t: os.lchown(t / "tree" / "latest", 1, 1), {"changed"}, False),
    ("whiteout", lambda t: os.mknod(t / "tree" / "gone", stat.S_IFCHR),
     {"counts", "whiteout-in-template"}, False),
    ("manifest", lambda t: (t / "manifest.json").write_text("[]"), {"damaged-template"}, False),
    ("no-tree", lambda t: (t / "tree").rename(t / "elsewhere"), {"no-tree"}, False),
    ("mode", lambda t: t.chmod(0o755), {"mode"}, True),
]  # fmt: skip


def test_every_damage_of_a_template_is_found_and_what_is_certain_repaired(store: Store) -> None:
    sealed = store.template()
    templates = store.path / "templates"
    for name, damage, _problems, _repaired in TEMPLATE_CASES:
        run("cp", "-a", "--reflink=always", sealed, templates / name)
        run("find", templates / name / "tree", "-type", "f", "-exec", "chattr", "+i", "{}", "+")
        (templates / name).chmod(0o700)  # the moment of its sealing
        time.sleep(0.02)  # longer than a tick of the kernel's clock
        damage(templates / name)
    try:
        code, found = check(store, "--all")
        assert code == CHECK_LEFT
        for name, _damage, problems_, _repaired in TEMPLATE_CASES:
            expected = {(problem, "error") for problem in problems_}
            assert set(said(found, templates / name)) == expected, name
        assert said(found, sealed) == []

        code, found = check(store, "--all", "--repair")
        again = check(store, "--all")[1]
        for name, _damage, problems_, repaired in TEMPLATE_CASES:
            status = "repaired" if repaired else "error"
            expected = {(problem, status) for problem in problems_}
            assert set(said(found, templates / name)) == expected, name
            left = set() if repaired else expected
            assert set(said(again, templates / name)) == left, name
        assert "i" in run("lsattr", templates / "unflagged/tree/many/f003").stdout.split()[0]
    finally:
        run("chattr", "-R", "-f", "-i", templates, check=False)


def test_marks_are_not_judged_by_what_a_damaged_template_lacks(store: Store) -> None:
    """A lost directory of the template is no reason to forget what was merged with it."""
    template = store.template()
    run("chattr", "-R", "-f", "-i", template / "tree" / "tokenizer", check=False)
    (template / "tree" / "tokenizer").rename(store.path.parent / "taken")
    code, found = check(store, "made", "--repair")
    assert code == CHECK_LEFT
    assert ("lost-redirect", "error") in said(found, store.copy("made"))
    assert os.getxattr(store.copy("made") / "upper" / "words", REDIRECT) == b"/tokenizer"
    (store.path.parent / "taken").rename(template / "tree" / "tokenizer")


def test_template_is_clean_whatever_was_in_its_source(
    small_xfs: Callable[..., Volume], mount_plain: MountCopy, tmp_path: Path
) -> None:
    """Above all what is left out of it: the store, mounts, sockets, whiteouts."""
    volume = small_xfs()
    top = volume.mountpoint
    make_model(top / "model")
    for number in range(2):
        os.link(top / "model" / "latest", top / f"link{number}", follow_symlinks=False)
    (top / "there").mkdir()
    (top / "file").write_text("hidden")
    (top / "future").touch()
    os.utime(top / "future", (2**33, 2**33))
    os.mknod(top / "device", stat.S_IFBLK, os.makedev(7, 99))
    os.mknod(top / "gone", stat.S_IFCHR)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(top / "socket"))
    outside = tmp_path / "outside"
    outside.touch()
    run("mount", "--bind", tmp_path, top / "there")
    run("mount", "--bind", outside, top / "file")
    try:
        root = mount_plain(top, None, "copy=all")
        (root / "model" / "hard1").write_text("changed")
        mount_plain.unmount(root)
    finally:
        run("umount", top / "there")
        run("umount", top / "file")
    assert check(Store(top / ".cowfs"), "--all")[1]["findings"] == []


# --- what is whole --------------------------------------------------------------------------------


def test_copy_is_clean_after_heavy_use(mount_copy: MountCopy, xfs: Path, mode: str) -> None:
    source = make_source(xfs / "source")
    store = Store(xfs / "store")
    options = ("copy=used", f"store={store.path}", "share_min=8k", "dev")
    root = mount_copy(source, None, *options)
    hand = Hand(root)
    plan = Plan(random.Random(f"check {mode}"), root, lambda: list(hand.fds))
    for _ in range(1500):
        operation = plan.draw()
        if operation.name not in ("map_read", "map_store"):  # may be cut off: SIGBUS
            try:
                hand.do(operation)
            except KeyError:
                pass  # a descriptor that is not open
        if plan.chance(0.003):
            hand.close_all()
            mount_copy.unmount(root)
            assert check(store, "--all")[1]["findings"] == []
            mount_copy(source, root, *options)
            hand = Hand(root)
    hand.close_all()
    mount_copy.unmount(root)
    assert check(store, "--all")[1]["findings"] == []
    assert (store.copy("used") / "upper").exists()


def test_copy_of_a_killed_daemon_has_nothing_but_what_the_next_mount_removes(
    mount_copy: MountCopy, xfs: Path, model: Path
) -> None:
    store = Store(xfs / "store")
    options = ("copy=killed", f"store={store.path}")
    root = mount_copy(model, None, *options)
    (root / "hard1").write_text("changed")
    (root / "many").rename(root / "few")
    mount_copy.kill(root)
    code, found = check(store, "killed")
    assert code == 0
    assert {finding["status"] for finding in found["findings"]} <= {"harmless"}
    mount_copy(model, root, *options)
    mount_copy.unmount(root)
    assert check(store, "--all")[1]["findings"] == []


def test_copy_that_was_changed_through_overlayfs_is_clean(
    mount_plain: MountCopy, store: Store, tmp_path: Path
) -> None:
    copy, tree = store.copy("made"), store.template() / "tree"
    options = f"redirect_dir=on,lowerdir={tree},upperdir={copy / 'upper'},workdir={copy / 'work'}"
    run("mount", "-t", "overlay", "-o", options, "none", tmp_path)
    try:
        (tmp_path / "many").rename(tmp_path / "words" / "many")
        (tmp_path / "words" / "deep").rename(tmp_path / "words" / "shallow")
        # Nothing that is still shared: overlayfs lets nobody touch the template's immutable files.
        (tmp_path / "words" / "many" / "g001").unlink()
        (tmp_path / "config.json").unlink()
        (tmp_path / "config.json").mkdir()
        (tmp_path / "new" / "by overlayfs").write_text("new")
        seen = tree_state(tmp_path).keys()
    finally:
        run("umount", tmp_path)
    assert said(check(store, "made")[1], store.path) == [("overlayfs", "harmless")]
    assert check(store, "made", "--repair")[0] == 0
    root = mount_plain(store.path.parent / "model", None, "copy=made", f"store={store.path}")
    assert tree_state(root).keys() == seen
    mount_plain.unmount(root)
    assert check(store, "--all")[1]["findings"] == []


def test_copy_in_use_is_left_alone_and_its_template_examined(
    mount_plain: MountCopy, store: Store, xfs: Path
) -> None:
    root = mount_plain(xfs / "model", None, "copy=made", f"store={store.path}")
    (root / "busy").write_text("busy")
    before = tree_state(store.copy("made") / "upper")
    code, found = check(store, "made")
    assert code == LEFT
    assert found["in_use"] == [f"made (mounted at {root})"]
    assert found["templates"] == 1
    code, found = check(store, "--all", "--repair")
    assert (code, found["findings"]) == (0, [])
    assert found["in_use"] == [f"made (mounted at {root})"]
    assert tree_state(store.copy("made") / "upper") == before
    flags(store.template() / "tree" / "small.bin", "-i")
    assert check(store, "made")[0] == CHECK_LEFT
    assert check(store, "--all", "--repair")[0] == CHECK_REPAIRED
    assert (root / "busy").read_text() == "busy"
    lines = cowfs("check", "--store", store.path, "made", check=False).stdout.splitlines()
    assert lines[0].startswith("not examined: the copy made (mounted at ")


# --- trees that mean harm -------------------------------------------------------------------------


def test_deep_trees_and_odd_names_are_examined_and_links_not_followed(
    mount_plain: MountCopy, store: Store, xfs: Path
) -> None:
    outside = xfs / "outside"
    outside.mkdir()
    os.mknod(outside / "whiteout", stat.S_IFCHR)
    upper = os.fsencode(store.copy("made") / "upper")
    os.symlink(os.fsencode(outside), upper + b"/link")
    os.mkdir(upper + b"/odd\xff\n\x1b[31m")
    os.mknod(upper + b"/odd\xff\n\x1b[31m/wh", stat.S_IFCHR)
    fd = os.open(upper, os.O_PATH)
    for level in range(2200):
        os.mkdir("d", dir_fd=fd)
        if level % 100 == 0:
            os.mkdir("e", dir_fd=fd)
        child = os.open("d", os.O_PATH, dir_fd=fd)
        os.close(fd)
        fd = child
    os.mknod("whiteout", stat.S_IFCHR, dir_fd=fd)
    os.close(fd)
    result = run("prlimit", "--nofile=128", COWFS, "check", "--store", store.path, "made")
    lines = result.stdout.splitlines()
    assert len(lines) == 3, lines
    assert all(line.isprintable() for line in lines)
    assert "odd\\xff\\x0a\\x1b[31m/wh: whiteout of a name" in result.stdout
    code, found = check(store, "made", "--repair")
    assert (code, found["repaired"]) == (0, 2)
    assert check(store, "made")[1]["findings"] == []
    assert stat.S_ISCHR((outside / "whiteout").lstat().st_mode)
    run("rm", "-rf", os.fsdecode(upper + b"/d"))


def test_wrong_calls_are_told(store: Store) -> None:
    for arguments in ((), ("--all", "made"), ("no such copy",)):
        result = cowfs("check", "--store", store.path, *arguments, check=False)
        assert result.returncode == UsageError.exit_code
        assert result.stderr.startswith("cowfs: ")
        assert len(result.stderr.splitlines()) == 1


def test_summary_counts_what_was_looked_at(store: Store) -> None:
    result: Result = cowfs("check", "--store", store.path, "made")
    entries = sum(
        len(names) + len(files)
        for top in (store.template() / "tree", store.copy("made") / "upper")
        for _, names, files in os.walk(top)
    )
    assert result.stdout == f"1 copy, 1 template, {entries} entries: clean\n"


def test_volume_that_cannot_be_written_is_examined(
    small_xfs: Callable[..., Volume], mount_plain: MountCopy
) -> None:
    volume = small_xfs()
    store = Store(volume.mountpoint / ".cowfs")
    source = make_model(volume.mountpoint / "model")
    root = mount_plain(source, None, "copy=made")
    (root / "new").write_text("new")
    mount_plain.unmount(root)
    orphans(store.copy("made"), source)
    subprocess.run(["mount", "-o", "remount,ro", volume.mountpoint], check=True)
    assert check(store, "made")[0] == 0
    code, found = check(store, "made", "--repair")
    assert code == CHECK_LEFT
    assert ("unreadable", "error") in said(found, store.copy("made"))
    subprocess.run(["mount", "-o", "remount,rw", volume.mountpoint], check=True)
    assert check(store, "made", "--repair")[0] == 0
