"""Which links of a source become files of the copy, and that nobody can plant one that should not.

Without a mount; what comes of it is in integration/store/test_links.py.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cowfs.trees import hub, links
from cowfs.trees.links import Policy, _may_enter
from cowfs.trees.scan import Scan, Scanner, first_difference, warn_of_links
from tests.trees.test_scan import nested

HASH = "ab" * 32
SHARED = f"ab/{HASH}"


@pytest.fixture(autouse=True)
def open_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest's own directories are closed to the users who own links here."""
    monkeypatch.setattr(links, "_may_enter", lambda _st, _users: True)


@pytest.mark.parametrize(
    ("mode", "owner", "users", "may"),
    [
        (0o755, 0, {1, 2}, True),
        (0o700, 0, {1}, False),
        (0o700, 1, {1}, True),
        (0o700, 1, {1, 2}, False),
        (0o655, 1, {1}, False),
        (0o700, 0, set(), True),
    ],
)
def test_who_may_look_up_names_in_a_directory(
    tmp_path: Path, mode: int, owner: int, users: set[int], may: bool
) -> None:
    os.chmod(tmp_path, mode)
    os.chown(tmp_path, owner, 0)
    assert _may_enter(tmp_path.stat(), users) is may


@pytest.fixture
def top(tmp_path: Path) -> Path:
    return Path(os.path.realpath(tmp_path))


@pytest.fixture
def cache(top: Path) -> Path:
    """A cache of huggingface_hub with one model, one revision, and a blob that is shared."""
    model = top / "hub" / "models--some--model"
    snapshot = model / "snapshots" / "rev"
    (snapshot / "onnx").mkdir(parents=True)
    (model / "blobs").mkdir()
    shared = top / "hub" / "blobs" / SHARED
    shared.parent.mkdir(parents=True)
    shared.write_bytes(b"shared weights")
    (model / "blobs" / "one").write_bytes(b"{}")
    (model / "blobs" / "two").symlink_to(f"../../blobs/{SHARED}")
    (snapshot / "config.json").symlink_to("../../blobs/one")
    (snapshot / "weights").symlink_to("../../blobs/two")
    (snapshot / "onnx" / "config.json").symlink_to("../../../blobs/one")
    return top / "hub"


@pytest.fixture
def snapshot(cache: Path) -> Path:
    return cache / "models--some--model" / "snapshots" / "rev"


def scanned(source: Path, links: Policy = "auto") -> Scan:
    with Scanner(str(source), None, links=links) as scanner:
        return scanner.scan()


def files(found: Scan) -> list[str]:
    return sorted(
        directory.path_of(name) for directory in found.directories for name in directory.files
    )


def symlinks(found: Scan) -> list[str]:
    return sorted(place.path for place in found.symlinks)


def warned(source: Path, links: Policy) -> list[str]:
    lines: list[str] = []
    with Scanner(str(source), None, links=links) as scanner:
        warn_of_links(scanner, scanner.scan().symlinks, "--links=follow", lines.append)
    return lines


# --- auto -----------------------------------------------------------------------------------------


def test_links_to_blobs_are_the_files_that_they_lead_to(snapshot: Path) -> None:
    found = scanned(snapshot)
    assert files(found) == ["config.json", "onnx/config.json", "weights"]
    assert symlinks(found) == []
    assert found.bytes == 2 + 2 + len(b"shared weights"), "each of them is a file of its own"
    assert found.entries == 5
    assert warned(snapshot, "auto") == []


def test_the_model_and_all_revisions_and_a_part_of_one_are_sources_too(cache: Path) -> None:
    model = cache / "models--some--model"
    found = scanned(model)
    assert files(found) == ["blobs/one", "blobs/two"]
    assert len(symlinks(found)) == 3, "they lead to what the copy has"
    assert files(scanned(model / "snapshots")) == [
        "rev/config.json",
        "rev/onnx/config.json",
        "rev/weights",
    ]
    assert files(scanned(model / "snapshots" / "rev" / "onnx")) == ["config.json"]
    assert files(scanned(model / "blobs")) == ["one", "two"]


def test_the_whole_cache_stays_what_it_is(cache: Path) -> None:
    found = scanned(cache)
    assert files(found) == [f"blobs/{SHARED}", "models--some--model/blobs/one"]
    assert len(symlinks(found)) == 4
    assert warned(cache, "auto") == []


@pytest.mark.parametrize("kind", ["datasets", "spaces", "kernels"])
def test_other_kinds_of_repositories_are_known(cache: Path, kind: str) -> None:
    (cache / "models--some--model").rename(cache / f"{kind}--some--model")
    assert len(files(scanned(cache / f"{kind}--some--model" / "snapshots" / "rev"))) == 3


def test_a_cache_below_another_ones_name_is_found() -> None:
    model = "/data/models--old/hub/models--x--y"
    assert hub.below_repository(f"{model}/snapshots/rev/models--z") == (model, 3)
    assert hub.below_repository(model) == (model, 0)
    assert hub.below_repository("/data/models--old/hub") is None
    assert hub.below_repository("/data/models/snapshots/rev") is None
    assert hub.below_repository("/") is None


PLANTED: dict[str, Callable[[Path, Path], object]] = {
    "absolute": lambda link, blobs: link.symlink_to(blobs / "one"),
    "elsewhere": lambda link, _: link.symlink_to("../../../../secret"),
    "a way round": lambda link, _: link.symlink_to("../../blobs/../../../secret"),
    "deeper": lambda link, _: link.symlink_to("../../blobs/sub/one"),
    "one too few": lambda link, _: link.symlink_to("../blobs/one"),
    "the directory": lambda link, _: link.symlink_to("../../blobs/."),
    "no file": lambda link, _: link.symlink_to("../../blobs/fifo"),
    "a link in blobs": lambda link, _: link.symlink_to("../../blobs/planted"),
    "a link in shared blobs": lambda link, _: link.symlink_to("../../blobs/twice"),
    "nothing": lambda link, _: link.symlink_to("../../blobs/missing"),
}


@pytest.mark.parametrize("how", PLANTED)
def test_what_has_not_exactly_the_form_of_the_cache_is_not_followed(
    snapshot: Path, cache: Path, how: str
) -> None:
    blobs = snapshot.parent.parent / "blobs"
    (cache.parent / "secret").write_text("secret")
    (blobs / "sub").mkdir()
    (blobs / "sub" / "one").write_text("x")
    os.mkfifo(blobs / "fifo")
    (blobs / "planted").symlink_to("../../../secret")
    (cache / "blobs" / "ab" / ("ab" + "c" * 62)).symlink_to("../../../secret")
    (blobs / "twice").symlink_to(f"../../blobs/ab/ab{'c' * 62}")
    PLANTED[how](snapshot / "planted", blobs)
    assert symlinks(scanned(snapshot)) == ["planted"]
    [line] = warned(snapshot, "auto")
    assert line.startswith(f"a link leads out of the source and stays one: {snapshot}/planted ->")


def test_a_blobs_directory_that_is_a_link_is_none(snapshot: Path, top: Path) -> None:
    blobs = snapshot.parent.parent / "blobs"
    blobs.rename(top / "private")
    blobs.symlink_to(top / "private")
    assert files(scanned(snapshot)) == []


CHANGES: dict[str, Callable[[Path], object]] = {
    "config.json": lambda snapshot: (snapshot / "config.json").resolve().write_bytes(b"{ }"),
    "weights": lambda snapshot: (snapshot / "weights").resolve().write_bytes(b"other"),
    "onnx/config.json": lambda snapshot: _lead(snapshot / "onnx" / "config.json", "two"),
}


def _lead(link: Path, blob: str) -> None:
    link.unlink()
    link.symlink_to(f"../../../blobs/{blob}")


@pytest.mark.parametrize("path", CHANGES)
def test_a_changed_blob_and_a_changed_link_are_seen_and_named(snapshot: Path, path: str) -> None:
    if path == "config.json":
        (snapshot / "onnx" / "config.json").unlink()  # the same blob
    before = scanned(snapshot)
    assert first_difference(before, scanned(snapshot)) is None
    time.sleep(0.02)  # coarse clocks
    CHANGES[path](snapshot)
    assert first_difference(before, scanned(snapshot)) == path


def test_a_blob_that_has_just_changed_is_scanned_again(snapshot: Path) -> None:
    time.sleep(0.03)
    (snapshot / "weights").resolve().write_bytes(b"now")
    with Scanner(str(snapshot), None, links="auto") as scanner:
        found = scanner.settled()
    assert time.time_ns() - found.newest_ctime >= 10_000_000


# --- follow ---------------------------------------------------------------------------------------


@pytest.fixture
def source(top: Path) -> Path:
    """Of user 1000, who has made the links in it; `theirs` is another user's file."""
    source = top / "source"
    (source / "sub").mkdir(parents=True)
    (source / "file").write_text("inside")
    (top / "mine").write_text("mine")
    (top / "theirs").write_text("theirs")
    (top / "directory").mkdir()
    (top / "shadow").write_text("root's")
    os.mkfifo(top / "fifo")
    os.chown(top / "mine", 1000, 1000)
    os.chown(top / "theirs", 1001, 1001)
    return source


def link(path: Path, target: str, owner: int = 1000) -> None:
    path.symlink_to(target)
    os.chown(path, owner, owner, follow_symlinks=False)


def test_links_out_of_the_source_are_followed_and_those_inside_stay(
    source: Path, top: Path
) -> None:
    link(source / "out", "../mine")
    link(source / "sub" / "absolute", str(top / "mine"))
    link(source / "sub" / "home", str(source / "file"), owner=0)
    link(source / "inside", "sub/../file")
    link(source / "sub" / "inside", "../sub/../file")
    link(source / "round", "../source/file", owner=0)
    link(source / "missing", "nowhere")
    found = scanned(source, "follow")
    assert files(found) == ["file", "out", "round", "sub/absolute", "sub/home"]
    assert symlinks(found) == ["inside", "missing", "sub/inside"]
    assert warned(source, "follow") == []
    assert files(scanned(source, "auto")) == files(scanned(source, "keep")) == ["file"]


NOT_FOLLOWED = {
    "../theirs": "a file that the owner of the link does not own",
    "../shadow": "a file that the owner of the link does not own",
    "../by-root": "a file that the owner of the link does not own",
    "../directory": "a directory",
    "../../..": "a directory",
    "../fifo": "no regular file",
    "/dev/null": "no regular file",
    "../nothing": "which cannot be followed: No such file or directory",
    "../loop": "which cannot be followed: Too many levels of symbolic links",
    "/proc/version": "on another volume",
}


@pytest.mark.parametrize("target", NOT_FOLLOWED)
def test_what_is_not_followed_stays_a_link_and_the_warning_says_why(
    source: Path, top: Path, target: str
) -> None:
    link(top / "by-root", str(top / "theirs"), owner=0)
    link(top / "loop", "loop")
    link(source / "planted", target)
    found = scanned(source, "follow")
    assert symlinks(found) == ["planted"]
    assert files(found) == ["file"]
    [line] = warned(source, "follow")
    assert f"{source}/planted -> {target} ({NOT_FOLLOWED[target]})" in line


def test_a_link_of_roots_is_followed_to_whoever_owns_the_file(source: Path, top: Path) -> None:
    link(source / "given", "../theirs", owner=0)
    assert "given" in files(scanned(source, "follow"))


def test_a_link_of_roots_that_leads_through_a_users_link_is_that_users(
    source: Path, top: Path
) -> None:
    link(top / "latest", "theirs")
    link(source / "given", "../latest", owner=0)
    assert symlinks(scanned(source, "follow")) == ["given"]
    (top / "latest").unlink()
    link(top / "latest", "mine")
    assert "given" in files(scanned(source, "follow"))


def test_a_directory_on_the_way_that_is_a_users_link_counts_too(source: Path, top: Path) -> None:
    (top / "directory" / "theirs").write_text("x")
    os.chown(top / "directory" / "theirs", 1001, 1001)
    link(top / "way", "directory")
    link(source / "given", "../way/theirs", owner=0)
    assert symlinks(scanned(source, "follow")) == ["given"]


def test_links_of_a_cache_are_followed_by_their_owner(snapshot: Path) -> None:
    assert len(files(scanned(snapshot, "follow"))) == 3


# --- keep, and the warning ------------------------------------------------------------------------


def test_keep_keeps_and_says_nothing(snapshot: Path) -> None:
    assert files(scanned(snapshot, "keep")) == []
    assert warned(snapshot, "keep") == []


def test_all_links_that_lead_out_are_one_line_with_an_example(source: Path) -> None:
    for name in ("a", "b", "sub/c"):
        link(source / name, "/nowhere/at/all")
    link(source / "inside", "file")
    os.link(source / "a", source / "d", follow_symlinks=False)
    [line] = warned(source, "auto")
    assert line == (
        f"4 links lead out of the source and stay links, such as {source}/a -> /nowhere/at/all; "
        "what is written through a link changes what it leads to, not a copy; --links=follow makes "
        "files of such links where it can"
    )


def test_a_link_at_any_depth_is_judged(tmp_path: Path) -> None:
    source = nested(tmp_path, 30)
    fd = os.open(source, os.O_RDONLY)
    for _ in range(30):
        deeper = os.open("x" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    os.symlink("../" * 30 + "x", "inside", dir_fd=fd)
    os.symlink("../" * 31 + "x", "out", dir_fd=fd)
    os.close(fd)
    with Scanner(str(source), None, links="auto") as scanner:
        [leading] = scanner.leading_out(scanner.scan().symlinks)
    assert leading.path.endswith("/out")
