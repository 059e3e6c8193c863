"""`cowfs clone` from a mounted copy to its volume: the view of the mount, the blocks behind it."""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cowfs.system import syscalls
from cowfs.transfer.behind import Behind
from cowfs.trees.scan import Directory
from integration import kernel
from integration.command import COWFS, Result, one_error, run
from integration.mounts import MountCopy
from integration.trees import Entry, differences, tree_state
from integration.volumes import MIB, Volume

Cowfs = Callable[..., Result]
USER = 1234
#: The ways in which a copy is served.
WAYS = ["passthrough=on", "passthrough=off", "engine=overlay"]


@pytest.fixture(params=WAYS)
def mount(request: pytest.FixtureRequest, mount_plain: MountCopy) -> Callable[[Path], Path]:
    """`mount(source)` returns the mountpoint of a new copy, which is served in each of the ways."""
    return lambda source: mount_plain(source, None, request.param)


def physical(path: Path) -> list[int]:
    with path.open("rb") as file:
        return [extent.physical for extent in syscalls.fiemap(file.fileno())]


def shown(root: Path) -> dict[str, Entry]:
    """A tree, but for the links of directories, which overlayfs does not count."""
    return {
        path: entry._replace(nlink=0) if stat.S_ISDIR(entry.mode) else entry
        for path, entry in tree_state(root).items()
    }


def template_of(mounts: MountCopy, mountpoint: Path) -> Path:
    record = mounts.record(mountpoint)
    return Path(record["store"], "templates", record["template"], "tree")


def upper_of(mounts: MountCopy, mountpoint: Path) -> Path:
    record = mounts.record(mountpoint)
    return Path(record["store"], "copies", record["copy"], "upper")


def change(root: Path) -> None:
    """One of each thing that makes a copy differ from its template."""
    with (root / "weights.bin").open("r+b") as file:
        file.write(b"mine")
    (root / "new").write_bytes(os.urandom(MIB))
    (root / "small.bin").unlink()
    (root / "many" / "f003").unlink()
    (root / "many" / "f003").mkdir()
    (root / "many" / "f003" / "inner").write_text("inner")
    (root / "config.json").chmod(0o600)
    os.setxattr(root / "config.json", "user.mine", b"yes")
    (root / "tokenizer").rename(root / "moved")
    (root / "moved" / "deep").rename(root / "deep")
    (root / "moved" / "added").write_text("added")
    (root / "tokenizer").mkdir()
    (root / "tokenizer" / "vocab.txt").write_text("another")
    with (root / "script.sh").open("a") as file:
        file.write("echo more\n")


def test_clone_is_what_the_copy_shows_with_the_blocks_behind_it(
    cowfs: Cowfs, mount_plain: MountCopy, mount: Callable[[Path], Path], model: Path, xfs: Path
) -> None:
    root = mount(model)
    change(root)
    before = shown(root)
    cowfs("clone", root, xfs / "clone")
    assert differences(before, shown(xfs / "clone")) == ""
    assert differences(before, shown(root)) == ""
    template, upper = template_of(mount_plain, root), upper_of(mount_plain, root)
    for name, behind in {
        "weights.bin": upper / "weights.bin",
        "new": upper / "new",
        "moved/vocab.txt": template / "tokenizer" / "vocab.txt",
        "deep/er/leaf": template / "tokenizer" / "deep" / "er" / "leaf",
        "tokenizer/vocab.txt": upper / "tokenizer" / "vocab.txt",
        "sparse.bin": template / "sparse.bin",
    }.items():
        assert physical(xfs / "clone" / name) == physical(behind), name
    for path in (xfs / "clone", *(xfs / "clone").rglob("*")):
        marks = os.listxattr(path, follow_symlinks=False)
        assert not any(name.startswith("trusted.") for name in marks), path


def test_a_directory_or_file_of_a_copy_is_cloned(
    cowfs: Cowfs, mount_plain: MountCopy, mount: Callable[[Path], Path], model: Path, xfs: Path
) -> None:
    root = mount(model)
    change(root)
    (root / "moved" / "hard2").unlink()  # its other name is outside
    template, upper = template_of(mount_plain, root), upper_of(mount_plain, root)
    cowfs("clone", root / "moved", xfs / "directory")
    assert differences(shown(root / "moved"), shown(xfs / "directory")) == ""
    assert physical(xfs / "directory" / "vocab.txt") == physical(template / "tokenizer/vocab.txt")
    for name, behind in {
        "weights.bin": upper / "weights.bin",
        "deep/er/leaf": template / "tokenizer" / "deep" / "er" / "leaf",
    }.items():
        place = xfs / f"one-{Path(name).name}"
        cowfs("clone", root / name, place)
        assert place.read_bytes() == (root / name).read_bytes()
        assert place.stat().st_mtime_ns == (root / name).stat().st_mtime_ns
        assert physical(place) == physical(behind)
    cowfs("clone", root / "latest", xfs / "link")
    assert os.readlink(xfs / "link") == "weights.bin"


def test_many_files_of_a_copy_are_cloned_by_several_processes(
    cowfs: Cowfs, mount: Callable[[Path], Path], xfs: Path
) -> None:
    for number in range(1500):
        path = xfs / "source" / str(number % 7) / str(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(number))
    root = mount(xfs / "source")
    for number in range(0, 1500, 50):
        (root / str(number % 7) / str(number)).write_text("changed")
    cowfs("clone", root, xfs / "clone")
    assert differences(shown(root), shown(xfs / "clone")) == ""


def test_what_a_mapping_has_changed_is_in_the_clone(
    cowfs: Cowfs, mount: Callable[[Path], Path], model: Path, xfs: Path
) -> None:
    root = mount(model)
    with (
        (root / "weights.bin").open("r+b") as file,
        mmap.mmap(file.fileno(), 0) as mapped,
    ):
        for at in range(0, len(mapped), mmap.PAGESIZE):
            mapped[at] = 42  # and nothing writes it back
        cowfs("clone", root, xfs / "clone")
        assert (xfs / "clone" / "weights.bin").read_bytes() == mapped[:]


def test_a_clone_changes_nothing_in_the_copy(
    cowfs: Cowfs, mount_plain: MountCopy, model: Path, xfs: Path
) -> None:
    (model / "train.log").write_bytes(bytes(2 * MIB))  # cloned when somebody opens it
    for option in ("clone=auto", "clone=open"):
        root = mount_plain(model, None, f"copy={option}", option)
        cowfs("clone", root, xfs / option)
        assert "(no changed files)" in mount_plain.unmount(root).stdout


def test_files_that_are_replaced_and_written_meanwhile_are_whole(
    cowfs: Cowfs, mount: Callable[[Path], Path], model: Path, xfs: Path
) -> None:
    root = mount(model)
    (root / "aside").mkdir()
    (root / "busy").mkdir()
    ended = threading.Event()

    def write() -> None:
        with (root / "busy" / "log").open("ab", buffering=0) as log:
            for number in itertools.count():
                (root / "aside" / "next").write_bytes(bytes([number % 256]) * 100_000)
                (root / "aside" / "next").rename(root / "busy" / "replaced")
                log.write(b"line\n" * 1000)
                first.set()
                if ended.wait(0.003):
                    return

    first = threading.Event()
    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert first.wait(30)
        for number in range(6):
            cowfs("clone", root / "busy", xfs / f"clone{number}")
            replaced = (xfs / f"clone{number}" / "replaced").read_bytes()
            assert len(replaced) == 100_000
            assert len(set(replaced)) == 1
            log = (xfs / f"clone{number}" / "log").read_bytes()
            assert log
            assert log == (b"line\n" * (len(log) // 5 + 1))[: len(log)]
    finally:
        ended.set()
        writer.join()


@contextlib.contextmanager
def behind(directory: Path) -> Iterator[Behind]:
    found = Behind.below(os.path.realpath(directory))
    assert found is not None
    with contextlib.closing(found):
        yield found


def read_behind(found: Behind, directory: Directory, name: str) -> bytes:
    with found.file(directory, name) as file:
        assert os.fstat(file.entry).st_size == file.st.st_size
        return os.read(file.data, 1000)


def test_a_file_that_gets_private_after_a_look_is_found(
    mount: Callable[[Path], Path], model: Path
) -> None:
    root = mount(model)
    deep = Directory("er", Directory("deep", Directory("tokenizer", Directory())))
    with behind(root) as found:
        assert read_behind(found, deep, "leaf") == b"leaf\n"
        (root / "tokenizer" / "deep" / "er" / "leaf").write_text("mine\n")
        assert read_behind(found, deep, "leaf") == b"mine\n"
        (root / "tokenizer" / "deep" / "er" / "new").write_text("new\n")
        assert read_behind(found, deep, "new") == b"new\n"


def test_directories_that_swap_their_names_are_not_mixed_up(
    mount: Callable[[Path], Path], model: Path
) -> None:
    for name in ("one", "two"):
        (model / name).mkdir()
        (model / name / "shared").write_text(name)
    root = mount(model)
    for name in ("one", "two"):
        (root / name / "private").write_text(name)
    directory = Directory("one", Directory())
    with behind(root) as found:
        assert read_behind(found, directory, "private") == b"one"
        (root / "one").rename(root / "three")
        (root / "two").rename(root / "one")
        both = [read_behind(found, directory, name) for name in ("shared", "private")]
        assert both == [b"one", b"one"]
    with behind(root) as found:
        both = [read_behind(found, directory, name) for name in ("shared", "private")]
        assert both == [b"two", b"two"]


def test_a_deep_tree_is_cloned(cowfs: Cowfs, mount: Callable[[Path], Path], xfs: Path) -> None:
    bottom = Path(*(["deeper"] * 100))  # more than are kept open
    (xfs / "source" / bottom).mkdir(parents=True)
    (xfs / "source" / bottom / "shared").write_text("shared")
    (xfs / "source" / bottom / "changed").write_text("before")
    root = mount(xfs / "source")
    (root / bottom / "changed").write_text("mine")
    cowfs("clone", root, xfs / "clone")
    assert differences(shown(root), shown(xfs / "clone")) == ""


def test_who_is_not_root_is_told_the_ways(
    mount: Callable[[Path], Path], model: Path, xfs: Path
) -> None:
    os.chown(model / "weights.bin", USER, USER)
    root = mount(model)
    (xfs / "theirs").mkdir()
    os.chown(xfs / "theirs", USER, USER)
    user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", str(COWFS)]
    place = xfs / "theirs" / "clone"
    refused = run(*user, "clone", root / "weights.bin", place, check=False)
    assert refused.returncode == 32
    line = one_error(refused)
    assert "run cowfs as root" in line
    assert "--reflink=auto" in line
    assert os.listdir(xfs / "theirs") == []
    run(*user, "clone", "--reflink=auto", root / "weights.bin", place)
    assert place.read_bytes() == (model / "weights.bin").read_bytes()


def test_another_place_of_a_copy_is_told(
    mount: Callable[[Path], Path], model: Path, xfs: Path
) -> None:
    root = mount(model)
    (xfs / "bound").mkdir()
    script = f'mount --bind "$1" "$2" && "{COWFS}" clone "$2" "$3"'
    words = [root / "tokenizer", xfs / "bound", xfs / "clone"]
    refused = run(*kernel.in_own_mounts(script), "sh", *words, check=False)
    assert refused.returncode == 32
    assert "outside of containers" in one_error(refused)
    assert not (xfs / "clone").exists()


def test_a_part_of_a_copy_that_hides_all_of_it_is_told(
    mount: Callable[[Path], Path], model: Path, xfs: Path
) -> None:
    """The same mount at the same place, and yet another root."""
    root = mount(model)
    (root / "config.json").write_text("of the root")
    (root / "tokenizer" / "config.json").write_text("of the part")
    script = f'mount --bind "$1/tokenizer" "$1" && "{COWFS}" clone "$1" "$2"'
    refused = run(*kernel.in_own_mounts(script), "sh", root, xfs / "clone", check=False)
    assert refused.returncode == 32
    assert "outside of containers" in one_error(refused)
    assert not (xfs / "clone").exists()


def test_a_copy_goes_to_another_volume_as_data_alone(
    cowfs: Cowfs,
    mount: Callable[[Path], Path],
    model: Path,
    small_xfs: Callable[..., Volume],
) -> None:
    other = small_xfs(64).mountpoint
    root = mount(model)
    change(root)
    refused = cowfs("clone", root, other / "clone", check=False)
    assert "are on different volumes" in one_error(refused)
    cowfs("clone", "--reflink=auto", root, other / "clone")
    assert differences(shown(root), shown(other / "clone")) == ""
